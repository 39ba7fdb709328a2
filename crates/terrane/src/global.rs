//! [`Terrane`] as the program's allocator.

use std::alloc::{GlobalAlloc, Layout};

/// The process's allocator: one heap per thread, made at the thread's first need.
///
/// ```
/// #[global_allocator]
/// static GLOBAL: terrane::Terrane = terrane::Terrane;
/// # fn main() {}
/// ```
///
/// In debug builds a `dealloc` with a layout of another size class than the block's aborts with one line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terrane;

// SAFETY: blocks come from `terrane-front`, which hands out each address once until it is freed, aligned and long enough;
// no call unwinds.
unsafe impl GlobalAlloc for Terrane {
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: a layout's alignment is a power of two.
        unsafe { terrane_front::alloc(layout.size(), layout.align()) }
    }

    #[inline(always)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { terrane_front::free_sized(block, layout.size(), layout.align()) };
    }

    #[inline(always)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: a layout's alignment is a power of two.
        unsafe { terrane_front::alloc_zeroed(layout.size(), layout.align()) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { terrane_front::realloc_sized(block, layout.size(), layout.align(), new_size) }
    }
}
