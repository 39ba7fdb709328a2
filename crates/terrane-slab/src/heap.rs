//! Heaps: one thread's view of a domain. Queues of slabs, batches of remote frees, a cache of large blocks.
//!
//! ```text
//!   alloc: list ─miss─▶ alloc_miss ─▶ queue: fullest slab ─▶ its free list │ its remote list │ virgin blocks
//!                                       └ none ─▶ steal: a parked slab from a shelf of this node
//!                                                  └ none ─▶ make_slab: slices of a segment ─▶ arena ─▶ source
//!   free:  list ─miss─▶ free_miss  ─▶ at home, no room: cut the list back ─▶ give: slab's free list
//!                                       └ elsewhere: batch ─▶ send: claim a parked slab, or push to its word
//! ```
//!
//! Invariant: a heap is used by one thread at a time, and touches the local part of a slab only while the slab's word names
//! it as the owner. Slabs in its queues are owned by it. With [`Shared`](crate::sharing::Shared), a slab that runs out of
//! blocks is parked, and so are slabs beyond [`KEEP`] in a class: an idle heap strands only the few that it allocates from.
//! With [`Local`](crate::sharing::Local) nobody else could use a parked slab, so slabs stay owned.

mod giving_back;
mod long_blocks;
mod nodes;
mod remote;
mod small;

#[cfg(not(loom))]
pub(crate) use small::LONGEST_LIST;

use crate::depths::{Depths, MOST_BLOCKS};
use crate::domain::{Domain, SHARDS};
use crate::huge::MAX_HUGE;
use crate::large::{self, LargeCache};
use crate::lists::{self, Lists};
use crate::purge::PurgePolicy;
use crate::queue::Queue;
use crate::remote::Batches;
use crate::segment::{Kind, SLICE_BYTES, Segment, entry};
use crate::sharing::Sharing;
use crate::size_class::{self, CLASSES};
use crate::slab::{Block, Chain, HeapId, Misuse, Pushed, Slab};
use crate::stats::HeapCounters;
use core::marker::PhantomPinned;
use core::ptr::{self, NonNull};
use terrane_core::{Event, Observer, PageSource};

/// Slabs that a queue keeps; further ones are parked.
pub const KEEP: u32 = 4;

/// Slow-path calls between looks at the clock.
const CALLS_PER_LOOK: u32 = 64;

/// Looks at the clock between decisions about the lists that are busy.
const LOOKS_PER_DECISION: u32 = 32;

/// Looks in a row that find a list long before it is shortened, and not only kept from growing: what the thread frees now, it
/// will not soon allocate, and blocks that wait long are cold when they return.
const LONG_LOOKS: u8 = 64;

/// Bytes of virgin memory that a refill carves at once.
const CARVE_BYTES: u32 = 4096;

/// One thread's heap: see the [module](self).
#[derive(Debug)]
pub struct Heap<S, K, O = ()> {
    domain: *const Domain<S, K, O>,
    name: HeapId,
    node: u32,
    /// The names that the heap goes by on each node, 0 where it was not yet.
    names: [HeapId; SHARDS],
    /// Misses to serve before the next move to another node.
    stay: u32,
    random: u32,
    calls: u32,
    tick_at: u64,
    segment: *const Segment,
    queues: [Queue; CLASSES],
    rooms_at_tick: [i32; CLASSES],
    /// Slabs made since lists that are not used were last looked for.
    slabs_made: u32,
    unused: giving_back::Unused,
    depths: Depths,
    looks: u32,
    /// Blocks that the list of a class was too long for, to serve next when it is empty.
    aside: [*mut Block; CLASSES],
    /// Looks in a row that found a list long although a part was aside.
    long_looks: [u8; CLASSES],
    batches: Batches,
    large: LargeCache,
    counters: HeapCounters,
    /// Others read the counters while the thread has the heap to itself, so a `&mut` to it must promise the compiler nothing.
    _watched: PhantomPinned,
}

/// What a walk over a heap looks at.
#[cfg(not(loom))]
pub(crate) struct Parts<'a> {
    pub(crate) queues: &'a [Queue; CLASSES],
    pub(crate) aside: &'a [*mut Block; CLASSES],
    pub(crate) batches: &'a Batches,
    pub(crate) large: &'a LargeCache,
}

/// A chain for a thread's list, and whether its first block reads as zero beyond its link.
struct Refill {
    head: *mut Block,
    count: u32,
    zero: bool,
}

impl<S: PageSource, K: Sharing, O: Observer> Heap<S, K, O> {
    /// A heap over `domain` under a name that the domain gave, for a thread that runs on NUMA node `node`.
    ///
    /// # Safety
    /// The domain stays where it is, and lives, for as long as the heap is used. No two heaps that are in use have one name.
    pub const unsafe fn new(domain: *const Domain<S, K, O>, name: HeapId, node: u32) -> Self {
        let mut names = [0; SHARDS];
        names[node as usize % SHARDS] = name;
        Self {
            domain,
            name,
            node,
            names,
            stay: 0,
            random: name.wrapping_mul(0x9E37_79B9) | 1,
            calls: 0,
            tick_at: 0,
            segment: ptr::null(),
            queues: [const { Queue::new() }; CLASSES],
            rooms_at_tick: [0; CLASSES],
            slabs_made: 0,
            unused: giving_back::Unused::new(),
            depths: Depths::new(),
            looks: 0,
            aside: [ptr::null_mut(); CLASSES],
            long_looks: [0; CLASSES],
            batches: Batches::new(),
            large: LargeCache::new(),
            counters: HeapCounters::new(),
            _watched: PhantomPinned,
        }
    }

    /// Makes the heap serve a thread with these lists, on this node.
    pub fn attach(&mut self, lists: &Lists, node: u32) {
        self.settle_on(node);
        let apart = self.domain().nodes() > 1;
        lists.large.settle_on(if apart { node } else { large::ANY_NODE });
        for class in 0..CLASSES {
            let room = lists::room_when_short(self.depths.depth(class));
            self.counters.classes[class].granted.set(room as u64);
            lists.set_room(class, room as i32);
        }
        lists.bind(self.name);
    }

    /// The heap's name in its domain.
    pub const fn name(&self) -> HeapId {
        self.name
    }

    /// Blocks of `class` that are set aside for the thread's list. Linear in the answer.
    pub fn aside(&self, class: usize) -> usize {
        let (mut count, mut block) = (0, self.aside[class]);
        while !block.is_null() {
            count += 1;
            // SAFETY: what is aside is the heap's.
            block = unsafe { Block::next(block) };
        }
        count
    }

    /// Blocks that the list of `class`, and what is set aside for it, should hold at most, together.
    pub const fn depth(&self, class: usize) -> u32 {
        self.depths.depth(class)
    }

    /// Bytes that the lists of all classes in use should hold at most, together.
    pub const fn depth_bytes(&self) -> u64 {
        self.depths.bytes()
    }

    #[cfg(not(loom))]
    pub(crate) const fn parts(&self) -> Parts<'_> {
        Parts { queues: &self.queues, aside: &self.aside, batches: &self.batches, large: &self.large }
    }

    /// What the heap counted.
    pub const fn counters(&self) -> &HeapCounters {
        &self.counters
    }

    /// Where the counters of the heap at `heap` are, for threads that read them while another uses the heap.
    ///
    /// # Safety
    /// A heap is there.
    pub const unsafe fn counters_of(heap: *const Self) -> *const HeapCounters {
        // SAFETY: the caller's promise. No reference to the rest of the heap is made.
        unsafe { &raw const (*heap).counters }
    }

    /// The domain that the heap is over.
    #[inline(always)]
    pub fn domain(&self) -> &Domain<S, K, O> {
        // SAFETY: a heap never outlives its domain: that is the contract of whoever makes one.
        unsafe { &*self.domain }
    }

    fn misuse(&self, what: Misuse, address: usize) -> ! {
        self.domain().misuse(what, address)
    }
}
