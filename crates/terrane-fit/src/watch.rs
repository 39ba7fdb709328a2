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
        if self.pause == 0 && holes > total / 4 && merged >= FEW {
            self.alone = self.lone > merged / 8;
            (self.waits, self.room) = (self.alone, self.alone);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LONGEST, PATIENCE, Rounding, TICK, WINDOW, Watch};

    /// A window with as many searches as vacated spans, of which `lone` come to lie alone; `holes` of 100 units are in holes.
    fn window(watch: &mut Watch, lone: u32, holes: u64, figures: (u32, u32)) {
        (0..lone).for_each(|_| watch.count_lone());
        (0..WINDOW / (2 * TICK)).for_each(|_| watch.look(0, holes, 100, || figures));
    }

    /// Windows with room until spans wait.
    fn windows_until_it_waits(watch: &mut Watch) -> u32 {
        (1..1000).find(|_| (window(watch, 60, 50, (1, 0)), watch.waits()).1).unwrap()
    }

    /// A window without room.
    fn lose_room(watch: &mut Watch) {
        for _ in 0..WINDOW / (2 * TICK) {
            watch.look(0, 10, 100, || (0, 0));
            assert!(!watch.waits(), "at once, not at the end of the window");
            assert_eq!(watch.rounding(), Rounding::Exact);
        }
    }

    #[test]
    fn waiting_that_was_given_up_is_put_off_twice_as_long_each_time_until_it_has_lasted() {
        let mut watch = Watch::new();
        assert_eq!(windows_until_it_waits(&mut watch), 1);
        for pauses in 1..10 {
            lose_room(&mut watch);
            // The window in which room was lost counts.
            assert_eq!(windows_until_it_waits(&mut watch), (1 << pauses.min(LONGEST)) - 1);
        }
        (0..1 << LONGEST).for_each(|_| window(&mut watch, 60, 50, (1, 0)));
        assert!(watch.waits());
        lose_room(&mut watch);
        assert_eq!(windows_until_it_waits(&mut watch), 1);
    }

    #[test]
    fn spans_wait_no_longer_when_none_is_asked_for_and_more_would_wait() {
        let mut watch = Watch::new();
        windows_until_it_waits(&mut watch);
        for figures in [(1, 1000), (0, 31)] {
            window(&mut watch, 60, 50, figures);
            assert!(watch.waits(), "{figures:?}");
        }
        window(&mut watch, 60, 50, (0, 32));
        assert!(!watch.waits());
    }

    #[test]
    fn nothing_is_decided_about_waiting_while_hardly_anything_is_vacated() {
        let mut watch = Watch::new();
        for look in 1..100 {
            (0..60).for_each(|_| watch.count_lone());
            watch.look(look * TICK, 50, 100, || (0, 0));
            assert!(!watch.waits());
        }
    }

    #[test]
    fn coarse_rounding_is_left_out_for_a_window_after_twice_as_many_each_time_that_it_is_missed() {
        let mut watch = Watch::new();
        for times in 0..6 {
            (watch.near, watch.slack) = (401, 100);
            window(&mut watch, 0, 20, (0, 0));
            for _ in 0..1 << (PATIENCE + times).min(LONGEST) {
                assert_eq!(watch.rounding(), Rounding::Quarters);
                assert!(!watch.compares());
                window(&mut watch, 0, 20, (0, 0));
            }
            assert_eq!(watch.rounding(), Rounding::Eighths);
        }
        // Four times is not more than four times.
        (watch.near, watch.slack) = (400, 100);
        window(&mut watch, 0, 20, (0, 0));
        assert_eq!((watch.rounding(), watch.patience), (Rounding::Eighths, PATIENCE));
    }
}
