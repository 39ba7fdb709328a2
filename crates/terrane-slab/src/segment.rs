//! Segments: aligned pieces of an arena, found from any block by masking its address.
//!
//! Invariant: all metadata of a segment's slabs lies in its first [`HEADER_SLICES`] slices, out of line from the blocks,
//! and stays mapped and readable for as long as the arena exists, also while the segment is empty. A stale pointer to a
//! slab's metadata therefore always reads metadata.
//!
//! ```text
//!   0        4 KiB                516 KiB          580 KiB       640 KiB                      32 MiB
//!   | header | window of entries  | slab metadata  | arena maps* | slice 10 | slice 11 | …  511 |
//!                                                    * in the first segment of an arena
//! ```
//!
//! There is one *entry* (eight bytes: home heap, class) a slice, and a free must find it in few instructions. An
//! address has its slice number in bits 16..25. Bits 16..32, as one 32-bit shift gives them without a mask, are the slice
//! number and the low seven bits of the segment's own number; so the header keeps a window of 65 536 entries, of which a
//! segment uses the 512 that its own number selects (one 4 KiB page; the rest is address space that is never touched). The
//! shift saves an instruction on every free, and as a gift the entries of different segments fall into different cache sets.

use crate::size_class::CLASSES;
use crate::slab::{HeapId, Slab};
use core::ptr;
use terrane_core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// log2 of [`SLICE_BYTES`].
pub const SLICE_SHIFT: u32 = 16;
/// Bytes of a slice, the unit in which slabs and large blocks take memory from a segment.
pub const SLICE_BYTES: usize = 1 << SLICE_SHIFT;
/// Whether address space is plentiful. The model checker, which makes every word of a header one by one, gets the lengths of
/// 32-bit machines, or nearly.
pub(crate) const ROOMY: bool = cfg!(all(target_pointer_width = "64", not(loom)));
/// log2 of [`SEGMENT_BYTES`].
pub const SEGMENT_SHIFT: u32 = if ROOMY {
    25
} else if cfg!(loom) {
    // Two words of slices, so that runs can lie across them.
    23
} else {
    22
};
/// Bytes of a segment, and its alignment.
pub const SEGMENT_BYTES: usize = 1 << SEGMENT_SHIFT;
/// Slices of a segment, those of its header included.
pub const SLICES: usize = SEGMENT_BYTES / SLICE_BYTES;
/// Slices at the start of a segment that hold its header.
pub const HEADER_SLICES: usize = HEADER_END.div_ceil(SLICE_BYTES);
/// Slices of a segment that slabs and large blocks can have.
pub const USABLE_SLICES: usize = SLICES - HEADER_SLICES;

const WINDOW_START: usize = 4096;
const WINDOW_ENTRIES: usize = if ROOMY { 1 << (32 - SLICE_SHIFT) } else { SLICES };
const SLABS_START: usize = WINDOW_START + WINDOW_ENTRIES * size_of::<AtomicU64>();
/// End of the metadata that every segment has, and start of the maps that the first segment of an arena has.
pub(crate) const METADATA_END: usize = SLABS_START + SLICES * size_of::<Slab>();
const HEADER_END: usize = METADATA_END.next_multiple_of(4096) + crate::arena::MAPS_BYTES;
const WORDS: usize = SLICES / 64;

const _: () = assert!(SLABS_START.is_multiple_of(align_of::<Slab>()) && size_of::<Segment>() <= WINDOW_START);
const _: () =
    assert!(USABLE_SLICES * 16 >= SLICES * 13, "the header takes less than a fifth of the address space");

/// What a segment is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// Slabs and large blocks, by the slice.
    Slices = 1,
    /// The first segment of a span that holds one huge block.
    Huge = 2,
}

/// The header at the start of every segment.
#[derive(Debug)]
#[repr(C)]
pub struct Segment {
    /// The domain that the segment belongs to, type erased; never dereferenced through this field by readers that do
    /// not know its type.
    pub(crate) domain: *const (),
    /// A [`Kind`].
    kind: AtomicU32,
    /// NUMA node that the segment's memory comes from.
    pub(crate) node: u32,
    /// Which arena of the domain.
    pub(crate) arena: u32,
    /// Which segment of the arena.
    pub(crate) index: u32,
    /// Milliseconds at which the free slices that hold memory should be given back; 0 when there are none.
    pub(crate) purge_at: AtomicU64,
    /// For [`Kind::Huge`]: segments of the span.
    pub(crate) span_segments: AtomicUsize,
    /// For [`Kind::Huge`]: first byte of the block.
    pub(crate) huge_start: AtomicUsize,
    /// For [`Kind::Huge`]: bytes that are committed from where the block would begin without its colour.
    pub(crate) huge_bytes: AtomicUsize,
    /// For [`Kind::Huge`]: whether the block is live (handed out).
    pub(crate) huge_live: AtomicU32,
    /// For [`Kind::Huge`]: whether every byte of the block reads as zero.
    pub(crate) huge_zero: AtomicU32,
    /// For [`Kind::Huge`]: whether huge pages were asked for.
    pub(crate) huge_pages: AtomicU32,
    /// Bit set: the slice is free.
    pub(crate) free: [AtomicU64; WORDS],
    /// Bit set: the slice has been handed out since its memory was last given back, so it may hold anything.
    pub(crate) dirty: [AtomicU64; WORDS],
    /// Bit set: the slice was free and dirty at the last purge pass, and has not been handed out since.
    pub(crate) idle: [AtomicU64; WORDS],
}

/// What the entry of a slice says. Packed in 64 bits:
///
/// | bits | field | meaning |
/// |---|---|---|
/// | 0..32 | home | heap whose thread keeps frees of these blocks in its own lists; 0 none |
/// | 32..48 | head | slice number of the slab's first slice; for a large block how far behind the slice's start it begins |
/// | 48..64 | tag | 0 nothing here; 1 + size class of the slab; [`Entry::LARGE`] a large block starts here |
///
/// The home is a hint: it decides which list a freed block waits in, never who may touch a slab's metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry(u64);

impl Entry {
    /// Tag of a slice where a large block starts.
    pub const LARGE: u16 = CLASSES as u16 + 1;
    /// A slice that nothing occupies, or the inside of a large block.
    pub const NONE: Self = Self(0);

    const fn new(home: HeapId, head: usize, tag: u16) -> Self {
        Self(home as u64 | (head as u64) << 32 | (tag as u64) << 48)
    }

    /// The packed entry of the first slice of a live large block that begins `colour` bytes into it.
    #[inline(always)]
    pub(crate) const fn large(colour: usize) -> u64 {
        (Self::LARGE as u64) << 48 | (colour as u64) << 32
    }

    /// Whether a large block starts at `address`, in the slice that the entry is of.
    #[inline(always)]
    pub const fn is_large_at(self, address: usize) -> bool {
        (self.0 >> 32) as usize == ((Self::LARGE as usize) << 16) | (address % SLICE_BYTES)
    }

    /// The home heap, 0 if none.
    #[inline(always)]
    pub const fn home(self) -> HeapId {
        self.0 as u32
    }

    /// Slice number of the first slice of the slab.
    #[inline(always)]
    pub const fn head(self) -> usize {
        (self.0 >> 32) as u16 as usize
    }

    /// The tag: see the table above.
    #[inline(always)]
    pub const fn tag(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The size class of the slab in this slice, if there is one.
    #[inline(always)]
    pub const fn class(self) -> Option<usize> {
        if self.tag() == 0 || self.tag() == Self::LARGE { None } else { Some(self.tag() as usize - 1) }
    }
}

/// Offset from a segment's start of the entry of the slice that `address` lies in.
#[inline(always)]
const fn entry_offset(address: usize) -> usize {
    let slot =
        if ROOMY { (address as u32 >> SLICE_SHIFT) as usize } else { (address >> SLICE_SHIFT) % SLICES };
    WINDOW_START + slot * size_of::<AtomicU64>()
}

/// The entry word of the slice that `pointer` lies in.
///
/// # Safety
/// `pointer` lies in a live segment, behind its header.
#[inline(always)]
pub unsafe fn entry_word<'a>(pointer: *mut u8) -> &'a AtomicU64 {
    let segment = pointer.map_addr(|a| a & !(SEGMENT_BYTES - 1));
    // SAFETY: the window lies in the header of a live segment, which stays mapped.
    unsafe { &*segment.byte_add(entry_offset(pointer.addr())).cast() }
}

/// The entry of the slice that `pointer` lies in.
///
/// # Safety
/// As for [`entry_word`].
#[inline(always)]
pub unsafe fn entry(pointer: *mut u8) -> Entry {
    // SAFETY: the caller's promise is the same. Relaxed: an entry is a hint, or was written before the block that
    // the caller holds was handed out.
    Entry(unsafe { entry_word(pointer) }.load(Ordering::Relaxed))
}

/// The home heap of the slab that `pointer` lies in: one load.
///
/// # Safety
/// As for [`entry_word`].
#[inline(always)]
pub unsafe fn home(pointer: *mut u8) -> HeapId {
    let segment = pointer.map_addr(|a| a & !(SEGMENT_BYTES - 1));
    // On a little-endian machine the home is the first half of the entry; the half-word load is a hint like the rest.
    #[cfg(all(target_endian = "little", not(loom)))]
    // SAFETY: the window lies in the header of a live segment; entries are only accessed atomically.
    let home = unsafe {
        (*segment.byte_add(entry_offset(pointer.addr())).cast::<AtomicU32>()).load(Ordering::Relaxed)
    };
    #[cfg(any(not(target_endian = "little"), loom))]
    let home = {
        let _ = segment;
        // SAFETY: the caller's promise is the same.
        unsafe { entry(pointer) }.home()
    };
    home
}

impl Segment {
    /// The segment that `pointer` lies in.
    #[inline(always)]
    pub fn containing(pointer: *mut u8) -> *mut Self {
        pointer.map_addr(|a| a & !(SEGMENT_BYTES - 1)).cast()
    }

    /// Writes the header of a fresh segment at `start`, all of whose usable slices are free and clean.
    ///
    /// # Safety
    /// The segment's header slices are committed and read as zero, and nobody else uses the segment yet.
    pub(crate) unsafe fn init_slices(start: *mut u8, domain: *const (), node: u32, arena: u32, index: u32) {
        let words = || core::array::from_fn(|_| AtomicU64::new(0));
        let free = words();
        crate::bitmap::set::<crate::sharing::Local>(&free, HEADER_SLICES, USABLE_SLICES);
        let header = Self {
            domain,
            kind: AtomicU32::new(Kind::Slices as u32),
            node,
            arena,
            index,
            purge_at: AtomicU64::new(0),
            span_segments: AtomicUsize::new(1),
            huge_start: AtomicUsize::new(0),
            huge_bytes: AtomicUsize::new(0),
            huge_live: AtomicU32::new(0),
            huge_zero: AtomicU32::new(0),
            huge_pages: AtomicU32::new(0),
            free,
            dirty: words(),
            idle: words(),
        };
        // SAFETY: the header is committed and ours alone. Slab metadata and entries are all zero, which is their
        // empty state, so they need no writing and their pages stay untouched.
        unsafe {
            start.cast::<Self>().write(header);
            crate::zeroed::make_words(start.add(entry_offset(start.addr())), SLICES);
            crate::zeroed::make_slabs(start.add(SLABS_START), SLICES);
        }
    }

    /// Writes the header of the first segment of a span of `segments` for a huge block at `block`.
    ///
    /// # Safety
    /// As for [`init_slices`](Self::init_slices).
    pub(crate) unsafe fn init_huge(
        start: *mut u8,
        domain: *const (),
        node: u32,
        arena: u32,
        index: u32,
        segments: usize,
        block: usize,
    ) {
        // SAFETY: the same promise; a huge segment is a segment with no usable slice.
        unsafe {
            Self::init_slices(start, domain, node, arena, index);
            let header = &*start.cast::<Self>();
            header.kind.store(Kind::Huge as u32, Ordering::Relaxed);
            for word in &header.free {
                word.store(0, Ordering::Relaxed);
            }
            header.span_segments.store(segments, Ordering::Relaxed);
            header.huge_start.store(block, Ordering::Relaxed);
        }
    }

    /// What the segment is used for.
    pub fn kind(&self) -> Kind {
        if self.kind.load(Ordering::Relaxed) == Kind::Huge as u32 { Kind::Huge } else { Kind::Slices }
    }

    /// First byte of the segment.
    pub fn start(&self) -> *mut u8 {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// First byte of slice `index`.
    pub fn slice(&self, index: usize) -> *mut u8 {
        debug_assert!(index < SLICES);
        // SAFETY: slice numbers are below `SLICES`, so the result lies in the segment.
        unsafe { self.start().add(index * SLICE_BYTES) }
    }

    /// Offset of the slab metadata of slice `index` from the segment's start.
    pub(crate) const fn slab_offset(index: usize) -> usize {
        SLABS_START + index * size_of::<Slab>()
    }

    /// Slab metadata of slice `index`.
    pub fn slab(&self, index: usize) -> *mut Slab {
        debug_assert!(index < SLICES);
        // SAFETY: the metadata array lies in the header.
        unsafe { self.start().add(Self::slab_offset(index)).cast() }
    }

    /// Sets the entries of the `len` slices from `head` on.
    pub(crate) fn set_entries(&self, head: usize, len: usize, home: HeapId, tag: u16) {
        let value = if tag == 0 { Entry::NONE } else { Entry::new(home, head, tag) };
        for index in head..head + len {
            // SAFETY: the slice lies in this live segment, behind its header.
            unsafe { entry_word(self.slice(index)) }.store(value.0, Ordering::Relaxed);
        }
    }

    /// Whether the segment is the first of a span that holds a live huge block at `block`.
    pub fn is_live_huge(&self, block: *mut u8) -> bool {
        self.kind() == Kind::Huge
            && self.huge_live.load(Ordering::Relaxed) == 1
            && self.huge_start.load(Ordering::Relaxed) == block.addr()
    }

    /// Slices that are free.
    pub fn free_slices(&self) -> usize {
        self.free.iter().map(|w| w.load(Ordering::Relaxed).count_ones() as usize).sum()
    }

    /// Slices that may hold memory, whether free or in use.
    pub fn dirty_slices(&self) -> usize {
        self.dirty.iter().map(|w| w.load(Ordering::Relaxed).count_ones() as usize).sum()
    }
}

/// The slice number of the slab whose metadata is at `slab`, and its segment.
pub(crate) fn position_of(slab: *const Slab) -> (*mut Segment, usize) {
    let segment = Segment::containing(slab.cast_mut().cast());
    let index = (slab.addr() - segment.addr() - SLABS_START) / size_of::<Slab>();
    (segment, index)
}
