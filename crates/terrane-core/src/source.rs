//! Where memory comes from: [`Source`] for any memory, [`PageSource`] for pages of the host.
//!
//! Invariant: two extents that a source has handed out and not taken back never overlap. An [`Extent`] is a
//! move-only token for such a range, so a release can never carry a wrong length, and a release that fails gives
//! the token back.
//!
//! A source is cold: it is asked for megabytes, rarely. It is object-safe, and abilities that only some suppliers
//! have are small traits of their own, reached through an `Option`, so that a new ability breaks no implementer.

use crate::{ReleaseError, SourceError};
use core::ptr::NonNull;

/// A range of memory on loan from a [`Source`]. Move-only: whoever holds it owns the range.
///
/// Dropping an extent does not release it; give it to [`Source::release`].
#[derive(PartialEq, Eq, Debug)]
#[must_use = "an extent that is dropped is never released"]
pub struct Extent {
    address: u64,
    len: u64,
    cookie: u64,
}

impl Extent {
    /// Makes an extent of `len` bytes at `address`, with the supplier's own handle in `cookie`.
    ///
    /// # Safety
    /// The range belongs to the caller, and no other extent overlaps it.
    pub const unsafe fn from_raw(address: u64, len: u64, cookie: u64) -> Self {
        Self { address, len, cookie }
    }

    /// Takes the token apart into address, length in bytes and cookie. The range is then the caller's to track.
    pub const fn into_raw(self) -> (u64, u64, u64) {
        (self.address, self.len, self.cookie)
    }

    /// First address of the range, in the source's own address space (a host pointer, a device address, an offset).
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether the range is empty. No source hands out an empty extent.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The supplier's own handle; meaningless to everyone else.
    pub const fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The first address as a host pointer, if it is one. Only meaningful for extents of a [`PageSource`] or of a
    /// source that offers [`HostMapped`].
    pub const fn as_ptr(&self) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(self.address as usize)
    }
}

/// What lengths and alignments a source deals in, all in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Lengths are multiples of this power of two.
    pub granule: u64,
    /// Largest alignment that can be asked for.
    pub max_align: u64,
    /// Largest length of one extent.
    pub max_len: u64,
    /// Whether fresh extents read as zero.
    pub zeroed: bool,
}

impl Geometry {
    /// Checks a request against this geometry.
    ///
    /// # Errors
    /// [`SourceError::BadLength`] or [`SourceError::BadAlign`].
    pub const fn check(&self, len: u64, align: u64) -> Result<(), SourceError> {
        if len == 0 || !len.is_multiple_of(self.granule) || len > self.max_len {
            return Err(SourceError::BadLength { requested: len, granule: self.granule });
        }
        if !align.is_power_of_two() || align > self.max_align {
            return Err(SourceError::BadAlign { requested: align, max: self.max_align });
        }
        Ok(())
    }
}

/// A supplier of memory that need not be dereferenceable: host pages, device memory, a registered RDMA region, a
/// range of a file. This is the plug-in point for special hardware.
///
/// # Safety
/// Extents that are out never overlap, have at least the alignment asked for, and stay valid until released.
pub unsafe trait Source {
    /// Granule, limits and whether fresh extents read as zero. Constant over the life of the source.
    fn geometry(&self) -> Geometry;

    /// Hands out an extent of `len` bytes whose address is a multiple of `align`, ready for use.
    ///
    /// # Errors
    /// A [`SourceError`]; nothing has changed then.
    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError>;

    /// Takes an extent back.
    ///
    /// # Errors
    /// A [`ReleaseError`] that holds the extent, which is then still the caller's.
    ///
    /// # Safety
    /// The extent came from this source, and nothing uses its memory any more.
    unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError>;

    /// The ability to see the memory from the host, if this source has it.
    fn host_mapped(&self) -> Option<&dyn HostMapped> {
        None
    }

    /// The ability to drop contents and keep addresses, if this source has it.
    fn purge(&self) -> Option<&dyn Purge> {
        None
    }

    /// The ability to cut and join extents, if this source has it.
    fn split_merge(&self) -> Option<&dyn SplitMerge> {
        None
    }

    /// The ability to lend memory to other processes, if this source has it.
    fn share(&self) -> Option<&dyn Share> {
        None
    }
}

/// Extents that the host can read and write.
pub trait HostMapped {
    /// The host pointer to the first byte of `extent`, valid until the extent is released.
    fn host_ptr(&self, extent: &Extent) -> NonNull<u8>;
}

/// Dropping the contents of a part of an extent while keeping its addresses.
pub trait Purge {
    /// Gives the memory behind `len` bytes at `offset` of `extent` back to the supplier; the next use makes it
    /// present again. Returns what the contents are then.
    ///
    /// # Errors
    /// A [`SourceError`]; the contents are then unspecified, and the range is still usable.
    ///
    /// # Safety
    /// Nothing relies on the contents of the range.
    unsafe fn purge(&self, extent: &Extent, offset: u64, len: u64) -> Result<Contents, SourceError>;
}

/// Cutting and joining extents without copying.
pub trait SplitMerge {
    /// Cuts `extent` at `offset` bytes, a multiple of the granule, into two extents.
    ///
    /// # Errors
    /// The extent and the cause.
    fn split(&self, extent: Extent, offset: u64) -> Result<(Extent, Extent), ReleaseError>;

    /// Joins two extents where `second` begins at the end of `first`.
    ///
    /// # Errors
    /// Both extents and the cause.
    fn merge(&self, first: Extent, second: Extent) -> Result<Extent, (Extent, Extent, SourceError)>;
}

/// Lending memory to other processes.
pub trait Share {
    /// Writes a token that another process can open into `token` and returns its length in bytes.
    ///
    /// # Errors
    /// [`SourceError::BadLength`] if `token` is too short, otherwise why the extent cannot be shared.
    fn export(&self, extent: &Extent, token: &mut [u8]) -> Result<usize, SourceError>;

    /// Opens memory that another process exported.
    ///
    /// # Errors
    /// Why the token cannot be opened.
    fn import(&self, token: &[u8]) -> Result<Extent, SourceError>;
}

/// What a range of memory holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contents {
    /// Every byte reads as zero.
    Zero,
    /// Old contents, or zero, page by page: nothing may be assumed.
    Unspecified,
}

/// How soon decommitted pages go back to the system.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Decommit {
    /// When the system needs them (`MADV_FREE`): cheap, but resident memory falls late.
    Lazy,
    /// At once (`MADV_DONTNEED`).
    Now,
}

/// A [`Source`] of host pages whose ranges can be reserved without being committed.
///
/// A reserved page has an address and no memory. A committed page can be read and written. [`Source::acquire`] on a
/// page source is reserve and commit in one; [`Source::release`] takes reservations and committed extents alike.
/// Ranges are given as pointer and length in bytes, both multiples of [`page_size`](Self::page_size).
///
/// # Safety
/// As for [`Source`]; a committed range is readable and writable until it is decommitted or released; pages reported
/// as [`Contents::Zero`] read as zero until written; reserving, committing and decommitting never touch memory outside
/// the range that was named.
pub unsafe trait PageSource: Source {
    /// Bytes in a page of this source: a power of two, constant over its life.
    fn page_size(&self) -> usize;

    /// Takes `len` bytes of address space at a multiple of `align`, without memory behind them. If
    /// [`Geometry::zeroed`], pages of it read as zero when they are first committed, whatever that commit answers.
    ///
    /// # Errors
    /// A [`SourceError`]; nothing has changed then.
    fn reserve(&self, len: usize, align: usize) -> Result<Extent, SourceError>;

    /// Makes reserved pages usable and says what they hold. Pages that are committed already keep their contents, and
    /// then the answer is [`Contents::Unspecified`] unless the whole range reads as zero.
    ///
    /// # Errors
    /// A [`SourceError`]; the range is then as before.
    ///
    /// # Safety
    /// The range lies in a live reservation of this source.
    unsafe fn commit(&self, start: NonNull<u8>, len: usize) -> Result<Contents, SourceError>;

    /// Gives the memory of committed pages back and says what the range would hold if it were committed again.
    /// The pages must be [committed](Self::commit) before their next use.
    ///
    /// # Errors
    /// A [`SourceError`]; the range is then still committed and its contents are unspecified.
    ///
    /// # Safety
    /// The range lies in a live reservation of this source, and nothing relies on its contents.
    unsafe fn decommit(&self, start: NonNull<u8>, len: usize, how: Decommit)
    -> Result<Contents, SourceError>;

    /// Moves the pages of `old_len` bytes at `from` to the committed or reserved range `to` of `new_len ≥ old_len` bytes
    /// without copying. Afterwards `to` is committed over all its length, its bytes above `old_len` read as zero, and
    /// `from` is decommitted.
    ///
    /// # Errors
    /// [`SourceError::Unsupported`] where pages cannot be moved, or the system's refusal; both ranges are then as before.
    ///
    /// # Safety
    /// Both ranges lie in live reservations of this source and do not overlap; nothing relies on the contents of `to`.
    unsafe fn remap(
        &self,
        from: NonNull<u8>,
        old_len: usize,
        to: NonNull<u8>,
        new_len: usize,
    ) -> Result<(), SourceError> {
        let _ = (from, old_len, to, new_len);
        Err(SourceError::Unsupported)
    }

    /// Makes committed pages present in one batch, instead of at their first touch. A hint: contents do not change.
    ///
    /// # Errors
    /// [`SourceError::Unsupported`], or the system's refusal; nothing has changed then.
    ///
    /// # Safety
    /// The range lies in a live reservation of this source and is committed.
    unsafe fn populate(&self, start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
        let _ = (start, len);
        Err(SourceError::Unsupported)
    }

    /// Asks that the range be backed by huge pages (`true`) or by base pages (`false`). A hint.
    ///
    /// # Errors
    /// [`SourceError::Unsupported`], or the system's refusal; nothing has changed then.
    ///
    /// # Safety
    /// The range lies in a live reservation of this source.
    unsafe fn advise_huge(&self, start: NonNull<u8>, len: usize, huge: bool) -> Result<(), SourceError> {
        let _ = (start, len, huge);
        Err(SourceError::Unsupported)
    }

    /// Asks that pages of the range, when they become present, come from the memory of `node`.
    ///
    /// # Errors
    /// [`SourceError::Unsupported`], or the system's refusal; nothing has changed then.
    ///
    /// # Safety
    /// The range lies in a live reservation of this source.
    unsafe fn bind(&self, start: NonNull<u8>, len: usize, node: u32) -> Result<(), SourceError> {
        let _ = (start, len, node);
        Err(SourceError::Unsupported)
    }
}

macro_rules! forward_source {
    () => {
        fn geometry(&self) -> Geometry {
            (**self).geometry()
        }
        fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
            (**self).acquire(len, align)
        }
        unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
            // SAFETY: passed on by the caller.
            unsafe { (**self).release(extent) }
        }
        fn host_mapped(&self) -> Option<&dyn HostMapped> {
            (**self).host_mapped()
        }
        fn purge(&self) -> Option<&dyn Purge> {
            (**self).purge()
        }
        fn split_merge(&self) -> Option<&dyn SplitMerge> {
            (**self).split_merge()
        }
        fn share(&self) -> Option<&dyn Share> {
            (**self).share()
        }
    };
}

// SAFETY: every call is passed on to a source that keeps the contract.
unsafe impl<S: Source + ?Sized> Source for &S {
    forward_source!();
}

// SAFETY: every call is passed on to a page source that keeps the contract; the caller's promises are passed on too.
unsafe impl<S: PageSource + ?Sized> PageSource for &S {
    fn page_size(&self) -> usize {
        (**self).page_size()
    }
    fn reserve(&self, len: usize, align: usize) -> Result<Extent, SourceError> {
        (**self).reserve(len, align)
    }
    unsafe fn commit(&self, start: NonNull<u8>, len: usize) -> Result<Contents, SourceError> {
        // SAFETY: passed on by the caller.
        unsafe { (**self).commit(start, len) }
    }
    unsafe fn decommit(
        &self,
        start: NonNull<u8>,
        len: usize,
        how: Decommit,
    ) -> Result<Contents, SourceError> {
        // SAFETY: passed on by the caller.
        unsafe { (**self).decommit(start, len, how) }
    }
    unsafe fn remap(
        &self,
        from: NonNull<u8>,
        old_len: usize,
        to: NonNull<u8>,
        new_len: usize,
    ) -> Result<(), SourceError> {
        // SAFETY: passed on by the caller.
        unsafe { (**self).remap(from, old_len, to, new_len) }
    }
    unsafe fn populate(&self, start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
        // SAFETY: passed on by the caller.
        unsafe { (**self).populate(start, len) }
    }
    unsafe fn advise_huge(&self, start: NonNull<u8>, len: usize, huge: bool) -> Result<(), SourceError> {
        // SAFETY: passed on by the caller.
        unsafe { (**self).advise_huge(start, len, huge) }
    }
    unsafe fn bind(&self, start: NonNull<u8>, len: usize, node: u32) -> Result<(), SourceError> {
        // SAFETY: passed on by the caller.
        unsafe { (**self).bind(start, len, node) }
    }
}
