//! Pools whose space can be cleared part by part: [`Regions`], for compaction by copying.
//!
//! Invariant: a hole that is [closed](Regions::close) belongs to whoever holds the [`Closed`] that came of it: no block is
//! placed there, and the memory neither goes back to the device nor is mapped elsewhere.

use crate::error::PoolError;
use crate::pool::{Block, DevicePool};
use std::sync::Arc;
use terrane_core::Span;

/// The holes of a region, out of use until they are [opened](Regions::open) again.
#[derive(Debug)]
#[must_use = "holes that are not opened again are lost to the pool"]
pub struct Closed(pub(crate) Vec<Span>);

/// A pool whose space consists of *regions*: parts that can go back to the device, or be mapped elsewhere, as soon as no block
/// touches them. A region is a chunk, or a piece of physical memory.
///
/// Spans are in the pool's own numbering: a block is `block.len()` bytes at `block.key()`.
pub trait Regions: DevicePool {
    /// The regions that `block` touches, the lowest first; none if it cannot be told, as for blocks of a captured graph.
    fn regions_of(&self, block: &Block) -> Vec<Span>;

    /// Takes all of `region` but the blocks `live` out of use: until it is [opened](Self::open), no block is placed there. `live`
    /// is sorted. `None`, and nothing has changed, if the region has other blocks too.
    ///
    /// Complexity: a search of the placement engine for every hole.
    fn close(&self, region: Span, live: &[Span]) -> Option<Closed>;

    /// Brings closed holes back into use.
    ///
    /// # Safety
    /// This very pool [closed](Self::close) them.
    unsafe fn open(&self, closed: Closed);

    /// [Trims](DevicePool::trim) the pool; the host waits for work on memory that is not in use. Returns the bytes.
    fn trim_waiting(&self) -> u64;

    /// Makes room so that blocks of `len` bytes together can be placed side by side, or as many of them as go into what the
    /// pool takes from the device at once.
    ///
    /// # Errors
    /// A [`PoolError`]; nothing has changed then.
    fn make_room(&self, len: u64) -> Result<(), PoolError>;
}

/// The methods of a pool that passes all of them on to another.
macro_rules! pass_regions_on {
    ($self:ident => $to:expr) => {
        fn regions_of(&$self, block: &$crate::pool::Block) -> Vec<terrane_core::Span> {
            $to.regions_of(block)
        }
        fn close(
            &$self,
            region: terrane_core::Span,
            live: &[terrane_core::Span],
        ) -> Option<$crate::regions::Closed> {
            $to.close(region, live)
        }
        unsafe fn open(&$self, closed: $crate::regions::Closed) {
            // SAFETY: passed on by the caller.
            unsafe { $to.open(closed) };
        }
        fn trim_waiting(&$self) -> u64 {
            $to.trim_waiting()
        }
        fn make_room(&$self, len: u64) -> Result<(), $crate::error::PoolError> {
            $to.make_room(len)
        }
    };
}
pub(crate) use pass_regions_on;

impl<P: Regions + ?Sized> Regions for &P {
    pass_regions_on!(self => (**self));
}

impl<P: Regions + ?Sized> Regions for Arc<P> {
    pass_regions_on!(self => (**self));
}

impl<P: Regions + ?Sized> Regions for Box<P> {
    pass_regions_on!(self => (**self));
}
