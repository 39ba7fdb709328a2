//! The contract of `Mmap`, with open and with guarded reservations.

use core::ptr::NonNull;
use proptest::prelude::*;
use terrane_core::{Contents, Decommit, Extent, PageSource, Source, SourceError};
use terrane_pages::{Commit, HugePages, Mmap, page_size};

const WAYS: [Commit; 2] = [Commit::Open, Commit::Guarded];

fn start(extent: &Extent) -> NonNull<u8> {
    NonNull::new(extent.as_ptr()).unwrap()
}

/// Reserves, runs the body, releases.
fn with_range(source: &Mmap, len: usize, body: impl FnOnce(NonNull<u8>)) {
    let extent = source.reserve(len, page_size()).unwrap();
    body(start(&extent));
    // SAFETY: the body is over.
    unsafe { source.release(extent) }.unwrap();
}

fn fill(at: NonNull<u8>, len: usize, seed: usize) {
    for i in (0..len).step_by(64) {
        // SAFETY: the caller names a committed range.
        unsafe { at.add(i).cast::<usize>().write(seed ^ (i.wrapping_mul(0x9E37_79B9))) };
    }
}

fn holds(at: NonNull<u8>, len: usize, seed: usize) -> bool {
    // SAFETY: the caller names a committed range.
    (0..len)
        .step_by(64)
        .all(|i| unsafe { at.add(i).cast::<usize>().read() } == seed ^ i.wrapping_mul(0x9E37_79B9))
}

fn is_zero(at: NonNull<u8>, len: usize) -> bool {
    // SAFETY: the caller names a committed range.
    unsafe { core::slice::from_raw_parts(at.as_ptr(), len) }.iter().all(|&byte| byte == 0)
}

#[test]
fn aligned_reservations_are_aligned_and_trimmed() {
    for way in WAYS {
        let source = Mmap::new().with_commit(way);
        let page = page_size();
        let mut extents = Vec::new();
        for shift in 0..18 {
            for pages in [1, 3, 64] {
                let extent = source.reserve(pages * page, page << shift).unwrap();
                assert_eq!(extent.address() as usize % (page << shift), 0);
                // SAFETY: just reserved.
                unsafe { source.commit(start(&extent), pages * page) }.unwrap();
                fill(start(&extent), pages * page, shift);
                extents.push((extent, shift));
            }
        }
        let total: u64 = extents.iter().map(|(extent, _)| extent.len()).sum();
        assert_eq!(source.reserved_bytes() as u64, total);
        for (extent, seed) in extents {
            assert!(holds(start(&extent), extent.len() as usize, seed));
            // SAFETY: read for the last time above.
            unsafe { source.release(extent) }.unwrap();
        }
        assert_eq!(source.reserved_bytes(), 0);
    }
}

#[test]
fn a_decommit_now_zeroes_exactly_the_range() {
    for way in WAYS {
        let source = Mmap::new().with_commit(way);
        let page = page_size();
        with_range(&source, 8 * page, |at| {
            // SAFETY: inside the reservation.
            unsafe {
                source.commit(at, 8 * page).unwrap();
                fill(at, 8 * page, 5);
                assert_eq!(source.decommit(at.add(2 * page), 3 * page, Decommit::Now), Ok(Contents::Zero));
                source.commit(at.add(2 * page), 3 * page).unwrap();
                assert!(is_zero(at.add(2 * page), 3 * page));
                for i in (0..2 * page).chain(5 * page..8 * page).step_by(64) {
                    assert_eq!(at.add(i).cast::<usize>().read(), 5 ^ i.wrapping_mul(0x9E37_79B9));
                }
            }
        });
    }
}

#[test]
fn a_lazy_decommit_keeps_the_range_usable() {
    for way in WAYS {
        let source = Mmap::new().with_commit(way);
        let len = 16 * page_size();
        with_range(&source, len, |at| {
            // SAFETY: inside the reservation.
            unsafe {
                source.commit(at, len).unwrap();
                fill(at, len, 6);
                source.decommit(at, len, Decommit::Lazy).unwrap();
                source.commit(at, len).unwrap();
                fill(at, len, 7);
                assert!(holds(at, len, 7));
            }
        });
    }
}

#[test]
fn a_remap_moves_content_zeroes_the_rest_and_empties_the_origin() {
    for way in WAYS {
        let source = Mmap::new().with_commit(way);
        let page = page_size();
        for (old, new) in [(1, 1), (4, 16), (512, 512), (700, 2000)] {
            let (old, new) = (old * page, new * page);
            with_range(&source, old + 2 * page, |from| {
                with_range(&source, new + 2 * page, |to| {
                    // SAFETY: inside the two reservations.
                    unsafe {
                        source.commit(from, old + 2 * page).unwrap();
                        fill(from, old + 2 * page, 9);
                        source.commit(to, page).unwrap();
                        to.write(1);
                        let (origin, place) = (from.add(page), to.add(page));
                        source.remap(origin, old, place, new).unwrap();
                        for i in (0..old).step_by(64) {
                            let expected = 9 ^ (i + page).wrapping_mul(0x9E37_79B9);
                            assert_eq!(place.add(i).cast::<usize>().read(), expected);
                        }
                        assert!(is_zero(place.add(old), new - old));
                        assert_eq!(to.read(), 1);
                        source.commit(origin, old).unwrap();
                        assert!(is_zero(origin, old));
                        assert!(holds(from, page, 9));
                    }
                });
            });
        }
    }
}

#[test]
fn pages_that_were_never_committed_arrive_committed() {
    for way in WAYS {
        let source = Mmap::new().with_commit(way);
        let page = page_size();
        with_range(&source, 8 * page, |at| {
            // SAFETY: inside the reservation.
            unsafe {
                source.commit(at, page).unwrap();
                at.write(6);
                source.remap(at, 2 * page, at.add(4 * page), 2 * page).unwrap();
                at.add(5 * page).write(7);
                assert_eq!([at.add(4 * page).read(), at.add(5 * page).read()], [6, 7]);
            }
        });
    }
}

/// After a move, a range may be made of several kernel mappings; it still moves.
#[test]
fn a_range_of_several_mappings_moves_as_well() {
    for way in WAYS {
        let source = Mmap::new().with_commit(way);
        let page = page_size();
        let len = 64 * page;
        with_range(&source, 4 * len, |at| {
            // SAFETY: inside the reservation.
            unsafe {
                source.commit(at, 2 * len).unwrap();
                fill(at, len, 3);
                fill(at.add(len), len, 3);
                for hole in [3, 17, 40] {
                    // Advice on single pages cuts the mapping.
                    source.advise_huge(at.add(hole * page), page, false).unwrap();
                }
                source.remap(at, len, at.add(2 * len), len).unwrap();
                assert!(holds(at.add(2 * len), len, 3));
                source.remap(at.add(len), len, at, len).unwrap();
                assert!(holds(at, len, 3));
            }
        });
    }
}

#[test]
fn populated_pages_keep_their_contents() {
    let source = Mmap::new();
    let len = 40 << 20;
    with_range(&source, len, |at| {
        // SAFETY: inside the reservation.
        unsafe {
            source.commit(at, len).unwrap();
            fill(at, 1 << 20, 4);
            match source.populate(at, len) {
                Ok(()) | Err(SourceError::Unsupported) => {}
                Err(refused) => panic!("{refused}"),
            }
            assert!(holds(at, 1 << 20, 4));
            assert!(is_zero(at.add(len - 4096), 4096));
        }
    });
}

#[test]
fn a_limit_is_exact() {
    let page = page_size();
    let source = Mmap::new().with_limit(10 * page);
    let six = source.reserve(6 * page, page).unwrap();
    assert_eq!(
        source.reserve(5 * page, page).unwrap_err(),
        SourceError::Limit { requested: 5 * page as u64, available: 4 * page as u64 }
    );
    let four = source.reserve(4 * page, page).unwrap();
    // SAFETY: nothing uses it.
    unsafe { source.release(six) }.unwrap();
    let five = source.reserve(5 * page, page).unwrap();
    for extent in [four, five] {
        // SAFETY: nothing uses it.
        unsafe { source.release(extent) }.unwrap();
    }
    assert_eq!(source.reserved_bytes(), 0);
}

#[test]
fn malformed_requests_say_what_is_wrong() {
    let source = Mmap::new();
    let page = page_size();
    let granule = page as u64;
    assert_eq!(source.reserve(0, page).unwrap_err(), SourceError::BadLength { requested: 0, granule });
    assert_eq!(
        source.reserve(page + 1, page).unwrap_err(),
        SourceError::BadLength { requested: granule + 1, granule }
    );
    let max = source.geometry().max_align;
    assert_eq!(source.reserve(page, 3).unwrap_err(), SourceError::BadAlign { requested: 3, max });
    let all = isize::MAX as usize & !(page - 1);
    assert_eq!(source.reserve(all, page).unwrap_err(), SourceError::OutOfMemory { requested: all as u64 });
    assert_eq!(source.reserved_bytes(), 0);
}

#[test]
fn no_call_changes_errno() {
    let source = Mmap::new();
    let all = isize::MAX as usize & !(page_size() - 1);
    // SAFETY: errno is a valid place.
    unsafe {
        *libc::__errno_location() = 4711;
        assert!(source.reserve(all, page_size()).is_err());
        assert_eq!(*libc::__errno_location(), 4711);
    }
}

#[test]
fn halves_of_an_extent_are_released_apart_or_joined() {
    let source = Mmap::new();
    let page = page_size() as u64;
    let extent = source.acquire(4 * page, page).unwrap();
    let ability = source.split_merge().unwrap();
    let (first, second) = ability.split(extent, page).unwrap();
    assert_eq!((first.len(), second.len()), (page, 3 * page));
    let whole = ability.merge(first, second).unwrap();
    let (first, second) = ability.split(whole, 2 * page).unwrap();
    // SAFETY: nothing uses them.
    unsafe {
        source.release(first).unwrap();
        start(&second).write(1);
        source.release(second).unwrap();
    }
    assert_eq!(source.reserved_bytes(), 0);
}

#[test]
fn explicit_huge_pages_fall_back_to_aligned_base_pages() {
    let source = Mmap::new().with_huge_pages(HugePages::Explicit);
    let huge = source.page_size();
    assert_eq!(huge, terrane_pages::huge_page_size());
    let extent = source.acquire(2 * huge as u64, huge as u64).unwrap();
    assert_eq!(extent.address() as usize % huge, 0);
    fill(start(&extent), 2 * huge, 8);
    // SAFETY: inside the extent.
    unsafe {
        assert_eq!(source.decommit(start(&extent).add(huge), huge, Decommit::Now), Ok(Contents::Zero));
        source.commit(start(&extent).add(huge), huge).unwrap();
        assert!(is_zero(start(&extent).add(huge), huge));
        assert!(holds(start(&extent), huge, 8));
        source.release(extent).unwrap();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Commit(usize, usize),
    Write(usize, usize),
    Now(usize, usize),
    Lazy(usize, usize),
    Move(usize, usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = (0usize..32, 1usize..12);
    prop::collection::vec(
        prop_oneof![
            range.clone().prop_map(|(a, n)| Step::Commit(a, n)),
            range.clone().prop_map(|(a, n)| Step::Write(a, n)),
            range.clone().prop_map(|(a, n)| Step::Now(a, n)),
            range.clone().prop_map(|(a, n)| Step::Lazy(a, n)),
            (range, 0usize..32).prop_map(|((a, n), b)| Step::Move(a, n, b)),
        ],
        1..60,
    )
}

/// What a page holds, as far as the contract says.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Page {
    Reserved { zero: bool },
    Committed { byte: Option<u8> },
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any sequence of commits, writes, decommits and moves keeps what the contract says is kept.
    #[test]
    fn cycles_keep_content(steps in steps(), guarded: bool) {
        const PAGES: usize = 48;
        let source = Mmap::new().with_commit(WAYS[usize::from(guarded)]);
        let page = page_size();
        let extent = source.reserve(PAGES * page, page).unwrap();
        let at = start(&extent);
        let mut model = [Page::Reserved { zero: true }; PAGES];
        let mut next_byte = 1u8;
        for step in steps {
            // SAFETY: all ranges lie in the reservation; only pages that the model knows as committed are touched.
            unsafe {
                match step {
                    Step::Commit(a, n) => {
                        source.commit(at.add(a * page), n * page).unwrap();
                        for state in &mut model[a..a + n] {
                            if let Page::Reserved { zero } = *state {
                                *state = Page::Committed { byte: zero.then_some(0) };
                            }
                        }
                    }
                    Step::Write(a, n) => for (i, state) in model.iter_mut().enumerate().skip(a).take(n) {
                        if let Page::Committed { byte } = state {
                            at.add(i * page).write_bytes(next_byte, page);
                            *byte = Some(next_byte);
                            next_byte = next_byte.wrapping_add(1);
                        }
                    },
                    Step::Now(a, n) => {
                        let zero = source.decommit(at.add(a * page), n * page, Decommit::Now).unwrap();
                        prop_assert_eq!(zero, Contents::Zero);
                        model[a..a + n].fill(Page::Reserved { zero: true });
                    }
                    Step::Lazy(a, n) => {
                        let all = model[a..a + n].iter().all(|state| matches!(state, Page::Committed { .. }));
                        if all {
                            let left = source.decommit(at.add(a * page), n * page, Decommit::Lazy).unwrap();
                            model[a..a + n].fill(Page::Reserved { zero: left == Contents::Zero });
                        }
                    }
                    Step::Move(a, n, b) => {
                        let all = model[a..a + n].iter().all(|state| matches!(state, Page::Committed { .. }));
                        let new = n + 2;
                        if all && (b + new <= a || a + n <= b) {
                            source.remap(at.add(a * page), n * page, at.add(b * page), new * page).unwrap();
                            model.copy_within(a..a + n, b);
                            model[b + n..b + new].fill(Page::Committed { byte: Some(0) });
                            model[a..a + n].fill(Page::Reserved { zero: true });
                        }
                    }
                }
            }
            for (i, state) in model.iter().enumerate() {
                if let Page::Committed { byte: Some(byte) } = *state {
                    // SAFETY: committed.
                    let held = unsafe { [at.add(i * page).read(), at.add((i + 1) * page - 1).read()] };
                    prop_assert_eq!(held, [byte; 2], "page {}", i);
                }
            }
        }
        // SAFETY: nothing uses it.
        unsafe { source.release(extent) }.unwrap();
    }
}
