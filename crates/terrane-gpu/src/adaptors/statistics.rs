//! [`Statistics`]: exact peaks.
//!
//! The pools count what they can count for nothing: under a lock that they hold anyway, or in lists that can be walked. What
//! that cannot give is the exact peak over all streams, which takes one counter that all threads write. Who wants it pays
//! for it here.

use super::pass_on;
use crate::device::Stream;
use crate::error::PoolError;
use crate::pool::{Block, DevicePool, PoolStats};
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts live bytes, their exact peak, and failures.
#[derive(Debug)]
pub struct Statistics<P> {
    inner: P,
    live: AtomicU64,
    peak: AtomicU64,
    requested: AtomicU64,
    blocks: AtomicU64,
    failures: AtomicU64,
}

impl<P: DevicePool> Statistics<P> {
    /// `inner`, counted from now on.
    pub fn new(inner: P) -> Self {
        let zero = || AtomicU64::new(0);
        Self { inner, live: zero(), peak: zero(), requested: zero(), blocks: zero(), failures: zero() }
    }

    /// The pool inside.
    pub fn inner(&self) -> &P {
        &self.inner
    }

    /// Requests that were refused.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Starts a new measurement of the peak.
    pub fn reset_peak(&self) {
        self.peak.store(self.live.load(Ordering::Relaxed), Ordering::Relaxed);
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
        let live = self.live.fetch_add(block.len(), Ordering::Relaxed) + block.len();
        if live > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(live, Ordering::Relaxed);
        }
        self.requested.fetch_add(block.asked(), Ordering::Relaxed);
        self.blocks.fetch_add(1, Ordering::Relaxed);
        Ok(block)
    }

    #[inline]
    unsafe fn deallocate(&self, block: Block, stream: Stream, also_used_on: &[Stream]) {
        self.live.fetch_sub(block.len(), Ordering::Relaxed);
        self.requested.fetch_sub(block.asked(), Ordering::Relaxed);
        self.blocks.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: passed on by the caller.
        unsafe { self.inner.deallocate(block, stream, also_used_on) }
    }

    pass_on!(inner);

    fn stats(&self) -> PoolStats {
        PoolStats {
            live: self.live.load(Ordering::Relaxed),
            peak_live: self.peak.load(Ordering::Relaxed),
            requested: self.requested.load(Ordering::Relaxed),
            live_blocks: self.blocks.load(Ordering::Relaxed),
            ..self.inner.stats()
        }
    }
}
