//! First fit and next fit: the lowest hole that is long enough, from the bottom or from where the last search ended.
//!
//! Invariant: every hole is in the tree, in order of offset, and each subtree knows its longest hole.
//!
//! Protocol: subtrees without a hole that is long enough are passed over, so the search takes one path. Shortening a hole
//! or widening it changes no order, only the lengths on its path. With an alignment above the granule the search goes on
//! behind each hole that is long enough only without padding.

use crate::engine::{Engine, Policy};
use crate::node::{NIL, Node};
use crate::tree::{Branch, Order, Tree};

/// First fit: the hole at the lowest offset. Keeps the upper end of a space free, which suits giving it back.
///
/// O(log n) for n holes; with an alignment above the granule O(k log n), k holes that are long enough only without padding.
pub type FirstFit<A = allocator_api2::alloc::Global> = Engine<ByOffset<false>, A>;

/// Next fit: goes round the space from hole to hole. Spans placed one after the other lie one after the other, which suits
/// streams whose spans die in the order in which they were placed.
///
/// It costs what [`FirstFit`] costs.
pub type NextFit<A = allocator_api2::alloc::Global> = Engine<ByOffset<true>, A>;

/// The index of [`FirstFit`] and of [`NextFit`] (`ROVING`): a tree of holes by offset.
#[derive(Clone)]
pub struct ByOffset<const ROVING: bool> {
    tree: Tree,
    /// Where the next search begins, if `ROVING`.
    rover: u64,
}

struct Offset;

impl Order for Offset {
    type Extra = Branch;
    #[inline(always)]
    fn before(a: &Node<Branch>, b: &Node<Branch>) -> bool {
        a.offset < b.offset
    }
}

impl<const ROVING: bool> ByOffset<ROVING> {
    fn find_from(&self, nodes: &[Node<Branch>], mut from: u64, len: u64, align: u64) -> Option<(u32, u64)> {
        loop {
            let hole = self.tree.first_long_from(nodes, from, len);
            if hole == NIL {
                return None;
            }
            let record = &nodes[hole as usize];
            if let Some(offset) = record.fit(len, align) {
                return Some((hole, offset));
            }
            from = record.offset + 1;
        }
    }
}

impl<const ROVING: bool> Policy for ByOffset<ROVING> {
    type Extra = Branch;

    fn new(_: u32) -> Self {
        Self { tree: Tree::new(), rover: 0 }
    }

    fn insert(&mut self, nodes: &mut [Node<Branch>], hole: u32) {
        self.tree.insert::<Offset>(nodes, hole);
    }

    fn remove(&mut self, nodes: &mut [Node<Branch>], hole: u32, _: u64) {
        self.tree.remove(nodes, hole);
    }

    fn resize(&mut self, nodes: &mut [Node<Branch>], hole: u32, _: u64) {
        self.tree.relen(nodes, hole);
    }

    fn find(&mut self, nodes: &[Node<Branch>], len: u64, align: u64) -> Option<(u32, u64)> {
        let found = self.find_from(nodes, if ROVING { self.rover } else { 0 }, len, align);
        let found = if ROVING && found.is_none() && self.rover != 0 {
            self.find_from(nodes, 0, len, align)
        } else {
            found
        };
        if ROVING && let Some((_, offset)) = found {
            // The hole's rest begins where the span ends.
            self.rover = offset + len;
        }
        found
    }

    fn largest(&self, nodes: &[Node<Branch>]) -> u64 {
        self.tree.longest(nodes)
    }
}
