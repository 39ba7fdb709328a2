//! Fork: the child has one thread, and the heaps of all others.
//!
//! Invariant: all state that threads share is changed by single atomic operations, so it is whole at any moment at which the
//! process may be copied; there are no locks that a vanished thread could hold. What a vanished thread was in the middle of
//! moving from one place to another is in neither, and is lost to the child: a few blocks at most.
//!
//! In the child the heaps of the vanished threads would strand their slabs. Those that were not in the middle of a slow path
//! (`busy`) are abandoned on their behalf, and their records freed. The background thread is gone too, whatever its name says.

use crate::background;
use crate::process::RECORDS;
use crate::thread;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Asks the system to call [`in_child`] after every fork. Once a process.
pub(crate) fn install() {
    if !INSTALLED.swap(true, Ordering::Relaxed) {
        // SAFETY: the handler takes no argument and stays loaded with this code. Without it a child strands the slabs of
        // threads that it does not have.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    }
}

extern "C" fn in_child() {
    background::forget();
    let mine = thread::current_record().map_or(ptr::null(), ptr::from_ref);
    for record in RECORDS.all() {
        let vanished = !ptr::eq(record, mine) && record.is_used();
        if vanished && record.busy.load(Ordering::Relaxed) == 0 {
            // SAFETY: the thread that used the record does not exist in this process, and left the heap whole. Its lists
            // are whole at any instruction too, if they lie in the record; else they are out of reach and stay out.
            unsafe { record.heap(|heap| heap.abandon(&record.lists)) };
            record.release();
        }
    }
}
