//! Huge blocks: spans of whole segments, one block each, kept in a cache that decays by time and by bytes.
//!
//! Invariant: the header in the first segment of a span describes the whole span; the block starts behind the header, at a
//! multiple of 2 MiB (so that page tables can be moved whole) and its colour (see `colour.rs`), or, when its alignment is a
//! segment or more, at the start of the span's second segment. The span is live, in the cache, or free in its arena;
//! `huge_live` says which of the first two, and changes hands by one compare-exchange.
//!
//! The cache is an array of words. A word packs all that a search needs, so that looking for a span reads no header that
//! another thread might be giving back:
//!
//! | bits | field |
//! |---|---|
//! | 0..22 | number of the first segment in the address space, 0 if the slot is empty |
//! | 22..42 | segments of the span |
//! | 42..64 | when it was put there, in units of 64 ms, wrapping |
//!
//! Put: empty → span (release). Take and decay: span → empty (acquire). Each is one compare-exchange, so a span leaves the
//! cache once.

use crate::bitmap;
use crate::colour;
use crate::domain::Domain;
use crate::fault::{Fault, order};
use crate::large::Place;
use crate::segment::{
    HEADER_SLICES, Kind, METADATA_END, ROOMY, SEGMENT_BYTES, SEGMENT_SHIFT, SLICE_BYTES, Segment,
};
use crate::segment_map;
use crate::sharing::Sharing;
use core::ptr::{self, NonNull};
use terrane_core::sync::atomic::{AtomicU64, Ordering};
use terrane_core::{Contents, Decommit, Observer, PageSource, SourceError};

/// Slots of the cache.
const SLOTS: usize = if cfg!(loom) { 2 } else { 16 };
/// Offset of a block from the start of its span, if its alignment asks for no more.
const BLOCK_OFFSET: usize = if ROOMY { 4 << 20 } else { 1 << 20 };
/// Bytes of a transparent huge page.
const HUGE_PAGE: usize = 2 << 20;
/// Largest block length that is tried at all.
pub const MAX_HUGE: usize = crate::arena::MAX_ARENA_SEGMENTS * SEGMENT_BYTES - BLOCK_OFFSET;

const _: () = assert!(BLOCK_OFFSET >= HEADER_SLICES * SLICE_BYTES);

/// Freed spans that wait for reuse.
#[derive(Debug)]
pub struct HugeCache {
    slots: [AtomicU64; SLOTS],
}

impl HugeCache {
    /// An empty cache.
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Self {
        Self { slots: [const { AtomicU64::new(0) }; SLOTS] }
    }

    /// An empty cache.
    #[cfg(loom)]
    #[expect(clippy::new_without_default, reason = "the production constructor is const")]
    pub fn new() -> Self {
        Self { slots: core::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// The spans that wait: segment number and length in segments.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (u64, u64)> {
        let words = self.slots.iter().map(|slot| slot.load(Ordering::Acquire));
        words.filter(|&word| word != 0).map(|word| (number_of(word), segments_of(word)))
    }

    /// Puts the span at segment number `number` there; whether a slot was empty.
    pub fn put<K: Sharing>(&self, number: u64, segments: u64, now: u64) -> bool {
        let word = number | segments << 22 | ((now >> 6) << 42);
        self.slots.iter().any(|slot| {
            slot.load(Ordering::Relaxed) == 0
                && K::compare_exchange(
                    slot,
                    0,
                    word,
                    order(Fault::PutRelaxed, Ordering::Release),
                    Ordering::Relaxed,
                )
                .is_ok()
        })
    }

    /// Takes the smallest span of `least..=most` segments for which `fits` holds; its segment number.
    pub fn take<K: Sharing>(&self, least: u64, most: u64, fits: impl Fn(u64) -> bool) -> Option<u64> {
        loop {
            let best = self
                .slots
                .iter()
                .map(|slot| (slot, slot.load(Ordering::Relaxed)))
                .filter(|&(_, word)| {
                    word != 0 && (least..=most).contains(&segments_of(word)) && fits(number_of(word))
                })
                .min_by_key(|&(_, word)| segments_of(word));
            let (slot, word) = best?;
            // Acquire: the header as it was when the span was put here.
            let acquire = order(Fault::TakeRelaxed, Ordering::Acquire);
            if K::compare_exchange(slot, word, 0, acquire, Ordering::Relaxed).is_ok() {
                return Some(number_of(word));
            }
        }
    }

    /// Whether no span waits, as of some moment during the call.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.iter().all(|slot| slot.load(Ordering::Relaxed) == 0)
    }

    /// Takes any span that has waited for `delay` milliseconds at time `now`; its segment number.
    pub fn take_old<K: Sharing>(&self, now: u64, delay: u64) -> Option<u64> {
        self.slots.iter().find_map(|slot| {
            let word = slot.load(Ordering::Relaxed);
            let age = ((now >> 6).wrapping_sub(word >> 42) & ((1 << 22) - 1)) << 6;
            (word != 0
                && age >= delay
                && K::compare_exchange(slot, word, 0, Ordering::Acquire, Ordering::Relaxed).is_ok())
            .then(|| number_of(word))
        })
    }
}

fn number_of(word: u64) -> u64 {
    word & ((1 << 22) - 1)
}

fn segments_of(word: u64) -> u64 {
    word >> 22 & ((1 << 20) - 1)
}

fn segment_at<'a>(number: u64) -> &'a Segment {
    let start: *const Segment = ptr::with_exposed_provenance((number as usize) << SEGMENT_SHIFT);
    // SAFETY: numbers come from the cache, whose spans have headers; the arena's provenance was exposed.
    unsafe { &*start }
}

fn whole_pages(bytes: usize, page: usize) -> usize {
    bytes.next_multiple_of(page)
}

impl Segment {
    pub(crate) fn huge_block(&self) -> *mut u8 {
        let offset = self.huge_start.load(Ordering::Relaxed) - self.start().addr();
        // SAFETY: the block lies in the span that starts here.
        unsafe { self.start().add(offset) }
    }

    /// Where the block would begin without its colour: from there on its memory is counted.
    pub(crate) fn huge_base(&self) -> *mut u8 {
        colour::strip(self.huge_block())
    }

    fn huge_colour(&self) -> usize {
        self.huge_start.load(Ordering::Relaxed) % SLICE_BYTES
    }

    /// Bytes from the base to the end of the span.
    pub(crate) fn huge_room(&self) -> usize {
        let span = self.span_segments.load(Ordering::Relaxed) * SEGMENT_BYTES;
        span - (self.huge_base().addr() - self.start().addr())
    }

    /// Bytes from the base that may hold memory when `bytes` of it are committed: the huge page behind the last
    /// of them came whole, and what reaches beyond would stay if only the committed part were given back.
    fn huge_reach(&self, bytes: usize) -> usize {
        bytes.next_multiple_of(HUGE_PAGE).min(self.huge_room())
    }

    /// Bytes that are committed, from the base.
    pub(crate) fn huge_committed(&self) -> usize {
        self.huge_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the block: what the program may use.
    pub(crate) fn huge_usable(&self) -> usize {
        self.huge_committed() - self.huge_colour()
    }
}

impl<S: PageSource, K: Sharing, O: Observer> Domain<S, K, O> {
    /// A block of `bytes` at a multiple of `align`, in this `place`, and whether it reads as zero. `spare` more bytes of address
    /// space are kept behind it, for growth. A block that will be `dense` is backed by huge pages, if the policy has them.
    ///
    /// # Errors
    /// The source's own, or [`SourceError::Limit`] for blocks above [`MAX_HUGE`].
    pub(crate) fn huge_alloc(
        &self,
        bytes: usize,
        align: usize,
        place: Place,
        spare: usize,
        dense: bool,
        node: u32,
    ) -> Result<(NonNull<u8>, bool), SourceError> {
        let reach = place.reach(bytes);
        if reach > MAX_HUGE {
            return Err(SourceError::Limit { requested: bytes as u64, available: MAX_HUGE as u64 });
        }
        let offset = if align >= SEGMENT_BYTES { SEGMENT_BYTES } else { BLOCK_OFFSET.max(align) };
        let segments = (offset + reach).div_ceil(SEGMENT_BYTES);
        if spare == 0
            && let Place::Anywhere(..) = place
            && let Some(cached) = self.huge_reuse(bytes, align, offset, segments, node)
        {
            return Ok((cached, false));
        }
        let spare_segments =
            (offset + reach + spare).div_ceil(SEGMENT_BYTES).min(crate::arena::MAX_ARENA_SEGMENTS);
        let (align_segments, skip) = if align >= SEGMENT_BYTES { (align / SEGMENT_BYTES, 1) } else { (1, 0) };
        let mut claimed = spare_segments;
        let at = match self.claim_segments(claimed, align_segments, skip, node) {
            Ok(at) => at,
            Err(error) if claimed == segments => return Err(error),
            Err(_) => {
                claimed = segments;
                self.claim_segments(claimed, align_segments, skip, node)?
            }
        };
        let (arena_index, index) = at;
        let arena = &self.arenas[arena_index];
        let start = arena.segment_start(index);
        // SAFETY: the offset lies within the first or at the start of the second segment of the span.
        let base = unsafe { start.add(offset) };
        let colour = place.colour(base);
        let page = self.source.page_size();
        let committed = whole_pages(bytes + colour, page);
        let header_bytes = whole_pages(METADATA_END, page);
        let pointer = |p| NonNull::new(p).expect("a segment has an address");
        // The whole header is made readable, though only its first page is written: a free of an address whose length it does
        // not know reads the entry there before it knows that the segment is a span's.
        // SAFETY: the span is claimed and lies in a live reservation of the source.
        let done = unsafe {
            self.source.commit(pointer(start), header_bytes).and_then(|_| {
                self.source.commit(pointer(base), committed).inspect_err(|_| {
                    // The header is given back as well; if that fails it stays committed, which harms nobody.
                    let _ = self.source.decommit(pointer(start), METADATA_END & !(page - 1), Decommit::Now);
                })
            })
        };
        if let Err(error) = done {
            bitmap::release::<K>(arena.free(), index, claimed);
            return Err(error);
        }
        let soiled = (index..index + claimed).any(|i| bitmap::all_set(arena.soiled(), i, 1));
        if soiled {
            // SAFETY: the header pages are committed and ours.
            unsafe { start.write_bytes(0, METADATA_END) };
        }
        let domain = ptr::from_ref(self).cast();
        // SAFETY: the header is committed, reads as zero, and the span is claimed.
        let (segment, block) = unsafe {
            let block = base.add(colour);
            let (node, at) = (arena.node(), block.expose_provenance());
            Segment::init_huge(start, domain, node, arena_index as u32, index as u32, claimed, at);
            (&*start.cast::<Segment>(), block)
        };
        segment.huge_bytes.store(committed, Ordering::Relaxed);
        segment.huge_live.store(1, Ordering::Relaxed);
        segment.huge_zero.store(!soiled as u32, Ordering::Relaxed);
        segment_map::insert_head(start.expose_provenance());
        if claimed > 1 {
            segment_map::insert_body(start.addr() + SEGMENT_BYTES, claimed - 1);
        }
        self.counters.segments.add_shared::<K>(claimed as u64);
        self.counters.huge_committed.add_shared::<K>(committed as u64);
        self.count_huge_alloc(committed, false);
        self.note_peak();
        if dense {
            self.advise_dense(segment);
        }
        Ok((pointer(block), !soiled))
    }

    fn count_huge_alloc(&self, bytes: usize, cached: bool) {
        self.counters.huge_allocated.add_shared::<K>(1);
        self.counters.huge_cached.add_shared::<K>(cached as u64);
        self.counters.huge_live.add_shared::<K>(bytes as u64);
    }

    /// A span of the cache that serves the request without being more than half again as long.
    fn huge_reuse(
        &self,
        bytes: usize,
        align: usize,
        offset: usize,
        segments: usize,
        node: u32,
    ) -> Option<NonNull<u8>> {
        let most = segments + segments / 2 + 1;
        let number = self.huge_cache.take::<K>(segments as u64, most as u64, |number| {
            (((number as usize) << SEGMENT_SHIFT) + offset).is_multiple_of(align)
                && self.is_near_number(number, node)
        })?;
        let segment = segment_at(number);
        let base = segment.huge_base();
        // Behind the start of its second segment a block would be looked for in a header that is not there: a span that begins
        // there keeps doing so, without a colour.
        let colour =
            if base.addr().is_multiple_of(SEGMENT_BYTES) { 0 } else { colour::of(base, bytes, align) };
        let fits = base.addr().is_multiple_of(align)
            && segment.huge_room() >= bytes + colour
            && self.huge_commit(segment, bytes + colour).is_ok();
        if !fits {
            self.huge_release(segment);
            return None;
        }
        segment.huge_start.store(base.addr() + colour, Ordering::Relaxed);
        segment.huge_live.store(1, Ordering::Relaxed);
        segment.huge_zero.store(0, Ordering::Relaxed);
        self.count_huge_alloc(segment.huge_committed(), true);
        NonNull::new(segment.huge_block())
    }

    /// Commits at least `bytes` from the base.
    fn huge_commit(&self, segment: &Segment, bytes: usize) -> Result<(), SourceError> {
        let have = segment.huge_committed();
        let want = whole_pages(bytes, self.source.page_size());
        if want > have {
            // SAFETY: the block's room lies in the span, which is the caller's.
            unsafe {
                let start = NonNull::new(segment.huge_base().add(have)).expect("a block has an address");
                self.source.commit(start, want - have)?;
            }
            segment.huge_bytes.store(want, Ordering::Relaxed);
            self.counters.huge_committed.add_shared::<K>((want - have) as u64);
            self.note_peak();
        }
        Ok(())
    }

    /// Frees a huge block; `false` if the span is not live.
    pub(crate) fn huge_free(&self, segment: &Segment) -> bool {
        debug_assert_eq!(segment.kind(), Kind::Huge);
        let freed = if K::SHARED {
            segment.huge_live.compare_exchange(1, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        } else {
            let live = segment.huge_live.load(Ordering::Relaxed) == 1;
            segment.huge_live.store(0, Ordering::Relaxed);
            live
        };
        if !freed {
            return false;
        }
        let bytes = segment.huge_committed();
        self.counters.huge_freed.add_shared::<K>(1);
        self.counters.huge_live.sub_shared::<K>(bytes as u64);
        let policy = self.purge_policy();
        let idle = self.counters.huge_committed.get().saturating_sub(self.counters.huge_live.get());
        let now = self.now();
        let number = (segment.start().addr() >> SEGMENT_SHIFT) as u64;
        let segments = segment.span_segments.load(Ordering::Relaxed) as u64;
        let keep = policy.delay_ms > 0 && idle <= policy.huge_cache_bytes as u64;
        if keep && self.huge_cache.put::<K>(number, segments, now) {
            (self.policy.on_idle_memory)();
        } else {
            self.huge_release(segment);
        }
        true
    }

    /// Gives a span that is neither live nor cached back to its arena, and its memory to the system.
    fn huge_release(&self, segment: &Segment) {
        let start = segment.start();
        let base = segment.huge_base();
        let bytes = segment.huge_committed();
        let reach = segment.huge_reach(bytes);
        let segments = segment.span_segments.load(Ordering::Relaxed);
        let (arena, index) = (&self.arenas[segment.arena as usize], segment.index as usize);
        // Whole pages below the end of the metadata: the maps of an arena may begin there, and share a page with it. What is
        // left of the metadata was never written in a span.
        let header_bytes = METADATA_END & !(self.source.page_size() - 1);
        segment_map::remove(start.addr(), segments);
        self.forget_dense(segment);
        let pointer = |p| NonNull::new(p).expect("a segment has an address");
        // SAFETY: the span is ours alone, and its contents matter to nobody.
        let zero = unsafe {
            let head = self.source.decommit(pointer(start), header_bytes, Decommit::Now);
            let body = self.source.decommit(pointer(base), reach, Decommit::Now);
            head == Ok(Contents::Zero) && body == Ok(Contents::Zero)
        };
        if zero {
            bitmap::clear::<K>(arena.soiled(), index, segments);
        } else {
            bitmap::set::<K>(arena.soiled(), index, segments);
        }
        self.counters.huge_committed.sub_shared::<K>(bytes as u64);
        self.counters.segments.sub_shared::<K>(segments as u64);
        self.counters.purged.add_shared::<K>(bytes as u64);
        self.counters.purges.add_shared::<K>(1);
        self.observe(terrane_core::Event::Purge { bytes });
        bitmap::release::<K>(arena.free(), index, segments);
    }

    /// Gives cached spans back that have waited for the purge delay, or all of them; bytes given back.
    pub(crate) fn purge_huge(&self, now: u64, all: bool) -> usize {
        match self.purge_delay() {
            _ if all => self.release_cached(now, 0, usize::MAX),
            crate::purge::PurgePolicy::NEVER => 0,
            delay => self.release_cached(now, delay, usize::MAX),
        }
    }

    /// Gives cached spans back that have waited for `delay` milliseconds, until that makes `wanted` bytes; bytes given back.
    fn release_cached(&self, now: u64, delay: u64, wanted: usize) -> usize {
        let mut bytes = 0;
        while bytes < wanted
            && let Some(number) = self.huge_cache.take_old::<K>(now, delay)
        {
            let segment = segment_at(number);
            bytes += segment.huge_committed();
            self.huge_release(segment);
        }
        bytes
    }

    /// Makes room in the budget of a program whose small blocks need another segment: as much as that goes back of what huge
    /// blocks have left, however young.
    pub(crate) fn yield_huge(&self) {
        if self.purge_delay() != crate::purge::PurgePolicy::NEVER {
            self.release_cached(self.now(), 0, SEGMENT_BYTES);
        }
    }

    /// Makes a live block at least `bytes` long where it stands; whether that was possible.
    pub(crate) fn huge_grow(&self, segment: &Segment, bytes: usize) -> bool {
        let before = segment.huge_committed();
        let reach = bytes + segment.huge_colour();
        if segment.huge_room() < reach {
            let more = (reach - segment.huge_room()).div_ceil(SEGMENT_BYTES);
            let have = segment.span_segments.load(Ordering::Relaxed);
            let (arena, next) = (&self.arenas[segment.arena as usize], segment.index as usize + have);
            if next + more > arena.segments() || !bitmap::claim_run::<K>(arena.free(), next, more) {
                return false;
            }
            segment_map::insert_body(segment.start().addr() + have * SEGMENT_BYTES, more);
            segment.span_segments.store(have + more, Ordering::Relaxed);
            self.counters.segments.add_shared::<K>(more as u64);
        }
        if self.huge_commit(segment, reach).is_err() {
            return false;
        }
        segment.huge_zero.store(0, Ordering::Relaxed);
        self.counters.huge_live.add_shared::<K>((segment.huge_committed() - before) as u64);
        self.counters.grown_in_place.add_shared::<K>(1);
        self.advise_dense(segment);
        true
    }

    /// Frees a live block whose pages were moved away.
    pub(crate) fn huge_moved(&self, segment: &Segment) {
        let bytes = segment.huge_committed() as u64;
        segment.huge_live.store(0, Ordering::Relaxed);
        self.counters.huge_freed.add_shared::<K>(1);
        self.counters.huge_live.sub_shared::<K>(bytes);
        self.huge_release(segment);
    }

    /// Gives the tail of a live block back, so that at least `bytes` stay.
    pub(crate) fn huge_shrink(&self, segment: &Segment, bytes: usize) {
        let have = segment.huge_committed();
        let want = whole_pages(bytes.max(1) + segment.huge_colour(), self.source.page_size());
        if want >= have {
            return;
        }
        // SAFETY: the tail lies in the block, and the program has given it up.
        unsafe {
            let tail = NonNull::new(segment.huge_base().add(want)).expect("a block has an address");
            if self.source.decommit(tail, segment.huge_reach(have) - want, Decommit::Now).is_err() {
                return;
            }
        }
        segment.huge_bytes.store(want, Ordering::Relaxed);
        self.counters.huge_live.sub_shared::<K>((have - want) as u64);
        self.counters.huge_committed.sub_shared::<K>((have - want) as u64);
    }

    /// Asks for huge pages behind a block that is expected to be filled, if the policy has them: one that grew, because it was
    /// filled before, or one that was not asked to be zero, because big sparse tables are.
    pub(crate) fn advise_dense(&self, segment: &Segment) {
        let (start, bytes) = (segment.huge_base(), segment.huge_room() & !(HUGE_PAGE - 1));
        let known = segment.huge_pages.load(Ordering::Relaxed) as usize * HUGE_PAGE;
        if self.huge_pages() && bytes > known && start.addr().is_multiple_of(HUGE_PAGE) {
            let first = NonNull::new(start).expect("a block has an address");
            // SAFETY: the range lies in a live span. The advice is a hint: without it pages are only smaller.
            if unsafe { self.source.advise_huge(first, bytes, true) }.is_ok() {
                segment.huge_pages.store((bytes / HUGE_PAGE) as u32, Ordering::Relaxed);
            }
        }
    }

    /// Takes the advice back, before the memory goes to other uses.
    fn forget_dense(&self, segment: &Segment) {
        let bytes = segment.huge_pages.load(Ordering::Relaxed) as usize * HUGE_PAGE;
        if bytes > 0 {
            let first = NonNull::new(segment.huge_base()).expect("a block has an address");
            // SAFETY: the range lies in a span that is ours. If the advice stays, pages are larger than they need be.
            let _ = unsafe { self.source.advise_huge(first, bytes, false) };
        }
    }
}
