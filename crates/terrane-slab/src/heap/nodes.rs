//! Memory nodes: a heap serves its thread from the node that the thread runs on, and moves when the thread does.
//!
//! Invariant: while the domain keeps nodes apart, what the heap holds for its thread (lists, queues, cached large blocks) is
//! memory of its node, unless that node had none left. The heap has a name of its own on each node, so that a block of a slab
//! that it left behind is not taken for one at home: it goes back to its slab, and with it to its node.

use super::*;

/// Misses that are served on a node before the heap moves again, so that a thread that is sent to and fro does not park all
/// its slabs at every turn.
const STAY: u32 = 256;

impl<S: PageSource, K: Sharing, O: Observer> Heap<S, K, O> {
    /// Moves the heap to the node that its thread runs on, if nodes are kept apart and it runs on another.
    #[inline]
    pub(super) fn follow_thread(&mut self, lists: &Lists) {
        if self.domain().nodes() > 1 {
            self.look_at_node(lists);
            lists.large.settle_on(self.node);
        }
    }

    #[cold]
    fn look_at_node(&mut self, lists: &Lists) {
        self.stay = self.stay.saturating_sub(1);
        if self.stay == 0 {
            let node = self.domain().current_node();
            if node != self.node {
                self.abandon(lists);
                self.attach(lists, node);
                self.stay = STAY;
            }
        }
    }

    /// Takes the name that the heap has on `node`; a new one, if it was not there before and there are names left.
    pub(super) fn settle_on(&mut self, node: u32) {
        self.node = node;
        self.segment = ptr::null();
        let place = node as usize % SHARDS;
        if self.names[place] == 0 {
            self.names[place] = self.domain().name_heap().unwrap_or(self.name);
        }
        self.name = self.names[place];
    }

    /// Whether a block of this segment is near to the heap's thread.
    #[inline]
    pub(super) fn is_near(&self, segment: *const Segment) -> bool {
        // SAFETY: callers hold a block of the segment, so it is live.
        self.domain().is_near(unsafe { &*segment }, self.node)
    }
}
