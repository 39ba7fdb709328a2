//! Memory nodes kept apart: heaps follow their threads, and blocks go back to the node that they came from.

#![cfg(not(loom))]

use std::cell::Cell;
use std::collections::HashSet;
use std::ptr::NonNull;
use std::sync::Mutex;
use terrane_core::{Contents, Decommit, Extent, Geometry, PageSource, ReleaseError, Source, SourceError};
use terrane_pages::Mmap;
use terrane_slab::size_class::class_of;
use terrane_slab::{Domain, Growth, Heap, Lists, Policy, Shared};

thread_local! {
    /// The node that the thread "runs on".
    static NODE: Cell<u32> = const { Cell::new(0) };
}

/// A source that remembers which ranges were asked of which node, and may run out.
struct Nodes {
    pages: Mmap,
    bound: Mutex<Vec<(usize, usize, u32)>>,
    arenas_left: Mutex<u32>,
}

impl Nodes {
    /// The node that a block's memory was last asked of.
    fn node_of(&self, block: *mut u8) -> Option<u32> {
        let bound = self.bound.lock().unwrap();
        let holds = |&&(start, len, _): &&(usize, usize, u32)| (start..start + len).contains(&block.addr());
        bound.iter().rev().find(holds).map(|&(_, _, node)| node)
    }
}

// SAFETY: every call is passed on.
unsafe impl Source for Nodes {
    fn geometry(&self) -> Geometry {
        self.pages.geometry()
    }
    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        self.pages.acquire(len, align)
    }
    unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
        // SAFETY: passed on.
        unsafe { self.pages.release(extent) }
    }
}

// SAFETY: every call is passed on.
unsafe impl PageSource for Nodes {
    fn page_size(&self) -> usize {
        self.pages.page_size()
    }
    fn reserve(&self, len: usize, align: usize) -> Result<Extent, SourceError> {
        let mut left = self.arenas_left.lock().unwrap();
        *left = left.checked_sub(1).ok_or(SourceError::OutOfMemory { requested: len as u64 })?;
        self.pages.reserve(len, align)
    }
    unsafe fn commit(&self, start: NonNull<u8>, len: usize) -> Result<Contents, SourceError> {
        // SAFETY: passed on.
        unsafe { self.pages.commit(start, len) }
    }
    unsafe fn decommit(
        &self,
        start: NonNull<u8>,
        len: usize,
        how: Decommit,
    ) -> Result<Contents, SourceError> {
        // SAFETY: passed on.
        unsafe { self.pages.decommit(start, len, how) }
    }
    unsafe fn bind(&self, start: NonNull<u8>, len: usize, node: u32) -> Result<(), SourceError> {
        self.bound.lock().unwrap().push((start.addr().get(), len, node));
        Ok(())
    }
}

type Machine = Domain<Nodes, Shared>;

/// A domain on a machine of `nodes` nodes. It is never dropped: slabs that were parked may be looked at as long as it lives.
/// Leak checkers find it in the list of all.
fn machine(nodes: u32, arenas: u32) -> &'static Machine {
    let source = Nodes { pages: Mmap::new(), bound: Mutex::default(), arenas_left: Mutex::new(arenas) };
    let policy = Policy { nodes, node: || NODE.get(), growth: Growth::SMALL, ..Policy::DEFAULT };
    static ALL: Mutex<Vec<&Machine>> = Mutex::new(Vec::new());
    let machine: &Machine = Box::leak(Box::new(Domain::new(source, policy, ())));
    ALL.lock().unwrap().push(machine);
    machine
}

/// A thread's heap and lists.
struct Thread {
    heap: Heap<Nodes, Shared>,
    lists: Lists,
}

impl Thread {
    fn new(domain: &'static Machine) -> Self {
        // SAFETY: the domain lives for good.
        let mut heap = unsafe { Heap::new(domain, domain.name_heap().unwrap(), 0) };
        let lists = Lists::new();
        heap.attach(&lists, domain.current_node());
        Self { heap, lists }
    }

    fn alloc(&mut self, bytes: usize) -> *mut u8 {
        let class = class_of(bytes);
        // SAFETY: the class is a class.
        let hit = unsafe { self.lists.pop(class) };
        let block = if hit.is_null() { self.heap.alloc_miss(&self.lists, class) } else { hit };
        assert!(!block.is_null());
        block
    }

    fn alloc_many(&mut self, bytes: usize, count: usize) -> Vec<*mut u8> {
        (0..count).map(|_| self.alloc(bytes)).collect()
    }

    fn free(&mut self, block: *mut u8, bytes: usize) {
        let class = class_of(bytes);
        // SAFETY: the block is live, and of this domain.
        unsafe {
            let home = terrane_slab::segment::home(block);
            if !self.lists.push(block, class, home) {
                self.heap.free_miss(&self.lists, block, class);
            }
        }
    }

    /// All that the heap holds back goes where it belongs.
    fn collect(&mut self) {
        self.heap.collect(&self.lists);
    }
}

fn on_node<R>(node: u32, f: impl FnOnce() -> R) -> R {
    let before = NODE.replace(node);
    let result = f();
    NODE.set(before);
    result
}

#[test]
fn a_block_comes_from_the_node_that_its_thread_runs_on() {
    let domain = machine(2, 9);
    let mut threads = [0, 1].map(|node| on_node(node, || Thread::new(domain)));
    for (node, thread) in (0..).zip(&mut threads) {
        on_node(node, || {
            for bytes in [16, 500, 8000] {
                for block in thread.alloc_many(bytes, 200) {
                    assert_eq!(domain.source().node_of(block), Some(node));
                }
            }
            for bytes in [100_000, 20 << 20] {
                let (block, _) = thread.heap.alloc_large(&thread.lists, bytes, 8, false);
                assert_eq!(domain.source().node_of(block), Some(node));
            }
        });
    }
}

#[test]
fn a_heap_moves_when_its_thread_does_and_leaves_its_blocks_behind() {
    let domain = machine(2, 9);
    let mut thread = Thread::new(domain);
    let here = thread.alloc_many(64, 5000);
    on_node(1, || {
        let there = thread.alloc_many(64, 5000);
        // What the list still held is from before.
        assert!(there.iter().skip(256).all(|&block| domain.source().node_of(block) == Some(1)));
        // Freed here, the blocks of the other node are not handed out here again.
        here.iter().for_each(|&block| thread.free(block, 64));
        let again = thread.alloc_many(64, 5000);
        assert!(again.iter().all(|&block| domain.source().node_of(block) == Some(1)));
        there.into_iter().chain(again).for_each(|block| thread.free(block, 64));
    });
    thread.collect();
}

#[test]
fn blocks_freed_on_another_node_serve_their_own_again() {
    let domain = machine(2, 9);
    let mut near = Thread::new(domain);
    let mut far = on_node(1, || Thread::new(domain));
    let blocks = near.alloc_many(200, 20_000);
    let (kept, freed): (Vec<_>, Vec<_>) =
        blocks.into_iter().enumerate().partition(|(place, _)| place % 10 == 0);
    on_node(1, || {
        // Most slabs are full and parked: freeing into one could claim it, and allocating could take it from a shelf.
        freed.iter().for_each(|&(_, block)| far.free(block, 200));
        let fresh = far.alloc_many(200, 100);
        assert!(fresh.iter().all(|&block| domain.source().node_of(block) == Some(1)));
        far.collect();
        let fresh = far.alloc_many(200, 20_000);
        assert!(fresh.iter().all(|&block| domain.source().node_of(block) == Some(1)));
    });
    let again = near.alloc_many(200, 20_000);
    let freed: HashSet<*mut u8> = freed.into_iter().map(|(_, block)| block).collect();
    let used_again = again.iter().filter(|block| freed.contains(*block)).count();
    assert!(used_again > 17_000, "{used_again} of {} blocks came home", freed.len());
    assert_eq!(kept.len(), 2000);
}

#[test]
fn slabs_of_an_ended_thread_go_to_threads_of_its_node_first_and_to_others_when_memory_is_out() {
    let domain = machine(2, 2);
    let mut ended = Thread::new(domain);
    let kept: Vec<_> = ended
        .alloc_many(200, 20_000)
        .into_iter()
        .enumerate()
        .filter_map(|(place, block)| {
            if place % 2 == 1 {
                ended.free(block, 200);
            }
            (place % 2 == 0).then_some(block)
        })
        .collect();
    ended.heap.abandon(&ended.lists);
    on_node(1, || {
        let mut other = Thread::new(domain);
        let blocks = other.alloc_many(200, 5000);
        assert!(blocks.iter().all(|&block| domain.source().node_of(block) == Some(1)));
        assert_eq!(other.heap.counters().steals.get(), 0);
        // Small arenas, and no third: memory of this node ends before the address space of the other does.
        let mut count = 0;
        while other.heap.counters().steals.get() == 0 {
            other.alloc(200);
            count += 1;
            assert!(count < 10_000_000, "slabs of the other node are never used");
        }
    });
    let mut next = Thread::new(domain);
    let block = next.alloc(200);
    assert_eq!(domain.source().node_of(block), Some(0));
    assert_eq!(kept.len(), 10_000);
}

#[test]
fn memory_of_before_is_asked_of_its_node_when_nodes_are_told_apart() {
    let domain = machine(1, 9);
    let mut thread = Thread::new(domain);
    let early = thread.alloc(64);
    assert_eq!(domain.source().node_of(early), None);
    domain.set_nodes(2);
    assert_eq!(domain.source().node_of(early), Some(0));
    let late = on_node(1, || thread.alloc_many(5000, 100));
    assert!(late.iter().skip(16).all(|&block| domain.source().node_of(block) == Some(1)));
}
