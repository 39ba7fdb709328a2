//! A source whose calls fail on order: [`Faulty`], for tests of what happens when memory runs out.
//!
//! Invariant: a call that is ordered to fail never reaches the source below, so it changes nothing there.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use terrane_core::{
    Contents, Decommit, Extent, Geometry, HostMapped, PageSource, Purge, ReleaseError, Share, Source,
    SourceError, SplitMerge,
};

/// The kinds of calls on a page source that can fail.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(usize)]
pub enum Call {
    /// `Source::acquire`
    Acquire,
    /// `Source::release`
    Release,
    /// `PageSource::reserve`
    Reserve,
    /// `PageSource::commit`
    Commit,
    /// `PageSource::decommit`
    Decommit,
    /// `PageSource::remap`
    Remap,
    /// `PageSource::populate`
    Populate,
    /// `PageSource::advise_huge`
    AdviseHuge,
    /// `PageSource::bind`
    Bind,
}

impl Call {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Acquire,
        Self::Release,
        Self::Reserve,
        Self::Commit,
        Self::Decommit,
        Self::Remap,
        Self::Populate,
        Self::AdviseHuge,
        Self::Bind,
    ];
}

/// Calls of one kind, or of all kinds: how many there were, and which are to fail.
#[derive(Debug)]
struct Order {
    calls: AtomicU64,
    /// The first call that fails, counted from 1; 0 for none.
    first: AtomicU64,
    /// Whether the calls after it fail as well.
    onwards: AtomicBool,
}

impl Order {
    const fn new() -> Self {
        Self { calls: AtomicU64::new(0), first: AtomicU64::new(0), onwards: AtomicBool::new(false) }
    }

    fn set(&self, first: u64, onwards: bool) {
        self.onwards.store(onwards, Relaxed);
        self.first.store(first, Relaxed);
    }

    /// Counts a call; whether it is to fail.
    fn count(&self) -> bool {
        let this = self.calls.fetch_add(1, Relaxed) + 1;
        match self.first.load(Relaxed) {
            0 => false,
            first => this == first || (this > first && self.onwards.load(Relaxed)),
        }
    }
}

/// A source over another whose Nth call fails, of one kind or of all kinds together.
///
/// Calls are counted from 1 since the source was made or [`reset`](Self::reset). A failing call answers
/// [`SourceError::OutOfMemory`] (a hint or a move, [`SourceError::Unsupported`]) and changes nothing. The abilities of the source below (cutting, sharing)
/// are passed on uncounted.
///
/// ```
/// use terrane_core::{PageSource, Source, SourceError};
/// use terrane_pages::{Call, Faulty, Mmap};
///
/// let source = Faulty::new(Mmap::new());
/// source.fail_nth_of(Call::Reserve, 2);
/// let first = source.reserve(1 << 20, 4096).unwrap();
/// assert_eq!(source.reserve(1 << 20, 4096).unwrap_err(), SourceError::OutOfMemory { requested: 1 << 20 });
/// assert_eq!((source.calls(), source.failures()), (2, 1));
/// // SAFETY: the extent came from this source and nothing uses it.
/// unsafe { source.release(first) }.unwrap();
/// ```
#[derive(Debug)]
pub struct Faulty<S> {
    source: S,
    all: Order,
    kinds: [Order; Call::ALL.len()],
    failures: AtomicU64,
}

impl<S> Faulty<S> {
    /// A source over `source` without any orders to fail.
    pub const fn new(source: S) -> Self {
        Self {
            source,
            all: Order::new(),
            kinds: [const { Order::new() }; Call::ALL.len()],
            failures: AtomicU64::new(0),
        }
    }

    /// The source below.
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// The `nth` call of all fails, once; 0 takes the order back.
    pub fn fail_nth(&self, nth: u64) {
        self.all.set(nth, false);
    }

    /// The `nth` call of all fails, and every one after it; 0 takes the order back.
    pub fn fail_from(&self, nth: u64) {
        self.all.set(nth, true);
    }

    /// The `nth` call of this kind fails, once; 0 takes the order back.
    pub fn fail_nth_of(&self, kind: Call, nth: u64) {
        self.kinds[kind as usize].set(nth, false);
    }

    /// The `nth` call of this kind fails, and every one after it; 0 takes the order back.
    pub fn fail_from_of(&self, kind: Call, nth: u64) {
        self.kinds[kind as usize].set(nth, true);
    }

    /// Takes all orders back and counts from 1 again.
    pub fn reset(&self) {
        for order in self.kinds.iter().chain([&self.all]) {
            order.set(0, false);
            order.calls.store(0, Relaxed);
        }
        self.failures.store(0, Relaxed);
    }

    /// Calls of all kinds so far, failed ones included.
    pub fn calls(&self) -> u64 {
        self.all.calls.load(Relaxed)
    }

    /// Calls of one kind so far, failed ones included.
    pub fn calls_of(&self, kind: Call) -> u64 {
        self.kinds[kind as usize].calls.load(Relaxed)
    }

    /// Calls that failed on order.
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    fn pass(&self, kind: Call, len: usize) -> Result<(), SourceError> {
        // Both count, whatever the other says.
        let fails = self.all.count() | self.kinds[kind as usize].count();
        if !fails {
            return Ok(());
        }
        self.failures.fetch_add(1, Relaxed);
        Err(match kind {
            Call::Remap | Call::Populate | Call::AdviseHuge | Call::Bind => SourceError::Unsupported,
            _ => SourceError::OutOfMemory { requested: len as u64 },
        })
    }
}

// SAFETY: calls are passed on or refused.
unsafe impl<S: PageSource> Source for Faulty<S> {
    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        self.pass(Call::Acquire, len as usize)?;
        self.source.acquire(len, align)
    }

    unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
        if let Err(cause) = self.pass(Call::Release, extent.len() as usize) {
            return Err(ReleaseError { extent, cause });
        }
        // SAFETY: passed on by the caller.
        unsafe { self.source.release(extent) }
    }

    crate::forward::source!(source: geometry, abilities);
}

// SAFETY: calls are passed on or refused; a refusal changes nothing.
unsafe impl<S: PageSource> PageSource for Faulty<S> {
    fn reserve(&self, len: usize, align: usize) -> Result<Extent, SourceError> {
        self.pass(Call::Reserve, len)?;
        self.source.reserve(len, align)
    }

    unsafe fn commit(&self, start: NonNull<u8>, len: usize) -> Result<Contents, SourceError> {
        self.pass(Call::Commit, len)?;
        // SAFETY: passed on by the caller.
        unsafe { self.source.commit(start, len) }
    }

    unsafe fn decommit(
        &self,
        start: NonNull<u8>,
        len: usize,
        how: Decommit,
    ) -> Result<Contents, SourceError> {
        self.pass(Call::Decommit, len)?;
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
        self.pass(Call::Remap, old_len)?;
        // SAFETY: passed on by the caller.
        unsafe { self.source.remap(from, old_len, to, new_len) }
    }

    unsafe fn populate(&self, start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
        self.pass(Call::Populate, len)?;
        // SAFETY: passed on by the caller.
        unsafe { self.source.populate(start, len) }
    }

    unsafe fn advise_huge(&self, start: NonNull<u8>, len: usize, huge: bool) -> Result<(), SourceError> {
        self.pass(Call::AdviseHuge, len)?;
        // SAFETY: passed on by the caller.
        unsafe { self.source.advise_huge(start, len, huge) }
    }

    unsafe fn bind(&self, start: NonNull<u8>, len: usize, node: u32) -> Result<(), SourceError> {
        self.pass(Call::Bind, len)?;
        // SAFETY: passed on by the caller.
        unsafe { self.source.bind(start, len, node) }
    }

    crate::forward::pages!(source: page_size);
}
