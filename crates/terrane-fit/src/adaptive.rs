//! The engine that watches its requests and changes how it serves them.
//!
//! Invariants: every hole is in the lists of [`Bins`], whatever has been decided; a record waits only if its length is one
//! that the rounding of then or before gives. `mean` is a running mean of the lengths searched for, in 256ths.
//!
//! Protocol. All ways of serving a request share one set of holes and differ only in two respects, so that changing from one
//! to the other moves no span and rebuilds no index: which length is placed, and whether a vacated span merges or waits.
//!
//! | rounding | spans wait | acts as                                               | suits                               |
//! |----------|------------|-------------------------------------------------------|-------------------------------------|
//! | exact    | no         | two-level segregated fit                              | little room; stacks and queues      |
//! | eighths  | no         | the same, with spans that can take each other's place | room, nothing known yet             |
//! | eighths  | yes        | lists of blocks by size class                         | room, and lives of random length    |
//! | quarters | either     | a buddy system with four times as many lengths        | lengths that grow a little at a time |
//!
//! [`Watch`] decides between them; spans placed under the old rounding vacate under it, and those that wait for nothing any
//! more are merged a few for each look. With any of them, a length below the running mean is short and is cut from the high
//! end of its hole, any other from the low end, so that short spans gather at one end and long ones at the other: a short
//! span that lives on between two long ones would keep their holes apart. The mean follows the stream within a few hundred
//! requests; where all lengths are alike, nothing is short.

use crate::engine::{Engine, Policy};
use crate::node::Node;
use crate::tlsf::Bins;
use crate::waiting::Waiting;
use crate::watch::{Rounding, Watch, step};
use allocator_api2::alloc::Allocator;

/// Binary logarithm of the number of requests over which the mean is taken.
const MEAN: u32 = 8;

/// Watches its requests and changes how it serves them: with room, it rounds lengths and keeps vacated spans for the next
/// request of their class; without, or where merging is easy, it is two-level segregated fit; where lengths grow a little at a
/// time, it rounds coarsely. Short spans lie at one end of the space, long ones at the other.
///
/// A request takes constant time, but for one that finds no room at first: it merges all that waits, at most 512 spans, and
/// then searches as [`Tlsf`](crate::Tlsf) does. A span may be up to a quarter longer than asked for. The engine itself takes
/// 17 KiB beside its metadata. [`standing`](Engine::standing) tells what it does at the moment.
pub type Adaptive<A = allocator_api2::alloc::Global> = Engine<Choosing, A>;

/// How an [`Adaptive`] engine serves requests at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// What lengths are rounded to.
    pub rounding: Rounding,
    /// Whether vacated spans wait for a request of their length, unmerged.
    pub waits: bool,
    /// How many wait now.
    pub waiting: u32,
    /// How often either has changed.
    pub switches: u64,
}

impl<A: Allocator> Adaptive<A> {
    /// How requests are served at the moment.
    pub const fn standing(&self) -> Standing {
        let policy = self.policy();
        Standing {
            rounding: policy.watch.rounding(),
            waits: policy.watch.waits(),
            waiting: policy.waiting.count(),
            switches: policy.watch.switches(),
        }
    }
}

/// The index of [`Adaptive`].
#[derive(Clone)]
pub struct Choosing {
    bins: Bins,
    watch: Watch,
    waiting: Waiting,
    /// In 256ths.
    mean: u64,
}

const _: () = assert!(size_of::<Choosing>() < 17 << 10, "as `Adaptive` says");

/// A number for each multiple of `2^step` that is a length to round to; as many to a step as the finest rounding has.
#[inline(always)]
const fn class_of(len: u64, step: u32) -> usize {
    ((step as usize) << Rounding::Eighths.bits()) + (len >> step) as usize
}

impl Policy for Choosing {
    type Extra = ();

    fn new(shift: u32) -> Self {
        Self { bins: Bins::new(shift), watch: Watch::new(), waiting: Waiting::new(), mean: 0 }
    }

    #[inline(always)]
    fn insert(&mut self, nodes: &mut [Node<()>], hole: u32) {
        self.watch.count_lone();
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
        if !self.watch.alone() {
            return Some((hole, low));
        }
        let record = &nodes[hole as usize];
        if self.watch.compares() {
            self.watch.compare(&self.bins, record, len);
        }
        // Exact below 2⁵⁵; longer ones, of which 256ths do not fit, count as that much.
        let counted = len.min(u64::MAX >> (MEAN + 1));
        if self.mean == 0 {
            self.mean = counted << MEAN;
        }
        self.mean = self.mean - (self.mean >> MEAN) + counted;
        if counted >= self.mean >> MEAN {
            return Some((hole, low));
        }
        let high = (record.offset + (record.len - len)) & !(align - 1);
        Some((hole, high))
    }

    fn largest(&self, nodes: &[Node<()>]) -> u64 {
        self.bins.largest(nodes)
    }

    const WAITS: bool = true;

    #[inline(always)]
    fn recall(&mut self, nodes: &[Node<()>], len: u64, align: u64) -> (u64, Option<u32>) {
        let rounding = self.watch.rounding();
        if rounding == Rounding::Exact {
            return (len, None);
        }
        let step = step(len, rounding.bits(), self.bins.shift());
        let mask = (1 << step) - 1;
        let Some(sum) = len.checked_add(mask) else { return (len, None) };
        let ample = sum & !mask;
        if self.waiting.count() == 0 {
            return (ample, None);
        }
        (ample, self.waiting.pop(nodes, class_of(ample, step), ample, align))
    }

    #[inline(always)]
    fn keep(&mut self, node: u32, len: u64) -> bool {
        if !self.watch.waits() {
            return false;
        }
        let step = step(len, self.watch.rounding().bits(), self.bins.shift());
        len & ((1 << step) - 1) == 0 && self.waiting.push(class_of(len, step), node, len)
    }

    #[inline(always)]
    fn kept(&self) -> (u32, u64) {
        (self.waiting.count(), self.waiting.units())
    }

    fn each_kept(&self, see: &mut dyn FnMut(u32)) {
        self.waiting.each(see);
    }

    fn release(&mut self, nodes: &[Node<()>], all: bool) -> Option<u32> {
        if all || !self.watch.waits() { self.waiting.give_up(nodes) } else { self.waiting.pass(nodes) }
    }

    #[inline(always)]
    fn tick(&mut self) -> bool {
        self.watch.tick()
    }

    fn observe(&mut self, spans: u32, holes: u64, total: u64) {
        self.watch.look(spans, holes, total, || self.waiting.take_figures());
    }
}
