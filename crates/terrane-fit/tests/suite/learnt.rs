//! The adaptive engine in the states that it comes into only after many requests.
//!
//! It learns over a space that is taken away again, so that the suite finds an engine over no space that has decided already.

use super::Subject;
use terrane_fit::{
    Adaptive, Checked, PlaceError, Placement, PlacementError, Plot, ResizeError, Rounding, Span, Standing,
    Survey,
};

/// What the engine has learnt to do.
pub trait Lesson {
    fn teach(engine: &mut Adaptive, unit: u64);
    fn learnt(standing: Standing) -> bool;
}

/// Vacated spans wait.
pub struct Waits;

impl Lesson for Waits {
    fn teach(engine: &mut Adaptive, unit: u64) {
        let mut live: Vec<Span> = (0..64).map(|n| engine.place((32 + n % 7) * unit, 1).unwrap()).collect();
        for n in 0..200 {
            let at = n * 37 % live.len();
            engine.vacate(live[at]);
            live[at] = engine.place((32 + n as u64 % 5) * unit, 1).unwrap();
        }
        live.into_iter().for_each(|span| engine.vacate(span));
    }
    fn learnt(standing: Standing) -> bool {
        standing.waits && standing.rounding == Rounding::Eighths
    }
}

/// Lengths are rounded to quarters.
pub struct Coarse;

impl Lesson for Coarse {
    fn teach(engine: &mut Adaptive, unit: u64) {
        let mut spans = Vec::new();
        for _ in 0..200 {
            spans.push(engine.place(288 * unit, 1).unwrap());
            spans.push(engine.place(2 * unit, 1).unwrap());
        }
        for at in (0..spans.len()).step_by(4) {
            engine.vacate(spans[at]);
            spans[at] = engine.place(316 * unit, 1).unwrap();
        }
        spans.into_iter().for_each(|span| engine.vacate(span));
    }
    fn learnt(standing: Standing) -> bool {
        standing.rounding == Rounding::Quarters
    }
}

/// Lengths are exact and nothing waits, since the requests were a stack.
pub struct Exact;

impl Lesson for Exact {
    fn teach(engine: &mut Adaptive, unit: u64) {
        for n in 0..200 {
            let span = engine.place((32 + n % 50) * unit, 1).unwrap();
            engine.vacate(span);
        }
    }
    fn learnt(standing: Standing) -> bool {
        standing.rounding == Rounding::Exact && !standing.waits
    }
}

/// An adaptive engine that has had a lesson.
pub struct Learnt<L>(Adaptive, std::marker::PhantomData<L>);

impl<L: Lesson> Subject for Learnt<L> {
    const GENEROUS: bool = true;
    fn make(granule: u64) -> Self {
        let mut engine = Adaptive::with_granule(granule);
        let school = Span::new(1 << 40, granule << 20);
        engine.add(school).unwrap();
        L::teach(&mut engine, granule);
        assert!(L::learnt(engine.standing()), "{:?}", engine.standing());
        engine.remove(school).unwrap();
        Self(engine, std::marker::PhantomData)
    }
    fn resize(&mut self, span: Span, len: u64) -> Option<Result<Span, ResizeError>> {
        Some(self.0.resize(span, len))
    }
}

impl<L> Placement for Learnt<L> {
    fn add(&mut self, space: Span) -> Result<(), PlacementError> {
        self.0.add(space)
    }
    fn remove(&mut self, space: Span) -> Result<(), PlacementError> {
        self.0.remove(space)
    }
    fn place(&mut self, len: u64, align: u64) -> Result<Span, PlaceError> {
        self.0.place(len, align)
    }
    fn vacate(&mut self, span: Span) {
        self.0.vacate(span);
    }
    fn free_bytes(&self) -> u64 {
        self.0.free_bytes()
    }
    fn largest_free(&self) -> u64 {
        self.0.largest_free()
    }
}

impl<L> Survey for Learnt<L> {
    fn survey(&self, see: &mut dyn FnMut(Plot)) {
        self.0.survey(see);
    }
}

impl<L> Checked for Learnt<L> {
    fn is_live(&self, span: Span) -> bool {
        self.0.is_live(span)
    }
    fn try_vacate(&mut self, span: Span) -> Result<(), PlacementError> {
        self.0.try_vacate(span)
    }
}
