//! Workloads whose point is memory over time.
//!
//! Invariant: the bytes that count as live are those the program asked for and still holds, bookkeeping included.

use std::sync::Barrier;
use std::time::Duration;

use terrane_bench::record::Idle;

use crate::block::Block;
use crate::gang::{Measured, Plan, gang};
use crate::memory::resident;
use crate::probe::Probe;
use crate::rng::Rng;

/// A live set whose sizes shift from phase to phase.
pub fn fragmentation<P: Probe>(plan: Plan) -> Measured {
    const PHASES: [(usize, usize); 8] =
        [(16, 64), (64, 256), (32, 128), (256, 1024), (1024, 4096), (48, 96), (4096, 16_384), (128, 512)];
    let target = plan.share(32 << 20);
    gang::<P>(plan, |index, probe, gate| {
        let mut rng = Rng::new(index as u64);
        let (mut blocks, mut live, mut ops): (Vec<Block>, usize, u64) = (Vec::new(), 0, 0);
        gate.start();
        for (phase, (low, high)) in PHASES.into_iter().enumerate() {
            let mut old = std::mem::take(&mut blocks);
            // Frees and allocations alternate, as in a program whose work shifts while it runs.
            let mut goes = old.len() * 9 / 10;
            loop {
                if goes > 0 {
                    goes -= 1;
                    let block = old.swap_remove(rng.below(old.len()));
                    live -= block.size();
                    block.free(probe);
                } else if live >= target {
                    break;
                }
                while live < target {
                    let size = rng.within(low, high);
                    blocks.push(Block::new(probe, size, phase as u32));
                    live += size;
                    ops += 1;
                    if goes > 0 {
                        break;
                    }
                }
            }
            blocks.append(&mut old);
        }
        blocks.drain(..).for_each(|block| block.free(probe));
        gate.end(ops);
    })
}

fn burst_size(rng: &mut Rng) -> usize {
    match rng.below(1000) {
        0..900 => rng.skewed(16, 1024),
        900..990 => rng.log_uniform(1 << 10, 16 << 10),
        990..999 => rng.log_uniform(16 << 10, 256 << 10),
        _ => rng.log_uniform(256 << 10, 4 << 20),
    }
}

fn hold<P: Probe>(probe: &mut P, rng: &mut Rng, bytes: usize) -> (Vec<Block>, usize) {
    let (mut blocks, mut held) = (Vec::new(), 0);
    while held < bytes {
        let size = burst_size(rng);
        let block = Block::new(probe, size, held as u32);
        block.touch_pages();
        blocks.push(block);
        held += size;
    }
    (blocks, held)
}

/// 16 MiB that stay, 256 MiB that come and go, and a second of silence.
pub fn burst_and_idle<P: Probe>(plan: Plan) -> Measured {
    let before = resident();
    let seen = std::sync::Mutex::new(Idle::default());
    let quiet = Barrier::new(plan.threads);
    let mut measured = gang::<P>(plan, |index, probe, gate| {
        let mut rng = Rng::new(index as u64);
        let (base, held) = hold(probe, &mut rng, plan.share(16 << 20));
        let book = base.capacity() * size_of::<Block>();
        gate.start();
        let (mut burst, _) = hold(probe, &mut rng, plan.share(256 << 20));
        let ops = burst.len() as u64;
        // Not in the order of allocation: programs seldom free so.
        while !burst.is_empty() {
            burst.swap_remove(rng.below(burst.len())).free(probe);
        }
        drop(burst);
        gate.end(ops);
        {
            let mut seen = seen.lock().expect("no thread panics while it holds the figures");
            seen.live_bytes += (held + book) as u64;
        }
        quiet.wait();
        if index == 0 {
            std::thread::sleep(Duration::from_millis(if plan.scale < 0.1 { 10 } else { 1000 }));
            let now = resident();
            let mut seen = seen.lock().expect("no thread panics while it holds the figures");
            seen.anon_bytes = now.anon.saturating_sub(before.anon);
            seen.lazy_bytes = now.lazy;
        }
        quiet.wait();
        base.into_iter().for_each(|block| block.free(probe));
    });
    measured.idle = seen.into_inner().ok();
    measured
}

/// What a small program does: a few strings, a table, and the end.
pub fn startup(_: Plan) -> Measured {
    let start = std::time::Instant::now();
    let words: Vec<String> = (0..100).map(|i| format!("word {i}")).collect();
    let total: usize = words.iter().map(String::len).sum();
    assert_eq!(total, 690, "the words of a small program");
    Measured { ops: 1, elapsed_ns: start.elapsed().as_nanos() as u64, samples: None, idle: None }
}
