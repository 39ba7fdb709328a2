//! A machine with larger pages, for tests and for tuning: [`PageSized`].
//!
//! Invariant: every range that reaches the source below is whole pages of the larger size, aligned to it.

use crate::page::is_paged;
use core::ptr::NonNull;
use terrane_core::{
    Contents, Decommit, Extent, Geometry, HostMapped, PageSource, ReleaseError, Source, SourceError,
};

/// A source that reports larger pages than the source below it, and refuses everything that is not whole ones of them:
/// how code behaves on a machine with pages of 16 or 64 KiB.
///
/// ```
/// use terrane_core::{PageSource, Source, SourceError};
/// use terrane_pages::{Mmap, PageSized};
///
/// let source = PageSized::new(Mmap::new(), 64 << 10);
/// assert_eq!(source.page_size(), 64 << 10);
/// let refused = source.reserve(4096, 4096).unwrap_err();
/// assert_eq!(refused, SourceError::BadLength { requested: 4096, granule: 64 << 10 });
/// ```
#[derive(Debug)]
pub struct PageSized<S> {
    source: S,
    page: usize,
}

impl<S> PageSized<S> {
    /// A source over `source` with pages of `page` bytes, or with the pages of `source` if those are larger.
    ///
    /// # Panics
    /// If `page` is not a power of two; in a `const`, when compiled.
    pub const fn new(source: S, page: usize) -> Self {
        assert!(page.is_power_of_two(), "a page size is a power of two");
        Self { source, page }
    }

    /// The source below.
    pub const fn source(&self) -> &S {
        &self.source
    }
}

impl<S: PageSource> PageSized<S> {
    fn check(&self, start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
        if is_paged(start.addr().get(), len, self.page_size()) {
            Ok(())
        } else {
            Err(SourceError::BadLength { requested: len as u64, granule: self.page_size() as u64 })
        }
    }
}

// SAFETY: every call that is let through is passed on.
unsafe impl<S: PageSource> Source for PageSized<S> {
    fn geometry(&self) -> Geometry {
        let below = self.source.geometry();
        let granule = self.page_size() as u64;
        Geometry { granule, max_len: below.max_len & !(granule - 1), ..below }
    }

    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        self.geometry().check(len, align)?;
        self.source.acquire(len, align.max(self.page_size() as u64))
    }

    fn host_mapped(&self) -> Option<&dyn HostMapped> {
        self.source.host_mapped()
    }

    // The other abilities of the source below would let smaller pages through.

    crate::forward::source!(source: release);
}

// SAFETY: every call that is let through is passed on; larger pages are whole pages of the source below.
unsafe impl<S: PageSource> PageSource for PageSized<S> {
    fn page_size(&self) -> usize {
        self.page.max(self.source.page_size())
    }

    fn reserve(&self, len: usize, align: usize) -> Result<Extent, SourceError> {
        self.geometry().check(len as u64, align as u64)?;
        self.source.reserve(len, align.max(self.page_size()))
    }

    unsafe fn commit(&self, start: NonNull<u8>, len: usize) -> Result<Contents, SourceError> {
        self.check(start, len)?;
        // SAFETY: passed on by the caller.
        unsafe { self.source.commit(start, len) }
    }

    unsafe fn decommit(
        &self,
        start: NonNull<u8>,
        len: usize,
        how: Decommit,
    ) -> Result<Contents, SourceError> {
        self.check(start, len)?;
        // SAFETY: passed on by the caller.
        unsafe { self.source.decommit(start, len, how) }
    }

    unsafe fn remap(
        &self,
        from: NonNull<u8>,
        old_len: usize,
        to: NonNull<u8>,
        new_len: usize,
    ) -> Result<(), SourceError> {
        self.check(from, old_len)?;
        self.check(to, new_len)?;
        // SAFETY: passed on by the caller.
        unsafe { self.source.remap(from, old_len, to, new_len) }
    }

    unsafe fn populate(&self, start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
        self.check(start, len)?;
        // SAFETY: passed on by the caller.
        unsafe { self.source.populate(start, len) }
    }

    unsafe fn advise_huge(&self, start: NonNull<u8>, len: usize, huge: bool) -> Result<(), SourceError> {
        self.check(start, len)?;
        // SAFETY: passed on by the caller.
        unsafe { self.source.advise_huge(start, len, huge) }
    }

    unsafe fn bind(&self, start: NonNull<u8>, len: usize, node: u32) -> Result<(), SourceError> {
        self.check(start, len)?;
        // SAFETY: passed on by the caller.
        unsafe { self.source.bind(start, len, node) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mmap, page_size};

    #[test]
    fn parts_of_larger_pages_are_refused_and_whole_ones_work() {
        for shift in [14, 16] {
            let source = PageSized::new(Mmap::new(), 1 << shift);
            let page = source.page_size();
            assert_eq!(page, page_size().max(1 << shift));
            let granule = page as u64;
            let extent = source.reserve(4 * page, 1).unwrap();
            assert_eq!(extent.address() % granule, 0);
            let start = NonNull::new(extent.as_ptr()).unwrap();
            // SAFETY: inside the reservation.
            unsafe {
                let half = source.commit(start, page / 2);
                assert_eq!(half, Err(SourceError::BadLength { requested: granule / 2, granule }));
                let odd = source.decommit(start.add(page / 2), page, Decommit::Now);
                assert_eq!(odd, Err(SourceError::BadLength { requested: granule, granule }));
                source.commit(start, 2 * page).unwrap();
                start.add(2 * page - 1).write(1);
                source.release(extent).unwrap();
            }
        }
    }
}
