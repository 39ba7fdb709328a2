//! The C interface of Terrane: `libterrane.so` for `LD_PRELOAD`, a static library, and `terrane.h`.
//!
//! ```text
//!   malloc, calloc, realloc, free, …      malloc.rs    the family as programs for glibc expect it
//!   operator new, operator delete         cplusplus.rs
//!   terrane_heap_new, …                   heaps.rs     heaps of one's own, behind a lock
//!   terrane_pool_new, …                   pools.rs     pools of objects and of buffers, with a cache per thread
//!   TERRANE_… environment variables       config.rs, settings.rs
//!   the report at exit, malloc_info       report.rs
//! ```
//!
//! ```sh
//! LD_PRELOAD=libterrane.so python3 -c 'print("on Terrane")'
//! ```
//!
//! # Features and limits
//!
//! No feature flags. Built and tested on x86-64 Linux with glibc. Blocks are aligned to 16 bytes. A block of 0 bytes is a block
//! like any other. Requests above `PTRDIFF_MAX` fail with `ENOMEM`. Misuse that is noticed ends the process with one line.

#![no_std]

extern crate std;

pub mod config;
pub mod cplusplus;
pub mod heaps;
pub mod malloc;
pub mod pools;
pub mod report;

use core::alloc::{GlobalAlloc, Layout};

/// The library's own boxes: Terrane's blocks, without a detour over symbols. A library that is opened by a program on another
/// allocator finds that one under the names `malloc` and `free`, and not all of its own calls take that way.
struct Own;

// SAFETY: the front end's functions keep the contract of an allocator, and never unwind.
unsafe impl GlobalAlloc for Own {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the alignment of a layout is a power of two.
        unsafe { terrane_front::alloc(layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the same.
        unsafe { terrane_front::alloc_zeroed(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { terrane_front::free_sized(block, layout.size(), layout.align()) };
    }
}

#[global_allocator]
static OWN: Own = Own;
pub mod settings;
