//! What a space looks like: every span and hole in order of address, and the figures that follow from them.
//!
//! Invariant: the plots of one space tile it.
//!
//! Protocol: an engine shows its plots one by one, and everything here is computed from that, so that no engine keeps
//! counts that only a report needs.

use crate::node::{Kind, Node};
use terrane_core::{Placement, Span};

/// What a part of a space is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// A space that was added; the plots after it, up to the next one, lie in it.
    Space,
    /// A hole.
    Hole,
    /// A live span.
    Live {
        /// Units of the span that rounding has added to what was asked for.
        slack: u64,
    },
}

/// A part of a space and its use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plot {
    /// Where it lies.
    pub span: Span,
    /// What it is used for.
    pub used: Use,
}

impl Plot {
    pub(crate) fn of<X>(node: &Node<X>) -> Self {
        let used = match node.kind() {
            Kind::Space => Use::Space,
            Kind::Live if node.is_waiting() => Use::Hole,
            Kind::Live => Use::Live { slack: node.slack() },
            // A walk never shows a spare record.
            Kind::Hole | Kind::Spare => Use::Hole,
        };
        Self { span: node.span(), used }
    }
}

/// Holes whose length has the same power of two.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HoleClass {
    /// How many.
    pub count: u64,
    /// Their lengths together.
    pub units: u64,
}

/// Figures of a placement engine at one moment. Lengths are in units of the space.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Metrics {
    /// Length of all spaces.
    pub capacity: u64,
    /// Length of all holes.
    pub free: u64,
    /// Length of the largest hole.
    pub largest_free: u64,
    /// Number of live spans.
    pub spans: u64,
    /// Number of holes.
    pub holes: u64,
    /// Units inside live spans that nobody asked for.
    pub slack: u64,
    /// From the beginning of each space to the end of its last live span, summed.
    pub reach: u64,
    /// Holes by the binary logarithm of their length, rounded down.
    pub holes_by_power: [HoleClass; 64],
}

impl Metrics {
    /// Length of all live spans.
    pub const fn used(&self) -> u64 {
        self.capacity - self.free
    }

    /// External fragmentation: `1 - largest_free / free`; 0 if all that is free is one hole, or nothing is.
    pub fn fragmentation(&self) -> f64 {
        if self.free == 0 { 0.0 } else { 1.0 - self.largest_free as f64 / self.free as f64 }
    }

    /// Internal fragmentation: the part of the live spans that nobody asked for.
    pub fn internal(&self) -> f64 {
        if self.used() == 0 { 0.0 } else { self.slack as f64 / self.used() as f64 }
    }
}

/// An engine that can show what it has placed.
pub trait Survey: Placement {
    /// Shows every space, hole and live span to `see`, in order of address, each space before what lies in it.
    fn survey(&self, see: &mut dyn FnMut(Plot));

    /// The figures of now. Takes time in proportion to the number of spans and holes.
    fn metrics(&self) -> Metrics {
        let mut metrics = Metrics {
            capacity: 0,
            free: 0,
            largest_free: 0,
            spans: 0,
            holes: 0,
            slack: 0,
            reach: 0,
            holes_by_power: [HoleClass::default(); 64],
        };
        let (mut begin, mut reached) = (0, 0);
        self.survey(&mut |plot| match plot.used {
            Use::Space => {
                metrics.capacity += plot.span.len;
                metrics.reach += reached;
                (begin, reached) = (plot.span.offset, 0);
            }
            Use::Hole => {
                metrics.free += plot.span.len;
                metrics.holes += 1;
                metrics.largest_free = metrics.largest_free.max(plot.span.len);
                let class = &mut metrics.holes_by_power[63 - plot.span.len.leading_zeros() as usize];
                class.count += 1;
                class.units += plot.span.len;
            }
            Use::Live { slack } => {
                metrics.spans += 1;
                metrics.slack += slack;
                reached = plot.span.offset - begin + plot.span.len;
            }
        });
        metrics.reach += reached;
        metrics
    }

    /// The unusable free space index for requests of `len` units (Gorman, Whitcroft: "The what, the why and the where to
    /// of anti-fragmentation", 2006): the part of the free units that lies in holes shorter than that. 0 if nothing is free.
    fn unusable_free(&self, len: u64) -> f64 {
        let (mut free, mut short) = (0, 0);
        self.survey(&mut |plot| {
            if plot.used == Use::Hole {
                free += plot.span.len;
                short += if plot.span.len < len { plot.span.len } else { 0 };
            }
        });
        if free == 0 { 0.0 } else { short as f64 / free as f64 }
    }
}
