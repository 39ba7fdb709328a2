//! Freed blocks: each links to the next, and a chain of them is owned by whoever holds it.

use terrane_core::sync::cell::UnsafeCell;

/// A freed block: its first word links to the next.
#[derive(Debug)]
#[repr(transparent)]
pub struct Block {
    next: UnsafeCell<*mut Block>,
}

impl Block {
    /// Makes a block of memory that was never one, linked to `next`.
    ///
    /// # Safety
    /// The memory is at least a word, aligned to one, and the caller's.
    #[inline(always)]
    pub unsafe fn emplace(block: *mut Self, next: *mut Self) {
        // SAFETY: the caller owns the memory.
        unsafe { block.write(Self { next: UnsafeCell::new(next) }) };
    }

    /// Links `block` to `next`.
    ///
    /// # Safety
    /// The block is free and the caller's.
    #[inline(always)]
    pub unsafe fn set_next(block: *mut Self, next: *mut Self) {
        // SAFETY: the caller owns the block, so nobody reads its link meanwhile.
        unsafe { (*block).next.with_mut(|link| link.write(next)) };
    }

    /// What `block` links to.
    ///
    /// # Safety
    /// The block is free and the caller's.
    #[inline(always)]
    pub unsafe fn next(block: *mut Self) -> *mut Self {
        // SAFETY: the caller owns the block, so nobody writes its link meanwhile.
        unsafe { (*block).next.with(|link| link.read()) }
    }
}

/// A list of `count ≥ 1` linked blocks of one slab, owned by whoever holds it.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    /// First block.
    pub head: *mut Block,
    /// Last block; its link means nothing.
    pub tail: *mut Block,
    /// Number of blocks.
    pub count: u32,
}
