//! `Accounting`, `Faulty` and `PageSized` over the real sources.

use core::ops::Range;
use core::ptr::NonNull;
use proptest::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use terrane_core::{Decommit, Extent, PageSource, Source, SourceError};
use terrane_pages::{Accounting, Call, Commit, Faulty, Misuse, Mmap, Numa, PageSized, page_size};

fn at(extent: &Extent, offset: usize) -> NonNull<u8> {
    // SAFETY: the tests name offsets inside the extent, or are about to be stopped for it.
    NonNull::new(unsafe { extent.as_ptr().add(offset) }).unwrap()
}

/// Any sequence of commits, decommits and moves leaves the books as a bitmap of pages says.
fn books_are_exact(source: Accounting<impl PageSource>, steps: Vec<(u8, usize, usize, usize)>) {
    const PAGES: usize = 40;
    let page = source.page_size();
    let extent = source.reserve(PAGES * page, page).unwrap();
    let mut model = [false; PAGES];
    let (mut ever, mut now, mut lazily, mut peak) = (0u64, 0u64, 0u64, 0);
    let count = |model: &[bool]| model.iter().filter(|&&page| page).count();
    for (what, a, n, b) in steps {
        let there = count(&model[a..a + n]);
        // SAFETY: all ranges lie in the reservation.
        unsafe {
            match what {
                0 => {
                    source.commit(at(&extent, a * page), n * page).unwrap();
                    ever += (n - there) as u64;
                    model[a..a + n].fill(true);
                }
                1 => {
                    source.decommit(at(&extent, a * page), n * page, Decommit::Now).unwrap();
                    now += there as u64;
                    model[a..a + n].fill(false);
                }
                2 => {
                    source.decommit(at(&extent, a * page), n * page, Decommit::Lazy).unwrap();
                    lazily += there as u64;
                    model[a..a + n].fill(false);
                }
                _ if there == n && (b + n <= a || a + n <= b) => {
                    let (from, to) = (at(&extent, a * page), at(&extent, b * page));
                    if source.remap(from, n * page, to, n * page).is_ok() {
                        model[a..a + n].fill(false);
                        ever += (n - count(&model[b..b + n])) as u64;
                        model[b..b + n].fill(true);
                    }
                }
                _ => {}
            }
        }
        peak = peak.max(count(&model));
        let totals = source.totals();
        assert_eq!(totals.committed, count(&model) * page);
        assert_eq!(totals.peak_committed, peak * page);
        assert_eq!(totals.ever_committed, ever * page as u64);
        assert_eq!(totals.decommitted_now, now * page as u64);
        assert_eq!(totals.decommitted_lazily, lazily * page as u64);
        assert_eq!((totals.reserved, totals.peak_reserved), (PAGES * page, PAGES * page));
    }
    // SAFETY: nothing uses it.
    unsafe { source.release(extent) }.unwrap();
    assert_eq!((source.totals().reserved, source.totals().committed), (0, 0));
    source.assert_nothing_leaked();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn accounting_is_exact_over_cycles(
        steps in prop::collection::vec((0u8..4, 0usize..28, 1usize..12, 0usize..28), 1..60),
        guarded: bool,
        shift in 12u32..17,
    ) {
        let way = if guarded { Commit::Guarded } else { Commit::Open };
        books_are_exact(Accounting::new(PageSized::new(Mmap::new().with_commit(way), 1 << shift)), steps);
    }
}

/// The panic message of a misuse, without running the source below.
fn stopped(body: impl FnOnce()) -> String {
    let outcome = catch_unwind(AssertUnwindSafe(body)).expect_err("the misuse was not stopped");
    *outcome.downcast::<String>().unwrap()
}

#[test]
fn each_misuse_is_stopped_and_named() {
    let source = Accounting::new(Mmap::new());
    let page = page_size();
    let extent = source.reserve(4 * page, page).unwrap();
    let base = extent.address() as usize;
    let range = |r: Range<usize>| base + r.start * page..base + r.end * page;
    let message = |misuse: Misuse| format!("page source misused: {misuse}");
    let call = Call::Commit;

    // SAFETY: each call is stopped before it reaches the system.
    unsafe {
        assert_eq!(
            stopped(|| assert!(source.commit(at(&extent, 3 * page), 2 * page).is_ok())),
            message(Misuse::Outside { call, range: range(3..5) })
        );
        assert_eq!(
            stopped(|| assert!(source.commit(at(&extent, 0), 0).is_ok())),
            message(Misuse::NotPages { call, range: range(0..0) })
        );
        assert_eq!(
            stopped(|| assert!(source.decommit(at(&extent, 1), page, Decommit::Now).is_ok())),
            message(Misuse::NotPages { call: Call::Decommit, range: base + 1..base + 1 + page })
        );
        source.commit(at(&extent, 0), page).unwrap();
        assert_eq!(
            stopped(|| assert!(source.populate(at(&extent, 0), 2 * page).is_ok())),
            message(Misuse::NotCommitted { call: Call::Populate, range: range(0..2), committed: page })
        );
        assert_eq!(
            stopped(|| assert!(
                source.remap(at(&extent, 2 * page), page, at(&extent, 3 * page), page).is_ok()
            )),
            message(Misuse::NotCommitted { call: Call::Remap, range: range(2..3), committed: 0 })
        );
        assert_eq!(
            stopped(|| assert!(source.remap(at(&extent, 0), page, at(&extent, 0), page).is_ok())),
            message(Misuse::BadMove { from: range(0..1), to: range(0..1) })
        );
        let forged = Extent::from_raw(base as u64, 2 * page as u64, 0);
        assert_eq!(stopped(|| drop(source.release(forged))), message(Misuse::NotOurs { range: range(0..2) }));
        assert_eq!(
            stopped(|| source.assert_nothing_leaked()),
            message(Misuse::Leaked { extents: 1, bytes: 4 * page })
        );
        source.release(extent).unwrap();
    }
    source.assert_nothing_leaked();
}

/// A small user of pages that cleans up after each failure.
fn use_pages(source: &impl PageSource) -> Result<(), SourceError> {
    let page = source.page_size();
    let reserved = source.reserve(8 * page, page)?;
    let outcome = (|| {
        // SAFETY: inside the reservation.
        unsafe {
            source.commit(at(&reserved, 0), 4 * page)?;
            at(&reserved, 0).write(1);
            let _ = source.populate(at(&reserved, 0), 4 * page);
            let _ = source.advise_huge(at(&reserved, 0), 8 * page, false);
            if source.remap(at(&reserved, 0), 2 * page, at(&reserved, 4 * page), 3 * page).is_err() {
                source.commit(at(&reserved, 4 * page), 3 * page)?;
                core::ptr::copy_nonoverlapping(
                    at(&reserved, 0).as_ptr(),
                    at(&reserved, 4 * page).as_ptr(),
                    2 * page,
                );
            }
            assert_eq!(at(&reserved, 4 * page).read(), 1);
            source.decommit(at(&reserved, 4 * page), page, Decommit::Now)?;
            let extra = source.acquire(page as u64, page as u64)?;
            if let Err(refused) = source.release(extra) {
                source.release(refused.extent).expect("only one call fails");
            }
        }
        Ok(())
    })();
    // SAFETY: nothing uses it any more.
    if let Err(refused) = unsafe { source.release(reserved) } {
        // SAFETY: as above.
        unsafe { source.release(refused.extent) }.expect("only one call fails");
    }
    outcome
}

#[test]
fn a_sweep_over_every_call_leaks_nothing() {
    let mut nth = 1;
    loop {
        let source = Accounting::new(Faulty::new(Mmap::new()));
        source.source().fail_nth(nth);
        let outcome = use_pages(&source);
        source.assert_nothing_leaked();
        assert_eq!(source.totals().failures, source.source().failures());
        if source.source().failures() == 0 {
            assert_eq!(outcome, Ok(()));
            break;
        }
        if let Err(refused) = outcome {
            assert!(matches!(refused, SourceError::OutOfMemory { requested } if requested > 0));
        }
        nth += 1;
    }
    assert!(nth > 8, "the sweep made {nth} calls only");
}

#[test]
fn the_nth_call_of_a_kind_fails_once_or_from_then_on() {
    let source = Faulty::new(Mmap::new());
    let page = page_size();
    let outcomes = |source: &Faulty<Mmap>| -> Vec<bool> {
        (0..5)
            .map(|_| match source.acquire(page as u64, page as u64) {
                // SAFETY: nothing uses it.
                Ok(extent) => unsafe { source.release(extent) }.is_ok(),
                Err(_) => false,
            })
            .collect()
    };
    source.fail_nth_of(Call::Acquire, 2);
    assert_eq!(outcomes(&source), [true, false, true, true, true]);
    assert_eq!((source.calls_of(Call::Acquire), source.calls_of(Call::Release)), (5, 4));
    source.reset();
    source.fail_from_of(Call::Acquire, 3);
    assert_eq!(outcomes(&source), [true, true, false, false, false]);
    source.reset();
    source.fail_nth(3);
    assert_eq!(outcomes(&source), [true, false, true, true, true]);
    assert_eq!(source.calls(), 9);
}

#[test]
fn decorators_stack_in_a_const() {
    static STACK: Faulty<PageSized<Numa<Mmap>>> =
        Faulty::new(PageSized::new(Numa::new(Mmap::new(), terrane_pages::NodeChoice::Local), 16 << 10));
    assert_eq!(STACK.page_size(), page_size().max(16 << 10));
    let extent = STACK.reserve(STACK.page_size(), 1).unwrap();
    // SAFETY: nothing uses it.
    unsafe { STACK.release(extent) }.unwrap();
    assert_eq!(STACK.calls(), 2);
}
