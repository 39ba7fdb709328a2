//! Page sources: sequences of reserve, commit, write, decommit, move, purge, cut and release, on mapped pages (open and
//! guarded) and on the program break, beside a model that knows of every page whether it may be used and what it holds.

use crate::bytes::Bytes;
use std::ptr::NonNull;
use terrane_core::{Contents, Decommit, Extent, PageSource};
use terrane_pages::{Commit, Mmap, Sbrk};

/// What a page holds, as far as the source has promised.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Holds {
    Zero,
    Seed(u8),
    Anything,
}

#[derive(Clone, Copy, Debug)]
struct Page {
    committed: bool,
    holds: Holds,
}

struct Reservation {
    extent: Extent,
    pages: Vec<Page>,
}

struct Model<'a> {
    source: &'a dyn PageSource,
    page_bytes: usize,
    reservations: Vec<Reservation>,
}

impl Reservation {
    fn page(&self, index: usize, page_bytes: usize) -> NonNull<u8> {
        NonNull::new(self.extent.as_ptr().wrapping_add(index * page_bytes)).expect("no extent lies at 0")
    }

    fn check(&self, page_bytes: usize) {
        for (index, page) in self.pages.iter().enumerate().filter(|(_, page)| page.committed) {
            let wanted = match page.holds {
                Holds::Zero => 0,
                Holds::Seed(seed) => seed,
                Holds::Anything => continue,
            };
            let start = self.page(index, page_bytes);
            for at in [0, 1, page_bytes / 2, page_bytes - 1] {
                // SAFETY: the page is committed, and `at` lies in it.
                let found = unsafe { start.add(at).read() };
                assert_eq!(found, wanted, "byte {at} of page {index} of {} at {start:?}", self.pages.len());
            }
        }
    }
}

impl Model<'_> {
    fn add(&mut self, extent: Extent, pages: usize, align: usize, page: Page) {
        let (start, end) = (extent.address(), extent.address() + extent.len());
        assert_eq!(extent.len(), (pages * self.page_bytes) as u64);
        assert_eq!(start % align as u64, 0, "{start:#x} for an alignment of {align}");
        for other in &self.reservations {
            let other_end = other.extent.address() + other.extent.len();
            assert!(
                end <= other.extent.address() || other_end <= start,
                "{start:#x}..{end:#x} is out already"
            );
        }
        self.reservations.push(Reservation { extent, pages: vec![page; pages] });
    }

    /// A reservation, and a range of its pages that is not empty: all of it half of the time, so that what follows on
    /// what before is often about the same pages.
    fn pick(&self, bytes: &mut Bytes) -> Option<(usize, usize, usize)> {
        let which = bytes.below(self.reservations.len());
        let pages = self.reservations.get(which)?.pages.len();
        if bytes.byte() < 128 {
            return Some((which, 0, pages));
        }
        let first = bytes.below(pages);
        Some((which, first, 1 + bytes.below(pages - first)))
    }

    fn step(&mut self, operation: u8, bytes: &mut Bytes) {
        let page_bytes = self.page_bytes;
        if operation % 12 < 2 {
            let pages = if operation > 250 { 1 + bytes.below(5000) } else { 1 + bytes.below(64) };
            let align = page_bytes << (bytes.byte() % 10);
            if operation.is_multiple_of(12) {
                if let Ok(extent) = self.source.reserve(pages * page_bytes, align) {
                    self.add(extent, pages, align, Page { committed: false, holds: Holds::Zero });
                }
            } else if let Ok(extent) = self.source.acquire((pages * page_bytes) as u64, align as u64) {
                let holds = if self.source.geometry().zeroed { Holds::Zero } else { Holds::Anything };
                self.add(extent, pages, align, Page { committed: true, holds });
            }
            return;
        }
        let Some((which, first, count)) = self.pick(bytes) else { return };
        let len = count * page_bytes;
        let start = self.reservations[which].page(first, page_bytes);
        let reservation = &mut self.reservations[which];
        let range = &mut reservation.pages[first..first + count];
        let all_committed = range.iter().all(|page| page.committed);
        match operation % 12 {
            2 | 3 => {
                // SAFETY: the range lies in a live reservation.
                if let Ok(contents) = unsafe { self.source.commit(start, len) } {
                    range.iter_mut().for_each(|page| page.committed = true);
                    if contents == Contents::Zero {
                        assert!(
                            !range.iter().any(|page| matches!(page.holds, Holds::Seed(1..))),
                            "written pages are not zero"
                        );
                        range.iter_mut().for_each(|page| page.holds = Holds::Zero);
                    }
                }
            }
            4 | 5 => {
                let seed = bytes.byte();
                for (index, page) in range.iter_mut().enumerate().filter(|(_, page)| page.committed) {
                    page.holds = Holds::Seed(seed);
                    // SAFETY: the page is committed.
                    unsafe { start.add(index * page_bytes).write_bytes(seed, page_bytes) };
                }
            }
            6 if all_committed => {
                let how = if bytes.byte().is_multiple_of(2) { Decommit::Now } else { Decommit::Lazy };
                // SAFETY: the range is committed, and the model forgets what it held.
                let outcome = unsafe { self.source.decommit(start, len, how) };
                for page in range {
                    page.holds = if outcome == Ok(Contents::Zero) { Holds::Zero } else { Holds::Anything };
                    page.committed = outcome.is_err();
                }
            }
            7 if all_committed => {
                let to = bytes.below(self.reservations.len());
                let spare = self.reservations[to].pages.len();
                let new_count = count + bytes.below(8);
                if to == which || new_count > spare {
                    return;
                }
                let to_first = bytes.below(spare - new_count + 1);
                let target = self.reservations[to].page(to_first, page_bytes);
                // SAFETY: both ranges lie in live reservations, which never overlap; the model forgets the target.
                let moved = unsafe { self.source.remap(start, len, target, new_count * page_bytes) };
                if moved.is_ok() {
                    let from = &mut self.reservations[which].pages[first..first + count];
                    let old: Vec<Page> = from.to_vec();
                    from.fill(Page { committed: false, holds: Holds::Anything });
                    let zero = Page { committed: true, holds: Holds::Zero };
                    let new = old.into_iter().chain(std::iter::repeat(zero));
                    for (page, new) in
                        self.reservations[to].pages[to_first..to_first + new_count].iter_mut().zip(new)
                    {
                        *page = new;
                    }
                }
            }
            8 if all_committed => {
                // SAFETY: the range is committed. Contents and state do not change, whatever the answer.
                let _ = unsafe { self.source.populate(start, len) };
            }
            9 => {
                // SAFETY: the range lies in a live reservation. A hint: contents and state do not change.
                let _ = unsafe { self.source.advise_huge(start, len, operation > 127) };
            }
            10 if all_committed => {
                if let Some(purge) = self.source.purge() {
                    let offset = (first * page_bytes) as u64;
                    // SAFETY: the model forgets what the range held.
                    let outcome = unsafe { purge.purge(&reservation.extent, offset, len as u64) };
                    let holds = if outcome == Ok(Contents::Zero) { Holds::Zero } else { Holds::Anything };
                    range.iter_mut().for_each(|page| page.holds = holds);
                }
            }
            _ if operation > 127 && first > 0 => {
                let Reservation { extent, mut pages } = self.reservations.swap_remove(which);
                let Some(knife) = self.source.split_merge() else {
                    self.reservations.push(Reservation { extent, pages });
                    return;
                };
                let (left, right) =
                    knife.split(extent, (first * page_bytes) as u64).expect("a cut between two pages");
                let rest = pages.split_off(first);
                self.reservations.push(Reservation { extent: left, pages });
                self.reservations.push(Reservation { extent: right, pages: rest });
            }
            _ => {
                let gone = self.reservations.swap_remove(which);
                gone.check(page_bytes);
                // SAFETY: the model forgets the reservation.
                unsafe { self.source.release(gone.extent) }.expect("a live reservation is taken back");
            }
        }
    }
}

fn play(source: &dyn PageSource, bytes: &mut Bytes) {
    let mut model = Model { source, page_bytes: source.page_size(), reservations: Vec::new() };
    while !bytes.is_empty() {
        model.step(bytes.byte(), bytes);
        let pages: usize = model.reservations.iter().map(|reservation| reservation.pages.len()).sum();
        if pages < 512 {
            model.reservations.iter().for_each(|reservation| reservation.check(model.page_bytes));
        }
    }
    for reservation in model.reservations {
        reservation.check(model.page_bytes);
        // SAFETY: nothing uses the reservation any more.
        unsafe { source.release(reservation.extent) }.expect("a live reservation is taken back");
    }
}

static BREAK: Sbrk = Sbrk::new();

/// Carries out what the bytes say.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    match bytes.byte() % 3 {
        way @ (0 | 1) => {
            let commit = if way == 0 { Commit::Open } else { Commit::Guarded };
            let source = Mmap::new().with_commit(commit);
            play(&source, &mut bytes);
            assert_eq!(source.reserved_bytes(), 0);
        }
        _ => {
            play(&BREAK, &mut bytes);
            assert_eq!(BREAK.lent_bytes(), 0);
        }
    }
}
