//! The thread-local front end of Terrane: one heap per thread, over `terrane-slab`.
//!
//! ```text
//!   alloc ──▶ thread's list ── hit: pop ──────────────▶ block            calls.rs, tls.rs
//!                └─ miss ──▶ thread's heap (a record) ─▶ slabs, stealing  thread.rs, records.rs
//!   free  ──▶ home of the slab is this thread? ─▶ push on its list
//!                └─ no ──▶ batch ─▶ one exchange on the slab
//!   thread ends ──▶ its heap gives all slabs up; its record waits for the next thread
//!   fork  ──▶ the child gives up the slabs of threads that it does not have     fork.rs
//!   idle  ──▶ a thread that gives memory back on time, while it is needed      background.rs, presence.rs
//! ```
//!
//! All threads share one domain over memory-mapped pages ([`process`]). Allocating and freeing take no lock, here or below. (The one
//! lock of this crate keeps what members of a group of hazard pointers left behind: feature `reclaim`.)
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
//! * `valgrind`: for programs under valgrind's memcheck: every block has a red zone, and memcheck is told of it.
//!
//! The front end is built for Unix systems with POSIX threads; it was built and run on Linux only.

// The model checker gets the protocols. Thread-locals, the process's domain and the calls over them are no part of one.
#[cfg(not(loom))]
mod background;
#[cfg(not(loom))]
pub mod calls;
#[cfg(all(feature = "reclaim", not(loom)))]
pub mod epoch;
#[cfg(not(loom))]
mod fault;
#[cfg(loom)]
pub mod fault;
#[cfg(not(loom))]
mod fork;
#[cfg(any(feature = "reclaim", loom))]
pub mod hazard;
#[cfg(all(feature = "valgrind", not(loom)))]
mod memcheck;
#[cfg(not(loom))]
mod pin;
#[cfg(not(loom))]
mod presence;
#[cfg(loom)]
pub mod presence;
#[cfg(not(loom))]
pub mod process;
#[cfg(all(feature = "reclaim", not(loom)))]
mod reclaim;
#[cfg(loom)]
pub mod reclaim;
#[cfg(not(loom))]
mod records;
#[cfg(loom)]
pub mod records;
#[cfg(not(loom))]
mod snapshot;
#[cfg(not(loom))]
mod thread;
#[cfg(not(loom))]
mod tls;
#[cfg(not(loom))]
mod verify;

#[cfg(not(loom))]
pub use background::{set_background, start_background_purge};
#[cfg(all(not(feature = "valgrind"), not(loom)))]
pub use calls::{alloc, alloc_zeroed, free, free_sized, realloc, realloc_sized, usable_size};
#[cfg(not(loom))]
pub use calls::{collect, look_up, purge, tick};
#[cfg(all(feature = "valgrind", not(loom)))]
pub use memcheck::{alloc, alloc_zeroed, free, free_sized, realloc, realloc_sized, usable_size};
#[cfg(not(loom))]
pub use presence::Background;
#[cfg(not(loom))]
pub use snapshot::{ClassSnapshot, Snapshot, snapshot};
/// Policies for the depth of caches: those of the allocator's own threads and of pools.
pub use terrane_core::policies as sizing;
#[cfg(not(loom))]
pub use verify::{verify, verify_quiet};
