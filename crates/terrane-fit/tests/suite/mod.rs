//! The contract of a placement engine as checks against a model that knows nothing but a list of live spans.

use proptest::prelude::*;
use terrane_fit::{
    Adaptive, BestFit, Buddy, FirstFit, NextFit, PlaceError, PlacementError, Span, Survey, Tlsf, Use,
};

/// An engine as the suite sees it.
pub trait Subject: Survey {
    /// Over no space.
    fn make(granule: u64) -> Self;
    fn try_vacate(&mut self, span: Span) -> Result<(), PlacementError>;
    /// Whether spans are powers of two at multiples of their length, and holes merge only with their buddies.
    const BUDDY: bool = false;
    /// The hole that the engine must take, if only one is right; the holes are in order of address.
    fn right(_holes: &[Span], _len: u64, _align: u64) -> Option<Span> {
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
        impl Subject for $engine {
            fn make(granule: u64) -> Self {
                $engine::with_granule(granule)
            }
            fn try_vacate(&mut self, span: Span) -> Result<(), PlacementError> {
                $engine::try_vacate(self, span)
            }
            fn right(holes: &[Span], len: u64, align: u64) -> Option<Span> {
                let right: fn(&mut dyn Iterator<Item = Span>) -> Option<Span> = $right;
                right(&mut holes.iter().copied().filter(|&hole| fit(hole, len, align).is_some()))
            }
        }
    };
}
subject!(Tlsf, |_| None);
subject!(NextFit, |_| None);
subject!(Adaptive, |_| None);
subject!(FirstFit, |fitting| fitting.next());
subject!(BestFit, |fitting| fitting.min_by_key(|hole| (hole.len, hole.offset)));

impl Subject for Buddy {
    const BUDDY: bool = true;
    fn make(granule: u64) -> Self {
        Buddy::with_granule(granule)
    }
    fn try_vacate(&mut self, span: Span) -> Result<(), PlacementError> {
        Buddy::try_vacate(self, span)
    }
}

/// The model: spaces and live spans, sorted; beside each live span the length that was asked for.
#[derive(Default)]
pub struct Model {
    pub spaces: Vec<Span>,
    pub live: Vec<(Span, u64)>,
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
        let mut joined: Vec<Span> = Vec::new();
        for space in &self.spaces {
            match joined.last_mut() {
                Some(last) if last.offset + last.len == space.offset => last.len += space.len,
                _ => joined.push(*space),
            }
        }
        joined
    }

    pub fn enter(&mut self, span: Span, asked: u64) {
        self.live.push((span, asked));
        self.live.sort();
    }
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

/// Everything that must hold after every operation: no overlap, tiling, accounting, everything mergeable has merged.
pub fn check<E: Subject>(engine: &E, model: &Model) {
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
    let expected = if E::BUDDY { blocks(&model.holes()) } else { model.holes() };
    assert_eq!(holes, expected, "what lies between live spans is merged as far as it goes");
    assert_eq!(slack, model.live.iter().map(|(span, asked)| span.len - asked).sum::<u64>());
    assert_eq!(engine.free_bytes(), holes.iter().map(|hole| hole.len).sum::<u64>());
    assert_eq!(engine.largest_free(), holes.iter().map(|hole| hole.len).max().unwrap_or(0));
    let metrics = engine.metrics();
    assert_eq!(metrics.free, engine.free_bytes());
    assert_eq!(metrics.largest_free, engine.largest_free());
    assert_eq!((metrics.spans as usize, metrics.holes as usize), (live.len(), holes.len()));
    assert_eq!(metrics.slack, slack);
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
    let holes = model.holes();
    let (rounded, align) = if E::BUDDY {
        let block = len.next_power_of_two().max(align).max(granule);
        (block, block)
    } else {
        (len.next_multiple_of(granule), align.max(granule))
    };
    match engine.place(len, align) {
        Ok(span) => {
            assert_eq!(span.len, rounded);
            assert_eq!(span.offset % align, 0, "alignment");
            let inside = |hole: &Span| hole.offset <= span.offset && span.end() <= hole.end();
            assert!(holes.iter().any(inside), "{span:?} lies in a hole");
            if let Some(right) = E::right(&holes, rounded, align) {
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
            None
        }
        Err(other) => panic!("{other}"),
    }
}

#[derive(Clone, Debug)]
pub enum Op {
    Place { len: u64, align: u32 },
    Vacate { which: usize },
    Wrong { offset: u64, len: u64 },
    Add { offset: u64, len: u64 },
    Remove { offset: u64, len: u64 },
}

pub fn ops() -> impl Strategy<Value = (u32, Vec<Op>)> {
    let len = prop_oneof![6 => 1u64..64, 3 => 1u64..600, 1 => 1u64..5000];
    let op = prop_oneof![
        8 => (len, prop_oneof![4 => Just(0u32), 1 => 0u32..10]).prop_map(|(len, align)| Op::Place { len, align }),
        7 => any::<usize>().prop_map(|which| Op::Vacate { which }),
        1 => (0u64..5000, 1u64..64).prop_map(|(offset, len)| Op::Wrong { offset, len }),
        1 => (0u64..40, 1u64..12).prop_map(|(at, len)| Op::Add { offset: at * 128, len: len * 128 }),
        1 => (0u64..500, 1u64..60).prop_map(|(at, len)| Op::Remove { offset: at * 16, len: len * 16 }),
    ];
    (0u32..5, proptest::collection::vec(op, 1..250))
}

/// Any sequence of operations leaves engine and model alike.
pub fn behaves<E: Subject>(granule: u32, ops: &[Op]) {
    let granule = 1 << granule;
    let mut engine = E::make(granule);
    let mut model = Model::default();
    let first = Span::new(1024, 2048);
    engine.add(first).unwrap();
    model.spaces.push(first);
    for op in ops {
        match *op {
            Op::Place { len, align } => {
                place(&mut engine, &mut model, granule, len, 1 << align);
            }
            Op::Vacate { which } if !model.live.is_empty() => {
                let (span, _) = model.live.remove(which % model.live.len());
                engine.vacate(span);
                assert_eq!(
                    engine.try_vacate(span),
                    Err(PlacementError::NotPlaced { span }),
                    "vacated before"
                );
            }
            Op::Vacate { .. } => {}
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
        check(&engine, &model);
    }
    for (span, _) in std::mem::take(&mut model.live) {
        engine.vacate(span);
    }
    check(&engine, &model);
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

/// Every sequence of `depth` operations on a space of `units` units: place any length at any alignment, vacate any span.
pub fn every_sequence<E: Subject>(units: u64, depth: usize) -> u64 {
    fn from<E: Subject>(path: &mut Vec<(u64, u64)>, units: u64, depth: usize) -> u64 {
        // Engines are not cloned, so the path is played again; the model is rebuilt with it.
        let mut engine = E::make(1);
        let mut model = Model::default();
        let space = Span::new(3, units);
        engine.add(space).unwrap();
        model.spaces.push(space);
        for &(len, align) in path.iter() {
            if align == 0 {
                let (span, _) = model.live.remove(len as usize);
                engine.vacate(span);
            } else {
                place(&mut engine, &mut model, 1, len, align);
            }
        }
        check(&engine, &model);
        if depth == 0 {
            return 1;
        }
        let mut seen = 1;
        let places = (1..=units + 1).flat_map(|len| [1, 2, 4].map(|align| (len, align)));
        let vacates = (0..model.live.len() as u64).map(|at| (at, 0));
        for step in places.chain(vacates).collect::<Vec<_>>() {
            path.push(step);
            seen += from::<E>(path, units, depth - 1);
            path.pop();
        }
        seen
    }
    from::<E>(&mut Vec::new(), units, depth)
}
