//! Verifying the process's allocator.
//!
//! Invariant: a walk allocates nothing and changes nothing; a thread without a heap gets none.

use crate::process::{RECORDS, ThreadRecord, domain};
use crate::thread::current_record;
use crate::tls::with_lists;
use core::ptr;
use terrane_slab::{Lists, VerifyError, VerifyReport};

/// Checks what the calling thread owns, from its lists to its slabs, and what of the shared structures holds at any moment.
/// Other threads may run.
///
/// # Errors
/// The first promise of a tier that does not hold: the program freed a block twice or wrote to one that it had freed, or
/// there is a mistake in Terrane.
pub fn verify() -> Result<VerifyReport, VerifyError> {
    let mut report = domain().verify_running()?;
    if let Some(record) = current_record() {
        // SAFETY: the record is the calling thread's, and walking does not come back to it.
        report.add(&with_lists(|lists| unsafe { record.look_at_heap().verify(lists) })?);
    }
    Ok(report)
}

/// Checks everything: all heaps and all that they share, and that slices, slabs, blocks and bytes add up.
///
/// # Errors
/// As for [`verify`].
///
/// # Safety
/// No other thread allocates, frees, begins or ends meanwhile, the one that gives memory back in the background included.
/// The process is not the child of a fork that other threads of the parent were allocating beside: such a child has heaps
/// in the middle of a step.
pub unsafe fn verify_quiet() -> Result<VerifyReport, VerifyError> {
    let mine = current_record().map_or(ptr::null(), ptr::from_ref);
    with_lists(|own| {
        // SAFETY: the caller's promise.
        let look =
            |record| unsafe { (ThreadRecord::look_at_heap(record), Some(lists_of(record, mine, own))) };
        // SAFETY: the records are all heaps of the domain; the rest is the caller's promise.
        unsafe { domain().verify_quiet(|| RECORDS.all().map(look)) }
    })
}

/// The lists of a record, where they are within reach: those of other threads may lie in their thread-local storage.
fn lists_of<'a>(record: &'a ThreadRecord, mine: *const ThreadRecord, own: &'a Lists) -> &'a Lists {
    // Lists in thread-local storage leave those of the record without a name, and they are not looked at.
    if ptr::eq(record, mine) { own } else { &record.lists }
}
