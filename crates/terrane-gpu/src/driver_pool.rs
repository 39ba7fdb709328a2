//! [`DriverPool`]: the driver's own stream-ordered allocator behind the trait of all pools.
//!
//! Invariant: a block is given back in the order of one stream which by then waits for every other stream that used it.

use crate::device::{Device, OrderedMemory, OrderedUsage, Stream};
use crate::error::{DriverError, PoolError};
use crate::pool::{Block, DevicePool, PoolStats};
use crate::stream_order::StreamOrder;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A pool that passes every request on to the driver (`cuMemAllocAsync`): for comparison, and where memory is to be shared
/// with libraries that use the driver's pool. What is [reserved](PoolStats::reserved) is so for all of them together.
#[derive(Debug)]
pub struct DriverPool<D: Device + ?Sized> {
    order: StreamOrder<D>,
    live: AtomicU64,
    peak_live: AtomicU64,
    blocks: AtomicU64,
    watch: bool,
}

impl<D: Device + ?Sized> DriverPool<D> {
    /// The driver's pool of `device`, which keeps up to `keep` bytes of unused memory.
    ///
    /// # Errors
    /// [`DriverError::NOT_SUPPORTED`] if the device has none, otherwise the driver's refusal.
    pub fn new(device: Arc<D>, keep: u64) -> Result<Self, PoolError> {
        let missing = DriverError { call: "cuMemAllocAsync", code: DriverError::NOT_SUPPORTED };
        let driver = device.ordered_memory().ok_or(PoolError::driver(0, missing))?;
        driver.keep_unused(keep).map_err(|error| PoolError::driver(0, error))?;
        let watch = device.watches_blocks();
        let zero = || AtomicU64::new(0);
        Ok(Self { order: StreamOrder::new(device), live: zero(), peak_live: zero(), blocks: zero(), watch })
    }

    fn driver(&self) -> &dyn OrderedMemory {
        match self.order.device().ordered_memory() {
            Some(driver) => driver,
            None => unreachable!("asked when the pool was made"),
        }
    }
}

// SAFETY: the driver keeps live blocks apart and orders reuse itself; what other streams did is ordered before the free.
unsafe impl<D: Device + ?Sized> DevicePool for DriverPool<D> {
    fn allocate(&self, len: u64, align: u64, stream: Stream) -> Result<Block, PoolError> {
        if len == 0 || !align.is_power_of_two() || align > 256 {
            return Err(PoolError::bad_request(len));
        }
        let address =
            self.driver().alloc_ordered(len, stream).map_err(|error| PoolError::driver(len, error))?;
        if self.watch {
            self.order.device().note_taken(address, len, stream);
        }
        let live = self.live.fetch_add(len, Ordering::Relaxed) + len;
        self.peak_live.fetch_max(live, Ordering::Relaxed);
        self.blocks.fetch_add(1, Ordering::Relaxed);
        Ok(Block { address, len, asked: len, key: 0 })
    }

    unsafe fn deallocate(&self, block: Block, stream: Stream, also_used_on: &[Stream]) {
        self.live.fetch_sub(block.len, Ordering::Relaxed);
        self.blocks.fetch_sub(1, Ordering::Relaxed);
        let others = also_used_on.iter().map(|&other| self.order.stamp(other));
        if self.order.order_after(stream, others).is_err() {
            // The stream could not be made to wait, so the block cannot be given back in its order: it is leaked.
            return;
        }
        // SAFETY: the block came from the driver's pool; the caller says that later work does not use it. A refusal leaks
        // it: there is nobody to tell.
        let _ = unsafe { self.driver().free_ordered(block.address, stream) };
    }

    fn retire_stream(&self, stream: Stream) {
        // A refusal leaves the epoch open; only blocks used on that stream as well would have waited for it.
        let _ = self.order.retire(stream);
    }

    fn trim(&self) -> u64 {
        let reserved = || self.driver().usage().map_or(0, |usage| usage.reserved);
        let before = reserved();
        // A refusal keeps what is kept.
        let _ = self.driver().trim(0);
        before.saturating_sub(reserved())
    }

    fn stats(&self) -> PoolStats {
        let live = self.live.load(Ordering::Relaxed);
        let all_live = OrderedUsage { reserved: live, peak_reserved: live, used: live };
        let usage = self.driver().usage().unwrap_or(all_live);
        let order = self.order.stats();
        PoolStats {
            reserved: usage.reserved,
            peak_reserved: usage.peak_reserved,
            live,
            peak_live: self.peak_live.load(Ordering::Relaxed),
            requested: live,
            live_blocks: self.blocks.load(Ordering::Relaxed),
            waits: order.waits,
            events_recorded: order.records,
            ..PoolStats::default()
        }
    }
}
