//! Placement engines: sequences of add, remove, place, vacate, resize and wrong spans on every engine, beside a list of what
//! is live; compaction with handles; and the parser of traces.

use crate::bytes::Bytes;
use std::convert::Infallible;
use terrane_fit::trace::Trace;
use terrane_fit::{
    Adaptive, BestFit, Buddy, Budget, Checked, FirstFit, Handle, Movable, NextFit, PlaceError, ResizeError,
    Span, Survey, Tlsf, Use,
};

trait Subject: Survey + Checked {
    const BUDDY: bool;
    fn resize(&mut self, span: Span, len: u64) -> Option<Result<Span, ResizeError>>;
}

macro_rules! subject {
    ($($engine:ident),*) => {$(
        impl Subject for $engine {
            const BUDDY: bool = false;
            fn resize(&mut self, span: Span, len: u64) -> Option<Result<Span, ResizeError>> {
                Some($engine::resize(self, span, len))
            }
        }
    )*};
}
subject!(Tlsf, BestFit, FirstFit, NextFit, Adaptive);

impl Subject for Buddy {
    const BUDDY: bool = true;
    fn resize(&mut self, _: Span, _: u64) -> Option<Result<Span, ResizeError>> {
        None
    }
}

/// What the engine shows is tiled, merged as far as it goes, agrees with its counts, and its live spans are `live`.
fn check<E: Subject>(engine: &E, live: &mut [Span]) {
    let (mut shown, mut free, mut largest) = (Vec::new(), 0, 0);
    let (mut at, mut end, mut hole_before) = (0, 0, false);
    engine.survey(&mut |plot| match plot.used {
        Use::Space => {
            assert_eq!(at, end, "the space before is tiled to its end");
            assert!(at == 0 || plot.span.offset > end, "spaces that touch are joined");
            (at, end, hole_before) = (plot.span.offset, plot.span.offset + plot.span.len, false);
        }
        Use::Hole | Use::Live { .. } => {
            assert_eq!(plot.span.offset, at, "no gap, no overlap");
            at += plot.span.len;
            let hole = plot.used == Use::Hole;
            assert!(E::BUDDY || !(hole && hole_before), "neighbouring holes have merged");
            hole_before = hole;
            if hole {
                free += plot.span.len;
                largest = largest.max(plot.span.len);
            } else {
                shown.push(plot.span);
            }
        }
    });
    assert_eq!(at, end);
    live.sort();
    assert_eq!(shown, live);
    assert_eq!((engine.free_bytes(), engine.largest_free()), (free, largest));
}

fn drive<E: Subject>(mut engine: E, granule: u64, input: &mut Bytes<'_>) {
    let mut live: Vec<Span> = Vec::new();
    while !input.is_empty() {
        let what = input.byte();
        let (a, b) = (input.number(1), input.number(1));
        match what % 16 {
            0..=5 => {
                let (len, align) = ((a << (b % 12)) + 1, 1 << (b >> 4));
                match engine.place(len, align) {
                    Ok(span) => {
                        assert!(span.len >= len && span.offset % align == 0 && span.offset % granule == 0);
                        live.push(span);
                    }
                    Err(PlaceError::NoRoom { largest, .. }) => {
                        let ample = if E::BUDDY {
                            len.next_power_of_two().max(align).max(granule)
                        } else {
                            len.next_multiple_of(granule) + align.max(granule) - granule
                        };
                        assert!(
                            largest < ample,
                            "a hole of {largest} has room for {len} at any multiple of {align}"
                        );
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            6..=9 if !live.is_empty() => {
                let at = (a << 8 | b) as usize % live.len();
                let span = live.swap_remove(at);
                engine.vacate(span);
                assert!(engine.try_vacate(span).is_err());
            }
            10 => {
                let span = Span::new(a << (b % 16), b);
                assert!(engine.try_vacate(span).is_ok() == live.contains(&span));
                live.retain(|other| *other != span);
            }
            11 => drop(engine.add(Span::new(a * 256, (b + 1) * 64))),
            12 => drop(engine.remove(Span::new(a * 256 + (b % 4) * 64, (b + 1) * 16))),
            13 | 14 if !live.is_empty() => {
                let at = a as usize % live.len();
                if let Some(Ok(span)) = engine.resize(live[at], b * 3 + 1) {
                    assert_eq!(span.offset, live[at].offset);
                    assert!(span.len > b * 3 && span.len < b * 3 + 1 + granule);
                    live[at] = span;
                }
            }
            _ => {}
        }
        check(&engine, &mut live);
    }
    live.drain(..).for_each(|span| engine.vacate(span));
    check(&engine, &mut live);
}

fn compact(input: &mut Bytes<'_>) {
    let mut memory = vec![0u8; 8192];
    let mut spans: Movable = Movable::with_granule(1);
    spans.add(Span::new(0, 8192)).expect("the first space");
    let mut live: Vec<(Handle, u8, u64)> = Vec::new();
    while !input.is_empty() {
        let what = input.byte();
        let (a, b) = (input.number(1), input.byte());
        match what % 8 {
            0..=3 => {
                let align = 1 << (b % 7);
                if let Ok(handle) = spans.place(a + 1, align) {
                    let span = spans.span(handle).expect("it is live");
                    memory[span.offset as usize..(span.offset + span.len) as usize].fill(b);
                    live.push((handle, b, align));
                }
            }
            4 | 5 if !live.is_empty() => {
                let (handle, ..) = live.swap_remove(a as usize % live.len());
                spans.vacate(handle).expect("it is live");
                assert!(spans.vacate(handle).is_err());
            }
            6 if !live.is_empty() => {
                let (handle, ..) = live[a as usize % live.len()];
                let pinned = if b % 2 == 0 { spans.pin(handle).map(drop) } else { spans.unpin(handle) };
                pinned.expect("it is live");
            }
            _ => {
                let budget = Budget { overlapping: b % 2 == 0, ..Budget::units(a * 16) };
                let moved = spans.compact(budget, |step| {
                    assert!(step.to.offset < step.from.offset && (budget.overlapping || !step.overlaps()));
                    let from = step.from.offset as usize;
                    memory.copy_within(from..from + step.from.len as usize, step.to.offset as usize);
                    Ok::<(), Infallible>(())
                });
                assert!(moved.is_ok_and(|done| done.units <= a * 16));
            }
        }
        for &(handle, byte, align) in &live {
            let span = spans.span(handle).expect("it is live");
            assert_eq!(span.offset % align, 0);
            let bytes = &memory[span.offset as usize..(span.offset + span.len) as usize];
            assert!(bytes.iter().all(|&other| other == byte), "contents follow their span");
        }
    }
}

/// Carries out what the bytes say.
pub fn run(data: &[u8]) {
    let mut input = Bytes::new(data);
    let which = input.byte();
    let granule = 1 << (which / 8 % 5);
    match which % 8 {
        0 => drive(Tlsf::with_granule(granule), granule, &mut input),
        1 => drive(BestFit::with_granule(granule), granule, &mut input),
        2 => drive(FirstFit::with_granule(granule), granule, &mut input),
        3 => drive(NextFit::with_granule(granule), granule, &mut input),
        4 => drive(Buddy::with_granule(granule), granule, &mut input),
        5 => drive(Adaptive::with_granule(granule), granule, &mut input),
        6 => compact(&mut input),
        _ => {
            if let Ok(trace) = String::from_utf8_lossy(data.get(1..).unwrap_or(&[])).parse::<Trace>() {
                assert_eq!(trace.to_string().parse(), Ok(trace), "a trace reads back as it was written");
            }
        }
    }
}
