//! Patterns of many blocks in which threads do not meet: each thread runs the pattern by itself.
//!
//! Invariant: sizes and order come from the thread's generator, seeded by its index, so that all allocators serve the
//! same requests.

use std::collections::VecDeque;

use crate::block::{Block, CORRUPT};
use crate::gang::{Measured, Plan, gang};
use crate::probe::Probe;
use crate::rng::Rng;

/// A stack of 1000 blocks, filled and emptied.
pub fn lifo<P: Probe>(plan: Plan) -> Measured {
    const DEPTH: usize = 1000;
    let rounds = plan.share(10_000);
    gang::<P>(plan, |index, probe, gate| {
        let mut rng = Rng::new(index as u64);
        let mut stack = Vec::with_capacity(DEPTH);
        gate.start();
        for _ in 0..rounds {
            while stack.len() < DEPTH {
                let size = rng.within(8, 1024);
                stack.push(Block::new(probe, size, size as u32));
            }
            while let Some(block) = stack.pop() {
                block.free(probe);
            }
        }
        gate.end((rounds * DEPTH) as u64);
    })
}

/// A queue of 1000 blocks.
pub fn fifo<P: Probe>(plan: Plan) -> Measured {
    const LENGTH: usize = 1000;
    let count = plan.share(8_000_000);
    gang::<P>(plan, |index, probe, gate| {
        let mut rng = Rng::new(index as u64);
        let mut queue = VecDeque::with_capacity(LENGTH + 1);
        while queue.len() < LENGTH {
            queue.push_back(Block::new(probe, rng.within(8, 1024), 1));
        }
        gate.start();
        for i in 0..count {
            if let Some(oldest) = queue.pop_front() {
                oldest.free(probe);
            }
            queue.push_back(Block::new(probe, rng.within(8, 1024), i as u32));
        }
        gate.end(count as u64);
        queue.drain(..).for_each(|block| block.free(probe));
    })
}

/// Replaces a random one of `live` blocks (over all threads), `full` times.
pub fn random_live<P: Probe>(plan: Plan, live: usize, full: usize) -> Measured {
    let live = plan.share(live).max(16);
    let count = plan.share(full);
    gang::<P>(plan, |index, probe, gate| {
        let mut rng = Rng::new(index as u64);
        let mut blocks: Vec<Block> =
            (0..live).map(|i| Block::new(probe, rng.skewed(16, 512), i as u32)).collect();
        gate.start();
        for i in 0..count {
            let at = rng.below(live);
            let fresh = Block::new(probe, rng.skewed(16, 512), i as u32);
            std::mem::replace(&mut blocks[at], fresh).free(probe);
        }
        gate.end(count as u64);
        blocks.drain(..).for_each(|block| block.free(probe));
    })
}

/// A size of the mixed workload: mostly small, now and then large.
fn mixed_size(rng: &mut Rng) -> usize {
    match rng.below(100) {
        0..80 => rng.within(8, 256),
        80..95 => rng.log_uniform(256, 8 << 10),
        95..99 => rng.log_uniform(8 << 10, 128 << 10),
        _ => rng.log_uniform(128 << 10, 1 << 20),
    }
}

/// Replaces a random one of 1000 blocks of very different sizes.
pub fn mixed<P: Probe>(plan: Plan) -> Measured {
    const LIVE: usize = 1000;
    let count = plan.share(1_500_000);
    gang::<P>(plan, |index, probe, gate| {
        let mut rng = Rng::new(index as u64);
        let mut blocks: Vec<Block> =
            (0..LIVE).map(|i| Block::new(probe, mixed_size(&mut rng), i as u32)).collect();
        gate.start();
        for i in 0..count {
            let at = rng.below(LIVE);
            let fresh = Block::new(probe, mixed_size(&mut rng), i as u32);
            std::mem::replace(&mut blocks[at], fresh).free(probe);
        }
        gate.end(count as u64);
        blocks.drain(..).for_each(|block| block.free(probe));
    })
}

/// Zeroed blocks, checked, dirtied, freed in the order of allocation with 16 live.
pub fn calloc<P: Probe>(plan: Plan) -> Measured {
    let count = plan.share(120_000);
    gang::<P>(plan, |index, probe, gate| {
        let mut rng = Rng::new(index as u64);
        let mut live: VecDeque<Vec<u8>> = VecDeque::with_capacity(17);
        gate.start();
        for i in 0..count {
            let len = if rng.below(4) == 0 { rng.log_uniform(1024, 256 << 10) } else { rng.within(64, 1024) };
            let mut block = probe.alloc(|| vec![0u8; len]);
            // Small blocks are checked whole; of large ones every 64-byte line is.
            let step = if len <= 1024 { 1 } else { 64 };
            if block.iter().step_by(step).any(|byte| *byte != 0) || block[len - 1] != 0 {
                eprintln!("a zeroed block of {len} bytes was not zero");
                std::process::exit(CORRUPT);
            }
            block.iter_mut().step_by(step).for_each(|byte| *byte = i as u8 | 1);
            live.push_back(block);
            if live.len() > 16 {
                let oldest = live.pop_front();
                probe.free(|| drop(oldest));
            }
        }
        gate.end(count as u64);
    })
}

/// Eight blocks of 64 KiB to 32 MiB, replaced at random, every page written.
pub fn large<P: Probe>(plan: Plan) -> Measured {
    let count = plan.share(300);
    gang::<P>(plan, |index, probe, gate| {
        let mut rng = Rng::new(index as u64);
        let mut slots: [Option<Block>; 8] = [const { None }; 8];
        gate.start();
        for i in 0..count {
            let slot = &mut slots[rng.below(8)];
            if let Some(old) = slot.take() {
                old.check_pages();
                old.free(probe);
            }
            let block = Block::new(probe, rng.log_uniform(64 << 10, 32 << 20), i as u32);
            block.touch_pages();
            *slot = Some(block);
        }
        slots.into_iter().flatten().for_each(|block| block.free(probe));
        gate.end(count as u64);
    })
}

/// Batches of small blocks freed in order, in reverse, and interleaved.
pub fn shbench<P: Probe>(plan: Plan) -> Measured {
    const BATCH: usize = 300;
    fn size(rng: &mut Rng) -> usize {
        match rng.below(20) {
            0..10 => rng.within(1, 32),
            10..16 => rng.within(33, 100),
            16..19 => rng.within(101, 300),
            _ => rng.within(301, 1000),
        }
    }
    let rounds = plan.share(16_000);
    gang::<P>(plan, |index, probe, gate| {
        let mut rng = Rng::new(index as u64);
        let mut batch: VecDeque<Block> = VecDeque::with_capacity(BATCH + 1);
        let mut ops = 0;
        gate.start();
        for round in 0..rounds {
            let mut fill = |batch: &mut VecDeque<Block>, probe: &mut P, rng: &mut Rng| {
                let missing = BATCH - batch.len();
                batch.extend((0..missing).map(|i| Block::new(probe, size(rng), (round + i) as u32)));
                ops += missing as u64;
            };
            fill(&mut batch, probe, &mut rng);
            // A third in the order of allocation, then again full.
            batch.drain(..BATCH / 3).for_each(|block| block.free(probe));
            fill(&mut batch, probe, &mut rng);
            // A third in reverse, then again full.
            batch.drain(2 * BATCH / 3..).rev().for_each(|block| block.free(probe));
            fill(&mut batch, probe, &mut rng);
            // The rest, every second free followed by an allocation that is freed at once.
            let mut between = false;
            while let Some(block) = batch.pop_front() {
                block.free(probe);
                between = !between;
                if between {
                    Block::new(probe, size(&mut rng), round as u32).free(probe);
                    ops += 1;
                }
            }
        }
        gate.end(ops);
    })
}

/// Random visits to a table of slots: an empty slot is filled, a full one emptied; sizes follow a power law.
pub fn alloc_test<P: Probe>(plan: Plan) -> Measured {
    let slots = plan.share(1 << 14).max(64);
    let count = plan.share(12_000_000);
    gang::<P>(plan, |index, probe, gate| {
        let mut rng = Rng::new(index as u64);
        let mut table: Vec<Option<Block>> = (0..slots).map(|_| None).collect();
        let mut allocated = 0;
        gate.start();
        for i in 0..count {
            match &mut table[rng.below(slots)] {
                full @ Some(_) => {
                    if let Some(block) = full.take() {
                        block.free(probe);
                    }
                }
                empty => {
                    // Each doubling of the size is half as likely as the one before, up to 4 KiB.
                    let base = 8usize << (rng.next() | 0x100).trailing_zeros();
                    *empty = Some(Block::new(probe, rng.within(base, 2 * base - 1), i as u32));
                    allocated += 1;
                }
            }
        }
        table.iter_mut().filter_map(Option::take).for_each(|block| block.free(probe));
        gate.end(allocated);
    })
}
