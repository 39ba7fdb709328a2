//! Compaction: contents, handles, pins, budgets, failures.

use proptest::prelude::*;
use terrane_fit::{Budget, CompactError, CompactingHeap, Handle, Movable, Span, StaleHandle};

fn striped(len: u64, count: u64) -> (Movable, Vec<Handle>) {
    let mut spans: Movable = Movable::with_granule(1);
    spans.add(Span::new(1000, len * count)).unwrap();
    let all: Vec<Handle> = (0..count).map(|_| spans.place(len, 1).unwrap()).collect();
    let (gone, kept): (Vec<_>, Vec<_>) = all.into_iter().enumerate().partition(|(at, _)| at % 2 == 0);
    gone.into_iter().for_each(|(_, handle)| spans.vacate(handle).unwrap());
    (spans, kept.into_iter().map(|(_, handle)| handle).collect())
}

fn fine(_: terrane_fit::Move) -> Result<(), ()> {
    Ok(())
}

#[test]
fn compaction_gathers_all_holes_at_the_upper_end() {
    let (mut spans, kept) = striped(10, 20);
    assert!(spans.metrics().fragmentation() > 0.89);
    let done = spans.compact(Budget::unlimited(), fine).unwrap();
    assert_eq!((done.moves, done.units, done.finished), (10, 100, true));
    assert_eq!(spans.metrics().fragmentation(), 0.0);
    let places: Vec<u64> = kept.iter().map(|&handle| spans.span(handle).unwrap().offset).collect();
    assert_eq!(places, (0..10).map(|at| 1000 + at * 10).collect::<Vec<_>>());
    assert_eq!(spans.compact(Budget::unlimited(), fine).unwrap().moves, 0, "nothing is left to do");
}

#[test]
fn one_pass_gathers_all_holes_whatever_the_order_in_which_spans_were_placed() {
    let mut spans: Movable = Movable::with_granule(1);
    spans.add(Span::new(0, 100)).unwrap();
    let low: Vec<Handle> = (0..10).map(|_| spans.place(10, 1).unwrap()).collect();
    low.iter().rev().for_each(|&handle| spans.vacate(handle).unwrap());
    // The handle given last lies lowest, and every second span goes.
    let mut high: Vec<Handle> = Vec::new();
    for at in (0..10).rev() {
        let below = (at != 0).then(|| spans.place(10 * at, 1).unwrap());
        high.push(spans.place(10, 1).unwrap());
        below.into_iter().for_each(|handle| spans.vacate(handle).unwrap());
    }
    assert!(high.iter().map(|&handle| spans.span(handle).unwrap().offset).is_sorted_by(|a, b| a > b));
    high.iter().step_by(2).for_each(|&handle| spans.vacate(handle).unwrap());
    let done = spans.compact(Budget::unlimited(), fine).unwrap();
    assert!(done.finished);
    assert_eq!(spans.largest_free(), 50);
}

#[test]
fn a_pinned_span_stays_and_those_above_it_close_up_to_it() {
    let (mut spans, kept) = striped(10, 20);
    let pinned = spans.pin(kept[4]).unwrap();
    spans.compact(Budget::unlimited(), fine).unwrap();
    assert_eq!(spans.span(kept[4]), Some(pinned));
    assert_eq!(spans.span(kept[5]), Some(Span::new(pinned.offset + 10, 10)));
    spans.unpin(kept[4]).unwrap();
    spans.compact(Budget::unlimited(), fine).unwrap();
    assert_eq!(spans.metrics().fragmentation(), 0.0);
}

#[test]
fn a_budget_stops_it_between_two_spans_and_it_goes_on_later() {
    let (mut spans, _) = striped(10, 20);
    let done = spans.compact(Budget::units(35), fine).unwrap();
    assert_eq!((done.moves, done.units, done.finished), (3, 30, false));
    let done = spans.compact(Budget { moves: 2, ..Budget::unlimited() }, fine).unwrap();
    assert_eq!((done.moves, done.finished), (2, false));
    let done = spans.compact(Budget::time(std::time::Duration::ZERO), fine).unwrap();
    assert_eq!((done.moves, done.finished), (0, false));
    let done = spans.compact(Budget::unlimited(), fine).unwrap();
    assert_eq!((done.moves, done.finished), (5, true));
}

#[test]
fn without_overlapping_no_copy_overlaps_and_holes_still_join() {
    // Spans of 10 over holes of 10: the first moves go exactly beside; holes then are longer than the spans.
    let (mut spans, _) = striped(10, 20);
    let budget = Budget { overlapping: false, ..Budget::unlimited() };
    let mut overlapping = 0;
    let done = spans.compact(budget, |step| {
        overlapping += u32::from(step.overlaps());
        Ok::<(), ()>(())
    });
    assert_eq!((overlapping, done.unwrap().moves), (0, 10));
    let mut spans: Movable = Movable::with_granule(1);
    spans.add(Span::new(0, 100)).unwrap();
    let (low, high) = (spans.place(10, 1).unwrap(), spans.place(50, 1).unwrap());
    spans.vacate(low).unwrap();
    assert_eq!(spans.compact(budget, fine).unwrap().moves, 0);
    assert_eq!(spans.span(high), Some(Span::new(10, 50)));
}

#[test]
fn a_mover_that_fails_leaves_its_span_where_it_was() {
    let (mut spans, kept) = striped(10, 20);
    let mut calls = 0;
    let error = spans.compact(Budget::unlimited(), |_| {
        calls += 1;
        if calls == 3 { Err("the device is gone") } else { Ok(()) }
    });
    let CompactError { done, cause } = error.unwrap_err();
    assert_eq!((done.moves, cause), (2, "the device is gone"));
    assert_eq!(spans.span(kept[1]), Some(Span::new(1010, 10)));
    assert_eq!(spans.span(kept[2]), Some(Span::new(1050, 10)));
}

#[test]
fn a_handle_is_stale_once_vacated_even_if_its_slot_lives_again() {
    let mut spans: Movable = Movable::with_granule(1);
    spans.add(Span::new(0, 10)).unwrap();
    let first = spans.place(5, 1).unwrap();
    spans.vacate(first).unwrap();
    let stale = StaleHandle { handle: first };
    assert_eq!((spans.vacate(first), spans.span(first)), (Err(stale), None));
    let second = spans.place(5, 1).unwrap();
    assert_eq!(
        (spans.vacate(first), spans.pin(first), spans.unpin(first)),
        (Err(stale), Err(stale), Err(stale))
    );
    assert_eq!(spans.span(second), Some(Span::new(0, 5)));
}

proptest! {
    #[test]
    fn contents_and_alignment_survive_any_compaction(
        steps in proptest::collection::vec((0u8..6, 1u64..300, 0u32..6, any::<usize>()), 1..200)
    ) {
        let mut heap = CompactingHeap::new(8192);
        let mut live: Vec<(Handle, u8, u64, u64)> = Vec::new();
        for (at, (what, len, align, which)) in steps.into_iter().enumerate() {
            match what {
                0..=2 => {
                    if let Ok(handle) = heap.allocate(len, 1 << align) {
                        heap.bytes_mut(handle).unwrap().fill(at as u8);
                        live.push((handle, at as u8, len, 1 << align));
                    }
                }
                3 | 4 if !live.is_empty() => {
                    let (handle, ..) = live.swap_remove(which % live.len());
                    heap.free(handle).unwrap();
                    prop_assert!(heap.bytes(handle).is_none());
                }
                _ => {
                    let before = heap.spans().metrics();
                    heap.compact(Budget::units(len * 8));
                    let after = heap.spans().metrics();
                    prop_assert_eq!((before.free, before.spans), (after.free, after.spans));
                    prop_assert!(after.reach <= before.reach);
                }
            }
            for &(handle, byte, len, align) in &live {
                prop_assert_eq!(heap.spans().span(handle).unwrap().offset % align, 0);
                let bytes = heap.bytes(handle).unwrap();
                prop_assert!(bytes.len() as u64 == len && bytes.iter().all(|&b| b == byte));
            }
        }
    }
}
