//! [`OnOutOfMemory`]: a last word before an allocation fails.

use super::pass_on;
use crate::device::Stream;
use crate::error::{PoolError, Shortage};
use crate::pool::{Block, DevicePool, PoolStats};
use crate::regions::{Regions, pass_regions_on};

/// Calls a function when memory is short. The function may free something elsewhere and ask for another attempt.
pub struct OnOutOfMemory<P, F> {
    inner: P,
    callback: F,
}

impl<P: core::fmt::Debug, F> core::fmt::Debug for OnOutOfMemory<P, F> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("OnOutOfMemory").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<P: DevicePool, F: Fn(&PoolError, u32) -> bool + Send + Sync> OnOutOfMemory<P, F> {
    /// `inner`, with `callback` called with the error and the number of the attempt (from 1) whenever `inner` is short of
    /// memory. `true` asks for another attempt. It is called without any lock of the pool.
    pub fn new(inner: P, callback: F) -> Self {
        Self { inner, callback }
    }

    /// The pool inside.
    pub fn inner(&self) -> &P {
        &self.inner
    }
}

// SAFETY: blocks come from a pool that keeps the contract, and are passed on as they are.
unsafe impl<P: DevicePool, F: Fn(&PoolError, u32) -> bool + Send + Sync> DevicePool for OnOutOfMemory<P, F> {
    #[track_caller]
    fn allocate(&self, len: u64, align: u64, stream: Stream) -> Result<Block, PoolError> {
        let mut attempt = 1;
        loop {
            let error = match self.inner.allocate(len, align, stream) {
                Ok(block) => return Ok(block),
                Err(error) => error,
            };
            let short =
                matches!(error.shortage, Shortage::Exhaustion | Shortage::Fragmentation | Shortage::Limit);
            if !short || !(self.callback)(&error, attempt) {
                return Err(error);
            }
            attempt += 1;
        }
    }

    unsafe fn deallocate(&self, block: Block, stream: Stream, also_used_on: &[Stream]) {
        // SAFETY: passed on by the caller.
        unsafe { self.inner.deallocate(block, stream, also_used_on) }
    }

    pass_on!(inner);

    fn stats(&self) -> PoolStats {
        self.inner.stats()
    }
}

impl<P: Regions, F: Fn(&PoolError, u32) -> bool + Send + Sync> Regions for OnOutOfMemory<P, F> {
    pass_regions_on!(self => self.inner);
}
