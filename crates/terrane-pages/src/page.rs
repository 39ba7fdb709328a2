//! Page sizes of the running machine, asked once and kept in atomics.
//!
//! Invariant: a cached value never changes, so a race between two first callers writes the same value twice.

use crate::sys;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A value that is found on first use. Zero means not asked yet.
pub(crate) struct Once(AtomicUsize);

impl Once {
    pub(crate) const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    pub(crate) fn get(&self, find: impl FnOnce() -> usize) -> usize {
        match self.0.load(Relaxed) {
            0 => {
                let found = find();
                self.0.store(found, Relaxed);
                found
            }
            known => known,
        }
    }
}

/// Bytes in a base page of this machine, a power of two. One system call per process at most.
pub fn page_size() -> usize {
    static BYTES: Once = Once::new();
    BYTES.get(sys::page_size)
}

/// Bytes in a huge page of this machine's default kind, a power of two above [`page_size`]; 2 MiB where the system
/// does not say.
pub fn huge_page_size() -> usize {
    static BYTES: Once = Once::new();
    BYTES.get(|| {
        let bytes = sys::huge_page_size().unwrap_or(2 << 20);
        if bytes.is_power_of_two() && bytes > page_size() { bytes } else { 2 << 20 }
    })
}

/// Whether `start` and `len` are multiples of `page`.
pub(crate) fn is_paged(start: usize, len: usize, page: usize) -> bool {
    (start | len) & (page - 1) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_powers_of_two_and_stay_the_same() {
        let (base, huge) = (page_size(), huge_page_size());
        assert!(base.is_power_of_two() && huge.is_power_of_two());
        assert!(huge > base);
        assert_eq!((base, huge), (page_size(), huge_page_size()));
    }

    #[test]
    fn a_value_is_found_once() {
        let once = Once::new();
        assert_eq!(once.get(|| 7), 7);
        assert_eq!(once.get(|| unreachable!("asked twice")), 7);
    }
}
