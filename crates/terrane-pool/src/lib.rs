//! Object pools with a cache per thread: acquire and release cost a few plain loads and stores, and yet no idle object is
//! out of reach.
//!
//! ```text
//!   acquire ─▶ own magazines ─▶ own depot ─▶ common depot ─▶ other threads' depots ─▶ make one ─▶ gather ─▶ Exhausted
//!                (hit: plain loads)              (one exchange takes a whole depot)    (bounded)    (seizes the caches
//!   release ─▶ reset ─▶ own magazines ─▶ own depot                                                   of all threads)
//! ```
//!
//! * [`Pool`] makes objects by a [`Recycle`], which also resets each object that comes back: there is no way around it.
//! * [`Lease`] and [`OwnedLease`] give an object back when they are dropped, on whatever thread; an [`OwnedLease`] may outlive
//!   its pool. [`OwnedLease::into_key`] puts an object away under a number that can be claimed once.
//! * A pool is bounded, and what is still out at its end is reported ([`AtEnd`], [`Pool::close`]).
//! * [`BufPool`] hands out buffers of any length from the allocator's size classes.
//! * [`Replies`] are slots for one answer each, from an actor or a task to whoever asked it.
//! * [`Pool::tick`] lets a [`Sizing`](terrane_core::Sizing) policy set the depth of each thread's cache, and gives idle
//!   objects back.
//!
//! # Example
//!
//! ```
//! use terrane_pool::{AtEnd, Builder, Verdict, by};
//!
//! let pool = Builder::new(by(
//!     || Vec::<u8>::with_capacity(4096),
//!     |buffer: &mut Vec<u8>| {
//!         buffer.clear();
//!         if buffer.capacity() > 64 << 10 { Verdict::Discard } else { Verdict::Keep }
//!     },
//! ))
//! .max(1)
//! .at_end(AtEnd::Panic)
//! .build();
//!
//! let mut buffer = pool.acquire_owned().unwrap();
//! buffer.extend_from_slice(b"filled here");
//! std::thread::spawn(move || drop(buffer)).join().unwrap(); // returned there
//! assert!(pool.acquire().unwrap().is_empty()); // and found, in the cache of a thread that has ended
//! assert_eq!(pool.stats().created, 1);
//! ```
//!
//! # Features and limits
//!
//! * `bytes`: [`PooledBuf`] is a `BufMut` and freezes into `Bytes`.
//! * `managed`: `Managed`, a pool whose acquire waits for an object, with a deadline, under tokio.
//! * An object costs a bit and a part of its chunk's head beside itself, and a pointer while it waits in a thread's cache. It does not
//!   move: a lease is a pointer to it. Objects of up to 1.5 KiB share chunks, which are freed when they are empty.
//! * Objects are `Send + 'static`. At most 256 threads at a time have a cache of their own; more share a common level under a
//!   lock.
//! * Functions of a [`Recycle`] may use the pool that calls them. A signal handler may not: it may have interrupted the pool.
//! * On Linux a thread's own operations need no fence, because a search of all caches uses `membarrier(2)`; elsewhere each
//!   operation has one fence.
//! * [`Mutexed`] as third parameter of a pool is one cache behind a mutex.

#[cfg(not(loom))]
pub mod buffer;
pub mod depot;
pub mod error;
pub mod fences;
pub mod group;
pub mod key;
pub mod lease;
#[cfg(all(feature = "managed", not(loom)))]
pub mod managed;
pub mod pool;
pub mod recycle;
pub mod reply;
pub mod shard;
mod shared;
pub mod slots;
pub mod store;
mod thread;

#[cfg(not(loom))]
pub use buffer::{BufPool, BufPoolConfig, PooledBuf, ReceiveSize};
pub use error::{Exhausted, KeyError, Leaked, Rejected};
pub use key::Key;
pub use lease::{Lease, OwnedLease};
#[cfg(all(feature = "managed", not(loom)))]
pub use managed::Managed;
pub use pool::{AtEnd, Builder, Pool, PoolStats};
pub use recycle::{By, Recycle, Renew, Verdict, by};
pub use reply::{Replies, Reply, ReplySender, Unanswered};
pub use store::{LockFree, Mutexed, Store};
/// Policies for [`Builder::sizing`]: the same as for the caches of the allocator.
#[cfg(not(loom))]
pub use terrane_front::sizing;

/// Its example is a test too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
