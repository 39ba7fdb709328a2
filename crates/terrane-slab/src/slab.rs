//! Slabs: runs of slices that hold blocks of one size class, and the one word through which threads agree on them.
//!
//! Invariant: the local part of a slab is touched only by the heap named in the owner field of its word,
//! or, while the slab is free or has just been claimed, by the one thread that made that so. Every block of a slab is in
//! exactly one place: never handed out yet (at or above the virgin mark), in the slab's free list, in its remote list, or
//! *out* (with the program, or waiting in a thread's list or batch).
//!
//! The word packs who owns the slab with the list of blocks that others have freed into it, so that each step of the
//! protocol is one atomic operation:
//!
//! | bits | field | meaning |
//! |---|---|---|
//! | 0..20 | head | offset of the first remote block from the slab's start, in units of 8 bytes, plus 1; 0 empty |
//! | 20..39 | count | blocks in the remote list |
//! | 39 | shelved | the slab is linked on a shelf, or about to be |
//! | 40..64 | owner | 0 free; [`PARKED`] nobody; else the heap that owns it |
//!
//! | step | by | from → to | ordering |
//! |---|---|---|---|
//! | open | who claimed the slices | free → owned | release |
//! | collect | owner | owned, list → owned, empty | acquire |
//! | park | owner | owned, empty → parked (+ shelved if blocks are free) | release |
//! | push | anyone | list → longer list (+ shelved from a threshold on, if parked) | release, acquire |
//! | claim | anyone | parked, list → owned by the claimer, empty | acquire, release |
//! | retire | owner, nothing out | owned, empty → free | release |
//!
//! Only the owner takes its own name out of the word, so "is it mine?" is a relaxed load. The full argument is in the
//! book, chapter "The slab word".

pub use crate::block::{Block, Chain};
use crate::fault::{Fault, order, planted};
use crate::segment::{SLICE_BYTES, SLICE_SHIFT, Segment, position_of};
use crate::sharing::Sharing;
use crate::size_class;
use core::ptr;
use terrane_core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use terrane_core::sync::cell::UnsafeCell;

/// Name of a heap within its domain: 1 up to [`MAX_HEAP_ID`]; 0 is nobody.
pub type HeapId = u32;

/// Owner field of a slab that nobody owns and anybody may claim.
pub const PARKED: HeapId = (1 << 24) - 1;
/// Largest heap name. It is that of all private heaps, so that their blocks are at home in no thread's lists.
pub const MAX_HEAP_ID: HeapId = PARKED - 1;

const HEAD_MASK: u64 = (1 << 20) - 1;
const COUNT_SHIFT: u32 = 20;
const COUNT_MASK: u64 = ((1 << 19) - 1) << COUNT_SHIFT;
const LIST_MASK: u64 = HEAD_MASK | COUNT_MASK;
const SHELVED: u64 = 1 << 39;
const OWNER_SHIFT: u32 = 40;

/// Bits of a slab's number: those of an address, less those within a slice.
pub(crate) const NUMBER_BITS: u32 = 48 - SLICE_SHIFT;

/// What only the owner touches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalPart {
    /// Free blocks, last freed first.
    pub(crate) free: *mut Block,
    /// Neighbours in the owner's queue.
    pub(crate) next: *mut Slab,
    pub(crate) previous: *mut Slab,
    /// Blocks in `free`.
    pub(crate) free_count: u32,
    /// Blocks that are out, those of the remote list among them until the owner collects: `virgin = out + free_count`.
    pub(crate) out: u32,
    /// Blocks below this index have been handed out at least once.
    pub(crate) virgin: u32,
    /// Blocks of the slab; for a large block 1.
    pub(crate) capacity: u32,
    /// Size class, or [`LARGE_CLASS`].
    pub(crate) class: u16,
    /// Slices that the slab spans.
    pub(crate) slices: u16,
    /// Whether memory at and above the virgin mark reads as zero.
    pub(crate) virgin_zero: bool,
    /// Whether the slab is in its owner's queue.
    pub(crate) queued: bool,
    /// The bin of the queue.
    pub(crate) bin: u8,
    /// Blocks free, those never handed out included, from which the slab belongs in a higher bin.
    pub(crate) bin_limit: u32,
}

/// Class of the metadata of a large block.
pub(crate) const LARGE_CLASS: u16 = u16::MAX;

/// Metadata of a slab. What the owner writes is on one cache line, what others write on another.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Slab {
    local: UnsafeCell<LocalPart>,
    shared: SharedPart,
}

#[derive(Debug)]
#[repr(C, align(64))]
struct SharedPart {
    word: AtomicU64,
    /// Blocks that were out when the slab was last parked.
    out_at_park: AtomicU32,
    /// The next slab on the shelf.
    shelf_next: AtomicU64,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Slab>() == 128 && size_of::<UnsafeCell<LocalPart>>() <= 64);

/// What became of blocks that were pushed to a slab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pushed {
    /// They wait for the owner, or for whoever claims the slab; nothing is left to do.
    Waiting {
        /// The pusher must put the slab on a shelf.
        shelve: bool,
    },
    /// They were the last that were out: the pusher should claim and retire the slab.
    Emptied {
        /// The pusher must put the slab on a shelf, if it does not claim it.
        shelve: bool,
    },
}

/// Misuse that a slab noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misuse {
    /// A block was freed into a slab that is free, or more blocks came back than were out.
    DoubleFree,
    /// A list does not have the length that its count says: a freed block was written to.
    Corrupted,
    /// A block was freed with a size of another class than it was allocated with.
    SizeMismatch,
    /// The address is not the start of a block.
    NotABlock,
    /// The block belongs to another heap than the one that it was given to.
    OtherHeap,
}

impl Misuse {
    /// One line that names the misuse.
    pub const fn message(self) -> &'static str {
        match self {
            Self::DoubleFree => "free of a block that is free already",
            Self::Corrupted => "a freed block was written to",
            Self::SizeMismatch => "free with a size of another class than the block was allocated with",
            Self::OtherHeap => "free of a block of another heap",
            Self::NotABlock => "free of an address that is not the start of a block",
        }
    }
}

impl Slab {
    /// Fresh metadata of a free slab, for memory that is not zero already.
    #[cfg(loom)]
    #[expect(clippy::new_without_default, reason = "in production zeroed memory is a free slab")]
    pub fn new() -> Self {
        Self {
            local: UnsafeCell::new(LocalPart {
                free: ptr::null_mut(),
                next: ptr::null_mut(),
                previous: ptr::null_mut(),
                free_count: 0,
                out: 0,
                virgin: 0,
                capacity: 0,
                class: 0,
                slices: 0,
                virgin_zero: false,
                queued: false,
                bin: 0,
                bin_limit: 0,
            }),
            shared: SharedPart {
                word: AtomicU64::new(0),
                out_at_park: AtomicU32::new(0),
                shelf_next: AtomicU64::new(0),
            },
        }
    }

    /// First byte of the slab's first block.
    #[inline]
    pub fn start(&self) -> *mut u8 {
        let (segment, index) = position_of(self);
        // SAFETY: slab metadata lies in the header of a live segment.
        unsafe { (*segment).slice(index) }
    }

    /// A name of the slab that fits in [`NUMBER_BITS`] bits and is never 0: the number of its first slice.
    pub(crate) fn number(&self) -> u64 {
        (self.start().addr() >> SLICE_SHIFT) as u64
    }

    /// The slab that [`number`](Self::number) names. Provenance is that of the exposed arena.
    pub(crate) fn by_number(number: u64) -> *mut Self {
        let start: *mut u8 = ptr::with_exposed_provenance_mut((number as usize) << SLICE_SHIFT);
        let segment = Segment::containing(start);
        let index = (start.addr() - segment.addr()) >> SLICE_SHIFT;
        segment.cast::<u8>().wrapping_add(Segment::slab_offset(index)).cast()
    }

    pub(crate) fn shelf_next(&self) -> &AtomicU64 {
        &self.shared.shelf_next
    }

    /// The owner: 0 if the slab is free, [`PARKED`] if nobody has it.
    #[inline(always)]
    pub fn owner(&self) -> HeapId {
        // Relaxed: only the owner takes its own name out, so its own name is never stale; for any other use the
        // answer is a hint that the next read-modify-write confirms.
        (self.shared.word.load(Ordering::Relaxed) >> OWNER_SHIFT) as HeapId
    }

    /// Blocks in the remote list, as of some moment during the call.
    #[inline]
    pub fn remote_count(&self) -> u32 {
        ((self.shared.word.load(Ordering::Relaxed) & COUNT_MASK) >> COUNT_SHIFT) as u32
    }

    /// What the word says, as of some moment during the call.
    #[cfg(not(loom))]
    pub(crate) fn read_word(&self) -> WordParts {
        let word = self.shared.word.load(Ordering::Acquire);
        WordParts {
            owner: (word >> OWNER_SHIFT) as HeapId,
            shelved: word & SHELVED != 0,
            remote_head: self.block_at(word & HEAD_MASK),
            remote_count: ((word & COUNT_MASK) >> COUNT_SHIFT) as u32,
            out_at_park: self.shared.out_at_park.load(Ordering::Relaxed),
        }
    }

    /// Calls `f` with the local part.
    ///
    /// # Safety
    /// The caller owns the slab.
    #[inline(always)]
    pub(crate) unsafe fn local<R>(&self, f: impl FnOnce(&mut LocalPart) -> R) -> R {
        // SAFETY: the local part is touched by the owner alone, and `f` cannot reach this cell again.
        self.local.with_mut(|local| f(unsafe { &mut *local }))
    }

    /// Makes a slab of `class` in the name of `owner` out of slices that the caller has claimed.
    ///
    /// # Safety
    /// The slices are the caller's, and the slab is free.
    pub unsafe fn open<K: Sharing>(&self, owner: HeapId, class: u16, capacity: u32, slices: u16, zero: bool) {
        let fresh = LocalPart {
            free: ptr::null_mut(),
            next: ptr::null_mut(),
            previous: ptr::null_mut(),
            free_count: 0,
            out: 0,
            virgin: 0,
            capacity,
            class,
            slices,
            virgin_zero: zero,
            queued: false,
            bin: 0,
            bin_limit: 0,
        };
        // SAFETY: a free slab whose slices the caller holds is the caller's.
        unsafe { self.local(|local| *local = fresh) };
        // The shelved bit belongs to whoever pops the slab off its shelf and is kept.
        let before = K::fetch_or(&self.shared.word, (owner as u64) << OWNER_SHIFT, Ordering::Release);
        debug_assert_eq!(before & !SHELVED, 0, "opened a slab that was not free");
    }

    /// Takes all blocks of the free list.
    ///
    /// # Safety
    /// The caller owns the slab.
    #[inline]
    pub unsafe fn take_free(&self) -> Option<(*mut Block, u32)> {
        // SAFETY: the caller owns the slab.
        unsafe {
            self.local(|local| {
                if local.free.is_null() {
                    return None;
                }
                let taken = (local.free, local.free_count);
                local.out += local.free_count;
                (local.free, local.free_count) = (ptr::null_mut(), 0);
                Some(taken)
            })
        }
    }

    /// Carves up to `most ≥ 1` blocks that were never handed out, lowest first, linked and ended by null; the first, how
    /// many, and whether they read as zero beyond the link in their first word.
    ///
    /// # Safety
    /// The caller owns the slab, and its memory is committed.
    pub unsafe fn carve(&self, most: u32) -> Option<(*mut Block, u32, bool)> {
        let start = self.start();
        // SAFETY: the caller owns the slab; blocks at and above the virgin mark are nobody else's.
        unsafe {
            self.local(|local| {
                let count = most.min(local.capacity - local.virgin);
                if count == 0 {
                    return None;
                }
                let bytes = size_class::class(local.class as usize).block_bytes as usize;
                let first = start.add(local.virgin as usize * bytes);
                let mut next = ptr::null_mut();
                for i in (0..count as usize).rev() {
                    let block = first.add(i * bytes).cast();
                    Block::emplace(block, next);
                    next = block;
                }
                local.virgin += count;
                local.out += count;
                Some((first.cast(), count, local.virgin_zero))
            })
        }
    }

    /// Takes a block back that was out; how many are out now, and whether the slab should be filed anew in its queue.
    ///
    /// # Errors
    /// [`Misuse::DoubleFree`] if no block is out.
    ///
    /// # Safety
    /// The caller owns the slab; the block is one of its blocks and is the caller's.
    #[inline]
    pub unsafe fn give(&self, block: *mut Block) -> Result<(u32, bool), Misuse> {
        // SAFETY: the caller owns the slab and the block.
        unsafe {
            self.local(|local| {
                local.out = local.out.checked_sub(1).ok_or(Misuse::DoubleFree)?;
                Block::set_next(block, local.free);
                local.free = block;
                local.free_count += 1;
                let free = local.free_count + (local.capacity - local.virgin);
                Ok((local.out, free >= local.bin_limit || !local.queued))
            })
        }
    }

    /// Moves what others have freed into the free list; how many blocks that were.
    ///
    /// # Errors
    /// [`Misuse`] if the list is not what its count says.
    ///
    /// # Safety
    /// The caller owns the slab.
    pub unsafe fn collect<K: Sharing>(&self) -> Result<u32, Misuse> {
        if self.remote_count() == 0 {
            return Ok(0);
        }
        // Acquire: the links of the blocks were written by those who pushed them.
        let before =
            K::fetch_and(&self.shared.word, !LIST_MASK, order(Fault::CollectRelaxed, Ordering::Acquire));
        // SAFETY: the list was taken out of the word, so its blocks are the caller's, who owns the slab.
        unsafe { self.absorb(before) }
    }

    /// Joins the remote list in `word` to the free list, behind the shorter of the two: only that one is walked, because each
    /// block on the way is likely to be cold.
    ///
    /// # Errors
    /// [`Misuse`] if more blocks came back than were out, or if the list that is walked is not what its count says.
    ///
    /// # Safety
    /// The caller owns the slab and has taken the list out of the slab's word.
    unsafe fn absorb(&self, word: u64) -> Result<u32, Misuse> {
        let count = ((word & COUNT_MASK) >> COUNT_SHIFT) as u32;
        if count == 0 {
            return Ok(0);
        }
        let theirs = self.block_at(word & HEAD_MASK);
        // SAFETY: the caller owns the slab and the blocks of both lists.
        unsafe {
            self.local(|local| {
                local.out = local.out.checked_sub(count).ok_or(Misuse::DoubleFree)?;
                if local.out == 0 {
                    // Every block is back: the slab is as good as new, but for what its memory holds.
                    (local.free, local.free_count, local.virgin) = (ptr::null_mut(), 0, 0);
                    local.virgin_zero = false;
                    return Ok(count);
                }
                let end = self.start().addr() + local.slices as usize * SLICE_BYTES;
                let (first, len, last) = if count <= local.free_count {
                    (theirs, count, local.free)
                } else {
                    (local.free, local.free_count, theirs)
                };
                if len > 0 {
                    let mut tail = first;
                    for _ in 1..len {
                        tail = Block::next(tail);
                        // A link that leaves the slab was overwritten by the program.
                        if tail.addr() < self.start().addr() || tail.addr() >= end {
                            return Err(Misuse::Corrupted);
                        }
                    }
                    Block::set_next(tail, last);
                }
                local.free = if len > 0 { first } else { last };
                local.free_count += count;
                Ok(count)
            })
        }
    }

    /// Gives the slab up: from now on anybody may claim it. The answer is whether the caller must put it on a shelf.
    ///
    /// # Errors
    /// The slab is not parked and still the caller's, because others have freed into it meanwhile: collect first.
    ///
    /// # Safety
    /// The caller is `me` and owns the slab, and does not touch its local part after `Ok`.
    pub unsafe fn park<K: Sharing>(&self, me: HeapId) -> Result<bool, Pending> {
        // SAFETY: the caller owns the slab.
        let (out, has_free) = unsafe { self.local(|l| (l.out, l.free_count > 0 || l.virgin < l.capacity)) };
        self.shared.out_at_park.store(out, Ordering::Relaxed);
        let mut seen = self.shared.word.load(Ordering::Relaxed);
        loop {
            debug_assert_eq!((seen >> OWNER_SHIFT) as HeapId, me);
            if seen & LIST_MASK != 0 && !planted(Fault::ParkUnchecked) {
                return Err(Pending);
            }
            let shelve = has_free && seen & SHELVED == 0;
            let parked = (PARKED as u64) << OWNER_SHIFT | seen & SHELVED | if shelve { SHELVED } else { 0 };
            // Release: whoever claims the slab sees the local part as we leave it.
            match K::compare_exchange(
                &self.shared.word,
                seen,
                parked,
                order(Fault::ParkRelaxed, Ordering::Release),
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(shelve),
                Err(now) => seen = now,
            }
        }
    }

    /// Adds `chain` to the blocks that others have freed into this slab. If the slab is parked and `shelve_from` or more
    /// blocks wait in it, it is to be shelved.
    ///
    /// # Errors
    /// [`Misuse::DoubleFree`] if the slab is free, or more blocks came back than it has.
    ///
    /// # Safety
    /// The blocks are this slab's and the caller's.
    pub unsafe fn push<K: Sharing>(
        &self,
        chain: Chain,
        capacity: u32,
        shelve_from: u32,
    ) -> Result<Pushed, Misuse> {
        let head = self.offset_of(chain.head);
        let mut seen = self.shared.word.load(Ordering::Relaxed);
        loop {
            let owner = (seen >> OWNER_SHIFT) as HeapId;
            let count = ((seen & COUNT_MASK) >> COUNT_SHIFT) as u32 + chain.count;
            if owner == 0 || count > capacity {
                return Err(Misuse::DoubleFree);
            }
            // SAFETY: until the exchange succeeds the chain is the caller's.
            unsafe { Block::set_next(chain.tail, self.block_at(seen & HEAD_MASK)) };
            let parked = owner == PARKED;
            let shelve = parked && seen & SHELVED == 0 && count >= shelve_from;
            let pushed =
                seen & !LIST_MASK | head | (count as u64) << COUNT_SHIFT | if shelve { SHELVED } else { 0 };
            // Release: the links are visible to whoever takes the list. Acquire: `out_at_park`, below, is at least as
            // new as the park that we saw.
            match K::compare_exchange(
                &self.shared.word,
                seen,
                pushed,
                order(Fault::PushRelaxed, Ordering::AcqRel),
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    let emptied = parked
                        && self.shared.out_at_park.load(Ordering::Relaxed) == count
                        && !planted(Fault::EmptiedIgnored);
                    return Ok(if emptied { Pushed::Emptied { shelve } } else { Pushed::Waiting { shelve } });
                }
                Err(now) => seen = now,
            }
        }
    }

    /// Takes the slab if it is parked, with all that others have freed into it. With `unshelve` the caller has popped the
    /// slab off its shelf, and the shelved bit is cleared whether the claim succeeds or not.
    ///
    /// # Errors
    /// [`Misuse`] if the remote list is not what its count says; the slab is the caller's then.
    pub fn claim<K: Sharing>(&self, me: HeapId, unshelve: bool) -> Result<bool, Misuse> {
        let keep = if unshelve { !SHELVED } else { !0 };
        let mut seen = self.shared.word.load(Ordering::Relaxed);
        loop {
            let parked = (seen >> OWNER_SHIFT) as HeapId == PARKED;
            if !parked && !unshelve {
                return Ok(false);
            }
            let next = if parked { (me as u64) << OWNER_SHIFT | seen & SHELVED & keep } else { seen & keep };
            // Acquire: the local part as its last owner left it, and the links of the remote list.
            match K::compare_exchange(
                &self.shared.word,
                seen,
                next,
                order(Fault::ClaimRelaxed, Ordering::AcqRel),
                Ordering::Relaxed,
            ) {
                Ok(_) if !parked => return Ok(false),
                Ok(_) => {
                    // SAFETY: the slab is ours by the exchange, and so is the list that it took out.
                    unsafe { self.absorb(seen) }?;
                    return Ok(true);
                }
                Err(now) => seen = now,
            }
        }
    }

    /// Makes an owned slab free. The answer is `false`, and nothing is changed, if others have freed into it meanwhile.
    ///
    /// # Safety
    /// The caller owns the slab, no block is out, and the caller does not touch the local part after `true`.
    pub unsafe fn retire<K: Sharing>(&self) -> bool {
        let mut seen = self.shared.word.load(Ordering::Relaxed);
        loop {
            if seen & LIST_MASK != 0 {
                return false;
            }
            match K::compare_exchange(
                &self.shared.word,
                seen,
                seen & SHELVED,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
    }

    /// Counters of the local part: blocks out, free, never handed out.
    ///
    /// # Safety
    /// The caller owns the slab.
    pub unsafe fn counts(&self) -> Counts {
        // SAFETY: the caller owns the slab.
        unsafe {
            self.local(|l| Counts {
                out: l.out,
                free: l.free_count,
                virgin: l.capacity - l.virgin,
                capacity: l.capacity,
            })
        }
    }

    fn offset_of(&self, block: *mut Block) -> u64 {
        ((block.addr() - self.start().addr()) / 8) as u64 + 1
    }

    /// The block that a head field names, null for 0.
    fn block_at(&self, head: u64) -> *mut Block {
        if head == 0 { ptr::null_mut() } else { self.start().wrapping_add((head as usize - 1) * 8).cast() }
    }
}

/// What a slab's shared part says.
#[cfg(not(loom))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct WordParts {
    pub(crate) owner: HeapId,
    pub(crate) shelved: bool,
    /// First block that others have freed, null for none.
    pub(crate) remote_head: *mut Block,
    pub(crate) remote_count: u32,
    /// Blocks that were out when the slab was last parked.
    pub(crate) out_at_park: u32,
}

/// Others have freed into the slab meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pending;

/// Where the blocks of an owned slab are, its remote list aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counts {
    /// With the program or in threads' lists.
    pub out: u32,
    /// In the free list.
    pub free: u32,
    /// Never handed out.
    pub virgin: u32,
    /// All.
    pub capacity: u32,
}
