//! Models of the lock-free lists and of the epochs. The argument: `docs/src/protocols/gpu-fixed-pool.md` and
//! `docs/src/protocols/gpu-stream-order.md`.
#![cfg(loom)]

use loom::sync::{Arc, Mutex};
use loom::thread;
use std::sync::atomic::{AtomicU64, Ordering};
use terrane_core::sync::atomic::{AtomicU32, AtomicU64 as ModelU64, Ordering as ModelOrdering};
use terrane_core::sync::cell::UnsafeCell;
use terrane_gpu::epoch::Epochs;
use terrane_gpu::free_list::{FreeList, Links, NONE, TaggedStack};

struct Slots(Vec<AtomicU32>);

impl Links for Slots {
    fn link(&self, index: u32) -> &AtomicU32 {
        &self.0[index as usize]
    }
}

struct Shared<const STEP: u32> {
    stack: TaggedStack<STEP>,
    links: Slots,
    /// What a block's holder writes without a lock: loom fails the model if two hold it at once, or if a push does not
    /// hand on what was written.
    contents: Vec<UnsafeCell<u32>>,
}

// SAFETY: `contents` is only touched by the holder of the block; loom checks exactly that.
unsafe impl<const STEP: u32> Sync for Shared<STEP> {}
// SAFETY: as above.
unsafe impl<const STEP: u32> Send for Shared<STEP> {}

impl<const STEP: u32> Shared<STEP> {
    fn new(blocks: u32) -> Self {
        let shared = Self {
            stack: TaggedStack::default(),
            links: Slots((0..blocks).map(|_| AtomicU32::new(NONE)).collect()),
            contents: (0..blocks).map(|_| UnsafeCell::new(0)).collect(),
        };
        (0..blocks).for_each(|index| shared.stack.push(&shared.links, index));
        shared
    }

    fn touch(&self, index: u32) {
        // SAFETY: the caller popped the block and has not pushed it; loom checks.
        self.contents[index as usize].with_mut(|value| unsafe { *value += 1 });
    }
}

/// One thread pops; another pops two and gives the first back: the pattern behind the tag.
fn stack<const STEP: u32>(iterations: &'static AtomicU64) {
    loom::model(move || {
        iterations.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(Shared::<STEP>::new(3));
        let other = {
            let shared = shared.clone();
            thread::spawn(move || {
                let first = shared.stack.pop(&shared.links);
                let second = shared.stack.pop(&shared.links);
                [first, second].into_iter().flatten().for_each(|index| shared.touch(index));
                if let Some(index) = first {
                    shared.stack.push(&shared.links, index);
                }
                second
            })
        };
        let mut held = Vec::new();
        for _ in 0..2 {
            if let Some(index) = shared.stack.pop(&shared.links) {
                shared.touch(index);
                held.push(index);
            }
        }
        held.extend(other.join().unwrap());
        while let Some(index) = shared.stack.pop(&shared.links) {
            shared.touch(index);
            held.push(index);
        }
        held.sort_unstable();
        assert_eq!(held, [0, 1, 2], "every block is in one place");
    });
}

#[test]
fn model_stack() {
    static ITERATIONS: AtomicU64 = AtomicU64::new(0);
    stack::<1>(&ITERATIONS);
    println!("model stack threads=2 iterations={}", ITERATIONS.load(Ordering::Relaxed));
}

#[test]
fn fault_stack_without_tags() {
    static ITERATIONS: AtomicU64 = AtomicU64::new(0);
    let outcome = std::panic::catch_unwind(|| stack::<0>(&ITERATIONS));
    assert!(outcome.is_err(), "loom did not find the block that was handed out twice");
}

/// A stream as the driver sees it: submissions and records in one order, under the driver's lock.
#[derive(Default)]
struct Driver {
    submitted: u64,
    /// For each closed epoch: how much work lay before the record of its event.
    events: Vec<(u64, u64)>,
}

fn close(epochs: &Epochs, driver: &Mutex<Driver>, record_first: bool) {
    let record = || driver.lock().unwrap().submitted;
    let (epoch, before) = if record_first {
        let before = record();
        (epochs.advance(), before)
    } else {
        let epoch = epochs.advance();
        (epoch, record())
    };
    driver.lock().unwrap().events.push((epoch, before));
}

/// A thread submits work and frees its block; two others close epochs meanwhile. Whoever then waits for the event that
/// covers the block's stamp has waited for the work.
fn epoch(iterations: &'static AtomicU64, record_first: bool) {
    loom::model(move || {
        iterations.fetch_add(1, Ordering::Relaxed);
        let epochs = Arc::new(Epochs::new());
        let driver = Arc::new(Mutex::new(Driver::default()));
        let stamp = Arc::new(ModelU64::new(0));
        let freeing = {
            let (epochs, driver, stamp) = (epochs.clone(), driver.clone(), stamp.clone());
            thread::spawn(move || {
                driver.lock().unwrap().submitted += 1;
                stamp.store(epochs.stamp(), ModelOrdering::Release);
            })
        };
        let closing = {
            let (epochs, driver) = (epochs.clone(), driver.clone());
            thread::spawn(move || close(&epochs, &driver, record_first))
        };
        closing.join().unwrap();
        // A thief, as soon as it sees the block.
        let freed = stamp.load(ModelOrdering::Acquire);
        if freed != 0 {
            let covers = |d: &Driver| d.events.iter().filter(|e| e.0 >= freed).map(|e| e.1).min();
            let mut found = covers(&driver.lock().unwrap());
            if found.is_none() {
                close(&epochs, &driver, record_first);
                found = covers(&driver.lock().unwrap());
            }
            assert!(found.is_some_and(|before| before >= 1), "the event lies before the work");
        }
        freeing.join().unwrap();
    });
}

#[test]
fn model_epoch() {
    static ITERATIONS: AtomicU64 = AtomicU64::new(0);
    epoch(&ITERATIONS, false);
    println!("model epoch threads=3 iterations={}", ITERATIONS.load(Ordering::Relaxed));
}

#[test]
fn fault_epoch_record_before_advance() {
    static ITERATIONS: AtomicU64 = AtomicU64::new(0);
    let outcome = std::panic::catch_unwind(|| epoch(&ITERATIONS, true));
    assert!(outcome.is_err(), "loom did not find the event that misses the work");
}
