//! Who else can see a heap's memory: [`Shared`] between threads, or [`Local`] to one.
//!
//! Every access to a word that two threads could touch goes through this trait. For [`Shared`] the calls are the
//! machine's atomics. For [`Local`] they are plain loads and stores, so a single-threaded heap runs without one atomic
//! read-modify-write; it is the type parameter of the heap that decides, not a copy of the code.

use terrane_core::sync::atomic::{AtomicU64, Ordering, fence};

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Shared {}
    impl Sealed for super::Local {}
}

/// Whether words are shared between threads. Sealed: [`Shared`] and [`Local`] are the two answers.
pub trait Sharing: sealed::Sealed + Sized + 'static {
    /// Whether other threads can see the heap.
    const SHARED: bool;

    /// Replaces `current` by `new`, or says what was there instead.
    ///
    /// # Errors
    /// The value found, if it was not `current`, or spuriously.
    fn compare_exchange(
        word: &AtomicU64,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64>;

    /// Clears the bits that are not in `mask`; the value before.
    fn fetch_and(word: &AtomicU64, mask: u64, order: Ordering) -> u64;

    /// Sets the bits of `mask`; the value before.
    fn fetch_or(word: &AtomicU64, mask: u64, order: Ordering) -> u64;

    /// Adds, wrapping; the value before.
    fn fetch_add(word: &AtomicU64, value: u64, order: Ordering) -> u64;

    /// Exchanges; the value before.
    fn swap(word: &AtomicU64, value: u64, order: Ordering) -> u64;

    /// A sequentially consistent fence: of two threads that each write a word, pass it, and read the other's word, at least
    /// one sees what the other wrote.
    fn fence();
}

/// Threads share the memory: machine atomics.
#[derive(Clone, Copy, Debug)]
pub struct Shared;

/// A place where the random schedules may let another thread run.
#[inline(always)]
fn turn() {
    #[cfg(schedules)]
    crate::schedules::turn();
}

impl Sharing for Shared {
    const SHARED: bool = true;

    #[inline(always)]
    fn compare_exchange(
        word: &AtomicU64,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        turn();
        word.compare_exchange_weak(current, new, success, failure)
    }
    #[inline(always)]
    fn fetch_and(word: &AtomicU64, mask: u64, order: Ordering) -> u64 {
        turn();
        word.fetch_and(mask, order)
    }
    #[inline(always)]
    fn fetch_or(word: &AtomicU64, mask: u64, order: Ordering) -> u64 {
        turn();
        word.fetch_or(mask, order)
    }
    #[inline(always)]
    fn fetch_add(word: &AtomicU64, value: u64, order: Ordering) -> u64 {
        turn();
        word.fetch_add(value, order)
    }
    #[inline(always)]
    fn swap(word: &AtomicU64, value: u64, order: Ordering) -> u64 {
        turn();
        word.swap(value, order)
    }
    #[inline(always)]
    fn fence() {
        turn();
        fence(Ordering::SeqCst);
    }
}

/// One thread has the memory to itself: plain loads and stores.
#[derive(Clone, Copy, Debug)]
pub struct Local;

impl Local {
    #[inline(always)]
    fn update(word: &AtomicU64, f: impl FnOnce(u64) -> u64) -> u64 {
        let before = word.load(Ordering::Relaxed);
        word.store(f(before), Ordering::Relaxed);
        before
    }
}

impl Sharing for Local {
    const SHARED: bool = false;

    #[inline(always)]
    fn compare_exchange(
        word: &AtomicU64,
        current: u64,
        new: u64,
        _: Ordering,
        _: Ordering,
    ) -> Result<u64, u64> {
        let found = word.load(Ordering::Relaxed);
        if found != current {
            return Err(found);
        }
        word.store(new, Ordering::Relaxed);
        Ok(found)
    }
    #[inline(always)]
    fn fetch_and(word: &AtomicU64, mask: u64, _: Ordering) -> u64 {
        Self::update(word, |w| w & mask)
    }
    #[inline(always)]
    fn fetch_or(word: &AtomicU64, mask: u64, _: Ordering) -> u64 {
        Self::update(word, |w| w | mask)
    }
    #[inline(always)]
    fn fetch_add(word: &AtomicU64, value: u64, _: Ordering) -> u64 {
        Self::update(word, |w| w.wrapping_add(value))
    }
    #[inline(always)]
    fn swap(word: &AtomicU64, value: u64, _: Ordering) -> u64 {
        Self::update(word, |_| value)
    }
    #[inline(always)]
    fn fence() {}
}
