//! A thread's own lists of free blocks, one a size class: the hit path.
//!
//! Invariant: the blocks of a list are out, from the point of view of their slabs, and belong to the thread. `room` is how
//! many more frees a list takes before it is looked at; it only counts down, so an allocation that hits touches nothing but
//! the head. A look sees a short list, or sets all but the first few blocks of a long one aside, so a list and what is aside
//! for it hold at most its bound, the room granted at the last look, and one refill.
//!
//! Before a thread has a heap its lists are empty, have no room, and bear a name that no slab has as its home: every call
//! misses, so the hit path has no "initialised?" test.

use crate::large::LargeLists;
use crate::size_class::{self, CLASSES};
use crate::slab::{Block, HeapId};
use core::cell::Cell;
use core::ptr;

/// Bytes of free blocks that a list and what is set aside for it should hold at most, together.
const LIST_BYTES: usize = 64 * 1024;

/// Blocks of `class` that a list and what is set aside for it should hold at most, together, until a policy says otherwise
/// ([`depths`](crate::depths)).
#[inline]
pub const fn bound(class: usize) -> u32 {
    let blocks = LIST_BYTES / size_class::TABLE[class].block_bytes as usize;
    if blocks > 256 {
        256
    } else if blocks < 4 {
        4
    } else {
        blocks as u32
    }
}

/// Blocks that a heap looks at or returns in one go when a list that holds up to `depth` is to be cut back.
#[inline]
pub(crate) const fn part(depth: u32) -> u32 {
    let eighth = depth / 8;
    if eighth > 32 {
        32
    } else if eighth < 2 {
        2
    } else {
        eighth
    }
}

/// Frees that a list that holds up to `depth` takes before it is looked at again, when at most a [`part`] was in it at the last
/// look.
#[inline]
pub(crate) const fn room_when_short(depth: u32) -> u32 {
    depth - part(depth)
}

/// The name that no heap has.
const NOBODY: HeapId = HeapId::MAX;

/// See the [module](self).
#[derive(Debug)]
#[repr(C)]
pub struct Lists {
    heads: [Cell<*mut Block>; CLASSES],
    room: [Cell<i32>; CLASSES],
    name: Cell<HeapId>,
    pub(crate) large: LargeLists,
}

impl Lists {
    /// Lists of a thread that has no heap: every call misses.
    pub const fn new() -> Self {
        Self {
            heads: [const { Cell::new(ptr::null_mut()) }; CLASSES],
            room: [const { Cell::new(0) }; CLASSES],
            name: Cell::new(NOBODY),
            large: LargeLists::new(),
        }
    }

    /// Takes a block of `class`, or null if the list is empty.
    ///
    /// # Safety
    /// `class` is below [`CLASSES`].
    #[inline(always)]
    pub unsafe fn pop(&self, class: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        let list = unsafe { self.heads.get_unchecked(class) };
        let head = list.get();
        if !head.is_null() {
            // SAFETY: blocks of the list are the thread's.
            list.set(unsafe { Block::next(head) });
        }
        head.cast()
    }

    /// Gives a block of `class` back, whose slab has `home` as its home; `false`, and nothing is kept, if the list has no
    /// room or the home is another.
    ///
    /// # Safety
    /// `class` is below [`CLASSES`] and the block's; the block is the caller's and not used any more.
    #[inline(always)]
    pub unsafe fn push(&self, block: *mut u8, class: usize, home: HeapId) -> bool {
        if home != self.name.get() {
            return false;
        }
        // SAFETY: the caller's promise.
        let (room, list) = unsafe { (self.room.get_unchecked(class), self.heads.get_unchecked(class)) };
        let left = room.get().wrapping_sub(1);
        // Stored before it is tested: one read-modify-write instruction whose flags are the test. The miss path mends it.
        room.set(left);
        if left < 0 {
            return false;
        }
        let block = block.cast::<Block>();
        // SAFETY: the block is the thread's.
        unsafe { Block::emplace(block, list.get()) };
        list.set(block);
        true
    }

    /// Takes a large block for `bytes` at a multiple of `align`, which is at most the slice length; null if there is none.
    #[inline(always)]
    pub fn pop_large(&self, bytes: usize, align: usize) -> *mut u8 {
        self.large.pop(bytes, align)
    }

    /// Gives a large block back that was allocated, or last grown, for `bytes`; `false`, and nothing is kept, if it is no live
    /// large block or there is no room for it.
    ///
    /// # Safety
    /// The block is one of the allocator that the lists belong to, the caller's, and not used any more.
    #[inline(always)]
    pub unsafe fn push_large(&self, block: *mut u8, bytes: usize) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.large.push(block, bytes) }
    }

    /// Large blocks allocated from these lists since the heap's last tick.
    pub fn large_hits(&self) -> u64 {
        self.large.hits()
    }

    /// Whether `block` is the one that was last freed into the list of `class`: a cheap look for the commonest double free.
    ///
    /// # Safety
    /// `class` is below [`CLASSES`].
    #[inline(always)]
    pub unsafe fn is_last_freed(&self, block: *mut u8, class: usize) -> bool {
        // SAFETY: the caller's promise.
        ptr::eq(unsafe { self.heads.get_unchecked(class) }.get().cast(), block)
    }

    /// Puts a block on top of its list, room or not.
    ///
    /// # Safety
    /// As for [`push`](Self::push).
    pub(crate) unsafe fn push_anyway(&self, block: *mut Block, class: usize) {
        // SAFETY: the block is the thread's.
        unsafe { Block::emplace(block, self.heads[class].get()) };
        self.heads[class].set(block);
    }

    /// Names the heap that the lists belong to: from now on blocks at home there are kept.
    pub fn bind(&self, name: HeapId) {
        self.name.set(name);
    }

    /// Makes every call miss again. The lists must have been drained.
    pub fn unbind(&self) {
        self.name.set(NOBODY);
        for class in 0..CLASSES {
            debug_assert!(self.heads[class].get().is_null());
            self.room[class].set(0);
        }
    }

    /// The heap that the lists belong to, if any.
    pub fn name(&self) -> Option<HeapId> {
        Some(self.name.get()).filter(|&name| name != NOBODY)
    }

    /// First block of a list.
    pub(crate) fn head(&self, class: usize) -> *mut Block {
        self.heads[class].get()
    }

    /// Replaces a list.
    pub(crate) fn set_head(&self, class: usize, head: *mut Block) {
        self.heads[class].set(head);
    }

    /// Room left, 0 after a miss.
    pub(crate) fn room(&self, class: usize) -> i32 {
        self.room[class].get()
    }

    /// Grants room for `frees` frees.
    pub(crate) fn set_room(&self, class: usize, frees: i32) {
        self.room[class].set(frees);
    }

    /// Blocks in the list of `class`. Linear in the answer.
    pub fn len(&self, class: usize) -> usize {
        let (mut count, mut block) = (0, self.heads[class].get());
        while !block.is_null() {
            count += 1;
            // SAFETY: blocks of the list are the thread's.
            block = unsafe { Block::next(block) };
        }
        count
    }

    /// Frees that the list of `class` takes before its length is looked at.
    pub fn room_left(&self, class: usize) -> u64 {
        self.room[class].get().max(0) as u64
    }

    /// Whether the list of `class` is empty.
    pub fn is_empty(&self, class: usize) -> bool {
        self.heads[class].get().is_null()
    }
}

impl Default for Lists {
    fn default() -> Self {
        Self::new()
    }
}
