//! One suite, every engine.

mod suite;

use proptest::prelude::*;
use suite::learnt::{Coarse, Exact, Learnt, Waits};
use suite::{Model, Subject, behaves, check, every_sequence, ops, place};
use terrane_fit::{
    Adaptive, BestFit, Buddy, Deferred, FirstFit, NextFit, PlaceError, PlacementError, Span, Tlsf,
};

fn everything_drained_is_one_span<E: Subject>() {
    let mut engine = E::make(1);
    engine.add(Span::new(0, 1 << 20)).unwrap();
    let mut live: Vec<Span> =
        (0..3000u64).map_while(|n| engine.place(1 + n * 37 % 300, 1 << (n % 5)).ok()).collect();
    assert_eq!(live.len(), 3000);
    // In an order that leaves holes everywhere.
    live.sort_by_key(|span| span.offset.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    live.into_iter().for_each(|span| engine.vacate(span));
    engine.settle();
    let metrics = engine.metrics();
    assert_eq!((metrics.holes, metrics.largest_free, metrics.slack), (1, 1 << 20, 0));
}

fn a_full_space_refuses_and_recovers<E: Subject>() {
    let mut engine = E::make(4);
    engine.add(Span::new(64, 64)).unwrap();
    let live: Vec<Span> = std::iter::from_fn(|| engine.place(3, 1).ok()).collect();
    assert_eq!(live.len(), 16);
    assert_eq!(engine.place(3, 1), Err(PlaceError::NoRoom { requested: 3, free: 0, largest: 0 }));
    engine.vacate(live[7]);
    assert_eq!(engine.place(4, 1), Ok(live[7]));
}

fn malformed_requests_are_named<E: Subject>() {
    let mut engine = E::make(16);
    let bad = [Span::new(0, 0), Span::new(8, 16), Span::new(0, 24), Span::new(u64::MAX - 15, 16)];
    for span in bad {
        assert_eq!(engine.add(span), Err(PlacementError::BadSpan { span }));
        assert_eq!(engine.remove(span), Err(PlacementError::BadSpan { span }));
    }
    assert_eq!(engine.place(1, 1), Err(PlaceError::NoRoom { requested: 1, free: 0, largest: 0 }));
    engine.add(Span::new(0, 1 << 40)).unwrap();
    assert_eq!(engine.place(0, 1), Err(PlaceError::BadLength { requested: 0 }));
    assert_eq!(engine.place(1, 3), Err(PlaceError::BadAlign { requested: 3 }));
    assert_eq!(engine.place(1, 0), Err(PlaceError::BadAlign { requested: 0 }));
    for len in [(1 << 40) + 1, u64::MAX - 16, u64::MAX / 2 + 2] {
        assert!(matches!(engine.place(len, 1), Err(PlaceError::NoRoom { .. })), "{len}");
    }
    // Offset 0 is a multiple of anything; only a buddy system, whose blocks are as long as aligned, has no room there.
    let topmost = engine.place(1, 1 << 63);
    assert_eq!(topmost.is_ok(), !E::BUDDY, "{topmost:?}");
    assert!(engine.try_vacate(Span::new(16, 16)).is_err());
}

fn the_whole_number_space_can_be_managed<E: Subject>() {
    let mut engine = E::make(1);
    let mut model = Model::default();
    let space = Span::new(0, u64::MAX);
    engine.add(space).unwrap();
    model.spaces.push(space);
    let lengths = [1u64 << 62, 1, 1 << 61, 7, 1 << 20];
    let live: Vec<Span> =
        lengths.iter().filter_map(|&len| place(&mut engine, &mut model, 1, len, 1)).collect();
    assert_eq!(live.len(), lengths.len());
    check(&engine, &model);
    live.into_iter().for_each(|span| engine.vacate(span));
    assert_eq!(engine.free_bytes(), u64::MAX);
}

macro_rules! contract {
    ($($name:ident: $engine:ty),*) => {$(
        mod $name {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(200))]
                #[test]
                fn any_sequence_leaves_engine_and_model_alike((granule, ops) in ops()) {
                    behaves::<$engine>(granule, &ops);
                }
            }

            #[test]
            fn every_short_sequence_on_a_small_space_is_as_the_oracle_says() {
                assert!(every_sequence::<$engine>(7, 3, false) > 10_000);
                assert!(every_sequence::<$engine>(4, 4, false) > 30_000);
            }

            #[test]
            fn every_short_sequence_on_a_small_space_that_grows_and_shrinks_is_as_the_oracle_says() {
                assert!(every_sequence::<$engine>(4, 3, true) > 30_000);
            }

            #[test]
            fn everything_drained_is_one_span() {
                super::everything_drained_is_one_span::<$engine>();
            }

            #[test]
            fn a_full_space_refuses_and_recovers() {
                super::a_full_space_refuses_and_recovers::<$engine>();
            }

            #[test]
            fn malformed_requests_are_named() {
                super::malformed_requests_are_named::<$engine>();
            }

            #[test]
            fn the_whole_number_space_can_be_managed() {
                super::the_whole_number_space_can_be_managed::<$engine>();
            }
        }
    )*};
}
contract!(
    tlsf: Tlsf,
    best_fit: BestFit,
    first_fit: FirstFit,
    next_fit: NextFit,
    buddy: Buddy,
    adaptive: Adaptive,
    deferred_tlsf: Deferred<Tlsf, 2>,
    deferred_best_fit: Deferred<BestFit, 2>,
    deferred_buddy: Deferred<Buddy, 2>
);

macro_rules! learnt {
    ($($name:ident: $lesson:ty),*) => {$(
        mod $name {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(200))]
                #[test]
                fn any_sequence_leaves_engine_and_model_alike((granule, ops) in ops()) {
                    behaves::<Learnt<$lesson>>(granule, &ops);
                }
            }

            #[test]
            fn every_short_sequence_on_a_small_space_is_as_the_oracle_says() {
                assert!(every_sequence::<Learnt<$lesson>>(4, 3, false) > 2_000);
            }
        }
    )*};
}
learnt!(adaptive_that_lets_wait: Waits, adaptive_that_rounds_coarsely: Coarse, adaptive_that_is_exact: Exact);
