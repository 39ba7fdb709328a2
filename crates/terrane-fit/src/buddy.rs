//! The binary buddy system (Knowlton: "A fast storage allocator", 1965).
//!
//! Invariants: every record of a span or a hole is a block: its length is a power of two, at least the granule, and its
//! offset a multiple of its length. A hole of length 2ᵏ is in list k; bit k of `orders` is set exactly if list k has a hole.
//! No hole's buddy, the block at `offset ^ len`, is a hole of the same length.
//!
//! Protocol: a request is rounded up to a power of two, takes the shortest block that is long enough and halves it until
//! it fits. A vacated block joins its buddy as long as that is a hole of the same length; the buddy is a neighbour by
//! address, so no table is searched.

use crate::fixed::Fixed;
use crate::misuse::{Checked, check_space, misuse};
use crate::node::NIL;
use crate::spans::Spans;
use crate::survey::{Plot, Survey};
use allocator_api2::alloc::{Allocator, Global};
use core::mem::MaybeUninit;
use terrane_core::{PlaceError, Placement, PlacementError, Span};

/// A space of any length divides into at most two blocks of each order.
const BLOCKS: u32 = 128;

/// The binary buddy system: placing and vacating take at most one step per power of two, spans are powers of two at
/// multiples of their length, and what vacates always merges the same way.
///
/// The rounding costs a third of the space on average over all lengths; nothing else here wastes inside its spans.
pub struct Buddy<A: Allocator = Global> {
    spans: Spans<(), A>,
    orders: u64,
    heads: [u32; 64],
    granule: u64,
}

impl Buddy {
    /// An engine over no space yet, with blocks of one unit and more, and metadata from the global allocator.
    pub fn new() -> Self {
        Self::new_in(1, Global)
    }

    /// As [`new`](Self::new), with blocks of `granule` units and more.
    ///
    /// # Panics
    /// If `granule` is not a power of two.
    pub fn with_granule(granule: u64) -> Self {
        Self::new_in(granule, Global)
    }
}

impl Default for Buddy {
    fn default() -> Self {
        Self::new()
    }
}

impl<'b> Buddy<Fixed<'b>> {
    /// An engine whose metadata lies in `buffer` and never grows.
    ///
    /// # Panics
    /// If `granule` is not a power of two.
    pub fn in_buffer(granule: u64, buffer: &'b mut [MaybeUninit<u8>]) -> Self {
        Self::over(granule, Spans::in_buffer(buffer))
    }

    /// Bytes of a buffer with which `spans` spans can be live, however they lie, in `spaces` spaces of at most
    /// `2^order` units.
    pub const fn buffer_for(spans: usize, spaces: usize, order: u32) -> usize {
        Spans::<(), Fixed<'b>>::buffer_for(records(spans, spaces, order) + 3 * BLOCKS as usize)
    }
}

/// Records for `spans` live blocks in `spaces` spaces of at most `2^order` units.
const fn records(spans: usize, spaces: usize, order: u32) -> usize {
    // Each live block keeps at most one hole of each order beside it; a space may begin as two blocks of each order.
    let orders = order as usize + 1;
    spans.saturating_mul(orders).saturating_add(spaces.saturating_mul(2 * orders))
}

impl<A: Allocator> Buddy<A> {
    /// As [`with_granule`](Buddy::with_granule), with metadata from `allocator`.
    ///
    /// # Panics
    /// If `granule` is not a power of two.
    pub fn new_in(granule: u64, allocator: A) -> Self
    where
        A: Clone,
    {
        Self::over(granule, Spans::new_in(allocator.clone(), allocator))
    }

    fn over(granule: u64, spans: Spans<(), A>) -> Self {
        assert!(granule.is_power_of_two(), "a granule is a power of two, {granule} is not");
        Self { spans, orders: 0, heads: [NIL; 64], granule }
    }

    /// Sets memory aside for `spans` live spans, however they lie, in `spaces` spaces of at most `2^order` units, so that
    /// placing that many cannot fail for want of it and takes no time for it.
    ///
    /// # Errors
    /// [`PlacementError::NoMetadata`]; nothing has changed then.
    pub fn reserve(&mut self, spans: usize, spaces: usize, order: u32) -> Result<(), PlacementError> {
        self.spans.preallocate(records(spans, spaces, order))
    }

    /// Length of all spaces that were added and not removed.
    pub const fn capacity(&self) -> u64 {
        self.spans.total()
    }

    /// The unit that blocks are multiples of.
    pub const fn granule(&self) -> u64 {
        self.granule
    }

    /// Number of live spans.
    pub const fn live(&self) -> usize {
        self.spans.live() as usize
    }

    fn link(&mut self, node: u32) {
        let order = self.spans[node].len.trailing_zeros();
        let head = core::mem::replace(&mut self.heads[order as usize], node);
        self.orders |= 1 << order;
        (self.spans[node].link, self.spans[node].state) = (head, NIL);
        if head != NIL {
            self.spans[head].state = node;
        }
    }

    fn unlink(&mut self, node: u32) {
        let order = self.spans[node].len.trailing_zeros();
        let (after, before) = (self.spans[node].link, self.spans[node].state);
        if after != NIL {
            self.spans[after].state = before;
        }
        if before != NIL {
            self.spans[before].link = after;
        } else {
            self.heads[order as usize] = after;
            if after == NIL {
                self.orders &= !(1 << order);
            }
        }
    }

    /// Joins `node`, a block that is a hole in no list, with its buddy as often as that goes, and enters the result.
    fn settle(&mut self, mut node: u32) {
        loop {
            let (offset, len) = (self.spans[node].offset, self.spans[node].len);
            let buddy = offset ^ len;
            let near = if buddy < offset { self.spans[node].prev } else { self.spans[node].next };
            let record = &self.spans[near];
            if !record.is_hole() || record.offset != buddy || record.len != len {
                break self.link(node);
            }
            self.unlink(near);
            let (low, high) = if buddy < offset { (near, node) } else { (node, near) };
            self.spans.unlink(high);
            self.spans[low].len = 2 * len;
            node = low;
        }
    }

    /// Divides `node`, a hole in no list of any length, into blocks and enters them. Needs [`BLOCKS`] records.
    fn divide(&mut self, node: u32) {
        loop {
            let (offset, len) = (self.spans[node].offset, self.spans[node].len);
            let fits = 1 << (63 - len.leading_zeros());
            let block = if offset == 0 { fits } else { fits.min(1 << offset.trailing_zeros()) };
            if block == len {
                break self.settle(node);
            }
            (self.spans[node].offset, self.spans[node].len) = (offset + block, len - block);
            let low = self.spans.insert_before(node, Span::new(offset, block));
            // Together with holes below, `low` may become as long as what is left, which is in no list yet and so must not
            // look like a hole.
            self.spans[node].become_spare();
            self.settle(low);
            self.spans[node].become_hole();
        }
    }
}

impl<A: Allocator> Placement for Buddy<A> {
    fn add(&mut self, space: Span) -> Result<(), PlacementError> {
        check_space(space, self.granule)?;
        self.spans.reserve(2 + BLOCKS)?;
        let hole = self.spans.open(space)?;
        self.divide(hole);
        Ok(())
    }

    /// As the trait says, and also if `space` covers several blocks that are all holes.
    fn remove(&mut self, space: Span) -> Result<(), PlacementError> {
        check_space(space, self.granule)?;
        let first = self.spans.record_at(space)?;
        let end = space.offset + (space.len - 1);
        let mut node = first;
        loop {
            if !self.spans[node].is_hole() {
                return Err(PlacementError::InUse { span: space });
            }
            if self.spans[node].offset + (self.spans[node].len - 1) >= end {
                break;
            }
            node = self.spans[node].next;
        }
        self.spans.reserve(3 + 2 * BLOCKS)?;
        // All of it becomes one hole in no list, and is divided again around the part that goes.
        let last = node;
        self.unlink(first);
        while first != last && self.spans[first].next != last {
            let next = self.spans[first].next;
            self.unlink(next);
            self.spans[first].len += self.spans[next].len;
            self.spans.unlink(next);
        }
        if first != last {
            self.unlink(last);
            self.spans[first].len += self.spans[last].len;
            self.spans.unlink(last);
        }
        let whole = self.spans[first].span();
        let (below, above) = (space.offset - whole.offset, whole.offset + (whole.len - 1) - end);
        let mut middle = first;
        if below != 0 {
            self.spans[first].len = below;
            middle = self.spans.insert_after(first, Span::new(space.offset, whole.len - below));
        }
        if above != 0 {
            self.spans[middle].len = space.len;
            self.spans.insert_after(middle, Span::new(end + 1, above));
        }
        let rest = self.spans[middle].next;
        self.spans.close(middle);
        if below != 0 {
            self.divide(first);
        }
        if above != 0 {
            self.divide(rest);
        }
        Ok(())
    }

    fn place(&mut self, len: u64, align: u64) -> Result<Span, PlaceError> {
        if !align.is_power_of_two() {
            return Err(PlaceError::BadAlign { requested: align });
        }
        if len == 0 {
            return Err(PlaceError::BadLength { requested: len });
        }
        let block = len.checked_next_power_of_two().map(|block| block.max(align).max(self.granule));
        let orders = block.map_or(0, |block| self.orders & !(block - 1));
        if orders == 0 {
            let (free, largest) = (self.free_bytes(), self.largest_free());
            return Err(PlaceError::NoRoom { requested: len, free, largest });
        }
        let order = orders.trailing_zeros();
        let block = len.next_power_of_two().max(align).max(self.granule);
        self.spans.reserve(order - block.trailing_zeros()).map_err(|_| PlaceError::NoMetadata)?;
        let node = self.heads[order as usize];
        self.unlink(node);
        let mut half = 1 << order >> 1;
        while half >= block {
            let high = Span::new(self.spans[node].offset + half, half);
            self.spans[node].len = half;
            let high = self.spans.insert_after(node, high);
            self.link(high);
            half /= 2;
        }
        self.spans.make_live(node, block - len);
        Ok(self.spans[node].span())
    }

    fn vacate(&mut self, span: Span) {
        if let Err(error) = self.try_vacate(span) {
            misuse(error);
        }
    }

    fn free_bytes(&self) -> u64 {
        self.spans.free
    }

    fn largest_free(&self) -> u64 {
        if self.orders == 0 { 0 } else { 1 << (63 - self.orders.leading_zeros()) }
    }
}

impl<A: Allocator> Checked for Buddy<A> {
    fn is_live(&self, span: Span) -> bool {
        self.spans.find_live(span).is_some()
    }

    fn try_vacate(&mut self, span: Span) -> Result<(), PlacementError> {
        let Some(node) = self.spans.make_hole(span) else { return Err(PlacementError::NotPlaced { span }) };
        self.settle(node);
        Ok(())
    }
}

impl<A: Allocator> Survey for Buddy<A> {
    fn survey(&self, see: &mut dyn FnMut(Plot)) {
        self.spans.walk(&mut |_, node| see(Plot::of(node)));
    }
}
