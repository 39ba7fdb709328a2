//! A strict page source: pages that are not committed fault when they are touched, and every range is checked.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, Ordering};
use terrane_core::{Contents, Decommit, Extent, Geometry, PageSource, ReleaseError, Source, SourceError};

#[derive(Debug, Default)]
pub struct Strict {
    pub reserved: AtomicI64,
    pub calls: AtomicI64,
    /// The call with this number fails, counted from 0; negative: none.
    pub fail_at: AtomicI64,
    /// The page size that the source shows, a multiple of the system's.
    page: usize,
}

impl Strict {
    pub fn new() -> Self {
        Self::with_page(4096)
    }

    pub fn with_page(page: usize) -> Self {
        Self { fail_at: AtomicI64::new(-1), page, ..Self::default() }
    }

    fn call(&self) -> Result<(), SourceError> {
        let n = self.calls.fetch_add(1, Ordering::Relaxed);
        if n == self.fail_at.load(Ordering::Relaxed) {
            Err(SourceError::Os { code: libc::ENOMEM })
        } else {
            Ok(())
        }
    }
}

// SAFETY: ranges come from mmap and are handed out once.
unsafe impl Source for Strict {
    fn geometry(&self) -> Geometry {
        Geometry { granule: self.page as u64, max_align: 1 << 40, max_len: 1 << 46, zeroed: true }
    }
    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        let extent = self.reserve(len as usize, align as usize)?;
        let start = NonNull::new(extent.as_ptr()).unwrap();
        // SAFETY: just reserved.
        if let Err(error) = unsafe { self.commit(start, len as usize) } {
            self.calls.fetch_add(1000, Ordering::Relaxed);
            // SAFETY: just reserved.
            unsafe { self.release(extent) }.unwrap();
            self.calls.fetch_sub(1001, Ordering::Relaxed);
            return Err(error);
        }
        Ok(extent)
    }
    unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
        if let Err(cause) = self.call() {
            return Err(ReleaseError { extent, cause });
        }
        self.reserved.fetch_sub(extent.len() as i64, Ordering::Relaxed);
        let (address, len, _) = extent.into_raw();
        // SAFETY: the range came from mmap.
        assert_eq!(unsafe { libc::munmap(address as *mut _, len as usize) }, 0);
        Ok(())
    }
}

// SAFETY: as above; commit and decommit change only the range named.
unsafe impl PageSource for Strict {
    fn page_size(&self) -> usize {
        self.page
    }
    fn reserve(&self, len: usize, align: usize) -> Result<Extent, SourceError> {
        self.geometry().check(len as u64, align as u64)?;
        self.call()?;
        let align = align.max(self.page);
        let slack = if align > 4096 { align } else { 0 };
        // SAFETY: a fresh anonymous mapping, trimmed to the aligned part.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let at = libc::mmap(std::ptr::null_mut(), len + slack, libc::PROT_NONE, flags, -1, 0);
            if at == libc::MAP_FAILED {
                return Err(SourceError::OutOfMemory { requested: len as u64 });
            }
            let start = (at as usize).next_multiple_of(align);
            let (head, tail) = (start - at as usize, slack - (start - at as usize));
            if head > 0 {
                libc::munmap(at, head);
            }
            if tail > 0 {
                libc::munmap((start + len) as *mut _, tail);
            }
            self.reserved.fetch_add(len as i64, Ordering::Relaxed);
            Ok(Extent::from_raw(start as u64, len as u64, 0))
        }
    }
    unsafe fn commit(&self, start: NonNull<u8>, len: usize) -> Result<Contents, SourceError> {
        assert!(start.addr().get().is_multiple_of(self.page) && len.is_multiple_of(self.page) && len > 0);
        self.call()?;
        // SAFETY: the caller's promise.
        let failed =
            unsafe { libc::mprotect(start.as_ptr().cast(), len, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(failed, 0);
        Ok(Contents::Unspecified)
    }
    unsafe fn decommit(&self, start: NonNull<u8>, len: usize, _: Decommit) -> Result<Contents, SourceError> {
        assert!(start.addr().get().is_multiple_of(self.page) && len.is_multiple_of(self.page) && len > 0);
        self.call()?;
        // SAFETY: the caller's promise.
        unsafe {
            assert_eq!(libc::madvise(start.as_ptr().cast(), len, libc::MADV_DONTNEED), 0);
            assert_eq!(libc::mprotect(start.as_ptr().cast(), len, libc::PROT_NONE), 0);
        }
        Ok(Contents::Zero)
    }
    unsafe fn remap(
        &self,
        from: NonNull<u8>,
        old_len: usize,
        to: NonNull<u8>,
        new_len: usize,
    ) -> Result<(), SourceError> {
        self.call()?;
        // SAFETY: both ranges are the caller's, and committed or about to be.
        unsafe {
            libc::mprotect(to.as_ptr().cast(), new_len, libc::PROT_READ | libc::PROT_WRITE);
            to.as_ptr().copy_from_nonoverlapping(from.as_ptr(), old_len);
            to.as_ptr().add(old_len).write_bytes(0, new_len - old_len);
            libc::madvise(from.as_ptr().cast(), old_len, libc::MADV_DONTNEED);
            libc::mprotect(from.as_ptr().cast(), old_len, libc::PROT_NONE);
        }
        Ok(())
    }
}
