//! The space of a pool: a placement engine, and for holes that were freed lately, whom to wait for.
//!
//! Invariant: every offset of a hole either may be used by anyone, or is covered by an entry of the `StampMap` that
//! names the streams whose work on it may not be past. So holes join and split freely, whoever freed them: placement is
//! about space alone, and order is looked up afterwards.

use crate::device::Streams;
use crate::space::Space;
use crate::stream_order::{Stamp, StreamOrder};
use std::collections::BTreeMap;
use terrane_core::{PlaceError, Placement, PlacementError, Span};

/// What a pool's [`Backing`](crate::variable::Backing) wants to know of every span that is placed or vacated.
pub trait Books: Send + 'static {
    /// `span` is live from now on.
    fn placed(&mut self, span: Span);
    /// `span` is a hole from now on.
    fn vacated(&mut self, span: Span);
}

/// Keeps no books.
impl Books for () {
    fn placed(&mut self, _: Span) {}
    fn vacated(&mut self, _: Span) {}
}

/// Holes with work that may not be past: disjoint ranges, each with stamps.
#[derive(Default, Debug)]
pub(crate) struct StampMap {
    ranges: BTreeMap<u64, (u64, Vec<Stamp>)>,
}

impl StampMap {
    /// Notes that `span`, which is in no range, is a hole with these stamps.
    pub(crate) fn insert(&mut self, span: Span, stamps: Vec<Stamp>) {
        if !stamps.is_empty() {
            self.ranges.insert(span.offset, (span.offset + span.len, stamps));
        }
    }

    fn first_at(&self, offset: u64) -> u64 {
        match self.ranges.range(..=offset).next_back() {
            Some((&start, (end, _))) if *end > offset => start,
            _ => offset,
        }
    }

    /// Takes `span` out of all ranges and returns what they said.
    pub(crate) fn take(&mut self, span: Span) -> Vec<Stamp> {
        if self.ranges.is_empty() {
            return Vec::new();
        }
        let (start, end) = (span.offset, span.offset + span.len);
        let mut found = Vec::new();
        let touched: Vec<u64> = self.ranges.range(self.first_at(start)..end).map(|(&s, _)| s).collect();
        for at in touched {
            let Some((range_end, stamps)) = self.ranges.remove(&at) else { continue };
            if range_end > end {
                self.ranges.insert(end, (range_end, stamps.clone()));
            }
            if at < start {
                self.ranges.insert(at, (start, stamps.clone()));
            }
            found.extend(stamps);
        }
        found.sort_unstable();
        // Of one stream only the last epoch counts.
        found.reverse();
        found.dedup_by_key(|stamp| stamp.lane);
        found
    }

    /// The stamps of all ranges that touch `span`.
    pub(crate) fn stamps_in(&self, span: Span) -> impl Iterator<Item = Stamp> + '_ {
        let range = self.first_at(span.offset)..span.offset + span.len;
        self.ranges.range(range).flat_map(|(_, (_, stamps))| stamps.iter().copied())
    }

    /// The last epoch of every stream that some hole waits for.
    pub(crate) fn latest(&self) -> Vec<Stamp> {
        let mut all: Vec<Stamp> = self.ranges.values().flat_map(|(_, stamps)| stamps).copied().collect();
        all.sort_unstable();
        all.reverse();
        all.dedup_by_key(|stamp| stamp.lane);
        all
    }

    /// Forgets what is past.
    pub(crate) fn prune(&mut self, past: impl Fn(Stamp) -> bool) {
        self.ranges.retain(|_, (_, stamps)| {
            stamps.retain(|&stamp| !past(stamp));
            !stamps.is_empty()
        });
    }
}

/// A placement engine with the order of its holes, and the backing's books.
pub struct Arena<P, K> {
    pub(crate) engine: Space<P>,
    pub(crate) stamps: StampMap,
    pub(crate) books: K,
    /// Bytes placed: handed out, or in some stream's list.
    pub(crate) placed: u64,
    pub(crate) peak_placed: u64,
    pub(crate) reserved: u64,
    pub(crate) peak_reserved: u64,
    /// Goes up with every change that may have made room.
    pub(crate) version: u64,
}

impl<P: Placement, K: Books> Arena<P, K> {
    pub(crate) fn new(engine: P, books: K, whole_from: u64) -> Self {
        Self {
            engine: Space::new(engine, whole_from),
            stamps: StampMap::default(),
            books,
            placed: 0,
            peak_placed: 0,
            reserved: 0,
            peak_reserved: 0,
            version: 0,
        }
    }

    pub(crate) fn place(&mut self, len: u64, align: u64) -> Result<(Span, Vec<Stamp>), PlaceError> {
        let span = self.engine.place(len, align)?;
        self.books.placed(span);
        self.placed += span.len;
        self.peak_placed = self.peak_placed.max(self.placed);
        Ok((span, self.stamps.take(span)))
    }

    pub(crate) fn vacate(&mut self, span: Span, stamps: Vec<Stamp>) {
        self.engine.vacate(span);
        self.books.vacated(span);
        self.placed -= span.len;
        self.stamps.insert(span, stamps);
        self.version += 1;
    }

    /// Adds space that nobody uses.
    pub(crate) fn add(&mut self, span: Span) -> Result<(), PlacementError> {
        self.engine.add(span)?;
        self.reserved += span.len;
        self.peak_reserved = self.peak_reserved.max(self.reserved);
        self.version += 1;
        Ok(())
    }

    /// Takes what is in `region` and in none of the spans `live`, which are sorted, out of the engine; what
    /// the holes wait for stays noted. `None`, and nothing has changed, if that is not all holes.
    pub(crate) fn close(&mut self, region: Span, live: &[Span]) -> Option<Vec<Span>> {
        let mut closed = Vec::new();
        let (mut at, end) = (region.offset, region.offset + region.len);
        for (start, next) in live.iter().map(|span| (span.offset, span.offset + span.len)).chain([(end, end)])
        {
            let start = start.min(end);
            if start > at {
                let hole = Span::new(at, start - at);
                if self.engine.remove(hole).is_err() {
                    self.open(closed);
                    return None;
                }
                closed.push(hole);
            }
            at = at.max(next);
        }
        Some(closed)
    }

    /// Brings holes back that were [closed](Self::close).
    pub(crate) fn open(&mut self, closed: Vec<Span>) {
        for hole in closed {
            let back = self.engine.add(hole);
            debug_assert!(back.is_ok(), "a hole that was taken out can be put back");
        }
        self.version += 1;
    }

    /// Takes a hole, or a part of one, out of the space if all work on it is known to be past.
    pub(crate) fn remove_past<S: Streams + ?Sized>(&mut self, span: Span, order: &StreamOrder<S>) -> bool {
        let past = self.stamps.stamps_in(span).all(|stamp| order.is_done(stamp));
        if !past || self.engine.remove(span).is_err() {
            return false;
        }
        self.stamps.take(span);
        self.reserved -= span.len;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(lane: u32, epoch: u64) -> Stamp {
        Stamp { lane, epoch }
    }

    #[test]
    fn taking_a_part_leaves_the_rest_with_its_stamps() {
        let mut map = StampMap::default();
        map.insert(Span::new(100, 100), vec![stamp(1, 5)]);
        map.insert(Span::new(200, 100), vec![stamp(2, 7), stamp(1, 6)]);
        assert_eq!(map.take(Span::new(0, 100)), []);
        assert_eq!(map.take(Span::new(150, 100)), [stamp(2, 7), stamp(1, 6)], "the later epoch of stream 1");
        assert_eq!(map.take(Span::new(150, 100)), [], "taken");
        assert_eq!(map.stamps_in(Span::new(0, 150)).collect::<Vec<_>>(), [stamp(1, 5)]);
        assert_eq!(map.stamps_in(Span::new(250, 1)).count(), 2);
        map.prune(|s| s.lane == 1);
        assert_eq!(map.ranges.len(), 1);
        assert_eq!(map.take(Span::new(0, 1000)), [stamp(2, 7)]);
    }
}
