//! Blocks of one length: [`FixedPool`].
//!
//! Invariant: a block is either handed out, or in exactly one stream's list, or set aside with the stamps of all the
//! streams that used it, or beyond the frontier (never handed out). A block in the list of stream `S` is safe for `S`
//! without any wait, and for others once its stamp is.
//!
//! A hit is one exchange on the stream's own list: no lock, no driver call, no cache line that another stream writes.
//! On a miss, in this order: the frontier; blocks that other streams freed and that are known to be past; blocks that
//! other streams freed, for which this stream is made to wait (a batch of them for one event and one wait); blocks that
//! were set aside; and only then more memory from the device.

use crate::device::{Device, Stream};
use crate::error::{PoolError, Shortage};
use crate::free_list::{FreeList, Links, LockedStack, NONE, TaggedStack};
use crate::gate::Gate;
use crate::lanes::LaneTable;
use crate::pool::{Block, DevicePool, PoolStats};
use crate::stream_order::{Stamp, StreamOrder};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32 as StdU32, AtomicU64 as StdU64, Ordering};
use std::sync::{Arc, OnceLock};
use terrane_core::sync::atomic::{AtomicU32, AtomicU64};

/// Lists without locks: for [`FixedPool`]'s second parameter.
pub type LockFree = TaggedStack;
/// Lists with a mutex each: for [`FixedPool`]'s second parameter.
pub type Locked = LockedStack;

/// Blocks taken from another stream's list at once.
const STEAL_BATCH: usize = 32;
/// Events asked for completion on a miss.
const POLL: u32 = 4;
/// Blocks that a stream gets at once of those that nobody has had, as long as there are many.
const GROUP: u32 = 8;
/// Many, that is.
const PLENTY: u32 = 8 * GROUP;

/// How a [`FixedPool`] is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FixedConfig {
    /// Usable bytes of a block.
    pub block_len: u64,
    /// Alignment of every block, a power of two, at most 256.
    pub align: u64,
    /// Blocks taken from the device at once; rounded up to a power of two.
    pub blocks_per_chunk: u32,
    /// Most blocks that the pool may have; rounded up to whole chunks.
    pub max_blocks: u32,
}

impl FixedConfig {
    /// Blocks of `block_len` bytes, aligned to 256 bytes, in chunks of about 64 MiB, without a limit but that of indices.
    pub const fn new(block_len: u64) -> Self {
        let per_chunk = (64 << 20) / if block_len == 0 { 1 } else { block_len };
        let blocks_per_chunk = if per_chunk == 0 {
            1
        } else if per_chunk > 1 << 16 {
            1 << 16
        } else {
            per_chunk as u32
        };
        Self { block_len, align: 256, blocks_per_chunk, max_blocks: 1 << 24 }
    }
}

/// What is known about a block that is not handed out.
struct Slot {
    link: AtomicU32,
    /// Epoch of the stream whose list it is in. Written by whoever holds the block, read after it was popped.
    epoch: AtomicU64,
}

/// Slots that a stream gets together, in lines of their own: what one stream writes about its blocks is not beside what
/// another writes.
#[repr(align(128))]
struct Group([Slot; GROUP as usize]);

const _: () = assert!(size_of::<Group>() == 128 || cfg!(loom));

struct Chunk {
    base: u64,
    groups: Box<[Group]>,
}

struct Chunks {
    chunks: Box<[OnceLock<Chunk>]>,
    shift: u32,
}

impl Chunks {
    #[inline]
    fn slot(&self, index: u32) -> &Slot {
        let (chunk, slot) = ((index >> self.shift) as usize, (index & ((1 << self.shift) - 1)) as usize);
        match self.chunks[chunk].get() {
            Some(chunk) => &chunk.groups[slot / GROUP as usize].0[slot % GROUP as usize],
            None => unreachable!("indices below the capacity lie in chunks that were made"),
        }
    }

    #[inline]
    fn address(&self, index: u32, stride: u64) -> u64 {
        let slot = u64::from(index & ((1 << self.shift) - 1));
        match self.chunks[(index >> self.shift) as usize].get() {
            Some(chunk) => chunk.base + slot * stride,
            None => unreachable!("indices below the capacity lie in chunks that were made"),
        }
    }
}

impl Links for Chunks {
    #[inline]
    fn link(&self, index: u32) -> &AtomicU32 {
        &self.slot(index).link
    }
}

#[repr(align(128))]
#[derive(Default)]
struct Lane<L> {
    free: L,
}

/// A block that more than one stream used last.
struct Aside {
    index: u32,
    stamps: Vec<Stamp>,
}

/// A pool of blocks of one length. `L` is [`LockFree`] or [`Locked`].
///
/// [`PoolStats::peak_live`] is the number of blocks that any stream ever got, in its hands or in its list: an upper bound.
///
/// A block's hit path knows nothing of stream capture; for the work of a graph use a [`sibling`](Self::sibling) pool
/// that lives as long as the graph.
pub struct FixedPool<D: Device + ?Sized, L: FreeList = LockFree> {
    lanes: LaneTable<Lane<L>>,
    chunks: Chunks,
    /// Blocks that streams have got, each in its turn.
    frontier: StdU32,
    /// Blocks in chunks that were made.
    capacity: StdU32,
    stride: u64,
    watch: bool,
    config: FixedConfig,
    aside: Mutex<Vec<Aside>>,
    growing: Gate,
    steals: StdU64,
    order: StreamOrder<D>,
}

impl<D: Device + ?Sized, L: FreeList> core::fmt::Debug for FixedPool<D, L> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("FixedPool").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<D: Device + ?Sized> FixedPool<D, LockFree> {
    /// A pool with lock-free lists on `device`. Takes no memory yet.
    ///
    /// # Errors
    /// [`Shortage::BadRequest`] if the length is zero or the alignment is no power of two up to 256.
    pub fn new(device: Arc<D>, config: FixedConfig) -> Result<Self, PoolError> {
        Self::with_lists(device, config)
    }
}

impl<D: Device + ?Sized, L: FreeList> FixedPool<D, L> {
    /// A pool with lists of type `L` on `device`. Takes no memory yet.
    ///
    /// # Errors
    /// [`Shortage::BadRequest`] if the length is zero or the alignment is no power of two up to 256.
    pub fn with_lists(device: Arc<D>, config: FixedConfig) -> Result<Self, PoolError> {
        let FixedConfig { block_len, align, blocks_per_chunk, max_blocks } = config;
        let sound = block_len > 0 && block_len < 1 << 56 && align.is_power_of_two() && align <= 256;
        if !sound || max_blocks == 0 || max_blocks > 1 << 30 {
            return Err(PoolError::bad_request(block_len));
        }
        let per_chunk = blocks_per_chunk.clamp(1, max_blocks).next_power_of_two();
        let chunks = (0..max_blocks.div_ceil(per_chunk)).map(|_| OnceLock::new()).collect();
        Ok(Self {
            lanes: LaneTable::new(),
            chunks: Chunks { chunks, shift: per_chunk.ilog2() },
            frontier: StdU32::new(0),
            capacity: StdU32::new(0),
            stride: block_len.next_multiple_of(align),
            watch: device.watches_blocks(),
            config,
            aside: Mutex::new(Vec::new()),
            growing: Gate::default(),
            steals: StdU64::new(0),
            order: StreamOrder::new(device),
        })
    }

    /// A new, empty pool like this one.
    ///
    /// # Errors
    /// As for [`with_lists`](Self::with_lists).
    pub fn sibling(&self) -> Result<Self, PoolError> {
        Self::with_lists(self.order.device().clone(), self.config)
    }

    /// The device.
    pub fn device(&self) -> &Arc<D> {
        self.order.device()
    }

    /// The order between its streams.
    pub fn order(&self) -> &StreamOrder<D> {
        &self.order
    }

    /// Takes memory for at least `blocks` blocks now.
    ///
    /// # Errors
    /// [`Shortage::Limit`] or the driver's refusal; what was taken so far stays.
    pub fn reserve(&self, blocks: u32) -> Result<(), PoolError> {
        while self.capacity.load(Ordering::Acquire) < blocks {
            self.grow()?;
        }
        Ok(())
    }

    #[inline]
    fn lane(&self, stream: Stream) -> &Lane<L> {
        self.lanes.get_or(stream.key(), Lane::default)
    }

    /// Hands out one block for use on `stream`.
    ///
    /// # Errors
    /// A [`PoolError`]; nothing has changed then.
    #[inline]
    pub fn take(&self, stream: Stream) -> Result<Block, PoolError> {
        let index = match self.lane(stream).free.pop(&self.chunks) {
            Some(index) => index,
            None => self.miss(stream)?,
        };
        let address = self.chunks.address(index, self.stride);
        let len = self.config.block_len;
        if self.watch {
            self.order.device().note_taken(address, len, stream);
        }
        Ok(Block { address, len, asked: len, key: u64::from(index) })
    }

    /// Takes a block back in the order of `stream`.
    ///
    /// # Safety
    /// The block came from this pool, and no work that is submitted later, or to other streams, uses it.
    #[inline]
    pub unsafe fn give(&self, block: Block, stream: Stream) {
        let index = block.key as u32;
        if self.watch {
            self.order.device().note_freed(block.address, block.len, stream);
        }
        self.put(stream, index);
    }

    /// Puts a block that is safe for `stream` into its list.
    #[inline]
    fn put(&self, stream: Stream, index: u32) {
        let stamp = self.order.stamp(stream);
        // Before the push, whose release hands it to whoever pops the block.
        self.chunks.slot(index).epoch.store(stamp.epoch, Ordering::Relaxed);
        self.lane(stream).free.push(&self.chunks, index);
    }

    #[cold]
    fn miss(&self, stream: Stream) -> Result<u32, PoolError> {
        loop {
            let capacity = self.capacity.load(Ordering::Acquire);
            let next = |frontier: u32| match capacity.saturating_sub(frontier) {
                0 => None,
                1..PLENTY => Some(frontier + 1),
                // To the end of the group.
                _ => Some((frontier | (GROUP - 1)) + 1),
            };
            if let Ok(index) = self.frontier.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
                // The lowest is taken first. Nobody has used the others: their epoch is past for everyone.
                let free = &self.lane(stream).free;
                let end = next(index).unwrap_or(index);
                (index + 1..end).rev().for_each(|other| free.push(&self.chunks, other));
                return Ok(index);
            }
            self.order.poll(POLL);
            if let Some(index) = self.steal(stream, true).or_else(|| self.take_aside(stream, true)) {
                return Ok(index);
            }
            if let Some(index) = self.steal(stream, false).or_else(|| self.take_aside(stream, false)) {
                return Ok(index);
            }
            self.grow()?;
        }
    }

    /// Takes blocks from another stream's list: one for the caller, the others for its list.
    fn steal(&self, stream: Stream, only_past: bool) -> Option<u32> {
        for (lane, victim) in self.lanes.iter().filter(|(lane, _)| *lane != stream.key()) {
            let Some(top) = victim.free.peek() else { continue };
            let epoch = self.chunks.slot(top).epoch.load(Ordering::Relaxed);
            if only_past && !self.order.is_done(Stamp { lane, epoch }) {
                continue;
            }
            let mut batch = [NONE; STEAL_BATCH];
            let (mut count, mut epoch) = (0, 0);
            while count < STEAL_BATCH {
                let Some(index) = victim.free.pop(&self.chunks) else { break };
                let freed = self.chunks.slot(index).epoch.load(Ordering::Relaxed);
                if only_past && !self.order.is_done(Stamp { lane, epoch: freed }) {
                    victim.free.push(&self.chunks, index);
                    break;
                }
                epoch = epoch.max(freed);
                batch[count] = index;
                count += 1;
            }
            let batch = &batch[..count];
            let Some((&first, rest)) = batch.split_first() else { continue };
            if self.order.order_after(stream, [Stamp { lane, epoch }]).is_err() {
                // Nothing has been ordered: the blocks go back as they were.
                batch.iter().rev().for_each(|&index| victim.free.push(&self.chunks, index));
                continue;
            }
            self.steals.fetch_add(count as u64, Ordering::Relaxed);
            rest.iter().for_each(|&index| self.put(stream, index));
            return Some(first);
        }
        None
    }

    /// Takes a block that several streams used last.
    fn take_aside(&self, stream: Stream, only_past: bool) -> Option<u32> {
        let found = {
            let mut aside = self.aside.lock();
            let at = aside.iter().position(|a| {
                !only_past || a.stamps.iter().all(|&stamp| self.order.is_free_for(stream, stamp))
            })?;
            aside.swap_remove(at)
        };
        if self.order.order_after(stream, found.stamps.iter().copied()).is_err() {
            self.aside.lock().push(found);
            return None;
        }
        self.steals.fetch_add(1, Ordering::Relaxed);
        Some(found.index)
    }

    /// Takes one more chunk from the device. One thread does; others wait for what it gets.
    #[cold]
    fn grow(&self) -> Result<(), PoolError> {
        let before = self.capacity.load(Ordering::Acquire);
        let _inside = self.growing.enter();
        if self.capacity.load(Ordering::Acquire) != before {
            return Ok(());
        }
        self.add_chunk(before)
    }

    /// Only the one thread that grows.
    fn add_chunk(&self, before: u32) -> Result<(), PoolError> {
        let per_chunk: u32 = 1 << self.chunks.shift;
        let limit = self.chunks.chunks.len() as u64 * u64::from(per_chunk) * self.stride;
        let asked = self.config.block_len;
        let Some(slot) = self.chunks.chunks.get((before >> self.chunks.shift) as usize) else {
            let error = PoolError { shortage: Shortage::Limit, ..PoolError::bad_request(asked) };
            return Err(error.with_limit(Some(limit)));
        };
        let len = self.stride * u64::from(per_chunk);
        let base = self.order.device().alloc(len).map_err(|e| PoolError::driver(asked, e))?;
        let fresh = |_| Slot { link: AtomicU32::new(NONE), epoch: AtomicU64::new(0) };
        let groups = (0..per_chunk.div_ceil(GROUP)).map(|_| Group(core::array::from_fn(fresh))).collect();
        if slot.set(Chunk { base, groups }).is_err() {
            unreachable!("only one thread grows, and each chunk is made once");
        }
        self.capacity.store(before + per_chunk, Ordering::Release);
        Ok(())
    }
}

// SAFETY: an index is in one list, aside, or handed out (the lists' invariant), and indices stand for disjoint stretches
// of chunks that live as long as the pool; what another stream freed is ordered by `order_after` before it is handed out.
unsafe impl<D: Device + ?Sized, L: FreeList> DevicePool for FixedPool<D, L> {
    #[inline]
    fn allocate(&self, len: u64, align: u64, stream: Stream) -> Result<Block, PoolError> {
        if len == 0 || len > self.config.block_len || !align.is_power_of_two() || align > self.config.align {
            return Err(PoolError::bad_request(len));
        }
        let mut block = self.take(stream)?;
        block.asked = len;
        Ok(block)
    }

    #[inline]
    unsafe fn deallocate(&self, block: Block, stream: Stream, also_used_on: &[Stream]) {
        if also_used_on.iter().all(|&other| other == stream) {
            // SAFETY: passed on by the caller; no other stream used the block.
            unsafe { self.give(block, stream) };
            return;
        }
        let stamps = core::iter::once(stream).chain(also_used_on.iter().copied());
        let stamps = stamps.map(|s| self.order.stamp(s)).collect();
        self.aside.lock().push(Aside { index: block.key as u32, stamps });
    }

    fn retire_stream(&self, stream: Stream) {
        // A refusal leaves the epoch open; its blocks then wait in the list until a close succeeds.
        let _ = self.order.retire(stream);
    }

    /// Chunks are kept until the pool is dropped: always 0.
    fn trim(&self) -> u64 {
        0
    }

    fn stats(&self) -> PoolStats {
        let capacity = u64::from(self.capacity.load(Ordering::Acquire));
        let used_once = u64::from(self.frontier.load(Ordering::Relaxed));
        let listed: u64 = self.lanes.iter().map(|(_, lane)| lane.free.len(&self.chunks)).sum();
        let live_blocks = used_once.saturating_sub(listed + self.aside.lock().len() as u64);
        let order = self.order.stats();
        PoolStats {
            reserved: capacity * self.stride,
            peak_reserved: capacity * self.stride,
            live: live_blocks * self.stride,
            peak_live: used_once * self.stride,
            requested: live_blocks * self.config.block_len,
            live_blocks,
            largest_free: if live_blocks < capacity { self.config.block_len } else { 0 },
            steals: self.steals.load(Ordering::Relaxed),
            waits: order.waits,
            events_recorded: order.records,
            grows: capacity >> self.chunks.shift,
            remaps: 0,
        }
    }
}

impl<D: Device + ?Sized, L: FreeList> Drop for FixedPool<D, L> {
    fn drop(&mut self) {
        for chunk in self.chunks.chunks.iter().filter_map(OnceLock::get) {
            // SAFETY: the chunk came from this device; blocks that are out may not be used once the pool is gone. The
            // driver's free waits for work in flight. If it refuses there is nobody left to tell.
            let _ = unsafe { self.order.device().free(chunk.base) };
        }
    }
}
