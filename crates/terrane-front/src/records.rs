//! Heap records: the heaps of threads that live, and of threads that are gone, to be used again.
//!
//! Invariant: a record is used by one thread at a time, the one whose compare-exchange took `used` from 0 to 1. Records are
//! never freed, and only ever added to the front of one list, so walking the list needs no protection.
//!
//! | `used` | meaning |
//! |---|---|
//! | 0 | free: its heap owns no slab and holds no block |
//! | 1 | a thread uses it |
//!
//! The argument is in the book, chapter "Heap records, thread exit, fork".

use crate::fault::{Fault, order, planted};
use core::ptr;
use terrane_core::sync::atomic::{AtomicPtr, AtomicU32, Ordering, fence};
use terrane_core::sync::cell::UnsafeCell;
use terrane_slab::Lists;

/// The heap of a thread, `H`, outside thread-local storage so that it outlives the thread, and what it counts, `C`.
#[derive(Debug)]
#[repr(C)]
pub struct Record<H, C> {
    /// The thread's lists, when they are not in thread-local storage themselves.
    pub(crate) lists: Lists,
    heap: UnsafeCell<H>,
    /// Lies in the heap, and is read by others while the heap is used.
    counters: *const C,
    used: AtomicU32,
    /// Whether the heap is in the middle of a slow path: what a child process must not touch after a fork.
    pub(crate) busy: AtomicU32,
    next: AtomicPtr<Record<H, C>>,
}

// SAFETY: `lists` and `heap` are used by one thread at a time, the one that took the record; the rest is atomic.
unsafe impl<H: Send, C: Sync> Sync for Record<H, C> {}

impl<H, C> Record<H, C> {
    /// Makes a record at `place`, used by the calling thread, of a heap whose counters `counters_of` finds.
    ///
    /// # Safety
    /// The place is large enough, aligned, the caller's for good, and the record is not moved.
    #[inline(always)]
    pub unsafe fn emplace(
        place: *mut Self,
        heap: H,
        counters_of: impl FnOnce(*const H) -> *const C,
    ) -> &'static Self
    where
        H: 'static,
        C: 'static,
    {
        // SAFETY: the place is the caller's.
        unsafe {
            place.write(Self {
                lists: Lists::new(),
                heap: UnsafeCell::new(heap),
                counters: ptr::null(),
                used: AtomicU32::new(1),
                busy: AtomicU32::new(0),
                next: AtomicPtr::new(ptr::null_mut()),
            });
            (*place).counters = (*place).heap.with_mut(|heap| counters_of(heap));
            &*place
        }
    }

    /// Calls `f` with the heap.
    ///
    /// # Safety
    /// The calling thread uses the record, and `f` does not come back to it.
    #[inline]
    pub unsafe fn heap<R>(&self, f: impl FnOnce(&mut H) -> R) -> R {
        // The heap links blocks that the program must not touch.
        #[cfg(feature = "valgrind")]
        let _quiet = terrane_slab::memcheck::Quiet::new();
        self.busy.store(1, Ordering::Relaxed);
        // Release, here and below: a copy of the process that has some of what `f` writes and not all of it has the mark too.
        fence(Ordering::Release);
        // SAFETY: the caller's promise.
        let result = self.heap.with_mut(|heap| f(unsafe { &mut *heap }));
        self.busy.store(0, Ordering::Release);
        result
    }

    /// The heap, to look at.
    ///
    /// # Safety
    /// Nobody uses the heap while the reference lives.
    #[cfg(not(loom))]
    pub(crate) unsafe fn look_at_heap(&self) -> &H {
        // SAFETY: the caller's promise.
        self.heap.with(|heap| unsafe { &*heap })
    }

    /// The counters of the heap, which any thread may read.
    pub fn counters(&self) -> &C {
        // SAFETY: counters are atomics, and records are never freed.
        unsafe { &*self.counters }
    }

    /// Whether a thread uses the record.
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed) != 0
    }

    /// Gives the record back after its heap was abandoned.
    pub fn release(&self) {
        // Release: the next user sees the heap as we leave it.
        self.used.store(0, order(Fault::RecordRelaxed, Ordering::Release));
    }

    fn take(&self) -> bool {
        if self.used.load(Ordering::Relaxed) != 0 {
            return false;
        }
        if planted(Fault::RecordUnexchanged) {
            self.used.store(1, Ordering::Relaxed);
            return true;
        }
        // Acquire: the heap as the last user left it.
        self.used.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

/// A list of records that only grows.
#[derive(Debug)]
pub struct Records<H: 'static, C: 'static> {
    first: AtomicPtr<Record<H, C>>,
}

impl<H, C> Records<H, C> {
    terrane_core::const_unless_loom! {
        /// No records.
        pub fn new() -> Self {
            Self { first: AtomicPtr::new(ptr::null_mut()) }
        }
    }

    /// All records that were ever made.
    pub fn all(&self) -> impl Iterator<Item = &'static Record<H, C>> {
        let mut next = self.first.load(Ordering::Acquire);
        core::iter::from_fn(move || {
            // SAFETY: records are never freed.
            let record = unsafe { next.as_ref() }?;
            // Relaxed: written before the record was listed.
            next = record.next.load(Ordering::Relaxed);
            Some(record)
        })
    }

    /// A record for the calling thread: one of a thread that is gone, or one that `make` makes; `None` if it makes none.
    pub fn acquire(
        &self,
        make: impl FnOnce() -> Option<&'static Record<H, C>>,
    ) -> Option<&'static Record<H, C>> {
        if let Some(record) = self.all().find(|record| record.take()) {
            return Some(record);
        }
        let record = make()?;
        let mut first = self.first.load(Ordering::Relaxed);
        loop {
            record.next.store(first, Ordering::Relaxed);
            let pointer = ptr::from_ref(record).cast_mut();
            // Release: whoever finds the record sees it whole.
            let release = order(Fault::ListRelaxed, Ordering::Release);
            match self.first.compare_exchange_weak(first, pointer, release, Ordering::Relaxed) {
                Ok(_) => return Some(record),
                Err(now) => first = now,
            }
        }
    }
}

impl<H, C> Default for Records<H, C> {
    fn default() -> Self {
        Self::new()
    }
}
