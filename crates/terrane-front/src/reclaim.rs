//! What epochs and hazard pointers share: a block that waits, and the count of what waits.
//!
//! Invariant: a [`Budget`] never counts more than its limit, at any moment.

use crate::fault::{Fault, planted};
use core::alloc::Layout;
use core::fmt;
use core::ptr::NonNull;
use terrane_core::sync::atomic::{AtomicUsize, Ordering};

/// A block that waits.
pub(crate) struct Retired {
    pub(crate) block: NonNull<u8>,
    pub(crate) layout: Layout,
}

// SAFETY: a retired block is memory that nobody uses but late readers.
unsafe impl Send for Retired {}

impl Retired {
    /// # Safety
    /// No reader can reach the block any more, and it came from this allocator with this layout.
    pub(crate) unsafe fn free(self) {
        #[cfg(not(loom))]
        // SAFETY: the caller's promise.
        unsafe {
            crate::free_sized(self.block.as_ptr(), self.layout.size(), self.layout.align());
        }
        #[cfg(loom)]
        model::freed(self.block, self.layout);
    }
}

impl fmt::Debug for Retired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retired").field("layout", &self.layout).finish_non_exhaustive()
    }
}

/// Bytes that may wait, and those that do.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    /// A budget of `limit` bytes, none of them used.
    pub fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit }
    }

    /// Uses `bytes`, if they are left; whether they were.
    pub fn reserve(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|&sum| sum <= self.limit);
        if planted(Fault::BudgetTorn) {
            let fits = fits(self.used.load(Ordering::Relaxed)).is_some();
            if fits {
                self.used.fetch_add(bytes, Ordering::Relaxed);
            }
            fits
        } else {
            // Relaxed: the count orders nothing else.
            self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
        }
    }

    /// Gives `bytes` back that were used.
    pub fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that may be in use.
    pub fn limit(&self) -> usize {
        self.limit
    }
}

/// Where freed blocks go under the model checker, which has no allocator of ours.
#[cfg(loom)]
pub mod model {
    use core::alloc::Layout;
    use core::cell::Cell;
    use core::ptr::NonNull;

    std::thread_local! {
        static FREE: Cell<fn(NonNull<u8>, Layout)> = const { Cell::new(|_, _| ()) };
    }

    /// Calls `free` with every block that is freed on this thread of the system, which all threads of a model share.
    pub fn on_free(free: fn(NonNull<u8>, Layout)) {
        FREE.set(free);
    }

    pub(super) fn freed(block: NonNull<u8>, layout: Layout) {
        FREE.get()(block, layout);
    }
}
