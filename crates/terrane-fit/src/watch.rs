//! What the adaptive engine watches, and what it decides.
//!
//! Invariants: a look is taken before every [`TICK`]th search for a hole. A decision is made at the first look by which
//! [`WINDOW`] spans have been searched for or have merged, and at no other time, but for one: that room has become short shows
//! at the next look. All figures are of the window that ends. Nothing depends on a clock, so the same requests give the same
//! decisions.
//!
//! Protocol. Three questions are kept apart:
//!
//! * Is there room? If a quarter of the space lies in holes, lengths may be rounded, so that spans of like length can take
//!   each other's place; with less than a sixth, no more. Between the two nothing changes.
//! * Are vacated spans worth keeping? A hole that comes to lie alone, between two live spans, is one that merging has no use
//!   for and that splits the space: if that is what becomes of more than one vacated span in eight, they wait instead. They
//!   wait no longer once room is short, or a whole window has asked for none of them while more wanted to wait than may;
//!   each time they stop soon after they began, the next trial is put off twice as long.
//! * Would rounding coarsely save space? `near` is the shadow of an engine that does: the length of all requests that broke
//!   up a hole of twice their length or more although there was a hole that fails them by less than rounding would have
//!   added; that engine would have put them there. `slack` is what it would have lost inside spans. Where the first is
//!   four times the second, and no waiting span is in use, lengths are rounded to quarters of a power of two. Under that
//!   rounding the shadow casts no light, so that after some windows, each time twice as many, one goes without it.

use crate::engine::Policy;
use crate::node::Node;
use crate::tlsf::Bins;

/// Searches for a hole between two looks; each request makes one but those that a waiting span answers.
const TICK: u32 = 16;
/// Searches for a hole and vacated spans that do not wait, together, in a window.
const WINDOW: u32 = 128;
/// The fewest requests of a kind from which anything is concluded.
const FEW: u32 = 16;
/// Binary logarithm of the number of windows that coarse rounding is first kept for.
const PATIENCE: u32 = 3;
/// The same for the longest time it is kept, or waiting is put off.
const LONGEST: u32 = 6;

/// Lengths that the adaptive engine rounds requests to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rounding {
    /// The granule's multiples.
    Exact,
    /// Eight lengths to a power of two, so that spans of like length can take each other's place.
    Eighths,
    /// Four, for streams whose lengths grow a little at a time.
    Quarters,
}

impl Rounding {
    /// Binary logarithm of the number of lengths to a power of two.
    #[inline(always)]
    pub(crate) const fn bits(self) -> u32 {
        match self {
            Self::Exact => 64,
            Self::Eighths => 3,
            Self::Quarters => 2,
        }
    }
}

/// Binary logarithm of the step between the lengths around `len` that there are `2^bits` of to a power of two.
#[inline(always)]
pub(crate) const fn step(len: u64, bits: u32, shift: u32) -> u32 {
    let step = (63 - (len | 1).leading_zeros()).saturating_sub(bits);
    if step < shift { shift } else { step }
}

#[derive(Clone)]
pub(crate) struct Watch {
    rounding: Rounding,
    waits: bool,
    /// Whether a part of the space that is worth it lies in holes.
    room: bool,
    /// Whether vacated spans came to lie alone when that was last asked.
    alone: bool,
    /// Searches until the next look.
    tick: u32,
    /// Searches for a hole in this window.
    finds: u32,
    /// Spans that were live or waited when this window began.
    spans: u32,
    /// Holes that came to lie between two live spans in this window.
    lone: u32,
    /// Units that coarse rounding would have put into holes just too short, in this window.
    near: u64,
    /// Units that it would have added to all requests.
    slack: u64,
    /// Windows until waiting is tried again, and the binary logarithm of the last such number.
    pause: u32,
    pauses: u32,
    /// Windows for which spans have been waiting without a break.
    waited: u32,
    /// Windows until coarse rounding is left out for one, zero without it, and the binary logarithm of the next such number.
    until: u32,
    patience: u32,
    switches: u64,
}

impl Watch {
    pub(crate) const fn new() -> Self {
        Self {
            rounding: Rounding::Eighths,
            waits: false,
            room: true,
            alone: true,
            tick: TICK,
            finds: 0,
            spans: 0,
            lone: 0,
            near: 0,
            slack: 0,
            pause: 0,
            pauses: 0,
            waited: 0,
            until: 0,
            patience: PATIENCE,
            switches: 0,
        }
    }

    #[inline(always)]
    pub(crate) const fn rounding(&self) -> Rounding {
        self.rounding
    }

    /// Whether vacated spans wait.
    #[inline(always)]
    pub(crate) const fn waits(&self) -> bool {
        self.waits
    }

    pub(crate) const fn switches(&self) -> u64 {
        self.switches
    }

    /// A hole has come to lie alone.
    #[inline(always)]
    pub(crate) fn count_lone(&mut self) {
        self.lone = self.lone.wrapping_add(1);
    }

    /// Whether what is vacated comes to lie alone, so that it matters what lies beside what.
    #[inline(always)]
    pub(crate) const fn alone(&self) -> bool {
        self.alone
    }

    /// Whether `near` and `slack` would mean something.
    #[inline(always)]
    pub(crate) const fn compares(&self) -> bool {
        self.until == 0
    }

    /// `len` units are to be cut out of `hole`, which is in `bins`.
    #[inline(always)]
    pub(crate) fn compare(&mut self, bins: &Bins, hole: &Node<<Bins as Policy>::Extra>, len: u64) {
        let mask = (1 << step(len, Rounding::Quarters.bits(), bins.shift())) - 1;
        let coarse = len.saturating_add(mask) & !mask;
        self.slack = self.slack.saturating_add(coarse.saturating_sub(len));
        if hole.len / 2 >= len && bins.any_between(coarse.saturating_sub(mask), len) {
            self.near = self.near.saturating_add(len);
        }
    }

    /// Whether it is time for a [`look`](Self::look).
    #[inline(always)]
    pub(crate) fn tick(&mut self) -> bool {
        self.tick -= 1;
        self.tick == 0
    }

    /// `spans` are live or wait, and `holes` of `total` units are in holes. `figures` gives, and forgets, how many waiting
    /// spans have been taken back, and how many could not wait for want of a place.
    pub(crate) fn look(&mut self, spans: u32, holes: u64, total: u64, figures: impl FnOnce() -> (u32, u32)) {
        self.tick = TICK;
        let before = (self.rounding, self.waits);
        if self.room && holes < total / 6 {
            self.room = false;
            if self.waits {
                self.stop_waiting();
            }
        }
        self.finds += TICK;
        // Each search has made a span, but for those that failed.
        let merged = (self.finds + self.spans).saturating_sub(spans);
        if self.finds + merged >= WINDOW {
            self.decide(merged, holes, total, figures());
            (self.finds, self.spans, self.lone, self.near, self.slack) = (0, spans, 0, 0, 0);
        }
        self.rounding = match (self.until, self.room) {
            (1.., _) => Rounding::Quarters,
            (0, true) => Rounding::Eighths,
            (0, false) => Rounding::Exact,
        };
        self.switches += u64::from(before != (self.rounding, self.waits));
    }

    fn stop_waiting(&mut self) {
        self.waits = false;
        self.waited = 0;
        self.pauses = (self.pauses + 1).min(LONGEST);
        self.pause = 1 << self.pauses;
    }

    /// `merged` spans were vacated in this window and do not wait.
    fn decide(&mut self, merged: u32, holes: u64, total: u64, (taken, refused): (u32, u32)) {
        if self.until != 0 {
            self.until -= 1;
        } else if self.near > self.slack.saturating_mul(4) && taken == 0 {
            self.until = 1 << self.patience;
            self.patience = (self.patience + 1).min(LONGEST);
        } else {
            self.patience = PATIENCE;
        }
        if self.waits {
            if taken == 0 && refused >= 2 * FEW {
                self.stop_waiting();
                return;
            }
            self.waited += 1;
            if self.waited == 1 << LONGEST {
                self.pauses = 0;
            }
            return;
        }
        self.pause = self.pause.saturating_sub(1);
        if self.pause == 0 && holes > total / 4 && (FEW..4 * self.finds).contains(&merged) {
            let alone = self.lone > merged / 8;
            // Twice in a row, unless nothing has been decided yet: one window may lie between two phases.
            self.waits = alone && self.alone;
            (self.alone, self.room) = (alone, alone);
        }
    }
}
