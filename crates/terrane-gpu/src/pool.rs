//! What every pool offers: [`DevicePool`], the block it deals in, and its figures.
//!
//! Invariant: a [`Block`] is a move-only token for memory that nobody else has. The memory behind a block that a pool
//! hands out for a stream may be used by work of that stream at once: whatever has to be waited for, the stream waits for.

use crate::device::Stream;
use crate::error::PoolError;
use std::sync::Arc;

/// Memory on loan from a [`DevicePool`]. Dropping it leaks the memory; see [`DeviceBuf`](crate::DeviceBuf) for the
/// kind that gives itself back.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "a block that is dropped is never given back"]
pub struct Block {
    pub(crate) address: u64,
    pub(crate) len: u64,
    pub(crate) asked: u64,
    pub(crate) key: u64,
}

impl Block {
    /// A block of `len` usable bytes at `address`, of which `asked` were asked for; `key` is the pool's own.
    ///
    /// # Safety
    /// The memory belongs to the caller, who is the pool that will take the block back.
    pub const unsafe fn from_raw(address: u64, len: u64, asked: u64, key: u64) -> Self {
        Self { address, len, asked, key }
    }

    /// First address.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Usable bytes: at least those asked for.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether the block is empty. No pool hands out an empty block.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes asked for.
    pub const fn asked(&self) -> u64 {
        self.asked
    }

    /// The pool's own number.
    pub const fn key(&self) -> u64 {
        self.key
    }
}

/// A pool of device memory (or of other memory that streams use).
///
/// # Safety
/// Blocks that are out never overlap, are at least as long and as aligned as asked for, and stay valid until given back
/// or until the pool is dropped; memory that another stream used last is ordered before the stream it is handed out for.
pub unsafe trait DevicePool: Send + Sync {
    /// Hands out at least `len` bytes at a multiple of `align` (a power of two), for use on `stream`.
    ///
    /// # Errors
    /// A [`PoolError`]; nothing has changed then.
    #[track_caller]
    fn allocate(&self, len: u64, align: u64, stream: Stream) -> Result<Block, PoolError>;

    /// Takes a block back, in the order of `stream`: work already submitted to `stream`, and to the streams
    /// `also_used_on`, may still use it. Never fails and never blocks; what cannot be reused yet waits in the pool.
    ///
    /// # Safety
    /// The block came from this pool; no work that is submitted later uses it, and work on further streams is ordered
    /// before one of the streams named.
    unsafe fn deallocate(&self, block: Block, stream: Stream, also_used_on: &[Stream]);

    /// To be called before `stream` is destroyed.
    fn retire_stream(&self, stream: Stream);

    /// Gives memory that is not in use back to where it came from, as far as that needs no waiting; returns the bytes.
    fn trim(&self) -> u64;

    /// The pool's figures.
    fn stats(&self) -> PoolStats;
}

/// A pool's figures. Bytes, unless they say otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize))]
pub struct PoolStats {
    /// Held from the device.
    pub reserved: u64,
    /// Most that was ever held.
    pub peak_reserved: u64,
    /// Handed out, with rounding.
    pub live: u64,
    /// Most that was ever handed out at once, as far as the pool counts it (see its own documentation).
    pub peak_live: u64,
    /// Handed out, as asked for. Pools that do not keep this report `live`.
    pub requested: u64,
    /// Blocks handed out.
    pub live_blocks: u64,
    /// Longest stretch that could be handed out without growing.
    pub largest_free: u64,
    /// Blocks or stretches that one stream took from what another had freed.
    pub steals: u64,
    /// Times a stream was made to wait for another.
    pub waits: u64,
    /// Events recorded.
    pub events_recorded: u64,
    /// Times memory was taken from the device.
    pub grows: u64,
    /// Physical pieces that were moved to other addresses.
    pub remaps: u64,
}

impl PoolStats {
    /// Not handed out.
    pub const fn free(&self) -> u64 {
        self.reserved.saturating_sub(self.live)
    }

    /// The part of live memory that was not asked for, 0 to 1.
    pub fn internal_fragmentation(&self) -> f64 {
        ratio(self.live.saturating_sub(self.requested), self.live)
    }

    /// The part of free memory that the largest request could not have, 0 to 1.
    pub fn external_fragmentation(&self) -> f64 {
        ratio(self.free().saturating_sub(self.largest_free), self.free())
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

macro_rules! forward {
    ($($kind:ty),*) => {$(
        // SAFETY: every call is passed on to a pool that keeps the contract.
        unsafe impl<P: DevicePool + ?Sized> DevicePool for $kind {
            #[inline]
            #[track_caller]
            fn allocate(&self, len: u64, align: u64, stream: Stream) -> Result<Block, PoolError> {
                (**self).allocate(len, align, stream)
            }
            #[inline]
            unsafe fn deallocate(&self, block: Block, stream: Stream, also_used_on: &[Stream]) {
                // SAFETY: passed on by the caller.
                unsafe { (**self).deallocate(block, stream, also_used_on) }
            }
            fn retire_stream(&self, stream: Stream) {
                (**self).retire_stream(stream);
            }
            fn trim(&self) -> u64 {
                (**self).trim()
            }
            fn stats(&self) -> PoolStats {
                (**self).stats()
            }
        }
    )*};
}

forward!(&P, Arc<P>, Box<P>);
