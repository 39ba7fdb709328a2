//! Verifying: a walk over a heap and its domain that checks what the tiers promise each other, and says where it does not hold.
//!
//! Invariant: a walk changes nothing, allocates nothing, and follows a link only after it has checked where it leads, so that
//! a heap that a stray write has spoilt is reported, not crashed into.
//!
//! | walk | who else may run | checks |
//! |---|---|---|
//! | [`Heap::verify`](crate::Heap::verify) | anybody | all that the calling thread owns: lists, what is aside, batches, queues, every owned slab with its free and remote list, the cache of large blocks |
//! | [`Domain::verify_running`](crate::Domain::verify_running) | anybody | what no step of any protocol breaks even for a moment: arenas, headers, maps, tops of shelves, cached spans |
//! | [`Domain::verify_quiet`](crate::Domain::verify_quiet) | nobody | everything: each slice is free, or in one slab, large block, cache or record; parked slabs, shelves, spans; all sums |
//!
//! A block that is in a list twice makes the list a circle, and two lists that share a block share all that follows. So a
//! list that ends where its count says holds no block twice, and a bitmap of a slab's blocks shows what two lists share.

mod domain;
mod heap;
#[cfg(test)]
mod tests;

use crate::segment::{HEADER_SLICES, SEGMENT_BYTES, SLICE_BYTES, Segment};
use crate::segment_map::{self, Place};
use crate::size_class::{CLASSES, TABLE};
use crate::slab::{Block, LocalPart, Slab, WordParts};
use core::fmt;

/// A promise that does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Broken {
    /// Arena: it does not begin at a segment, or its length is none that an arena can have.
    ArenaShape,
    /// Arena: a segment that has slices counts as free.
    SlicedSegmentFree,
    /// Segment: the header names another domain, arena or place than it lies in.
    SegmentHeader,
    /// Segment: the map of the process does not know it.
    SegmentMap,
    /// Segment: a slice of the header counts as free.
    HeaderSliceFree,
    /// Segment: a slice is free, and its entry says that something is there.
    FreeSliceOccupied,
    /// Segment: a slice is in use by nothing: no slab, large block, cache or record.
    SlicesLost,
    /// Segment: a slice of a slab or large block has the entry of something else.
    SliceEntry,
    /// Slab: the class, the blocks or the slices are not those of the table.
    SlabShape,
    /// Slab: blocks out and free do not add up to the blocks ever handed out.
    SlabCounts,
    /// Slab: a link leads to no block of the slab that was ever handed out.
    BlockOutside,
    /// Slab: the free list is not as long as its count.
    FreeListLength,
    /// Slab: the remote list is longer than blocks are out, or not as long as its count.
    RemoteListLength,
    /// Slab: a block is in two lists.
    BlockTwice,
    /// Slab: more blocks wait in a thread's list than are out.
    ListedNotOut,
    /// Slab: the owner is nobody that exists.
    SlabOwner,
    /// Slab: it is parked with free blocks, on no shelf.
    ParkedUnshelved,
    /// Slab: it was parked with another number of blocks out than it has.
    OutAtPark,
    /// Slab: it is parked, and every block that was out came back.
    ParkedEmpty,
    /// Queue: a neighbour does not link back, or the bin is not the one that the slab says.
    QueueLink,
    /// Queue: the number of slabs is not that of its bins.
    QueueLength,
    /// Queue: a bin that is empty has its bit set, or the other way round.
    QueueHint,
    /// Queue: a slab that the heap owns is in none, or the other way round.
    SlabUnqueued,
    /// List: a block is of another class than its list, or of none.
    ListClass,
    /// List: a thread's list has no end.
    ListEndless,
    /// Batch: its blocks are not as many as it counts, or the last is another.
    BatchChain,
    /// Shelf: what is linked was never a slab of the domain, or its bit is not set.
    ShelfLink,
    /// Shelf: it links more slabs than have the bit.
    ShelfEndless,
    /// Shelf: slabs with the bit are on no shelf.
    ShelfLost,
    /// Large cache: a block is live, of another length, or the list is not as long as its count.
    LargeCache,
    /// Large cache: the bytes are not those of its blocks.
    LargeCacheBytes,
    /// Huge: a span's header does not fit its place.
    SpanHeader,
    /// Huge: a cached span is live, of another length, or not one of the domain.
    CachedSpan,
    /// Huge: a span is neither live nor cached.
    SpanLost,
    /// Sum: bytes of slices in use.
    SliceBytes,
    /// Sum: segments in use.
    SegmentCount,
    /// Sum: bytes of live huge blocks.
    HugeLiveBytes,
    /// Sum: bytes of huge blocks that hold memory.
    HugeCommittedBytes,
    /// Sum: slabs made, less those retired, of a class.
    SlabsOfClass,
    /// Sum: blocks of a class that are out of their slabs.
    BlocksOfClass,
}

impl Broken {
    /// One line that names the promise.
    pub const fn message(self) -> &'static str {
        match self {
            Self::ArenaShape => "arena: place or length that no arena has",
            Self::SlicedSegmentFree => "arena: a segment with slices counts as free",
            Self::SegmentHeader => "segment: the header names another place",
            Self::SegmentMap => "segment: not in the process's map",
            Self::HeaderSliceFree => "segment: a slice of the header counts as free",
            Self::FreeSliceOccupied => "segment: a free slice has an entry",
            Self::SlicesLost => "segment: slices in use by nothing",
            Self::SliceEntry => "segment: entry of something else within a slab or large block",
            Self::SlabShape => "slab: class, blocks or slices are not those of the table",
            Self::SlabCounts => "slab: blocks out and free do not add up",
            Self::BlockOutside => "slab: a link leads to no block that was handed out",
            Self::FreeListLength => "slab: length of the free list",
            Self::RemoteListLength => "slab: length of the remote list",
            Self::BlockTwice => "slab: a block is in two lists",
            Self::ListedNotOut => "slab: more blocks in a thread's list than are out",
            Self::SlabOwner => "slab: owned by nobody that exists",
            Self::ParkedUnshelved => "slab: parked with free blocks, on no shelf",
            Self::OutAtPark => "slab: blocks out when it was parked",
            Self::ParkedEmpty => "slab: parked with no block out",
            Self::QueueLink => "queue: links of neighbours",
            Self::QueueLength => "queue: number of slabs",
            Self::QueueHint => "queue: bits of bins",
            Self::SlabUnqueued => "queue: slabs that the heap owns",
            Self::ListClass => "list: a block of another class",
            Self::ListEndless => "list: no end",
            Self::BatchChain => "batch: blocks that it links",
            Self::ShelfLink => "shelf: a link to something that is on no shelf",
            Self::ShelfEndless => "shelf: more slabs than have the bit",
            Self::ShelfLost => "shelf: fewer slabs than have the bit",
            Self::LargeCache => "large cache: a block that should not be there, or the count",
            Self::LargeCacheBytes => "large cache: bytes",
            Self::SpanHeader => "huge: the span's header does not fit its place",
            Self::CachedSpan => "huge: a cached span is live or of another length",
            Self::SpanLost => "huge: a span neither live nor cached",
            Self::SliceBytes => "sum: bytes of slices in use",
            Self::SegmentCount => "sum: segments in use",
            Self::HugeLiveBytes => "sum: bytes of live huge blocks",
            Self::HugeCommittedBytes => "sum: committed bytes of huge blocks",
            Self::SlabsOfClass => "sum: slabs of a class",
            Self::BlocksOfClass => "sum: blocks of a class that are out",
        }
    }
}

/// The first promise that a walk found broken, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerifyError {
    /// What.
    pub what: Broken,
    /// Where: a slab's first byte, a segment, a block; for a sum the class, or 0.
    pub address: usize,
    /// The number, length or address that should be there.
    pub expected: u64,
    /// What is there.
    pub found: u64,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, address, expected, found } = *self;
        write!(f, "{} at {address:#x}: expected {expected:#x}, found {found:#x}", what.message())
    }
}

impl core::error::Error for VerifyError {}

/// What a walk saw, everything in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Heaps walked.
    pub heaps: u64,
    /// Arenas.
    pub arenas: u64,
    /// Segments of slices.
    pub segments: u64,
    /// Slabs that heaps own.
    pub owned_slabs: u64,
    /// Slabs that nobody owns.
    pub parked_slabs: u64,
    /// Slabs linked on shelves, those that were reused meanwhile included.
    pub shelved_slabs: u64,
    /// Blocks in the free lists of the slabs walked.
    pub free_blocks: u64,
    /// Blocks in their remote lists.
    pub remote_blocks: u64,
    /// Blocks in threads' lists, and aside for them.
    pub listed_blocks: u64,
    /// Blocks in batches on their way to slabs of others.
    pub batched_blocks: u64,
    /// Blocks that the program holds, or that wait in lists that the walk did not see.
    pub out_blocks: u64,
    /// Live large blocks.
    pub large_blocks: u64,
    /// Large blocks in threads' lists.
    pub cached_large_blocks: u64,
    /// Their bytes.
    pub cached_large_bytes: u64,
    /// Live huge blocks.
    pub huge_blocks: u64,
    /// Huge spans in the cache.
    pub cached_spans: u64,
    /// Slices in use by slabs, large blocks, caches and records, in bytes.
    pub slice_bytes: u64,
}

impl VerifyReport {
    /// Adds what another walk saw.
    pub fn add(&mut self, other: &Self) {
        let Self { heaps, arenas, segments, owned_slabs, parked_slabs, shelved_slabs, .. } = *other;
        self.heaps += heaps;
        self.arenas += arenas;
        self.segments += segments;
        self.owned_slabs += owned_slabs;
        self.parked_slabs += parked_slabs;
        self.shelved_slabs += shelved_slabs;
        self.free_blocks += other.free_blocks;
        self.remote_blocks += other.remote_blocks;
        self.listed_blocks += other.listed_blocks;
        self.batched_blocks += other.batched_blocks;
        self.out_blocks += other.out_blocks;
        self.large_blocks += other.large_blocks;
        self.cached_large_blocks += other.cached_large_blocks;
        self.cached_large_bytes += other.cached_large_bytes;
        self.huge_blocks += other.huge_blocks;
        self.cached_spans += other.cached_spans;
        self.slice_bytes += other.slice_bytes;
    }

    /// Things looked at one by one: slabs, blocks in lists, large and huge blocks.
    pub const fn looked_at(&self) -> u64 {
        self.owned_slabs
            + self.parked_slabs
            + self.shelved_slabs
            + self.free_blocks
            + self.remote_blocks
            + self.listed_blocks
            + self.batched_blocks
            + self.large_blocks
            + self.cached_large_blocks
            + self.huge_blocks
            + self.cached_spans
    }
}

/// `Ok` if the two are equal.
fn equal(what: Broken, address: usize, expected: u64, found: u64) -> Result<(), VerifyError> {
    if expected == found { Ok(()) } else { Err(VerifyError { what, address, expected, found }) }
}

/// `Ok` if `found` is not above `most`.
fn at_most(what: Broken, address: usize, most: u64, found: u64) -> Result<(), VerifyError> {
    if found <= most { Ok(()) } else { Err(VerifyError { what, address, expected: most, found }) }
}

/// `Ok` if `holds`.
fn holds(what: Broken, address: usize, holds: bool) -> Result<(), VerifyError> {
    equal(what, address, 1, holds as u64)
}

/// Most blocks that any slab has.
const MOST_BLOCKS: usize = {
    let (mut class, mut most) = (0, 0);
    while class < CLASSES {
        if TABLE[class].blocks > most {
            most = TABLE[class].blocks;
        }
        class += 1;
    }
    most as usize
};

/// The blocks of one slab that were met on a walk.
struct Met {
    bits: [u64; MOST_BLOCKS.div_ceil(64)],
}

impl Met {
    const fn none() -> Self {
        Self { bits: [0; MOST_BLOCKS.div_ceil(64)] }
    }

    /// Notes that `block` was met, which must be one of the first `virgin` blocks of the slab at `start`.
    fn meet(&mut self, start: usize, bytes: u32, virgin: u32, block: *mut Block) -> Result<(), VerifyError> {
        let offset = block.addr().wrapping_sub(start);
        let index = offset / bytes as usize;
        if !offset.is_multiple_of(bytes as usize) || index >= virgin as usize {
            let expected = start as u64;
            return Err(VerifyError {
                what: Broken::BlockOutside,
                address: start,
                expected,
                found: block.addr() as u64,
            });
        }
        let (word, bit) = (index / 64, 1 << (index % 64));
        holds(Broken::BlockTwice, block.addr(), self.bits[word] & bit == 0)?;
        self.bits[word] |= bit;
        Ok(())
    }
}

/// Whether `address` lies in a segment that the map knows, behind its header, so that its entry can be read.
fn has_entry(address: usize) -> bool {
    segment_map::place(address) == Place::Head && address % SEGMENT_BYTES >= HEADER_SLICES * SLICE_BYTES
}

/// Checks a slab from within: its counts, its free list and its remote list.
///
/// # Safety
/// The slab is owned by the caller, or nobody touches it meanwhile.
unsafe fn slab(
    slab: *const Slab,
    report: &mut VerifyReport,
) -> Result<(LocalPart, WordParts, Met), VerifyError> {
    // SAFETY: slab metadata stays readable; the caller's promise.
    let (start, word, local) =
        unsafe { ((*slab).start().addr(), (*slab).read_word(), (*slab).local(|local| *local)) };
    let shape = TABLE.get(local.class as usize).copied();
    let is_shape = shape.is_some_and(|shape| shape.blocks == local.capacity && shape.slices == local.slices);
    let Some(shape) = shape.filter(|_| is_shape) else {
        return Err(VerifyError {
            what: Broken::SlabShape,
            address: start,
            expected: shape.map_or(CLASSES as u64, |shape| shape.blocks as u64),
            found: local.capacity as u64,
        });
    };
    at_most(Broken::SlabCounts, start, local.capacity as u64, local.virgin as u64)?;
    equal(Broken::SlabCounts, start, local.virgin as u64, local.out as u64 + local.free_count as u64)?;
    at_most(Broken::RemoteListLength, start, local.out as u64, word.remote_count as u64)?;
    let mut met = Met::none();
    for (what, mut block, count, ends) in [
        (Broken::FreeListLength, local.free, local.free_count, true),
        // The link of the last block that others freed means nothing.
        (Broken::RemoteListLength, word.remote_head, word.remote_count, false),
    ] {
        for at in 0..count {
            if block.is_null() {
                return Err(VerifyError { what, address: start, expected: count as u64, found: at as u64 });
            }
            met.meet(start, shape.block_bytes, local.virgin, block)?;
            if ends || at + 1 < count {
                // SAFETY: `meet` has seen that it is a block of the slab, and it is in a list that nobody takes from but the
                // owner.
                block = unsafe { Block::next(block) };
            }
        }
        if ends || count == 0 {
            equal(what, start, 0, block.addr() as u64)?;
        }
    }
    report.free_blocks += local.free_count as u64;
    report.remote_blocks += word.remote_count as u64;
    report.out_blocks += (local.out - word.remote_count) as u64;
    Ok((local, word, met))
}

/// Checks the entries of the slices of a slab.
///
/// # Safety
/// The slab is owned by the caller, or nobody touches it meanwhile.
unsafe fn slab_entries(slab: *const Slab, local: &LocalPart, home: Option<u32>) -> Result<(), VerifyError> {
    let (segment, head) = crate::segment::position_of(slab);
    for index in head..head + local.slices as usize {
        // SAFETY: the slab lies in a live segment, and its shape was checked.
        let (start, entry) = unsafe {
            let start = (*segment).slice(index);
            (start, crate::segment::entry(start))
        };
        equal(Broken::SliceEntry, start.addr(), local.class as u64 + 1, entry.tag() as u64)?;
        equal(Broken::SliceEntry, start.addr(), head as u64, entry.head() as u64)?;
        if let Some(home) = home {
            equal(Broken::SliceEntry, start.addr(), home as u64, entry.home() as u64)?;
        }
        // SAFETY: the same.
        let is_free = unsafe { crate::bitmap::all_set(&(*segment).free, index, 1) };
        holds(Broken::SliceEntry, start.addr(), !is_free)?;
    }
    Ok(())
}

/// The slab that the block at `address` is in, if `address` can be one of `domain`.
fn slab_of(domain: *const (), address: usize) -> Option<*const Slab> {
    if !has_entry(address) {
        return None;
    }
    let pointer = core::ptr::with_exposed_provenance_mut::<u8>(address);
    let segment = Segment::containing(pointer);
    // SAFETY: the map knows the segment, whose header stays readable.
    unsafe {
        if !core::ptr::eq((*segment).domain, domain) {
            return None;
        }
        let entry = crate::segment::entry(pointer);
        entry.class()?;
        Some((*segment).slab(entry.head()))
    }
}
