//! [`Statistics`]: what goes through a pool, and the peak of it, for a few instructions a call.
//!
//! Invariant: what is out is the sum of what the shards say. A shard is written by one thread at a time, its owner. The
//! bytes that a shard has *published* are never fewer than its owner has out, and more by the slack at most; so the sum of
//! all that is published is never below the truth, nor is the peak of that sum.
//!
//! A counter that all threads write would cost each of them a miss and a locked instruction, several times a pair. Here a
//! thread counts in lines that are its own. An allocation publishes only if it takes the thread above what it has published,
//! a free only if that leaves more than the slack published for nothing. A thread that takes and gives back, again and
//! again, publishes nothing after the first time.
//!
//! With no slack every change is published, and the peak is exact.

use super::pass_on;
use crate::device::Stream;
use crate::error::PoolError;
use crate::pool::{Block, DevicePool, PoolStats};
use crate::regions::{Regions, pass_regions_on};
use core::cell::{Cell, RefCell};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// Bytes that a thread may have published for nothing, unless told otherwise.
const SLACK: u64 = 1 << 20;
/// Places of a thread for the shards that it used last, one pool each.
const CACHED: usize = 4;

/// What one thread counted. Bytes and blocks that one thread takes and another gives back make one shard negative.
#[repr(align(128))]
#[derive(Default, Debug)]
struct Shard {
    live: AtomicI64,
    requested: AtomicI64,
    blocks: AtomicI64,
    published: AtomicI64,
    /// Some thread writes here.
    owned: AtomicBool,
}

/// The shards that a thread owns, with the numbers of their pools. They are let go when the thread ends.
struct Owned(Vec<(u64, Arc<Shard>)>);

impl Drop for Owned {
    fn drop(&mut self) {
        RECENT.with(|recent| recent.iter().for_each(|place| place.set(NOWHERE)));
        // Release: the next owner goes on from the figures of this one.
        self.0.iter().for_each(|(_, shard)| shard.owned.store(false, Ordering::Release));
    }
}

const NOWHERE: (u64, *const Shard) = (0, core::ptr::null());

thread_local! {
    /// Pools by number, and the thread's shard of each. Without a destructor, so that it costs one load.
    static RECENT: [Cell<(u64, *const Shard)>; CACHED] = const { [const { Cell::new(NOWHERE) }; CACHED] };
    static OWNED: RefCell<Owned> = const { RefCell::new(Owned(Vec::new())) };
}

/// Counts what is out, its peak, and failures.
///
/// The peak is that of the bytes handed out by all threads together, with rounding. It is never below the truth, and above it
/// by [`peak_error`](Self::peak_error) at most: [`slack`](Self::with_slack) bytes for each thread that counted. As long as
/// one thread is alone and has not called [`reset_peak`](Self::reset_peak), it is exact, whatever the slack; with
/// [`exact`](Self::exact) it always is, for two locked instructions a pair.
#[derive(Debug)]
pub struct Statistics<P> {
    inner: P,
    /// No other pool ever has this number.
    id: u64,
    slack: i64,
    published: AtomicI64,
    peak: AtomicI64,
    failures: AtomicU64,
    shards: Mutex<Vec<Arc<Shard>>>,
}

/// Adds to a counter that only the calling thread writes.
#[inline]
fn add(counter: &AtomicI64, amount: i64) -> i64 {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(amount);
    counter.store(sum, Ordering::Relaxed);
    sum
}

impl<P: DevicePool> Statistics<P> {
    /// `inner`, counted from now on, with a slack of 1 MiB.
    pub fn new(inner: P) -> Self {
        Self::with_slack(inner, SLACK)
    }

    /// `inner`, with its exact peak.
    pub fn exact(inner: P) -> Self {
        Self::with_slack(inner, 0)
    }

    /// `inner`, with a peak that is too high by `slack` bytes at most for each thread.
    pub fn with_slack(inner: P, slack: u64) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            inner,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            slack: i64::try_from(slack).unwrap_or(i64::MAX / 2).min(i64::MAX / 2),
            published: AtomicI64::new(0),
            peak: AtomicI64::new(0),
            failures: AtomicU64::new(0),
            shards: Mutex::default(),
        }
    }

    /// The pool inside.
    pub fn inner(&self) -> &P {
        &self.inner
    }

    /// Requests that were refused.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Bytes by which the peak may be too high.
    pub fn peak_error(&self) -> u64 {
        self.shards.lock().len() as u64 * self.slack as u64
    }

    /// Starts a new measurement of the peak.
    pub fn reset_peak(&self) {
        self.peak.store(self.published.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The thread's shard, and a calling convention for threads that have none: they are ending.
    #[inline]
    fn with_shard(&self, f: impl FnOnce(&Shard)) {
        let (id, shard) = RECENT.with(|recent| recent[self.id as usize % CACHED].get());
        if id == self.id {
            // SAFETY: the shard belongs to this pool, whose number nobody else has, and the pool keeps all its shards.
            return f(unsafe { &*shard });
        }
        self.find_shard(f);
    }

    #[cold]
    #[inline(never)]
    fn find_shard(&self, f: impl FnOnce(&Shard)) {
        let found = OWNED.try_with(|owned| {
            let owned = &mut owned.borrow_mut().0;
            if let Some((_, shard)) = owned.iter().find(|(id, _)| *id == self.id) {
                return shard.clone();
            }
            // Shards of pools that are gone.
            owned.retain(|(_, shard)| Arc::strong_count(shard) > 1);
            let shard = self.claim();
            owned.push((self.id, shard.clone()));
            shard
        });
        match found {
            Ok(shard) => {
                RECENT.with(|recent| recent[self.id as usize % CACHED].set((self.id, Arc::as_ptr(&shard))));
                f(&shard);
            }
            Err(_) => {
                // The thread is ending and has let its shards go: it takes one for this call alone.
                let shard = self.claim();
                f(&shard);
                shard.owned.store(false, Ordering::Release);
            }
        }
    }

    /// A shard that nobody writes: one that an ended thread left, or a new one.
    fn claim(&self) -> Arc<Shard> {
        let mut shards = self.shards.lock();
        let free = |shard: &&Arc<Shard>| !shard.owned.swap(true, Ordering::Acquire);
        if let Some(shard) = shards.iter().find(free) {
            return shard.clone();
        }
        let shard = Arc::new(Shard { owned: AtomicBool::new(true), ..Shard::default() });
        shards.push(shard.clone());
        shard
    }

    /// The owner has `live` bytes out, more than it has published: this may be a peak.
    #[cold]
    #[inline(never)]
    fn raise(&self, shard: &Shard, live: i64, published: i64) {
        shard.published.store(live, Ordering::Relaxed);
        let sum = self.published.fetch_add(live - published, Ordering::Relaxed) + (live - published);
        if sum > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(sum, Ordering::Relaxed);
        }
    }

    /// The owner has published more than it may for nothing. Half of the slack stays for what comes next.
    #[cold]
    #[inline(never)]
    fn lower(&self, shard: &Shard, live: i64, published: i64) {
        let kept = live + self.slack / 2;
        shard.published.store(kept, Ordering::Relaxed);
        self.published.fetch_sub(published - kept, Ordering::Relaxed);
    }

    fn sum(&self, counter: impl Fn(&Shard) -> &AtomicI64) -> u64 {
        let shards = self.shards.lock();
        let sum: i64 = shards.iter().map(|shard| counter(shard).load(Ordering::Relaxed)).sum();
        // Read while others count, a free may be seen before its allocation.
        u64::try_from(sum).unwrap_or(0)
    }
}

// SAFETY: blocks come from a pool that keeps the contract, and are passed on as they are.
unsafe impl<P: DevicePool> DevicePool for Statistics<P> {
    #[inline]
    #[track_caller]
    fn allocate(&self, len: u64, align: u64, stream: Stream) -> Result<Block, PoolError> {
        let block = self.inner.allocate(len, align, stream).inspect_err(|_| {
            self.failures.fetch_add(1, Ordering::Relaxed);
        })?;
        self.with_shard(|shard| {
            add(&shard.requested, block.asked() as i64);
            add(&shard.blocks, 1);
            let live = add(&shard.live, block.len() as i64);
            let published = shard.published.load(Ordering::Relaxed);
            if live > published {
                self.raise(shard, live, published);
            }
        });
        Ok(block)
    }

    #[inline]
    unsafe fn deallocate(&self, block: Block, stream: Stream, also_used_on: &[Stream]) {
        self.with_shard(|shard| {
            add(&shard.requested, -(block.asked() as i64));
            add(&shard.blocks, -1);
            let live = add(&shard.live, -(block.len() as i64));
            let published = shard.published.load(Ordering::Relaxed);
            if published - live > self.slack {
                self.lower(shard, live, published);
            }
        });
        // SAFETY: passed on by the caller.
        unsafe { self.inner.deallocate(block, stream, also_used_on) }
    }

    pass_on!(inner);

    fn stats(&self) -> PoolStats {
        PoolStats {
            live: self.sum(|shard| &shard.live),
            peak_live: u64::try_from(self.peak.load(Ordering::Relaxed)).unwrap_or(0),
            requested: self.sum(|shard| &shard.requested),
            live_blocks: self.sum(|shard| &shard.blocks),
            ..self.inner.stats()
        }
    }
}

impl<P: Regions> Regions for Statistics<P> {
    pass_regions_on!(self => self.inner);
}
