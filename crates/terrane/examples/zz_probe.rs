//! Probe.
#[global_allocator]
static G: terrane::Terrane = terrane::Terrane;
fn rss() -> u64 {
    let s = std::fs::read_to_string("/proc/self/statm").unwrap();
    s.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4
}
fn show(what: &str) {
    let s = terrane::stats();
    println!(
        "{what}: rss {} KiB committed {} live {} purged {} huge {} large {} segs {}",
        rss(),
        s.committed_bytes >> 10,
        s.live_bytes() >> 10,
        s.purged_bytes >> 10,
        s.huge_live_bytes >> 10,
        s.large_live_bytes >> 10,
        s.segments
    );
    if what == "x" {
        for c in &s.classes {
            let slab = terrane::slab::size_class::TABLE
                [terrane::slab::size_class::class_of(c.block_bytes as usize)]
            .slab_bytes() as u64;
            print!(" {}:{}x{}K({} out)", c.block_bytes, c.slabs_made - c.slabs_retired, slab >> 10, c.out());
        }
        println!();
    }
}
fn size(r: &mut u64) -> usize {
    *r ^= *r << 13;
    *r ^= *r >> 7;
    *r ^= *r << 17;
    let r = *r;
    let lu = |a: u32, b: u32| {
        let k = a + (r >> 8) as u32 % (b - a);
        (1usize << k) + (r >> 20) as usize % (1 << k)
    };
    match r % 1000 {
        0..900 => lu(4, 10),
        900..990 => lu(10, 14),
        990..999 => lu(14, 18),
        _ => lu(18, 22),
    }
}
fn hold(r: &mut u64, n: usize) -> Vec<Vec<u8>> {
    let mut v = vec![];
    let mut h = 0;
    while h < n {
        let s = size(r);
        v.push(vec![1u8; s]);
        h += s;
    }
    v
}
fn main() {
    let ts: Vec<_> = (0..2u64)
        .map(|t| {
            std::thread::spawn(move || {
                let mut r = 88172645463325252u64 + t;
                let base = hold(&mut r, 8 << 20);
                let mut b = hold(&mut r, 128 << 20);
                while !b.is_empty() {
                    r ^= r << 13;
                    r ^= r >> 7;
                    r ^= r << 17;
                    let i = (r % b.len() as u64) as usize;
                    b.swap_remove(i);
                }
                drop(b);
                std::thread::sleep(std::time::Duration::from_millis(3500));
                drop(base);
            })
        })
        .collect();
    for i in 0..8 {
        std::thread::sleep(std::time::Duration::from_millis(500));
        show(if i == 3 { "x" } else { "t" });
    }
    for t in ts {
        t.join().unwrap();
    }
    show("end");
}
