//! [`Track`]: who has which block.

use super::pass_on;
use crate::device::Stream;
use crate::error::PoolError;
use crate::pool::{Block, DevicePool, PoolStats};
use crate::regions::{Regions, pass_regions_on};
use core::panic::Location;
use parking_lot::Mutex;
use std::collections::HashMap;

/// A block that is out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leak {
    /// Its address.
    pub address: u64,
    /// Its bytes.
    pub len: u64,
    /// Bytes asked for.
    pub asked: u64,
    /// The stream that it was handed out for.
    pub stream: Stream,
    /// The line of source that asked for it.
    pub site: &'static Location<'static>,
    /// How many blocks had been handed out before it.
    pub order: u64,
}

impl core::fmt::Display for Leak {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} bytes at {:#x}, asked for at {}", self.asked, self.address, self.site)
    }
}

type Report = Box<dyn Fn(&[Leak]) + Send + Sync>;

struct Live {
    blocks: HashMap<u64, Leak>,
    count: u64,
}

/// Keeps a list of the blocks that are out, with the line of source that asked for each.
pub struct Track<P> {
    inner: P,
    live: Mutex<Live>,
    at_end: Option<Report>,
}

impl<P: core::fmt::Debug> core::fmt::Debug for Track<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Track").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<P: DevicePool> Track<P> {
    /// `inner`, watched from now on.
    pub fn new(inner: P) -> Self {
        Self { inner, live: Mutex::new(Live { blocks: HashMap::new(), count: 0 }), at_end: None }
    }

    /// The same, with `report` called with the blocks that are still out when the pool is dropped, if there are any.
    pub fn reporting(inner: P, report: impl Fn(&[Leak]) + Send + Sync + 'static) -> Self {
        let mut track = Self::new(inner);
        track.at_end = Some(Box::new(report));
        track
    }

    /// The pool inside.
    pub fn inner(&self) -> &P {
        &self.inner
    }
}

impl<P> Track<P> {
    /// The blocks that are out, in the order in which they were handed out.
    pub fn live(&self) -> Vec<Leak> {
        let mut live: Vec<Leak> = self.live.lock().blocks.values().copied().collect();
        live.sort_unstable_by_key(|leak| leak.order);
        live
    }
}

impl<P> Drop for Track<P> {
    fn drop(&mut self) {
        let leaks = self.live();
        if let Some(report) = self.at_end.as_ref().filter(|_| !leaks.is_empty()) {
            report(&leaks);
        }
    }
}

// SAFETY: blocks come from a pool that keeps the contract, and are passed on as they are.
unsafe impl<P: DevicePool> DevicePool for Track<P> {
    #[track_caller]
    fn allocate(&self, len: u64, align: u64, stream: Stream) -> Result<Block, PoolError> {
        let block = self.inner.allocate(len, align, stream)?;
        let site = Location::caller();
        let mut live = self.live.lock();
        let order = live.count;
        live.count += 1;
        let (address, len, asked) = (block.address(), block.len(), block.asked());
        live.blocks.insert(address, Leak { address, len, asked, stream, site, order });
        Ok(block)
    }

    unsafe fn deallocate(&self, block: Block, stream: Stream, also_used_on: &[Stream]) {
        self.live.lock().blocks.remove(&block.address());
        // SAFETY: passed on by the caller.
        unsafe { self.inner.deallocate(block, stream, also_used_on) }
    }

    pass_on!(inner);

    fn stats(&self) -> PoolStats {
        self.inner.stats()
    }
}

impl<P: Regions> Regions for Track<P> {
    pass_regions_on!(self => self.inner);
}
