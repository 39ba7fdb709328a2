//! A treap over holes (Seidel, Aragon: "Randomized search trees", 1996): the index of the engines that keep an order.
//!
//! Invariants: in order of `Order::before`, left subtree, node, right subtree; no node has a higher priority than its
//! parent. A node's priority is a hash of the number of its record, so a tree has one shape whatever the history, about
//! 1.4 log₂ n deep on average. With `Order::LONGEST`, `longest` of a node is the largest length in its subtree.
//!
//! Protocol: the left link of a node is `link` of its record, the right one is `state`, the upward one `up`. Nothing
//! recurses and nothing is set aside, so a tree of any size works in fixed memory.

use crate::node::{NIL, Node};

/// What a tree keeps in a record beside the links to its children.
#[derive(Clone, Copy, Debug, Default)]
pub struct Branch {
    up: u32,
    longest: u64,
}

/// What a tree without `longest` keeps in a record beside the links to its children.
#[derive(Clone, Copy, Debug, Default)]
pub struct Twig {
    up: u32,
}

const _: () =
    assert!(size_of::<Node<Twig>>() == 40 && size_of::<Node<Branch>>() == 48, "as the front page says");

pub(crate) trait Extra: Copy + Default {
    fn up(&self) -> u32;
    fn set_up(&mut self, up: u32);
    fn longest(&self) -> u64;
    fn set_longest(&mut self, longest: u64);
    /// Whether `longest` is kept.
    const LONGEST: bool;
}

impl Extra for Branch {
    const LONGEST: bool = true;
    fn up(&self) -> u32 {
        self.up
    }
    fn set_up(&mut self, up: u32) {
        self.up = up;
    }
    fn longest(&self) -> u64 {
        self.longest
    }
    fn set_longest(&mut self, longest: u64) {
        self.longest = longest;
    }
}

impl Extra for Twig {
    const LONGEST: bool = false;
    fn up(&self) -> u32 {
        self.up
    }
    fn set_up(&mut self, up: u32) {
        self.up = up;
    }
    fn longest(&self) -> u64 {
        0
    }
    fn set_longest(&mut self, _: u64) {}
}

/// The order that a tree keeps.
pub(crate) trait Order {
    type Extra: Extra;
    fn before(a: &Node<Self::Extra>, b: &Node<Self::Extra>) -> bool;
}

#[derive(Clone)]
pub(crate) struct Tree {
    pub(crate) root: u32,
}

/// A mixed hash of the number of a record: multiply and fold, so that neighbours get unrelated priorities.
#[inline(always)]
fn priority(node: u32) -> u32 {
    let mixed = (u64::from(node) + 1).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    ((mixed >> 32) ^ mixed.rotate_left(23)) as u32
}

#[inline(always)]
fn left<X>(nodes: &[Node<X>], node: u32) -> u32 {
    nodes[node as usize].link
}

#[inline(always)]
fn right<X>(nodes: &[Node<X>], node: u32) -> u32 {
    nodes[node as usize].state
}

fn longest<X: Extra>(nodes: &[Node<X>], node: u32) -> u64 {
    if node == NIL { 0 } else { nodes[node as usize].extra.longest() }
}

/// Computes `longest` of a node from its children; whether it has changed.
#[inline(always)]
fn pull<X: Extra>(nodes: &mut [Node<X>], node: u32) -> bool {
    let record = &nodes[node as usize];
    let below = longest(nodes, record.link).max(longest(nodes, record.state));
    let new = record.len.max(below);
    let changed = new != record.extra.longest();
    nodes[node as usize].extra.set_longest(new);
    changed
}

impl Tree {
    pub(crate) const fn new() -> Self {
        Self { root: NIL }
    }

    /// Puts `child` on one side of `up`, or at the root.
    #[inline(always)]
    fn hang<X: Extra>(&mut self, nodes: &mut [Node<X>], up: u32, is_left: bool, child: u32) {
        if up == NIL {
            self.root = child;
        } else if is_left {
            nodes[up as usize].link = child;
        } else {
            nodes[up as usize].state = child;
        }
        if child != NIL {
            nodes[child as usize].extra.set_up(up);
        }
    }

    /// Exchanges `node` with its parent, keeping the order.
    fn rotate_up<X: Extra>(&mut self, nodes: &mut [Node<X>], node: u32, up: u32) {
        let above = nodes[up as usize].extra.up();
        let is_left = above != NIL && left(nodes, above) == up;
        self.hang(nodes, above, is_left, node);
        let moved = if left(nodes, up) == node {
            let moved = core::mem::replace(&mut nodes[node as usize].state, up);
            nodes[up as usize].link = moved;
            moved
        } else {
            let moved = core::mem::replace(&mut nodes[node as usize].link, up);
            nodes[up as usize].state = moved;
            moved
        };
        if moved != NIL {
            nodes[moved as usize].extra.set_up(up);
        }
        nodes[up as usize].extra.set_up(node);
        if X::LONGEST {
            pull(nodes, up);
            pull(nodes, node);
        }
    }

    pub(crate) fn insert<O: Order>(&mut self, nodes: &mut [Node<O::Extra>], node: u32) {
        let len = nodes[node as usize].len;
        let (mut up, mut at, mut is_left) = (NIL, self.root, false);
        while at != NIL {
            let record = &mut nodes[at as usize];
            if O::Extra::LONGEST && record.extra.longest() < len {
                record.extra.set_longest(len);
            }
            up = at;
            is_left = O::before(&nodes[node as usize], &nodes[at as usize]);
            at = if is_left { left(nodes, at) } else { right(nodes, at) };
        }
        let record = &mut nodes[node as usize];
        (record.link, record.state) = (NIL, NIL);
        record.extra.set_longest(len);
        self.hang(nodes, up, is_left, node);
        while up != NIL && priority(up) < priority(node) {
            self.rotate_up(nodes, node, up);
            up = nodes[node as usize].extra.up();
        }
    }

    pub(crate) fn remove<X: Extra>(&mut self, nodes: &mut [Node<X>], node: u32) {
        let up = nodes[node as usize].extra.up();
        // Merge the two subtrees down a seam: the one with the higher priority comes first.
        let (mut a, mut b) = (left(nodes, node), right(nodes, node));
        let (mut seam, mut is_left) = (up, up != NIL && left(nodes, up) == node);
        while a != NIL && b != NIL {
            if priority(a) > priority(b) {
                self.hang(nodes, seam, is_left, a);
                (seam, is_left) = (a, false);
                a = right(nodes, a);
            } else {
                self.hang(nodes, seam, is_left, b);
                (seam, is_left) = (b, true);
                b = left(nodes, b);
            }
        }
        self.hang(nodes, seam, is_left, if a == NIL { b } else { a });
        if X::LONGEST {
            self.refresh(nodes, seam, up);
        }
    }

    /// Recomputes `longest` from `from` to the root; it may stop early only above `sure`.
    fn refresh<X: Extra>(&mut self, nodes: &mut [Node<X>], from: u32, sure: u32) {
        let (mut at, mut early) = (from, from == sure);
        while at != NIL {
            early |= at == sure;
            if !pull(nodes, at) && early {
                break;
            }
            at = nodes[at as usize].extra.up();
        }
    }

    /// `node` has a new length, which is not what the order goes by.
    #[inline(always)]
    pub(crate) fn relen<X: Extra>(&mut self, nodes: &mut [Node<X>], node: u32) {
        self.refresh(nodes, node, node);
    }

    /// The longest length in a tree that keeps it.
    pub(crate) fn longest<X: Extra>(&self, nodes: &[Node<X>]) -> u64 {
        longest(nodes, self.root)
    }

    /// The last node in order.
    pub(crate) fn last<X: Extra>(&self, nodes: &[Node<X>]) -> u32 {
        let mut at = self.root;
        while at != NIL && right(nodes, at) != NIL {
            at = right(nodes, at);
        }
        at
    }

    /// The first node for which `reached` holds; it must hold for all nodes after that one.
    #[inline(always)]
    pub(crate) fn first_where<X: Extra>(&self, nodes: &[Node<X>], reached: impl Fn(&Node<X>) -> bool) -> u32 {
        let (mut at, mut found) = (self.root, NIL);
        while at != NIL {
            let record = &nodes[at as usize];
            if reached(record) {
                (found, at) = (at, record.link);
            } else {
                at = record.state;
            }
        }
        found
    }

    /// The node after `node` in order.
    pub(crate) fn after<X: Extra>(&self, nodes: &[Node<X>], node: u32) -> u32 {
        let mut at = right(nodes, node);
        if at != NIL {
            while left(nodes, at) != NIL {
                at = left(nodes, at);
            }
            return at;
        }
        let mut from = node;
        at = nodes[node as usize].extra.up();
        while at != NIL && right(nodes, at) == from {
            (from, at) = (at, nodes[at as usize].extra.up());
        }
        at
    }

    /// The first node in the subtree of `at`, which has one, of at least `len` units.
    #[inline(always)]
    fn first_long<X: Extra>(nodes: &[Node<X>], mut at: u32, len: u64) -> u32 {
        loop {
            let record = &nodes[at as usize];
            if record.link != NIL && longest(nodes, record.link) >= len {
                at = record.link;
            } else if record.len >= len {
                return at;
            } else {
                at = record.state;
            }
        }
    }

    /// In a tree ordered by offset, the first node of at least `len` units that begins at `from` or above.
    pub(crate) fn first_long_from<X: Extra>(&self, nodes: &[Node<X>], from: u64, len: u64) -> u32 {
        if longest(nodes, self.root) < len {
            return NIL;
        }
        if from == 0 {
            return Self::first_long(nodes, self.root, len);
        }
        // Down to where `from` would be; the nodes that begin above it are met again on the way up, in order.
        let (mut at, mut up) = (self.root, NIL);
        while at != NIL {
            let record = &nodes[at as usize];
            (up, at) = (at, if record.offset < from { record.state } else { record.link });
        }
        while up != NIL {
            let record = &nodes[up as usize];
            if record.offset >= from {
                if record.len >= len {
                    return up;
                }
                if longest(nodes, record.state) >= len {
                    return Self::first_long(nodes, record.state, len);
                }
            }
            up = record.extra.up();
        }
        NIL
    }
}

#[cfg(test)]
mod tests {
    use super::{Branch, Extra, Order, Tree};
    use crate::node::{NIL, Node};

    struct ByOffset;
    impl Order for ByOffset {
        type Extra = Branch;
        fn before(a: &Node<Branch>, b: &Node<Branch>) -> bool {
            a.offset < b.offset
        }
    }

    /// Checks order, upward links and `longest`; gives depth and number of nodes.
    fn check(nodes: &[Node<Branch>], at: u32, up: u32, range: (u64, u64)) -> (u32, u32, u64) {
        if at == NIL {
            return (0, 0, 0);
        }
        let record = &nodes[at as usize];
        assert!(record.offset >= range.0 && record.offset < range.1, "order");
        assert_eq!(record.extra.up(), up, "upward link");
        let a = check(nodes, record.link, at, (range.0, record.offset));
        let b = check(nodes, record.state, at, (record.offset + 1, range.1));
        let longest = record.len.max(a.2).max(b.2);
        assert_eq!(record.extra.longest(), longest, "longest");
        (1 + a.0.max(b.0), 1 + a.1 + b.1, longest)
    }

    #[test]
    fn a_tree_keeps_order_and_longest_and_stays_shallow() {
        const N: u32 = 2000;
        let mut nodes: Vec<Node<Branch>> = (0..N)
            .map(|n| Node {
                offset: u64::from(n.wrapping_mul(2_654_435_761) % 1_000_003),
                len: u64::from(n * 37 % 1009),
                prev: NIL,
                next: NIL,
                link: NIL,
                state: NIL,
                extra: Branch::default(),
            })
            .collect();
        let mut tree = Tree::new();
        for n in 0..N {
            tree.insert::<ByOffset>(&mut nodes, n);
            if n % 3 == 2 {
                tree.remove(&mut nodes, n - 1);
            }
            if n % 50 == 0 {
                nodes[n as usize].len = u64::from(n % 7);
                tree.relen(&mut nodes, n);
                check(&nodes, tree.root, NIL, (0, u64::MAX));
            }
        }
        let (depth, count, _) = check(&nodes, tree.root, NIL, (0, u64::MAX));
        assert_eq!(count, N - N / 3);
        assert!(depth < 40, "{depth} levels for {count} nodes");
        let (mut seen, mut at) = (0, tree.first_where(&nodes, |_| true));
        let mut last = 0;
        while at != NIL {
            assert!(seen == 0 || nodes[at as usize].offset > last);
            (last, seen) = (nodes[at as usize].offset, seen + 1);
            at = tree.after(&nodes, at);
        }
        assert_eq!(seen, count);
    }

    #[test]
    fn the_first_long_node_from_an_offset_is_the_one_a_scan_finds() {
        const N: u32 = 300;
        let mut nodes: Vec<Node<Branch>> = (0..N)
            .map(|n| Node {
                offset: u64::from(n) * 10,
                len: u64::from(n.wrapping_mul(2_654_435_761) >> 20),
                prev: NIL,
                next: NIL,
                link: NIL,
                state: NIL,
                extra: Branch::default(),
            })
            .collect();
        let mut tree = Tree::new();
        (0..N).for_each(|n| tree.insert::<ByOffset>(&mut nodes, (n * 7) % N));
        for from in (0..3100).step_by(13) {
            for len in [0, 1, 100, 1000, 3000, 4000, 4095, 4096] {
                let scan = (0..N).find(|&n| nodes[n as usize].offset >= from && nodes[n as usize].len >= len);
                assert_eq!(tree.first_long_from(&nodes, from, len), scan.unwrap_or(NIL), "{from} {len}");
            }
        }
    }
}
