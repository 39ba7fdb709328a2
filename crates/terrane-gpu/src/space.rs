//! The space that an arena divides: an engine's, and chunks that are handed out whole.
//!
//! Invariant: an offset with the bit [`WHOLE`] belongs to a chunk that is either idle or one span, from its first to its
//! last byte; all other offsets are the engine's.
//!
//! A long block in a chunk of its own leaves nothing behind when it goes: no short block can have settled in the chunk
//! meanwhile. So the chunk can be given back, and what is held follows what is live. An idle one serves the next request
//! only if that is nearly as long.

use std::collections::{BTreeSet, HashMap};
use terrane_core::{PlaceError, Placement, PlacementError, Span};

/// Marks the offsets of chunks that are handed out whole.
pub(crate) const WHOLE: u64 = 1 << 60;
/// Largest alignment of blocks in such chunks.
pub(crate) const WHOLE_ALIGN: u64 = 256;
/// Bytes that drivers round long allocations up to.
pub(crate) const DRIVER_PAGE: u64 = 2 << 20;

/// Whether a chunk of `chunk` bytes may be handed out whole to a request of `len` bytes: a sixteenth may be lost, or what
/// the driver would round up.
pub(crate) fn suits(chunk: u64, len: u64) -> bool {
    chunk >= len && (chunk - len <= len / 16 || chunk <= len.next_multiple_of(DRIVER_PAGE))
}

/// An engine, and chunks that are handed out whole, to requests of `whole_from` bytes or more.
pub(crate) struct Space<P> {
    engine: P,
    whole_from: u64,
    chunks: HashMap<u64, u64>,
    idle: BTreeSet<(u64, u64)>,
    idle_bytes: u64,
}

impl<P: Placement> Space<P> {
    pub(crate) fn new(engine: P, whole_from: u64) -> Self {
        Self { engine, whole_from, chunks: HashMap::new(), idle: BTreeSet::new(), idle_bytes: 0 }
    }

    /// Longest hole that blocks of any length may share.
    pub(crate) fn largest_shared(&self) -> u64 {
        self.engine.largest_free()
    }
}

impl<P: Placement> Placement for Space<P> {
    fn add(&mut self, span: Span) -> Result<(), PlacementError> {
        if span.offset & WHOLE == 0 {
            return self.engine.add(span);
        }
        self.chunks.insert(span.offset, span.len);
        self.idle.insert((span.len, span.offset));
        self.idle_bytes += span.len;
        Ok(())
    }

    fn remove(&mut self, span: Span) -> Result<(), PlacementError> {
        if span.offset & WHOLE == 0 {
            return self.engine.remove(span);
        }
        if !self.idle.remove(&(span.len, span.offset)) {
            return Err(PlacementError::InUse { span });
        }
        self.chunks.remove(&span.offset);
        self.idle_bytes -= span.len;
        Ok(())
    }

    fn place(&mut self, len: u64, align: u64) -> Result<Span, PlaceError> {
        if len < self.whole_from || align > WHOLE_ALIGN {
            return self.engine.place(len, align);
        }
        match self.idle.range((len, 0)..).next().copied() {
            Some((chunk, offset)) if suits(chunk, len) => {
                self.idle.remove(&(chunk, offset));
                self.idle_bytes -= chunk;
                Ok(Span::new(offset, chunk))
            }
            // Chunks that were made before the space could hand them out whole, or for great alignments.
            _ => self.engine.place(len, align),
        }
    }

    fn vacate(&mut self, span: Span) {
        if span.offset & WHOLE == 0 {
            return self.engine.vacate(span);
        }
        debug_assert_eq!(self.chunks.get(&span.offset), Some(&span.len), "a span is the chunk");
        self.idle.insert((span.len, span.offset));
        self.idle_bytes += span.len;
    }

    fn free_bytes(&self) -> u64 {
        self.engine.free_bytes() + self.idle_bytes
    }

    fn largest_free(&self) -> u64 {
        self.engine.largest_free().max(self.idle.last().map_or(0, |(len, _)| *len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use terrane_fit::FirstFit;

    #[test]
    fn a_whole_chunk_serves_requests_of_nearly_its_length_and_nothing_else() {
        let mut space = Space::new(FirstFit::with_granule(256), 1 << 20);
        let chunk = Span::new(WHOLE | 0x1000, 17 << 20);
        space.add(chunk).unwrap();
        assert!(space.place(512, 256).is_err(), "too short for a chunk of its own");
        assert!(space.place(14 << 20, 256).is_err(), "three MiB would be lost");
        assert!(suits(14 << 20, (12 << 20) + 1) && !suits((14 << 20) + 256, 12 << 20));
        assert!(space.place(17 << 20, 4096).is_err(), "an alignment that chunks need not have");
        assert_eq!((space.largest_free(), space.free_bytes()), (17 << 20, 17 << 20));
        assert_eq!(space.place(16 << 20, 256), Ok(chunk), "one MiB may be");
        assert!(space.remove(chunk).is_err(), "in use");
        assert_eq!((space.largest_free(), space.free_bytes()), (0, 0));
        space.vacate(chunk);
        space.remove(chunk).unwrap();
        assert!(space.place(16 << 20, 256).is_err(), "gone");
    }
}
