//! The five-tier slab core of Terrane, generic over where pages come from.
//!
//! ```text
//!   heap      one thread's view: alloc / free / realloc over the tiers            heap.rs, lists.rs, large.rs, huge.rs
//!   slab      a run of slices with blocks of one size class; its free lists       slab.rs, size_class.rs
//!   queue     per heap and class: the slabs by fullness; shelves of parked slabs  queue.rs, shelf.rs, remote.rs
//!   segment   an aligned piece of an arena, found by masking; all slab metadata   segment.rs, segment_map.rs
//!   arena     a large reserved range, committed on demand, never given back       arena.rs, domain.rs, purge.rs
//! ```
//!
//! The crate is `no_std`, allocates nothing but from its page source, and knows threads only through its atomics: the
//! thread-local part is `terrane-front`, the finished allocator is `terrane`.
//!
//! # Example
//!
//! A heap of its own over memory-mapped pages, destroyed at once with all that is in it:
//!
//! ```
//! use terrane_pages::Mmap;
//! use terrane_slab::PrivateHeap;
//!
//! let heap = PrivateHeap::new_in(Mmap::new()).unwrap();
//! let block = heap.alloc(100, 16).unwrap();
//! // SAFETY: the block has 100 bytes, and is freed once, with the size and alignment that it was allocated with.
//! unsafe {
//!     block.write_bytes(7, 100);
//!     heap.free(block, 100, 16);
//! }
//! let _lives_as_long_as_the_heap = heap.alloc(1 << 20, 4096).unwrap();
//! ```
//!
//! # Features and limits
//!
//! * `valgrind`: tells valgrind's memcheck of the blocks of private heaps, with red zones; a little slower without valgrind.
//!
//! A block is shorter than 1 TiB. One domain gives out at most 2²⁴ − 3 names to heaps: one to each, and where NUMA nodes are kept
//! apart one for each node that the heap was on. Segments are 32 MiB on 64-bit machines and 4 MiB on 32-bit ones.

#![no_std]

#[cfg(any(test, loom, schedules))]
extern crate std;

pub mod arena;
pub mod bitmap;
mod block;
mod colour;
pub mod depths;
pub mod domain;
#[cfg(not(any(loom, schedules)))]
mod fault;
#[cfg(any(loom, schedules))]
pub mod fault;
pub mod heap;
pub mod huge;
mod large;
pub mod lists;
#[cfg(feature = "valgrind")]
pub mod memcheck;
mod nodes;
mod policy;
#[cfg(not(loom))]
pub mod private;
pub mod purge;
mod queue;
mod remote;
#[cfg(schedules)]
pub mod schedules;
pub mod segment;
pub mod segment_map;
pub mod sharing;
pub mod shelf;
pub mod size_class;
pub mod slab;
pub mod stats;
#[cfg(not(loom))]
pub mod verify;
mod zeroed;

pub use arena::Growth;
pub use depths::ListSizing;
pub use domain::{Domain, Policy};
pub use heap::Heap;
pub use lists::Lists;
#[cfg(not(loom))]
pub use private::PrivateHeap;
pub use purge::PurgePolicy;
pub use sharing::{Local, Shared, Sharing};
pub use slab::{HeapId, Misuse};
#[cfg(not(loom))]
pub use verify::{Broken, VerifyError, VerifyReport};
