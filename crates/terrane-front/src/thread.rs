//! A thread's life with its heap: it gets one at its first miss, and gives it up when it ends.
//!
//! Invariant: while a thread is *live*, its lists are bound to the heap of its record, which no other thread uses. When the
//! thread ends, its heap abandons all slabs (they are parked, so whoever frees into them or needs them takes them), and the
//! record is free for the next thread.
//!
//! Destructors of thread-locals run in an order that nobody chooses. What is allocated or freed after the heap was given up
//! is *late*: each such call takes a record, serves the request and abandons again, so that nothing stays behind however
//! many calls there are.

use crate::background;
use crate::process::{ThreadHeap, ThreadRecord as Record, acquire_record};
use crate::tls::{self, Phase};
use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};
use terrane_slab::Lists;

/// Calls `f` with the calling thread's heap and lists, giving it a heap first if it has none; `None` if there is no memory
/// for a heap.
#[inline]
pub(crate) fn with_heap<R>(f: impl FnOnce(&mut ThreadHeap, &Lists) -> R) -> Option<R> {
    let record = tls::with_state(|_, state| (state.phase.get() == Phase::Live).then(|| state.record.get()));
    match record {
        // SAFETY: a live thread's record is its own, and records are never freed.
        Some(record) => Some(unsafe { with_record(&*record, f) }),
        None => with_new_heap(f),
    }
}

/// # Safety
/// The record is the calling thread's.
unsafe fn with_record<R>(record: &Record, f: impl FnOnce(&mut ThreadHeap, &Lists) -> R) -> R {
    // SAFETY: the caller's promise; `f` runs allocator code only, which does not come back here.
    let result = tls::with_lists(|lists| unsafe { record.heap(|heap| f(heap, lists)) });
    // Here and not where it was noticed: starting a thread allocates.
    background::start_if_noticed();
    result
}

#[cold]
#[inline(never)]
fn with_new_heap<R>(f: impl FnOnce(&mut ThreadHeap, &Lists) -> R) -> Option<R> {
    if tls::with_state(|_, state| state.phase.get() == Phase::Late) {
        return with_passing_heap(f);
    }
    let record = acquire_record()?;
    tls::set_record(Some(record), Phase::Live);
    let node = crate::process::domain().current_node();
    // SAFETY: the record was just acquired for this thread.
    let result = unsafe {
        with_record(record, |heap, lists| {
            heap.attach(lists, node);
            f(heap, lists)
        })
    };
    // From here on the thread is live: what these calls allocate is served like anything else.
    crate::fork::install();
    watch_thread_end();
    Some(result)
}

/// Serves one request of a thread whose heap is given up already.
fn with_passing_heap<R>(f: impl FnOnce(&mut ThreadHeap, &Lists) -> R) -> Option<R> {
    let record = acquire_record()?;
    let lists = Lists::new();
    // SAFETY: the record was just acquired for this thread; the lists are this call's own.
    let result = unsafe {
        record.heap(|heap| {
            heap.attach(&lists, crate::process::domain().current_node());
            let result = f(heap, &lists);
            heap.abandon(&lists);
            result
        })
    };
    record.release();
    background::start_if_noticed();
    Some(result)
}

/// Gives the calling thread's heap up. Runs as the destructor of a thread-specific key, after those of thread-locals.
extern "C" fn thread_ends(_: *mut c_void) {
    let record = tls::with_state(|_, state| (state.phase.get() == Phase::Live).then(|| state.record.get()));
    let Some(record) = record else { return };
    // SAFETY: a live thread's record is its own, and records are never freed.
    unsafe {
        with_record(&*record, |heap, lists| heap.abandon(lists));
        tls::set_record(None, Phase::Late);
        (*record).release();
    }
}

/// Key of the thread-specific value whose destructor is [`thread_ends`], plus 1; 0 while there is none.
static KEY: AtomicU32 = AtomicU32::new(0);

fn watch_thread_end() {
    let mut key = KEY.load(Ordering::Acquire);
    if key == 0 {
        crate::pin::pin();
        let mut fresh: libc::pthread_key_t = 0;
        // SAFETY: `fresh` is a key.
        if unsafe { libc::pthread_key_create(&mut fresh, Some(thread_ends)) } != 0 {
            // Without a key the heaps of ended threads stay theirs: memory is stranded, nothing is broken.
            return;
        }
        key = fresh as u32 + 1;
        if let Err(first) = KEY.compare_exchange(0, key, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: the key was made above, and nobody else knows it.
            unsafe { libc::pthread_key_delete(fresh) };
            key = first;
        }
    }
    // Any value but null makes the destructor run.
    // SAFETY: the key exists.
    unsafe { libc::pthread_setspecific((key - 1) as libc::pthread_key_t, ptr::without_provenance(1)) };
}

/// The calling thread's record, if it has one.
pub(crate) fn current_record() -> Option<&'static Record> {
    tls::with_state(|_, state| {
        // SAFETY: records are never freed.
        if state.phase.get() == Phase::Live { unsafe { state.record.get().as_ref() } } else { None }
    })
}
