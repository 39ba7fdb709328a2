//! The thread-local front end of Terrane: one heap per thread, over `terrane-slab`.
//!
//! ```text
//!   alloc ──▶ thread's list ── hit: pop ──────────────▶ block            calls.rs, tls.rs
//!                └─ miss ──▶ thread's heap (a record) ─▶ slabs, stealing  thread.rs, records.rs
//!   free  ──▶ home of the slab is this thread? ─▶ push on its list
//!                └─ no ──▶ batch ─▶ one exchange on the slab
//!   thread ends ──▶ its heap gives all slabs up; its record waits for the next thread
//!   fork  ──▶ the child gives up the slabs of threads that it does not have     fork.rs
//!   idle  ──▶ on request, a thread that gives memory back on time              background.rs
//! ```
//!
//! All threads share one domain over memory-mapped pages ([`process`]). Lock-free throughout: there is no lock in this crate
//! or below it.
//!
//! # Example
//!
//! ```
//! // SAFETY: 8 is a power of two; the block is freed once, with its own length.
//! unsafe {
//!     let block = terrane_front::alloc(40, 8);
//!     assert!(!block.is_null());
//!     block.write_bytes(1, 40);
//!     terrane_front::free_sized(block, 40, 8);
//! }
//! assert_eq!(terrane_front::snapshot().heaps_used, 1);
//! ```
//!
//! # Features and limits
//!
//! * `reclaim`: deferred frees for lock-free readers, by epochs and by hazard pointers.
//! * `initial-exec`: for shared libraries; keeps one pointer in static thread-local storage instead of the lists themselves
//!   (x86-64 Linux; elsewhere the feature changes nothing).
//!
//! The front end is built for Unix systems with POSIX threads.

mod background;
pub mod calls;
#[cfg(feature = "reclaim")]
pub mod epoch;
mod fork;
#[cfg(feature = "reclaim")]
pub mod hazard;
pub mod process;
mod records;
pub mod sizing;
mod snapshot;
mod thread;
mod tls;

pub use background::start_background_purge;
pub use calls::{
    alloc, alloc_zeroed, collect, free, free_sized, look_up, purge, realloc, realloc_sized, tick, usable_size,
};
pub use snapshot::{ClassSnapshot, Snapshot, snapshot};
