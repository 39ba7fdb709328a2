//! Memory held against memory in use, over long runs of requests. Bookkeeping alone: the ratios are as true on a simulated
//! device as on a real one, as long as the work of a step is done when the step is.

use crate::goals::Goal;
use crate::{Bench, Failure, engine};
use std::sync::Arc;
use terrane_fit::BestFit;
use terrane_gpu::movable::MovableSet;
use terrane_gpu::{Block, ChunkConfig, DevicePool, Regions, Stream, VariablePool, VmmConfig};

/// Blocks of fewer bytes are moved by a compaction.
const SHORT: u64 = 32 << 20;

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n.max(1)
    }
}

/// A pool under a trace, and what the trace has out.
struct Run<'a, P> {
    pool: &'a P,
    stream: Stream,
    bench: &'a Bench,
    /// Closes the pool's epoch, so that what the device is done with is known to be past.
    close: &'a dyn Fn(Stream),
    live: u64,
    peak_live: u64,
}

impl<P: DevicePool> Run<'_, P> {
    fn take(&mut self, len: u64) -> Result<Block, Failure> {
        let block = self.pool.allocate(len, 256, self.stream)?;
        self.live += block.asked();
        self.peak_live = self.peak_live.max(self.live);
        Ok(block)
    }

    fn give(&mut self, block: Block) {
        self.live -= block.asked();
        // SAFETY: no work uses the block.
        unsafe { self.pool.deallocate(block, self.stream, &[]) }
    }

    fn step_done(&self) -> Result<(), Failure> {
        (self.close)(self.stream);
        Ok(self.bench.device.synchronize()?)
    }
}

type Held = Vec<Block>;

/// Weights that stay, and requests whose caches grow token by token and go in another order than they came.
fn serving<P: DevicePool>(run: &mut Run<'_, P>) -> Result<Held, Failure> {
    let mut dice = Dice(1);
    let mut weights = (0..64).map(|i| run.take((24 + i % 5 * 8) << 20)).collect::<Result<Held, _>>()?;
    let mut requests: Vec<(u64, Held)> = Vec::new();
    for _ in 0..3000u64 {
        if requests.len() < 48 && dice.below(3) == 0 {
            let prompt = run.take((1 + dice.below(24)) << 20)?;
            requests.push((40 + dice.below(400), vec![prompt]));
        }
        let mut at = 0;
        while at < requests.len() {
            requests[at].0 -= 1;
            if requests[at].0 == 0 {
                requests.swap_remove(at).1.into_iter().for_each(|block| run.give(block));
                continue;
            }
            if requests[at].0.is_multiple_of(16) {
                let more = run.take((1 << 20) + dice.below(1 << 19))?;
                requests[at].1.push(more);
            }
            at += 1;
        }
        run.step_done()?;
    }
    weights.extend(requests.into_iter().flat_map(|(_, blocks)| blocks));
    Ok(weights)
}

/// Steps of forward and backward passes whose shapes vary, with small blocks that stay scattered between the large ones.
fn training<P: DevicePool>(run: &mut Run<'_, P>) -> Result<Held, Failure> {
    let mut dice = Dice(2);
    let mut kept = (0..32).map(|_| run.take(40 << 20)).collect::<Result<Held, _>>()?;
    for step in 0..120u64 {
        let batch = 8 + dice.below(25);
        let mut activations = Held::new();
        for layer in 0..40u64 {
            activations.push(run.take((batch << 18) * (1 + layer % 4) + dice.below(1 << 16))?);
            if (step + layer) % 37 == 0 {
                kept.push(run.take(512 + dice.below(64 << 10))?);
            }
        }
        while let Some(block) = activations.pop() {
            let gradient = run.take(block.len() / 2)?;
            run.give(block);
            run.give(gradient);
        }
        run.step_done()?;
    }
    Ok(kept)
}

/// Lengths from 1 KiB to 128 MiB, evenly by magnitude, freed in an order of chance.
fn random<P: DevicePool>(run: &mut Run<'_, P>) -> Result<Held, Failure> {
    let mut dice = Dice(3);
    let mut held = Held::new();
    for step in 0..8000u64 {
        if held.len() < 150 && dice.below(2) == 0 {
            let magnitude = 10 + dice.below(17);
            held.push(run.take((1 << magnitude) + dice.below(1 << magnitude))?);
        } else if !held.is_empty() {
            let block = held.swap_remove(dice.below(held.len() as u64) as usize);
            run.give(block);
        }
        if step % 4 == 0 {
            run.step_done()?;
        }
    }
    Ok(held)
}

/// What share of `free` bytes one block can have, in percent. The pool may do for it what it does for any request: join
/// holes, remap pieces, give chunks back that are wholly free and take a new one, within its limit.
fn largest<P: DevicePool>(pool: &P, free: u64, stream: Stream) -> u64 {
    let fits = |percent: &u64| {
        let Ok(block) = pool.allocate((free / 100 * percent).max(1), 256, stream) else { return false };
        // SAFETY: no work uses the block.
        unsafe { pool.deallocate(block, stream, &[]) }
        true
    };
    (1..=100).rev().find(fits).unwrap_or(0)
}

/// The goals of a kind of pool: memory held, the longest block, and that after a compaction.
struct Goals {
    held: Goal,
    longest: Goal,
    compacted: Goal,
}

fn report<P: Regions>(
    bench: &Bench,
    [trace, name]: [&str; 2],
    pool: &Arc<P>,
    limit: Option<u64>,
    close: &dyn Fn(Stream),
    goals: Goals,
) -> Result<u64, Failure> {
    let stream = bench.device.stream_create()?;
    let mut run = Run { pool: &**pool, stream, bench, close, live: 0, peak_live: 0 };
    let held = match trace {
        "serving" => serving(&mut run)?,
        "training" => training(&mut run)?,
        _ => random(&mut run)?,
    };
    let (peak_live, stats) = (run.peak_live, pool.stats());
    run.step_done()?;
    let mut shares = String::new();
    if let Some(limit) = limit {
        let free = limit - run.live;
        let as_it_is = largest(&**pool, free, stream);
        let set = MovableSet::new(bench.device.clone(), pool.clone());
        // SAFETY: the blocks came from this pool, and no work uses them.
        let held = held.into_iter().map(|block| unsafe { set.adopt(block, 256, stream) }).collect::<Vec<_>>();
        let moved = set.compact_short(SHORT)?;
        let compacted = largest(&**pool, free, stream);
        bench.found(goals.longest, as_it_is as f64);
        bench.found(goals.compacted, compacted as f64);
        shares = format!(
            "{:>14}{:>10}{:>14}",
            format!("{as_it_is} %"),
            format!("{compacted} %"),
            format!("{} MiB", moved.bytes >> 20)
        );
        drop(held);
    } else {
        held.into_iter().for_each(|block| run.give(block));
    }
    let ratio = stats.peak_reserved as f64 / peak_live as f64;
    bench.found(goals.held, ratio);
    println!(
        "{trace:>12}{name:>14}{:>14}{:>14}{ratio:>10.3}{:>10}{:>10}{shares}",
        format!("{} MiB", peak_live >> 20),
        format!("{} MiB", stats.peak_reserved >> 20),
        stats.grows,
        stats.remaps
    );
    Ok(peak_live)
}

/// The engine of pools over mapped pieces: what it leaves over is shortest.
fn best_fit() -> BestFit {
    BestFit::with_granule(256)
}

/// A trace on chunks, which may hold `limit` bytes.
fn on_chunks(bench: &Bench, names: [&str; 2], limit: Option<u64>) -> Result<u64, Failure> {
    let config = ChunkConfig { limit: limit.unwrap_or(u64::MAX), ..ChunkConfig::default() };
    let pool = Arc::new(VariablePool::on(bench.device.clone(), config, engine));
    // A refusal leaves the epoch open, and the ratio worse.
    let close = |stream| {
        let _ = pool.order().close(stream);
    };
    let goals =
        Goals { held: Goal::HeldChunks, longest: Goal::LongestChunks, compacted: Goal::CompactedChunks };
    report(bench, names, &pool, limit, &close, goals)
}

/// A trace on mapped pieces, which may hold `limit` bytes.
fn on_pieces(bench: &Bench, names: [&str; 2], limit: Option<u64>) -> Result<u64, Failure> {
    let config = VmmConfig { limit: limit.unwrap_or(u64::MAX), ..VmmConfig::default() };
    let pool = Arc::new(VariablePool::mapped_on(bench.device.clone(), config, best_fit)?);
    let close = |stream| {
        let _ = pool.order().close(stream);
    };
    let goals =
        Goals { held: Goal::HeldMapped, longest: Goal::LongestMapped, compacted: Goal::CompactedMapped };
    report(bench, names, &pool, limit, &close, goals)
}

/// Every trace on both kinds of variable pool, without a limit, and then with no more memory than the goal allows, which is
/// where the longest block that can be had afterwards says something.
pub fn run(bench: &Bench) -> Result<(), Failure> {
    println!("traces: memory held against memory asked for");
    println!(
        "largest/free: the longest block to be had at the end, of limit less live; then after a compaction by copying"
    );
    let names = ["peak live", "peak held"].map(|n| format!("{n:>14}")).concat();
    println!(
        "{:>12}{:>14}{names}{:>10}{:>10}{:>10}{:>14}{:>10}{:>14}",
        "trace", "pool", "ratio", "grown", "remapped", "largest/free", "compact", "copied"
    );
    let piece = VmmConfig::default().piece_len;
    let limit = |peak: u64, percent: u64| Some((peak / 100 * percent).next_multiple_of(piece));
    for trace in ["serving", "training", "random"] {
        let peak = on_chunks(bench, [trace, "chunks"], None)?;
        on_chunks(bench, [trace, "chunks 1.15"], limit(peak, 115))?;
        on_pieces(bench, [trace, "vmm"], None)?;
        on_pieces(bench, [trace, "vmm 1.05"], limit(peak, 105))?;
    }
    Ok(())
}
