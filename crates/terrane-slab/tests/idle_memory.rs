//! Whoever gives memory back on time is told of all that waits.

#![cfg(not(loom))]

use std::sync::atomic::{AtomicU32, Ordering};
use terrane_pages::Mmap;
use terrane_slab::{Policy, PrivateHeap};

static TOLD: AtomicU32 = AtomicU32::new(0);

fn tell() {
    TOLD.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn freed_memory_is_told_of_when_it_begins_to_age_and_when_a_pass_leaves_it() {
    let policy = Policy { on_idle_memory: tell, ..Policy::DEFAULT };
    let heap = PrivateHeap::with_policy(Mmap::new(), policy, ()).unwrap();
    let told = |now: u64| {
        TOLD.store(0, Ordering::Relaxed);
        heap.tick(now);
        (TOLD.load(Ordering::Relaxed), heap.domain().has_idle_memory())
    };
    let block = heap.alloc(200_000, 8).unwrap();
    // SAFETY: the block is live and of this heap.
    unsafe { heap.free(block, 200_000, 8) };
    assert_eq!(told(0), (1, true), "the heap gives it up");
    assert_eq!(told(0), (0, true), "it is known");
    let delay = policy.purge.delay_ms;
    assert_eq!(told(delay), (1, true), "a pass that leaves memory is followed by a notice");
    assert_eq!(told(delay * 2), (0, false), "nothing is left");
}
