//! Best fit: the shortest hole that is long enough, the lowest one among equals.
//!
//! Invariant: every hole is in the tree, in order of length, then of offset.
//!
//! Protocol: a search finds the first hole of at least the length asked for. With an alignment above the granule the holes
//! after it are tried in order; one that is longer than length and padding together ends the search at the latest.

use crate::engine::{Engine, Policy};
use crate::node::{NIL, Node};
use crate::tree::{Order, Tree, Twig};

/// Best fit over a tree ordered by length and address: O(log n) for n holes, and usually the least space.
///
/// With an alignment above the granule it is O(log n + k), k holes that are long enough only without padding.
pub type BestFit<A = allocator_api2::alloc::Global> = Engine<ByLength, A>;

/// The index of [`BestFit`]: a tree of holes by length, then by offset.
#[derive(Clone)]
pub struct ByLength {
    tree: Tree,
}

struct LengthThenOffset;

impl Order for LengthThenOffset {
    type Extra = Twig;
    #[inline(always)]
    fn before(a: &Node<Twig>, b: &Node<Twig>) -> bool {
        (a.len, a.offset) < (b.len, b.offset)
    }
}

impl Policy for ByLength {
    type Extra = Twig;

    fn new(_: u32) -> Self {
        Self { tree: Tree::new() }
    }

    fn insert(&mut self, nodes: &mut [Node<Twig>], hole: u32) {
        self.tree.insert::<LengthThenOffset>(nodes, hole);
    }

    fn remove(&mut self, nodes: &mut [Node<Twig>], hole: u32, _: u64) {
        self.tree.remove(nodes, hole);
    }

    fn find(&mut self, nodes: &[Node<Twig>], len: u64, align: u64) -> Option<(u32, u64)> {
        let mut hole = self.tree.first_where(nodes, |node| node.len >= len);
        while hole != NIL {
            if let Some(offset) = nodes[hole as usize].fit(len, align) {
                return Some((hole, offset));
            }
            hole = self.tree.after(nodes, hole);
        }
        None
    }

    fn largest(&self, nodes: &[Node<Twig>]) -> u64 {
        match self.tree.last(nodes) {
            NIL => 0,
            hole => nodes[hole as usize].len,
        }
    }
}
