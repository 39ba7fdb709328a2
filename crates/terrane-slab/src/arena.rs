//! Arenas: large ranges of address space, reserved once and cut into segments.
//!
//! Invariant: an arena is never given back while its domain lives, so segment headers stay readable. A segment is free
//! (its bit in `free` is set), or it belongs to whoever cleared the bit. A segment that has once held slabs stays a segment
//! of slices, so that stale pointers to slab metadata never read a program's data.
//!
//! The bit in `open` says that a segment of slices probably has free slices: a hint for the search, set whenever slices
//! come back, cleared by a search that finds none.

use crate::bitmap;
use crate::fault::{Fault, order};
use crate::segment::{HEADER_SLICES, METADATA_END, ROOMY, SEGMENT_BYTES, SLICE_BYTES, Segment};
use crate::sharing::Sharing;
use crate::zeroed;
use core::ptr::{self, NonNull};
use core::slice;
use terrane_core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use terrane_core::{Extent, PageSource, SourceError};

/// Most segments that one arena can have.
pub const MAX_ARENA_SEGMENTS: usize = 64 * WORDS;
/// Most arenas that one domain can have.
pub const MAX_ARENAS: usize = if cfg!(loom) { 4 } else { 64 };

const WORDS: usize = if ROOMY { 512 } else { 16 };

/// Where the four maps of an arena lie: in the slack behind the metadata of its first segment.
const MAPS_START: usize = METADATA_END.next_multiple_of(4096);
const MAP_BYTES: usize = WORDS * size_of::<AtomicU64>();
/// Bytes of all four maps.
pub(crate) const MAPS_BYTES: usize = 4 * MAP_BYTES;

const _: () = assert!(MAPS_START + MAPS_BYTES <= HEADER_SLICES * SLICE_BYTES);

/// How large the next arena is: `initial << min(arenas / batch, max_shift)` segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Growth {
    /// Segments of the first arenas.
    pub initial: usize,
    /// Arenas after which the size doubles.
    pub batch: usize,
    /// Most doublings.
    pub max_shift: u32,
}

impl Growth {
    /// 1 GiB at first, doubled every four arenas up to 64 GiB; on 32-bit machines always 16 MiB.
    pub const DEFAULT: Self = if ROOMY {
        Self { initial: 32, batch: 4, max_shift: 6 }
    } else {
        Self { initial: 4, batch: 4, max_shift: 0 }
    };

    /// One segment at a time: for small heaps of their own.
    pub const SMALL: Self = Self { initial: 1, batch: 1, max_shift: 5 };

    /// Segments of the arena that follows `arenas` others.
    pub const fn segments(&self, arenas: usize) -> usize {
        let shift = arenas / if self.batch == 0 { 1 } else { self.batch };
        let shift = if shift < self.max_shift as usize { shift } else { self.max_shift as usize };
        let segments = self.initial << shift;
        if segments == 0 {
            1
        } else if segments > MAX_ARENA_SEGMENTS {
            MAX_ARENA_SEGMENTS
        } else {
            segments
        }
    }
}

/// A reserved range of segments. All zero until it is published.
#[derive(Debug)]
pub struct Arena {
    base: AtomicPtr<u8>,
    segments: AtomicUsize,
    node: AtomicU32,
    cookie: AtomicU64,
}

impl Arena {
    terrane_core::const_unless_loom! {
        pub(crate) fn empty() -> Self {
            Self {
                base: AtomicPtr::new(ptr::null_mut()),
                segments: AtomicUsize::new(0),
                node: AtomicU32::new(0),
                cookie: AtomicU64::new(0),
            }
        }
    }

    /// Reserves the address space of an arena of `segments` segments.
    ///
    /// # Errors
    /// The source's own.
    pub(crate) fn reserve<S: PageSource>(source: &S, segments: usize) -> Result<Extent, SourceError> {
        source.reserve(segments * SEGMENT_BYTES, SEGMENT_BYTES)
    }

    /// Commits the maps that an arena of this extent will have, all zero.
    ///
    /// # Errors
    /// The source's own.
    pub(crate) fn prepare<S: PageSource>(source: &S, extent: &Extent) -> Result<(), SourceError> {
        let base = extent.as_ptr();
        // SAFETY: the maps lie in the first segment of the extent, which nobody else knows yet.
        unsafe {
            // The maps lie in one piece of whole pages, whatever their length.
            let page = source.page_size();
            let (first, end) = (MAPS_START & !(page - 1), (MAPS_START + MAPS_BYTES).next_multiple_of(page));
            let start = NonNull::new(base.wrapping_add(first)).expect("an extent has an address");
            source.commit(start, end - first)?;
            if !source.geometry().zeroed {
                base.wrapping_add(MAPS_START).write_bytes(0, MAPS_BYTES);
            }
        }
        Ok(())
    }

    /// Fills an empty arena in with a prepared extent and lets others find it.
    pub(crate) fn publish<S: PageSource, K: Sharing>(&self, source: &S, extent: Extent, node: u32) {
        let base = extent.as_ptr();
        let maps = base.wrapping_add(MAPS_START);
        let zeroed = source.geometry().zeroed;
        let (_, len, cookie) = extent.into_raw();
        let segments = len as usize / SEGMENT_BYTES;
        for map in 0..4 {
            // SAFETY: the maps are committed, read as zero, and nobody else knows them yet.
            unsafe { zeroed::make_words(maps.add(map * MAP_BYTES), segments.div_ceil(64)) };
        }
        self.segments.store(segments, Ordering::Relaxed);
        self.node.store(node, Ordering::Relaxed);
        self.cookie.store(cookie, Ordering::Relaxed);
        bitmap::set::<K>(self.map_at(base, 0), 0, segments);
        if !zeroed {
            bitmap::set::<K>(self.map_at(base, 3), 0, segments);
        }
        // Release: whoever sees the base sees the rest.
        self.base.store(base, order(Fault::ArenaRelaxed, Ordering::Release));
    }

    fn map_at(&self, base: *mut u8, map: usize) -> &[AtomicU64] {
        let start = base.wrapping_add(MAPS_START + map * MAP_BYTES).cast();
        // SAFETY: the maps are committed before the arena is published, and stay so; zero is a valid state.
        unsafe { slice::from_raw_parts(start, self.segments().div_ceil(64)) }
    }

    /// Bit set: the segment is free.
    pub(crate) fn free(&self) -> &[AtomicU64] {
        self.map_at(self.base(), 0)
    }

    /// Bit set: the segment has slices, and probably free ones.
    pub(crate) fn open(&self) -> &[AtomicU64] {
        self.map_at(self.base(), 1)
    }

    /// Bit set: the segment has been made a segment of slices and stays one.
    pub(crate) fn sliced_map(&self) -> &[AtomicU64] {
        self.map_at(self.base(), 2)
    }

    /// Bit set: the segment's memory may not read as zero although nobody uses it.
    pub(crate) fn soiled(&self) -> &[AtomicU64] {
        self.map_at(self.base(), 3)
    }

    /// The extent that was published, to give back to the source. The arena is empty then.
    pub(crate) fn take(&mut self) -> Option<Extent> {
        let base = self.base.load(Ordering::Relaxed);
        if base.is_null() {
            return None;
        }
        self.base.store(ptr::null_mut(), Ordering::Relaxed);
        let len = (self.segments.load(Ordering::Relaxed) * SEGMENT_BYTES) as u64;
        // SAFETY: these are the parts of the extent that was published here, and nobody else takes it.
        Some(unsafe {
            Extent::from_raw(base.expose_provenance() as u64, len, self.cookie.load(Ordering::Relaxed))
        })
    }

    /// First byte, null while the arena is empty.
    #[inline]
    pub fn base(&self) -> *mut u8 {
        self.base.load(Ordering::Acquire)
    }

    /// NUMA node of the arena's memory.
    pub fn node(&self) -> u32 {
        self.node.load(Ordering::Relaxed)
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.segments.load(Ordering::Relaxed)
    }

    /// First byte of segment `index`.
    pub(crate) fn segment_start(&self, index: usize) -> *mut u8 {
        debug_assert!(index < self.segments());
        // SAFETY: the segment lies in the arena's reservation.
        unsafe { self.base().add(index * SEGMENT_BYTES) }
    }

    /// Header of segment `index`, which must have been made.
    pub(crate) fn segment(&self, index: usize) -> &Segment {
        // SAFETY: callers name segments whose bit in `open` or `sliced` was set after the header was written.
        unsafe { &*self.segment_start(index).cast::<Segment>() }
    }

    /// Segments of slices, in ascending order.
    pub(crate) fn sliced(&self) -> impl Iterator<Item = &Segment> {
        let mut from = 0;
        core::iter::from_fn(move || {
            let index = bitmap::next_set(self.sliced_map(), from)?;
            from = index + 1;
            Some(self.segment(index))
        })
    }
}
