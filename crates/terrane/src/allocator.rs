//! [`Terrane`] and [`Heap`](crate::Heap) as allocators of single collections.
//!
//! `allocator-api2` and the standard library ask for the same methods of two traits; one macro writes both.

use crate::{Heap, Terrane};
use core::alloc::Layout;
use core::ptr::{self, NonNull};
use terrane_core::PageSource;

fn slice(block: Option<NonNull<u8>>, bytes: usize) -> Option<NonNull<[u8]>> {
    block.map(|block| NonNull::slice_from_raw_parts(block, bytes))
}

impl Terrane {
    fn allocate_layout(layout: Layout, zeroed: bool) -> Option<NonNull<[u8]>> {
        if layout.size() == 0 {
            return slice(NonNull::new(ptr::without_provenance_mut(layout.align())), 0);
        }
        // SAFETY: a layout's alignment is a power of two.
        let block = unsafe {
            if zeroed {
                terrane_front::alloc_zeroed(layout.size(), layout.align())
            } else {
                terrane_front::alloc(layout.size(), layout.align())
            }
        };
        slice(NonNull::new(block), layout.size())
    }

    /// # Safety
    /// The block came from this allocator with `layout`.
    unsafe fn deallocate_layout(block: NonNull<u8>, layout: Layout) {
        if layout.size() != 0 {
            // SAFETY: the caller's promise.
            unsafe { terrane_front::free_sized(block.as_ptr(), layout.size(), layout.align()) };
        }
    }

    /// # Safety
    /// The block came from this allocator with `old`.
    unsafe fn resize_layout(block: NonNull<u8>, old: Layout, new: Layout) -> Option<NonNull<[u8]>> {
        if old.size() == 0 || new.size() == 0 || old.align() != new.align() {
            let moved = Self::allocate_layout(new, false)?;
            // SAFETY: both blocks are live and do not overlap.
            unsafe {
                moved.cast::<u8>().copy_from_nonoverlapping(block, old.size().min(new.size()));
                Self::deallocate_layout(block, old);
            }
            return Some(moved);
        }
        // SAFETY: the caller's promise.
        let moved =
            unsafe { terrane_front::realloc_sized(block.as_ptr(), old.size(), old.align(), new.size()) };
        slice(NonNull::new(moved), new.size())
    }
}

impl<S: PageSource> Heap<S> {
    fn allocate_layout(&self, layout: Layout, zeroed: bool) -> Option<NonNull<[u8]>> {
        if layout.size() == 0 {
            return slice(NonNull::new(ptr::without_provenance_mut(layout.align())), 0);
        }
        let block = if zeroed {
            self.private().alloc_zeroed(layout.size(), layout.align())
        } else {
            self.private().alloc(layout.size(), layout.align())
        };
        slice(block, layout.size())
    }

    /// # Safety
    /// The block came from this heap with `layout`.
    unsafe fn deallocate_layout(&self, block: NonNull<u8>, layout: Layout) {
        if layout.size() != 0 {
            // SAFETY: the caller's promise.
            unsafe { self.private().free(block, layout.size(), layout.align()) };
        }
    }

    /// # Safety
    /// The block came from this heap with `old`.
    unsafe fn resize_layout(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Option<NonNull<[u8]>> {
        if old.size() == 0 || new.size() == 0 || old.align() != new.align() {
            let moved = self.allocate_layout(new, false)?;
            // SAFETY: both blocks are live and do not overlap.
            unsafe {
                moved.cast::<u8>().copy_from_nonoverlapping(block, old.size().min(new.size()));
                self.deallocate_layout(block, old);
            }
            return Some(moved);
        }
        // SAFETY: the caller's promise.
        let moved = unsafe { self.private().realloc(block, old.size(), old.align(), new.size()) };
        slice(moved, new.size())
    }
}

macro_rules! allocator {
    ($api:path, $error:path) => {
        // SAFETY: blocks stay valid until they are given back; copies of a unit struct are one allocator. No call unwinds.
        unsafe impl $api for Terrane {
            fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, $error> {
                Terrane::allocate_layout(layout, false).ok_or($error)
            }
            fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, $error> {
                Terrane::allocate_layout(layout, true).ok_or($error)
            }
            unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
                // SAFETY: the caller's promise.
                unsafe { Terrane::deallocate_layout(block, layout) };
            }
            unsafe fn grow(
                &self,
                block: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $error> {
                // SAFETY: the caller's promise.
                unsafe { Terrane::resize_layout(block, old, new) }.ok_or($error)
            }
            unsafe fn shrink(
                &self,
                block: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $error> {
                // SAFETY: the caller's promise.
                unsafe { Terrane::resize_layout(block, old, new) }.ok_or($error)
            }
        }

        // SAFETY: blocks stay valid until they are given back or the heap is dropped, which the reference prevents; copies
        // of the reference are one allocator. No call unwinds.
        unsafe impl<S: PageSource> $api for &Heap<S> {
            fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, $error> {
                self.allocate_layout(layout, false).ok_or($error)
            }
            fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, $error> {
                self.allocate_layout(layout, true).ok_or($error)
            }
            unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
                // SAFETY: the caller's promise.
                unsafe { self.deallocate_layout(block, layout) };
            }
            unsafe fn grow(
                &self,
                block: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $error> {
                // SAFETY: the caller's promise.
                unsafe { self.resize_layout(block, old, new) }.ok_or($error)
            }
            unsafe fn shrink(
                &self,
                block: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $error> {
                // SAFETY: the caller's promise.
                unsafe { self.resize_layout(block, old, new) }.ok_or($error)
            }
        }
    };
}

allocator!(allocator_api2::alloc::Allocator, allocator_api2::alloc::AllocError);
#[cfg(feature = "nightly")]
allocator!(std::alloc::Allocator, std::alloc::AllocError);
