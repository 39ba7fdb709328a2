//! Terrane: a general-purpose memory allocator in pure Rust, and the heaps it is made of.
//!
//! ```text
//!   #[global_allocator] Terrane ──▶ terrane-front: one heap per thread, lists in thread-local storage
//!   Heap (a builder's)  ───────────▶ terrane-slab: arenas, segments, queues, slabs
//!   any page source     ───────────▶ terrane-pages: mmap, sbrk, huge pages, NUMA, files
//! ```
//!
//! # Example
//!
//! ```
//! #[global_allocator]
//! static GLOBAL: terrane::Terrane = terrane::Terrane;
//!
//! fn main() {
//!     let words: Vec<String> = (0..1000).map(|i| format!("word {i}")).collect();
//!     assert_eq!(words.len(), 1000);
//!     let stats = terrane::stats();
//!     assert!(stats.live_bytes() > 1000 * 24);
//! }
//! ```
//!
//! A heap of one's own, and a vector in it (with `allocator-api2`, 0.2, among the program's dependencies):
//!
//! ```
//! use allocator_api2::vec::Vec;
//!
//! let heap = terrane::Heap::builder().build().unwrap();
//! let mut numbers = Vec::new_in(&heap);
//! numbers.extend(0..100_000_u64);
//! assert_eq!(numbers.iter().sum::<u64>(), 4_999_950_000);
//! ```
//!
//! # Features and limits
//!
//! * `nightly`: implements the standard library's `Allocator` for [`Terrane`] and [`Heap`] as well; needs a nightly compiler.
//! * `valgrind`: for programs under valgrind's memcheck, which then sees every block of [`Terrane`] and [`Heap`] with a red zone
//!   behind it: use after free, overflow, double free, uninitialised reads and leaks are reported as with the system's
//!   allocator. On x86-64 and AArch64.
//!
//! [`pages`] has what `terrane-pages` has without the standard library. A program that wants its files, shared memory or topology adds
//! `terrane-pages` to its dependencies, whose default feature `std` is on then.
//!
//! The crate builds with nothing but Rust installed. Blocks are shorter than 1 TiB. It is written for Unix systems, and was built,
//! tested and measured on x86-64 Linux.

#![cfg_attr(feature = "nightly", feature(allocator_api))]

mod allocator;
mod global;
mod heap;

pub use global::Terrane;
pub use heap::{Classes, Heap, HeapBuilder};
pub use terrane_core as core;
pub use terrane_core::Decommit;
pub use terrane_front::{Background, ClassSnapshot, Snapshot};
pub use terrane_pages as pages;
pub use terrane_slab as slab;
pub use terrane_slab::{Broken, Growth, PurgePolicy, VerifyError, VerifyReport};

/// Takes a snapshot of the process's allocator: per tier and per class, exact when all threads stand still, and never with more
/// freed than allocated. Allocates nothing.
pub fn stats() -> Snapshot {
    terrane_front::snapshot()
}

/// Checks what the calling thread owns, and what of the shared structures holds at any moment; other threads may run.
///
/// ```
/// let numbers: Vec<u64> = (0..1000).collect();
/// terrane::verify().expect("the allocator is in order");
/// # drop(numbers);
/// ```
///
/// # Errors
/// What is broken, and where: a block was freed twice, or written to after it was freed, or there is a mistake in Terrane.
pub fn verify() -> Result<VerifyReport, VerifyError> {
    terrane_front::verify()
}

/// Checks everything: all heaps and all that they share, and that slices, slabs, blocks and bytes add up.
///
/// # Errors
/// As for [`verify`].
///
/// # Safety
/// As for [`terrane_front::verify_quiet`]: no other thread allocates, frees, begins or ends meanwhile.
pub unsafe fn verify_quiet() -> Result<VerifyReport, VerifyError> {
    // SAFETY: the caller's promise is the same.
    unsafe { terrane_front::verify_quiet() }
}

/// Returns the free blocks that the calling thread holds back to their slabs, and gives up slabs that are empty.
pub fn collect() {
    terrane_front::collect();
}

/// Gives all free memory that the calling thread can see back to the system: what waits in its own lists and caches, and what no
/// thread holds. Bytes given back meanwhile, by other threads too.
pub fn purge() -> usize {
    terrane_front::purge()
}

/// Gives back what has not been needed for a while: for the idle loop of a program that waits long.
pub fn tick() {
    terrane_front::tick();
}

/// Starts a thread that gives memory back on time while the program is idle; whether it runs. The same as
/// [`set_background`]`(Background::On)`.
pub fn start_background_purge() -> bool {
    terrane_front::start_background_purge()
}

/// Chooses whether a thread gives memory back while the program is idle, from now on. By default one is started when a program
/// of several threads has held 32 MiB at one time and frees memory, and it ends when none is left to give back. Without it memory
/// is given back when the program allocates, frees or calls [`tick`]. The answer is `false` if a thread was to be started and
/// could not be.
pub fn set_background(mode: Background) -> bool {
    terrane_front::set_background(mode)
}

/// Changes how the process's allocator gives memory back, from now on.
pub fn set_purge_policy(policy: PurgePolicy) {
    terrane_front::process::domain().set_purge(policy);
}

/// Keeps the memory of the machine's NUMA nodes apart, or no longer, from now on: a thread is served from the node that it runs
/// on, and follows itself when it is moved; what it frees goes back to the node that it came from, for threads there. At first
/// all memory is alike, and a page lies on the node of the thread that touched it first. For programs whose threads are bound
/// to nodes; call it first thing in `main`. On a machine of one node it changes nothing.
pub fn set_numa(on: bool) {
    terrane_front::process::set_numa(on);
}

/// Switches transparent huge pages behind huge blocks (above 4 MiB) that are expected to be filled, because they were not asked to
/// be zero or have grown, on or off, from now on. They are on at first.
pub fn set_huge_pages(on: bool) {
    terrane_front::process::domain().set_huge_pages(on);
}
