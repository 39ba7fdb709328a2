//! [`Trace`]: what lay where, and when.
//!
//! Invariant: of the blocks that were given back the last so many are kept, and of those that are out, all: history is
//! bounded, and the picture of the present is complete.

use super::pass_on;
use crate::device::Stream;
use crate::error::PoolError;
use crate::pool::{Block, DevicePool, PoolStats};
use crate::regions::{Regions, pass_regions_on};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// One block's time outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize))]
pub struct Lifetime {
    /// Its address.
    pub address: u64,
    /// Its bytes.
    pub len: u64,
    /// Bytes asked for.
    pub asked: u64,
    /// [`Stream::key`] of the stream that it was handed out for.
    pub stream: u32,
    /// Nanoseconds from the start of the trace until it was handed out.
    pub born_nanos: u64,
    /// Until it was given back; `None` if it is out.
    pub died_nanos: Option<u64>,
}

#[derive(Debug)]
struct History {
    live: HashMap<u64, Lifetime>,
    past: VecDeque<Lifetime>,
    dropped: u64,
    failures: VecDeque<(u64, PoolError)>,
}

/// Keeps a bounded history of blocks.
#[derive(Debug)]
pub struct Trace<P> {
    inner: P,
    start: Instant,
    capacity: usize,
    history: Mutex<History>,
}

/// Refusals kept.
const FAILURES: usize = 64;

impl<P: DevicePool> Trace<P> {
    /// `inner`, with the last `capacity` blocks that were given back kept in mind.
    pub fn new(inner: P, capacity: usize) -> Self {
        let history = History {
            live: HashMap::new(),
            past: VecDeque::with_capacity(capacity.min(1 << 16)),
            dropped: 0,
            failures: VecDeque::new(),
        };
        Self { inner, start: Instant::now(), capacity, history: Mutex::new(history) }
    }

    /// The pool inside.
    pub fn inner(&self) -> &P {
        &self.inner
    }

    /// Nanoseconds since the start of the trace.
    pub fn now_nanos(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// The blocks that were given back, as far as they are kept, and those that are out, by time of birth.
    pub fn lifetimes(&self) -> Vec<Lifetime> {
        let history = self.history.lock();
        let mut all: Vec<Lifetime> = history.past.iter().chain(history.live.values()).copied().collect();
        all.sort_unstable_by_key(|life| (life.born_nanos, life.address));
        all
    }

    /// How many blocks that were given back are no longer kept.
    pub fn dropped(&self) -> u64 {
        self.history.lock().dropped
    }

    /// The last refusals, with their times in nanoseconds.
    pub fn failures(&self) -> Vec<(u64, PoolError)> {
        self.history.lock().failures.iter().copied().collect()
    }
}

// SAFETY: blocks come from a pool that keeps the contract, and are passed on as they are.
unsafe impl<P: DevicePool> DevicePool for Trace<P> {
    #[track_caller]
    fn allocate(&self, len: u64, align: u64, stream: Stream) -> Result<Block, PoolError> {
        let result = self.inner.allocate(len, align, stream);
        let born_nanos = self.now_nanos();
        let mut history = self.history.lock();
        match &result {
            Ok(block) => {
                let (address, len, asked) = (block.address(), block.len(), block.asked());
                let stream = stream.key();
                let life = Lifetime { address, len, asked, stream, born_nanos, died_nanos: None };
                history.live.insert(address, life);
            }
            Err(error) => {
                if history.failures.len() == FAILURES {
                    history.failures.pop_front();
                }
                history.failures.push_back((born_nanos, *error));
            }
        }
        result
    }

    unsafe fn deallocate(&self, block: Block, stream: Stream, also_used_on: &[Stream]) {
        let now = self.now_nanos();
        {
            let mut history = self.history.lock();
            if let Some(mut life) = history.live.remove(&block.address()) {
                life.died_nanos = Some(now);
                if history.past.len() >= self.capacity {
                    history.past.pop_front();
                    history.dropped += 1;
                }
                if self.capacity > 0 {
                    history.past.push_back(life);
                }
            }
        }
        // SAFETY: passed on by the caller.
        unsafe { self.inner.deallocate(block, stream, also_used_on) }
    }

    pass_on!(inner);

    fn stats(&self) -> PoolStats {
        self.inner.stats()
    }
}

impl<P: Regions> Regions for Trace<P> {
    pass_regions_on!(self => self.inner);
}
