//! Blocks that may be moved: [`MovableSet`] and [`Movable`], for compaction by copying where remapping is not to be had.
//!
//! Invariant: a block is moved only while nobody has it [pinned](Movable::pin), and the move runs in the order of the block's
//! stream: work submitted before it uses the old place, work submitted after a later pin the new one.

use crate::device::{Device, DriverResult, Stream};
use crate::error::PoolError;
use crate::pool::{Block, DevicePool};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

struct State {
    block: Option<Block>,
    pins: u32,
}

struct Slot<P: DevicePool> {
    state: Mutex<State>,
    align: u64,
    stream: Stream,
    pool: Arc<P>,
}

impl<P: DevicePool> Drop for Slot<P> {
    fn drop(&mut self) {
        if let Some(block) = self.state.get_mut().block.take() {
            // SAFETY: the block came from this pool; nobody has it pinned, so no more work is submitted with it.
            unsafe { self.pool.deallocate(block, self.stream, &[]) }
        }
    }
}

/// Blocks of one pool that may be moved.
pub struct MovableSet<D: Device + ?Sized, P: DevicePool> {
    device: Arc<D>,
    pool: Arc<P>,
    slots: Mutex<Vec<Weak<Slot<P>>>>,
}

impl<D: Device + ?Sized, P: DevicePool> core::fmt::Debug for MovableSet<D, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("MovableSet").field("blocks", &self.slots.lock().len()).finish_non_exhaustive()
    }
}

/// A block that may be moved while it is not pinned. Gives itself back when it is dropped.
pub struct Movable<P: DevicePool> {
    slot: Arc<Slot<P>>,
}

/// A block at its place, until this is dropped. Work that uses the address is submitted to the block's stream meanwhile.
#[must_use = "the address is only good while this is held"]
pub struct Pinned<'a, P: DevicePool> {
    slot: &'a Slot<P>,
    address: u64,
    len: u64,
}

/// What a compaction did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Compaction {
    /// Blocks moved.
    pub moved: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// Blocks left alone because they were pinned.
    pub pinned: u64,
}

/// A compaction on its way.
struct Run {
    left: Vec<(Block, Stream)>,
    /// Blocks of this many bytes and more stay where they are.
    too_long: u64,
    done: Compaction,
}

impl<D: Device + ?Sized, P: DevicePool> MovableSet<D, P> {
    /// Movable blocks of `pool`, which is a pool on `device`.
    pub fn new(device: Arc<D>, pool: Arc<P>) -> Self {
        Self { device, pool, slots: Mutex::new(Vec::new()) }
    }

    /// A block of at least `len` bytes at a multiple of `align`, ordered with `stream`.
    ///
    /// # Errors
    /// A [`PoolError`].
    pub fn allocate(&self, len: u64, align: u64, stream: Stream) -> Result<Movable<P>, PoolError> {
        let block = self.pool.allocate(len, align, stream)?;
        Ok(self.keep(block, align, stream))
    }

    /// A block that was taken from the pool before, which may be moved from now on.
    ///
    /// # Safety
    /// The block came from this set's pool, at a multiple of `align`, and all work that uses it was submitted to `stream`. Its
    /// address is not used any more but through a [pin](Movable::pin).
    pub unsafe fn adopt(&self, block: Block, align: u64, stream: Stream) -> Movable<P> {
        self.keep(block, align, stream)
    }

    fn keep(&self, block: Block, align: u64, stream: Stream) -> Movable<P> {
        let state = Mutex::new(State { block: Some(block), pins: 0 });
        let slot = Arc::new(Slot { state, align, stream, pool: self.pool.clone() });
        let mut slots = self.slots.lock();
        if slots.len() == slots.capacity() {
            slots.retain(|slot| slot.strong_count() > 0);
        }
        slots.push(Arc::downgrade(&slot));
        Movable { slot }
    }

    /// Moves blocks that are not pinned down in the pool's own order (its numbering of places, which need not be that of
    /// addresses), the highest first, each to the first place below that the pool offers. The pool is
    /// [trimmed](DevicePool::trim) first: what lies in the lists of streams becomes holes again. It ends
    /// when the pool has to grow, which is trimmed away again.
    ///
    /// # Errors
    /// The driver's refusal of a copy; that block is where it was, and those before it have been moved.
    pub fn compact(&self) -> DriverResult<Compaction> {
        self.compact_short(u64::MAX)
    }

    /// [`compact`](Self::compact), for blocks of fewer than `len` bytes. Longer ones may be best left alone: copying them costs
    /// most, and pools that hand them out in chunks of their own, or that remap, gain nothing by it.
    ///
    /// # Errors
    /// As for [`compact`](Self::compact).
    pub fn compact_short(&self, len: u64) -> DriverResult<Compaction> {
        self.pool.trim();
        let mut slots: Vec<Arc<Slot<P>>> = self.slots.lock().iter().filter_map(Weak::upgrade).collect();
        let place = |slot: &Arc<Slot<P>>| slot.state.lock().block.as_ref().map(Block::key);
        slots.sort_by_cached_key(|slot| core::cmp::Reverse(place(slot)));
        // What was left, and what was offered and lies too high: given back at the end, so that it is not offered again.
        let mut run = Run { left: Vec::new(), too_long: len, done: Compaction::default() };
        let result = slots.iter().try_for_each(|slot| self.move_down(slot, &mut run));
        for (block, stream) in run.left {
            // SAFETY: the copies out of these blocks were submitted to this stream, and nothing else will be.
            unsafe { self.pool.deallocate(block, stream, &[]) }
        }
        self.pool.trim();
        result.map(|()| run.done)
    }

    fn move_down(&self, slot: &Slot<P>, run: &mut Run) -> DriverResult<()> {
        // Held over the copy: only who wants to pin this very block waits.
        let mut state = slot.state.lock();
        let pinned = state.pins > 0;
        let Some(old) = state.block.as_mut().filter(|block| block.asked() < run.too_long) else {
            return Ok(());
        };
        if pinned {
            run.done.pinned += 1;
            return Ok(());
        }
        let len = old.asked();
        // What lies above this block lies above all that come after it, so nobody wants it.
        let new = loop {
            let before = self.pool.stats();
            let Ok(new) = self.pool.allocate(len, slot.align, slot.stream) else {
                run.too_long = len;
                return Ok(());
            };
            let after = self.pool.stats();
            if after.grows > before.grows && after.remaps == before.remaps {
                // There was no room left for this length, and what the pool grew by would be filled by the shorter ones.
                run.too_long = 0;
                run.left.push((new, slot.stream));
                return Ok(());
            }
            if new.key() < old.key() {
                break new;
            }
            run.left.push((new, slot.stream));
        };
        // SAFETY: both blocks are ours, have these bytes and do not overlap, and are given back in this stream's order.
        if let Err(error) = unsafe { self.device.copy(new.address(), old.address(), len, slot.stream) } {
            run.left.push((new, slot.stream));
            return Err(error);
        }
        run.left.push((core::mem::replace(old, new), slot.stream));
        run.done.moved += 1;
        run.done.bytes += len;
        Ok(())
    }
}

impl<P: DevicePool> core::fmt::Debug for Movable<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Movable").field("block", &self.slot.state.lock().block).finish_non_exhaustive()
    }
}

impl<P: DevicePool> Movable<P> {
    /// Keeps the block where it is until the guard is dropped.
    pub fn pin(&self) -> Pinned<'_, P> {
        let mut state = self.slot.state.lock();
        state.pins += 1;
        let (address, len) = state.block.as_ref().map_or((0, 0), |block| (block.address(), block.asked()));
        Pinned { slot: &self.slot, address, len }
    }

    /// The stream that the block, and every move of it, is ordered with.
    pub fn stream(&self) -> Stream {
        self.slot.stream
    }
}

impl<P: DevicePool> Pinned<'_, P> {
    /// Where the block is.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes that were asked for.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the block is empty. No pool hands out an empty block.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<P: DevicePool> Drop for Pinned<'_, P> {
    fn drop(&mut self) {
        self.slot.state.lock().pins -= 1;
    }
}
