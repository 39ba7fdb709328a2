//! Large blocks: single runs of slices, kept by each thread in a cache that decays.
//!
//! Invariant: the first slice of a live large block has the tag [`Entry::LARGE`], and says how far into it the block begins
//! (its colour, `colour.rs`); the thread that frees the block takes the tag away, so a second free is caught. A large block
//! has no owner: whoever frees it may keep it.
//!
//! The cache is a list per length class, beside the thread's lists of small blocks, so that a hit needs no heap. The heap grants
//! each list room for a block or two as blocks are freed, within a limit of bytes for all; at a tick, lists that were not used
//! since the last one give up their blocks and their grant.

use crate::colour;
use crate::domain::{Domain, Run};
use crate::segment::{
    Entry, HEADER_SLICES, SEGMENT_BYTES, SLICE_BYTES, SLICES, Segment, USABLE_SLICES, entry, entry_word,
};
use crate::sharing::Sharing;
use crate::slab::{Block, LARGE_CLASS, Slab};
use core::cell::Cell;
use core::ptr;
use terrane_core::sync::atomic::Ordering;
use terrane_core::{Observer, PageSource};

/// Largest large block in slices; longer ones are huge.
pub(crate) const MAX_LARGE_SLICES: usize = if SLICES / 8 > 16 { SLICES / 8 } else { 16 };
/// Largest large block in bytes.
pub(crate) const MAX_LARGE_BYTES: usize = MAX_LARGE_SLICES * SLICE_BYTES;
/// Length classes: exact up to 16 slices, then eight per doubling.
const LARGE_CLASSES: usize = 16 + 8 * (MAX_LARGE_SLICES.ilog2() as usize - 4);

const _: () = assert!(MAX_LARGE_SLICES <= USABLE_SLICES && MAX_LARGE_SLICES.is_power_of_two());

/// Most blocks of one length class that a cache keeps: enough for a loop that allocates and frees, little to strand.
const MOST_OF_A_CLASS: u8 = 2;

/// The length class that serves `slices`.
#[inline(always)]
const fn class_of(slices: usize) -> usize {
    if slices <= 16 {
        slices - 1
    } else {
        let last = slices - 1;
        let doubling = last.ilog2() as usize;
        16 + (doubling - 4) * 8 + ((last >> (doubling - 3)) & 7)
    }
}

/// Slices of a block of length class `class`.
#[inline(always)]
const fn slices_of(class: usize) -> usize {
    if class < 16 {
        class + 1
    } else {
        let (doubling, step) = ((class - 16) / 8, (class - 16) % 8);
        (16 + (step + 1) * 2) << doubling
    }
}

const _: () = {
    let mut class = 0;
    while class < LARGE_CLASSES {
        assert!(class_of(slices_of(class)) == class);
        class += 1;
    }
    assert!(slices_of(LARGE_CLASSES - 1) == MAX_LARGE_SLICES);
};

/// Slices that a request of `bytes` gets.
pub(crate) const fn slices_for(bytes: usize) -> usize {
    slices_of(class_of(bytes.div_ceil(SLICE_BYTES)))
}

/// A thread's lists of large blocks, one a length class: the hit path.
///
/// Invariant: the blocks of a list are the thread's, and marked as free; a list never holds more blocks than its heap has granted
/// it, since `room` counts what is left of the grant.
#[derive(Debug)]
pub(crate) struct LargeLists {
    heads: [Cell<*mut Block>; LARGE_CLASSES],
    room: [Cell<u32>; LARGE_CLASSES],
    hits: [Cell<u32>; LARGE_CLASSES],
    /// The node whose blocks are taken while nodes are kept apart; else [`ANY_NODE`].
    node: Cell<u32>,
}

/// Blocks of all nodes are alike.
pub(crate) const ANY_NODE: u32 = u32::MAX;

impl LargeLists {
    pub(crate) const fn new() -> Self {
        Self {
            heads: [const { Cell::new(ptr::null_mut()) }; LARGE_CLASSES],
            room: [const { Cell::new(0) }; LARGE_CLASSES],
            hits: [const { Cell::new(0) }; LARGE_CLASSES],
            node: Cell::new(ANY_NODE),
        }
    }

    /// From now on only blocks of this node are taken, or of any.
    pub(crate) fn settle_on(&self, node: u32) {
        self.node.set(node);
    }

    /// Blocks taken since the last [`decay`](LargeCache::decay).
    pub(crate) fn hits(&self) -> u64 {
        self.hits.iter().map(|hits| hits.get() as u64).sum()
    }

    /// Takes a block for `bytes` at a multiple of `align`, which is at most the slice length; null if there is none.
    #[inline(always)]
    pub(crate) fn pop(&self, bytes: usize, align: usize) -> *mut u8 {
        if bytes.wrapping_sub(1) >= MAX_LARGE_BYTES {
            return ptr::null_mut();
        }
        let class = class_of(bytes.div_ceil(SLICE_BYTES));
        let block = self.take(class);
        if block.is_null() {
            return block;
        }
        self.hits[class].set(self.hits[class].get().wrapping_add(1));
        let colour = block.addr() % SLICE_BYTES;
        // SAFETY: the block begins in the first slice of a run in a live segment, of as many slices as its class says, or more.
        unsafe {
            if colour::fits(colour, bytes, align) {
                mark(block);
                block
            } else {
                recoloured(block, bytes, align)
            }
        }
    }

    #[inline(always)]
    fn take(&self, class: usize) -> *mut u8 {
        let block = self.heads[class].get();
        if !block.is_null() {
            // SAFETY: blocks of the list are the thread's.
            self.heads[class].set(unsafe { Block::next(block) });
            self.room[class].set(self.room[class].get() + 1);
        }
        block.cast()
    }

    /// Gives a block back that was allocated for `bytes`; `false`, and nothing is kept, if it is no live large block or its list
    /// has no room.
    ///
    /// # Safety
    /// The block is one of this allocator, the caller's, and not used any more.
    #[inline(always)]
    pub(crate) unsafe fn push(&self, block: *mut u8, bytes: usize) -> bool {
        let behind_header = block.addr() % SEGMENT_BYTES >= HEADER_SLICES * SLICE_BYTES;
        if bytes.wrapping_sub(1) >= MAX_LARGE_BYTES || !behind_header {
            return false;
        }
        let class = class_of(bytes.div_ceil(SLICE_BYTES));
        let room = self.room[class].get();
        // SAFETY: a block of this allocator lies in a live segment, and this one behind its header.
        if room == 0 || unsafe { metadata_of(block) }.is_none() {
            return false;
        }
        let node = self.node.get();
        // SAFETY: the same.
        if node != ANY_NODE && unsafe { (*Segment::containing(block)).node } != node {
            return false;
        }
        self.room[class].set(room - 1);
        // SAFETY: the block is the caller's, who gives it to the list. See `free` for two frees at the very same moment.
        unsafe {
            entry_word(block).store(0, Ordering::Relaxed);
            Block::emplace(block.cast(), self.heads[class].get());
        }
        self.heads[class].set(block.cast());
        true
    }
}

/// What a heap knows of its thread's lists of large blocks.
#[derive(Debug)]
pub(crate) struct LargeCache {
    /// Blocks that a list may hold.
    granted: [u8; LARGE_CLASSES],
    /// Room of a list at the last tick.
    room_at_tick: [u32; LARGE_CLASSES],
    /// Bytes of all blocks that the lists may hold.
    bytes: usize,
}

impl LargeCache {
    pub(crate) const fn new() -> Self {
        Self { granted: [0; LARGE_CLASSES], room_at_tick: [0; LARGE_CLASSES], bytes: 0 }
    }

    /// Keeps a block of `slices` slices for which its list has no room, if the lists stay within `limit` bytes.
    ///
    /// # Safety
    /// The block is the caller's, and marked as free.
    unsafe fn keep(&mut self, lists: &LargeLists, block: *mut u8, slices: usize, limit: usize) -> bool {
        let class = class_of(slices);
        if lists.room[class].get() > 0 {
            lists.room[class].set(lists.room[class].get() - 1);
        } else {
            let bytes = slices * SLICE_BYTES;
            if slices_of(class) != slices || self.granted[class] >= MOST_OF_A_CLASS {
                return false;
            }
            if self.bytes + bytes > limit {
                self.withdraw(lists);
                if self.bytes + bytes > limit {
                    return false;
                }
            }
            self.granted[class] += 1;
            self.bytes += bytes;
        }
        // SAFETY: the block is the caller's, who gives it to the list.
        unsafe { Block::emplace(block.cast(), lists.heads[class].get()) };
        lists.heads[class].set(block.cast());
        true
    }

    /// The lists that may hold blocks: slices that a block has at least, the first block, blocks that there should be.
    #[cfg(not(loom))]
    pub(crate) fn stocks(&self, lists: &LargeLists) -> impl Iterator<Item = (usize, *mut Block, u32)> {
        (0..LARGE_CLASSES).filter(|&class| self.granted[class] > 0).map(|class| {
            let count = (self.granted[class] as u32).wrapping_sub(lists.room[class].get());
            (slices_of(class), lists.heads[class].get(), count)
        })
    }

    /// Bytes that the lists may hold: as counted, and as the lists add up.
    #[cfg(not(loom))]
    pub(crate) fn bytes(&self) -> (usize, usize) {
        let lists = self.granted.iter().enumerate();
        (self.bytes, lists.map(|(class, &granted)| granted as usize * slices_of(class) * SLICE_BYTES).sum())
    }

    /// Takes back what was granted and is not used.
    fn withdraw(&mut self, lists: &LargeLists) {
        for class in 0..LARGE_CLASSES {
            let room = lists.room[class].replace(0);
            self.granted[class] -= room as u8;
            self.bytes -= room as usize * slices_of(class) * SLICE_BYTES;
        }
    }

    /// Blocks in the lists, and their bytes.
    pub(crate) fn waiting(&self, lists: &LargeLists) -> (u64, u64) {
        (0..LARGE_CLASSES).fold((0, 0), |(blocks, bytes), class| {
            let count = self.granted[class] as u64 - lists.room[class].get() as u64;
            (blocks + count, bytes + count * (slices_of(class) * SLICE_BYTES) as u64)
        })
    }

    /// Gives up the blocks of lists that were not used since the last call, or, with `all`, all. Counts the hits.
    pub(crate) fn decay(&mut self, lists: &LargeLists, all: bool, mut give: impl FnMut(Run)) -> u64 {
        let mut hits = 0;
        for class in 0..LARGE_CLASSES {
            let new_hits = lists.hits[class].replace(0) as u64;
            hits += new_hits;
            let idle = new_hits == 0 && lists.room[class].get() == self.room_at_tick[class];
            if self.granted[class] > 0 && (idle || all) {
                loop {
                    let block = lists.take(class);
                    if block.is_null() {
                        break;
                    }
                    // SAFETY: blocks of the list start runs of slices of live segments.
                    give(run_of(unsafe { metadata_at(block) }));
                }
                self.bytes -= self.granted[class] as usize * slices_of(class) * SLICE_BYTES;
                self.granted[class] = 0;
                lists.room[class].set(0);
            }
            self.room_at_tick[class] = lists.room[class].get();
        }
        hits
    }
}

/// Notes that a live large block begins at `block`.
///
/// # Safety
/// It lies in the first slice of a run of a live segment, which is the caller's.
#[inline(always)]
unsafe fn mark(block: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { entry_word(block) }.store(Entry::large(block.addr() % SLICE_BYTES), Ordering::Relaxed);
}

/// A block that begins elsewhere in the first slice of the run that `block` begins in, marked as live.
///
/// # Safety
/// As for [`mark`]; the run holds `bytes`.
#[cold]
unsafe fn recoloured(block: *mut u8, bytes: usize, align: usize) -> *mut u8 {
    let start = colour::strip(block);
    // SAFETY: the caller's promise; a colour is less than a slice.
    unsafe {
        let block = start.add(colour::of(start, bytes, align));
        mark(block);
        block
    }
}

/// Metadata of the slice that `start` lies in.
///
/// # Safety
/// The slice lies in a live segment, behind its header.
#[inline(always)]
unsafe fn metadata_at(start: *mut u8) -> *mut Slab {
    let segment = Segment::containing(start);
    // SAFETY: the caller's promise.
    unsafe { (*segment).slab((start.addr() - segment.addr()) / SLICE_BYTES) }
}

/// The run of slices of a large block.
pub(crate) fn run_of(block: *mut Slab) -> Run {
    let (segment, index) = crate::segment::position_of(block);
    // SAFETY: the block is the caller's.
    let len = unsafe { (*block).local(|local| local.slices as usize) };
    Run { segment, index, len, zero: false }
}

/// Metadata of the large block that starts at `pointer`, if one does.
///
/// # Safety
/// `pointer` lies in a live segment, behind its header.
#[inline(always)]
pub(crate) unsafe fn metadata_of(pointer: *mut u8) -> Option<*mut Slab> {
    // SAFETY: the caller's promise.
    unsafe { entry(pointer).is_large_at(pointer.addr()).then(|| metadata_at(pointer)) }
}

/// Where in its first slice a block is to begin.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// Where its colour says; its length and alignment.
    Anywhere(usize, usize),
    /// So many bytes into it, because its contents do already.
    At(usize),
}

impl Place {
    /// Bytes that a block of `bytes` needs from the start of its first slice, rounded up to whole slices or not.
    pub(crate) const fn reach(self, bytes: usize) -> usize {
        match self {
            Self::Anywhere(..) => bytes,
            Self::At(colour) => bytes + colour,
        }
    }

    /// The colour of a block whose first slice starts at `start`.
    pub(crate) fn colour(self, start: *mut u8) -> usize {
        match self {
            Self::Anywhere(bytes, align) => colour::of(start, bytes, align),
            Self::At(colour) => colour,
        }
    }
}

/// Takes a fresh large block; it and whether it reads as zero.
pub(crate) fn alloc_fresh<S: PageSource, K: Sharing, O: Observer>(
    domain: &Domain<S, K, O>,
    slices: usize,
    align_slices: usize,
    place: Place,
    node: u32,
    hint: &mut *const Segment,
) -> Option<(*mut u8, bool)> {
    let run = domain.take_run(slices, align_slices, node, *hint).ok()?;
    *hint = run.segment;
    // SAFETY: a run lies in a live segment; its slices are ours, so the metadata of the first is too.
    unsafe {
        let start = (*run.segment).slice(run.index);
        (*metadata_at(start)).local(|local| (local.class, local.slices) = (LARGE_CLASS, slices as u16));
        let block = start.add(place.colour(start));
        mark(block);
        Some((block, run.zero))
    }
}

/// Frees the large block at `pointer`; `None` if none starts there, else the bytes that went back to the domain. The lists take
/// it only with `may_keep`.
///
/// # Safety
/// `pointer` lies in a live segment, behind its header.
#[inline(always)]
pub(crate) unsafe fn free<S: PageSource, K: Sharing, O: Observer>(
    domain: &Domain<S, K, O>,
    cache: &mut LargeCache,
    lists: &LargeLists,
    pointer: *mut u8,
    may_keep: bool,
) -> Option<usize> {
    // SAFETY: the caller's promise. `metadata_of` has seen the tag, which is taken away here. Two threads that free one block
    // at the very same moment could both see it; a program that does that is broken anyway, and an exchange would cost every
    // large free more than the rest of it.
    unsafe {
        let metadata = metadata_of(pointer)?;
        entry_word(pointer).store(0, Ordering::Relaxed);
        let slices = (*metadata).local(|local| local.slices as usize);
        if may_keep && cache.keep(lists, pointer, slices, domain.large_cache_bytes()) {
            return Some(0);
        }
        domain.give_run(run_of(metadata));
        Some(slices * SLICE_BYTES)
    }
}
