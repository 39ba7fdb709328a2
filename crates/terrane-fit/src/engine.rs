//! What all engines but the buddy system share: an engine is its records and a policy.
//!
//! Invariants: every hole is in the policy's index, nothing else is; no two holes are neighbours; offsets and lengths are
//! multiples of the granule.
//!
//! Protocol: the policy finds a hole; the engine carves the span out of it and tells the policy how the hole has changed.
//! Vacating finds the live record by its offset in a table, merges it with the holes around it, and tells the policy.
//! Where one neighbour is a hole, that hole keeps its record and only changes its length, which many policies can do in
//! place; the cost of a pair is then two changes of a length.
//!
//! A policy may let vacated spans wait, unmerged, for a request of the same length. What shows from outside is as if all had
//! merged: a request fails only after everything that waits has, and a survey joins it with the holes around it.

use crate::fixed::Fixed;
use crate::misuse::{Checked, ResizeError, check_space, misuse};
use crate::node::Node;
use crate::spans::Spans;
use crate::survey::{Plot, Survey, Use};
use allocator_api2::alloc::{Allocator, Global};
use core::mem::MaybeUninit;
use terrane_core::{PlaceError, Placement, PlacementError, Span};

/// Waiting spans merged at a time, at most, where nothing calls for all of them.
const STEP: u32 = 16;

/// How an engine orders its holes, and which one it takes: the part in which the engines differ.
///
/// The methods get all records as a slice; a hole's two links and its `extra` belong to the policy.
pub trait Policy: Sized {
    /// What the policy keeps in a record beside two links.
    type Extra: Copy + Default;
    /// With an empty index, for lengths that are multiples of `2^shift`.
    fn new(shift: u32) -> Self;
    /// Enters a hole.
    fn insert(&mut self, nodes: &mut [Node<Self::Extra>], hole: u32);
    /// Takes out a hole whose length was `len` when the policy last saw it.
    fn remove(&mut self, nodes: &mut [Node<Self::Extra>], hole: u32, len: u64);
    /// A hole that has grown or shrunk, from `len` to what its record says now. Its offset may have changed, but not its
    /// place in the order of addresses.
    #[inline]
    fn resize(&mut self, nodes: &mut [Node<Self::Extra>], hole: u32, len: u64) {
        self.remove(nodes, hole, len);
        self.insert(nodes, hole);
    }
    /// A hole, and the lowest multiple of `align` in it at which `len` units fit; `None` only if there is none at all.
    fn find(&mut self, nodes: &[Node<Self::Extra>], len: u64, align: u64) -> Option<(u32, u64)>;
    /// Length of the largest hole.
    fn largest(&self, nodes: &[Node<Self::Extra>]) -> u64;

    /// Whether the policy rounds lengths up and lets vacated spans wait; the methods below are called only then.
    const WAITS: bool = false;
    /// The length to place for a request of `len` units, which is not zero, and the record of a span of that length, at a
    /// multiple of `align`, that need not wait any longer.
    #[inline]
    fn recall(&mut self, _nodes: &[Node<Self::Extra>], len: u64, _align: u64) -> (u64, Option<u32>) {
        (len, None)
    }
    /// Whether the vacated span of `node`, of `len` units, waits from now on.
    #[inline]
    fn keep(&mut self, _node: u32, _len: u64) -> bool {
        false
    }
    /// Number and length of the spans that wait.
    #[inline]
    fn kept(&self) -> (u32, u64) {
        (0, 0)
    }
    /// Shows every record that waits to `see`.
    fn each_kept(&self, _see: &mut dyn FnMut(u32)) {}
    /// Gives up a record that waits: one that has waited too long, or with `all` any of them.
    fn release(&mut self, _nodes: &[Node<Self::Extra>], _all: bool) -> Option<u32> {
        None
    }
    /// Called before each search for a hole that a request makes; whether it is time to [`observe`](Self::observe) and
    /// [`release`](Self::release).
    #[inline]
    fn tick(&mut self) -> bool {
        false
    }
    /// Looks at what has become of the space: `spans` are live or wait, and `holes` of `total` units are in holes.
    fn observe(&mut self, _spans: u32, _holes: u64, _total: u64) {}
}

/// A placement engine: records of spans and holes, and a policy that picks a hole. See [`Tlsf`](crate::Tlsf),
/// [`BestFit`](crate::BestFit), [`FirstFit`](crate::FirstFit) and [`NextFit`](crate::NextFit).
///
/// `A` supplies memory for metadata, never less than when a span is [placed](Placement::place), a space added or removed.
pub struct Engine<P: Policy, A: Allocator = Global> {
    spans: Spans<P::Extra, A>,
    policy: P,
    granule: u64,
}

impl<P: Policy> Engine<P> {
    /// An engine over no space yet, with a granule of one unit and metadata from the global allocator.
    pub fn new() -> Self {
        Self::new_in(1, Global)
    }

    /// As [`new`](Self::new); lengths are rounded up to multiples of `granule`, and every offset is one.
    ///
    /// # Panics
    /// If `granule` is not a power of two.
    pub fn with_granule(granule: u64) -> Self {
        Self::new_in(granule, Global)
    }
}

impl<P: Policy> Default for Engine<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'b, P: Policy> Engine<P, Fixed<'b>> {
    /// An engine whose metadata lies in `buffer` and never grows: operations that would need more of it fail with
    /// `NoMetadata`. [`buffer_for`](Self::buffer_for) says how long it should be.
    ///
    /// # Panics
    /// If `granule` is not a power of two.
    pub fn in_buffer(granule: u64, buffer: &'b mut [MaybeUninit<u8>]) -> Self {
        Self::over(granule, Spans::in_buffer(buffer))
    }

    /// Bytes of a buffer with which `spans` spans can be live in `spaces` spaces, however they lie.
    pub const fn buffer_for(spans: usize, spaces: usize) -> usize {
        // A hole between any two live spans and at both ends of each space, the spaces, and what a call sets aside.
        Spans::<P::Extra, Fixed<'b>>::buffer_for(2 * spans + 2 * spaces + 2)
    }
}

impl<P: Policy, A: Allocator> Engine<P, A> {
    /// As [`with_granule`](Engine::with_granule), with metadata from `allocator`.
    ///
    /// # Panics
    /// If `granule` is not a power of two.
    pub fn new_in(granule: u64, allocator: A) -> Self
    where
        A: Clone,
    {
        Self::over(granule, Spans::new_in(allocator.clone(), allocator))
    }

    fn over(granule: u64, spans: Spans<P::Extra, A>) -> Self {
        assert!(granule.is_power_of_two(), "a granule is a power of two, {granule} is not");
        Self { spans, policy: P::new(granule.trailing_zeros()), granule }
    }

    /// Sets memory aside for `spans` live spans however they lie, so that placing that many cannot fail for want of it
    /// and takes no time for it.
    ///
    /// # Errors
    /// [`PlacementError::NoMetadata`]; nothing has changed then.
    pub fn reserve(&mut self, spans: usize) -> Result<(), PlacementError> {
        self.spans.preallocate(spans.saturating_mul(2).saturating_add(4))
    }

    /// The unit that lengths are rounded to.
    pub const fn granule(&self) -> u64 {
        self.granule
    }

    /// Number of live spans.
    pub fn live(&self) -> usize {
        (self.spans.live() - self.policy.kept().0) as usize
    }

    /// Length of all spaces that were added and not removed.
    pub const fn capacity(&self) -> u64 {
        self.spans.total()
    }

    pub(crate) const fn policy(&self) -> &P {
        &self.policy
    }

    /// `len` as a multiple of the granule.
    #[inline(always)]
    fn round(&self, len: u64) -> Result<u64, PlaceError> {
        match len.checked_add(self.granule - 1) {
            Some(sum) if len != 0 => Ok(sum & !(self.granule - 1)),
            _ => Err(PlaceError::BadLength { requested: len }),
        }
    }

    /// Merges `node`, a hole in no index whose neighbours may be holes, and enters what comes of it.
    #[inline(always)]
    fn settle(&mut self, node: u32) {
        let (span, prev, next) = {
            let record = &self.spans[node];
            (record.span(), record.prev, record.next)
        };
        match (self.spans[prev].is_hole(), self.spans[next].is_hole()) {
            (false, false) => self.policy.insert(self.spans.nodes(), node),
            (true, false) => {
                self.spans.unlink(node);
                self.widen(prev, span.len);
            }
            (false, true) => {
                self.spans.unlink(node);
                self.spans[next].offset = span.offset;
                self.widen(next, span.len);
            }
            (true, true) => {
                let above = self.spans[next].len;
                self.policy.remove(self.spans.nodes(), next, above);
                self.spans.unlink(node);
                self.spans.unlink(next);
                self.widen(prev, span.len + above);
            }
        }
    }

    #[inline(always)]
    fn widen(&mut self, hole: u32, by: u64) {
        let len = self.spans[hole].len;
        self.spans[hole].len = len + by;
        self.policy.resize(self.spans.nodes(), hole, len);
    }

    /// Cuts `span` out of `hole`, which it lies in, as a record that is in no index. Only after reserving two records.
    #[inline(always)]
    fn carve(&mut self, hole: u32, span: Span) -> u32 {
        let (whole, below) = {
            let record = &self.spans[hole];
            (record.len, span.offset - record.offset)
        };
        let above = whole - below - span.len;
        if below == 0 && above == 0 {
            self.policy.remove(self.spans.nodes(), hole, whole);
            return hole;
        }
        if below == 0 {
            let node = self.spans.insert_before(hole, span);
            let record = &mut self.spans[hole];
            (record.offset, record.len) = (span.offset + span.len, above);
            self.policy.resize(self.spans.nodes(), hole, whole);
            return node;
        }
        let node = self.spans.insert_after(hole, span);
        self.spans[hole].len = below;
        self.policy.resize(self.spans.nodes(), hole, whole);
        if above != 0 {
            let rest = self.spans.insert_after(node, Span::new(span.offset + span.len, above));
            self.policy.insert(self.spans.nodes(), rest);
        }
        node
    }

    #[cold]
    fn no_room(&self, requested: u64) -> PlaceError {
        let (free, largest) = (self.free_bytes(), self.largest_free());
        PlaceError::NoRoom { requested, free, largest }
    }

    /// As [`Placement::place`], and the record of the span.
    #[inline(always)]
    pub(crate) fn place_record(&mut self, len: u64, align: u64) -> Result<u32, PlaceError> {
        if !align.is_power_of_two() {
            return Err(PlaceError::BadAlign { requested: align });
        }
        let rounded = self.round(len)?;
        let align = align.max(self.granule);
        let (ample, waited) = self.policy.recall(self.spans.nodes_ref(), rounded, align);
        if let Some(node) = waited {
            self.spans.revive(node, ample - len);
            return Ok(node);
        }
        if self.policy.tick() {
            self.tend();
        }
        self.spans.reserve(2).map_err(|_| PlaceError::NoMetadata)?;
        match self.policy.find(self.spans.nodes_ref(), ample, align) {
            Some(found) => Ok(self.occupy(found, ample, ample - len)),
            None => self.squeeze_in(len, rounded, align),
        }
    }

    /// Cuts `len` units out of what the policy has found, as a live record. Only after reserving two records.
    #[inline(always)]
    fn occupy(&mut self, (hole, offset): (u32, u64), len: u64, slack: u64) -> u32 {
        let node = self.carve(hole, Span::new(offset, len));
        self.spans.make_live(node, slack);
        node
    }

    /// The last resort, if spans may wait: all of them are merged, and the length is the one asked for.
    #[cold]
    fn squeeze_in(&mut self, len: u64, rounded: u64, align: u64) -> Result<u32, PlaceError> {
        if P::WAITS {
            self.merge_waiting();
            if let Some(found) = self.policy.find(self.spans.nodes_ref(), rounded, align) {
                return Ok(self.occupy(found, rounded, rounded - len));
            }
        }
        Err(self.no_room(len))
    }

    /// Lets the policy look at what has become of the space, and merges some of what has waited too long.
    #[inline(never)]
    fn tend(&mut self) {
        self.policy.observe(self.spans.live(), self.spans.free, self.spans.total());
        for _ in 0..STEP {
            let Some(node) = self.policy.release(self.spans.nodes_ref(), false) else { break };
            self.spans.end_wait(node);
            self.settle(node);
        }
    }

    /// Merges everything that waits.
    pub(crate) fn merge_waiting(&mut self) {
        while let Some(node) = self.policy.release(self.spans.nodes_ref(), true) {
            self.spans.end_wait(node);
            self.settle(node);
        }
    }

    /// Makes a live span longer or shorter where it lies; its new form is returned and takes the place of `span`. Takes the
    /// time of a place and a vacate; the new length is rounded up to the granule and no further.
    ///
    /// # Errors
    /// [`ResizeError::NotPlaced`] if `span` is not a live one; [`ResizeError::NoPlace`] if what follows it is not a hole or not
    /// long enough, for a length of zero, and for want of metadata. Nothing has changed then.
    pub fn resize(&mut self, span: Span, len: u64) -> Result<Span, ResizeError> {
        let rounded = self.round(len)?;
        self.spans.reserve(2).map_err(|_| PlaceError::NoMetadata)?;
        let Some(node) = self.spans.find_live(span) else { return Err(ResizeError::NotPlaced { span }) };
        let mut next = self.spans[node].next;
        let ample = self.spans[next].is_hole() && self.spans[next].len >= rounded.saturating_sub(span.len);
        if P::WAITS && rounded > span.len && !ample {
            // The span above may wait, or the one above the hole that is there.
            self.merge_waiting();
            next = self.spans[node].next;
        }
        let room = if self.spans[next].is_hole() { self.spans[next].len } else { 0 };
        if rounded > span.len && rounded - span.len > room {
            return Err(self.no_room(len).into());
        }
        // Out of its bucket and back, so that the counts are kept by one piece of code.
        let live = self.spans.make_hole(span);
        debug_assert_eq!(live, Some(node));
        if rounded > span.len {
            let more = self.carve(next, Span::new(span.offset + span.len, rounded - span.len));
            self.spans.unlink(more);
        }
        self.spans[node].len = rounded;
        self.spans.make_live(node, rounded - len);
        if rounded < span.len {
            let rest = Span::new(span.offset + rounded, span.len - rounded);
            let rest = self.spans.insert_after(node, rest);
            self.settle(rest);
        }
        Ok(Span::new(span.offset, rounded))
    }

    /// The lowest place for a live span over the hole right below it, if that is lower than where it lies.
    pub(crate) fn lower_place(&self, span: Span, align: u64) -> Option<Span> {
        let below = &self.spans[self.spans[self.spans.find_live(span)?].prev];
        let low = Span::new(below.offset, below.len + span.len);
        let to =
            Node { offset: low.offset, len: low.len, ..*below }.fit(span.len, align.max(self.granule))?;
        (below.is_hole() && to < span.offset).then_some(Span::new(to, span.len))
    }

    /// Sets aside what [`slide`](Self::slide) needs.
    pub(crate) fn can_slide(&mut self) -> bool {
        self.spans.reserve(2).is_ok()
    }

    /// Moves a live span to its [lower place](Self::lower_place). Only after [`can_slide`](Self::can_slide).
    pub(crate) fn slide(&mut self, span: Span, to: Span) {
        let Some(node) = self.spans.find_live(span) else { return };
        let (hole, slack) = (self.spans[node].prev, self.spans[node].slack());
        // With the hole below it, and the one above if there is one, the span becomes one hole, whose record is the lowest
        // one's; out of that it is cut again.
        if self.spans.make_hole(span).is_some() {
            self.settle(node);
            let node = self.carve(hole, to);
            self.spans.make_live(node, slack);
        }
    }
}

impl<P: Policy, A: Allocator> Placement for Engine<P, A> {
    fn add(&mut self, space: Span) -> Result<(), PlacementError> {
        check_space(space, self.granule)?;
        self.spans.reserve(2)?;
        let hole = self.spans.open(space)?;
        self.settle(hole);
        Ok(())
    }

    fn remove(&mut self, space: Span) -> Result<(), PlacementError> {
        check_space(space, self.granule)?;
        self.merge_waiting();
        let hole = self.spans.hole_around(space)?;
        self.spans.reserve(3)?;
        let node = self.carve(hole, space);
        self.spans.close(node);
        Ok(())
    }

    #[inline]
    fn place(&mut self, len: u64, align: u64) -> Result<Span, PlaceError> {
        let node = self.place_record(len, align)?;
        Ok(self.spans[node].span())
    }

    #[inline]
    fn vacate(&mut self, span: Span) {
        if let Err(error) = self.try_vacate(span) {
            misuse(error);
        }
    }

    fn free_bytes(&self) -> u64 {
        self.spans.free + self.policy.kept().1
    }

    fn largest_free(&self) -> u64 {
        let mut largest = self.policy.largest(self.spans.nodes_ref());
        self.policy.each_kept(&mut |node| largest = largest.max(self.run_of(node)));
        largest
    }
}

impl<P: Policy, A: Allocator> Engine<P, A> {
    /// Length of the run of free records that `node`, which waits, is in; zero if it is not the first in it that waits.
    fn run_of(&self, node: u32) -> u64 {
        // No two holes are neighbours, so what is free two records below waits.
        let mut first = node;
        let mut below = self.spans[node].prev;
        if self.spans[below].is_hole() {
            (first, below) = (below, self.spans[below].prev);
        }
        if self.spans[below].is_waiting() {
            return 0;
        }
        let mut len = 0;
        while self.spans[first].is_free() {
            len += self.spans[first].len;
            first = self.spans[first].next;
        }
        len
    }
}

impl<P: Policy, A: Allocator> Checked for Engine<P, A> {
    fn is_live(&self, span: Span) -> bool {
        self.spans.find_live(span).is_some()
    }

    #[inline]
    fn try_vacate(&mut self, span: Span) -> Result<(), PlacementError> {
        let Some(found) = self.spans.seek(span) else { return Err(PlacementError::NotPlaced { span }) };
        if P::WAITS && self.policy.keep(found.node, span.len) {
            self.spans.wait(found.node);
            return Ok(());
        }
        let node = self.spans.make_found_hole(found);
        self.settle(node);
        Ok(())
    }
}

impl<P: Policy, A: Allocator> Survey for Engine<P, A> {
    fn survey(&self, see: &mut dyn FnMut(Plot)) {
        // Neighbours that are both free, of which one waits, are shown as the hole that they will be.
        let mut run: Option<Plot> = None;
        self.spans.walk(&mut |_, node| {
            let plot = Plot::of(node);
            match &mut run {
                Some(run) if plot.used == Use::Hole => run.span.len += plot.span.len,
                _ => {
                    run.take().into_iter().for_each(&mut *see);
                    if plot.used == Use::Hole { run = Some(plot) } else { see(plot) }
                }
            }
        });
        run.into_iter().for_each(see);
    }
}
