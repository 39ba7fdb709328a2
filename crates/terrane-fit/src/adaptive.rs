//! The engine that watches the lengths asked for and chooses from which end of a hole each span is cut.
//!
//! Invariants: every hole is in the lists of [`Bins`]; `mean` is a running mean of the lengths asked for, in 256ths.
//!
//! Protocol: holes are found as by [`Tlsf`](crate::Tlsf), in constant time. What is left to choose is where in the hole the
//! span goes. Streams that fragment a space mix lengths: a short span that lives on between two long ones keeps their holes
//! apart. So a length below the running mean is short, and is cut from the high end of its hole, any other from the low end; in every hole, and in the fresh space above all, short spans gather at one end and long ones at the other. The
//! mean follows the stream within a few hundred requests, so the border moves when the stream's phase changes; where all
//! lengths are alike, nothing is short and the engine is `Tlsf`.
//!
//! Changing the border moves no span and rebuilds no index, which is why this engine has nothing to drain and no estimates
//! to keep of what others would have done. Changing whole engines was measured and left out: best fit and first fit take
//! four times the time, and on no trace of [`Workload`](crate::Workload) save one part in a hundred of the space.

use crate::engine::{Engine, Policy};
use crate::node::Node;
use crate::tlsf::Bins;

/// Binary logarithm of the number of requests over which the mean is taken.
const WINDOW: u32 = 8;

/// Finds holes as [`Tlsf`](crate::Tlsf) does, in constant time, and learns from the stream which lengths are short: short
/// spans go to the high end of their hole, long ones to the low end, so that the one do not divide the holes of the other.
pub type Adaptive<A = allocator_api2::alloc::Global> = Engine<Choosing, A>;

/// The index of [`Adaptive`].
#[derive(Clone)]
pub struct Choosing {
    bins: Bins,
    mean: u64,
}

impl Policy for Choosing {
    type Extra = ();

    fn new(shift: u32) -> Self {
        Self { bins: Bins::new(shift), mean: 0 }
    }

    #[inline(always)]
    fn insert(&mut self, nodes: &mut [Node<()>], hole: u32) {
        self.bins.insert(nodes, hole);
    }

    #[inline(always)]
    fn remove(&mut self, nodes: &mut [Node<()>], hole: u32, len: u64) {
        self.bins.remove(nodes, hole, len);
    }

    #[inline(always)]
    fn resize(&mut self, nodes: &mut [Node<()>], hole: u32, len: u64) {
        self.bins.resize(nodes, hole, len);
    }

    #[inline(always)]
    fn find(&mut self, nodes: &[Node<()>], len: u64, align: u64) -> Option<(u32, u64)> {
        let (hole, low) = self.bins.find(nodes, len, align)?;
        // Exact below 2⁵⁵; longer ones, of which 256ths do not fit, count as that much.
        let counted = len.min(u64::MAX >> (WINDOW + 1));
        if self.mean == 0 {
            self.mean = counted << WINDOW;
        }
        self.mean = self.mean - (self.mean >> WINDOW) + counted;
        if counted >= self.mean >> WINDOW {
            return Some((hole, low));
        }
        let record = &nodes[hole as usize];
        let high = (record.offset + (record.len - len)) & !(align - 1);
        Some((hole, high))
    }

    fn largest(&self, nodes: &[Node<()>]) -> u64 {
        self.bins.largest(nodes)
    }
}
