//! Faults planted in a heap's memory, and the promise that each breaks.

use super::{Broken, VerifyError};
use crate::PrivateHeap;
use crate::segment::{HEADER_SLICES, SLICE_BYTES, Segment, entry};
use crate::sharing::{Local, Shared};
use crate::size_class;
use crate::slab::{Block, LocalPart, Slab};
use crate::{Domain, Growth, Heap, Lists, Policy, bitmap};
use core::sync::atomic::Ordering::Relaxed;
use std::boxed::Box;
use std::ptr::{self, NonNull};
use std::vec::Vec;
use terrane_pages::Mmap;

fn heap() -> PrivateHeap<Mmap> {
    PrivateHeap::new_in(Mmap::new()).unwrap()
}

fn slab_of(block: NonNull<u8>) -> &'static Slab {
    // SAFETY: the block is one of a live heap.
    unsafe {
        let segment = Segment::containing(block.as_ptr());
        &*(*segment).slab(entry(block.as_ptr()).head())
    }
}

fn segment_of(block: NonNull<u8>) -> &'static Segment {
    // SAFETY: the block is one of a live heap.
    unsafe { &*Segment::containing(block.as_ptr()) }
}

fn free(heap: &PrivateHeap<Mmap>, block: NonNull<u8>, bytes: usize) {
    // SAFETY: the tests free what they have allocated.
    unsafe { heap.free(block, bytes, 8) };
}

#[test]
fn a_heap_in_any_state_is_in_order() {
    let heap = heap();
    assert_eq!(heap.verify().unwrap().looked_at(), 0);
    let mut live = Vec::new();
    let mut seen = super::VerifyReport::default();
    let mut state = 7_u64;
    for step in 0..20_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let bytes = match state % 100 {
            0 => 1 << 20,
            1 => 9 << 20,
            2..20 => state as usize >> 8 & 0xffff,
            _ => state as usize >> 8 & 0x1ff,
        };
        if state & 1 << 50 != 0 && !live.is_empty() {
            let (block, bytes) = live.swap_remove((state >> 20) as usize % live.len());
            free(&heap, block, bytes);
        } else {
            live.push((heap.alloc(bytes, 8).unwrap(), bytes));
        }
        if step % 500 == 0 {
            seen.add(&heap.verify().unwrap());
        }
        if live.len() > 3000 {
            live.drain(..1500).for_each(|(block, bytes)| free(&heap, block, bytes));
            heap.release_free_memory();
            let report = heap.verify().unwrap();
            assert_eq!((report.listed_blocks, report.cached_large_blocks, report.cached_spans), (0, 0, 0));
        }
    }
    heap.verify().unwrap();
    assert!(
        seen.owned_slabs > 400 && seen.large_blocks > 0 && seen.huge_blocks > 0 && seen.listed_blocks > 0
    );
    assert!(seen.free_blocks > 0 && seen.cached_large_blocks > 0 && seen.cached_spans > 0);
}

/// A heap with blocks of 64 bytes in the program's hands, in its list and in a slab's free list, and a block of each longer
/// kind, live and cached.
struct Subject {
    heap: PrivateHeap<Mmap>,
    /// Small blocks that are live.
    small: Vec<NonNull<u8>>,
    /// The last small block that was freed: first of the thread's list.
    listed: NonNull<u8>,
    large: NonNull<u8>,
    cached_large: NonNull<u8>,
    huge: NonNull<u8>,
    cached_huge: NonNull<u8>,
}

const SMALL: usize = 64;

impl Subject {
    fn new() -> Self {
        let heap = heap();
        let [large, cached_large] = [100_000, 300_000].map(|bytes| heap.alloc(bytes, 8).unwrap());
        let [huge, cached_huge] = [40 << 20, 70 << 20].map(|bytes| heap.alloc(bytes, 8).unwrap());
        let mut small: Vec<_> = (0..2000).map(|_| heap.alloc(SMALL, 8).unwrap()).collect();
        small.drain(1500..).for_each(|block| free(&heap, block, SMALL));
        let listed = small.pop().unwrap();
        free(&heap, listed, SMALL);
        free(&heap, cached_large, 300_000);
        free(&heap, cached_huge, 70 << 20);
        let report = heap.verify().unwrap();
        assert!(report.listed_blocks > 0 && report.free_blocks > 0 && report.out_blocks >= 1499);
        assert_eq!((report.large_blocks, report.cached_large_blocks), (1, 1));
        assert_eq!((report.huge_blocks, report.cached_spans), (1, 1));
        Self { heap, small, listed, large, cached_large, huge, cached_huge }
    }

    fn slab(&self) -> &'static Slab {
        slab_of(self.listed)
    }

    fn local(&self, change: impl FnOnce(&mut LocalPart)) {
        // SAFETY: the heap is this thread's.
        unsafe { self.slab().local(change) };
    }
}

/// Shows that `plant` breaks `expected`, and that nothing was broken before.
fn finds(expected: Broken, plant: impl FnOnce(&Subject)) {
    let subject = Subject::new();
    plant(&subject);
    let error: VerifyError = subject.heap.verify().expect_err("the fault was not found");
    assert_eq!(error.what, expected, "{error}");
}

fn link(block: NonNull<u8>, to: *mut u8) {
    // SAFETY: the test may write where a block is, that is the point.
    unsafe { Block::set_next(block.as_ptr().cast(), to.cast()) };
}

#[test]
fn a_link_overwritten_in_a_freed_block_is_found_and_not_followed() {
    finds(Broken::ListClass, |s| link(s.listed, ptr::without_provenance_mut(0x4141_4141_4141_4141)));
    finds(Broken::ListClass, |s| link(s.listed, s.large.as_ptr()));
    finds(Broken::BlockOutside, |s| link(s.listed, s.small[0].as_ptr().wrapping_add(8)));
    finds(Broken::BlockOutside, |s| s.local(|l| l.free = l.free.wrapping_byte_add(8)));
}

#[test]
fn a_block_freed_twice_is_found_in_whatever_lists_it_is() {
    // Last freed, freed again: the list is a circle.
    finds(Broken::ListEndless, |s| link(s.listed, s.listed.as_ptr()));
    // In the free list of the slab and in the thread's.
    finds(Broken::BlockTwice, |s| s.local(|l| link(s.listed, l.free.cast())));
    // In the free list twice.
    finds(Broken::BlockTwice, |s| {
        s.local(|l| link(NonNull::new(l.free.cast()).unwrap(), l.free.cast()));
    });
}

#[test]
fn counts_and_lengths_that_are_wrong_are_found() {
    finds(Broken::SlabCounts, |s| s.local(|l| l.out += 1));
    finds(Broken::SlabCounts, |s| s.local(|l| l.virgin = l.capacity + 1));
    finds(Broken::SlabShape, |s| s.local(|l| l.capacity -= 1));
    finds(Broken::SlabShape, |s| s.local(|l| l.class += 1));
    finds(Broken::FreeListLength, |s| s.local(|l| (l.free_count, l.out) = (l.free_count - 1, l.out + 1)));
    finds(Broken::BlocksOfClass, |s| s.heap.counters().classes[size_class::class_of(SMALL)].taken.add(1));
    finds(Broken::SlabsOfClass, |s| s.heap.counters().classes[size_class::class_of(SMALL)].slabs_made.add(1));
}

#[test]
fn queues_that_are_out_of_order_are_found() {
    finds(Broken::QueueLink, |s| s.local(|l| l.bin += 1));
    finds(Broken::QueueLink, |s| s.local(|l| l.bin_limit += 1));
    finds(Broken::QueueLink, |s| s.local(|l| l.previous = ptr::from_ref(s.slab()).cast_mut()));
    finds(Broken::QueueLink, |s| s.local(|l| l.queued = false));
    finds(Broken::QueueLength, |s| s.local(|l| l.next = ptr::from_ref(s.slab()).cast_mut()));
}

#[test]
fn slices_that_are_lost_or_used_twice_are_found() {
    let index = |block: NonNull<u8>| block.addr().get() % crate::segment::SEGMENT_BYTES / SLICE_BYTES;
    finds(Broken::FreeSliceOccupied, |s| {
        bitmap::set::<Local>(&segment_of(s.large).free, index(s.large), 1);
    });
    finds(Broken::SlicesLost, |s| {
        let segment = segment_of(s.large);
        let free = bitmap::next_set(&segment.free, 0).unwrap();
        bitmap::clear::<Local>(&segment.free, free, 1);
    });
    finds(Broken::SlicesLost, |s| segment_of(s.large).set_entries(index(s.large), 1, 0, 0));
    finds(Broken::SliceEntry, |s| segment_of(s.small[0]).set_entries(index(s.small[0]), 1, 0, 5));
    finds(Broken::SliceBytes, |s| s.heap.domain().counters.slices_in_use.add(1));
    finds(Broken::HeaderSliceFree, |s| {
        bitmap::set::<Local>(&segment_of(s.large).free, HEADER_SLICES - 1, 1);
    });
}

#[test]
fn caches_and_spans_that_do_not_agree_are_found() {
    finds(Broken::LargeCache, |s| link(s.cached_large, s.cached_large.as_ptr()));
    finds(Broken::CachedSpan, |s| segment_of(s.cached_huge).huge_live.store(1, Relaxed));
    finds(Broken::SpanLost, |s| {
        segment_of(s.huge).huge_live.store(0, Relaxed);
        let bytes = segment_of(s.huge).huge_committed();
        s.heap.domain().counters.huge_live.sub_shared::<Local>(bytes as u64);
    });
    finds(Broken::HugeLiveBytes, |s| s.heap.domain().counters.huge_live.add(4096));
    finds(Broken::HugeCommittedBytes, |s| s.heap.domain().counters.huge_committed.add(4096));
    finds(Broken::SegmentCount, |s| s.heap.domain().counters.segments.add(1));
    finds(Broken::SpanHeader, |s| segment_of(s.huge).huge_bytes.store(1 << 40, Relaxed));
    finds(Broken::SpanHeader, |s| segment_of(s.huge).span_segments.store(1000, Relaxed));
}

type SharedHeap = Heap<Mmap, Shared>;

/// Two heaps over one domain, and blocks of the first in every state that two heaps can bring them into.
struct Pair {
    domain: Box<Domain<Mmap, Shared>>,
    heaps: [(Box<SharedHeap>, Lists); 2],
    blocks: Vec<NonNull<u8>>,
}

impl Pair {
    fn new() -> Self {
        let policy = Policy { growth: Growth::SMALL, ..Policy::DEFAULT };
        let domain = Box::new(Domain::new(Mmap::new(), policy, ()));
        let mut heaps = [1, 2].map(|name| {
            // SAFETY: no heap is used once the domain is gone.
            let mut heap = Box::new(unsafe { SharedHeap::new(&raw const *domain, name, 0) });
            let lists = Lists::new();
            heap.attach(&lists, 0);
            (heap, lists)
        });
        let class = size_class::class_of(SMALL);
        let (first, lists) = &mut heaps[0];
        // SAFETY: the class is one.
        let mut alloc = || unsafe {
            let block = lists.pop(class);
            NonNull::new(if block.is_null() { first.alloc_miss(lists, class) } else { block }).unwrap()
        };
        let mut blocks: Vec<_> = (0..8000).map(|_| alloc()).collect();
        let (second, lists) = &mut heaps[1];
        let mut at = 0;
        blocks.retain(|block| {
            at += 1;
            let keep = at % 2 == 0 || at > 6000;
            if !keep {
                // SAFETY: the block is live, of this class, and not at home in the second heap.
                unsafe { second.free_miss(lists, block.as_ptr(), class) };
            }
            keep
        });
        let pair = Self { domain, heaps, blocks };
        let report = pair.verify().unwrap();
        assert!(report.parked_slabs > 0 && report.shelved_slabs > 0 && report.remote_blocks > 0);
        assert!(report.batched_blocks > 0 && report.owned_slabs > 0);
        pair
    }

    fn verify(&self) -> Result<super::VerifyReport, VerifyError> {
        let heaps = || self.heaps.iter().map(|(heap, lists)| (&**heap, Some(lists)));
        // SAFETY: both heaps are here, and nobody else runs.
        unsafe { self.domain.verify_quiet(heaps) }
    }

    /// A parked slab for which `wanted` holds.
    fn parked(&self, wanted: impl Fn(&super::WordParts) -> bool) -> &'static Slab {
        let slabs = self.blocks.iter().map(|&block| slab_of(block));
        slabs
            .filter(|slab| slab.owner() == crate::slab::PARKED)
            .find(|slab| wanted(&slab.read_word()))
            .expect("there is such a slab")
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // SAFETY: the heaps are not used any more.
        unsafe { self.domain.destroy() };
    }
}

fn pair_finds(expected: Broken, plant: impl FnOnce(&mut Pair)) {
    let mut pair = Pair::new();
    plant(&mut pair);
    let error = pair.verify().expect_err("the fault was not found");
    assert_eq!(error.what, expected, "{error}");
}

/// Changes the local part of a slab that nobody owns.
fn local(slab: &Slab, change: impl FnOnce(&mut LocalPart)) {
    // SAFETY: nobody else runs.
    unsafe { slab.local(change) };
}

#[test]
fn a_slab_that_was_parked_wrongly_is_found() {
    pair_finds(Broken::OutAtPark, |pair| {
        let slab = pair.parked(|word| word.remote_count == 0);
        local(slab, |l| (l.out, l.virgin) = (l.out - 1, l.virgin - 1));
    });
    pair_finds(Broken::ParkedUnshelved, |pair| {
        // Taken off its shelf without a claim.
        let shard = pair.domain.shelves.iter().flatten().find(|shelf| !shelf.is_empty()).unwrap();
        let slab = shard.pop::<Shared>().unwrap();
        assert_eq!(slab.claim::<Shared>(1, true), Ok(true));
        // SAFETY: claimed just now.
        let shelve = unsafe { slab.park::<Shared>(1) }.unwrap();
        assert!(shelve);
        // Marked as shelved, and not put there: the bit is cleared as a pop would.
        assert_eq!(slab.claim::<Shared>(1, true), Ok(true));
        // SAFETY: claimed just now; the free list is hidden so that parking does not shelve.
        unsafe {
            let (free, count, virgin) = slab.local(|l| (l.free, l.free_count, l.virgin));
            slab.local(|l| (l.free, l.free_count, l.virgin) = (ptr::null_mut(), 0, l.capacity));
            assert!(!slab.park::<Shared>(1).unwrap());
            slab.local(|l| (l.free, l.free_count, l.virgin) = (free, count, virgin));
        }
    });
    pair_finds(Broken::ShelfLost, |pair| {
        let shard = pair.domain.shelves.iter().flatten().find(|shelf| !shelf.is_empty()).unwrap();
        // Popped, and its bit not cleared.
        let _ = shard.pop::<Shared>().unwrap();
    });
    pair_finds(Broken::ShelfEndless, |pair| {
        let shard = pair.domain.shelves.iter().flatten().find(|shelf| !shelf.is_empty()).unwrap();
        let slab = shard.pop::<Shared>().unwrap();
        // SAFETY: the slab lives as long as the domain; that its bit was not set anew is the fault.
        unsafe {
            shard.push::<Shared>(slab);
            shard.push::<Shared>(slab);
        }
    });
}

#[test]
fn a_remote_list_that_was_written_to_is_found() {
    pair_finds(Broken::BlockOutside, |pair| {
        let word = pair.parked(|word| word.remote_count > 1).read_word();
        link(NonNull::new(word.remote_head.cast()).unwrap(), ptr::without_provenance_mut(64));
    });
    pair_finds(Broken::BlockTwice, |pair| {
        let word = pair.parked(|word| word.remote_count > 1).read_word();
        link(NonNull::new(word.remote_head.cast()).unwrap(), word.remote_head.cast());
    });
}

#[test]
fn a_slab_owned_by_nobody_that_exists_is_found() {
    pair_finds(Broken::SlabOwner, |pair| {
        let slab = pair.parked(|word| word.remote_count > 0);
        assert_eq!(slab.claim::<Shared>(77, false), Ok(true));
    });
    pair_finds(Broken::SlabUnqueued, |pair| {
        let slab = pair.parked(|word| word.remote_count > 0);
        assert_eq!(slab.claim::<Shared>(2, false), Ok(true));
    });
}

#[test]
fn a_batch_that_was_written_to_is_found() {
    pair_finds(Broken::BlockOutside, |pair| {
        let (_, chain) =
            pair.heaps[1].0.parts().batches.waiting().find(|(_, chain)| chain.count > 1).unwrap();
        link(NonNull::new(chain.head.cast()).unwrap(), ptr::without_provenance_mut(8));
    });
}

#[test]
fn a_heap_is_verified_while_other_threads_free_into_its_slabs() {
    let pair = Pair::new();
    let report = pair.heaps[0].0.verify(&pair.heaps[0].1).unwrap();
    assert!(report.owned_slabs > 0 && report.heaps == 1);
    assert!(pair.domain.verify_running().unwrap().segments > 0);
}
