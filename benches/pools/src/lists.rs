//! The allocator's own lists of fixed depth beside lists that a policy sizes: blocks served by a list, time and memory on six loads.

use std::hint::black_box;
use std::ptr::NonNull;
use std::time::Instant;
use terrane_pages::Mmap;
use terrane_slab::domain::Policy;
use terrane_slab::size_class::{CLASSES, TABLE};
use terrane_slab::{ListSizing, PrivateHeap};

/// Bytes and number of blocks that are taken and given back together, by the number of the burst.
type Load = fn(usize) -> (usize, usize);

const BURSTS: usize = 4000;
/// Bursts between ticks of the clock.
const PER_TICK: usize = 40;

const LOADS: [(&str, Load); 6] = [
    ("steady, 100 of 64 bytes", |_| (64, 100)),
    ("steady, 800 of 64 bytes", |_| (64, 800)),
    ("steady, 100 of 1 KiB", |_| (1024, 100)),
    ("phases of 1000: 600 of 48, 90 of 700", |burst| [(48, 600), (700, 90)][burst / 1000 % 2]),
    ("busy for 500, then other sizes", |burst| if burst < 500 { (64, 900) } else { (256, 60) }),
    ("adversarial: 5000, 5 of 64 in turn", |burst| (64, [5000, 5][burst % 2])),
];

const POLICIES: [(&str, ListSizing); 3] =
    [("fixed", ListSizing::Fixed), ("low water", ListSizing::LowWater), ("hit rate", ListSizing::HitRate)];

/// Share of the blocks that a list served, ns per block, mean and last KiB in lists.
fn run(sizing: ListSizing, load: Load) -> [f64; 4] {
    let policy = Policy { lists: sizing, ..Policy::DEFAULT };
    let heap = PrivateHeap::with_policy(Mmap::new(), policy, ()).expect("there is memory for a heap");
    let mut held: Vec<NonNull<u8>> = Vec::with_capacity(8192);
    let (mut blocks, mut ns, mut kept) = (0, 0, 0);
    let listed =
        || (0..CLASSES).map(|class| heap.listed(class) * TABLE[class].block_bytes as usize).sum::<usize>();
    for burst in 0..BURSTS {
        let (bytes, count) = load(burst);
        let start = Instant::now();
        held.extend((0..count).map(|_| black_box(heap.alloc(bytes, 8)).expect("there is memory")));
        for block in held.drain(..) {
            // SAFETY: the block is live, of this heap and of that length.
            unsafe { heap.free(block, bytes, 8) };
        }
        ns += start.elapsed().as_nanos();
        blocks += count;
        kept += listed();
        if burst % PER_TICK == PER_TICK - 1 {
            heap.tick((burst / PER_TICK) as u64);
        }
    }
    let taken: u64 = heap.counters().classes.iter().map(|class| class.taken.get()).sum();
    let missed = taken as f64 / blocks as f64;
    let kib = |bytes: usize| bytes as f64 / 1024.0;
    [(1.0 - missed) * 100.0, ns as f64 / blocks as f64, kib(kept / BURSTS), kib(listed())]
}

/// Prints the table: the median time of `rounds` runs.
pub fn table(rounds: usize) {
    println!(
        "{:<40}{:<12}{:>9}{:>14}{:>16}{:>16}",
        "load", "lists", "hits, %", "ns per block", "KiB held, mean", "KiB, at end"
    );
    for (name, load) in LOADS {
        let mut times = [const { Vec::new() }; POLICIES.len()];
        let mut last = [[0.0; 4]; POLICIES.len()];
        for _ in 0..rounds {
            for (place, (_, sizing)) in POLICIES.iter().enumerate() {
                last[place] = run(*sizing, load);
                times[place].push(last[place][1]);
            }
        }
        for (place, (policy, _)) in POLICIES.iter().enumerate() {
            times[place].sort_by(f64::total_cmp);
            let [hits, _, mean, end] = last[place];
            let time = times[place][rounds / 2];
            println!("{name:<40}{policy:<12}{hits:>9.1}{time:>14.2}{mean:>16.0}{end:>16.0}");
        }
    }
}
