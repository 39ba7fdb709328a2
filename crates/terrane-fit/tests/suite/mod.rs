//! The contract of a placement engine as checks against a model that knows nothing but a list of live spans.

pub mod learnt;

use proptest::prelude::*;
use terrane_fit::{
    Adaptive, BestFit, Buddy, Checked, Deferred, FirstFit, NextFit, PlaceError, PlacementError, ResizeError,
    Span, Survey, Tlsf, Use,
};

/// An engine as the suite sees it.
pub trait Subject: Survey + Checked {
    /// Over no space.
    fn make(granule: u64) -> Self;
    /// Whether spans are powers of two at multiples of their length, and holes merge only with their buddies.
    const BUDDY: bool = false;
    /// Whether vacated spans wait, unmerged, for a request of the same length; `settle` ends that.
    const DEFERS: bool = false;
    fn settle(&mut self) {}
    /// Whether spans may be longer than asked for, by up to a quarter.
    const GENEROUS: bool = false;
    /// The hole that the engine must take, if only one is right; the holes have room, are in order of address, and the last
    /// span placed ended at `rover`.
    fn right(_fitting: &mut dyn Iterator<Item = Span>, _rover: u64) -> Option<Span> {
        None
    }
    /// Resizing in place, if the engine can.
    fn resize(&mut self, _span: Span, _len: u64) -> Option<Result<Span, ResizeError>> {
        None
    }
}

/// The lowest multiple of `align` in `hole` at which `len` units fit.
pub fn fit(hole: Span, len: u64, align: u64) -> Option<u64> {
    let at = hole.offset.checked_next_multiple_of(align)?;
    (at.checked_add(len)? <= hole.offset + hole.len).then_some(at)
}

macro_rules! subject {
    ($engine:ident, $right:expr) => {
        subject!($engine, $right, false);
    };
    ($engine:ident, $right:expr, $generous:expr) => {
        impl Subject for $engine {
            const GENEROUS: bool = $generous;
            fn make(granule: u64) -> Self {
                $engine::with_granule(granule)
            }
            fn right(fitting: &mut dyn Iterator<Item = Span>, rover: u64) -> Option<Span> {
                let right: fn(&mut dyn Iterator<Item = Span>, u64) -> Option<Span> = $right;
                right(fitting, rover)
            }
            fn resize(&mut self, span: Span, len: u64) -> Option<Result<Span, ResizeError>> {
                Some($engine::resize(self, span, len))
            }
        }
    };
}
subject!(Tlsf, |_, _| None);
subject!(Adaptive, |_, _| None, true);
subject!(FirstFit, |fitting, _| fitting.next());
subject!(BestFit, |fitting, _| fitting.min_by_key(|hole| (hole.len, hole.offset)));
// The first hole that begins at the rover or above it; if there is none, the first of all.
subject!(NextFit, |fitting, rover| fitting.min_by_key(|hole| (hole.offset < rover, hole.offset)));

impl Subject for Buddy {
    const BUDDY: bool = true;
    fn make(granule: u64) -> Self {
        Buddy::with_granule(granule)
    }
}

/// Few slots, so that bins fill up.
impl<E: Subject> Subject for Deferred<E, 2> {
    const BUDDY: bool = E::BUDDY;
    const DEFERS: bool = true;
    fn make(granule: u64) -> Self {
        Deferred::new(E::make(granule))
    }
    fn settle(&mut self) {
        self.flush();
    }
}

/// The model: spaces and live spans, sorted; beside each live span the length that was asked for.
#[derive(Default)]
pub struct Model {
    pub spaces: Vec<Span>,
    pub live: Vec<(Span, u64)>,
    /// Where the span that was placed last ended.
    pub rover: u64,
}

impl Model {
    /// What is left of the spaces, in order of address, joined where spaces touch.
    pub fn holes(&self) -> Vec<Span> {
        let mut holes: Vec<Span> = Vec::new();
        for space in self.joined() {
            let mut at = space.offset;
            for (span, _) in self.live.iter().filter(|(span, _)| span.overlaps(&space)) {
                if span.offset > at {
                    holes.push(Span::new(at, span.offset - at));
                }
                at = span.offset + span.len;
            }
            if space.offset + space.len > at {
                holes.push(Span::new(at, space.offset + space.len - at));
            }
        }
        holes
    }

    pub fn joined(&self) -> Vec<Span> {
        join(&self.spaces)
    }

    fn over(space: Span) -> Self {
        Self { spaces: vec![space], ..Self::default() }
    }

    pub fn enter(&mut self, span: Span, asked: u64) {
        self.live.push((span, asked));
        self.live.sort();
        self.rover = span.offset + span.len;
    }
}

/// Neighbours as one.
fn join(spans: &[Span]) -> Vec<Span> {
    let mut joined: Vec<Span> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(last) if last.offset + last.len == span.offset => last.len += span.len,
            _ => joined.push(*span),
        }
    }
    joined
}

/// Cuts what is free into aligned powers of two, as large as they go: what a buddy system must have merged to, if
/// all spans are blocks themselves.
fn blocks(holes: &[Span]) -> Vec<Span> {
    let mut blocks = Vec::new();
    for hole in holes {
        let (mut at, end) = (hole.offset, hole.offset + hole.len);
        while at < end {
            let fits = 1 << (63 - (end - at).leading_zeros());
            let block = if at == 0 { fits } else { fits.min(1 << at.trailing_zeros()) };
            blocks.push(Span::new(at, block));
            at += block;
        }
    }
    blocks
}

/// Everything that must hold after every operation: no overlap, tiling, accounting, everything mergeable has merged, but
/// for spans that wait.
pub fn check<E: Subject>(engine: &E, model: &Model) {
    check_merged(engine, model, !E::DEFERS);
}

/// As [`check`]; with `merged`, nothing waits.
pub fn check_merged<E: Subject>(engine: &E, model: &Model, merged: bool) {
    let (mut spaces, mut holes, mut live, mut slack) = (Vec::new(), Vec::new(), Vec::new(), 0);
    engine.survey(&mut |plot| match plot.used {
        Use::Space => spaces.push(plot.span),
        Use::Hole => holes.push(plot.span),
        Use::Live { slack: more } => {
            live.push(plot.span);
            slack += more;
        }
    });
    assert_eq!(spaces, model.joined());
    assert_eq!(live, model.live.iter().map(|(span, _)| *span).collect::<Vec<_>>());
    let largest = holes.iter().map(|hole| hole.len).max().unwrap_or(0);
    let asked = model.live.iter().map(|(span, asked)| span.len - asked).sum::<u64>();
    if merged {
        let expected = if E::BUDDY { blocks(&model.holes()) } else { model.holes() };
        assert_eq!(holes, expected, "what lies between live spans is merged as far as it goes");
        assert_eq!(engine.largest_free(), largest);
    } else {
        assert_eq!(join(&holes), model.holes(), "what lies between live spans is free");
        assert!(engine.largest_free() <= largest);
    }
    // A span that has waited keeps the waste that it had when it was cut.
    assert!(slack == asked || E::DEFERS && slack > asked, "{slack} units of waste, {asked} expected");
    assert!(live.iter().all(|&span| engine.is_live(span)));
    assert!(holes.iter().all(|&span| !engine.is_live(span)));
    assert_eq!(engine.free_bytes(), holes.iter().map(|hole| hole.len).sum::<u64>());
    let metrics = engine.metrics();
    assert_eq!(metrics.free, engine.free_bytes());
    assert_eq!((metrics.spans as usize, metrics.holes as usize), (live.len(), holes.len()));
    assert_eq!((metrics.slack, metrics.largest_free), (slack, largest));
    assert_eq!(metrics.capacity, spaces.iter().map(|space| space.len).sum::<u64>());
}

/// Places and checks the answer against the model: a place that is free, aligned, long enough and, where the engine
/// has no choice, right; or a failure, only if nothing would fit.
pub fn place<E: Subject>(
    engine: &mut E,
    model: &mut Model,
    granule: u64,
    len: u64,
    align: u64,
) -> Option<Span> {
    let (holes, asked_align) = (model.holes(), align);
    let (rounded, align) = if E::BUDDY {
        let block = len.next_power_of_two().max(align).max(granule);
        (block, block)
    } else {
        (len.next_multiple_of(granule), align.max(granule))
    };
    match engine.place(len, align) {
        Ok(span) => {
            // A span that has waited is as long as asked for; a block would be as long as its alignment.
            let longest = if E::GENEROUS { rounded + rounded / 4 } else { rounded };
            let right = (rounded..=longest).contains(&span.len) && span.len % granule == 0;
            assert!(right || E::DEFERS && span.len == len, "{rounded} units: {span:?}");
            assert_eq!(span.offset % asked_align, 0, "alignment");
            let inside = |hole: &Span| hole.offset <= span.offset && span.end() <= hole.end();
            assert!(holes.iter().any(inside), "{span:?} lies in a hole");
            let mut fitting = holes.iter().copied().filter(|&hole| fit(hole, rounded, align).is_some());
            if let Some(right) = E::right(&mut fitting, model.rover) {
                assert_eq!(
                    Some(span.offset),
                    fit(right, rounded, align),
                    "the right hole, at its lowest fit"
                );
            }
            model.enter(span, len);
            Some(span)
        }
        Err(PlaceError::NoRoom { requested, free, largest }) => {
            assert_eq!(requested, len);
            assert_eq!(free, engine.free_bytes());
            assert_eq!(largest, engine.largest_free());
            let fits = holes.iter().any(|&hole| fit(hole, rounded, align).is_some());
            assert!(!fits, "{rounded} at {align} would fit into one of {holes:?}");
            check_merged(engine, model, true);
            None
        }
        Err(other) => panic!("{other}"),
    }
}

#[derive(Clone, Debug)]
pub enum Op {
    Place { len: u64, align: u32 },
    Vacate { which: usize },
    Resize { which: usize, len: u64 },
    Wrong { offset: u64, len: u64 },
    Add { offset: u64, len: u64 },
    Remove { offset: u64, len: u64 },
}

pub fn ops() -> impl Strategy<Value = (u32, Vec<Op>)> {
    let len = prop_oneof![6 => 1u64..64, 3 => 1u64..600, 1 => 1u64..5000];
    let op = prop_oneof![
        8 => (len, prop_oneof![4 => Just(0u32), 1 => 0u32..10]).prop_map(|(len, align)| Op::Place { len, align }),
        7 => any::<usize>().prop_map(|which| Op::Vacate { which }),
        3 => (any::<usize>(), 1u64..200).prop_map(|(which, len)| Op::Resize { which, len }),
        1 => (0u64..5000, 1u64..64).prop_map(|(offset, len)| Op::Wrong { offset, len }),
        1 => (0u64..40, 1u64..12).prop_map(|(at, len)| Op::Add { offset: at * 128, len: len * 128 }),
        1 => (0u64..500, 1u64..60).prop_map(|(at, len)| Op::Remove { offset: at * 16, len: len * 16 }),
    ];
    (0u32..5, proptest::collection::vec(op, 1..250))
}

/// Resizes the span at `at` in place and checks the answer: it ends where it should, or what follows has no room.
fn resize<E: Subject>(engine: &mut E, model: &mut Model, granule: u64, at: usize, len: u64) {
    let (span, _) = model.live[at];
    let rounded = len.next_multiple_of(granule);
    let next = model.holes().into_iter().find(|hole| Some(hole.offset) == span.end());
    let room = span.len + next.map_or(0, |hole| hole.len);
    match engine.resize(span, len) {
        None => {}
        Some(Ok(resized)) => {
            assert!(rounded <= room, "{span:?} has room to grow to {room}, not {rounded}");
            assert_eq!(resized, Span::new(span.offset, rounded));
            model.live[at] = (resized, len);
        }
        Some(Err(error)) => {
            assert!(rounded > room, "{span:?} has room to grow to {room}, enough for {rounded}");
            let (free, largest) = (engine.free_bytes(), engine.largest_free());
            let cause = PlaceError::NoRoom { requested: len, free, largest };
            assert_eq!(error, ResizeError::NoPlace(cause));
        }
    }
}

/// Carries out one operation on engine and model.
fn apply<E: Subject>(engine: &mut E, model: &mut Model, granule: u64, op: &Op) {
    match *op {
        Op::Place { len, align } => {
            place(engine, model, granule, len, 1 << align);
        }
        Op::Vacate { .. } | Op::Resize { .. } if model.live.is_empty() => {}
        Op::Vacate { which } => {
            let (span, _) = model.live.remove(which % model.live.len());
            engine.vacate(span);
            assert_eq!(engine.try_vacate(span), Err(PlacementError::NotPlaced { span }), "vacated before");
            if let Some(again) = engine.resize(span, span.len) {
                assert_eq!(again, Err(ResizeError::NotPlaced { span }), "vacated before");
            }
        }
        Op::Resize { which, len } => resize(engine, model, granule, which % model.live.len(), len),
        Op::Wrong { offset, len } => {
            let span = Span::new(offset, len);
            if !model.live.iter().any(|(live, _)| *live == span) {
                assert_eq!(engine.try_vacate(span), Err(PlacementError::NotPlaced { span }));
            }
        }
        Op::Add { offset, len } => {
            let space = Span::new(offset, len);
            if model.spaces.iter().any(|other| other.overlaps(&space)) {
                assert_eq!(engine.add(space), Err(PlacementError::Overlap { span: space }));
            } else {
                engine.add(space).unwrap();
                model.spaces.push(space);
                model.spaces.sort();
            }
        }
        Op::Remove { offset, len } => {
            let space = Span::new(offset, len);
            let inside = |outer: &Span| outer.offset <= offset && space.end() <= outer.end();
            if model.holes().iter().any(inside) {
                engine.remove(space).unwrap();
                model.spaces = model.joined().into_iter().flat_map(|old| without(old, space)).collect();
            } else if model.joined().iter().any(inside) {
                assert_eq!(engine.remove(space), Err(PlacementError::InUse { span: space }));
            } else {
                assert_eq!(engine.remove(space), Err(PlacementError::Outside { span: space }));
            }
        }
    }
}

/// Any sequence of operations leaves engine and model alike.
pub fn behaves<E: Subject>(granule: u32, ops: &[Op]) {
    let granule = 1 << granule;
    let mut engine = E::make(granule);
    let mut model = Model::over(Span::new(1024, 2048));
    engine.add(model.spaces[0]).unwrap();
    for op in ops {
        apply(&mut engine, &mut model, granule, op);
        check(&engine, &model);
    }
    for (span, _) in std::mem::take(&mut model.live) {
        engine.vacate(span);
    }
    check(&engine, &model);
    engine.settle();
    check_merged(&engine, &model, true);
}

fn without(old: Span, gone: Span) -> Vec<Span> {
    if !old.overlaps(&gone) {
        return vec![old];
    }
    let (end, gone_end) = (old.offset + old.len, gone.offset + gone.len);
    [Span::new(old.offset, gone.offset - old.offset), Span::new(gone_end, end - gone_end)]
        .into_iter()
        .filter(|part| part.len != 0)
        .collect()
}

/// What can be done next on a space of `units` units from 3: place any length at any alignment, vacate or resize any span,
/// and with `reshape` add and remove any units in and around it.
fn steps(model: &Model, units: u64, reshape: bool) -> Vec<Op> {
    let lengths = 1..=units + 1;
    let mut steps: Vec<Op> =
        lengths.clone().flat_map(|len| (0..3).map(move |align| Op::Place { len, align })).collect();
    for which in 0..model.live.len() {
        steps.push(Op::Vacate { which });
        steps.extend(lengths.clone().map(|len| Op::Resize { which, len }));
    }
    if reshape {
        let around = (2..units + 4).flat_map(|offset| (1..=3).map(move |len| (offset, len)));
        steps.extend(around.clone().map(|(offset, len)| Op::Add { offset, len }));
        steps.extend(around.map(|(offset, len)| Op::Remove { offset, len }));
    }
    steps
}

/// Every sequence of `depth` operations on a space of `units` units; how many there are.
pub fn every_sequence<E: Subject>(units: u64, depth: usize, reshape: bool) -> u64 {
    fn from<E: Subject>(path: &mut Vec<Op>, units: u64, depth: usize, reshape: bool) -> u64 {
        // Engines are not cloned, so the path is played again; the model is rebuilt with it.
        let mut engine = E::make(1);
        let mut model = Model::over(Span::new(3, units));
        engine.add(model.spaces[0]).unwrap();
        path.iter().for_each(|op| apply(&mut engine, &mut model, 1, op));
        check(&engine, &model);
        let mut seen = 1;
        if depth != 0 {
            for step in steps(&model, units, reshape) {
                path.push(step);
                seen += from::<E>(path, units, depth - 1, reshape);
                path.pop();
            }
        }
        seen
    }
    from::<E>(&mut Vec::new(), units, depth, reshape)
}
