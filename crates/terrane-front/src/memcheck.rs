//! The calls of [`calls`] for programs under valgrind's memcheck: each block has a red zone, and memcheck
//! is told of it.
//!
//! Invariant: every block of the process passed [`handed_out`] with the length that the program asked for, so its length
//! in [`calls`] is that with the red zone, in all of alloc, free and realloc.

use crate::calls;
use terrane_slab::memcheck::{Owner, Quiet, asked_for, given_back, handed_out, padded};

/// What a call returned, told to memcheck.
unsafe fn tell(block: *mut u8, bytes: usize, zeroed: bool) -> *mut u8 {
    if !block.is_null() {
        // SAFETY: the block is live, as it was just allocated, with `bytes` and a red zone; lengths of classes and of large
        // blocks are multiples of 8.
        unsafe { handed_out(Owner::Process, block, bytes, calls::usable_size(block), zeroed) };
    }
    block
}

/// As [`calls::alloc`].
///
/// # Safety
/// As there.
pub unsafe fn alloc(bytes: usize, align: usize) -> *mut u8 {
    let _quiet = Quiet::new();
    // SAFETY: the caller's promise.
    unsafe { tell(calls::alloc(padded(bytes), align), bytes, false) }
}

/// As [`calls::alloc_zeroed`].
///
/// # Safety
/// As there.
pub unsafe fn alloc_zeroed(bytes: usize, align: usize) -> *mut u8 {
    let _quiet = Quiet::new();
    // SAFETY: the caller's promise.
    unsafe { tell(calls::alloc_zeroed(padded(bytes), align), bytes, true) }
}

/// As [`calls::free_sized`].
///
/// # Safety
/// As there.
pub unsafe fn free_sized(block: *mut u8, bytes: usize, align: usize) {
    given_back(Owner::Process, block);
    let _quiet = Quiet::new();
    // SAFETY: the caller's promise; the length is that with which it was allocated.
    unsafe { calls::free_sized(block, padded(bytes), align) };
}

/// As [`calls::free`].
///
/// # Safety
/// As there.
pub unsafe fn free(block: *mut u8) {
    if !block.is_null() {
        given_back(Owner::Process, block);
        let _quiet = Quiet::new();
        // SAFETY: the caller's promise.
        unsafe { calls::free(block) };
    }
}

/// As [`calls::usable_size`]: exactly what was asked for, as the red zone follows it.
///
/// # Safety
/// As there.
pub unsafe fn usable_size(block: *mut u8) -> usize {
    if block.is_null() {
        return 0;
    }
    let _quiet = Quiet::new();
    // SAFETY: the caller's promise; every block was told of.
    unsafe { asked_for(block, calls::usable_size(block)) }
}

/// As [`calls::realloc_sized`], but always moved: what pointed to the old block is wrong from now on, and is found.
///
/// # Safety
/// As there.
pub unsafe fn realloc_sized(block: *mut u8, old_bytes: usize, align: usize, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the new block does not overlap the old, which is live.
    unsafe {
        let moved = alloc(bytes, align);
        if !moved.is_null() {
            moved.copy_from_nonoverlapping(block, old_bytes.min(bytes));
            free_sized(block, old_bytes, align);
        }
        moved
    }
}

/// As [`calls::realloc`], but always moved.
///
/// # Safety
/// As there.
pub unsafe fn realloc(block: *mut u8, bytes: usize, align: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the new block does not overlap the old, which is live.
    unsafe {
        let have = usable_size(block);
        let moved = alloc(bytes, align);
        if !moved.is_null() {
            moved.copy_from_nonoverlapping(block, have.min(bytes));
            free(block);
        }
        moved
    }
}
