//! The walks over what heaps share.

use super::{Broken, VerifyError, VerifyReport, at_most, equal, holds};
use crate::arena::{Arena, MAX_ARENA_SEGMENTS};
use crate::bitmap;
use crate::domain::Domain;
use crate::heap::Heap;
use crate::large;
use crate::lists::Lists;
use crate::segment::{
    Entry, HEADER_SLICES, Kind, SEGMENT_BYTES, SEGMENT_SHIFT, SLICE_BYTES, SLICES, Segment, entry,
};
use crate::segment_map::{self, Place};
use crate::sharing::Sharing;
use crate::size_class::CLASSES;
use crate::slab::{PARKED, Slab};
use core::ptr;
use core::sync::atomic::Ordering;
use terrane_core::{Observer, PageSource};

/// Looks at something that another thread may be changing before it counts as broken: what one look may find by chance, this
/// many in a row do not.
const LOOKS: usize = 8;

/// What a quiet walk found in the arenas.
struct Found {
    /// By class.
    slabs: [u64; CLASSES],
    /// Blocks out of their slabs, by class.
    out: [u64; CLASSES],
    /// Owned slabs that say that they are in a queue.
    queued: u64,
    /// Slices in use whose entries say nothing: caches and records.
    silent_slices: u64,
    /// Slab metadata with the shelved bit.
    shelved_bits: u64,
    /// Bytes of huge spans.
    span_bytes: u64,
    /// Of these, bytes of live ones.
    live_span_bytes: u64,
    /// Spans that are not live.
    idle_spans: u64,
}

impl Default for Found {
    fn default() -> Self {
        Self {
            slabs: [0; CLASSES],
            out: [0; CLASSES],
            queued: 0,
            silent_slices: 0,
            shelved_bits: 0,
            span_bytes: 0,
            live_span_bytes: 0,
            idle_spans: 0,
        }
    }
}

/// What the heaps of a quiet domain say.
struct Heaps {
    report: VerifyReport,
    made: [u64; CLASSES],
    /// Wrapping: a heap may give back what another took.
    out: [u64; CLASSES],
    /// Bytes that lists of large blocks may hold that were out of reach.
    unseen_bytes: u64,
}

impl<S: PageSource, K: Sharing, O: Observer> Domain<S, K, O> {
    /// Checks what holds at every moment, whatever other threads do: arenas, segments, the map, free slices, tops of shelves,
    /// cached spans.
    ///
    /// # Errors
    /// The first promise that does not hold.
    pub fn verify_running(&self) -> Result<VerifyReport, VerifyError> {
        let mut report = VerifyReport::default();
        for (at, arena) in self.arenas.iter().enumerate().filter(|(_, arena)| !arena.base().is_null()) {
            self.arena(at, arena, &mut report)?;
            for segment in arena.sliced() {
                for index in HEADER_SLICES..SLICES {
                    free_slice(segment, index)?;
                }
            }
        }
        for shelf in self.shelves.iter().flatten() {
            let top = shelf.top();
            if top != 0 {
                holds(
                    Broken::ShelfLink,
                    Slab::by_number(top).addr(),
                    self.has_slab_metadata(Slab::by_number(top)),
                )?;
            }
        }
        for (number, segments) in self.huge_cache.waiting() {
            let address = (number as usize) << SEGMENT_SHIFT;
            holds(Broken::CachedSpan, address, self.has_segments(address, segments as usize))?;
        }
        Ok(report)
    }

    /// Checks everything: the heaps, each with its thread's lists if they are at hand, and that slices, slabs, blocks and
    /// bytes of heaps and domain add up.
    ///
    /// # Errors
    /// The first promise that does not hold.
    ///
    /// # Safety
    /// `heaps` gives all heaps of the domain, and no other thread uses the domain or one of them meanwhile.
    pub unsafe fn verify_quiet<'a, I>(&'a self, heaps: impl Fn() -> I) -> Result<VerifyReport, VerifyError>
    where
        I: Iterator<Item = (&'a Heap<S, K, O>, Option<&'a Lists>)>,
        S: 'a,
        K: 'a,
        O: 'a,
    {
        let running = self.verify_running()?;
        // SAFETY: the caller's promise.
        let from_heaps = unsafe { self.quiet_heaps(heaps())? };
        let mut report = from_heaps.report;
        report.add(&running);
        // What the heaps own is met again below.
        (report.owned_slabs, report.free_blocks, report.remote_blocks, report.out_blocks) = (0, 0, 0, 0);
        let mut found = Found::default();
        let mut segments = 0;
        for arena in self.arenas() {
            for segment in arena.sliced() {
                segments += 1;
                let exists = |name| heaps().any(|(heap, _)| heap.name() == name);
                // SAFETY: the caller's promise.
                unsafe { self.quiet_segment(segment, &mut found, &mut report, exists)? };
            }
            segments += self.quiet_spans(arena, &mut found, &mut report)?;
        }
        equal(Broken::SegmentCount, 0, segments, self.counters.segments.get())?;
        self.quiet_cached_spans(found.idle_spans, &mut report)?;
        equal(Broken::HugeLiveBytes, 0, found.live_span_bytes, self.counters.huge_live.get())?;
        equal(Broken::HugeCommittedBytes, 0, found.span_bytes, self.counters.huge_committed.get())?;
        self.quiet_shelves(found.shelved_bits, &mut report)?;
        equal(Broken::SlabUnqueued, 0, from_heaps.report.owned_slabs, found.queued)?;
        let silent = from_heaps.report.cached_large_bytes + self.counters.record_bytes.get();
        let found_silent = found.silent_slices * SLICE_BYTES as u64;
        at_most(Broken::SlicesLost, 0, silent + from_heaps.unseen_bytes, found_silent)?;
        at_most(Broken::SlicesLost, 0, found_silent, silent)?;
        equal(Broken::SliceBytes, 0, report.slice_bytes, self.counters.slices_in_use.get())?;
        for class in 0..CLASSES {
            equal(Broken::SlabsOfClass, class, from_heaps.made[class], found.slabs[class])?;
            equal(Broken::BlocksOfClass, class, from_heaps.out[class], found.out[class])?;
        }
        Ok(report)
    }

    /// # Safety
    /// As for [`verify_quiet`](Self::verify_quiet).
    unsafe fn quiet_heaps<'a, I>(&'a self, heaps: I) -> Result<Heaps, VerifyError>
    where
        I: Iterator<Item = (&'a Heap<S, K, O>, Option<&'a Lists>)>,
        S: 'a,
        K: 'a,
        O: 'a,
    {
        let mut sum =
            Heaps { report: VerifyReport::default(), made: [0; CLASSES], out: [0; CLASSES], unseen_bytes: 0 };
        for (heap, lists) in heaps {
            // SAFETY: the caller's promise.
            sum.report.add(&unsafe { heap.verify_with(lists)? });
            for (class, counters) in heap.counters().classes.iter().enumerate() {
                let (made, retired) = (counters.slabs_made.get(), counters.slabs_retired.get());
                sum.made[class] = sum.made[class].wrapping_add(made).wrapping_sub(retired);
                let (taken, returned) = (counters.taken.get(), counters.returned.get());
                sum.out[class] = sum.out[class].wrapping_add(taken).wrapping_sub(returned);
            }
            for (slab, chain) in heap.parts().batches.waiting() {
                // SAFETY: the batch was checked, so its slab has a class.
                let class = unsafe { entry((*slab).start()).class() };
                // Counted as returned, and not in the slab yet.
                class
                    .into_iter()
                    .for_each(|class| sum.out[class] = sum.out[class].wrapping_add(chain.count as u64));
            }
            if lists.is_none_or(|lists| lists.name() != Some(heap.name())) {
                sum.unseen_bytes += heap.parts().large.bytes().0 as u64;
            }
        }
        Ok(sum)
    }

    /// Every slice of a segment is free or in use by one thing.
    ///
    /// # Safety
    /// As for [`verify_quiet`](Self::verify_quiet).
    unsafe fn quiet_segment(
        &self,
        segment: &Segment,
        found: &mut Found,
        report: &mut VerifyReport,
        exists: impl Fn(u32) -> bool,
    ) -> Result<(), VerifyError> {
        for index in 0..SLICES {
            // SAFETY: slab metadata of a live segment is readable.
            found.shelved_bits += unsafe { (*segment.slab(index)).read_word().shelved } as u64;
        }
        let mut index = HEADER_SLICES;
        while index < SLICES {
            let start = segment.slice(index);
            // SAFETY: the slice lies behind the header of a live segment.
            let entry = unsafe { entry(start) };
            let slices = if bitmap::all_set(&segment.free, index, 1) {
                0
            } else if entry.class().is_some() {
                equal(Broken::SliceEntry, start.addr(), index as u64, entry.head() as u64)?;
                // SAFETY: the caller's promise.
                unsafe { self.quiet_slab(segment.slab(index), found, report, &exists)? }
            } else if entry.tag() == Entry::LARGE {
                let run = large::run_of(segment.slab(index));
                let is_inside = run.len >= 1 && run.len <= SLICES - index;
                holds(Broken::SliceEntry, start.addr(), is_inside)?;
                for inside in index + 1..index + run.len {
                    let at = segment.slice(inside);
                    // SAFETY: as above.
                    let tag = unsafe { crate::segment::entry(at) }.tag();
                    equal(Broken::SliceEntry, at.addr(), 0, tag as u64)?;
                    holds(Broken::SliceEntry, at.addr(), !bitmap::all_set(&segment.free, inside, 1))?;
                }
                report.large_blocks += 1;
                run.len
            } else {
                found.silent_slices += 1;
                1
            };
            report.slice_bytes += (slices * SLICE_BYTES) as u64;
            index += slices.max(1);
        }
        Ok(())
    }

    /// A slab is whole, and owned by a heap that exists, in its queue, or parked as parking leaves it; its slices.
    ///
    /// # Safety
    /// As for [`verify_quiet`](Self::verify_quiet).
    unsafe fn quiet_slab(
        &self,
        slab: *const Slab,
        found: &mut Found,
        report: &mut VerifyReport,
        exists: &impl Fn(u32) -> bool,
    ) -> Result<usize, VerifyError> {
        // SAFETY: slab metadata is readable, and nobody changes it.
        unsafe {
            let start = (*slab).start().addr();
            let owner = (*slab).read_word().owner;
            let is_somebody = owner == PARKED || exists(owner);
            equal(Broken::SlabOwner, start, is_somebody as u64 * owner as u64, owner as u64)?;
            holds(Broken::SlabOwner, start, owner != 0)?;
            let (local, word, _) = super::slab(slab, report)?;
            super::slab_entries(slab, &local, None)?;
            let has_free = local.free_count > 0 || local.virgin < local.capacity;
            if owner == PARKED {
                report.parked_slabs += 1;
                equal(Broken::OutAtPark, start, local.out as u64, word.out_at_park as u64)?;
                holds(Broken::ParkedEmpty, start, word.remote_count < local.out)?;
                let must_shelve = has_free || word.remote_count >= (local.capacity / 16).max(1);
                holds(Broken::ParkedUnshelved, start, word.shelved || !must_shelve)?;
            } else {
                report.owned_slabs += 1;
                found.queued += local.queued as u64;
                // With one thread a slab out of blocks waits in no queue.
                let may_be_in_none = !K::SHARED && !has_free;
                holds(Broken::SlabUnqueued, start, local.queued || may_be_in_none)?;
            }
            found.slabs[local.class as usize] += 1;
            found.out[local.class as usize] += (local.out - word.remote_count) as u64;
            Ok(local.slices as usize)
        }
    }

    /// The huge spans of an arena; their segments.
    fn quiet_spans(
        &self,
        arena: &Arena,
        found: &mut Found,
        report: &mut VerifyReport,
    ) -> Result<u64, VerifyError> {
        let (mut index, mut segments) = (0, 0);
        while index < arena.segments() {
            if bitmap::all_set(arena.free(), index, 1) || bitmap::all_set(arena.sliced_map(), index, 1) {
                index += 1;
                continue;
            }
            let address = arena.segment_start(index).addr();
            equal(Broken::SegmentMap, address, Place::Head as u64, segment_map::place(address) as u64)?;
            let segment = arena.segment(index);
            self.header(segment, index, Kind::Huge)?;
            let len = segment.span_segments.load(Ordering::Relaxed);
            let is_inside = len >= 1 && len <= arena.segments() - index;
            holds(Broken::SpanHeader, address, is_inside)?;
            for inside in index + 1..index + len {
                let at = arena.segment_start(inside).addr();
                equal(Broken::SegmentMap, at, Place::Body as u64, segment_map::place(at) as u64)?;
                let is_free = bitmap::all_set(arena.free(), inside, 1);
                holds(Broken::SpanHeader, at, !is_free)?;
            }
            let usable = segment.huge_committed();
            at_most(Broken::SpanHeader, address, segment.huge_room() as u64, usable as u64)?;
            found.span_bytes += usable as u64;
            if segment.huge_live.load(Ordering::Relaxed) == 1 {
                report.huge_blocks += 1;
                found.live_span_bytes += usable as u64;
            } else {
                found.idle_spans += 1;
            }
            segments += len as u64;
            index += len;
        }
        Ok(segments)
    }

    /// Every span of the cache is there once, and every span that is not live is in the cache.
    fn quiet_cached_spans(&self, idle: u64, report: &mut VerifyReport) -> Result<(), VerifyError> {
        for (at, (number, segments)) in self.huge_cache.waiting().enumerate() {
            let address = (number as usize) << SEGMENT_SHIFT;
            let span: *const Segment = ptr::with_exposed_provenance(address);
            // SAFETY: `verify_running` has seen that the segment is one of the domain, and a cached span has a header.
            let (kind, live, len) = unsafe {
                let live = (*span).huge_live.load(Ordering::Relaxed);
                ((*span).kind(), live, (*span).span_segments.load(Ordering::Relaxed))
            };
            holds(Broken::CachedSpan, address, kind == Kind::Huge && live == 0)?;
            equal(Broken::CachedSpan, address, len as u64, segments)?;
            let is_twice = self.huge_cache.waiting().take(at).any(|(other, _)| other == number);
            holds(Broken::CachedSpan, address, !is_twice)?;
            report.cached_spans += 1;
        }
        equal(Broken::SpanLost, 0, idle, report.cached_spans)
    }

    /// Shelves link every slab that has the bit, once.
    fn quiet_shelves(&self, bits: u64, report: &mut VerifyReport) -> Result<(), VerifyError> {
        for shelf in self.shelves.iter().flatten() {
            let mut number = shelf.top();
            while number != 0 {
                let slab = Slab::by_number(number);
                holds(Broken::ShelfLink, slab.addr(), self.has_slab_metadata(slab))?;
                // SAFETY: it is the metadata of a slice of the domain.
                let (shelved, next) =
                    unsafe { ((*slab).read_word().shelved, (*slab).shelf_next().load(Ordering::Relaxed)) };
                holds(Broken::ShelfLink, slab.addr(), shelved)?;
                report.shelved_slabs += 1;
                at_most(Broken::ShelfEndless, slab.addr(), bits, report.shelved_slabs)?;
                number = next;
            }
        }
        equal(Broken::ShelfLost, 0, bits, report.shelved_slabs)
    }

    /// The arena's shape, and the headers of its segments of slices.
    fn arena(&self, at: usize, arena: &Arena, report: &mut VerifyReport) -> Result<(), VerifyError> {
        let (base, segments) = (arena.base().addr(), arena.segments());
        holds(Broken::ArenaShape, base, base.is_multiple_of(SEGMENT_BYTES))?;
        holds(Broken::ArenaShape, base, segments >= 1 && segments <= MAX_ARENA_SEGMENTS)?;
        for index in (0..segments).filter(|&index| bitmap::all_set(arena.sliced_map(), index, 1)) {
            let address = base + index * SEGMENT_BYTES;
            holds(Broken::SlicedSegmentFree, address, !bitmap::all_set(arena.free(), index, 1))?;
            equal(Broken::SegmentMap, address, Place::Head as u64, segment_map::place(address) as u64)?;
            let segment = arena.segment(index);
            equal(Broken::SegmentHeader, address, at as u64, segment.arena as u64)?;
            self.header(segment, index, Kind::Slices)?;
            for slice in 0..HEADER_SLICES {
                let is_free = bitmap::all_set(&segment.free, slice, 1);
                holds(Broken::HeaderSliceFree, address, !is_free)?;
            }
            report.segments += 1;
        }
        report.arenas += 1;
        Ok(())
    }

    fn header(&self, segment: &Segment, index: usize, kind: Kind) -> Result<(), VerifyError> {
        let address = segment.start().addr();
        let domain = ptr::from_ref(self).addr();
        equal(Broken::SegmentHeader, address, domain as u64, segment.domain.addr() as u64)?;
        equal(Broken::SegmentHeader, address, index as u64, segment.index as u64)?;
        equal(Broken::SegmentHeader, address, kind as u64, segment.kind() as u64)
    }

    /// Whether the segments lie in an arena of the domain.
    fn has_segments(&self, address: usize, segments: usize) -> bool {
        self.arenas().any(|arena| {
            let offset = address.wrapping_sub(arena.base().addr()) / SEGMENT_BYTES;
            segments >= 1 && offset < arena.segments() && segments <= arena.segments() - offset
        })
    }

    /// Whether this is the metadata of a slice that a slab can begin with, in a segment of slices of the domain.
    fn has_slab_metadata(&self, slab: *const Slab) -> bool {
        let (segment, index) = crate::segment::position_of(slab);
        self.has_segments(segment.addr(), 1)
            && segment_map::place(segment.addr()) == Place::Head
            && (HEADER_SLICES..SLICES).contains(&index)
    }
}

/// A slice that is free has no entry.
fn free_slice(segment: &Segment, index: usize) -> Result<(), VerifyError> {
    let start = segment.slice(index);
    let mut tag = 0;
    for _ in 0..LOOKS {
        let before = bitmap::all_set(&segment.free, index, 1);
        // SAFETY: the slice lies behind the header of a live segment.
        tag = unsafe { entry(start) }.tag();
        if !before || tag == 0 || !bitmap::all_set(&segment.free, index, 1) {
            return Ok(());
        }
        core::hint::spin_loop();
    }
    equal(Broken::FreeSliceOccupied, start.addr(), 0, tag as u64)
}
