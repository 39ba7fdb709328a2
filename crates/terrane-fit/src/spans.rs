//! The records of a space: who lies next to whom, and which record a live span has.
//!
//! Invariants:
//! * The records of one space form a ring in order of address, through the space's own record; they tile the space.
//! * Spaces are disjoint, do not touch, and are linked in order of address from `spaces`.
//! * A live record is in exactly one bucket, the one of its offset; no other record is in a bucket.
//! * `free` is the sum over holes, `live` counts live records, those that wait among them.
//! * Every record is in a ring, or spare.
//!
//! Protocol: what may need records calls [`Spans::reserve`] first, and has changed nothing when that fails. Afterwards
//! nothing fails, and giving back only turns records into spare ones, which is why `vacate` needs no memory.

use crate::fixed::Fixed;
use crate::node::{Kind, NIL, Node};
use allocator_api2::alloc::Allocator;
use allocator_api2::vec::Vec;
use core::mem::MaybeUninit;
use core::ops::{Index, IndexMut};
use terrane_core::{PlacementError, Span};

/// Multiplier of Fibonacci hashing (Knuth, The Art of Computer Programming, vol. 3): 2⁶⁴ over the golden ratio.
pub(crate) const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A live record, its bucket, and the record before it there.
pub(crate) struct Found {
    bucket: usize,
    before: u32,
    pub(crate) node: u32,
}

pub(crate) struct Spans<X, A: Allocator> {
    nodes: Vec<Node<X>, A>,
    /// First live record of each bucket; a power of two of them.
    buckets: Vec<u32, A>,
    /// 64 less the binary logarithm of the number of buckets.
    shift: u32,
    spare: u32,
    spares: u32,
    spaces: u32,
    live: u32,
    pub(crate) free: u64,
    total: u64,
}

impl<X, A: Allocator> Index<u32> for Spans<X, A> {
    type Output = Node<X>;
    #[inline(always)]
    fn index(&self, node: u32) -> &Node<X> {
        &self.nodes[node as usize]
    }
}

impl<X, A: Allocator> IndexMut<u32> for Spans<X, A> {
    #[inline(always)]
    fn index_mut(&mut self, node: u32) -> &mut Node<X> {
        &mut self.nodes[node as usize]
    }
}

impl<'b, X: Default + Copy> Spans<X, Fixed<'b>> {
    /// As many records as `buffer` has room for.
    pub(crate) fn in_buffer(buffer: &'b mut [MaybeUninit<u8>]) -> Self {
        // `bytes_for` grows with the number of records, and no record is shorter than two bytes.
        let (mut records, mut step) = (0, buffer.len().next_power_of_two() / 2);
        while step != 0 {
            if Self::buffer_for(records + step) <= buffer.len() {
                records += step;
            }
            step /= 2;
        }
        let (bytes, _) = Self::bytes_for(records);
        let (nodes, buckets) = buffer.split_at_mut(if records == 0 { 0 } else { bytes });
        let mut spans = Self::new_in(Fixed::new(nodes), Fixed::new(buckets));
        if records != 0 {
            // It fits by the sum above; if it did not, the engine would answer `NoMetadata` to everything.
            let _ = spans.preallocate(records);
        }
        spans
    }
}

impl<X: Default + Copy, A: Allocator> Spans<X, A> {
    /// With no record; records come from one allocator, buckets from the other.
    pub(crate) fn new_in(records: A, buckets: A) -> Self {
        Self {
            nodes: Vec::new_in(records),
            buckets: Vec::new_in(buckets),
            shift: 63,
            spare: NIL,
            spares: 0,
            spaces: NIL,
            live: 0,
            free: 0,
            total: 0,
        }
    }
}

impl<X: Default + Copy, A: Allocator> Spans<X, A> {
    /// Bytes of a buffer for `records` records with their buckets, at any alignment.
    pub(crate) const fn buffer_for(records: usize) -> usize {
        let (records, buckets) = Self::bytes_for(records);
        records + buckets
    }

    /// Bytes of a buffer for `records` records, and for the buckets that go with them, at any alignment.
    const fn bytes_for(records: usize) -> (usize, usize) {
        let (record, bucket) = (size_of::<Node<X>>(), size_of::<u32>());
        let buckets = Self::buckets_for(records);
        (records * record + align_of::<Node<X>>() - 1, buckets * bucket + align_of::<u32>() - 1)
    }

    /// As many buckets as records, or more, so that they never have to grow.
    const fn buckets_for(records: usize) -> usize {
        let buckets = records.next_power_of_two();
        if buckets < 2 { 2 } else { buckets }
    }

    /// Makes room for exactly `records` records and as many buckets as are worth it, all at once.
    pub(crate) fn preallocate(&mut self, records: usize) -> Result<(), PlacementError> {
        let more = records.saturating_sub(self.nodes.len());
        self.nodes.try_reserve_exact(more).map_err(|_| PlacementError::NoMetadata)?;
        if Self::buckets_for(records) > self.buckets.len() {
            self.rehash(Self::buckets_for(records))?;
        }
        Ok(())
    }

    pub(crate) fn nodes(&mut self) -> &mut [Node<X>] {
        &mut self.nodes
    }

    pub(crate) fn nodes_ref(&self) -> &[Node<X>] {
        &self.nodes
    }

    /// Number of live spans.
    pub(crate) const fn live(&self) -> u32 {
        self.live
    }

    /// Length of all spaces together.
    pub(crate) const fn total(&self) -> u64 {
        self.total
    }

    /// Makes sure that `records` can be taken, and one more live record be entered.
    #[inline(always)]
    pub(crate) fn reserve(&mut self, records: u32) -> Result<(), PlacementError> {
        if self.spares >= records && (self.live as usize) < self.buckets.len() {
            return Ok(());
        }
        self.reserve_slow(records)
    }

    #[cold]
    fn reserve_slow(&mut self, records: u32) -> Result<(), PlacementError> {
        let missing = records.saturating_sub(self.spares) as usize;
        if self.nodes.len() + missing >= NIL as usize {
            return Err(PlacementError::NoMetadata);
        }
        self.nodes.try_reserve(missing).map_err(|_| PlacementError::NoMetadata)?;
        // Buckets that are too few only cost time, so a failure to get more is one only when there are none.
        if self.live as usize >= self.buckets.len() {
            let wanted = (self.buckets.len() * 2).max(16);
            let grown = self.rehash(wanted);
            if self.buckets.is_empty() {
                grown?;
            }
        }
        // A handful at a time, so that the fast way above is the usual one; the lowest of them is taken first.
        let first = self.nodes.len();
        let room = (self.nodes.capacity() - first).min(NIL as usize - first);
        let end = first + room.min(missing.max(64));
        self.nodes.extend((first..end).map(|node| Node::spare(node as u32 + 1)));
        if let Some(last) = self.nodes[first..].last_mut() {
            last.link = core::mem::replace(&mut self.spare, first as u32);
        }
        self.spares += (end - first) as u32;
        Ok(())
    }

    fn rehash(&mut self, buckets: usize) -> Result<(), PlacementError> {
        let more = buckets - self.buckets.len();
        self.buckets.try_reserve_exact(more).map_err(|_| PlacementError::NoMetadata)?;
        self.buckets.clear();
        self.buckets.resize(buckets, NIL);
        self.shift = 64 - buckets.trailing_zeros();
        for node in 0..self.nodes.len() as u32 {
            if self[node].kind() == Kind::Live {
                self.enter(node);
            }
        }
        Ok(())
    }

    /// Takes a spare record. Only after [`reserve`](Self::reserve).
    #[inline(always)]
    fn take(&mut self) -> u32 {
        let node = self.spare;
        self.spare = self[node].link;
        self.spares -= 1;
        node
    }

    #[inline(always)]
    fn give(&mut self, node: u32) {
        let spare = self.spare;
        let record = &mut self[node];
        record.become_spare();
        record.link = spare;
        self.spare = node;
        self.spares += 1;
    }

    /// A new hole record right before `at` in its ring. Only after [`reserve`](Self::reserve).
    #[inline(always)]
    pub(crate) fn insert_before(&mut self, at: u32, span: Span) -> u32 {
        let node = self.take();
        let prev = self[at].prev;
        self[prev].next = node;
        self[at].prev = node;
        let record = &mut self[node];
        (record.offset, record.len, record.prev, record.next) = (span.offset, span.len, prev, at);
        record.become_hole();
        node
    }

    /// A new hole record right after `at` in its ring. Only after [`reserve`](Self::reserve).
    #[inline(always)]
    pub(crate) fn insert_after(&mut self, at: u32, span: Span) -> u32 {
        let next = self[at].next;
        self.insert_before(next, span)
    }

    /// Takes a record out of its ring; it becomes spare.
    #[inline(always)]
    pub(crate) fn unlink(&mut self, node: u32) {
        let (prev, next) = (self[node].prev, self[node].next);
        self[prev].next = next;
        self[next].prev = prev;
        self.give(node);
    }

    #[inline(always)]
    fn bucket(&self, offset: u64) -> usize {
        (offset.wrapping_mul(GOLDEN) >> self.shift) as usize
    }

    #[inline(always)]
    fn enter(&mut self, node: u32) {
        let bucket = self.bucket(self[node].offset);
        self[node].link = core::mem::replace(&mut self.buckets[bucket], node);
    }

    /// A hole that is in no index any more becomes live.
    #[inline(always)]
    pub(crate) fn make_live(&mut self, node: u32, slack: u64) {
        let record = &mut self[node];
        record.become_live(slack);
        let len = record.len;
        self.free -= len;
        self.live += 1;
        self.enter(node);
    }

    /// The live record of exactly `span`.
    pub(crate) fn find_live(&self, span: Span) -> Option<u32> {
        self.seek(span).map(|found| found.node)
    }

    /// Where the live record of exactly `span` is in its bucket.
    #[inline(always)]
    pub(crate) fn seek(&self, span: Span) -> Option<Found> {
        let bucket = self.bucket(span.offset);
        let (mut before, mut node) = (NIL, *self.buckets.get(bucket)?);
        while node != NIL {
            let record = &self[node];
            if record.offset == span.offset {
                let right = record.len == span.len && !record.is_waiting();
                return right.then_some(Found { bucket, before, node });
            }
            (before, node) = (node, record.link);
        }
        None
    }

    /// Finds the live record of exactly `span`, takes it out of its bucket and makes it a hole in no index.
    #[inline(always)]
    pub(crate) fn make_hole(&mut self, span: Span) -> Option<u32> {
        let found = self.seek(span)?;
        Some(self.make_found_hole(found))
    }

    /// Takes a live record out of its bucket and makes it a hole in no index.
    #[inline(always)]
    pub(crate) fn make_found_hole(&mut self, found: Found) -> u32 {
        self.free += self[found.node].len;
        self.live -= 1;
        self.unbucket(found)
    }

    #[inline(always)]
    fn unbucket(&mut self, Found { bucket, before, node }: Found) -> u32 {
        let record = &mut self[node];
        let link = record.link;
        record.become_hole();
        if before == NIL {
            self.buckets[bucket] = link;
        } else {
            self[before].link = link;
        }
        node
    }

    /// A live record waits from now on; it stays in its bucket.
    #[inline(always)]
    pub(crate) fn wait(&mut self, node: u32) {
        self[node].become_waiting();
    }

    /// A record that waits is live again.
    #[inline(always)]
    pub(crate) fn revive(&mut self, node: u32, slack: u64) {
        self[node].become_live(slack);
    }

    /// A record that waits becomes a hole in no index.
    pub(crate) fn end_wait(&mut self, node: u32) {
        let bucket = self.bucket(self[node].offset);
        let (mut before, mut at) = (NIL, self.buckets[bucket]);
        while at != node {
            (before, at) = (at, self[at].link);
        }
        self.make_found_hole(Found { bucket, before, node });
    }

    /// Makes a ring for `space` with one hole in no index, joined with the spaces that it touches. Only after
    /// [`reserve`](Self::reserve)`(2)`. Gives the hole.
    pub(crate) fn open(&mut self, space: Span) -> Result<u32, PlacementError> {
        let Some(end) = space.end() else { return Err(PlacementError::BadSpan { span: space }) };
        let (mut below, mut above) = (NIL, self.spaces);
        while above != NIL && self[above].offset <= space.offset {
            (below, above) = (above, self[above].link);
        }
        if [below, above].iter().any(|&ring| ring != NIL && self[ring].span().overlaps(&space)) {
            return Err(PlacementError::Overlap { span: space });
        }
        let ring = self.take();
        let record = &mut self[ring];
        (record.offset, record.len, record.prev, record.next) = (space.offset, space.len, ring, ring);
        record.become_space();
        record.link = above;
        if below == NIL {
            self.spaces = ring;
        } else {
            self[below].link = ring;
        }
        let hole = self.insert_before(ring, space);
        self.free += space.len;
        self.total += space.len;
        if above != NIL && self[above].offset == end {
            self.join(ring, above);
        }
        if below != NIL && self[below].span().end() == Some(space.offset) {
            self.join(below, ring);
        }
        Ok(hole)
    }

    /// Appends the ring `above` to the ring right `below` it.
    fn join(&mut self, below: u32, above: u32) {
        let (last, first, end) = (self[below].prev, self[above].next, self[above].prev);
        self[last].next = first;
        self[first].prev = last;
        self[end].next = below;
        self[below].prev = end;
        let (len, link) = (self[above].len, self[above].link);
        self[below].len += len;
        self[below].link = link;
        self.give(above);
    }

    /// Takes `hole`, which is in no index, out of the managed space; its ring is divided there. Only after
    /// [`reserve`](Self::reserve)`(1)`.
    pub(crate) fn close(&mut self, hole: u32) {
        let span = self[hole].span();
        let (mut before, mut ring) = (NIL, self.spaces);
        while self[ring].offset + (self[ring].len - 1) < span.offset {
            (before, ring) = (ring, self[ring].link);
        }
        let (space, first, last) = (self[ring].span(), self[ring].next, self[ring].prev);
        self.free -= span.len;
        self.total -= span.len;
        if first == hole && last == hole {
            let link = self[ring].link;
            if before == NIL {
                self.spaces = link;
            } else {
                self[before].link = link;
            }
            self.unlink(hole);
            self.give(ring);
        } else if first == hole {
            self[ring].offset += span.len;
            self[ring].len -= span.len;
            self.unlink(hole);
        } else if last == hole {
            self[ring].len -= span.len;
            self.unlink(hole);
        } else {
            let (prev, next) = (self[hole].prev, self[hole].next);
            let upper = self.take();
            let link = core::mem::replace(&mut self[ring].link, upper);
            self[ring].len = span.offset - space.offset;
            self[ring].prev = prev;
            self[prev].next = ring;
            let record = &mut self[upper];
            record.offset = span.offset + span.len;
            record.len = space.len - (record.offset - space.offset);
            (record.prev, record.next, record.link) = (last, next, link);
            record.become_space();
            self[next].prev = upper;
            self[last].next = upper;
            self.give(hole);
        }
    }

    /// The record that the first unit of `span` belongs to, if all of `span` lies in one space. Takes time in proportion
    /// to the records of that space.
    pub(crate) fn record_at(&self, span: Span) -> Result<u32, PlacementError> {
        let Some(end) = span.end().filter(|_| span.len != 0) else {
            return Err(PlacementError::BadSpan { span });
        };
        let ends_by = |node: u32, at: u64| self[node].span().end().is_some_and(|end| end <= at);
        let mut ring = self.spaces;
        while ring != NIL && ends_by(ring, span.offset) {
            ring = self[ring].link;
        }
        if ring == NIL || self[ring].offset > span.offset || self[ring].span().end() < Some(end) {
            return Err(PlacementError::Outside { span });
        }
        let mut node = self[ring].next;
        while ends_by(node, span.offset) {
            node = self[node].next;
        }
        Ok(node)
    }

    /// The hole that all of `span` lies in, or why there is none.
    pub(crate) fn hole_around(&self, span: Span) -> Result<u32, PlacementError> {
        let node = self.record_at(span)?;
        let record = &self[node];
        if record.is_hole() && record.span().end() >= span.end() {
            Ok(node)
        } else {
            Err(PlacementError::InUse { span })
        }
    }

    /// Shows every record but spare ones to `see`, in order of address, each space before what lies in it.
    pub(crate) fn walk(&self, see: &mut dyn FnMut(u32, &Node<X>)) {
        let mut ring = self.spaces;
        while ring != NIL {
            see(ring, &self[ring]);
            let mut node = self[ring].next;
            while node != ring {
                see(node, &self[node]);
                node = self[node].next;
            }
            ring = self[ring].link;
        }
    }
}
