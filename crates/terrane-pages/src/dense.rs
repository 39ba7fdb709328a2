//! Huge pages for ranges that turn out to be densely committed: [`Dense`].
//!
//! Invariant: a window is one huge page's worth of addresses, aligned to it. The bits of a watched window are exactly the
//! base pages that are committed through this source; `held` are those of its other pages whose memory has not been
//! given back yet; `is_huge` is set from the moment at which all bits were set until the window is given up.
//!
//! | pages of the window committed | what happens |
//! |---|---|
//! | all, for the first time | huge pages are asked for |
//! | fewer, but half or more | decommitted pages are held: giving a few back would split the huge page |
//! | fewer than half | base pages are asked for, and all held pages go back |
//!
//! Protocol: the records lie in an array of fixed length inside the source, in sets of a few entries found by the
//! window's number. A window that finds its set full is not watched, and its calls are passed on as they come.

use crate::lock::Lock;
use crate::page::{huge_page_size, is_paged};
use core::ops::Range;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use terrane_core::{
    Contents, Decommit, Extent, Geometry, HostMapped, PageSource, Purge, ReleaseError, Share, Source,
    SourceError, SplitMerge,
};

/// Base pages that a window can have: 2 MiB of 4 KiB.
const MOST_PAGES: usize = 512;
const WORDS: usize = MOST_PAGES / 64;
const WAYS: usize = 4;

/// What is known of one window.
#[derive(Clone, Copy, Debug)]
struct Window {
    /// Address of the window; 0 in an unused entry.
    start: usize,
    committed: [u64; WORDS],
    held: [u64; WORDS],
    is_huge: bool,
}

const UNUSED: Window = Window { start: 0, committed: [0; WORDS], held: [0; WORDS], is_huge: false };

fn each(bits: &mut [u64; WORDS], pages: Range<usize>, mut change: impl FnMut(&mut u64, u64)) {
    for page in pages {
        change(&mut bits[page / 64], 1 << (page % 64));
    }
}

fn count(bits: &[u64; WORDS]) -> usize {
    bits.iter().map(|word| word.count_ones() as usize).sum()
}

/// A source that asks for huge pages where every page of one is committed, and then does not split it for a few pages.
///
/// Up to `WINDOWS` huge pages are watched at a time, for which the source has 144 bytes each in itself; `WINDOWS` is a
/// multiple of 4. A decommit whose pages are held back answers [`Contents::Unspecified`]; the memory goes back when less
/// than half of the huge page is in use. Machines whose huge pages have more than 512 base pages are passed by.
///
/// ```
/// use terrane_core::{PageSource, Source};
/// use terrane_pages::{Dense, Mmap, huge_page_size};
/// # use std::ptr::NonNull;
///
/// static PAGES: Dense<Mmap, 64> = Dense::new(Mmap::new());
///
/// let huge = huge_page_size();
/// let extent = PAGES.reserve(2 * huge, huge).unwrap();
/// let start = NonNull::new(extent.as_ptr()).unwrap();
/// // SAFETY: inside the reservation.
/// unsafe {
///     PAGES.commit(start, huge / 2).unwrap();
///     assert_eq!(PAGES.huge_windows(), 0);
///     PAGES.commit(start.add(huge / 2), huge / 2).unwrap();
///     assert!(PAGES.huge_windows() == 1 || huge / PAGES.page_size() > 512);
///     PAGES.release(extent).unwrap();
/// }
/// ```
#[derive(Debug)]
pub struct Dense<S, const WINDOWS: usize> {
    source: S,
    windows: Lock<[Window; WINDOWS]>,
}

impl<S, const WINDOWS: usize> Dense<S, WINDOWS> {
    /// A source over `source` that watches nothing yet.
    ///
    /// # Panics
    /// If `WINDOWS` is not a positive multiple of 4; in a `const`, when compiled.
    pub const fn new(source: S) -> Self {
        assert!(WINDOWS > 0 && WINDOWS.is_multiple_of(WAYS), "windows are kept in sets of four");
        Self { source, windows: Lock::new([UNUSED; WINDOWS]) }
    }

    /// The source below.
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// How many windows huge pages have been asked for and not given up.
    pub fn huge_windows(&self) -> usize {
        self.windows.lock().iter().filter(|window| window.is_huge).count()
    }

    /// Waits until no other thread is inside, and keeps others out, for a handler that runs before a fork.
    pub fn before_fork(&self) {
        self.windows.enter();
    }

    /// Lets others in again, after a fork, in the parent and in the child.
    ///
    /// # Safety
    /// Follows a [`before_fork`](Self::before_fork) of the same thread, or of the thread that the child copied.
    pub unsafe fn after_fork(&self) {
        // SAFETY: promised by the caller.
        unsafe { self.windows.leave() };
    }
}

/// The entry of the window at `start`: its own, else a free one if `make`.
fn entry(windows: &mut [Window], start: usize, bytes: usize, make: bool) -> Option<&mut Window> {
    let sets = windows.len() / WAYS;
    let set = &mut windows[(start / bytes) % sets * WAYS..][..WAYS];
    let place = set
        .iter()
        .position(|window| window.start == start)
        .or_else(|| set.iter().position(|window| make && window.start == 0))?;
    set[place].start = start;
    Some(&mut set[place])
}

/// The parts of a range that lie in one window each.
fn parts(range: Range<usize>, bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let mut at = range.start;
    core::iter::from_fn(move || {
        let start = at;
        at = (start | (bytes - 1)).saturating_add(1).min(range.end);
        (start < range.end).then_some(start..at)
    })
}

impl<S: PageSource, const WINDOWS: usize> Dense<S, WINDOWS> {
    /// Bytes in a window, if windows can be watched here.
    fn window_bytes(&self) -> Option<usize> {
        let bytes = huge_page_size();
        let page = self.source.page_size();
        (page < bytes && bytes / page <= MOST_PAGES).then_some(bytes)
    }

    fn pages(&self, part: &Range<usize>, bytes: usize) -> Range<usize> {
        let (page, first) = (self.source.page_size(), part.start & (bytes - 1));
        first / page..(first + part.len()) / page
    }

    /// Notes that a range is committed, and asks for huge pages where that fills a window.
    fn note_committed(&self, range: Range<usize>) {
        let Some(bytes) = self.window_bytes() else { return };
        let mut windows = self.windows.lock();
        for part in parts(range, bytes) {
            let start = part.start & !(bytes - 1);
            let pages = self.pages(&part, bytes);
            let Some(window) = entry(&mut *windows, start, bytes, true) else { continue };
            each(&mut window.committed, pages.clone(), |word, bit| *word |= bit);
            each(&mut window.held, pages, |word, bit| *word &= !bit);
            if !window.is_huge && count(&window.committed) == bytes / self.source.page_size() {
                // SAFETY: every page of the window is committed, so it lies in live reservations.
                window.is_huge = unsafe { self.source.advise_huge(address(start), bytes, true) }.is_ok();
            }
        }
    }

    /// Notes that a part of one window is not committed any more. Whether its memory is to be held.
    fn note_decommitted(&self, windows: &mut [Window], part: &Range<usize>, bytes: usize) -> bool {
        let start = part.start & !(bytes - 1);
        let pages = self.pages(part, bytes);
        let Some(window) = entry(windows, start, bytes, false) else { return false };
        each(&mut window.committed, pages.clone(), |word, bit| *word &= !bit);
        let left = count(&window.committed);
        let is_held = window.is_huge && left * 2 >= bytes / self.source.page_size();
        if is_held {
            each(&mut window.held, pages, |word, bit| *word |= bit);
        } else {
            let held = window.held;
            each(&mut window.held, pages, |word, bit| *word &= !bit);
            if window.is_huge {
                // SAFETY: held pages lie in live reservations, and a huge window did as a whole.
                unsafe { self.give_up(start, bytes, held) };
                (window.held, window.is_huge) = ([0; WORDS], false);
            }
            if left == 0 {
                *window = UNUSED;
            }
        }
        is_held
    }

    /// Asks for base pages for a window, and gives back what is held.
    ///
    /// # Safety
    /// The window lies in live reservations; its held pages are not committed.
    unsafe fn give_up(&self, start: usize, bytes: usize, held: [u64; WORDS]) {
        let page = self.source.page_size();
        let is_held = |index: usize| held[index / 64] & (1 << (index % 64)) != 0;
        // SAFETY: promised by the caller. What is refused stays present, and is no loss but of memory.
        unsafe {
            let _ = self.source.advise_huge(address(start), bytes, false);
            let mut index = 0;
            while index < bytes / page {
                let run = (index..bytes / page).take_while(|&index| is_held(index)).count();
                if run > 0 {
                    let _ = self.source.decommit(address(start + index * page), run * page, Decommit::Now);
                }
                index += run.max(1);
            }
        }
    }

    /// Forgets a range whose addresses are about to go.
    fn forget(&self, range: Range<usize>) {
        let Some(bytes) = self.window_bytes() else { return };
        let mut windows = self.windows.lock();
        for part in parts(range, bytes) {
            let (start, pages) = (part.start & !(bytes - 1), self.pages(&part, bytes));
            let Some(window) = entry(&mut *windows, start, bytes, false) else { continue };
            each(&mut window.committed, pages.clone(), |word, bit| *word &= !bit);
            each(&mut window.held, pages, |word, bit| *word &= !bit);
            if window.is_huge {
                // A part of the window will be nobody's: it is a huge page no more.
                // SAFETY: the range still lies in its reservation, and the rest of a huge window in live ones.
                unsafe { self.give_up(start, bytes, window.held) };
                (window.held, window.is_huge) = ([0; WORDS], false);
            }
            if count(&window.committed) == 0 && count(&window.held) == 0 {
                *window = UNUSED;
            }
        }
    }
}

fn address(start: usize) -> NonNull<u8> {
    // No range of a page source begins at address 0.
    NonNull::new(with_exposed_provenance_mut(start)).unwrap_or(NonNull::dangling())
}

fn range_of(start: NonNull<u8>, len: usize) -> Range<usize> {
    let first = start.as_ptr().expose_provenance();
    first..first + len
}

// SAFETY: every call is passed on, except decommits whose pages stay as they were.
unsafe impl<S: PageSource, const WINDOWS: usize> Source for Dense<S, WINDOWS> {
    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        let extent = self.source.acquire(len, align)?;
        let start = extent.address() as usize;
        self.note_committed(start..start + len as usize);
        Ok(extent)
    }

    unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
        let start = extent.address() as usize;
        self.forget(start..start + extent.len() as usize);
        // SAFETY: passed on by the caller.
        unsafe { self.source.release(extent) }
    }

    crate::forward::source!(source: geometry, abilities);
}

// SAFETY: every call is passed on, except decommits whose pages stay as they were, about which nothing is claimed.
unsafe impl<S: PageSource, const WINDOWS: usize> PageSource for Dense<S, WINDOWS> {
    fn reserve(&self, len: usize, align: usize) -> Result<Extent, SourceError> {
        self.source.reserve(len, align)
    }

    unsafe fn commit(&self, start: NonNull<u8>, len: usize) -> Result<Contents, SourceError> {
        // SAFETY: passed on by the caller.
        let contents = unsafe { self.source.commit(start, len) }?;
        self.note_committed(range_of(start, len));
        Ok(contents)
    }

    unsafe fn decommit(
        &self,
        start: NonNull<u8>,
        len: usize,
        how: Decommit,
    ) -> Result<Contents, SourceError> {
        debug_assert!(is_paged(start.addr().get(), len, self.source.page_size()));
        let Some(bytes) = self.window_bytes() else {
            // SAFETY: passed on by the caller.
            return unsafe { self.source.decommit(start, len, how) };
        };
        let mut windows = self.windows.lock();
        let range = range_of(start, len);
        let mut is_zero = true;
        // Neighbouring parts that go back go in one call.
        let mut pending = range.start..range.start;
        for part in parts(range.clone(), bytes).chain(core::iter::once(range.end..range.end)) {
            let is_end = part.is_empty();
            let is_held = !is_end && self.note_decommitted(&mut *windows, &part, bytes);
            if !is_held {
                pending.end = part.end;
            }
            if (is_held || is_end) && !pending.is_empty() {
                // SAFETY: a part of the range of the caller.
                match unsafe { self.source.decommit(address(pending.start), pending.len(), how) } {
                    Ok(contents) => is_zero &= contents == Contents::Zero,
                    Err(refused) if pending == range => return Err(refused),
                    // What came before cannot be undone. What is refused stays as it is, and nothing is claimed of it.
                    Err(_) => is_zero = false,
                }
            }
            if is_held {
                pending = part.end..part.end;
                is_zero = false;
            }
        }
        Ok(if is_zero { Contents::Zero } else { Contents::Unspecified })
    }

    unsafe fn remap(
        &self,
        from: NonNull<u8>,
        old_len: usize,
        to: NonNull<u8>,
        new_len: usize,
    ) -> Result<(), SourceError> {
        // SAFETY: passed on by the caller.
        unsafe { self.source.remap(from, old_len, to, new_len) }?;
        self.forget(range_of(from, old_len));
        self.note_committed(range_of(to, new_len));
        Ok(())
    }

    crate::forward::pages!(source: page_size, populate, advise_huge, bind);
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use crate::{Accounting, Call, Mmap};
    use proptest::prelude::*;
    use std::vec::Vec;

    type Watched = Dense<Accounting<Mmap>, 8>;

    /// A source, an extent of `count` windows, and the bytes of a window; nothing where windows cannot be watched.
    fn set_up(count: usize) -> Option<(Watched, Extent, usize)> {
        let source = Watched::new(Accounting::new(Mmap::new()));
        let bytes = source.window_bytes()?;
        let probe = Mmap::new();
        let range = probe.reserve(bytes, bytes).unwrap();
        // SAFETY: inside the reservation, which nothing uses.
        let can_advise = unsafe { probe.advise_huge(at(&range, 0), bytes, true) }.is_ok();
        // SAFETY: as above.
        unsafe { probe.release(range) }.unwrap();
        if !can_advise {
            return None;
        }
        let extent = source.reserve(count * bytes, bytes).unwrap();
        Some((source, extent, bytes))
    }

    fn at(extent: &Extent, offset: usize) -> NonNull<u8> {
        // SAFETY: the tests name offsets inside the extent.
        NonNull::new(unsafe { extent.as_ptr().add(offset) }).unwrap()
    }

    fn advised(source: &Watched) -> u64 {
        source.source().totals().calls_of(Call::AdviseHuge)
    }

    #[test]
    fn huge_pages_are_asked_for_once_when_the_last_page_is_committed() {
        let Some((source, extent, bytes)) = set_up(2) else { return };
        let page = source.page_size();
        // SAFETY: inside the reservation.
        unsafe {
            source.commit(at(&extent, page), bytes - page).unwrap();
            source.commit(at(&extent, page), bytes - page).unwrap();
            assert_eq!((source.huge_windows(), advised(&source)), (0, 0));
            source.commit(at(&extent, 0), 2 * page).unwrap();
            assert_eq!((source.huge_windows(), advised(&source)), (1, 1));
            source.commit(at(&extent, 0), bytes).unwrap();
            assert_eq!(advised(&source), 1);
            source.release(extent).unwrap();
        }
        assert_eq!(source.huge_windows(), 0);
    }

    #[test]
    fn a_few_pages_are_held_and_all_go_back_when_half_are_gone() {
        let Some((source, extent, bytes)) = set_up(1) else { return };
        let page = source.page_size();
        let committed = |source: &Watched| source.source().totals().committed;
        // SAFETY: inside the reservation.
        unsafe {
            source.commit(at(&extent, 0), bytes).unwrap();
            for offset in (0..bytes / 2).step_by(page) {
                let answer = source.decommit(at(&extent, offset), page, Decommit::Now);
                assert_eq!(answer, Ok(Contents::Unspecified));
            }
            assert_eq!(committed(&source), bytes);
            // One of them comes back into use, and is not given back with the others.
            source.commit(at(&extent, 0), page).unwrap();
            at(&extent, 0).write(7);
            source.decommit(at(&extent, bytes / 2), page, Decommit::Now).unwrap();
            assert_eq!(committed(&source), bytes);
            let answer = source.decommit(at(&extent, bytes / 2 + page), page, Decommit::Now);
            assert_eq!(answer, Ok(Contents::Zero));
            assert_eq!(committed(&source), bytes / 2 - page);
            assert_eq!(at(&extent, 0).read(), 7);
            assert_eq!(source.huge_windows(), 0);
            source.release(extent).unwrap();
        }
        source.source().assert_nothing_leaked();
    }

    #[test]
    fn what_is_held_beside_a_released_neighbour_goes_back() {
        let Some((source, extent, bytes)) = set_up(1) else { return };
        // Two extents that share a window.
        // SAFETY: nothing uses it.
        unsafe { source.release(extent) }.unwrap();
        let source = Dense::<_, 8>::new(Mmap::new());
        let whole = source.acquire(bytes as u64, bytes as u64).unwrap();
        let (first, second) = source.split_merge().unwrap().split(whole, bytes as u64 / 2).unwrap();
        // SAFETY: inside the extents.
        unsafe {
            at(&first, 0).write(9);
            assert_eq!(source.decommit(at(&first, 0), bytes / 4, Decommit::Now), Ok(Contents::Unspecified));
            assert_eq!((source.huge_windows(), at(&first, 0).read()), (1, 9));
            source.release(second).unwrap();
            assert_eq!((source.huge_windows(), at(&first, 0).read()), (0, 0));
            source.release(first).unwrap();
        }
    }

    #[test]
    fn a_refused_decommit_is_passed_on() {
        let Some((source, extent, bytes)) = set_up(1) else { return };
        // SAFETY: nothing uses it.
        unsafe { source.release(extent) }.unwrap();
        let source = Dense::<_, 8>::new(crate::Faulty::new(Mmap::new()));
        let extent = source.acquire(4 * bytes as u64, bytes as u64).unwrap();
        source.source().fail_from_of(Call::Decommit, 1);
        // SAFETY: inside the extent.
        unsafe {
            let all = source.decommit(at(&extent, 0), 4 * bytes, Decommit::Now);
            assert_eq!(all, Err(SourceError::OutOfMemory { requested: 4 * bytes as u64 }));
            source.commit(at(&extent, 0), 4 * bytes).unwrap();
            // The first window holds its few pages, the second is refused: nothing is claimed of either.
            let page = source.page_size();
            let mixed = source.decommit(at(&extent, bytes - page), bytes + page, Decommit::Now);
            assert_eq!(mixed, Ok(Contents::Unspecified));
            source.release(extent).unwrap();
        }
    }

    #[test]
    fn windows_beyond_those_that_fit_are_passed_on() {
        let Some((source, extent, bytes)) = set_up(20) else { return };
        // SAFETY: inside the reservation.
        unsafe {
            source.commit(at(&extent, 0), 20 * bytes).unwrap();
            assert_eq!(source.huge_windows(), 8);
            source.decommit(at(&extent, 0), 20 * bytes, Decommit::Now).unwrap();
            assert_eq!((source.huge_windows(), source.source().totals().committed), (0, 0));
            source.release(extent).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is held or not: committed pages keep their contents, and pages answered as zero are zero.
        #[test]
        fn contents_are_kept(
            steps in prop::collection::vec((0u8..3, 0usize..96, 1usize..64), 1..60)
        ) {
            let Some((source, extent, bytes)) = set_up(3) else { return Ok(()) };
            // Ranges in units of a 32nd of a window.
            let unit = bytes / 32;
            let mut model: Vec<Option<u8>> = std::vec![None; 96];
            let mut zero = [true; 96];
            for (step, (what, first, count)) in steps.into_iter().enumerate() {
                let units = first..(first + count).min(96);
                let (start, len) = (at(&extent, first * unit), units.len() * unit);
                // SAFETY: inside the reservation; only committed pages are touched.
                unsafe {
                    if what > 0 {
                        source.commit(start, len).unwrap();
                        for place in units {
                            let mark = at(&extent, place * unit);
                            match model[place] {
                                Some(byte) => prop_assert_eq!(mark.read(), byte),
                                None if zero[place] => prop_assert_eq!(mark.read(), 0),
                                None => {}
                            }
                            mark.write(step as u8 | 1);
                            model[place] = Some(step as u8 | 1);
                        }
                    } else {
                        let contents = source.decommit(start, len, Decommit::Now).unwrap();
                        for place in units {
                            // What was never written stays zero, however it is answered.
                            zero[place] = contents == Contents::Zero;
                            model[place] = None;
                        }
                    }
                }
                let used = model.iter().filter(|unit| unit.is_some()).count() * unit;
                prop_assert!(source.source().totals().committed >= used);
                if used == 0 {
                    prop_assert_eq!(source.source().totals().committed, 0);
                }
            }
            // SAFETY: nothing uses it.
            unsafe { source.release(extent) }.unwrap();
            prop_assert_eq!(source.huge_windows(), 0);
        }
    }
}
