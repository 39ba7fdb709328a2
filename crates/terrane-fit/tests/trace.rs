//! The trace format, the generators, and what they say about the engines.

use terrane_fit::trace::{Request, Trace, TraceError};
use terrane_fit::{Adaptive, BestFit, Buddy, FirstFit, NextFit, Placement, Span, Tlsf, Workload};

#[test]
fn a_trace_reads_back_as_it_was_written() {
    for workload in Workload::ALL {
        let trace = workload.trace(100, 7);
        assert_eq!(trace.to_string().parse::<Trace>().as_ref(), Ok(&trace), "{}", workload.name());
    }
    let text = "# a comment\n\np 3 100\n  p 0 7 64 # another\nv 3\n";
    let trace: Trace = text.parse().unwrap();
    assert_eq!(trace.requests()[1], Request::Place { id: 0, len: 7, align: 64 });
    assert_eq!((trace.requests().len(), trace.ids(), trace.peak_live()), (3, 4, 107));
}

#[test]
fn a_bad_line_is_named_with_its_number() {
    let cases = [
        ("p 0 1\nq 0", 2, "neither p nor v"),
        ("p", 1, "the id is missing"),
        ("p x 1", 1, "the id is not a number"),
        ("p 0", 1, "the length is missing"),
        ("p 0 -1", 1, "the length is not a number"),
        ("p 0 0", 1, "the length is zero"),
        ("p 0 1 3", 1, "the alignment is not a power of two"),
        ("p 0 1 2 3", 1, "more words than a request has"),
        ("\n\np 99999999 1", 3, "the id is too large"),
        ("p 0 1\np 0 1", 2, "the id is placed already"),
        ("p 0 1\nv 0\nv 0", 3, "the id is not placed"),
        ("p 0 18446744073709551615\np 1 1", 2, "too many units are live"),
    ];
    for (text, line, why) in cases {
        assert_eq!(text.parse::<Trace>(), Err(TraceError { line, why }), "{text:?}");
    }
}

#[test]
fn workloads_are_the_same_every_time_and_end_with_nothing_live() {
    for workload in Workload::ALL {
        let trace = workload.trace(200, 1);
        assert_eq!(trace, workload.trace(200, 1));
        assert_ne!(workload.trace(0, 1).peak_live(), 0, "{} is never empty", workload.name());
        assert_ne!(trace, workload.trace(200, 2), "{} depends on the seed", workload.name());
        let mut engine = Tlsf::new();
        engine.add(Span::new(0, trace.peak_live() * 4)).unwrap();
        let (mut live, mut most) = (0usize, 0);
        for request in trace.requests() {
            live = if matches!(request, Request::Place { .. }) { live + 1 } else { live - 1 };
            most = most.max(live);
        }
        assert!((100..=900).contains(&most), "{}: {most} live at most", workload.name());
        assert_eq!(trace.play(&mut engine).failed, 0);
        assert_eq!(engine.largest_free(), trace.peak_live() * 4, "{}", workload.name());
    }
}

#[test]
fn requests_that_fail_are_counted_and_left_out() {
    let trace: Trace = "p 0 60\np 1 60\nv 1\nv 0\np 0 100\n".parse().unwrap();
    let mut engine = FirstFit::new();
    engine.add(Span::new(0, 100)).unwrap();
    let outcome = trace.play(&mut engine);
    assert_eq!((outcome.placed, outcome.failed, outcome.reach), (2, 1, 100));
    assert_eq!(outcome.first_failure.map(|(at, _)| at), Some(1));
}

#[test]
fn the_least_space_serves_and_a_little_less_does_not() {
    let trace = Workload::Uniform.trace(100, 3);
    let space = trace.least_space(1000, BestFit::new).unwrap();
    assert!(space >= trace.peak_live());
    let failed = |len| {
        let mut engine = BestFit::new();
        engine.add(Span::new(0, len)).unwrap();
        trace.play(&mut engine).failed
    };
    assert_eq!(failed(space), 0);
    assert_ne!(failed(trace.peak_live() - 16), 0);
}

/// The claim of the adaptive engine, in space: on every trace near the best of all others, and on the mixed one before each
/// of them.
#[test]
fn the_adaptive_engine_takes_little_more_space_than_the_best_and_less_on_the_mixed_trace() {
    for (workload, seed) in Workload::ALL.into_iter().flat_map(|workload| [(workload, 1), (workload, 2)]) {
        let trace = workload.trace(2000, seed);
        let least = |space: Option<u64>| space.unwrap_or(u64::MAX) as f64 / trace.peak_live() as f64;
        let adaptive = least(trace.least_space(500, Adaptive::new));
        let singles = [
            least(trace.least_space(500, Tlsf::new)),
            least(trace.least_space(500, BestFit::new)),
            least(trace.least_space(500, FirstFit::new)),
            least(trace.least_space(500, NextFit::new)),
            least(trace.least_space(500, Buddy::new)),
        ];
        let best = singles.iter().copied().fold(f64::INFINITY, f64::min);
        let name = workload.name();
        assert!(adaptive <= best * 1.05, "{name}, seed {seed}: {adaptive:.3} against {singles:.3?}");
        if workload == Workload::Mixed {
            assert!(adaptive < best * 0.95, "{name}, seed {seed}: {adaptive:.3} against {singles:.3?}");
        }
    }
}

#[test]
fn the_shortest_space_is_as_precise_as_asked_for_and_none_if_it_is_too_long() {
    let mut trace = Trace::new();
    trace.push(Request::Place { id: 0, len: 1_000_003, align: 1 }).unwrap();
    let peak = trace.peak_live();
    for precision in [1, 7, 100, 1000, 5_000_000] {
        for needed in [peak, peak + 1, peak * 5 / 4, 2 * peak + 12_345, 8 * peak] {
            let found = trace.shortest_space(precision, |len| len >= needed).unwrap();
            let most = needed + peak / precision;
            assert!((needed..=most).contains(&found), "{found} for {needed} within 1 part in {precision}");
        }
    }
    assert_eq!(trace.shortest_space(100, |_| false), None);
}
