//! Heap records: the heaps of threads that live, and of threads that are gone, to be used again.
//!
//! Invariant: a record is used by one thread at a time, the one whose compare-exchange took `used` from 0 to 1. Records are
//! never freed, and only ever added to the front of one list, so walking the list needs no protection.
//!
//! | `used` | meaning |
//! |---|---|
//! | 0 | free: its heap owns no slab and holds no block |
//! | 1 | a thread uses it |

use crate::process::{ThreadHeap, domain};
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use terrane_slab::Lists;

/// The heap of a thread, outside thread-local storage so that it outlives the thread.
#[derive(Debug)]
#[repr(C)]
pub struct Record {
    /// The thread's lists, when they are not in thread-local storage themselves.
    pub(crate) lists: Lists,
    heap: UnsafeCell<ThreadHeap>,
    used: AtomicU32,
    /// Whether the heap is in the middle of a slow path: what a child process must not touch after a fork.
    pub(crate) busy: AtomicU32,
    next: AtomicPtr<Record>,
}

// SAFETY: `lists` and `heap` are used by one thread at a time, the one that took the record; the rest is atomic.
unsafe impl Sync for Record {}

static RECORDS: AtomicPtr<Record> = AtomicPtr::new(ptr::null_mut());

impl Record {
    /// Calls `f` with the heap.
    ///
    /// # Safety
    /// The calling thread uses the record, and `f` does not come back to it.
    #[inline]
    pub(crate) unsafe fn heap<R>(&self, f: impl FnOnce(&mut ThreadHeap) -> R) -> R {
        self.busy.store(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        let result = f(unsafe { &mut *self.heap.get() });
        self.busy.store(0, Ordering::Relaxed);
        result
    }

    /// The counters of the heap, which any thread may read.
    pub fn counters(&self) -> &terrane_slab::stats::HeapCounters {
        // SAFETY: counters are atomics, and records are never freed.
        unsafe { (*self.heap.get()).counters() }
    }

    /// Whether a thread uses the record.
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed) != 0
    }

    /// Gives the record back after its heap was abandoned.
    pub(crate) fn release(&self) {
        // Release: the next user sees the heap as we leave it.
        self.used.store(0, Ordering::Release);
    }
}

/// All records that were ever made.
pub fn all() -> impl Iterator<Item = &'static Record> {
    let mut next = RECORDS.load(Ordering::Acquire);
    core::iter::from_fn(move || {
        // SAFETY: records are never freed.
        let record = unsafe { next.as_ref() }?;
        next = record.next.load(Ordering::Acquire);
        Some(record)
    })
}

/// A record for the calling thread: one of a thread that is gone, or a new one; `None` when memory or names are out.
pub(crate) fn acquire() -> Option<&'static Record> {
    let free = |record: &&Record| {
        record.used.load(Ordering::Relaxed) == 0
            && record.used.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    };
    if let Some(record) = all().find(free) {
        return Some(record);
    }
    let name = domain().name_heap()?;
    let memory = domain().take_record(size_of::<Record>()).ok()?;
    let record: *mut Record = memory.as_ptr().cast();
    // SAFETY: the memory is ours, for good, large enough and aligned to a slice.
    let record = unsafe {
        record.write(Record {
            lists: Lists::new(),
            heap: UnsafeCell::new(ThreadHeap::new(domain(), name, 0)),
            used: AtomicU32::new(1),
            busy: AtomicU32::new(0),
            next: AtomicPtr::new(ptr::null_mut()),
        });
        &*record
    };
    let mut first = RECORDS.load(Ordering::Relaxed);
    loop {
        record.next.store(first, Ordering::Relaxed);
        let pointer = ptr::from_ref(record).cast_mut();
        // Release: whoever finds the record sees it whole.
        match RECORDS.compare_exchange_weak(first, pointer, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return Some(record),
            Err(now) => first = now,
        }
    }
}
