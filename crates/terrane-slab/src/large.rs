//! Large blocks: single runs of slices, kept by each heap in a cache that decays.
//!
//! Invariant: the first slice of a live large block has the tag [`Entry::LARGE`]; the thread that frees the block takes the
//! tag away in one exchange, so of two frees one is caught. A large block has no owner: whoever frees it may keep it.
//!
//! The cache is a list per length class. At every tick each list gives up as many blocks as it always had in stock since the
//! last tick (its low water): those were not needed.

use crate::domain::{Domain, Run};
use crate::segment::{Entry, SLICE_BYTES, SLICES, Segment, USABLE_SLICES, entry, entry_word};
use crate::sharing::Sharing;
use crate::slab::{LARGE_CLASS, Slab};
use core::ptr;
use terrane_core::sync::atomic::Ordering;
use terrane_core::{Observer, PageSource};

/// Largest large block in slices; longer ones are huge.
pub(crate) const MAX_LARGE_SLICES: usize = SLICES / 2;
/// Length classes: exact up to 16 slices, then eight per doubling.
const LARGE_CLASSES: usize = 16 + 8 * (MAX_LARGE_SLICES.ilog2() as usize - 4);

const _: () = assert!(MAX_LARGE_SLICES <= USABLE_SLICES && MAX_LARGE_SLICES.is_power_of_two());

/// Most blocks of one length class that a cache keeps: enough for a loop that allocates and frees, little to strand.
const MOST_OF_A_CLASS: u32 = 2;

/// The length class that serves `slices`.
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

/// One list of the cache.
#[derive(Clone, Copy, Debug)]
struct Stock {
    first: *mut Slab,
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

    /// Takes a block of exactly `slices` slices.
    #[inline]
    fn take(&mut self, slices: usize) -> *mut Slab {
        let stock = &mut self.stocks[class_of(slices)];
        let block = stock.first;
        if !block.is_null() {
            // SAFETY: blocks of the cache are the heap's.
            stock.first = unsafe { (*block).local(|local| local.next) };
            stock.count -= 1;
            stock.low_water = stock.low_water.min(stock.count);
            self.bytes -= slices * SLICE_BYTES;
        }
        block
    }

    /// Keeps a block, if it is of a cached length and the cache stays within `limit` bytes.
    #[inline]
    fn keep(&mut self, block: *mut Slab, slices: usize, limit: usize) -> bool {
        let class = class_of(slices);
        let room = self.stocks[class].count < MOST_OF_A_CLASS && self.bytes + slices * SLICE_BYTES <= limit;
        if !room || slices_of(class) != slices {
            return false;
        }
        let stock = &mut self.stocks[class];
        // SAFETY: the block is the caller's, who gives it to the cache.
        unsafe { (*block).local(|local| local.next = stock.first) };
        stock.first = block;
        stock.count += 1;
        self.bytes += slices * SLICE_BYTES;
        true
    }

    /// Takes out what was not needed since the last call, or, with `all`, everything.
    pub(crate) fn decay(&mut self, all: bool, mut give: impl FnMut(*mut Slab)) {
        if self.bytes == 0 {
            return;
        }
        for class in 0..LARGE_CLASSES {
            let surplus = if all { self.stocks[class].count } else { self.stocks[class].low_water };
            for _ in 0..surplus {
                give(self.take(slices_of(class)));
            }
            self.stocks[class].low_water = self.stocks[class].count;
        }
    }
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
pub(crate) unsafe fn metadata_of(pointer: *mut u8) -> Option<*mut Slab> {
    // SAFETY: the caller's promise.
    let (entry, segment) = unsafe { (entry(pointer), &*Segment::containing(pointer)) };
    let starts = entry.tag() == Entry::LARGE && pointer.addr().is_multiple_of(SLICE_BYTES);
    starts.then(|| segment.slab((pointer.addr() - segment.start().addr()) / SLICE_BYTES))
}

/// Takes a large block, from the cache or fresh; its metadata and whether it reads as zero.
#[inline]
pub(crate) fn alloc<S: PageSource, K: Sharing, O: Observer>(
    domain: &Domain<S, K, O>,
    cache: &mut LargeCache,
    slices: usize,
    align_slices: usize,
    node: u32,
    hint: &mut *const Segment,
) -> Option<(*mut Slab, bool, bool)> {
    let cached = if align_slices == 1 { cache.take(slices) } else { ptr::null_mut() };
    let (block, zero) = if cached.is_null() {
        let run = domain.take_run(slices, align_slices, node, *hint).ok()?;
        *hint = run.segment;
        // SAFETY: a run lies in a live segment.
        let block = unsafe { (*run.segment).slab(run.index) };
        // SAFETY: the slices are ours, so the metadata of the first is too.
        unsafe {
            (*block).local(|local| {
                (local.class, local.slices) = (LARGE_CLASS, slices as u16);
            });
        }
        (block, run.zero)
    } else {
        (cached, false)
    };
    let (segment, index) = crate::segment::position_of(block);
    // SAFETY: the metadata lies in a live segment.
    unsafe { (*segment).set_entries(index, 1, 0, Entry::LARGE) };
    Some((block, zero, !cached.is_null()))
}

/// Frees the large block at `pointer`; `None` if none starts there, else its length in bytes.
///
/// # Safety
/// `pointer` lies in a live segment, behind its header.
#[inline]
pub(crate) unsafe fn free<S: PageSource, K: Sharing, O: Observer>(
    domain: &Domain<S, K, O>,
    cache: &mut LargeCache,
    pointer: *mut u8,
) -> Option<usize> {
    // SAFETY: the caller's promise.
    let block = unsafe { metadata_of(pointer) }?;
    // SAFETY: the caller's promise. Acquire: the metadata as the thread wrote it that allocated the block.
    let before = K::swap(unsafe { entry_word(pointer) }, 0, Ordering::Acquire);
    if before >> 48 != Entry::LARGE as u64 {
        return None;
    }
    // SAFETY: the exchange made the block ours.
    let slices = unsafe { (*block).local(|local| local.slices as usize) };
    if !cache.keep(block, slices, domain.large_cache_bytes()) {
        domain.give_run(run_of(block));
    }
    Some(slices * SLICE_BYTES)
}
