//! What the adaptive engine decides, and that deciding does no harm.

use terrane_fit::{Adaptive, Checked, PlacementError, Rounding, Span, Standing, Survey, Use};
use terrane_fit::{PlaceError, Placement};

/// A stream of numbers (Marsaglia: "Xorshift RNGs", 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn over(space: u64) -> Adaptive {
    let mut engine = Adaptive::new();
    engine.add(Span::new(0, space)).unwrap();
    engine
}

/// Replaces spans at random, `count` times; lengths are `base` and up to `spread` more.
fn churn(
    engine: &mut Adaptive,
    live: &mut [Span],
    random: &mut Random,
    count: usize,
    (base, spread): (u64, u64),
) {
    for _ in 0..count {
        let at = random.below(live.len() as u64) as usize;
        engine.vacate(live[at]);
        live[at] = engine.place(base + random.below(spread), 1).unwrap();
    }
}

fn fill(engine: &mut Adaptive, random: &mut Random, count: usize, (base, spread): (u64, u64)) -> Vec<Span> {
    (0..count).map(|_| engine.place(base + random.below(spread), 1).unwrap()).collect()
}

const LENGTHS: (u64, u64) = (1000, 3000);
/// What the spans of `LENGTHS` take, 500 of them.
const USED: u64 = 500 * 2500;

#[test]
fn with_room_vacated_spans_wait_and_without_it_lengths_are_exact() {
    let mut random = Random(7);
    let mut wide = over(2 * USED);
    let mut live = fill(&mut wide, &mut random, 500, LENGTHS);
    churn(&mut wide, &mut live, &mut random, 3000, LENGTHS);
    let Standing { rounding, waits, waiting, .. } = wide.standing();
    assert_eq!((rounding, waits), (Rounding::Eighths, true));
    assert!((1..=512).contains(&waiting), "{waiting}");

    let mut narrow = over(USED * 23 / 20);
    let mut live = fill(&mut narrow, &mut random, 500, LENGTHS);
    churn(&mut narrow, &mut live, &mut random, 3000, LENGTHS);
    let Standing { rounding, waits, waiting, .. } = narrow.standing();
    assert_eq!((rounding, waits, waiting), (Rounding::Exact, false, 0));
}

#[test]
fn a_stack_is_served_exactly_however_much_room_there_is() {
    let mut random = Random(3);
    let mut engine = over(64 * USED);
    for _ in 0..10 {
        let mut live = Vec::new();
        for _ in 0..300 {
            live.push(engine.place(1000 + random.below(3000), 1).unwrap());
            let scratch = engine.place(500 + random.below(500), 1).unwrap();
            engine.vacate(scratch);
        }
        live.into_iter().rev().for_each(|span| engine.vacate(span));
    }
    let Standing { rounding, waits, switches, .. } = engine.standing();
    assert_eq!((rounding, waits, switches), (Rounding::Exact, false, 1));
}

#[test]
fn lengths_that_grow_a_little_at_a_time_are_rounded_coarsely_and_no_longer_than_they_grow() {
    let mut engine = over(1 << 20);
    let mut teeth: Vec<Span> = Vec::new();
    let mut keepers = Vec::new();
    let mut coarse = false;
    for round in 0..6 {
        for _ in 0..300 {
            keepers.push(engine.place(32, 1).unwrap());
            teeth.push(engine.place(256 + round * 32, 1).unwrap());
        }
        for at in (1..teeth.len()).step_by(2) {
            engine.vacate(teeth[at]);
            teeth[at] = engine.place(256 + round * 32 + 16, 1).unwrap();
            coarse |= engine.standing().rounding == Rounding::Quarters;
        }
        let mut at = 0;
        teeth.retain(|&span| {
            at += 1;
            at % 2 == 0 || {
                engine.vacate(span);
                false
            }
        });
    }
    assert!(coarse);
    teeth.into_iter().chain(keepers).for_each(|span| engine.vacate(span));
    let mut random = Random(5);
    let mut live = fill(&mut engine, &mut random, 300, LENGTHS);
    churn(&mut engine, &mut live, &mut random, 20_000, LENGTHS);
    assert_ne!(engine.standing().rounding, Rounding::Quarters);
}

#[test]
fn each_phase_of_a_stream_is_answered_by_few_switches() {
    let mut random = Random(11);
    let mut engine = over(2 * USED);
    let mut live = fill(&mut engine, &mut random, 450, LENGTHS);
    let mut before = 0;
    for phase in 0..5 {
        churn(&mut engine, &mut live, &mut random, 12_000, LENGTHS);
        let roomy = engine.standing();
        assert_eq!((roomy.rounding, roomy.waits), (Rounding::Eighths, true), "phase {phase}");
        let more = fill(&mut engine, &mut random, 400, LENGTHS);
        churn(&mut engine, &mut live, &mut random, 12_000, LENGTHS);
        let full = engine.standing();
        assert_eq!((full.rounding, full.waits, full.waiting), (Rounding::Exact, false, 0), "phase {phase}");
        more.into_iter().for_each(|span| engine.vacate(span));
        assert!((1..=6).contains(&(full.switches - before)), "phase {phase}: {full:?} after {before}");
        before = full.switches;
    }
}

#[test]
fn room_on_the_border_does_not_make_it_swing() {
    for spare in [16, 18, 20, 22, 24, 26, 28, 30, 33, 36] {
        let mut random = Random(spare);
        let mut engine = over(USED * 100 / (100 - spare));
        let mut live = fill(&mut engine, &mut random, 500, LENGTHS);
        churn(&mut engine, &mut live, &mut random, 60_000, LENGTHS);
        let switches = engine.standing().switches;
        // 60 000 replacements are 900 windows.
        assert!(switches <= 45, "{spare} of 100 free: {switches} switches");
    }
}

#[test]
fn spans_that_wait_look_merged_from_outside() {
    let mut random = Random(13);
    let mut engine = over(2 * USED);
    let mut live = fill(&mut engine, &mut random, 500, LENGTHS);
    churn(&mut engine, &mut live, &mut random, 3000, LENGTHS);
    let twice = live.swap_remove(0);
    engine.vacate(twice);
    assert!(engine.standing().waiting > 0);
    assert_eq!(engine.try_vacate(twice), Err(PlacementError::NotPlaced { span: twice }));
    assert_eq!(engine.live(), live.len());
    let (mut at, mut hole_before, mut free, mut largest, mut spans) = (0, false, 0, 0, 0);
    engine.survey(&mut |plot| {
        let hole = plot.used == Use::Hole;
        if plot.used != Use::Space {
            assert_eq!(plot.span.offset, at, "spans and holes tile the space");
            assert!(!(hole && hole_before), "neighbouring holes are shown as one");
            (at, hole_before) = (at + plot.span.len, hole);
            if hole {
                free += plot.span.len;
                largest = largest.max(plot.span.len);
            } else {
                spans += 1;
            }
        }
    });
    assert_eq!((at, spans), (2 * USED, live.len()));
    assert_eq!((engine.free_bytes(), engine.largest_free()), (free, largest));
    live.into_iter().for_each(|span| engine.vacate(span));
    assert!(engine.standing().waiting > 0);
    assert_eq!((engine.free_bytes(), engine.largest_free()), (2 * USED, 2 * USED));
    // A request that only what waits, merged, has room for.
    let all = engine.place(2 * USED, 1).unwrap();
    assert_eq!((all, engine.standing().waiting), (Span::new(0, 2 * USED), 0));
    assert_eq!(engine.place(1, 1), Err(PlaceError::NoRoom { requested: 1, free: 0, largest: 0 }));
}

#[test]
fn a_space_in_which_spans_wait_can_be_removed_and_a_span_grow_over_them() {
    let mut random = Random(17);
    let mut engine = over(2 * USED);
    let mut live = fill(&mut engine, &mut random, 500, LENGTHS);
    churn(&mut engine, &mut live, &mut random, 3000, LENGTHS);
    live.sort();
    let (low, high) = (0..live.len() - 1)
        .map(|at| (live[at], live[at + 1]))
        .find(|(low, high)| low.end() == Some(high.offset))
        .unwrap();
    engine.vacate(high);
    assert_eq!(engine.resize(low, low.len + high.len), Ok(Span::new(low.offset, low.len + high.len)));
    live.retain(|&span| span != low && span != high);
    live.push(Span::new(low.offset, low.len + high.len));
    churn(&mut engine, &mut live, &mut random, 3000, LENGTHS);
    live.into_iter().for_each(|span| engine.vacate(span));
    assert!(engine.standing().waiting > 0);
    engine.remove(Span::new(0, 2 * USED)).unwrap();
    assert_eq!((engine.free_bytes(), engine.capacity()), (0, 0));
}
