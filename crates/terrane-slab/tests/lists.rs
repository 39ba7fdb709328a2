//! A thread's lists: how much one free may cost, how much they hold, and how deep a policy makes them.

#![cfg(not(loom))]

use core::cell::Cell;
use std::ptr::NonNull;
use terrane_core::{Event, Observer};
use terrane_pages::Mmap;
use terrane_slab::depths::{LISTS_BYTES, deepest, shallowest};
use terrane_slab::domain::Policy;
use terrane_slab::lists;
use terrane_slab::size_class::class_of;
use terrane_slab::{ListSizing, PrivateHeap};

/// The most blocks that returned to slabs in one go.
#[derive(Default)]
struct LargestFlush(Cell<u32>);

impl Observer for &LargestFlush {
    fn observe(&self, event: &Event) {
        if let Event::Flush { blocks, .. } = *event {
            self.0.set(self.0.get().max(blocks));
        }
    }
}

fn heap(largest: &LargestFlush) -> PrivateHeap<Mmap, &LargestFlush> {
    PrivateHeap::with_policy(Mmap::new(), Policy::DEFAULT, largest).unwrap()
}

fn sized(lists: ListSizing, largest: &LargestFlush) -> PrivateHeap<Mmap, &LargestFlush> {
    PrivateHeap::with_policy(Mmap::new(), Policy { lists, ..Policy::DEFAULT }, largest).unwrap()
}

fn alloc(heap: &PrivateHeap<Mmap, &LargestFlush>, bytes: usize, count: usize) -> Vec<NonNull<u8>> {
    (0..count).map(|_| heap.alloc(bytes, 8).unwrap()).collect()
}

#[test]
fn no_free_pays_for_more_than_a_few_others() {
    for bytes in [8, 64, 200, 1000, 8000, 32_000] {
        let largest = LargestFlush::default();
        let heap = heap(&largest);
        for _ in 0..3 {
            for block in alloc(&heap, bytes, 5000) {
                // SAFETY: the block is live and of this heap.
                unsafe { heap.free(block, bytes, 8) };
            }
        }
        let largest = largest.0.get();
        assert!((1..=32).contains(&largest), "{largest} blocks of {bytes} bytes returned at once");
    }
}

#[test]
fn lists_hold_no_more_than_their_bound_and_a_few_blocks() {
    for bytes in [16, 64, 1000, 8000] {
        let largest = LargestFlush::default();
        let heap = sized(ListSizing::Fixed, &largest);
        let class = class_of(bytes);
        for block in alloc(&heap, bytes, 5000) {
            // SAFETY: the block is live and of this heap.
            unsafe { heap.free(block, bytes, 8) };
            let held = heap.listed(class);
            // The bound, what one refill left in the list, and what came in since the last look.
            let most = 2 * lists::bound(class) as usize + lists::bound(class) as usize / 4;
            assert!(held <= most, "{held} blocks of {bytes} bytes wait in lists, not {most}");
        }
    }
}

/// Takes `count` blocks and gives them back, `rounds` times.
fn bursts(heap: &PrivateHeap<Mmap, &LargestFlush>, bytes: usize, count: usize, rounds: usize) {
    for _ in 0..rounds {
        for block in alloc(heap, bytes, count) {
            // SAFETY: the block is live and of this heap.
            unsafe { heap.free(block, bytes, 8) };
        }
    }
}

/// Blocks that went back to slabs in ten such bursts.
fn returned(heap: &PrivateHeap<Mmap, &LargestFlush>, bytes: usize, count: usize) -> u64 {
    let class = &heap.counters().classes[class_of(bytes)];
    let before = class.returned.get();
    bursts(heap, bytes, count, 10);
    class.returned.get() - before
}

#[test]
fn lists_grow_until_the_bursts_of_a_steady_load_fit_and_stay_there() {
    for sizing in [ListSizing::LowWater, ListSizing::HitRate] {
        let largest = LargestFlush::default();
        let (fixed, heap) = (sized(ListSizing::Fixed, &largest), sized(sizing, &largest));
        for heap in [&fixed, &heap] {
            bursts(heap, 64, 800, 1600);
        }
        let (fixed, sized) = (returned(&fixed, 64, 800), returned(&heap, 64, 800));
        assert!(
            sized * 5 < fixed * 3,
            "{sizing:?}: {sized} blocks returned, with lists of fixed depth {fixed}"
        );
        let depth = heap.depth(class_of(64));
        assert!(depth <= deepest(class_of(64)));
        for _ in 0..20 {
            bursts(&heap, 64, 800, 160);
            assert_eq!(heap.depth(class_of(64)), depth, "{sizing:?} moves under a steady load");
        }
    }
}

#[test]
fn lists_of_fixed_depth_stay_as_they_are() {
    let largest = LargestFlush::default();
    let heap = sized(ListSizing::Fixed, &largest);
    bursts(&heap, 64, 800, 100);
    assert_eq!(heap.depth(class_of(64)), lists::bound(class_of(64)));
}

#[test]
fn bursts_of_many_sizes_share_one_budget() {
    let largest = LargestFlush::default();
    let heap = sized(ListSizing::LowWater, &largest);
    let mut most = 0;
    for _ in 0..20 {
        for bytes in (64..32_000).step_by(400) {
            bursts(&heap, bytes, 100 + bytes % 1000, 2);
            most = most.max(heap.depth_bytes());
        }
    }
    // What comes into use when the budget is spent is four blocks of a class, until the next decision.
    assert!(most <= LISTS_BYTES + 8 * 32 * 1024, "lists of {most} bytes");
    assert!(most > LISTS_BYTES * 7 / 8, "the budget was never in the way: {most} bytes");
}

#[test]
fn a_list_that_is_idle_gives_its_depth_up_and_gets_it_back() {
    let largest = LargestFlush::default();
    let heap = sized(ListSizing::LowWater, &largest);
    let class = class_of(64);
    bursts(&heap, 64, 800, 1600);
    let busy = heap.depth(class);
    assert!(busy > lists::bound(class));
    // Four ticks to a halving, and seven halvings from the deepest to the shallowest.
    (0..40).for_each(|now| heap.tick(now));
    assert_eq!((heap.depth(class), heap.listed(class)), (shallowest(class), 0));
    bursts(&heap, 64, 800, 1600);
    assert!(heap.depth(class) * 4 > busy * 3, "{} blocks, before it was idle {busy}", heap.depth(class));
}

#[test]
fn lists_that_are_not_used_let_go_while_memory_grows() {
    let largest = LargestFlush::default();
    let heap = sized(ListSizing::Fixed, &largest);
    bursts(&heap, 144, 2000, 1);
    let (unused, used) = (class_of(144), class_of(200));
    assert!(heap.listed(unused) > 100);
    // Four classes are looked at for each slab; each of them at least twice, and 64 blocks at a time.
    let kept = alloc(&heap, 4096, 16 * 80);
    assert_eq!(heap.listed(unused), 0);
    // A list that is used meanwhile stays.
    for _ in 0..16 * 80 {
        bursts(&heap, 200, 300, 1);
        heap.alloc(4096, 8).unwrap();
    }
    assert!(heap.listed(used) > 100);
    drop(kept);
    let largest = largest.0.get();
    assert!((1..=64).contains(&largest), "{largest} blocks returned at once");
}

#[test]
fn a_list_of_blocks_that_only_come_back_gets_short() {
    let largest = LargestFlush::default();
    let heap = sized(ListSizing::Fixed, &largest);
    let class = class_of(64);
    let bound = lists::bound(class) as usize;
    for (freed, block) in alloc(&heap, 64, 50_000).into_iter().enumerate() {
        // SAFETY: the block is live and of this heap.
        unsafe { heap.free(block, 64, 8) };
        let (held, most) = (heap.listed(class), if freed < 4000 { 2 * bound + 64 } else { bound / 2 });
        assert!(held <= most, "{held} blocks wait after {freed} frees, not {most}");
    }
}

#[test]
fn a_thread_that_only_frees_or_only_allocates_gets_no_deeper_lists() {
    let largest = LargestFlush::default();
    let heap = sized(ListSizing::LowWater, &largest);
    let class = class_of(64);
    let blocks = alloc(&heap, 64, 50_000);
    assert_eq!(heap.depth(class), lists::bound(class));
    for block in blocks {
        // SAFETY: the block is live and of this heap.
        unsafe { heap.free(block, 64, 8) };
    }
    let depth = heap.depth(class);
    assert!(depth <= lists::bound(class) * 3 / 2, "{depth} blocks");
}
