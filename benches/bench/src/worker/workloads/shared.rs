//! Patterns in which threads meet: blocks freed by threads other than their allocators, threads that come and go, and
//! cache lines that should not be shared.
//!
//! Invariant: a block has one owner at any time; it changes hands only through a queue, a table or a join.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::block::Block;
use crate::gang::{Gate, Measured, Plan, gang};
use crate::probe::Probe;
use crate::rng::Rng;

/// A bounded queue of batches. `None` on the way out means that it was closed and is empty.
struct Queue {
    state: Mutex<(VecDeque<Vec<Block>>, bool)>,
    changed: Condvar,
    capacity: usize,
}

impl Queue {
    fn new(capacity: usize) -> Self {
        let state = Mutex::new((VecDeque::with_capacity(capacity), false));
        Self { state, changed: Condvar::new(), capacity }
    }

    fn push(&self, batch: Vec<Block>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.0.len() == self.capacity {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.0.push_back(batch);
        drop(state);
        self.changed.notify_one();
    }

    fn pop(&self) -> Option<Vec<Block>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(batch) = state.0.pop_front() {
                drop(state);
                self.changed.notify_one();
                return Some(batch);
            }
            if state.1 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.changed.notify_all();
    }
}

/// A ring of threads that free each other's batches.
pub fn remote_free<P: Probe>(plan: Plan) -> Measured {
    const BATCH: usize = 256;
    let rounds = plan.share(20_000);
    // One producer and one consumer per queue. A ring whose members push before they pop cannot fill four places
    // everywhere: the member that is furthest behind always finds room.
    let ring: Vec<Queue> = (0..plan.threads).map(|_| Queue::new(4)).collect();
    gang::<P>(plan, |index, probe, gate| {
        let mut rng = Rng::new(index as u64);
        let (mine, neighbours) = (&ring[index], &ring[(index + 1) % ring.len()]);
        gate.start();
        for round in 0..rounds {
            let batch = (0..BATCH).map(|_| Block::new(probe, rng.within(16, 256), round as u32)).collect();
            neighbours.push(batch);
            if let Some(batch) = mine.pop() {
                batch.into_iter().for_each(|block| block.free(probe));
            }
        }
        gate.end((rounds * BATCH) as u64);
    })
}

/// Producers allocate, consumers free, through one queue.
pub fn xmalloc<P: Probe>(plan: Plan) -> Measured {
    const BATCH: usize = 128;
    let rounds = (plan.count(36_000) / (plan.threads / 2)).max(1);
    let queue = Queue::new(64);
    let producers = Mutex::new(plan.threads / 2);
    gang::<P>(plan, |index, probe, gate| {
        let mut rng = Rng::new(index as u64);
        gate.start();
        if index % 2 == 0 {
            for round in 0..rounds {
                queue.push(
                    (0..BATCH).map(|_| Block::new(probe, rng.skewed(16, 1024), round as u32)).collect(),
                );
            }
            let mut left = producers.lock().unwrap_or_else(PoisonError::into_inner);
            *left -= 1;
            if *left == 0 {
                queue.close();
            }
            drop(left);
            gate.end((rounds * BATCH) as u64);
        } else {
            while let Some(batch) = queue.pop() {
                batch.into_iter().for_each(|block| block.free(probe));
            }
            gate.end(0);
        }
    })
}

/// One generation of a Larson lane: replaces random blocks, then hands them to a thread of the next generation.
#[allow(clippy::too_many_arguments, reason = "a thread's whole inheritance, passed on from thread to thread")]
fn larson_lane<'scope, P: Probe>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    gate: &'scope Gate,
    mut blocks: Vec<Block>,
    mut probe: P,
    mut rng: Rng,
    steps: usize,
    generation: usize,
    generations: usize,
) {
    for i in 0..steps {
        let at = rng.below(blocks.len());
        let fresh = Block::new(&mut probe, rng.within(8, 1000), i as u32);
        std::mem::replace(&mut blocks[at], fresh).free(&mut probe);
    }
    if generation + 1 < generations {
        scope.spawn(move || {
            larson_lane(scope, gate, blocks, probe, rng, steps, generation + 1, generations);
        });
    } else {
        gate.end((steps * generations) as u64);
        blocks.drain(..).for_each(|block| block.free(&mut probe));
        gate.collect(probe);
    }
}

/// Larson and Krishnan's server.
pub fn larson<P: Probe>(plan: Plan) -> Measured {
    const BLOCKS: usize = 1000;
    const GENERATIONS: usize = 20;
    let steps = plan.share(300_000);
    let gate = Gate::new(plan.threads);
    std::thread::scope(|scope| {
        for lane in 0..plan.threads {
            let gate = &gate;
            scope.spawn(move || {
                let (mut rng, mut probe) = (Rng::new(lane as u64), P::fresh());
                let blocks =
                    (0..BLOCKS).map(|i| Block::new(&mut probe, rng.within(8, 1000), i as u32)).collect();
                gate.start();
                larson_lane(scope, gate, blocks, probe, rng, steps, 0, GENERATIONS);
            });
        }
    });
    gate.finish()
}

/// Writes every byte of a small block `times` times; the writes are real because the block is opaque.
fn scribble(block: &mut [u8; 8], times: usize) {
    for i in 0..times {
        let place = &raw mut block[i % 8];
        // SAFETY: `place` points into the array that is borrowed for this call.
        unsafe { place.write_volatile(place.read_volatile().wrapping_add(1)) };
    }
}

fn scribbled(block: &[u8; 8], start: u8, times: usize) -> bool {
    block.iter().all(|byte| *byte == start.wrapping_add((times / 8) as u8))
}

/// Allocates, writes and frees `count` eight-byte blocks, starting from `first` when there is one.
fn thrash<P: Probe>(first: Option<Box<[u8; 8]>>, count: usize, probe: &mut P) {
    const WRITES: usize = 1000;
    if let Some(mut first) = first {
        let start = first[0];
        scribble(&mut first, WRITES);
        assert!(scribbled(&first, start, WRITES), "another thread wrote into this thread's block");
        drop(first);
    }
    for i in 0..count {
        let mut block = probe.alloc(|| Box::new([i as u8; 8]));
        scribble(&mut block, WRITES);
        assert!(scribbled(&block, i as u8, WRITES), "another thread wrote into this thread's block");
        probe.free(|| drop(block));
    }
}

/// Passive false sharing: every thread starts with a block from the main thread.
pub fn cache_scratch<P: Probe>(plan: Plan) -> Measured {
    let count = plan.share(200_000);
    let first: Vec<Mutex<Option<Box<[u8; 8]>>>> =
        (0..plan.threads).map(|_| Mutex::new(Some(Box::new([0; 8])))).collect();
    gang::<P>(plan, |index, probe, gate| {
        let first = first[index].lock().unwrap_or_else(PoisonError::into_inner).take();
        gate.start();
        thrash(first, count, probe);
        gate.end(count as u64);
    })
}

/// Active false sharing: every thread uses its own blocks only.
pub fn cache_thrash<P: Probe>(plan: Plan) -> Measured {
    let count = plan.share(200_000);
    gang::<P>(plan, |_, probe, gate| {
        gate.start();
        thrash(None, count, probe);
        gate.end(count as u64);
    })
}

/// Objects of skewed sizes that migrate through a shared table, in rounds of fresh threads.
pub fn mstress<P: Probe>(plan: Plan) -> Measured {
    const TABLE: usize = 1000;
    const ROUNDS: usize = 10;
    const LIVE: usize = 2000;
    fn size(rng: &mut Rng) -> usize {
        let base = rng.skewed(16, 512);
        match rng.below(1000) {
            0 => base * 256,
            1..10 => base * 16,
            _ => base,
        }
    }
    let steps = plan.share(400_000);
    let table: Vec<AtomicPtr<u8>> = (0..TABLE).map(|_| AtomicPtr::new(std::ptr::null_mut())).collect();
    let exchange = |at: usize, block: Option<Block>| {
        let raw = block.map_or(std::ptr::null_mut(), Block::into_raw);
        // AcqRel: what the giver wrote into the block is there for the taker.
        let taken = table[at].swap(raw, Ordering::AcqRel);
        // SAFETY: every pointer in the table came from `into_raw`, and the exchange takes it out once.
        unsafe { Block::from_raw(taken) }
    };
    let mut total = Measured { ops: 0, elapsed_ns: 0, samples: None, idle: None };
    for round in 0..ROUNDS {
        // Even a gang of one gets a thread of its own here: that threads restart is part of the pattern.
        let gate = Gate::new(plan.threads);
        std::thread::scope(|scope| {
            for index in 0..plan.threads {
                let (gate, exchange) = (&gate, &exchange);
                scope.spawn(move || {
                    let (mut rng, mut probe) = (Rng::new((round * 64 + index) as u64), P::fresh());
                    let (mut live, mut kept) = (Vec::with_capacity(LIVE), Vec::new());
                    gate.start();
                    for i in 0..steps {
                        let draw = rng.below(100);
                        if draw < 10 {
                            let given: Option<Block> = live.pop();
                            live.extend(exchange(rng.below(TABLE), given));
                        } else if draw < 55 && live.len() < LIVE {
                            let block = Block::new(&mut probe, size(&mut rng), i as u32);
                            if rng.below(20) == 0 { kept.push(block) } else { live.push(block) }
                        } else if !live.is_empty() {
                            live.swap_remove(rng.below(live.len())).free(&mut probe);
                        }
                    }
                    live.into_iter().chain(kept).for_each(|block| block.free(&mut probe));
                    // Steps, not allocations: which of them find a block to free depends on the other threads.
                    gate.end(steps as u64);
                    gate.collect(probe);
                });
            }
        });
        let measured = gate.finish();
        total.ops += measured.ops;
        total.elapsed_ns += measured.elapsed_ns;
        match (total.samples.as_mut(), measured.samples) {
            (Some(all), Some(more)) => {
                all.alloc.merge(&more.alloc);
                all.free.merge(&more.free);
            }
            (None, more) => total.samples = more,
            (Some(_), None) => {}
        }
    }
    let mut probe = P::fresh();
    (0..TABLE).filter_map(|at| exchange(at, None)).for_each(|block| block.free(&mut probe));
    total
}

/// Threads that live for 200 blocks and leave half of them behind.
pub fn thread_churn<P: Probe>(plan: Plan) -> Measured {
    let lives = plan.share(4_000);
    gang::<P>(plan, |index, probe, gate| {
        gate.start();
        for life in 0..lives {
            let child = std::thread::spawn(move || {
                let mut probe = P::fresh();
                let mut rng = Rng::new((index << 32 | life) as u64);
                let mut blocks: Vec<Block> =
                    (0..200).map(|i| Block::new(&mut probe, rng.skewed(16, 1024), i)).collect();
                blocks.drain(100..).for_each(|block| block.free(&mut probe));
                blocks
            });
            match child.join() {
                Ok(blocks) => blocks.into_iter().for_each(|block| block.free(probe)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        gate.end(lives as u64);
    })
}
