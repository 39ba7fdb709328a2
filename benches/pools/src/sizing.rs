//! Caches that follow the load beside caches of a fixed size: hit rate, time and memory on five loads.

use crate::subjects::Items;
use std::hint::black_box;
use std::time::Instant;
use terrane_pool::sizing::{HitRate, LowWater};
use terrane_pool::{AtEnd, Builder, Pool};

/// Objects taken and returned together, `ROUNDS` times, in each tick.
type Load = fn(usize) -> usize;

const TICKS: usize = 400;
const ROUNDS: usize = 20;
/// Bytes that all caches may hold together.
const BUDGET: u64 = 1 << 20;
/// Bytes of an object with its block.
const BYTES: u32 = 1024;

const LOADS: [(&str, Load); 5] = [
    ("steady, 48 held", |_| 48),
    ("steady, 400 held", |_| 400),
    ("phases of 100 ticks: 30, 500", |tick| [30, 500][tick / 100 % 2]),
    ("busy for 50 ticks, then idle", |tick| if tick < 50 { 600 } else { 0 }),
    ("adversarial: 700, 5 in turn", |tick| [700, 5][tick % 2]),
];

fn run(pool: &Pool<super::Item, Items>, load: Load, ticking: bool) -> (f64, f64, f64, u64) {
    let (mut operations, mut kept) = (0, 0);
    let start = Instant::now();
    for tick in 0..TICKS {
        let held = load(tick);
        for _ in 0..ROUNDS {
            let mut leases = Vec::with_capacity(held);
            leases.extend((0..held).map(|_| black_box(pool.acquire().expect("the bound is higher"))));
            operations += held;
        }
        if ticking {
            pool.tick();
        }
        kept += pool.stats().idle;
    }
    let nanoseconds = start.elapsed().as_nanos() as f64 / operations as f64;
    let stats = pool.stats();
    (stats.hit_rate() * 100.0, nanoseconds, kept as f64 / TICKS as f64, stats.idle)
}

/// Prints the table.
pub fn table() {
    println!(
        "{:<32}{:<12}{:>9}{:>12}{:>14}{:>14}{:>10}",
        "load", "caches", "hits, %", "ns per pair", "idle, mean", "idle, at end", "made"
    );
    for (name, load) in LOADS {
        let builder = || Builder::new(Items).cache(64).at_end(AtEnd::Panic);
        let pools = [
            ("fixed", builder().build(), false),
            ("hit rate", builder().sizing(HitRate::<256>::new(950, 4), BUDGET, BYTES).build(), true),
            ("low water", builder().sizing(LowWater::<256>::new(4), BUDGET, BYTES).build(), true),
        ];
        for (caches, pool, ticking) in pools {
            let (hits, nanoseconds, mean, end) = run(&pool, load, ticking);
            let made = pool.stats().created;
            println!("{name:<32}{caches:<12}{hits:>9.1}{nanoseconds:>12.1}{mean:>14.0}{end:>14}{made:>10}");
        }
    }
}
