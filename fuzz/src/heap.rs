//! A heap of its own, seen as the model wants it.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::NonNull;
use terrane_core::PageSource;
use terrane_slab::PrivateHeap;

/// A [`PrivateHeap`] as `GlobalAlloc`.
pub struct OneHeap<S: PageSource>(pub PrivateHeap<S>);

fn pointer(block: Option<NonNull<u8>>) -> *mut u8 {
    block.map_or(std::ptr::null_mut(), NonNull::as_ptr)
}

// SAFETY: the heap's contract is that of `GlobalAlloc`; it is used from one thread only.
unsafe impl<S: PageSource> GlobalAlloc for OneHeap<S> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        pointer(self.0.alloc(layout.size(), layout.align()))
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        pointer(self.0.alloc_zeroed(layout.size(), layout.align()))
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let block = NonNull::new(block).expect("the model frees what it was given");
        // SAFETY: the caller's promise.
        unsafe { self.0.free(block, layout.size(), layout.align()) };
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let block = NonNull::new(block).expect("the model resizes what it was given");
        // SAFETY: the caller's promise.
        pointer(unsafe { self.0.realloc(block, layout.size(), layout.align(), size) })
    }
}
