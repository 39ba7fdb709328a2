//! A thread's lists: how much one free may cost, and how much they hold.

#![cfg(not(loom))]

use core::cell::Cell;
use std::ptr::NonNull;
use terrane_core::{Event, Observer};
use terrane_pages::Mmap;
use terrane_slab::PrivateHeap;
use terrane_slab::domain::Policy;
use terrane_slab::lists;
use terrane_slab::size_class::class_of;

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
        let heap = heap(&largest);
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
