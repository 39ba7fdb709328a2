//! Probe.
#[global_allocator]
static G: terrane::Terrane = terrane::Terrane;
struct R(u64);
impl R {
    fn next(&mut self) -> u64 {
        let r = &mut self.0;
        *r ^= *r << 13;
        *r ^= *r >> 7;
        *r ^= *r << 17;
        *r >> 11
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn within(&mut self, a: usize, b: usize) -> usize {
        a + self.below(b - a + 1)
    }
    fn lu(&mut self, low: usize, high: usize) -> usize {
        let d = (high / low).ilog2() as usize;
        let b = low << self.below(d);
        b + self.below(b)
    }
}
fn size(r: &mut R) -> usize {
    match r.below(100) {
        0..80 => r.within(8, 256),
        80..95 => r.lu(256, 8 << 10),
        95..99 => r.lu(8 << 10, 128 << 10),
        _ => r.lu(128 << 10, 1 << 20),
    }
}
fn block(n: usize) -> Vec<u8> {
    let mut v: Vec<u8> = Vec::with_capacity(n);
    v.push(1);
    unsafe {
        let p = v.as_mut_ptr().add(n - 1);
        *p = 1;
    }
    v
}
fn rss() -> u64 {
    let s = std::fs::read_to_string("/proc/self/statm").unwrap();
    s.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4
}
fn main() {
    let mut r = R(88172645463325252);
    let r0 = rss();
    let mut v: Vec<Vec<u8>> = (0..1000)
        .map(|_| {
            let n = size(&mut r);
            block(n)
        })
        .collect();
    let n: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    for i in 0..n {
        let at = r.below(1000);
        let s = size(&mut r);
        v[at] = block(s);
        if (i + 1) % (n / 4) == 0 {
            let s = terrane::stats();
            let live: usize = v.iter().map(|b| b.capacity()).sum();
            println!(
                "rss {} (start {r0}) committed {} live-blocks {} large_live {} program live {}",
                rss(),
                s.committed_bytes >> 10,
                s.live_bytes() >> 10,
                s.large_live_bytes >> 10,
                live >> 10
            );
            let large: usize = v.iter().map(|b| b.capacity()).filter(|&c| c > 32768).sum();
            println!(" program large {}", large >> 10);
            if i + 1 == n {
                let mut t = 0;
                for c in &s.classes {
                    let k = c.slabs_made - c.slabs_retired;
                    if k == 0 {
                        continue;
                    }
                    let slab = terrane::slab::size_class::TABLE
                        [terrane::slab::size_class::class_of(c.block_bytes as usize)]
                    .slab_bytes() as u64;
                    t += k * slab;
                    print!(" {}:{}x{}K({} out)", c.block_bytes, k, slab >> 10, c.out());
                }
                println!("\nslabs {} KiB", t >> 10);
                let mut bases: Vec<usize> =
                    v.iter().map(|b| b.as_ptr() as usize & !((4 << 20) - 1)).collect();
                bases.sort();
                bases.dedup();
                let mut owner = std::collections::HashMap::<usize, char>::new();
                for b in &v {
                    let big = b.capacity() > 32768;
                    let a = b.as_ptr() as usize;
                    for s in (a >> 16)..=((a + b.capacity() - 1) >> 16) {
                        owner.insert(s, if big { 'L' } else { 's' });
                    }
                }
                for base in bases {
                    let mut vec = vec![0u8; 1024];
                    unsafe {
                        libc::mincore(base as *mut _, 4 << 20, vec.as_mut_ptr());
                    }
                    let mut total = 0;
                    print!("{base:x}: ");
                    for s in 0..64 {
                        let n: usize = vec[s * 16..s * 16 + 16].iter().map(|b| (b & 1) as usize).sum();
                        total += n;
                        let o = owner.get(&((base >> 16) + s)).copied().unwrap_or('.');
                        print!("{o}{n:x} ");
                    }
                    println!(" = {} KiB", total * 4);
                }
                let maps = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
                println!("{maps}");
            }
        }
    }
}
