//! What the tests share: a placement engine so simple that it can be believed.

use std::collections::BTreeMap;
use terrane_core::{PlaceError, Placement, PlacementError, Span};

/// First fit over an ordered map of holes, with every rule checked.
#[derive(Default)]
pub struct FirstFit {
    holes: BTreeMap<u64, u64>,
    live: BTreeMap<u64, u64>,
}

impl FirstFit {
    fn insert_hole(&mut self, mut span: Span) {
        if let Some((&start, &len)) = self.holes.range(..span.offset).next_back()
            && start + len == span.offset
        {
            self.holes.remove(&start);
            span = Span::new(start, len + span.len);
        }
        if let Some(len) = self.holes.remove(&(span.offset + span.len)) {
            span.len += len;
        }
        self.holes.insert(span.offset, span.len);
    }

    fn cut(&mut self, hole: u64, span: Span) {
        let len = self.holes.remove(&hole).expect("a hole");
        if hole < span.offset {
            self.holes.insert(hole, span.offset - hole);
        }
        let (end, hole_end) = (span.offset + span.len, hole + len);
        if end < hole_end {
            self.holes.insert(end, hole_end - end);
        }
    }
}

impl Placement for FirstFit {
    fn add(&mut self, space: Span) -> Result<(), PlacementError> {
        let hits = |map: &BTreeMap<u64, u64>| map.iter().any(|(&o, &l)| Span::new(o, l).overlaps(&space));
        if hits(&self.holes) || hits(&self.live) {
            return Err(PlacementError::Overlap { span: space });
        }
        self.insert_hole(space);
        Ok(())
    }

    fn remove(&mut self, space: Span) -> Result<(), PlacementError> {
        let found = self.holes.range(..=space.offset).next_back().map(|(&o, &l)| (o, l));
        match found {
            Some((o, l)) if space.offset + space.len <= o + l => {
                self.cut(o, space);
                Ok(())
            }
            _ => Err(PlacementError::InUse { span: space }),
        }
    }

    fn place(&mut self, len: u64, align: u64) -> Result<Span, PlaceError> {
        let found = self.holes.iter().find_map(|(&o, &l)| {
            let start = o.next_multiple_of(align);
            (start + len <= o + l).then_some((o, Span::new(start, len)))
        });
        let (free, largest) = (self.free_bytes(), self.largest_free());
        let (hole, span) = found.ok_or(PlaceError::NoRoom { requested: len, free, largest })?;
        self.cut(hole, span);
        self.live.insert(span.offset, span.len);
        Ok(span)
    }

    fn vacate(&mut self, span: Span) {
        assert_eq!(self.live.remove(&span.offset), Some(span.len), "vacated what was not placed");
        self.insert_hole(span);
    }

    fn free_bytes(&self) -> u64 {
        self.holes.values().sum()
    }

    fn largest_free(&self) -> u64 {
        self.holes.values().copied().max().unwrap_or(0)
    }
}
