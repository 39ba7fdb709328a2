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
}
fn rss() -> u64 {
    let s = std::fs::read_to_string("/proc/self/statm").unwrap();
    s.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4
}
fn show(p: usize, blocks: &[Vec<u8>]) {
    let s = terrane::stats();
    let mut held = vec![0u64; 80];
    let mut bytes = 0;
    for b in blocks {
        held[terrane::slab::size_class::class_of(b.capacity())] += 1;
        bytes += b.capacity();
    }
    println!("phase {p}: rss {} committed {} program {} KiB", rss(), s.committed_bytes >> 10, bytes >> 10);
    let mut sum = 0;
    for c in &s.classes {
        let k = c.slabs_made - c.slabs_retired;
        if k == 0 {
            continue;
        }
        let class = terrane::slab::size_class::class_of(c.block_bytes as usize);
        let t = terrane::slab::size_class::TABLE[class];
        sum += k * t.slab_bytes() as u64;
        if k > 8 {
            print!(
                " {}:{} slabs {} KiB, {:.0}% live, {:.0}% out;",
                c.block_bytes,
                k,
                k * t.slab_bytes() as u64 >> 10,
                100.0 * held[class] as f64 / (k as f64 * t.blocks as f64),
                100.0 * c.out() as f64 / (k as f64 * t.blocks as f64)
            );
        }
    }
    println!("\n slabs {} KiB; {:?}", sum >> 10, s.threads);
}
fn main() {
    const PHASES: [(usize, usize); 8] =
        [(16, 64), (64, 256), (32, 128), (256, 1024), (1024, 4096), (48, 96), (4096, 16_384), (128, 512)];
    let target = 10 << 20;
    let mut rng = R(88172645463325252);
    let (mut blocks, mut live): (Vec<Vec<u8>>, usize) = (Vec::new(), 0);
    for (phase, (low, high)) in PHASES.into_iter().enumerate() {
        let mut old = std::mem::take(&mut blocks);
        let mut goes = old.len() * 9 / 10;
        loop {
            if goes > 0 {
                goes -= 1;
                let at = rng.below(old.len());
                let b = old.swap_remove(at);
                live -= b.capacity();
                drop(b);
            } else if live >= target {
                break;
            }
            while live < target {
                let s = rng.within(low, high);
                blocks.push(vec![1u8; s]);
                live += s;
                if goes > 0 {
                    break;
                }
            }
        }
        blocks.append(&mut old);
        show(phase, &blocks);
    }
}
