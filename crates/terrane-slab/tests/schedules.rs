//! Whole heaps of four threads over one domain in random schedules: blocks keep their contents, and everything verifies in
//! the end. Faults planted in the protocols are found. `RUSTFLAGS="--cfg schedules"`.

#![cfg(schedules)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::Mutex;
use terrane_pages::Mmap;
use terrane_slab::fault::{Fault, plant};
use terrane_slab::segment::SLICE_BYTES;
use terrane_slab::size_class::{CLASSES, class_of};
use terrane_slab::{Domain, Growth, Heap, Lists, Policy, Shared, schedules};

type Machine = Domain<Mmap, Shared>;

const THREADS: usize = 4;
const STEPS: usize = 1500;
const SEEDS: u64 = 200;
const SIZES: [usize; 4] = [48, 1000, 5000, 16_000];

/// A heap with its thread's lists.
struct Thread(Heap<Mmap, Shared>, Lists);

// SAFETY: who has the value has the heap and its lists; they are sent when their thread has ended.
unsafe impl Send for Thread {}

/// A block in hand: its address, its length, and what is written at both ends.
struct Block(NonNull<u8>, usize, u8);

// SAFETY: who has the value has the block.
unsafe impl Send for Block {}

impl Thread {
    fn new(domain: &Machine) -> Self {
        // SAFETY: a machine outlives its threads' heaps.
        let mut heap = unsafe { Heap::new(domain, domain.name_heap().unwrap(), 0) };
        let lists = Lists::new();
        heap.attach(&lists, 0);
        Self(heap, lists)
    }

    fn alloc(&mut self, bytes: usize, mark: u8) -> Block {
        let Self(heap, lists) = self;
        let block = if bytes > *SIZES.last().unwrap() {
            heap.alloc_large(lists, bytes, 8, false).0
        } else {
            let class = class_of(bytes);
            // SAFETY: the class is one.
            let hit = unsafe { lists.pop(class) };
            if hit.is_null() { heap.alloc_miss(lists, class) } else { hit }
        };
        let block = NonNull::new(block).expect("there is memory");
        // SAFETY: the block has `bytes` bytes.
        unsafe {
            block.write(mark);
            block.add(bytes - 1).write(mark);
        }
        Block(block, bytes, mark)
    }

    fn free(&mut self, Block(block, bytes, mark): Block) {
        let Self(heap, lists) = self;
        // SAFETY: the block is live and of this domain.
        unsafe {
            assert_eq!((block.read(), block.add(bytes - 1).read()), (mark, mark), "a block has changed");
            if bytes > *SIZES.last().unwrap() {
                return heap.free_large(lists, block.as_ptr());
            }
            let class = class_of(bytes);
            if !lists.push(block.as_ptr(), class, terrane_slab::segment::home(block.as_ptr())) {
                heap.free_miss(lists, block.as_ptr(), class);
            }
        }
    }
}

fn next(state: &mut u64) -> usize {
    // Marsaglia's xorshift (2003).
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as usize
}

/// Everything in one schedule; how often the turn changed.
fn play(seed: u64) -> u64 {
    let policy = Policy { growth: Growth::SMALL, ..Policy::DEFAULT };
    let mut domain = Box::new(Machine::new(Mmap::new(), policy, ()));
    let shared: Mutex<Vec<Block>> = Mutex::default();
    let ended: Mutex<Vec<Thread>> = Mutex::default();
    let life = |me: usize| {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (me as u64 + 1) << 32;
        let mut thread = Thread::new(&domain);
        for step in 0..STEPS {
            match next(&mut random) % 100 {
                0 => thread.0.collect(&thread.1),
                1 => drop(domain.purge(0, true)),
                2..8 => {
                    let bytes = (next(&mut random) % 30 + 1) * SLICE_BYTES;
                    let block = thread.alloc(bytes, step as u8);
                    shared.lock().unwrap().push(block);
                }
                8..56 => {
                    let block = thread.alloc(SIZES[next(&mut random) % SIZES.len()], step as u8);
                    shared.lock().unwrap().push(block);
                }
                _ => {
                    let block = {
                        let mut shared = shared.lock().unwrap();
                        let at = next(&mut random) % shared.len().max(1);
                        (!shared.is_empty()).then(|| shared.swap_remove(at))
                    };
                    block.into_iter().for_each(|block| thread.free(block));
                }
            }
        }
        if me % 2 == 0 {
            thread.0.abandon(&thread.1);
        }
        ended.lock().unwrap().push(thread);
    };
    let life = &life;
    let threads = (0..THREADS).map(|me| Box::new(move || life(me)) as Box<dyn FnOnce() + Send>).collect();
    let switches = schedules::run(seed, threads);
    let mut ended = ended.into_inner().unwrap();
    let verify = |ended: &[Thread]| {
        let heaps = || ended.iter().map(|Thread(heap, lists)| (heap, Some(lists)));
        // SAFETY: all heaps are here, and their threads have ended.
        unsafe { domain.verify_quiet(heaps) }.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    };
    verify(&ended);
    for block in shared.into_inner().unwrap() {
        ended[1].free(block);
    }
    for Thread(heap, lists) in &mut ended {
        heap.collect(lists);
        heap.abandon(lists);
    }
    verify(&ended);
    let sum = |class: usize, get: fn(&terrane_slab::stats::ClassCounters) -> u64| {
        ended.iter().map(|thread| get(&thread.0.counters().classes[class])).fold(0, u64::wrapping_add)
    };
    for class in 0..CLASSES {
        let (taken, returned) = (sum(class, |c| c.taken.get()), sum(class, |c| c.returned.get()));
        assert_eq!(taken, returned, "seed {seed}: blocks of class {class} are lost");
    }
    drop(ended);
    // SAFETY: no block and no heap is left.
    unsafe { domain.destroy() };
    switches
}

/// Plays with a fault until it shows; the seeds that it took.
fn found(fault: Fault) -> Option<u64> {
    plant(Some(fault));
    let found = (1..=SEEDS).find(|&seed| catch_unwind(AssertUnwindSafe(|| play(seed))).is_err());
    plant(None);
    found
}

#[test]
fn whole_heaps_verify_in_random_schedules_and_planted_faults_are_found() {
    let switches: u64 = (1..=SEEDS).map(play).sum();
    println!("schedules {SEEDS}, {} steps, {switches} changes of turn", SEEDS as usize * THREADS * STEPS);
    assert!(switches > SEEDS * 1000);
    assert_eq!(play(7), play(7), "a seed does not find again what it found");
    for fault in [Fault::ParkUnchecked, Fault::PurgeUnclaimed, Fault::RunKept] {
        let seed = found(fault).unwrap_or_else(|| panic!("{fault:?} was not found"));
        println!("{fault:?} found by seed {seed}");
    }
}
