//! Where the metadata lies, what deferred merging does, and what happens to wrong spans.

use std::mem::MaybeUninit;
use std::process::Command;
use terrane_fit::{
    BestFit, Buddy, Deferred, FirstFit, PlaceError, Placement, PlacementError, ResizeError, Span, Survey,
    Tlsf,
};

#[test]
fn a_buffer_holds_the_spans_it_was_measured_for_and_no_allocation_is_needed() {
    for spans in [0usize, 1, 5, 100, 1000] {
        let mut buffer = vec![MaybeUninit::uninit(); 1 + BestFit::buffer_for(spans, 1)];
        // At an odd address too.
        let mut engine = BestFit::in_buffer(1, &mut buffer[1..]);
        engine.add(Span::new(0, 1 << 20)).unwrap();
        // Every second one at an alignment that leaves a hole before it: the most holes there can be.
        let live: Vec<Span> = (0..spans).map(|_| engine.place(3, 8).unwrap()).collect();
        live.iter().for_each(|&span| engine.vacate(span));
        assert_eq!(engine.largest_free(), 1 << 20);
    }
}

#[test]
fn a_buffer_that_is_used_up_is_an_error_and_vacating_helps() {
    let mut buffer = [MaybeUninit::uninit(); 2000];
    let mut engine = Tlsf::in_buffer(1, &mut buffer);
    engine.add(Span::new(0, 1 << 20)).unwrap();
    let mut live = Vec::new();
    let error = loop {
        match engine.place(1, 2) {
            Ok(span) => live.push(span),
            Err(error) => break error,
        }
    };
    assert_eq!(error, PlaceError::NoMetadata);
    assert!(live.len() > 20, "{} spans in 2000 bytes", live.len());
    live.drain(..).for_each(|span| engine.vacate(span));
    assert_eq!(engine.metrics().holes, 1);
    assert!(engine.place(1, 1).is_ok());
}

#[test]
fn a_buffer_too_short_for_anything_is_an_error() {
    for len in 0..120 {
        let mut buffer = vec![MaybeUninit::uninit(); len];
        let mut engine = FirstFit::in_buffer(1, &mut buffer);
        if engine.add(Span::new(0, 10)) == Err(PlacementError::NoMetadata) {
            assert_eq!(engine.free_bytes(), 0);
        }
    }
    let mut none: [MaybeUninit<u8>; 0] = [];
    assert_eq!(Tlsf::in_buffer(1, &mut none).add(Span::new(0, 1)), Err(PlacementError::NoMetadata));
}

#[test]
fn a_buddy_system_lives_in_a_buffer() {
    let mut buffer = vec![MaybeUninit::uninit(); Buddy::buffer_for(64, 1, 16)];
    let mut engine = Buddy::in_buffer(1, &mut buffer);
    engine.add(Span::new(0, 1 << 16)).unwrap();
    let live: Vec<Span> = (0..64).map(|n| engine.place(1 + n * 13 % 90, 1).unwrap()).collect();
    live.into_iter().for_each(|span| engine.vacate(span));
    assert_eq!(engine.largest_free(), 1 << 16);
}

#[test]
fn a_block_that_is_being_added_is_not_joined_before_it_is_entered() {
    let mut engine = Buddy::new();
    engine.add(Span::new(4096, 640)).unwrap();
    // The lower block joins what is there to 1024 units, as long as the upper block, its buddy.
    engine.add(Span::new(4736, 1408)).unwrap();
    assert_eq!(engine.metrics().holes, 1);
    assert_eq!(engine.place(2048, 1), Ok(Span::new(4096, 2048)));
    assert_eq!(engine.place(1024, 1), Err(PlaceError::NoRoom { requested: 1024, free: 0, largest: 0 }));
}

#[test]
fn a_span_grows_and_shrinks_where_it_lies() {
    let mut engine = Tlsf::with_granule(16);
    engine.add(Span::new(0, 256)).unwrap();
    let a = engine.place(60, 16).unwrap();
    let b = engine.place(16, 16).unwrap();
    let no_room =
        |requested, free| ResizeError::NoPlace(PlaceError::NoRoom { requested, free, largest: free });
    assert_eq!(engine.resize(a, 65), Err(no_room(65, 176)));
    let b = engine.resize(b, 100).unwrap();
    assert_eq!(b, Span::new(64, 112));
    let a = engine.resize(a, 20).unwrap();
    assert_eq!(a, Span::new(0, 32));
    let metrics = engine.metrics();
    assert_eq!((metrics.slack, metrics.holes, metrics.used()), (12 + 12, 2, 144));
    let b = engine.resize(b, 192).unwrap();
    assert_eq!(engine.resize(b, 193), Err(no_room(193, 32)));
    let a = engine.resize(a, 64).unwrap();
    assert_eq!(engine.free_bytes(), 0);
    let before = Span::new(0, 32);
    assert_eq!(engine.resize(before, 16), Err(ResizeError::NotPlaced { span: before }), "its form before");
    assert_eq!(engine.resize(a, 0), Err(ResizeError::NoPlace(PlaceError::BadLength { requested: 0 })));
    engine.vacate(a);
    engine.vacate(b);
    assert_eq!((engine.largest_free(), engine.metrics().slack), (256, 0));
}

#[test]
fn deferred_spans_are_reused_merged_when_room_is_short_and_counted_as_free() {
    let mut engine = Deferred::<_, 4>::new(BestFit::new());
    engine.add(Span::new(0, 64)).unwrap();
    let live: Vec<Span> = (0..8).map(|_| engine.place(8, 8).unwrap()).collect();
    engine.vacate(live[2]);
    engine.vacate(live[3]);
    assert_eq!((engine.free_bytes(), engine.largest_free()), (16, 0), "they wait");
    assert_eq!(engine.place(8, 16), Ok(live[2]), "the waiting one with that alignment");
    engine.vacate(live[2]);
    assert_eq!(engine.metrics().free, 16);
    assert_eq!(engine.place(16, 1), Ok(Span::new(16, 16)), "merged, since nothing else had room");
    for at in [0, 1, 4, 5, 6, 7] {
        engine.vacate(live[at]);
    }
    engine.vacate(Span::new(16, 16));
    let engine = engine.into_engine();
    assert_eq!(engine.largest_free(), 64);
}

#[test]
fn a_wrong_span_aborts_a_debug_build_and_is_ignored_by_a_release_build() {
    const CHILD: &str = "TERRANE_FIT_VACATES_TWICE";
    if let Ok(which) = std::env::var(CHILD) {
        let twice = |engine: &mut dyn Placement| {
            engine.add(Span::new(0, 64)).unwrap();
            let span = engine.place(8, 1).unwrap();
            engine.vacate(span);
            // Caught if it unwinds, so that only an abort ends the process.
            let again = std::panic::AssertUnwindSafe(|| engine.vacate(span));
            let unwound = std::panic::catch_unwind(again).is_err();
            assert_eq!(engine.place(64, 1), Ok(Span::new(0, 64)), "undamaged");
            std::process::exit(if unwound { 3 } else { 0 });
        };
        match which.as_str() {
            "tlsf" => twice(&mut Tlsf::new()),
            "buddy" => twice(&mut Buddy::new()),
            _ => twice(&mut Deferred::<_, 4>::new(FirstFit::new())),
        }
    }
    let me = std::env::current_exe().unwrap();
    for which in ["tlsf", "buddy", "deferred"] {
        let output = Command::new(&me)
            .args([
                "--nocapture",
                "--exact",
                "a_wrong_span_aborts_a_debug_build_and_is_ignored_by_a_release_build",
            ])
            .env(CHILD, which)
            .output()
            .unwrap();
        if cfg!(debug_assertions) {
            assert_eq!(output.status.code(), None, "{which}: ended by a signal, {:?}", output.status);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(text.contains("span at 0 of length 8 was not placed"), "{text}");
        } else {
            assert_eq!(output.status.code(), Some(0), "{which}");
        }
    }
}
