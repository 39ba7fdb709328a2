//! A source that keeps the books on another: [`Accounting`], for tests and for reports.
//!
//! Invariant: the books describe every extent that came through here and is still out, and its committed pages to the
//! byte. A call that fails below is counted and changes nothing else; a call that breaks the contract never gets below.

use crate::faulty::Call;
use crate::intervals::Intervals;
use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use terrane_core::{
    Contents, Decommit, Extent, Geometry, HostMapped, PageSource, ReleaseError, Share, Source, SourceError,
};

/// Sums over the calls on an [`Accounting`] source. Bytes unless said otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Reserved now.
    pub reserved: usize,
    /// The most that was reserved at one time.
    pub peak_reserved: usize,
    /// Committed now.
    pub committed: usize,
    /// The most that was committed at one time.
    pub peak_committed: usize,
    /// All that was ever newly committed; pages that were committed already do not count.
    pub ever_committed: u64,
    /// All that was ever decommitted at once; pages that were not committed do not count.
    pub decommitted_now: u64,
    /// All that was ever decommitted lazily; pages that were not committed do not count.
    pub decommitted_lazily: u64,
    /// Moved by remapping.
    pub moved: u64,
    /// Calls by kind, in the order of [`Call::ALL`], failed ones included.
    pub calls: [u64; Call::ALL.len()],
    /// Calls that the source below refused.
    pub failures: u64,
}

impl Totals {
    /// Calls of one kind, failed ones included.
    pub const fn calls_of(&self, kind: Call) -> u64 {
        self.calls[kind as usize]
    }
}

/// A call that breaks the contract of [`PageSource`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Misuse {
    /// The range is empty or not whole pages.
    NotPages {
        /// What was called.
        call: Call,
        /// The range.
        range: Range<usize>,
    },
    /// The range is not wholly inside one live extent.
    Outside {
        /// What was called.
        call: Call,
        /// The range.
        range: Range<usize>,
    },
    /// Pages of the range are not committed, and this call needs them to be.
    NotCommitted {
        /// What was called.
        call: Call,
        /// The range.
        range: Range<usize>,
        /// Bytes of it that are committed.
        committed: usize,
    },
    /// The two ranges of a move overlap, or the new one is shorter.
    BadMove {
        /// From here.
        from: Range<usize>,
        /// To here.
        to: Range<usize>,
    },
    /// The extent is not one that is out.
    NotOurs {
        /// Its range.
        range: Range<usize>,
    },
    /// Extents are still out at the end.
    Leaked {
        /// How many.
        extents: usize,
        /// Bytes in them.
        bytes: usize,
    },
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPages { call, range } => write!(f, "{call:?} of {range:#x?}: not whole pages"),
            Self::Outside { call, range } => write!(f, "{call:?} of {range:#x?}: not inside a live extent"),
            Self::NotCommitted { call, range, committed } => {
                write!(f, "{call:?} of {range:#x?}: only {committed} bytes of it are committed")
            }
            Self::BadMove { from, to } => write!(f, "move of {from:#x?} to {to:#x?}"),
            Self::NotOurs { range } => write!(f, "release of {range:#x?}: not an extent that is out"),
            Self::Leaked { extents, bytes } => write!(f, "{extents} extents of {bytes} bytes are still out"),
        }
    }
}

impl core::error::Error for Misuse {}

#[derive(Debug, Default)]
struct Books {
    /// The end of each extent that is out, by its start.
    extents: BTreeMap<usize, usize>,
    committed: Intervals,
    totals: Totals,
}

fn wide(range: &Range<usize>) -> Range<u64> {
    range.start as u64..range.end as u64
}

impl Books {
    fn holds(&self, range: &Range<usize>) -> bool {
        self.extents.range(..=range.start).next_back().is_some_and(|(_, &end)| range.end <= end)
    }

    fn add(&mut self, extent: &Extent, committed: bool) {
        let start = extent.address() as usize;
        let len = extent.len() as usize;
        self.extents.insert(start, start + len);
        self.totals.reserved += len;
        self.totals.peak_reserved = self.totals.peak_reserved.max(self.totals.reserved);
        if committed {
            self.commit(start..start + len);
        }
    }

    fn commit(&mut self, range: Range<usize>) {
        self.totals.ever_committed += self.committed.insert(wide(&range));
        self.totals.committed = self.committed.total() as usize;
        self.totals.peak_committed = self.totals.peak_committed.max(self.totals.committed);
    }

    fn uncommit(&mut self, range: Range<usize>) -> u64 {
        let bytes = self.committed.remove(wide(&range));
        self.totals.committed = self.committed.total() as usize;
        bytes
    }
}

/// A source over another that counts calls and bytes exactly, and stops a caller that breaks the contract.
///
/// Its books are ordered maps behind a std mutex: it cannot stand under the global allocator. Cutting extents is not
/// offered.
///
/// ```
/// use std::ptr::NonNull;
/// use terrane_core::{Decommit, PageSource, Source};
/// use terrane_pages::{Accounting, Mmap};
///
/// let source = Accounting::new(Mmap::new());
/// let extent = source.reserve(1 << 20, 1 << 16).unwrap();
/// let start = NonNull::new(extent.as_ptr()).unwrap();
/// // SAFETY: inside the reservation.
/// unsafe {
///     source.commit(start, 1 << 18).unwrap();
///     source.commit(start, 1 << 19).unwrap();
///     source.decommit(start, 1 << 17, Decommit::Now).unwrap();
///     assert_eq!(source.totals().committed, (1 << 19) - (1 << 17));
///     source.release(extent).unwrap();
/// }
/// assert_eq!(source.totals().ever_committed, 1 << 19);
/// source.assert_nothing_leaked();
/// ```
#[derive(Debug)]
pub struct Accounting<S> {
    source: S,
    books: Mutex<Books>,
}

impl<S> Accounting<S> {
    /// A source over `source`, of which nothing is out yet.
    pub fn new(source: S) -> Self {
        Self { source, books: Mutex::default() }
    }

    /// The source below.
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// The sums so far.
    pub fn totals(&self) -> Totals {
        self.books().totals
    }

    /// How many bytes of the range are committed.
    pub fn committed_in(&self, range: Range<usize>) -> usize {
        self.books().committed.inside(&wide(&range)) as usize
    }

    /// Checks that every extent has come back.
    ///
    /// # Panics
    /// If one is still out.
    pub fn assert_nothing_leaked(&self) {
        let (extents, bytes) = {
            let books = self.books();
            (books.extents.len(), books.totals.reserved)
        };
        if extents > 0 {
            misuse(Misuse::Leaked { extents, bytes });
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // No panic happens between two changes of the books.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cold]
#[track_caller]
fn misuse(what: Misuse) -> ! {
    panic!("page source misused: {what}")
}

fn range_of(start: NonNull<u8>, len: usize) -> Range<usize> {
    let start = start.addr().get();
    start..start.saturating_add(len)
}

impl<S: PageSource> Accounting<S> {
    /// Counts the call, and stops one that breaks the contract.
    #[track_caller]
    fn enter(&self, call: Call, range: &Range<usize>, needs_commit: bool) -> MutexGuard<'_, Books> {
        let page = self.source.page_size();
        let mut books = self.books();
        books.totals.calls[call as usize] += 1;
        let wrong = if range.is_empty() || (range.start | range.end) & (page - 1) != 0 {
            Misuse::NotPages { call, range: range.clone() }
        } else if !books.holds(range) {
            Misuse::Outside { call, range: range.clone() }
        } else {
            let committed = books.committed.inside(&wide(range)) as usize;
            if !needs_commit || committed == range.len() {
                return books;
            }
            Misuse::NotCommitted { call, range: range.clone(), committed }
        };
        drop(books);
        misuse(wrong)
    }

    /// Takes a new extent into the books.
    fn taken(
        &self,
        call: Call,
        taken: Result<Extent, SourceError>,
        committed: bool,
    ) -> Result<Extent, SourceError> {
        let mut books = self.books();
        books.totals.calls[call as usize] += 1;
        match &taken {
            Ok(extent) => books.add(extent, committed),
            Err(_) => books.totals.failures += 1,
        }
        taken
    }

    /// A hint: counted, and nothing else.
    fn hint(
        &self,
        call: Call,
        range: Range<usize>,
        needs_commit: bool,
        give: impl FnOnce() -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let mut books = self.enter(call, &range, needs_commit);
        give().inspect_err(|_| books.totals.failures += 1)
    }
}

// SAFETY: every call that keeps the contract is passed on.
unsafe impl<S: PageSource> Source for Accounting<S> {
    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        self.taken(Call::Acquire, self.source.acquire(len, align), true)
    }

    unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
        let start = extent.address() as usize;
        let range = start..start + extent.len() as usize;
        // The books stay closed while the source below works: it may hand the addresses out again at once.
        let mut books = self.books();
        books.totals.calls[Call::Release as usize] += 1;
        if books.extents.get(&range.start) != Some(&range.end) {
            drop(books);
            misuse(Misuse::NotOurs { range });
        }
        // SAFETY: passed on by the caller.
        unsafe { self.source.release(extent) }.inspect_err(|_| books.totals.failures += 1)?;
        books.extents.remove(&range.start);
        books.totals.reserved -= range.len();
        books.uncommit(range);
        Ok(())
    }

    fn host_mapped(&self) -> Option<&dyn HostMapped> {
        self.source.host_mapped()
    }

    fn share(&self) -> Option<&dyn Share> {
        self.source.share()
    }

    crate::forward::source!(source: geometry);
}

// SAFETY: every call that keeps the contract is passed on.
unsafe impl<S: PageSource> PageSource for Accounting<S> {
    fn reserve(&self, len: usize, align: usize) -> Result<Extent, SourceError> {
        self.taken(Call::Reserve, self.source.reserve(len, align), false)
    }

    unsafe fn commit(&self, start: NonNull<u8>, len: usize) -> Result<Contents, SourceError> {
        let range = range_of(start, len);
        let mut books = self.enter(Call::Commit, &range, false);
        // SAFETY: passed on by the caller.
        let contents =
            unsafe { self.source.commit(start, len) }.inspect_err(|_| books.totals.failures += 1)?;
        books.commit(range);
        Ok(contents)
    }

    unsafe fn decommit(
        &self,
        start: NonNull<u8>,
        len: usize,
        how: Decommit,
    ) -> Result<Contents, SourceError> {
        let range = range_of(start, len);
        let mut books = self.enter(Call::Decommit, &range, false);
        // SAFETY: passed on by the caller.
        let contents =
            unsafe { self.source.decommit(start, len, how) }.inspect_err(|_| books.totals.failures += 1)?;
        let bytes = books.uncommit(range);
        match how {
            Decommit::Now => books.totals.decommitted_now += bytes,
            Decommit::Lazy => books.totals.decommitted_lazily += bytes,
        }
        Ok(contents)
    }

    unsafe fn remap(
        &self,
        from: NonNull<u8>,
        old_len: usize,
        to: NonNull<u8>,
        new_len: usize,
    ) -> Result<(), SourceError> {
        let (origin, place) = (range_of(from, old_len), range_of(to, new_len));
        let apart = origin.end <= place.start || place.end <= origin.start;
        if !apart || new_len < old_len {
            misuse(Misuse::BadMove { from: origin, to: place });
        }
        drop(self.enter(Call::Remap, &origin, true));
        let mut books = self.enter(Call::Remap, &place, false);
        // One call, looked at from both ends.
        books.totals.calls[Call::Remap as usize] -= 1;
        // SAFETY: passed on by the caller.
        unsafe { self.source.remap(from, old_len, to, new_len) }
            .inspect_err(|_| books.totals.failures += 1)?;
        books.totals.moved += books.uncommit(origin);
        books.commit(place);
        Ok(())
    }

    unsafe fn populate(&self, start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
        // SAFETY: passed on by the caller.
        self.hint(Call::Populate, range_of(start, len), true, || unsafe { self.source.populate(start, len) })
    }

    unsafe fn advise_huge(&self, start: NonNull<u8>, len: usize, huge: bool) -> Result<(), SourceError> {
        // SAFETY: passed on by the caller.
        self.hint(Call::AdviseHuge, range_of(start, len), false, || unsafe {
            self.source.advise_huge(start, len, huge)
        })
    }

    unsafe fn bind(&self, start: NonNull<u8>, len: usize, node: u32) -> Result<(), SourceError> {
        // SAFETY: passed on by the caller.
        self.hint(Call::Bind, range_of(start, len), false, || unsafe { self.source.bind(start, len, node) })
    }

    crate::forward::pages!(source: page_size);
}
