//! Metadata in memory that reads as zero.
//!
//! Invariant: zero is the empty state of every word and every slab, so fresh memory of a source needs no writing. The model
//! checker's atomics are no plain words and must be made before they are used; everywhere else these functions are empty.

/// Makes `count` words of zeroed memory at `start` usable as atomics of value 0.
///
/// # Safety
/// The memory is committed, reads as zero, is aligned, and is the caller's alone.
#[inline(always)]
pub(crate) unsafe fn make_words(start: *mut u8, count: usize) {
    #[cfg(loom)]
    for index in 0..count {
        use terrane_core::sync::atomic::AtomicU64;
        // SAFETY: the caller's promise.
        unsafe { start.cast::<AtomicU64>().add(index).write(AtomicU64::new(0)) };
    }
    let _ = (start, count);
}

/// Makes `count` pieces of slab metadata in zeroed memory at `start` usable: each is that of a free slab.
///
/// # Safety
/// As for [`make_words`].
#[inline(always)]
pub(crate) unsafe fn make_slabs(start: *mut u8, count: usize) {
    #[cfg(loom)]
    for index in 0..count {
        use crate::slab::Slab;
        // SAFETY: the caller's promise.
        unsafe { start.cast::<Slab>().add(index).write(Slab::new()) };
    }
    let _ = (start, count);
}
