//! Placement engines: where in a space should the next span lie? They work on offsets only, keep their metadata out of the
//! space they divide, and never touch it, so the same engine serves device memory, files, shared regions, address ranges,
//! texture atlases, or anything else that is numbered.
//!
//! ```text
//!   offsets   0          4096       8192                  16384
//!   space     |###A###|    |##B##|##C##|        |#D#|      |      added with `add`, taken away with `remove`
//!             live    hole  live  live    hole   live hole        `place` cuts a span out of a hole,
//!                                                                 `vacate` makes it one again and merges
//!
//!   Engine = records of spans and holes  +  a policy that picks the hole
//!              (out of band: allocator        Tlsf       lists by length, two bitmaps      O(1)
//!               or a fixed buffer)            Adaptive   the same; rounds, merges, keeps   O(1)
//!                                             BestFit    tree by length and address        O(log n)
//!                                             FirstFit   tree by address, longest below    O(log n)
//!                                             NextFit    the same, going round             O(log n)
//!   Buddy  = records of blocks           +  a list for each power of two                   O(log space)
//! ```
//!
//! All engines implement [`Placement`]; [`Survey`] shows what they have done; [`map`] draws it; [`trace`] and [`Workload`]
//! put them to the test.
//!
//! # Example
//!
//! ```
//! use terrane_fit::{Placement, Span, Survey, Tlsf};
//!
//! // 1 GiB of device memory, handed out in multiples of 256 bytes.
//! let mut engine = Tlsf::with_granule(256);
//! engine.add(Span::new(0, 1 << 30))?;
//!
//! let weights = engine.place(300 << 20, 4096)?;
//! let cache = engine.place(1000, 256)?;
//! assert_eq!(cache.len, 1024, "rounded up to the granule");
//!
//! engine.vacate(weights);
//! engine.vacate(cache);
//! assert_eq!(engine.largest_free(), 1 << 30, "everything has merged");
//! assert_eq!(engine.metrics().fragmentation(), 0.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Inside an allocator, where nothing may allocate, the metadata lies in a buffer:
//!
//! ```
//! use core::mem::MaybeUninit;
//! use terrane_fit::{PlaceError, Placement, Span, Tlsf};
//!
//! let mut buffer = vec![MaybeUninit::uninit(); Tlsf::buffer_for(2, 1)];
//! let mut engine = Tlsf::in_buffer(1, &mut buffer);
//! engine.add(Span::new(0, 100))?;
//! let (a, b) = (engine.place(10, 1)?, engine.place(10, 1)?);
//! assert!(!a.overlaps(&b));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What all engines promise
//!
//! * Live spans do not overlap, lie in the space, at the alignment asked for. `place` fails only if no hole has room (the
//!   buddy system: no block).
//! * `vacate` takes no memory and does not fail. It merges at once: no two holes are neighbours (buddy system: no two
//!   buddies). [`Deferred`] puts that off; [`Adaptive`] may too, but not so that it shows.
//! * A span that is not live is found out, by `try_vacate` as an error, by `vacate` with an abort in debug builds; in release
//!   builds it is ignored. It never damages the engine.
//! * The times above are for the index of holes. A span's record is found by its offset in a hash table, in constant time on
//!   average; when that or the table of records is full, `place` moves it to one of twice the length, unless `reserve` or a
//!   buffer has seen to that beforehand.
//! * Memory for metadata is taken in `add`, `remove`, `place` and `reserve` only, 32 bytes (trees: 40 or 48) for each span,
//!   hole and space, and 4 to 8 bytes of hash table for each span.
//! * Spaces that touch are joined. Leave a gap in the numbers between memories that must not.
//!
//! [`Movable`] gives spans handles and moves them within a budget, through a callback; [`CompactingHeap`] does so in host
//! memory.
//!
//! # Features and limits
//!
//! `std` (default) adds time budgets for compaction by the system's clock; without it the crate is `no_std` with `alloc`.
//! At most 2³⁰ − 1 spans, holes and spaces together. The granule is a power of two. Removing a space takes time in
//! proportion to the spans in it.

#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod adaptive;
mod best_fit;
mod buddy;
mod compact;
mod deferred;
mod engine;
mod first_fit;
mod fixed;
pub mod map;
mod misuse;
mod node;
mod spans;
mod survey;
mod tlsf;
pub mod trace;
mod tree;
mod waiting;
mod watch;
mod workload;

pub use adaptive::{Adaptive, Choosing, Standing};
pub use best_fit::{BestFit, ByLength};
pub use buddy::Buddy;
pub use compact::{Budget, CompactError, CompactingHeap, Compaction, Handle, Movable, Move, StaleHandle};
pub use deferred::Deferred;
pub use engine::{Engine, Policy};
pub use first_fit::{ByOffset, FirstFit, NextFit};
pub use fixed::Fixed;
pub use misuse::{Checked, ResizeError};
pub use survey::{HoleClass, Metrics, Plot, Survey, Use};
pub use terrane_core::{PlaceError, Placement, PlacementError, Span};
pub use tlsf::{Bins, Tlsf};
pub use watch::Rounding;
pub use workload::Workload;
