//! A source of pages in one mapping that all executions of a model use in turn. Whoever commits, decommits or uses slices touches
//! a cell of loom's for each, so loom sees two who do so at once.

use loom::sync::Arc;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use terrane_core::sync::cell::UnsafeCell;
use terrane_core::{Contents, Decommit, Extent, Geometry, PageSource, ReleaseError, Source, SourceError};
use terrane_slab::segment::{HEADER_SLICES, SEGMENT_BYTES, SLICE_BYTES};
use terrane_slab::{Domain, Growth, Heap, HeapId, Policy, PurgePolicy, Shared};

/// Segments of the mapping.
const SEGMENTS: usize = 8;
/// Segments whose slices loom watches.
const WATCHED: usize = 3;

/// Large blocks are not cached by heaps, and nothing is purged unless a model asks.
pub const POLICY: Policy = Policy {
    growth: Growth { initial: 1, batch: 1, max_shift: 0 },
    purge: PurgePolicy {
        delay_ms: 1000,
        how: Decommit::Now,
        huge_cache_bytes: usize::MAX,
        large_cache_bytes: 0,
    },
    huge_pages: false,
    ..Policy::DEFAULT
};

/// What the threads of a model share.
pub type Model = Arc<Domain<Pages, Shared>>;

/// See the module.
#[derive(Debug)]
pub struct Pages {
    next: AtomicUsize,
    slices: Vec<UnsafeCell<u32>>,
}

// SAFETY: the cells are touched by whoever holds the slices alone; loom checks exactly that.
unsafe impl Sync for Pages {}
// SAFETY: as above.
unsafe impl Send for Pages {}

/// A domain over fresh pages.
pub fn domain(policy: Policy) -> Model {
    let slices = (0..WATCHED * SEGMENT_BYTES / SLICE_BYTES).map(|_| UnsafeCell::new(0)).collect();
    Arc::new(Domain::new(Pages { next: AtomicUsize::new(0), slices }, policy, ()))
}

/// A heap of that domain.
pub fn heap(domain: &Model, name: HeapId) -> Box<Heap<Pages, Shared>> {
    // Made in place: loom's threads have small stacks.
    let mut place = Box::new_uninit();
    // SAFETY: the models keep the domain longer than its heaps, and name each heap once; the place is written before it is read.
    unsafe {
        place.write(Heap::new(&raw const **domain, name, 0));
        place.assume_init()
    }
}

/// First byte of the mapping, low enough for the cache of huge spans, which packs addresses into few bits.
fn base() -> *mut u8 {
    static BASE: OnceLock<usize> = OnceLock::new();
    let base = *BASE.get_or_init(|| {
        let len = (SEGMENTS + 1) * SEGMENT_BYTES;
        // SAFETY: a fresh anonymous mapping; the address is a wish.
        let at = unsafe {
            let wish = std::ptr::without_provenance_mut(1 << 40);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(wish, len, access, flags, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        assert!(at.addr() < 1 << 43, "the system gave an address that the cache of huge spans cannot pack");
        at.expose_provenance().next_multiple_of(SEGMENT_BYTES)
    });
    std::ptr::with_exposed_provenance_mut(base)
}

impl Pages {
    /// Uses the slices of a range.
    pub fn touch(&self, start: usize, len: usize) {
        let first = (start - base().addr()) / SLICE_BYTES;
        for slice in self.slices.iter().skip(first).take(len.div_ceil(SLICE_BYTES)) {
            // SAFETY: the caller holds the slices.
            slice.with_mut(|uses| unsafe { *uses += 1 });
        }
    }
}

// SAFETY: ranges are cut from one mapping and handed out once.
unsafe impl Source for Pages {
    fn geometry(&self) -> Geometry {
        Geometry { granule: 4096, max_align: SEGMENT_BYTES as u64, max_len: 1 << 40, zeroed: true }
    }
    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        self.reserve(len as usize, align as usize)
    }
    unsafe fn release(&self, _: Extent) -> Result<(), ReleaseError> {
        Ok(())
    }
}

// SAFETY: the mapping is readable and writable from end to end. Of what comes zeroed, only headers are read.
unsafe impl PageSource for Pages {
    fn page_size(&self) -> usize {
        4096
    }
    fn reserve(&self, len: usize, _: usize) -> Result<Extent, SourceError> {
        let at = self.next.fetch_add(len, Ordering::Relaxed);
        if at + len > SEGMENTS * SEGMENT_BYTES {
            return Err(SourceError::OutOfMemory { requested: len as u64 });
        }
        // SAFETY: the range lies in the mapping, and is nobody's.
        unsafe {
            let start = base().add(at);
            for segment in (0..len).step_by(SEGMENT_BYTES) {
                start.add(segment).write_bytes(0, HEADER_SLICES * SLICE_BYTES);
            }
            Ok(Extent::from_raw(start.addr() as u64, len as u64, 0))
        }
    }
    unsafe fn commit(&self, start: NonNull<u8>, len: usize) -> Result<Contents, SourceError> {
        self.touch(start.addr().get(), len);
        Ok(Contents::Unspecified)
    }
    unsafe fn decommit(&self, start: NonNull<u8>, len: usize, _: Decommit) -> Result<Contents, SourceError> {
        self.touch(start.addr().get(), len);
        Ok(Contents::Zero)
    }
}
