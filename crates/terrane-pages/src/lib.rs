//! Where pages come from: sources of host memory that can be reserved, committed, given back and moved, each a
//! [`PageSource`](terrane_core::PageSource). They serve the allocators of Terrane and anything else that manages memory
//! by the page: arenas, buffer pools, databases, garbage collectors.
//!
//! ```text
//!   heaps, pools, regions            ask a PageSource: reserve, commit, decommit, release, remap, hints
//!        |
//!   Accounting  Faulty  PageSized    tests: exact books, the Nth call fails, larger pages
//!   Numa  Dense                      policy: which node, huge pages where they are full
//!        |
//!   Mmap  Sbrk  Shared  FileBacked   anonymous memory, the program break, memory of several processes, a file
//!        |
//!   sys: linux | macos | windows | wasm
//! ```
//!
//! The upper ones are decorators: they stand on any source, and on one another. All but those that need the standard
//! library are made in a `const`, never allocate, and can stand under a global allocator.
//!
//! ```
//! use std::ptr::NonNull;
//! use terrane_core::{Contents, Decommit, PageSource, Source};
//! use terrane_pages::{Mmap, NodeChoice, Numa};
//!
//! // Pages of the memory node on which the reserving thread runs, at most 1 TiB of addresses.
//! static PAGES: Numa<Mmap> = Numa::new(Mmap::new().with_limit(1 << 40), NodeChoice::Local);
//!
//! let arena = PAGES.reserve(1 << 30, 1 << 22).unwrap(); // a GiB of addresses at a multiple of 4 MiB: no memory yet
//! let start = NonNull::new(arena.as_ptr()).unwrap();
//! // SAFETY: the ranges lie in the reservation, and are committed while they are used.
//! unsafe {
//!     PAGES.commit(start, 1 << 20).unwrap();
//!     start.write_bytes(7, 1 << 20);
//!     // Growing without copying: the pages move, the rest is zero.
//!     let place = start.add(1 << 22);
//!     if PAGES.remap(start, 1 << 20, place, 1 << 21).is_ok() {
//!         assert_eq!((place.read(), place.add(1 << 20).read()), (7, 0));
//!         assert_eq!(PAGES.decommit(place, 1 << 21, Decommit::Now), Ok(Contents::Zero));
//!     }
//!     PAGES.release(arena).unwrap();
//! }
//! ```
//!
//! # Features
//!
//! | feature | default | what it brings | what it needs |
//! |---|---|---|---|
//! | `std` | yes | [`Shared`], [`FileBacked`], [`Topology`], [`Accounting`] | the standard library |
//! | `hwloc` | no | `Topology::from_hwloc` | the C library hwloc 2.0 or later, with its headers |
//!
//! Without `std` the crate is `no_std` and depends on `libc` (on Windows, `windows-sys`) alone.
//!
//! # Limits
//!
//! Linux is where the crate is tested. The modules for macOS, Windows and WebAssembly are type-checked against those
//! targets and were not run; what each of them lacks is in the book's page on page sources. Other systems are refused
//! when compiling. On WebAssembly the source is [`Sbrk`]: there is one memory, which only grows.

#![no_std]

#[cfg(feature = "std")]
extern crate std;

#[cfg(feature = "std")]
pub mod accounting;
pub mod dense;
pub mod faulty;
#[cfg(feature = "std")]
pub mod file;
mod forward;
pub mod huge;
#[cfg(feature = "std")]
mod intervals;
mod list;
mod lock;
#[cfg(feature = "std")]
mod mapped;
pub mod mmap;
pub mod numa;
mod page;
pub mod page_sized;
pub mod sbrk;
#[cfg(feature = "std")]
pub mod shared;
mod sys;
#[cfg(feature = "std")]
pub mod topology;

#[cfg(feature = "std")]
pub use accounting::{Accounting, Misuse, Totals};
pub use dense::Dense;
pub use faulty::{Call, Faulty};
#[cfg(feature = "std")]
pub use file::FileBacked;
pub use huge::HugePages;
pub use mmap::{Commit, Mmap};
pub use numa::{NodeChoice, Numa};
pub use page::{huge_page_size, page_size};
pub use page_sized::PageSized;
pub use sbrk::Sbrk;
#[cfg(feature = "std")]
pub use shared::Shared;
#[cfg(feature = "std")]
pub use topology::{Node, Topology, TopologyError};
