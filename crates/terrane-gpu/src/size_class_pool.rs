//! [`SizeClassPool`]: short requests are served from slabs of one length class each, taken from any pool behind.
//!
//! Invariant: a block of a slab is handed out, or in exactly one stream's list with the epoch of its free, or aside with the
//! stamps of all streams that used it. A slab goes back to the pool behind only with all its blocks in hand, in the order
//! of a stream that was made to wait for every one of their stamps.
//!
//! ```text
//!   allocate(len, stream)
//!     long, or while a capture is declared: the pool behind, as it is
//!     hit     the stream's list of the class: one uncontended lock, no driver call
//!     miss    blocks that other streams freed, past ones first, otherwise this stream waits (on the device)
//!     carve   a slab from the pool behind; if that is refused, idle slabs of all classes go back, and once more
//! ```
//!
//! It is an adaptor: it takes any [`DevicePool`] and is one. What it is for: short blocks that live long lie together
//! instead of one by one between long ones, where each would keep a stretch, a chunk or a mapped piece from being used
//! again; and a pool that is slow for each request ([`DriverPool`](crate::DriverPool)) is asked once for hundreds.

use crate::device::{Stream, Streams};
use crate::error::{PoolError, Shortage};
use crate::gate::Gate;
use crate::lanes::LaneTable;
use crate::pool::{Block, DevicePool, PoolStats};
use crate::size_class::GRANULE;
use crate::stream_order::{Stamp, StreamOrder};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Blocks taken from another stream's list at once.
const STEAL_BATCH: usize = 32;
/// Fewest blocks of a slab.
const FEWEST: u64 = 8;
/// Events asked for completion on a miss.
const POLL: u32 = 4;

/// How a [`SizeClassPool`] is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SizeClassConfig {
    /// Longest request, in bytes, that is served from slabs; longer ones go to the pool behind.
    pub largest: u64,
    /// Usual bytes of a slab; at least eight blocks in any case.
    pub slab_len: u64,
}

impl Default for SizeClassConfig {
    fn default() -> Self {
        Self { largest: 64 << 10, slab_len: 512 << 10 }
    }
}

/// The class of a request of `len` bytes, and the length of its blocks: four classes to a doubling, so at most a fifth of a
/// block is rounding.
#[inline]
const fn class_of(len: u64) -> (usize, u64) {
    let granules = len.div_ceil(GRANULE);
    if granules <= 4 {
        return (granules.saturating_sub(1) as usize, granules * GRANULE);
    }
    let shift = (granules - 1).ilog2() - 2;
    let rounded = granules.next_multiple_of(1 << shift);
    ((4 * (shift as u64 + 1) + (rounded >> shift) - 5) as usize, rounded * GRANULE)
}

/// Whether memory that is given back may help.
fn lacks_memory(error: &PoolError) -> bool {
    matches!(error.shortage, Shortage::Exhaustion | Shortage::Fragmentation | Shortage::Limit)
}

#[derive(Clone, Copy)]
struct Free {
    address: u64,
    slab: u64,
    epoch: u64,
}

/// A block that more than one stream used last.
struct Aside {
    class: usize,
    address: u64,
    slab: u64,
    stamps: Vec<Stamp>,
}

struct Slab {
    block: Block,
    blocks: u64,
    stream: Stream,
}

#[derive(Default)]
struct Slabs {
    entries: HashMap<u64, Slab>,
    next: u64,
}

#[derive(Clone, Copy, Default)]
struct Figures {
    taken: u64,
    taken_bytes: u64,
    asked_bytes: u64,
    given: u64,
    given_bytes: u64,
    given_asked_bytes: u64,
}

#[repr(align(128))]
struct Lane {
    stream: Stream,
    retired: AtomicBool,
    state: Mutex<LaneState>,
}

struct LaneState {
    lists: Box<[Vec<Free>]>,
    figures: Figures,
}

/// Length classes in front of the pool `P`, whose streams belong to `S`. See the [module](self).
///
/// Takes no part in captures: while one is declared, requests go to the pool behind. Idle slabs are given back by
/// [`trim`](DevicePool::trim), and when the pool behind has no room.
pub struct SizeClassPool<P: DevicePool, S: Streams + ?Sized> {
    lanes: LaneTable<Lane>,
    slabs: Mutex<Slabs>,
    aside: Mutex<Vec<Aside>>,
    /// Short blocks that came from the pool behind as they are, and how many.
    passed: Mutex<HashSet<u64>>,
    passed_count: AtomicU64,
    steals: AtomicU64,
    carving: Gate,
    watch: bool,
    config: SizeClassConfig,
    order: StreamOrder<S>,
    inner: P,
}

impl<P: DevicePool, S: Streams + ?Sized> core::fmt::Debug for SizeClassPool<P, S> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SizeClassPool").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<P: DevicePool, S: Streams + ?Sized> SizeClassPool<P, S> {
    /// Length classes in front of `inner`, for streams of `streams`. Takes no memory yet.
    pub fn new(inner: P, streams: Arc<S>, config: SizeClassConfig) -> Self {
        let (_, largest) = class_of(config.largest.clamp(1, 1 << 40));
        Self {
            lanes: LaneTable::new(),
            slabs: Mutex::default(),
            aside: Mutex::default(),
            passed: Mutex::default(),
            passed_count: AtomicU64::new(0),
            steals: AtomicU64::new(0),
            carving: Gate::default(),
            watch: streams.watches_blocks(),
            config: SizeClassConfig { largest, ..config },
            order: StreamOrder::new(streams),
            inner,
        }
    }

    /// The pool behind.
    pub fn inner(&self) -> &P {
        &self.inner
    }

    /// The order between its streams.
    pub fn order(&self) -> &StreamOrder<S> {
        &self.order
    }

    #[inline]
    fn lane(&self, stream: Stream) -> &Lane {
        self.lanes.get_or(stream.key(), || {
            let lists = (0..=class_of(self.config.largest).0).map(|_| Vec::new()).collect();
            let state = LaneState { lists, figures: Figures::default() };
            Lane { stream, retired: AtomicBool::new(false), state: Mutex::new(state) }
        })
    }

    /// Puts blocks that are safe for `stream` into its list.
    fn put(&self, stream: Stream, class: usize, blocks: impl IntoIterator<Item = (u64, u64)>) {
        let epoch = self.order.stamp(stream).epoch;
        let blocks = blocks.into_iter().map(|(address, slab)| Free { address, slab, epoch });
        self.lane(stream).state.lock().lists[class].extend(blocks);
    }

    #[cold]
    fn miss(&self, class: usize, len: u64, stream: Stream) -> Result<Free, PoolError> {
        let _inside = self.carving.enter();
        if let Some(free) = self.lane(stream).state.lock().lists[class].pop() {
            return Ok(free);
        }
        self.order.poll(POLL);
        for only_past in [true, false] {
            let found = self.steal(class, stream, only_past);
            if let Some(found) = found.or_else(|| self.take_aside(class, stream, only_past)) {
                return Ok(found);
            }
        }
        self.carve(class, len, stream)
    }

    /// Takes blocks from another stream's list: one for the caller, the others for its own list.
    fn steal(&self, class: usize, stream: Stream, only_past: bool) -> Option<Free> {
        for (key, victim) in self.lanes.iter().filter(|(key, _)| *key != stream.key()) {
            let past = |free: &Free| self.order.is_done(Stamp { lane: key, epoch: free.epoch });
            let batch = {
                let list = &mut victim.state.lock().lists[class];
                let from = if only_past {
                    // Freed in order, as long as one thread frees: the oldest ones are past.
                    list.sort_unstable_by_key(|free| core::cmp::Reverse(free.epoch));
                    list.partition_point(|free| !past(free))
                } else {
                    0
                };
                let from = from.max(list.len().saturating_sub(STEAL_BATCH));
                list.split_off(from)
            };
            let Some((&first, rest)) = batch.split_last() else { continue };
            let epoch = batch.iter().map(|free| free.epoch).max().unwrap_or(0);
            if self.order.order_after(stream, [Stamp { lane: key, epoch }]).is_err() {
                // Nothing has been ordered: the blocks go back as they were.
                victim.state.lock().lists[class].extend(batch);
                continue;
            }
            self.steals.fetch_add(batch.len() as u64, Ordering::Relaxed);
            self.put(stream, class, rest.iter().map(|free| (free.address, free.slab)));
            return Some(first);
        }
        None
    }

    /// Takes a block that several streams used last.
    fn take_aside(&self, class: usize, stream: Stream, only_past: bool) -> Option<Free> {
        let free_for = |aside: &Aside| aside.stamps.iter().all(|&s| self.order.is_free_for(stream, s));
        let found = {
            let mut aside = self.aside.lock();
            let at = aside.iter().position(|a| a.class == class && (!only_past || free_for(a)))?;
            aside.swap_remove(at)
        };
        if self.order.order_after(stream, found.stamps.iter().copied()).is_err() {
            self.aside.lock().push(found);
            return None;
        }
        self.steals.fetch_add(1, Ordering::Relaxed);
        Some(Free { address: found.address, slab: found.slab, epoch: 0 })
    }

    /// Asks the pool behind; if it has no room, once more without the slabs that nobody uses. The caller is inside.
    fn ask(&self, len: u64, align: u64, stream: Stream) -> Result<Block, PoolError> {
        match self.inner.allocate(len, align, stream) {
            Err(error) if lacks_memory(&error) && self.release_idle(Some(stream)) > 0 => {
                self.inner.allocate(len, align, stream)
            }
            answer => answer,
        }
    }

    fn carve(&self, class: usize, len: u64, stream: Stream) -> Result<Free, PoolError> {
        let (_, block_len) = class_of(len);
        let blocks = (self.config.slab_len / block_len).max(FEWEST);
        let block = self
            .ask(blocks * block_len, GRANULE, stream)
            .map_err(|error| PoolError { requested: len, ..error })?;
        if self.watch {
            self.order.device().note_freed(block.address, block.len, stream);
        }
        let base = block.address;
        let slab = {
            let mut slabs = self.slabs.lock();
            let number = slabs.next;
            slabs.next += 1;
            slabs.entries.insert(number, Slab { block, blocks, stream });
            number
        };
        // Lowest addresses last: they are taken first.
        self.put(stream, class, (1..blocks).rev().map(|i| (base + i * block_len, slab)));
        Ok(Free { address: base, slab, epoch: 0 })
    }

    /// Gives slabs that nobody uses back to the pool behind, in the order of `chosen` or of a stream that freed some of
    /// it; that stream waits (on the device) for the others. Returns the bytes. The caller is inside.
    fn release_idle(&self, chosen: Option<Stream>) -> u64 {
        if self.order.device().capturing() {
            return 0;
        }
        let mut found: HashMap<u64, (u64, Vec<Stamp>)> = HashMap::new();
        let mut note = |slab: u64, stamps: &mut dyn Iterator<Item = Stamp>| {
            let (count, all) = found.entry(slab).or_default();
            *count += 1;
            for stamp in stamps {
                match all.iter_mut().find(|known| known.lane == stamp.lane) {
                    Some(known) => known.epoch = known.epoch.max(stamp.epoch),
                    None => all.push(stamp),
                }
            }
        };
        // Taken out, so that nobody else gets a block of a slab that is on its way back.
        let mut lists: Vec<(&Lane, usize, Vec<Free>)> = Vec::new();
        for (key, lane) in self.lanes.iter() {
            let mut state = lane.state.lock();
            for (class, list) in state.lists.iter_mut().enumerate().filter(|(_, list)| !list.is_empty()) {
                let list = core::mem::take(list);
                list.iter()
                    .for_each(|f| note(f.slab, &mut [Stamp { lane: key, epoch: f.epoch }].into_iter()));
                lists.push((lane, class, list));
            }
        }
        let mut aside = core::mem::take(&mut *self.aside.lock());
        aside.iter().for_each(|a| note(a.slab, &mut a.stamps.iter().copied()));

        let mut bytes = 0;
        let mut gone = HashSet::new();
        for (number, (count, stamps)) in found {
            if self.slabs.lock().entries.get(&number).is_none_or(|slab| slab.blocks != count) {
                continue;
            }
            let Some(stream) = chosen.or_else(|| self.living(&stamps)) else { continue };
            if self.order.order_after(stream, stamps).is_err() {
                continue;
            }
            let Some(slab) = self.slabs.lock().entries.remove(&number) else { continue };
            bytes += slab.block.len;
            gone.insert(number);
            // SAFETY: the block came from there; all its parts are in our hands, and `stream` waits for whoever used them.
            unsafe { self.inner.deallocate(slab.block, stream, &[]) };
        }
        for (lane, class, mut list) in lists {
            list.retain(|free| !gone.contains(&free.slab));
            let mut state = lane.state.lock();
            let meanwhile = core::mem::replace(&mut state.lists[class], list);
            state.lists[class].extend(meanwhile);
        }
        aside.retain(|a| !gone.contains(&a.slab));
        self.aside.lock().append(&mut aside);
        bytes
    }

    /// A stream that is not retired, one of those that used the memory if possible.
    fn living(&self, stamps: &[Stamp]) -> Option<Stream> {
        let lives = |lane: &&Lane| !lane.retired.load(Ordering::Relaxed);
        let used = stamps.iter().filter_map(|stamp| self.lanes.get(stamp.lane)).find(lives);
        used.or_else(|| self.lanes.iter().map(|(_, lane)| lane).find(lives)).map(|lane| lane.stream)
    }

    #[cold]
    #[track_caller]
    fn pass(&self, len: u64, align: u64, stream: Stream) -> Result<Block, PoolError> {
        let mut block = match self.inner.allocate(len, align, stream) {
            Ok(block) => block,
            Err(error) if lacks_memory(&error) => {
                let _inside = self.carving.enter();
                if self.release_idle(Some(stream)) == 0 {
                    return Err(error);
                }
                self.inner.allocate(len, align, stream)?
            }
            Err(error) => return Err(error),
        };
        block.asked = len;
        if len <= self.config.largest {
            self.passed.lock().insert(block.address);
            self.passed_count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(block)
    }

    fn was_passed(&self, block: &Block) -> bool {
        if block.asked > self.config.largest {
            return true;
        }
        // Whoever has the block learnt of it after it was counted.
        let passed =
            self.passed_count.load(Ordering::Relaxed) > 0 && self.passed.lock().remove(&block.address);
        if passed {
            self.passed_count.fetch_sub(1, Ordering::Relaxed);
        }
        passed
    }
}

// SAFETY: a block is in one list, aside, or handed out, and blocks of a slab are disjoint parts of one block of the pool
// behind; what another stream freed is ordered by `order_after` before it is handed out; other blocks are passed on as they
// are.
unsafe impl<P: DevicePool, S: Streams + ?Sized> DevicePool for SizeClassPool<P, S> {
    #[inline]
    #[track_caller]
    fn allocate(&self, len: u64, align: u64, stream: Stream) -> Result<Block, PoolError> {
        let ours = len != 0 && len <= self.config.largest && align.is_power_of_two() && align <= GRANULE;
        if !ours || self.order.device().capturing() {
            return self.pass(len, align, stream);
        }
        let (class, block_len) = class_of(len);
        let lane = self.lane(stream);
        let mut state = lane.state.lock();
        let free = match state.lists[class].pop() {
            Some(free) => free,
            None => {
                drop(state);
                let free = self.miss(class, len, stream)?;
                state = lane.state.lock();
                free
            }
        };
        state.figures.taken += 1;
        state.figures.taken_bytes += block_len;
        state.figures.asked_bytes += len;
        drop(state);
        if self.watch {
            self.order.device().note_taken(free.address, block_len, stream);
        }
        Ok(Block { address: free.address, len: block_len, asked: len, key: free.slab })
    }

    #[inline]
    unsafe fn deallocate(&self, block: Block, stream: Stream, also_used_on: &[Stream]) {
        if self.was_passed(&block) {
            // SAFETY: it came from there; passed on by the caller.
            unsafe { self.inner.deallocate(block, stream, also_used_on) };
            return;
        }
        let shared = also_used_on.iter().any(|&other| other != stream);
        if self.watch && !shared {
            self.order.device().note_freed(block.address, block.len, stream);
        }
        let (class, _) = class_of(block.len);
        let stamp = self.order.stamp(stream);
        let (address, slab) = (block.address, block.key);
        {
            let mut state = self.lane(stream).state.lock();
            state.figures.given += 1;
            state.figures.given_bytes += block.len;
            state.figures.given_asked_bytes += block.asked;
            if !shared {
                state.lists[class].push(Free { address, slab, epoch: stamp.epoch });
            }
        }
        if shared {
            let others = also_used_on.iter().map(|&other| self.order.stamp(other));
            let stamps = core::iter::once(stamp).chain(others).collect();
            self.aside.lock().push(Aside { class, address, slab, stamps });
        }
    }

    fn retire_stream(&self, stream: Stream) {
        // A refusal leaves the epoch open; its blocks then wait until a close succeeds.
        let _ = self.order.retire(stream);
        self.lane(stream).retired.store(true, Ordering::Relaxed);
        self.inner.retire_stream(stream);
    }

    fn trim(&self) -> u64 {
        {
            let _inside = self.carving.enter();
            self.release_idle(None);
        }
        self.inner.trim()
    }

    fn stats(&self) -> PoolStats {
        let mut ours = Figures::default();
        for (_, lane) in self.lanes.iter() {
            let figures = lane.state.lock().figures;
            ours.taken += figures.taken;
            ours.taken_bytes += figures.taken_bytes;
            ours.asked_bytes += figures.asked_bytes;
            ours.given += figures.given;
            ours.given_bytes += figures.given_bytes;
            ours.given_asked_bytes += figures.given_asked_bytes;
        }
        let (mut count, mut bytes, mut asked) = (0, 0, 0);
        for slab in self.slabs.lock().entries.values() {
            count += 1;
            bytes += slab.block.len;
            asked += slab.block.asked;
        }
        let (mut stats, order) = (self.inner.stats(), self.order.stats());
        stats.live = (stats.live + ours.taken_bytes).saturating_sub(ours.given_bytes + bytes);
        stats.requested = (stats.requested + ours.asked_bytes).saturating_sub(ours.given_asked_bytes + asked);
        stats.live_blocks = (stats.live_blocks + ours.taken).saturating_sub(ours.given + count);
        stats.steals += self.steals.load(Ordering::Relaxed);
        stats.waits += order.waits;
        stats.events_recorded += order.records;
        stats
    }
}

impl<P: DevicePool, S: Streams + ?Sized> Drop for SizeClassPool<P, S> {
    fn drop(&mut self) {
        self.release_idle(None);
        // What is left has blocks that nobody gave back, or no stream to go back in the order of.
        let living = self.living(&[]);
        let mut stamps: Vec<Stamp> = self.aside.get_mut().iter().flat_map(|a| a.stamps.clone()).collect();
        for (key, lane) in self.lanes.iter() {
            let last = lane.state.lock().lists.iter().flatten().map(|free| free.epoch).max();
            stamps.extend(last.map(|epoch| Stamp { lane: key, epoch }));
        }
        let left: Vec<Slab> = self.slabs.get_mut().entries.drain().map(|(_, slab)| slab).collect();
        // If the device cannot say that the work is done, the memory is leaked.
        if left.is_empty() || stamps.into_iter().any(|stamp| self.order.synchronize(stamp).is_err()) {
            return;
        }
        for slab in left {
            // SAFETY: the block came from there; its parts may not be used once this pool is gone, and the work on those
            // that were given back is past.
            unsafe { self.inner.deallocate(slab.block, living.unwrap_or(slab.stream), &[]) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::class_of;

    #[test]
    fn classes_follow_each_other_and_round_by_a_fifth_at_most() {
        let mut last = (0, 256);
        for len in 1..=(1u64 << 20) {
            let (class, rounded) = class_of(len);
            assert!(rounded >= len && (rounded - len < 256 || (rounded - len) * 5 <= rounded), "{len}");
            assert!((class, rounded) == last || (class == last.0 + 1 && rounded > last.1), "{len}");
            assert_eq!(class_of(rounded), (class, rounded));
            last = (class, rounded);
        }
    }
}
