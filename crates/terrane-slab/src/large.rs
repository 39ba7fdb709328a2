//! Large blocks: single runs of slices, kept by each heap in a cache that decays.
//!
//! Invariant: the first slice of a live large block has the tag [`Entry::LARGE`]; the thread that frees the block takes the
//! tag away, so a second free is caught. A large block has no owner: whoever frees it may keep it.
//!
//! The cache is a list per length class. At every tick each list gives up as many blocks as it always had in stock since the
//! last tick (its low water): those were not needed.

use crate::domain::{Domain, Run};
use crate::segment::{Entry, SLICE_BYTES, SLICES, Segment, USABLE_SLICES, entry, entry_word};
use crate::sharing::Sharing;
use crate::slab::{Block, LARGE_CLASS, Slab};
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
const MOST_OF_A_CLASS: u32 = 2;

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

/// One list of the cache: blocks of one length class, linked through their first words.
#[derive(Clone, Copy, Debug)]
struct Stock {
    first: *mut Block,
    count: u32,
    low_water: u32,
}

/// A heap's cache of large blocks.
#[derive(Debug)]
pub(crate) struct LargeCache {
    stocks: [Stock; LARGE_CLASSES],
    bytes: usize,
}

impl LargeCache {
    pub(crate) const fn new() -> Self {
        Self { stocks: [Stock { first: ptr::null_mut(), count: 0, low_water: 0 }; LARGE_CLASSES], bytes: 0 }
    }

    /// Takes a block for `bytes`, at most [`MAX_LARGE_BYTES`], out of the cache: the hit path of large blocks. The block and
    /// its length in bytes; null if there is none.
    #[inline(always)]
    pub(crate) fn take(&mut self, bytes: usize) -> (*mut u8, usize) {
        let class = class_of(bytes.div_ceil(SLICE_BYTES));
        let length = slices_of(class) * SLICE_BYTES;
        let block = self.pop(class, length);
        if !block.is_null() {
            // SAFETY: the block starts a run of slices of a live segment.
            unsafe { mark(block) };
        }
        (block, length)
    }

    #[inline(always)]
    fn pop(&mut self, class: usize, length: usize) -> *mut u8 {
        let stock = &mut self.stocks[class];
        let block = stock.first;
        if !block.is_null() {
            // SAFETY: blocks of the cache are the heap's.
            stock.first = unsafe { Block::next(block) };
            stock.count -= 1;
            stock.low_water = stock.low_water.min(stock.count);
            self.bytes -= length;
        }
        block.cast()
    }

    /// Keeps a block of `slices` slices, if it is of a cached length and the cache stays within `limit` bytes.
    ///
    /// # Safety
    /// The block is the caller's.
    #[inline(always)]
    unsafe fn keep(&mut self, block: *mut u8, slices: usize, limit: usize) -> bool {
        let class = class_of(slices);
        let stock = &mut self.stocks[class];
        let room = stock.count < MOST_OF_A_CLASS && self.bytes + slices * SLICE_BYTES <= limit;
        if !room || slices_of(class) != slices {
            return false;
        }
        // SAFETY: the block is the caller's, who gives it to the cache.
        unsafe { Block::emplace(block.cast(), stock.first) };
        stock.first = block.cast();
        stock.count += 1;
        self.bytes += slices * SLICE_BYTES;
        true
    }

    /// Takes out what was not needed since the last call, or, with `all`, everything.
    pub(crate) fn decay(&mut self, all: bool, mut give: impl FnMut(Run)) {
        if self.bytes == 0 {
            return;
        }
        for class in 0..LARGE_CLASSES {
            let surplus = if all { self.stocks[class].count } else { self.stocks[class].low_water };
            for _ in 0..surplus {
                let block = self.pop(class, slices_of(class) * SLICE_BYTES);
                // SAFETY: blocks of the cache start runs of slices of live segments.
                give(run_of(unsafe { metadata_at(block) }));
            }
            self.stocks[class].low_water = self.stocks[class].count;
        }
    }
}

/// Notes that a live large block starts at `block`.
///
/// # Safety
/// The block starts a run of slices of a live segment, and is the caller's.
#[inline(always)]
unsafe fn mark(block: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { entry_word(block) }.store(Entry::large(), Ordering::Relaxed);
}

/// Metadata of the slice that starts at `start`.
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
    unsafe {
        let starts = entry(pointer).tag() == Entry::LARGE && pointer.addr().is_multiple_of(SLICE_BYTES);
        starts.then(|| metadata_at(pointer))
    }
}

/// Takes a fresh large block; it and whether it reads as zero.
pub(crate) fn alloc_fresh<S: PageSource, K: Sharing, O: Observer>(
    domain: &Domain<S, K, O>,
    slices: usize,
    align_slices: usize,
    node: u32,
    hint: &mut *const Segment,
) -> Option<(*mut u8, bool)> {
    let run = domain.take_run(slices, align_slices, node, *hint).ok()?;
    *hint = run.segment;
    // SAFETY: a run lies in a live segment; its slices are ours, so the metadata of the first is too.
    unsafe {
        let start = (*run.segment).slice(run.index);
        (*metadata_at(start)).local(|local| (local.class, local.slices) = (LARGE_CLASS, slices as u16));
        mark(start);
        Some((start, run.zero))
    }
}

/// Frees the large block at `pointer`; `None` if none starts there, else its length in bytes.
///
/// # Safety
/// `pointer` lies in a live segment, behind its header.
#[inline(always)]
pub(crate) unsafe fn free<S: PageSource, K: Sharing, O: Observer>(
    domain: &Domain<S, K, O>,
    cache: &mut LargeCache,
    pointer: *mut u8,
) -> Option<usize> {
    // SAFETY: the caller's promise. `metadata_of` has seen the tag, which is taken away here. Two threads that free one block
    // at the very same moment could both see it; a program that does that is broken anyway, and an exchange would cost every
    // large free more than the rest of it.
    unsafe {
        let metadata = metadata_of(pointer)?;
        entry_word(pointer).store(0, Ordering::Relaxed);
        let slices = (*metadata).local(|local| local.slices as usize);
        if !cache.keep(pointer, slices, domain.large_cache_bytes()) {
            domain.give_run(run_of(metadata));
        }
        Some(slices * SLICE_BYTES)
    }
}
