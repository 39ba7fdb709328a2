//! Domains: arenas, shelves and counters that a set of heaps shares.
//!
//! A process-wide allocator is one domain with a heap for every thread. A heap that stands alone has a domain of its own,
//! and destroying it gives every arena back at once.
//!
//! ```text
//!   heaps ── take_run ──▶ open segments ──▶ fresh segment ──▶ free segments of the arenas ──▶ a new arena ──▶ source
//!         ◀── give_run ── bits of the segment's slice map
//! ```
//!
//! Invariant: a run of slices belongs to the thread that took it until that thread gives it back. All steps are lock-free:
//! each is a claim in a bitmap; an arena is published by filling in a table slot that was claimed by one addition.

use crate::arena::{Arena, MAX_ARENA_SEGMENTS, MAX_ARENAS};
use crate::bitmap;
use crate::fault::{Fault, planted};
use crate::huge::HugeCache;
use crate::policy::Settings;
use crate::purge::{self, Passed};
use crate::segment::{HEADER_SLICES, METADATA_END, SEGMENT_BYTES, SLICE_BYTES, Segment, USABLE_SLICES};
use crate::segment_map;
use crate::sharing::Sharing;
use crate::shelf::Shelf;
use crate::size_class::CLASSES;
use crate::slab::Misuse;
use crate::stats::DomainCounters;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::Relaxed;
use terrane_core::sync::atomic::{AtomicU64, Ordering};
use terrane_core::{Event, Observer, PageSource, SourceError};

pub use crate::policy::Policy;

/// Shelves of one class: heaps are spread over them so that they seldom meet.
pub const SHARDS: usize = if cfg!(loom) { 1 } else { 8 };

/// Open segments that are looked into before the segment that a heap took from last.
const LOOKS: usize = 8;

/// Longest run that is placed as that of a slab.
const SLAB_RUN: usize = 16;

/// Slices that a heap has taken from a segment.
#[derive(Debug)]
pub struct Run {
    /// Header of the segment.
    pub(crate) segment: *const Segment,
    /// First slice.
    pub(crate) index: usize,
    /// Number of slices.
    pub(crate) len: usize,
    /// Whether all of it reads as zero.
    pub(crate) zero: bool,
}

/// What a set of heaps shares: see the [module](self).
#[derive(Debug)]
pub struct Domain<S, K, O = ()> {
    pub(crate) source: S,
    pub(crate) observer: O,
    pub(crate) policy: Policy,
    pub(crate) settings: Settings,
    pub(crate) arenas: [Arena; MAX_ARENAS],
    /// Slots of `arenas` that were claimed; those whose base is set are filled in.
    arenas_claimed: AtomicU64,
    pub(crate) shelves: [[Shelf; CLASSES]; SHARDS],
    pub(crate) huge_cache: HugeCache,
    next_heap: AtomicU64,
    /// Counters.
    pub counters: DomainCounters,
    sharing: PhantomData<K>,
}

// SAFETY: with `K = Shared` everything in a domain that can change is an atomic used by the protocols of this crate;
// raw memory is handed out to one thread at a time.
unsafe impl<S: Sync, O: Sync> Sync for Domain<S, crate::sharing::Shared, O> {}
// SAFETY: a domain is not tied to a thread; its arenas are its own.
unsafe impl<S: Send, K, O: Send> Send for Domain<S, K, O> {}

impl<S, K, O> Domain<S, K, O> {
    /// An empty domain over `source`. Nothing is reserved before the first allocation.
    #[cfg(not(loom))]
    pub const fn new(source: S, policy: Policy, observer: O) -> Self {
        let arenas = [const { Arena::empty() }; MAX_ARENAS];
        Self::of(source, policy, observer, arenas, [const { [const { Shelf::new() }; CLASSES] }; SHARDS])
    }

    /// An empty domain over `source`. Nothing is reserved before the first allocation.
    #[cfg(loom)]
    pub fn new(source: S, policy: Policy, observer: O) -> Self {
        use core::array::from_fn;
        let shelves = from_fn(|_| from_fn(|_| Shelf::new()));
        Self::of(source, policy, observer, from_fn(|_| Arena::empty()), shelves)
    }

    terrane_core::const_unless_loom! {
        fn of(
            source: S,
            policy: Policy,
            observer: O,
            arenas: [Arena; MAX_ARENAS],
            shelves: [[Shelf; CLASSES]; SHARDS]
        ) -> Self {
            Self {
                source,
                observer,
                policy,
                settings: Settings::new(&policy),
                arenas,
                arenas_claimed: AtomicU64::new(0),
                shelves,
                huge_cache: HugeCache::new(),
                next_heap: AtomicU64::new(0),
                counters: DomainCounters::new(),
                sharing: PhantomData,
            }
        }
    }

    /// The source that the domain's memory comes from.
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// The observer of its slow paths.
    pub const fn observer(&self) -> &O {
        &self.observer
    }

    /// The NUMA node that the calling thread runs on; 0 while all memory is alike.
    pub fn current_node(&self) -> u32 {
        if self.nodes() > 1 { (self.policy.node)() } else { 0 }
    }

    /// Now, in the milliseconds of the policy's clock.
    pub(crate) fn now(&self) -> u64 {
        (self.policy.clock)()
    }

    /// Reports misuse of the memory at `address`; does not return.
    pub fn misuse(&self, what: Misuse, address: usize) -> ! {
        (self.policy.on_misuse)(what, address)
    }
}

impl<S: PageSource, K: Sharing, O: Observer> Domain<S, K, O> {
    #[inline(always)]
    pub(crate) fn observe(&self, event: Event) {
        if O::ACTIVE {
            self.observer.observe(&event);
        }
    }

    /// Aborts, in the policy's way, if `segment` is not one of this domain.
    #[inline]
    pub(crate) fn check_owns(&self, segment: *const Segment, block: *mut u8) {
        // SAFETY: callers found the segment through the map, or through a live block.
        if !ptr::eq(unsafe { (*segment).domain }, ptr::from_ref(self).cast()) {
            self.misuse(Misuse::OtherHeap, block.addr());
        }
    }

    /// A name for a new heap of this domain; `None` when all 2²⁴ − 3 names were given out.
    pub fn name_heap(&self) -> Option<crate::slab::HeapId> {
        let name = K::fetch_add(&self.next_heap, 1, Ordering::Relaxed) + 1;
        (name < crate::slab::MAX_HEAP_ID as u64).then_some(name as u32)
    }

    /// Arenas that are filled in, those of `node` first.
    fn arenas_near(&self, node: u32) -> impl Iterator<Item = (usize, &Arena)> {
        let count = (self.arenas_claimed.load(Ordering::Relaxed) as usize).min(MAX_ARENAS);
        let all = move || self.arenas[..count].iter().enumerate().filter(|(_, a)| !a.base().is_null());
        let near = all().filter(move |(_, a)| a.node() == node);
        let far = all().filter(move |(_, a)| a.node() != node);
        near.chain(far)
    }

    /// All arenas that are filled in.
    pub fn arenas(&self) -> impl Iterator<Item = &Arena> {
        self.arenas_near(0).map(|(_, arena)| arena)
    }

    /// Takes `len` slices whose first is at a multiple of `align` slices, from one of the lowest segments or `hint` if they have
    /// them, else from memory of `node` if there is some.
    ///
    /// # Errors
    /// The source's own, when it has no more.
    pub(crate) fn take_run(
        &self,
        len: usize,
        align: usize,
        node: u32,
        hint: *const Segment,
    ) -> Result<Run, SourceError> {
        debug_assert!(len >= 1 && len <= USABLE_SLICES);
        // Memory of another node is taken only when this node's arenas cannot grow: see below.
        let near =
            || self.arenas_near(node).take_while(|(_, arena)| arena.node() == node || self.nodes() <= 1);
        let mut all = usize::MAX;
        if !hint.is_null() {
            // The lowest segments first, whose free slices hold memory already more often than those of the hint, the segment
            // that was fresh last. A few only: the hint bounds the search where many segments have no room.
            let mut looks = LOOKS;
            for (_, arena) in near() {
                if let Some(run) = self.take_open(arena, len, align, &mut looks)? {
                    return Ok(run);
                }
            }
        }
        // SAFETY: a hint is null or a segment of slices of this domain, whose header stays readable.
        if let Some(segment) = unsafe { hint.as_ref() }
            && let Some(run) = self.take_from(segment, len, align)?
        {
            return Ok(run);
        }
        for (_, arena) in near() {
            if let Some(run) = self.take_open(arena, len, align, &mut all)? {
                return Ok(run);
            }
        }
        match self.fresh_segment(node) {
            Ok(segment) => {
                if let Some(run) = self.take_from(segment, len, align)? {
                    return Ok(run);
                }
                // Others emptied the fresh segment before we took our share of it.
                self.take_run(len, align, node, ptr::null())
            }
            Err(error) => {
                for (_, arena) in self.arenas_near(node) {
                    if let Some(run) = self.take_open(arena, len, align, &mut all)? {
                        return Ok(run);
                    }
                }
                Err(error)
            }
        }
    }

    /// Takes a run from the lowest open segment that has one, looking into `looks` segments at most, which is counted down.
    fn take_open(
        &self,
        arena: &Arena,
        len: usize,
        align: usize,
        looks: &mut usize,
    ) -> Result<Option<Run>, SourceError> {
        let mut from = 0;
        while *looks > 0
            && let Some(index) = bitmap::next_set(arena.open(), from)
        {
            *looks -= 1;
            let segment = arena.segment(index);
            if let Some(run) = self.take_from(segment, len, align)? {
                return Ok(Some(run));
            }
            if bitmap::next_set(&segment.free, 0).is_none() {
                bitmap::clear::<K>(arena.open(), index, 1);
                // A slice that came back meanwhile must be found again.
                self.reopen(segment);
            }
            from = index + 1;
        }
        Ok(None)
    }

    /// Sets the bit that makes searches look into `segment`, if it has free slices and the bit is clear. Called by whoever has
    /// cleared the bit, and by whoever has set bits of free slices: each has written one of the two, and looks at the other
    /// behind a fence, so at least one of two who meet sees both.
    fn reopen(&self, segment: &Segment) {
        if !planted(Fault::OpenUnfenced) {
            K::fence();
        }
        let open = self.arenas[segment.arena as usize].open();
        if !bitmap::all_set(open, segment.index as usize, 1) && bitmap::next_set(&segment.free, 0).is_some() {
            bitmap::set::<K>(open, segment.index as usize, 1);
        }
    }

    /// Takes a run from `segment`.
    fn take_from(&self, segment: &Segment, len: usize, align: usize) -> Result<Option<Run>, SourceError> {
        // Slabs from the top, large blocks from the bottom, so that short runs do not cut the room for long ones; both first
        // from slices that hold memory already.
        let short = len <= SLAB_RUN && align == 1;
        let claimed = if short {
            bitmap::claim_high::<K>(&segment.free, &segment.dirty, len)
        } else {
            bitmap::claim_among::<K>(&segment.free, &segment.dirty, len, align)
        };
        let across = len > 1 && !(short && claimed.is_some());
        let claimed = claimed.or_else(|| bitmap::claim::<K>(&segment.free, len, align, 0));
        if across && !planted(Fault::PartUnopened) {
            // A run across words may have been held in part for a moment, and others may have seen no free slice.
            self.reopen(segment);
        }
        let Some(index) = claimed else { return Ok(None) };
        if let Err(error) = self.commit_slices(segment, index, len) {
            bitmap::release::<K>(&segment.free, index, len);
            self.reopen(segment);
            return Err(error);
        }
        let zero = bitmap::set::<K>(&segment.dirty, index, len);
        bitmap::clear::<K>(&segment.idle, index, len);
        self.count_in_use((len * SLICE_BYTES) as u64);
        Ok(Some(Run { segment, index, len, zero }))
    }

    /// Commits slices that the caller has claimed, and the rest of the pages that they share with others.
    fn commit_slices(&self, segment: &Segment, index: usize, len: usize) -> Result<(), SourceError> {
        let page = self.source.page_size();
        let first = (index * SLICE_BYTES) & !(page - 1);
        let end = ((index + len) * SLICE_BYTES).next_multiple_of(page);
        let start = NonNull::new(segment.start().wrapping_add(first)).expect("a segment has an address");
        // SAFETY: the pages lie in a live reservation of the source. Pages that were committed before keep what they hold.
        unsafe { self.source.commit(start, end - first) }.map(|_| ())
    }

    /// Grows a run in place by taking the `more` slices that follow it, if they are free.
    pub(crate) fn extend_run(&self, run: &Run, more: usize) -> bool {
        // SAFETY: a run lies in a live segment.
        let segment = unsafe { &*run.segment };
        let index = run.index + run.len;
        if index + more > crate::segment::SLICES {
            return false;
        }
        if !bitmap::claim_run::<K>(&segment.free, index, more) {
            // Part of the run may have been held for a moment, and others may have seen no free slice.
            self.reopen(segment);
            return false;
        }
        if self.commit_slices(segment, index, more).is_err() {
            bitmap::release::<K>(&segment.free, index, more);
            self.reopen(segment);
            return false;
        }
        bitmap::set::<K>(&segment.dirty, index, more);
        bitmap::clear::<K>(&segment.idle, index, more);
        self.count_in_use((more * SLICE_BYTES) as u64);
        true
    }

    /// Gives a run back.
    pub(crate) fn give_run(&self, run: Run) {
        // SAFETY: a run lies in a live segment.
        let segment = unsafe { &*run.segment };
        self.counters.slices_in_use.sub_shared::<K>((run.len * SLICE_BYTES) as u64);
        bitmap::release::<K>(&segment.free, run.index, run.len);
        self.reopen(segment);
        // Behind the fence of `reopen`: either a pass that is under way sees the slices, or this sees that it has begun.
        if purge::schedule(self.purge_delay(), segment, self.now()) {
            (self.policy.on_idle_memory)();
        }
        if self.purge_delay() == 0 && self.purge_segment(segment, 0, true).left {
            (self.policy.on_idle_memory)();
        }
    }

    pub(crate) fn count_in_use(&self, bytes: u64) {
        self.counters.slices_in_use.add_shared::<K>(bytes);
        self.note_peak();
    }

    pub(crate) fn note_peak(&self) {
        let in_use = self.counters.slices_in_use.get() + self.counters.huge_committed.get();
        self.counters.peak_in_use.raise_shared::<K>(in_use);
    }

    fn fresh_segment(&self, node: u32) -> Result<&Segment, SourceError> {
        self.yield_huge();
        let (arena_index, index) = self.claim_segments(1, 1, 0, node)?;
        let arena = &self.arenas[arena_index];
        let start = arena.segment_start(index);
        let header = NonNull::new(start).expect("a segment has an address");
        let header_bytes = (HEADER_SLICES * SLICE_BYTES).next_multiple_of(self.source.page_size());
        // SAFETY: the segment is claimed and lies in a live reservation of the source.
        if let Err(error) = unsafe { self.source.commit(header, header_bytes) } {
            bitmap::release::<K>(arena.free(), index, 1);
            return Err(error);
        }
        let soiled = bitmap::all_set(arena.soiled(), index, 1);
        if soiled {
            // SAFETY: the header is committed and ours.
            unsafe { start.write_bytes(0, METADATA_END) };
        }
        let domain = ptr::from_ref(self).cast();
        // SAFETY: the header is committed, reads as zero, and the segment is claimed.
        unsafe { Segment::init_slices(start, domain, arena.node(), arena_index as u32, index as u32) };
        let segment = arena.segment(index);
        if soiled {
            bitmap::set::<K>(&segment.dirty, HEADER_SLICES, USABLE_SLICES);
        }
        segment_map::insert_head(start.expose_provenance());
        self.counters.segments.add_shared::<K>(1);
        bitmap::set::<K>(arena.sliced_map(), index, 1);
        bitmap::set::<K>(arena.open(), index, 1);
        Ok(segment)
    }

    /// Claims `len` neighbouring segments so that the address of the segment `skip` behind the first is a multiple of
    /// `align` segments; which arena, and the first segment.
    pub(crate) fn claim_segments(
        &self,
        len: usize,
        align: usize,
        skip: usize,
        node: u32,
    ) -> Result<(usize, usize), SourceError> {
        let claim = |arena: &Arena| {
            let number = arena.base().addr() / SEGMENT_BYTES;
            bitmap::claim::<K>(arena.free(), len, align, (number + skip) % align)
        };
        let strict = self.nodes() > 1;
        for (at, arena) in self.arenas_near(node) {
            if strict && arena.node() != node {
                break;
            }
            if let Some(index) = claim(arena) {
                return Ok((at, index));
            }
        }
        let mut last = SourceError::OutOfMemory { requested: (len * SEGMENT_BYTES) as u64 };
        // A source that is short of address space may still have a smaller arena.
        let need = len + if align > 1 { align } else { 0 };
        let mut segments =
            self.policy.growth.segments(self.arenas_claimed.load(Ordering::Relaxed) as usize).max(need);
        while segments >= need && segments <= MAX_ARENA_SEGMENTS {
            match self.grow(segments, node) {
                Ok(at) => {
                    if let Some(index) = claim(&self.arenas[at]) {
                        return Ok((at, index));
                    }
                    // Others emptied the fresh arena before we took our share of it: make another.
                }
                Err(error) => {
                    last = error;
                    if segments == need {
                        break;
                    }
                    segments = (segments / 2).max(need);
                }
            }
        }
        for (at, arena) in self.arenas_near(node) {
            if let Some(index) = claim(arena) {
                return Ok((at, index));
            }
        }
        Err(last)
    }

    fn grow(&self, segments: usize, node: u32) -> Result<usize, SourceError> {
        let full = SourceError::Limit { requested: (segments * SEGMENT_BYTES) as u64, available: 0 };
        if self.arenas_claimed.load(Ordering::Relaxed) >= MAX_ARENAS as u64 {
            return Err(full);
        }
        let extent = Arena::reserve(&self.source, segments)?;
        if self.nodes() > 1 {
            let start = NonNull::new(extent.as_ptr()).expect("an extent has an address");
            // SAFETY: the extent was just reserved.
            unsafe { self.prefer(start, segments * SEGMENT_BYTES, node) };
        }
        // All that can fail comes before a slot of the table is claimed: slots never come back.
        if let Err(error) = Arena::prepare(&self.source, &extent) {
            // SAFETY: the extent was just reserved and nobody uses it. What cannot be released stays reserved.
            let _ = unsafe { self.source.release(extent) };
            return Err(error);
        }
        // Relaxed: the arena's base, stored last, is what publishes it; the count only bounds the search for bases.
        let at = K::fetch_add(&self.arenas_claimed, 1, Ordering::Relaxed) as usize;
        if at >= MAX_ARENAS {
            // SAFETY: as above.
            let _ = unsafe { self.source.release(extent) };
            return Err(full);
        }
        let bytes = extent.len();
        self.arenas[at].publish::<S, K>(&self.source, extent, node);
        self.counters.arenas.add_shared::<K>(1);
        self.counters.reserved.add_shared::<K>(bytes);
        self.observe(Event::Map { bytes: bytes as usize });
        Ok(at)
    }

    /// Memory for good, for records that must outlive every heap: at least `bytes` zeroed bytes at a multiple of the slice
    /// length, never given back before the domain is destroyed.
    ///
    /// # Errors
    /// The source's own.
    pub fn take_record(&self, bytes: usize) -> Result<NonNull<u8>, SourceError> {
        let run = self.take_run(bytes.div_ceil(SLICE_BYTES), 1, self.current_node(), ptr::null())?;
        self.counters.record_bytes.add_shared::<K>((run.len * SLICE_BYTES) as u64);
        // SAFETY: a run lies in a live segment, and is ours.
        unsafe {
            let start = (*run.segment).slice(run.index);
            if !run.zero {
                start.write_bytes(0, bytes);
            }
            Ok(NonNull::new(start).expect("a slice has an address"))
        }
    }

    fn purge_segment(&self, segment: &Segment, now: u64, all: bool) -> Passed {
        let passed = purge::pass::<S, K>(&self.source, &self.purge_policy(), segment, now, all);
        if passed.held && !planted(Fault::PurgeUnopened) {
            // While the pass held them, a search may have seen no free slice.
            self.reopen(segment);
        }
        let bytes = passed.bytes;
        if bytes > 0 {
            self.counters.purged.add_shared::<K>(bytes as u64);
            self.counters.purges.add_shared::<K>(1);
            self.observe(Event::Purge { bytes });
        }
        passed
    }

    /// Whether freed memory waits to be given back, as of some moment during the call. Linear in the number of segments.
    pub fn has_idle_memory(&self) -> bool {
        let aging = |segment: &Segment| segment.purge_at.load(Relaxed) != 0;
        !self.huge_cache.is_empty() || self.arenas().any(|arena| arena.sliced().any(aging))
    }

    /// Gives memory back that has been free for long enough at time `now`, or, with `all`, all free memory; bytes given
    /// back. Linear in the number of segments.
    pub fn purge(&self, now: u64, all: bool) -> usize {
        let (mut bytes, mut left) = (self.purge_huge(now, all), false);
        for arena in self.arenas() {
            for segment in arena.sliced() {
                let passed = self.purge_segment(segment, now, all);
                bytes += passed.bytes;
                left |= passed.left;
            }
        }
        if left {
            // Who looked for idle memory while a pass was under way may have seen none.
            (self.policy.on_idle_memory)();
        }
        bytes
    }

    /// Gives every arena back to the source. Memory of a source that refuses stays reserved.
    ///
    /// # Safety
    /// No block of the domain is used any more, and no heap over it.
    pub unsafe fn destroy(&mut self) {
        for at in 0..MAX_ARENAS {
            let (base, segments) = (self.arenas[at].base(), self.arenas[at].segments());
            if let Some(extent) = self.arenas[at].take() {
                segment_map::remove(base.addr(), segments);
                let bytes = extent.len();
                // SAFETY: nothing uses the arena any more.
                if unsafe { self.source.release(extent) }.is_ok() {
                    self.observe(Event::Unmap { bytes: bytes as usize });
                }
            }
        }
    }
}
