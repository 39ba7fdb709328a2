//! Memory nodes of a domain: whose memory a range of addresses is, and binding it there.
//!
//! Invariant: while nodes are kept apart, an arena's memory is asked of its node, so the node of any block is that of its
//! arena. Asking is a preference: a full node is helped out by others, and a system that binds nothing leaves memory less near.
//!
//! ```text
//!   thread on node N ── heap of node N ── shelves of node N ── arenas of node N ── memory of node N
//!        └ its frees of blocks of node M ─▶ slab's remote list ─▶ shelf of node M
//! ```

use crate::domain::{Domain, SHARDS};
use crate::segment::{SEGMENT_BYTES, SEGMENT_SHIFT, Segment};
use crate::sharing::Sharing;
use crate::slab::HeapId;
use core::ptr::NonNull;
use terrane_core::{Observer, PageSource};

impl<S: PageSource, K: Sharing, O: Observer> Domain<S, K, O> {
    /// Says how many NUMA nodes are to be kept apart, from now on; 0 and 1 both mean that all memory is alike. Heaps follow
    /// their threads to their nodes when they next run out of blocks. Memory that was touched before stays where it is.
    pub fn set_nodes(&self, nodes: u32) {
        self.store_nodes(nodes);
        for arena in self.arenas().filter(|_| nodes > 1) {
            let start = NonNull::new(arena.base()).expect("an arena that is filled in has an address");
            // SAFETY: arenas are live reservations of the source.
            unsafe { self.prefer(start, arena.segments() * SEGMENT_BYTES, arena.node()) };
        }
    }

    /// Asks for a range's memory from `node`.
    ///
    /// # Safety
    /// The range lies in a live reservation of the source.
    pub(crate) unsafe fn prefer(&self, start: NonNull<u8>, bytes: usize, node: u32) {
        // Binding is a preference: without it memory is only less near.
        // SAFETY: the caller's promise.
        let _ = unsafe { self.source.bind(start, bytes, node) };
    }

    /// Whether a thread of `node` has the segment's memory near.
    #[inline]
    pub(crate) fn is_near(&self, segment: &Segment, node: u32) -> bool {
        self.nodes() <= 1 || segment.node == node
    }

    /// The same for a segment that another thread may be giving back, so that its header is not to be read.
    pub(crate) fn is_near_number(&self, number: u64, node: u32) -> bool {
        let address = (number as usize) << SEGMENT_SHIFT;
        self.nodes() <= 1
            || self.arenas().any(|arena| {
                let offset = address.wrapping_sub(arena.base().addr());
                arena.node() == node && offset < arena.segments() * SEGMENT_BYTES
            })
    }

    /// The shelves of a node: the first, and how many.
    pub(crate) fn shelves_of(&self, node: u32) -> (usize, usize) {
        let nodes = (self.nodes() as usize).clamp(1, SHARDS);
        let each = SHARDS / nodes;
        (node as usize % nodes * each, each)
    }

    /// The shelf of a node that a heap of this name uses.
    pub(crate) fn shard_of(&self, node: u32, name: HeapId) -> usize {
        let (first, each) = self.shelves_of(node);
        first + name as usize % each
    }
}
