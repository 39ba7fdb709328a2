//! Which shard is this thread's: a small number per thread, taken up again by later threads.
//!
//! Invariant: no two live threads have the same number. A number changes hands under a lock, so what the old thread did with
//! its shards happened before what the new one does.

use core::cell::Cell;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Threads that have shards of their own; more threads share what is common to all.
pub(crate) const MOST: usize = 256;

const UNKNOWN: u32 = u32::MAX;
const NONE: u32 = u32::MAX - 1;

struct Numbers {
    next: u32,
    returned: BTreeSet<u32>,
}

static NUMBERS: Mutex<Numbers> = Mutex::new(Numbers { next: 0, returned: BTreeSet::new() });

thread_local! {
    static NUMBER: Cell<u32> = const { Cell::new(UNKNOWN) };
    static AT_EXIT: AtExit = const { AtExit };
}

struct AtExit;

impl Drop for AtExit {
    fn drop(&mut self) {
        // From now on this thread is one without shards: later destructors may still give objects back.
        let number = NUMBER.replace(NONE);
        if (number as usize) < MOST {
            NUMBERS.lock().unwrap_or_else(PoisonError::into_inner).returned.insert(number);
        }
    }
}

/// This thread's number, below [`MOST`]; `None` if there are too many threads or this one is ending.
#[inline(always)]
pub(crate) fn number() -> Option<usize> {
    let number = NUMBER.get() as usize;
    if number < MOST { Some(number) } else { first_time() }
}

#[cold]
fn first_time() -> Option<usize> {
    // `try_with` fails once the thread's destructors have run: such a thread gets no number, nobody would return it.
    if NUMBER.get() == NONE || AT_EXIT.try_with(|_| ()).is_err() {
        NUMBER.set(NONE);
        return None;
    }
    let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    let number = numbers.returned.pop_first().or_else(|| {
        let fresh = numbers.next;
        ((fresh as usize) < MOST).then(|| {
            numbers.next += 1;
            fresh
        })
    })?;
    NUMBER.set(number);
    Some(number as usize)
}

/// The NUMA node that this thread runs on at the moment; 0 where that cannot be known.
pub(crate) fn node() -> u32 {
    #[cfg(not(any(loom, miri)))]
    return terrane_pages::numa::current_node().unwrap_or(0);
    #[cfg(any(loom, miri))]
    0
}
