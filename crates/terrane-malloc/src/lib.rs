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
pub mod settings;
