//! Pages of private anonymous memory from the system: [`Mmap`].
//!
//! Invariant: every extent is a whole mapping that this source made, and `reserved` is the sum of the lengths of the
//! extents that are out.
//!
//! Two ways to reserve, chosen once per source and kept in `mode`:
//!
//! | | open | guarded |
//! |---|---|---|
//! | reserved pages | accessible, not charged | not accessible |
//! | commit | no system call | `mprotect` |
//! | decommit now | `MADV_DONTNEED` | a fresh inaccessible mapping in place |
//! | a stray access to a decommitted page | reads zero | faults |
//! | needs | a system that does not charge untouched memory | nothing |
//!
//! An open source turns guarded when the system refuses an accessible reservation and allows the same one
//! inaccessible (a limit on data, locked memory). That only ever adds work to a commit, so no reservation has to
//! remember how it was made.

use crate::huge::HugePages;
use crate::page::{huge_page_size, is_paged, page_size};
use crate::sys::{self, Access};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};
use terrane_core::{
    Contents, Decommit, Extent, Geometry, HostMapped, PageSource, Purge, ReleaseError, Source, SourceError,
    SplitMerge,
};

/// How an [`Mmap`] makes reserved pages usable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Commit {
    /// [`Open`](Self::Open) where the system does not charge reservations, otherwise [`Guarded`](Self::Guarded).
    /// On Linux `vm.overcommit_memory` decides, read once.
    #[default]
    Auto,
    /// Reservations are accessible from the start: a commit is free.
    Open,
    /// Reservations are inaccessible: a commit changes the protection, a decommit now takes it back and returns the
    /// charge against the system's commit limit. Hints that were given for a range (huge pages, node) are forgotten
    /// when it is decommitted now.
    Guarded,
}

// The states of `Mmap::mode`: `UNKNOWN` goes to one of the others at the first reservation, `OPEN` may go to `GUARDED`.
const UNKNOWN: u8 = 0;
const OPEN: u8 = 1;
const GUARDED: u8 = 2;

/// Private anonymous memory from the system.
///
/// Pages fresh from [`reserve`](PageSource::reserve) read as zero once committed, and so do pages whose decommit
/// answered [`Contents::Zero`]. A [`commit`](PageSource::commit) itself looks at no page and keeps no record, so it
/// always answers [`Contents::Unspecified`]; a caller that wants to skip clearing keeps the two facts above.
///
/// The type is made in a `const`, holds two atomics and no lock, and works in a forked child and in a signal handler.
/// No call changes `errno`.
///
/// ```
/// use std::ptr::NonNull;
/// use terrane_core::{Contents, Decommit, PageSource, Source};
/// use terrane_pages::Mmap;
///
/// static PAGES: Mmap = Mmap::new();
///
/// let extent = PAGES.reserve(64 << 20, 4 << 20).unwrap();
/// assert_eq!(extent.address() % (4 << 20), 0);
/// let start = NonNull::new(extent.as_ptr()).unwrap();
/// // SAFETY: the range lies in the reservation, and is committed before it is used.
/// unsafe {
///     PAGES.commit(start, 1 << 20).unwrap();
///     start.write(7);
///     assert_eq!(PAGES.decommit(start, 1 << 20, Decommit::Now), Ok(Contents::Zero));
///     PAGES.commit(start, 1 << 20).unwrap();
///     assert_eq!(start.read(), 0);
///     PAGES.release(extent).unwrap();
/// }
/// ```
#[derive(Debug)]
pub struct Mmap {
    commit: Commit,
    huge: HugePages,
    /// Most bytes that may be reserved at one time.
    limit: usize,
    /// Bytes reserved now.
    reserved: AtomicUsize,
    mode: AtomicU8,
}

impl Default for Mmap {
    fn default() -> Self {
        Self::new()
    }
}

impl Mmap {
    /// A source with the default policies and no limit of its own.
    pub const fn new() -> Self {
        Self {
            commit: Commit::Auto,
            huge: HugePages::WhenDense,
            limit: usize::MAX,
            reserved: AtomicUsize::new(0),
            mode: AtomicU8::new(UNKNOWN),
        }
    }

    /// The same with another way to commit.
    pub const fn with_commit(mut self, commit: Commit) -> Self {
        self.commit = commit;
        self
    }

    /// The same with another policy for huge pages.
    pub const fn with_huge_pages(mut self, huge: HugePages) -> Self {
        self.huge = huge;
        self
    }

    /// The same, never with more than `bytes` of address space reserved at one time.
    pub const fn with_limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    /// Bytes of address space that are reserved now.
    pub fn reserved_bytes(&self) -> usize {
        self.reserved.load(Relaxed)
    }

    /// Whether a commit is free: the way that [`Commit::Auto`] and the system's limits have led to so far.
    pub fn is_open(&self) -> bool {
        self.mode() == OPEN
    }

    /// From now on commits as [`Commit::Guarded`] does: what is reserved and not used is then not made present by `mlockall`.
    /// Reservations that are open already stay so.
    pub fn guard(&self) {
        // Whoever commits from now on changes the protection, also where that was not needed.
        self.mode.store(GUARDED, Relaxed);
    }

    fn mode(&self) -> u8 {
        let known = self.mode.load(Relaxed);
        if known != UNKNOWN {
            return known;
        }
        let open = match self.commit {
            Commit::Auto => !sys::charges_reservations(),
            Commit::Open => true,
            Commit::Guarded => false,
        };
        let found = if open { OPEN } else { GUARDED };
        // Another thread may have found the same, or have gone on to `GUARDED` already.
        self.mode.compare_exchange(UNKNOWN, found, Relaxed, Relaxed).err().unwrap_or(found)
    }

    /// Counts `len` bytes against the limit.
    fn take(&self, len: usize) -> Result<(), SourceError> {
        self.reserved
            .fetch_update(Relaxed, Relaxed, |reserved| {
                reserved.checked_add(len).filter(|&sum| sum <= self.limit)
            })
            .map(|_| ())
            .map_err(|reserved| SourceError::Limit {
                requested: len as u64,
                available: self.limit.saturating_sub(reserved) as u64,
            })
    }

    fn map(&self, len: usize, align: usize) -> Result<NonNull<u8>, SourceError> {
        if self.huge == HugePages::Explicit
            && let Ok(start) = sys::reserve_hugetlb(len, align)
        {
            return Ok(start);
        }
        let start = if self.mode() == OPEN {
            sys::reserve_aligned(len, align, Access::Open).or_else(|refused| {
                let start = sys::reserve_aligned(len, align, Access::Closed).map_err(|_| refused)?;
                // Whoever gets to commit this reservation got its address from the caller, after this store.
                self.mode.store(GUARDED, Relaxed);
                Ok(start)
            })
        } else {
            sys::reserve_aligned(len, align, Access::Closed)
        }?;
        let advice = match self.huge {
            HugePages::WhenDense => None,
            HugePages::Off => Some(false),
            HugePages::Explicit => Some(true),
        };
        if let Some(huge) = advice {
            // A hint: without it the range works as well.
            // SAFETY: reserved above.
            let _ = unsafe { sys::advise_huge(start, len, huge) };
        }
        Ok(start)
    }

    /// In debug builds, stops a caller that names a part of a page.
    fn check(&self, start: NonNull<u8>, len: usize) {
        debug_assert!(
            is_paged(start.addr().get(), len, self.page_size()),
            "{start:p}+{len:#x}: not whole pages"
        );
    }
}

// SAFETY: the system hands out each address once; alignment is checked by `reserve_aligned`; an extent stays mapped
// until `release`.
unsafe impl Source for Mmap {
    fn geometry(&self) -> Geometry {
        let page = self.page_size();
        Geometry {
            granule: page as u64,
            max_align: 1 << (usize::BITS - if usize::BITS > 32 { 20 } else { 2 }),
            max_len: (isize::MAX as usize & !(page - 1)) as u64,
            zeroed: true,
        }
    }

    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        self.geometry().check(len, align)?;
        // `check` bounds both by `isize::MAX`.
        let extent = self.reserve(len as usize, align as usize)?;
        if self.mode() == GUARDED {
            let start = pointer(&extent);
            // SAFETY: reserved above.
            if let Err(refused) = unsafe { sys::open(start, len as usize) } {
                // SAFETY: nobody has seen the extent. If it cannot be released, its address space is lost.
                let _ = unsafe { self.release(extent) };
                return Err(refused);
            }
        }
        Ok(extent)
    }

    unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
        let len = extent.len() as usize;
        let Some(start) = NonNull::new(extent.as_ptr()) else {
            return Err(ReleaseError { extent, cause: SourceError::Unsupported });
        };
        // SAFETY: the extent is a mapping of ours that nothing uses any more.
        match unsafe { sys::release(start, len) } {
            Ok(()) => {
                self.reserved.fetch_sub(len, Relaxed);
                let _ = extent.into_raw();
                Ok(())
            }
            Err(cause) => Err(ReleaseError { extent, cause }),
        }
    }

    fn host_mapped(&self) -> Option<&dyn HostMapped> {
        Some(self)
    }

    fn purge(&self) -> Option<&dyn Purge> {
        Some(self)
    }

    fn split_merge(&self) -> Option<&dyn SplitMerge> {
        // Windows releases whole reservations only.
        if cfg!(unix) { Some(self) } else { None }
    }
}

// SAFETY: `Open` reservations are accessible throughout; `Guarded` ones are opened by `commit`. Zero is answered only
// where the system has dropped the pages. Every call to the system names the caller's range and no other.
unsafe impl PageSource for Mmap {
    fn page_size(&self) -> usize {
        match self.huge {
            HugePages::Explicit => huge_page_size(),
            HugePages::Off | HugePages::WhenDense => page_size(),
        }
    }

    fn reserve(&self, len: usize, align: usize) -> Result<Extent, SourceError> {
        self.geometry().check(len as u64, align as u64)?;
        self.take(len)?;
        let start = self.map(len, align.max(self.page_size())).inspect_err(|_| {
            self.reserved.fetch_sub(len, Relaxed);
        })?;
        // SAFETY: the mapping was made for this extent.
        Ok(unsafe { Extent::from_raw(start.as_ptr().expose_provenance() as u64, len as u64, 0) })
    }

    unsafe fn commit(&self, start: NonNull<u8>, len: usize) -> Result<Contents, SourceError> {
        self.check(start, len);
        if self.mode() == GUARDED {
            // SAFETY: the range lies in a reservation of ours.
            unsafe { sys::open(start, len) }?;
        }
        Ok(Contents::Unspecified)
    }

    unsafe fn decommit(
        &self,
        start: NonNull<u8>,
        len: usize,
        how: Decommit,
    ) -> Result<Contents, SourceError> {
        self.check(start, len);
        // SAFETY: the range lies in a reservation of ours, and its contents are not needed.
        unsafe {
            match (how, self.mode()) {
                (Decommit::Now, GUARDED) => sys::close(start, len).map(|()| Contents::Zero),
                (Decommit::Now, _) => sys::discard(start, len).map(|()| Contents::Zero),
                (Decommit::Lazy, _) => sys::discard_lazily(start, len)
                    .map(|dropped| if dropped { Contents::Zero } else { Contents::Unspecified }),
            }
        }
    }

    unsafe fn remap(
        &self,
        from: NonNull<u8>,
        old_len: usize,
        to: NonNull<u8>,
        new_len: usize,
    ) -> Result<(), SourceError> {
        self.check(from, old_len);
        self.check(to, new_len);
        if new_len < old_len {
            return Err(SourceError::BadLength {
                requested: new_len as u64,
                granule: self.page_size() as u64,
            });
        }
        if !sys::MOVES_PAGES {
            return Err(SourceError::Unsupported);
        }
        let guarded = self.mode() == GUARDED;
        // SAFETY: both ranges lie in reservations of ours and are apart; the contents of `to` are not needed, so its
        // tail may be cleared before it is known whether the pages can move.
        unsafe {
            if guarded {
                // Pages move with their protection.
                sys::open(from, old_len)?;
                sys::open(to, new_len)?;
            }
            if new_len > old_len {
                sys::discard(to.add(old_len), new_len - old_len)?;
            }
            sys::move_pages(from, to, old_len)?;
            if guarded {
                // If it is refused, the emptied pages stay accessible, which harms nobody.
                let _ = sys::close(from, old_len);
            }
        }
        Ok(())
    }

    unsafe fn populate(&self, start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
        self.check(start, len);
        // SAFETY: the range lies in a reservation of ours and is committed.
        unsafe { sys::populate(start, len) }
    }

    unsafe fn advise_huge(&self, start: NonNull<u8>, len: usize, huge: bool) -> Result<(), SourceError> {
        self.check(start, len);
        if huge && self.huge == HugePages::Off {
            return Err(SourceError::Unsupported);
        }
        // SAFETY: the range lies in a reservation of ours.
        unsafe { sys::advise_huge(start, len, huge) }
    }

    unsafe fn bind(&self, start: NonNull<u8>, len: usize, node: u32) -> Result<(), SourceError> {
        self.check(start, len);
        // SAFETY: the range lies in a reservation of ours.
        unsafe { sys::bind(start, len, node) }
    }
}

fn pointer(extent: &Extent) -> NonNull<u8> {
    // No system call of this crate answers a mapping at address 0.
    NonNull::new(extent.as_ptr()).unwrap_or(NonNull::dangling())
}

impl HostMapped for Mmap {
    fn host_ptr(&self, extent: &Extent) -> NonNull<u8> {
        pointer(extent)
    }
}

impl Purge for Mmap {
    unsafe fn purge(&self, extent: &Extent, offset: u64, len: u64) -> Result<Contents, SourceError> {
        let page = self.page_size() as u64;
        let inside = offset.checked_add(len).is_some_and(|end| end <= extent.len());
        if !inside || !offset.is_multiple_of(page) || !len.is_multiple_of(page) || len == 0 {
            return Err(SourceError::BadLength { requested: len, granule: page });
        }
        // SAFETY: inside the extent; the caller does not need the contents. The pages stay accessible.
        unsafe { sys::discard(pointer(extent).add(offset as usize), len as usize) }?;
        Ok(Contents::Zero)
    }
}

impl SplitMerge for Mmap {
    fn split(&self, extent: Extent, offset: u64) -> Result<(Extent, Extent), ReleaseError> {
        let granule = self.page_size() as u64;
        if offset == 0 || offset >= extent.len() || !offset.is_multiple_of(granule) {
            let cause = SourceError::BadLength { requested: offset, granule };
            return Err(ReleaseError { extent, cause });
        }
        let (address, len, cookie) = extent.into_raw();
        // SAFETY: the two parts are apart and take the place of the whole.
        Ok(unsafe {
            (
                Extent::from_raw(address, offset, cookie),
                Extent::from_raw(address + offset, len - offset, cookie),
            )
        })
    }

    fn merge(&self, first: Extent, second: Extent) -> Result<Extent, (Extent, Extent, SourceError)> {
        if first.address().checked_add(first.len()) != Some(second.address()) {
            return Err((first, second, SourceError::Unsupported));
        }
        let (address, len, cookie) = first.into_raw();
        let (_, more, _) = second.into_raw();
        // SAFETY: the whole takes the place of its two parts; the system releases neighbouring mappings as one.
        Ok(unsafe { Extent::from_raw(address, len + more, cookie) })
    }
}
