//! [`Limit`]: no more than so many bytes handed out at once.

use super::pass_on;
use crate::device::Stream;
use crate::error::{PoolError, Shortage};
use crate::pool::{Block, DevicePool, PoolStats};
use crate::regions::{Regions, pass_regions_on};
use std::sync::atomic::{AtomicU64, Ordering};

/// Refuses what would bring the bytes handed out (with rounding) above a limit.
#[derive(Debug)]
pub struct Limit<P> {
    inner: P,
    limit: u64,
    used: AtomicU64,
}

impl<P: DevicePool> Limit<P> {
    /// `inner`, with at most `limit` bytes handed out at once.
    pub fn new(inner: P, limit: u64) -> Self {
        Self { inner, limit, used: AtomicU64::new(0) }
    }

    /// The pool inside.
    pub fn inner(&self) -> &P {
        &self.inner
    }

    fn refused(&self, requested: u64, used: u64) -> PoolError {
        let left = self.limit.saturating_sub(used);
        let error = PoolError { shortage: Shortage::Limit, ..PoolError::bad_request(requested) };
        error.with_room(left, left).with_limit(Some(self.limit))
    }
}

// SAFETY: blocks come from a pool that keeps the contract, and are passed on as they are.
unsafe impl<P: DevicePool> DevicePool for Limit<P> {
    #[track_caller]
    fn allocate(&self, len: u64, align: u64, stream: Stream) -> Result<Block, PoolError> {
        // The length is taken from the budget first, and what rounding adds afterwards.
        let before = self.used.fetch_add(len, Ordering::Relaxed);
        if before.checked_add(len).is_none_or(|total| total > self.limit) {
            self.used.fetch_sub(len, Ordering::Relaxed);
            return Err(self.refused(len, before));
        }
        match self.inner.allocate(len, align, stream) {
            Ok(block) => {
                self.used.fetch_add(block.len() - len, Ordering::Relaxed);
                Ok(block)
            }
            Err(error) => {
                self.used.fetch_sub(len, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    unsafe fn deallocate(&self, block: Block, stream: Stream, also_used_on: &[Stream]) {
        self.used.fetch_sub(block.len(), Ordering::Relaxed);
        // SAFETY: passed on by the caller.
        unsafe { self.inner.deallocate(block, stream, also_used_on) }
    }

    pass_on!(inner);

    fn stats(&self) -> PoolStats {
        self.inner.stats()
    }
}

impl<P: Regions> Regions for Limit<P> {
    pass_regions_on!(self => self.inner);
}
