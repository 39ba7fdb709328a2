//! Deferred merging: vacated spans wait for a request of the same length.
//!
//! Invariant: the first `waiting[bin]` spans of `bins[bin]` are live in the engine and given up by the user; no span waits
//! twice. At most `SLOTS` spans wait in each of [`BINS`] bins.
//!
//! Protocol: a span waits in the bin that its length hashes to. A request of the same length takes the one that came last,
//! without any splitting or merging. A full bin passes its oldest half on to the engine. What does not fit is tried again
//! after everything that waits has been passed on.

use crate::misuse::{Checked, misuse};
use crate::spans::GOLDEN;
use crate::survey::{Plot, Survey, Use};
use terrane_core::{PlaceError, Placement, PlacementError, Span};

/// Number of bins; a power of two.
const BINS: usize = 32;

/// An engine in front of which vacated spans wait, so that a request of the same length gets one in a few instructions.
///
/// It suits streams with few lengths, and compares them as asked for: with a granule, ask for multiples of it. Spans that wait
/// keep their neighbours from merging; [`flush`](Self::flush) lets them. A span that has waited counts as internal waste what
/// it did when it was cut. It takes `32 · (SLOTS · 16 + 8)` bytes on 64-bit machines
/// and no other memory; each request looks through one bin, at most `SLOTS` spans.
pub struct Deferred<E, const SLOTS: usize = 8> {
    engine: E,
    bins: [[Span; SLOTS]; BINS],
    waiting: [usize; BINS],
    units: u64,
}

impl<E: Checked, const SLOTS: usize> Deferred<E, SLOTS> {
    /// In front of `engine`.
    pub const fn new(engine: E) -> Self {
        const { assert!(SLOTS >= 1) };
        Self { engine, bins: [[Span::new(0, 0); SLOTS]; BINS], waiting: [0; BINS], units: 0 }
    }

    /// The engine behind. Spans that wait look live to it.
    pub const fn engine(&self) -> &E {
        &self.engine
    }

    /// Passes everything that waits on to the engine, which merges it.
    pub fn flush(&mut self) {
        for bin in 0..BINS {
            self.pass_on(bin, self.waiting[bin]);
        }
    }

    /// The engine behind, with nothing waiting.
    pub fn into_engine(mut self) -> E {
        self.flush();
        self.engine
    }

    fn pass_on(&mut self, bin: usize, count: usize) {
        for &span in &self.bins[bin][..count] {
            self.units -= span.len;
            self.engine.vacate(span);
        }
        self.bins[bin].copy_within(count..self.waiting[bin], 0);
        self.waiting[bin] -= count;
    }

    const fn bin(len: u64) -> usize {
        (len.wrapping_mul(GOLDEN) >> (64 - BINS.trailing_zeros())) as usize
    }
}

impl<E: Checked, const SLOTS: usize> Placement for Deferred<E, SLOTS> {
    fn add(&mut self, space: Span) -> Result<(), PlacementError> {
        self.engine.add(space)
    }

    fn remove(&mut self, space: Span) -> Result<(), PlacementError> {
        self.flush();
        self.engine.remove(space)
    }

    fn place(&mut self, len: u64, align: u64) -> Result<Span, PlaceError> {
        let bin = Self::bin(len);
        let waiting = &mut self.bins[bin][..self.waiting[bin]];
        if align.is_power_of_two()
            && let Some(at) =
                waiting.iter().rposition(|span| span.len == len && span.offset & (align - 1) == 0)
        {
            let span = waiting[at];
            waiting.copy_within(at + 1.., at);
            self.waiting[bin] -= 1;
            self.units -= len;
            return Ok(span);
        }
        let placed = self.engine.place(len, align);
        if self.units == 0 || !matches!(placed, Err(PlaceError::NoRoom { .. } | PlaceError::NoMetadata)) {
            return placed;
        }
        self.flush();
        self.engine.place(len, align)
    }

    fn vacate(&mut self, span: Span) {
        if let Err(error) = self.try_vacate(span) {
            misuse(error);
        }
    }

    /// With what waits.
    fn free_bytes(&self) -> u64 {
        self.engine.free_bytes() + self.units
    }

    /// Without what waits.
    fn largest_free(&self) -> u64 {
        self.engine.largest_free()
    }
}

impl<E: Checked, const SLOTS: usize> Checked for Deferred<E, SLOTS> {
    fn is_live(&self, span: Span) -> bool {
        // A span that waits is live to the engine.
        let bin = Self::bin(span.len);
        !self.bins[bin][..self.waiting[bin]].contains(&span) && self.engine.is_live(span)
    }

    fn try_vacate(&mut self, span: Span) -> Result<(), PlacementError> {
        // Asked now, since a wrong span that waits would be handed out before the engine sees it.
        if !self.is_live(span) {
            return Err(PlacementError::NotPlaced { span });
        }
        let bin = Self::bin(span.len);
        if self.waiting[bin] == SLOTS {
            self.pass_on(bin, SLOTS.div_ceil(2));
        }
        self.bins[bin][self.waiting[bin]] = span;
        self.waiting[bin] += 1;
        self.units += span.len;
        Ok(())
    }
}

impl<E: Survey + Checked, const SLOTS: usize> Survey for Deferred<E, SLOTS> {
    /// Spans that wait are shown as holes.
    fn survey(&self, see: &mut dyn FnMut(Plot)) {
        self.engine.survey(&mut |mut plot| {
            let bin = Self::bin(plot.span.len);
            if matches!(plot.used, Use::Live { .. })
                && self.bins[bin][..self.waiting[bin]].contains(&plot.span)
            {
                plot.used = Use::Hole;
            }
            see(plot);
        });
    }
}
