//! One record of metadata: a live span, a hole, a space, or a spare record.
//!
//! Invariant: the two top bits of `state` name the kind, and the kind says what `link` and the rest of `state` mean:
//!
//! | kind  | `offset`, `len`   | `prev`, `next`        | `link`                | low 30 bits of `state`        |
//! |-------|-------------------|-----------------------|-----------------------|-------------------------------|
//! | hole  | of the hole       | neighbours by address | first link of its index | second link of its index    |
//! | live  | of the span       | neighbours by address | next in its bucket    | units lost to rounding, at most [`SLACK_MAX`]; all ones: it waits |
//! | space | of the space      | last, first record in it | next space by address | zero                       |
//! | spare | meaningless       | meaningless           | next spare record     | zero                          |
//!
//! The kind of a hole is zero, so an index may use `state` of a hole as a plain link. A record that waits was vacated but not
//! merged: to its neighbours it is live, to everybody outside it is free.

use terrane_core::Span;

/// No record. Also the number of records that can exist, less one.
pub(crate) const NIL: u32 = (1 << KIND_SHIFT) - 1;
/// The most rounding that a live record remembers; above it the internal waste is understated.
pub(crate) const SLACK_MAX: u64 = NIL as u64 - 1;
/// The state of a record that waits.
const WAITING: u32 = 1 << KIND_SHIFT | NIL;
/// The state of a spare record.
const SPARE: u32 = 3 << KIND_SHIFT;
const KIND_SHIFT: u32 = 30;

/// What a record stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Hole,
    Live,
    Space,
    Spare,
}

/// A record; `X` is what the index of holes needs beside the two links.
#[derive(Clone, Copy, Debug)]
pub struct Node<X> {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) prev: u32,
    pub(crate) next: u32,
    pub(crate) link: u32,
    pub(crate) state: u32,
    pub(crate) extra: X,
}

const _: () = assert!(size_of::<Node<()>>() == 32, "two records to a cache line");

impl<X: Default> Node<X> {
    /// A spare record, before the spare record `next`.
    #[inline(always)]
    pub(crate) fn spare(next: u32) -> Self {
        Self { offset: 0, len: 0, prev: NIL, next: NIL, link: next, state: SPARE, extra: X::default() }
    }
}

impl<X> Node<X> {
    #[inline(always)]
    pub(crate) const fn kind(&self) -> Kind {
        match self.state >> KIND_SHIFT {
            0 => Kind::Hole,
            1 => Kind::Live,
            2 => Kind::Space,
            _ => Kind::Spare,
        }
    }

    #[inline(always)]
    pub(crate) const fn is_hole(&self) -> bool {
        self.state >> KIND_SHIFT == 0
    }

    /// Whether the record is of a vacated span that has not been merged yet.
    #[inline(always)]
    pub(crate) const fn is_waiting(&self) -> bool {
        self.state == WAITING
    }

    /// Whether nobody uses the span: a hole, or one that waits.
    #[inline(always)]
    pub(crate) const fn is_free(&self) -> bool {
        self.is_hole() || self.is_waiting()
    }

    #[inline(always)]
    pub(crate) const fn span(&self) -> Span {
        Span::new(self.offset, self.len)
    }

    #[inline(always)]
    pub(crate) const fn slack(&self) -> u64 {
        (self.state & NIL) as u64
    }

    #[inline(always)]
    pub(crate) fn become_hole(&mut self) {
        self.link = NIL;
        self.state = NIL;
    }

    #[inline(always)]
    pub(crate) fn become_live(&mut self, slack: u64) {
        self.state = 1 << KIND_SHIFT | slack.min(SLACK_MAX) as u32;
    }

    #[inline(always)]
    pub(crate) fn become_waiting(&mut self) {
        self.state = WAITING;
    }

    pub(crate) fn become_space(&mut self) {
        self.state = 2 << KIND_SHIFT;
    }

    pub(crate) fn become_spare(&mut self) {
        self.state = SPARE;
    }

    /// The lowest multiple of `align` at which `len` units fit into this hole.
    #[inline(always)]
    pub(crate) fn fit(&self, len: u64, align: u64) -> Option<u64> {
        // A power of two less one is the mask of the bits that a multiple does not have.
        let at = self.offset.checked_add(align - 1)? & !(align - 1);
        let pad = at - self.offset;
        (pad <= self.len && self.len - pad >= len).then_some(at)
    }
}
