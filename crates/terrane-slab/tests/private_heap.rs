//! A private heap against a reference model: blocks never overlap, keep their contents and alignment, and everything comes
//! back.

#![cfg(not(loom))]

mod support;

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use support::Strict;
use terrane_slab::PrivateHeap;
use terrane_slab::segment::SEGMENT_BYTES;

#[derive(Clone, Debug)]
enum Op {
    Alloc { bytes: usize, align_shift: u32, zeroed: bool },
    Free { nth: usize },
    Realloc { nth: usize, bytes: usize },
    ReleaseFreeMemory,
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        8 => 0_usize..200,
        4 => 0_usize..5000,
        2 => 5000_usize..70_000,
        1 => 70_000_usize..3_000_000,
        1 => Just(17 << 20),
        1 => Just(40 << 20),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (size(), 0_u32..=13, any::<bool>()).prop_map(|(bytes, align_shift, zeroed)| Op::Alloc { bytes, align_shift, zeroed }),
        1 => (0_usize..100, 14_u32..=26).prop_map(|(bytes, align_shift)| Op::Alloc { bytes, align_shift, zeroed: false }),
        5 => any::<usize>().prop_map(|nth| Op::Free { nth }),
        3 => (any::<usize>(), size()).prop_map(|(nth, bytes)| Op::Realloc { nth, bytes }),
        1 => Just(Op::ReleaseFreeMemory),
    ]
}

struct Live {
    block: NonNull<u8>,
    bytes: usize,
    align: usize,
    seed: u8,
}

/// Touches the ends and one byte a page: enough to see an overlap or lost content, quick enough for large blocks.
fn marks(bytes: usize) -> impl Iterator<Item = usize> {
    (0..bytes.min(64))
        .chain((64..bytes).step_by(if bytes > 1 << 20 { 65_536 } else { 4096 }))
        .chain(bytes.saturating_sub(64).max(64)..bytes)
}

fn byte(block: NonNull<u8>, at: usize) -> u8 {
    // SAFETY: callers name bytes inside live blocks.
    unsafe { block.add(at).read() }
}

fn fill(live: &Live) {
    for i in marks(live.bytes) {
        // SAFETY: inside the block.
        unsafe { live.block.add(i).write(live.seed ^ (i as u8)) };
    }
}

fn check(live: &Live, upto: usize) {
    for i in marks(live.bytes).filter(|&i| i < upto) {
        assert_eq!(byte(live.block, i), live.seed ^ (i as u8), "byte {i} of {} bytes", live.bytes);
    }
}

fn run(ops: &[Op], page: usize) {
    let source = Strict::with_page(page);
    {
        let heap = PrivateHeap::new_in(&source).unwrap();
        let mut live: Vec<Live> = Vec::new();
        let mut ranges: BTreeMap<usize, usize> = BTreeMap::new();
        let claim = |ranges: &mut BTreeMap<usize, usize>, block: NonNull<u8>, bytes: usize| {
            let start = block.addr().get();
            let end = start + bytes.max(1);
            if let Some((&before, &before_end)) = ranges.range(..end).next_back() {
                assert!(before_end <= start, "{start:#x}..{end:#x} overlaps {before:#x}..{before_end:#x}");
            }
            ranges.insert(start, end);
        };
        for (n, op) in ops.iter().enumerate() {
            match *op {
                Op::Alloc { bytes, align_shift, zeroed } => {
                    let align = 1 << align_shift;
                    let block =
                        if zeroed { heap.alloc_zeroed(bytes, align) } else { heap.alloc(bytes, align) }
                            .unwrap();
                    assert!(block.addr().get().is_multiple_of(align));
                    claim(&mut ranges, block, bytes);
                    if zeroed {
                        assert!(marks(bytes).all(|i| byte(block, i) == 0), "{bytes} bytes are not zero");
                    }
                    let fresh = Live { block, bytes, align, seed: n as u8 };
                    fill(&fresh);
                    live.push(fresh);
                }
                Op::Free { nth } if !live.is_empty() => {
                    let index = nth % live.len();
                    let gone = live.swap_remove(index);
                    check(&gone, gone.bytes);
                    ranges.remove(&gone.block.addr().get());
                    // SAFETY: the block is live and came from this heap.
                    unsafe { heap.free(gone.block, gone.bytes, gone.align) };
                }
                Op::Realloc { nth, bytes } if !live.is_empty() => {
                    let index = nth % live.len();
                    let old = &live[index];
                    check(old, old.bytes);
                    ranges.remove(&old.block.addr().get());
                    // SAFETY: the block is live and came from this heap.
                    let block = unsafe { heap.realloc(old.block, old.bytes, old.align, bytes) }.unwrap();
                    assert!(block.addr().get().is_multiple_of(old.align));
                    claim(&mut ranges, block, bytes);
                    let kept = old.bytes.min(bytes);
                    for i in marks(old.bytes).filter(|&i| i < kept) {
                        assert_eq!(byte(block, i), old.seed ^ (i as u8), "byte {i} after realloc");
                    }
                    let fresh = Live { block, bytes, align: old.align, seed: n as u8 };
                    fill(&fresh);
                    live[index] = fresh;
                }
                Op::ReleaseFreeMemory => heap.release_free_memory(),
                _ => {}
            }
            if n % 64 == 0 {
                heap.verify().unwrap();
            }
        }
        for one in live.drain(..) {
            check(&one, one.bytes);
            // SAFETY: the block is live and came from this heap.
            unsafe { heap.free(one.block, one.bytes, one.align) };
        }
        heap.verify().unwrap();
        heap.release_free_memory();
        assert_eq!(heap.verify().unwrap().looked_at(), 0);
        let counters = heap.counters();
        for class in &counters.classes {
            assert_eq!(class.taken.get(), class.returned.get(), "blocks are missing from their slabs");
            assert_eq!(class.slabs_made.get(), class.slabs_retired.get(), "slabs are missing");
        }
        let domain = &heap.domain().counters;
        assert_eq!(domain.slices_in_use.get(), 0);
        assert_eq!((domain.huge_live.get(), domain.huge_committed.get()), (0, 0));
        assert_eq!(counters.large_bytes_taken.get(), counters.large_bytes_given.get());
    }
    assert_eq!(source.reserved.load(Ordering::Relaxed), 0, "address space is not given back");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_heap_behaves_as_the_model(ops in proptest::collection::vec(op(), 1..200)) {
        run(&ops, 4096);
    }

    #[test]
    fn a_heap_behaves_as_the_model_with_longer_pages(
        ops in proptest::collection::vec(op(), 1..100), shift in 14_u32..=16,
    ) {
        run(&ops, 1 << shift);
    }
}

#[test]
fn many_small_blocks_fill_slabs_and_all_come_back() {
    let source = Strict::new();
    let heap = PrivateHeap::new_in(&source).unwrap();
    let blocks: Vec<_> = (0..200_000).map(|i| (heap.alloc(i % 500, 8).unwrap(), i % 500)).collect();
    for (i, &(block, bytes)) in blocks.iter().enumerate() {
        if bytes > 0 {
            // SAFETY: inside the block.
            unsafe { block.write_bytes(i as u8, bytes) };
        }
    }
    for (i, &(block, bytes)) in blocks.iter().enumerate() {
        // SAFETY: inside the block; each is freed once.
        unsafe {
            assert!((0..bytes).all(|b| block.add(b).read() == i as u8));
            heap.free(block, bytes, 8);
        }
    }
    heap.release_free_memory();
    assert_eq!(heap.domain().counters.slices_in_use.get(), 0);
}

#[test]
fn what_huge_blocks_left_goes_back_when_small_blocks_need_another_segment() {
    let source = Strict::new();
    let heap = PrivateHeap::new_in(&source).unwrap();
    let counters = &heap.domain().counters;
    let small = |n: usize| (0..n).map(|_| heap.alloc(4096, 8).unwrap()).collect::<Vec<_>>();
    let mut blocks = small(1);
    let huge: Vec<_> = (0..3).map(|_| heap.alloc(SEGMENT_BYTES / 2, 8).unwrap()).collect();
    // SAFETY: each is freed once.
    huge.into_iter().for_each(|block| unsafe { heap.free(block, SEGMENT_BYTES / 2, 8) });
    let before = counters.huge_committed.get();
    assert!(before >= 3 * SEGMENT_BYTES as u64 / 2, "kept for reuse");
    let segments = counters.segments.get();
    blocks.extend(small(SEGMENT_BYTES / 4096 / 2));
    assert_eq!(
        (counters.segments.get(), counters.huge_committed.get()),
        (segments, before),
        "one has room for all"
    );
    blocks.extend(small(SEGMENT_BYTES / 4096));
    let after = counters.huge_committed.get();
    assert!(
        after > 0 && after <= before - SEGMENT_BYTES as u64,
        "{before} bytes, then {after}: a segment for a segment"
    );
    blocks.extend(small(SEGMENT_BYTES / 4096));
    assert_eq!(counters.huge_committed.get(), 0);
    // SAFETY: each is freed once.
    blocks.into_iter().for_each(|block| unsafe { heap.free(block, 4096, 8) });
    heap.verify().unwrap();
}

#[test]
fn room_in_an_old_segment_is_used_before_that_of_the_segment_taken_from_last() {
    let source = Strict::new();
    let heap = PrivateHeap::new_in(&source).unwrap();
    let segment = |block: NonNull<u8>| block.addr().get() / SEGMENT_BYTES;
    let long = |bytes| heap.alloc(bytes, 8).unwrap();
    let first = long(2 << 20);
    let mut blocks = vec![first];
    while segment(*blocks.last().unwrap()) == segment(first) {
        blocks.push(long(2 << 20));
    }
    // The block in the second segment stays, and the heap has taken from there last.
    for block in blocks.drain(..blocks.len() - 1) {
        // SAFETY: it is live and came from this heap.
        unsafe { heap.free(block, 2 << 20, 8) };
    }
    assert_eq!(segment(long(3 << 20)), segment(first));
}

#[test]
fn a_source_that_fails_at_any_call_gives_no_block_and_leaves_the_heap_usable() {
    for fail_at in 0.. {
        let source = Strict::new();
        source.fail_at.store(fail_at, Ordering::Relaxed);
        let mut failed = 0;
        let Ok(heap) = PrivateHeap::new_in(&source) else {
            assert!(fail_at < 2);
            continue;
        };
        let mut live = Vec::new();
        for round in 0..3 {
            for bytes in [16, 3000, 30_000, 100_000, 5 << 20, 20 << 20, 40 << 20, 70 << 20] {
                match heap.alloc(bytes, 16) {
                    Some(block) => {
                        // SAFETY: inside the block.
                        unsafe { block.add(bytes - 1).write(round) };
                        live.push((block, bytes));
                    }
                    None => failed += 1,
                }
            }
            for (i, (block, bytes)) in std::mem::take(&mut live).into_iter().enumerate() {
                if i % 3 == 0 {
                    // SAFETY: the block is live and came from this heap.
                    match unsafe { heap.realloc(block, bytes, 16, bytes * 2) } {
                        // SAFETY: the same.
                        Some(block) => unsafe { heap.free(block, bytes * 2, 16) },
                        None => {
                            failed += 1;
                            // SAFETY: the same.
                            unsafe { heap.free(block, bytes, 16) }
                        }
                    }
                } else {
                    // SAFETY: the same.
                    unsafe { heap.free(block, bytes, 16) };
                }
            }
            heap.release_free_memory();
        }
        assert!(failed <= 1, "one failing call cost {failed} requests");
        assert_eq!(heap.domain().counters.slices_in_use.get(), 0);
        drop(heap);
        if source.calls.load(Ordering::Relaxed) <= fail_at {
            assert!(fail_at > 30, "the sweep reached the end after {fail_at} calls");
            break;
        }
    }
}
