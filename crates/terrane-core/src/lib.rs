//! The joints of Terrane: the few small traits through which its crates meet, and the words they share.
//!
//! Every layer of Terrane can stand on any other that offers the trait below it, so a program can take the whole
//! allocator or a single room of it:
//!
//! ```text
//!   pools, heaps, regions, GPU pools          use  Source, PageSource, Placement, Sizing; tell Observer
//!        |            |            |
//!   PageSource     Source      Placement          this crate: traits and vocabulary, no code that allocates
//!        |            |            |
//!   mmap, sbrk    CUDA, RDMA   best fit, TLSF     implement them
//! ```
//!
//! * [`Source`] supplies memory that need not be dereferenceable; [`PageSource`] supplies host pages.
//! * [`Placement`] divides an abstract space of offsets and never touches the memory behind it.
//! * [`Observer`] is told what happened on the slow paths.
//! * [`Sizing`] decides how deep caches should be; [`policies`] has some that do.
//! * [`sync`] switches between the machine's atomics and those of the `loom` model checker.
//!
//! # Example
//!
//! A source of memory over a fixed range of addresses that hands out one extent at a time:
//!
//! ```
//! use std::cell::Cell;
//! use terrane_core::{Extent, Geometry, ReleaseError, Source, SourceError};
//!
//! /// 1 MiB of device registers at a fixed bus address, lent to one user at a time.
//! struct Window { lent: Cell<bool> }
//!
//! // SAFETY: at most one extent is out at any time, so no two extents overlap.
//! unsafe impl Source for Window {
//!     fn geometry(&self) -> Geometry {
//!         Geometry { granule: 4096, max_align: 1 << 20, max_len: 1 << 20, zeroed: false }
//!     }
//!     fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
//!         self.geometry().check(len, align)?;
//!         if self.lent.replace(true) {
//!             return Err(SourceError::OutOfMemory { requested: len });
//!         }
//!         // SAFETY: the window is ours and is not lent to anyone else.
//!         Ok(unsafe { Extent::from_raw(0xE000_0000, len, 0) })
//!     }
//!     unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
//!         self.lent.set(false);
//!         let _ = extent.into_raw();
//!         Ok(())
//!     }
//! }
//!
//! let window = Window { lent: Cell::new(false) };
//! let extent = window.acquire(8192, 4096).unwrap();
//! assert_eq!(window.acquire(4096, 4096).unwrap_err(), SourceError::OutOfMemory { requested: 4096 });
//! // SAFETY: the extent came from this window and nothing uses it any more.
//! unsafe { window.release(extent) }.unwrap();
//! ```
//!
//! # Features and limits
//!
//! The crate is `no_std`, has no feature flags, and no dependencies except `loom` when compiled with
//! `RUSTFLAGS="--cfg loom"`. It needs 32-bit or wider pointers.

#![no_std]

pub mod error;
pub mod observer;
pub mod placement;
pub mod policies;
pub mod sizing;
pub mod source;
pub mod sync;

pub use error::{PlaceError, PlacementError, ReleaseError, SourceError};
pub use observer::{Event, Observer};
pub use placement::{Placement, Span};
pub use sizing::{Move, Sample, Sizing};
pub use source::{
    Contents, Decommit, Extent, Geometry, HostMapped, PageSource, Purge, Share, Source, SplitMerge,
};
