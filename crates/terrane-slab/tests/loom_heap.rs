//! Models of whole heaps: threads that end, batches of remote frees, slabs that change hands. They run heaps and their domain as
//! they are, over a source of pages that loom can watch. The arguments are in `docs/src/protocols/`: slab-word.md and
//! heap-records.md. Each model has twins with a planted fault, which must fail.
#![cfg(loom)]

mod harness;
#[path = "harness/pages.rs"]
mod pages;

use harness::{check, models};
use loom::thread;
use pages::{Model, POLICY, Pages, domain, heap};
use std::sync::atomic::AtomicU64;
use terrane_slab::fault::Fault;
use terrane_slab::size_class::{CLASSES, class};
use terrane_slab::{Heap, HeapId, Lists, Shared};

models! {
    model_abandon_adopt: abandon_adopt, threads 3,
        faults [fault_abandon_adopt_park_unchecked: ParkUnchecked, fault_abandon_adopt_park_relaxed: ParkRelaxed];
    model_batch_exit: batch_exit, threads 3,
        faults [fault_batch_exit_emptied_ignored: EmptiedIgnored, fault_batch_exit_push_relaxed: PushRelaxed];
    model_two_exits: two_exits, threads 2, faults [fault_two_exits_emptied_ignored: EmptiedIgnored];
}

/// A thread's heap and lists. They go from thread to thread as records do, by a spawn or a join.
struct Thread {
    heap: Box<Heap<Pages, Shared>>,
    lists: Lists,
}

// SAFETY: one thread uses it at a time.
unsafe impl Send for Thread {}

impl Thread {
    fn new(domain: &Model, name: HeapId) -> Self {
        let (mut heap, lists) = (heap(domain, name), Lists::new());
        heap.attach(&lists, 0);
        Self { heap, lists }
    }

    /// A block of the class, as address.
    fn alloc(&mut self, class: usize) -> usize {
        // SAFETY: the class is a class.
        let hit = unsafe { self.lists.pop(class) };
        let block = if hit.is_null() { self.heap.alloc_miss(&self.lists, class) } else { hit };
        assert!(!block.is_null());
        block.expose_provenance()
    }

    fn free(&mut self, block: usize, class: usize) {
        let block = std::ptr::with_exposed_provenance_mut(block);
        // SAFETY: the models free each block once.
        unsafe {
            if !self.lists.push(block, class, terrane_slab::segment::home(block)) {
                self.heap.free_miss(&self.lists, block, class);
            }
        }
    }

    fn end(mut self) {
        self.heap.abandon(&self.lists);
    }
}

/// The smallest class whose slabs have this many blocks.
fn class_of_blocks(blocks: u32) -> usize {
    (0..CLASSES).find(|&at| class(at).blocks == blocks).expect("there is such a class")
}

/// Every block came back, so every slab must have been retired, by one thread each.
fn nothing_is_left(domain: &Model) {
    assert_eq!(domain.counters.slices_in_use.get(), 0, "a slab that is empty was retired by nobody");
}

/// A thread ends while another frees into its slab and a third needs blocks of the class: the third adopts the slab or makes
/// one of its own, no block is in two hands, and in the end nothing is left.
fn abandon_adopt(iterations: &'static AtomicU64) {
    check(2, iterations, || {
        let domain = domain(POLICY);
        let class = class_of_blocks(4);
        let mut first = Thread::new(&domain, 1);
        let blocks = [first.alloc(class), first.alloc(class)];
        let ending = thread::spawn(move || first.end());
        let freeing = {
            let domain = domain.clone();
            thread::spawn(move || {
                let mut second = Thread::new(&domain, 2);
                second.free(blocks[0], class);
                second.end();
            })
        };
        let needing = {
            let domain = domain.clone();
            thread::spawn(move || {
                let mut third = Thread::new(&domain, 3);
                let block = third.alloc(class);
                assert_ne!(block, blocks[1], "a block is in two hands");
                third.end();
                block
            })
        };
        ending.join().unwrap();
        freeing.join().unwrap();
        let block = needing.join().unwrap();
        let mut last = Thread::new(&domain, 4);
        last.free(block, class);
        last.free(blocks[1], class);
        last.end();
        nothing_is_left(&domain);
    });
}

/// A batch arrives while the owner ends, and a third thread frees the rest: whoever brings the last block retires the slab.
fn batch_exit(iterations: &'static AtomicU64) {
    check(2, iterations, || {
        let domain = domain(POLICY);
        let class = class_of_blocks(8);
        let mut owner = Thread::new(&domain, 1);
        let blocks = [owner.alloc(class), owner.alloc(class), owner.alloc(class)];
        let sending = {
            let domain = domain.clone();
            thread::spawn(move || {
                let mut sender = Thread::new(&domain, 2);
                // Two blocks wait in a batch, which is sent when the thread ends.
                sender.free(blocks[0], class);
                sender.free(blocks[1], class);
                sender.end();
            })
        };
        let freeing = {
            let domain = domain.clone();
            thread::spawn(move || {
                let mut third = Thread::new(&domain, 3);
                third.free(blocks[2], class);
                third.end();
            })
        };
        let ending = thread::spawn(move || owner.end());
        sending.join().unwrap();
        freeing.join().unwrap();
        ending.join().unwrap();
        nothing_is_left(&domain);
    });
}

/// Two threads hold a block of each other's slab, free it and end.
fn two_exits(iterations: &'static AtomicU64) {
    check(4, iterations, || {
        let domain = domain(POLICY);
        let class = class_of_blocks(4);
        let mut threads = [Thread::new(&domain, 1), Thread::new(&domain, 2)];
        let mut blocks = [0, 1].map(|at| threads[at].alloc(class));
        blocks.swap(0, 1);
        let ending: Vec<_> = threads
            .into_iter()
            .zip(blocks)
            .map(|(mut thread, block)| {
                thread::spawn(move || {
                    thread.free(block, class);
                    thread.end();
                })
            })
            .collect();
        ending.into_iter().for_each(|ending| ending.join().unwrap());
        nothing_is_left(&domain);
    });
}
