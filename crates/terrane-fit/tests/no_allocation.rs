//! Inside an allocator nothing may allocate: over a buffer no operation of any engine does, and over any metadata `vacate`
//! does not. The global allocator of this test counts what each thread asks of it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::mem::MaybeUninit;
use terrane_fit::{
    Adaptive, BestFit, Buddy, Checked, Deferred, FirstFit, Fixed, Movable, NextFit, PlaceError, Placement,
    Span, Survey, Tlsf,
};

struct Counting;

thread_local! {
    static REQUESTS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    REQUESTS.with(|requests| requests.set(requests.get() + 1));
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(block, layout, len) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `run` gives, and how often it asked the global allocator for something.
fn counted<R>(run: impl FnOnce() -> R) -> (R, u64) {
    let before = REQUESTS.with(Cell::get);
    let result = run();
    (result, REQUESTS.with(Cell::get) - before)
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Everything an engine can do, failures for want of room and of metadata included.
fn exercise<E: Survey + Checked>(engine: &mut E, live: &mut Vec<Span>) {
    let mut state = 0x2545_F491_4F6C_DD1D;
    engine.add(Span::new(0, 1 << 14)).unwrap();
    engine.add(Span::new(1 << 15, 1 << 12)).unwrap();
    let (mut no_room, mut no_metadata) = (0, 0);
    for round in 0..4000u64 {
        let what = random(&mut state);
        // Short ones for a while, which use up the records, then longer ones, which use up the room.
        let (longest, places) = if round < 1500 { (12, 8) } else { (500, 5) };
        if what % 10 < places && live.len() < live.capacity() {
            let len = 1 + (what >> 8) % longest;
            match engine.place(len, 1 << ((what >> 40) % 6)) {
                Ok(span) => live.push(span),
                Err(PlaceError::NoRoom { .. }) => no_room += 1,
                Err(PlaceError::NoMetadata) => no_metadata += 1,
                Err(other) => panic!("{other}"),
            }
        } else if !live.is_empty() {
            let span = live.swap_remove((what >> 8) as usize % live.len());
            engine.vacate(span);
            assert!(engine.try_vacate(span).is_err());
        }
    }
    assert!(no_room > 0 && no_metadata > 0, "{no_room} without room, {no_metadata} without metadata");
    assert!(engine.metrics().spans as usize == live.len());
    live.drain(..).for_each(|span| engine.vacate(span));
    engine.remove(Span::new(1 << 13, 1 << 13)).unwrap();
    assert_eq!(engine.free_bytes(), (1 << 13) + (1 << 12));
}

macro_rules! engines {
    ($($name:ident: $engine:ident),*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn nothing_is_allocated_over_a_buffer() {
                let mut buffer = vec![MaybeUninit::uninit(); 28_000];
                let mut live = Vec::with_capacity(2000);
                let ((), requests) = counted(|| {
                    let mut engine = $engine::<Fixed<'_>>::in_buffer(1, &mut buffer);
                    exercise(&mut engine, &mut live);
                });
                assert_eq!(requests, 0);
            }

            #[test]
            fn nothing_is_allocated_by_deferred_merging_over_a_buffer() {
                let mut buffer = vec![MaybeUninit::uninit(); 28_000];
                let mut live = Vec::with_capacity(2000);
                let ((), requests) = counted(|| {
                    let mut engine = Deferred::<_, 8>::new($engine::<Fixed<'_>>::in_buffer(1, &mut buffer));
                    exercise(&mut engine, &mut live);
                });
                assert_eq!(requests, 0);
            }

            #[test]
            fn vacating_asks_the_allocator_of_the_metadata_for_nothing() {
                let mut engine = $engine::new();
                engine.add(Span::new(0, 1 << 20)).unwrap();
                let (mut live, placing) = counted(|| {
                    (0..5000).map(|n| engine.place(1 + n * 37 % 100, 1 << (n % 4)).unwrap()).collect::<Vec<_>>()
                });
                assert!(placing > 5, "placing does take memory, which is seen: {placing} requests");
                live.sort_by_key(|span| span.offset.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                let ((), requests) = counted(|| live.iter().for_each(|&span| engine.vacate(span)));
                assert_eq!(requests, 0);
                assert_eq!(engine.largest_free(), 1 << 20);
            }
        }
    )*};
}
engines!(
    tlsf: Tlsf,
    best_fit: BestFit,
    first_fit: FirstFit,
    next_fit: NextFit,
    buddy: Buddy,
    adaptive: Adaptive
);

#[test]
fn resizing_over_a_buffer_allocates_nothing() {
    let mut buffer = vec![MaybeUninit::uninit(); 20_000];
    let ((), requests) = counted(|| {
        let mut engine = Tlsf::in_buffer(16, &mut buffer);
        engine.add(Span::new(0, 1 << 12)).unwrap();
        let mut span = engine.place(16, 1).unwrap();
        for len in (1..4000).rev().chain(1..4000) {
            span = engine.resize(span, len).unwrap();
        }
        assert!(engine.resize(span, 5000).is_err());
        engine.vacate(span);
    });
    assert_eq!(requests, 0);
}

#[test]
fn vacating_a_handle_and_placing_as_many_again_asks_for_nothing() {
    let mut spans: Movable = Movable::with_granule(1);
    spans.add(Span::new(0, 1 << 20)).unwrap();
    let mut live: Vec<_> = (0..1000).map(|n| spans.place(1 + n % 50, 1).unwrap()).collect();
    let ((), requests) = counted(|| {
        live.iter().for_each(|&handle| spans.vacate(handle).unwrap());
        live.iter_mut().for_each(|handle| *handle = spans.place(20, 1).unwrap());
        live.iter().for_each(|&handle| spans.vacate(handle).unwrap());
    });
    assert_eq!(requests, 0);
    assert_eq!(spans.largest_free(), 1 << 20);
}

#[test]
fn what_was_reserved_is_enough_for_as_many_spans_however_they_lie() {
    fn places<E: Placement>(mut engine: E, len: u64, align: u64) -> u64 {
        engine.add(Span::new(0, 1 << 16)).unwrap();
        let ((), requests) = counted(|| {
            for _ in 0..512 {
                engine.place(len, align).unwrap();
            }
        });
        requests
    }
    // Each span with a hole beside it.
    let mut tlsf = Tlsf::new();
    tlsf.reserve(512).unwrap();
    assert_eq!((places(Tlsf::new(), 1, 2) > 0, places(tlsf, 1, 2)), (true, 0));
    let mut buddy = Buddy::new();
    buddy.reserve(512, 1, 16).unwrap();
    assert_eq!((places(Buddy::new(), 1, 1) > 0, places(buddy, 1, 1)), (true, 0));
    let mut buddy = Buddy::new();
    buddy.reserve(512, 1, 16).unwrap();
    buddy.add(Span::new(3, 1000)).unwrap();
    assert_eq!(buddy.capacity(), 1000);
}
