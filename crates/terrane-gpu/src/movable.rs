//! Blocks that may be moved: [`MovableSet`] and [`Movable`], for compaction by copying where remapping alone does not help.
//!
//! Invariant: a block is moved only while nobody has it [pinned](Movable::pin), and the move runs in the order of the block's
//! stream: work submitted before it uses the old place, work submitted after a later pin the new one.

use crate::device::{Device, DriverResult, Stream};
use crate::error::PoolError;
use crate::evacuation::{self, Clearing, Resident};
use crate::pool::{Block, DevicePool};
use crate::regions::{Closed, Regions};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use terrane_core::Span;

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
    /// Blocks that could not be moved because they were pinned when it began.
    pub pinned: u64,
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
}

/// Rounds of a compaction: each can use the memory that those before it made free.
const ROUNDS: usize = 16;

impl<D: Device + ?Sized, P: Regions> MovableSet<D, P> {
    /// Clears the [regions](Regions) of the pool that are more than a sixteenth holes: their blocks are copied to holes elsewhere
    /// and to memory that the pool takes for it, side by side. Regions with a block that is pinned, or not in this set, are left
    /// alone, and nothing is moved that would not make a region free. The pool is [trimmed](Regions::trim_waiting) before and
    /// after, so the host waits for the copies.
    ///
    /// It needs as much more memory as it moves. Where the pool cannot take so much, it goes in rounds, of which each uses what
    /// the one before has cleared. A block is not given back while this runs, even if the last owner drops it.
    ///
    /// # Errors
    /// The driver's refusal of a copy; that block is where it was, and those before it have been moved.
    pub fn compact(&self) -> DriverResult<Compaction> {
        self.compact_short(u64::MAX)
    }

    /// [`compact`](Self::compact), but blocks of `len` bytes and more stay where they are: copying them costs most.
    ///
    /// # Errors
    /// As for [`compact`](Self::compact).
    pub fn compact_short(&self, len: u64) -> DriverResult<Compaction> {
        let slots: Vec<Arc<Slot<P>>> = self.slots.lock().iter().filter_map(Weak::upgrade).collect();
        let mut done = Compaction { pinned: count_pinned(&slots, len), ..Compaction::default() };
        // Regions to clear at most, those that the last round was to clear, and bytes of all that blocks touched before it.
        let (mut most, mut last, mut held) = (usize::MAX, usize::MAX, u64::MAX);
        for _ in 0..ROUNDS {
            // Holes that are not past would be filled by what is moved, wherever they lie.
            self.pool.trim_waiting();
            let residents: Vec<Resident> = slots.iter().map(|slot| self.resident(slot, len)).collect();
            let before = core::mem::replace(&mut held, evacuation::bytes_touched(&residents));
            if held >= before {
                // Nothing was gained, for lack of room: some of the regions stay, and serve the others.
                most = last / 2;
            }
            let plan = evacuation::plan(&residents, most);
            if plan.is_empty() {
                break;
            }
            last = plan.len();
            self.clear(&slots, &residents, plan, &mut done)?;
        }
        self.pool.trim_waiting();
        Ok(done)
    }

    fn resident(&self, slot: &Slot<P>, too_long: u64) -> Resident {
        let state = slot.state.lock();
        let Some(block) = &state.block else {
            return Resident { span: Span::new(0, 0), regions: Vec::new(), movable: false };
        };
        let movable = state.pins == 0 && block.asked() < too_long;
        Resident { span: span_of(block), regions: self.pool.regions_of(block), movable }
    }

    /// One round: as much of the plan as there is room for.
    fn clear(
        &self,
        slots: &[Arc<Slot<P>>],
        residents: &[Resident],
        mut plan: Vec<Clearing>,
        done: &mut Compaction,
    ) -> DriverResult<()> {
        // Given back and opened when all is moved, so that nothing is placed in what is being cleared.
        let mut left = Left { pool: &*self.pool, blocks: Vec::new(), closed: Vec::new() };
        plan.retain(|clearing| {
            let live: Vec<Span> = clearing.blocks.iter().map(|&i| residents[i].span).collect();
            // What has other blocks too would not become free.
            let closed = self.pool.close(clearing.region, &live);
            let is_closed = closed.is_some();
            left.closed.extend(closed);
            is_closed
        });
        let blocks = evacuation::blocks_of(residents, &plan);
        let mut room: u64 = blocks.iter().map(|&i| residents[i].span.len).sum();
        while room > 0 && self.pool.make_room(room).is_err() {
            room /= 2;
        }
        for i in blocks {
            if !self.move_out(&slots[i], residents[i].span, &mut left, done)? {
                break;
            }
        }
        Ok(())
    }

    /// Moves a block, unless it was pinned or moved meanwhile. `false` if there is no room for it.
    fn move_out(
        &self,
        slot: &Slot<P>,
        from: Span,
        left: &mut Left<'_, P>,
        done: &mut Compaction,
    ) -> DriverResult<bool> {
        // Held over the copy: only who wants to pin this very block waits.
        let mut state = slot.state.lock();
        let pinned = state.pins > 0;
        let Some(old) = state.block.as_mut().filter(|block| !pinned && span_of(block) == from) else {
            return Ok(true);
        };
        let len = old.asked();
        let Ok(new) = self.pool.allocate(len, slot.align, slot.stream) else { return Ok(false) };
        // SAFETY: both blocks are ours, have these bytes and do not overlap, and are given back in this stream's order.
        if let Err(error) = unsafe { self.device.copy(new.address(), old.address(), len, slot.stream) } {
            left.blocks.push((new, slot.stream));
            return Err(error);
        }
        left.blocks.push((core::mem::replace(old, new), slot.stream));
        done.moved += 1;
        done.bytes += len;
        Ok(true)
    }
}

fn span_of(block: &Block) -> Span {
    Span::new(block.key(), block.len())
}

fn count_pinned<P: DevicePool>(slots: &[Arc<Slot<P>>], too_long: u64) -> u64 {
    let is_pinned = |slot: &&Arc<Slot<P>>| {
        let state = slot.state.lock();
        state.pins > 0 && state.block.as_ref().is_some_and(|block| block.asked() < too_long)
    };
    slots.iter().filter(is_pinned).count() as u64
}

/// What a round has to give back, whichever way it ends.
struct Left<'a, P: Regions> {
    pool: &'a P,
    blocks: Vec<(Block, Stream)>,
    closed: Vec<Closed>,
}

impl<P: Regions> Drop for Left<'_, P> {
    fn drop(&mut self) {
        for closed in self.closed.drain(..) {
            // SAFETY: closed by this pool.
            unsafe { self.pool.open(closed) };
        }
        for (block, stream) in self.blocks.drain(..) {
            // SAFETY: the copies out of these blocks were submitted to this stream, and nothing else will be.
            unsafe { self.pool.deallocate(block, stream, &[]) }
        }
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
