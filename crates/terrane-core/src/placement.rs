//! How a space is divided: [`Placement`] works on offsets only and never touches the memory that it places.
//!
//! Invariant: live spans never overlap, and lie inside the space that was added. The same engine therefore serves
//! device memory, runs of segments, shared regions and files.

use crate::{PlaceError, PlacementError};

/// `len` units at `offset` of an abstract space. The unit is the user's: bytes, pages, segments.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Span {
    /// First offset.
    pub offset: u64,
    /// Length.
    pub len: u64,
}

impl Span {
    /// A span of `len` units at `offset`.
    pub const fn new(offset: u64, len: u64) -> Self {
        Self { offset, len }
    }

    /// First offset after the span; `None` if that does not fit in 64 bits.
    pub const fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }

    /// Whether the two spans share an offset.
    pub const fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self, other);
        let gap = a.offset.abs_diff(b.offset);
        let first_len = if a.offset <= b.offset { a.len } else { b.len };
        a.len != 0 && b.len != 0 && gap < first_len
    }
}

/// A placement engine: divides the space that was added to it into live spans and holes.
pub trait Placement {
    /// Adds `space` to the managed space.
    ///
    /// # Errors
    /// [`PlacementError::Overlap`], [`PlacementError::BadSpan`] or [`PlacementError::NoMetadata`]; nothing has changed then.
    fn add(&mut self, space: Span) -> Result<(), PlacementError>;

    /// Takes `space`, which must be one hole or a part of one, out of the managed space.
    ///
    /// # Errors
    /// [`PlacementError::InUse`], [`PlacementError::Outside`], [`PlacementError::BadSpan`] or
    /// [`PlacementError::NoMetadata`]; nothing has changed then.
    fn remove(&mut self, space: Span) -> Result<(), PlacementError>;

    /// Finds a hole for `len` units at a multiple of `align` and makes it live. The span returned has exactly the offset
    /// and length to give to [`vacate`](Self::vacate); an engine that rounds lengths up returns the rounded length.
    ///
    /// # Errors
    /// A [`PlaceError`]; nothing has changed then.
    fn place(&mut self, len: u64, align: u64) -> Result<Span, PlaceError>;

    /// Makes a live span a hole again. It never fails and never allocates.
    ///
    /// A span that was not [placed](Self::place), or was vacated before, is a bug in the caller: engines abort on it in
    /// debug builds, and keep their own memory sound in release builds.
    fn vacate(&mut self, span: Span);

    /// Bytes (or whatever the unit of the space is) in all holes together.
    fn free_bytes(&self) -> u64;

    /// Length of the largest hole.
    fn largest_free(&self) -> u64;
}

#[cfg(test)]
mod tests {
    use super::Span;

    #[test]
    fn spans_that_touch_do_not_overlap() {
        let (a, b) = (Span::new(0, 8), Span::new(8, 8));
        assert!(!a.overlaps(&b) && !b.overlaps(&a));
        assert!(Span::new(7, 2).overlaps(&b) && b.overlaps(&Span::new(7, 2)));
        assert!(Span::new(0, u64::MAX).overlaps(&Span::new(u64::MAX - 1, 1)));
        assert!(!Span::new(4, 0).overlaps(&a), "an empty span overlaps nothing");
    }
}
