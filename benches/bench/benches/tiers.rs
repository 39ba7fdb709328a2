//! The inner operations of each tier, each by itself, so that a change to one can be judged in a minute.
//!
//! ```text
//!   cargo bench -p terrane-bench -- --save-baseline before
//!       … change …
//!   cargo bench -p terrane-bench -- --baseline before
//! ```
//!
//! From the bottom up: bitmap search, size classes, a hit, refill and flush of a thread's list, making and retiring
//! slabs and segments, purging, growth of a large block, and the facade as a program uses it.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::ptr::NonNull;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput};
use terrane::Terrane;
use terrane_pages::Mmap;
use terrane_slab::segment::SEGMENT_BYTES;
use terrane_slab::sharing::{Local, Shared, Sharing};
use terrane_slab::size_class::{MAX_SMALL, class_of_dynamic};
use terrane_slab::{PrivateHeap, bitmap};

type Heap = PrivateHeap<Mmap>;

fn heap() -> Heap {
    PrivateHeap::new_in(Mmap::new()).expect("the machine has a page to give")
}

fn take(heap: &Heap, bytes: usize) -> NonNull<u8> {
    heap.alloc(bytes, 8).expect("the machine has memory to give")
}

/// # Safety
///
/// `block` came from `heap` with `bytes` and is not used any more.
unsafe fn give(heap: &Heap, block: NonNull<u8>, bytes: usize) {
    // SAFETY: the caller's promise; every block here has the alignment 8.
    unsafe { heap.free(block, bytes, 8) };
}

/// Numbers that differ from run to run of the loop but not from run to run of the program.
fn scattered(count: usize) -> Vec<usize> {
    let mut state = 1u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn bitmaps(criterion: &mut Criterion) {
    use std::sync::atomic::AtomicU64;

    fn claim_and_release<K: Sharing>(words: &[AtomicU64], len: usize) {
        if let Some(start) = bitmap::claim::<K>(words, len, 1, 0) {
            bitmap::release::<K>(words, black_box(start), len);
        }
    }

    let mut group = criterion.benchmark_group("bitmap of 1024");
    // All taken but the last word: the search has to pass fifteen words.
    let words: Vec<AtomicU64> =
        (0..16).map(|word| AtomicU64::new(if word == 15 { u64::MAX } else { 0 })).collect();
    group.bench_function("claim 1 at the end, one thread", |b| {
        b.iter(|| claim_and_release::<Local>(&words, 1))
    });
    group.bench_function("claim 1 at the end, shared", |b| b.iter(|| claim_and_release::<Shared>(&words, 1)));
    // Every second bit is taken up to the last word: no run before it is long enough.
    let holes: Vec<AtomicU64> = (0..16)
        .map(|word| AtomicU64::new(if word == 15 { u64::MAX } else { 0x5555_5555_5555_5555 }))
        .collect();
    group.bench_function("claim a run of 8 behind holes", |b| {
        b.iter(|| claim_and_release::<Shared>(&holes, 8))
    });
    group.finish();
}

fn size_classes(criterion: &mut Criterion) {
    let small: Vec<usize> = scattered(1024).into_iter().map(|n| n % 1024 + 1).collect();
    let any: Vec<usize> = scattered(1024).into_iter().map(|n| n % MAX_SMALL + 1).collect();
    let mut group = criterion.benchmark_group("size class");
    group.throughput(Throughput::Elements(1024));
    for (name, sizes) in [("up to 1 KiB", &small), ("up to the largest small size", &any)] {
        group.bench_function(name, |b| {
            b.iter(|| sizes.iter().map(|size| class_of_dynamic(black_box(*size))).sum::<usize>());
        });
    }
    group.finish();
}

fn lists(criterion: &mut Criterion) {
    const BLOCKS: usize = 4096;
    let mut group = criterion.benchmark_group("heap");
    let warm = heap();
    group.bench_function("hit: pair of 64 B", |b| {
        b.iter(|| {
            let block = take(&warm, black_box(64));
            // SAFETY: taken just above.
            unsafe { give(&warm, black_box(block), 64) };
        });
    });
    group.throughput(Throughput::Elements(BLOCKS as u64));
    let order: Vec<usize> = {
        let mut keyed: Vec<(usize, usize)> = scattered(BLOCKS).into_iter().zip(0..BLOCKS).collect();
        keyed.sort_unstable();
        keyed.into_iter().map(|(_, i)| i).collect()
    };
    let mut blocks: Vec<NonNull<u8>> = Vec::with_capacity(BLOCKS);
    for (name, ordered) in
        [("refill and flush: 4096 of 64 B, freed in order", true), ("the same, freed at random", false)]
    {
        group.bench_function(name, |b| {
            b.iter(|| {
                blocks.extend((0..BLOCKS).map(|_| take(&warm, 64)));
                for i in 0..BLOCKS {
                    let block = blocks[if ordered { i } else { order[i] }];
                    // SAFETY: the order is a permutation, so each block is freed once.
                    unsafe { give(&warm, block, 64) };
                }
                blocks.clear();
            });
        });
    }
    group.bench_function("virgin memory: 4096 of 64 B in a new heap", |b| {
        // The blocks are not touched: what is measured is the carving, and the heap's end.
        b.iter_batched_ref(
            heap,
            |heap| {
                for _ in 0..BLOCKS {
                    black_box(take(heap, 64));
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn slabs_and_segments(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("making and retiring");
    let sizes: Vec<usize> = (1..=64).map(|i| i * 128).collect();
    let heap_of_slabs = heap();
    group.throughput(Throughput::Elements(sizes.len() as u64));
    group.bench_function("slabs: one block of each of 64 sizes, all given back", |b| {
        b.iter(|| {
            let blocks: Vec<NonNull<u8>> = sizes.iter().map(|bytes| take(&heap_of_slabs, *bytes)).collect();
            for (block, bytes) in blocks.into_iter().zip(&sizes) {
                // SAFETY: taken just above, freed once.
                unsafe { give(&heap_of_slabs, block, *bytes) };
            }
            heap_of_slabs.release_free_memory();
        });
    });
    group.throughput(Throughput::Elements(1));
    let heap_of_segments = heap();
    let most = SEGMENT_BYTES / 4 * 3;
    group.bench_function("segments: four large blocks of three quarters", |b| {
        b.iter(|| {
            let blocks = [(); 4].map(|()| take(&heap_of_segments, most));
            for block in blocks {
                // SAFETY: taken just above, freed once.
                unsafe { give(&heap_of_segments, block, most) };
            }
        });
    });
    group.finish();
}

fn giving_back(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("large");
    let heap = heap();
    for (name, bytes) in
        [("pair of 256 KiB", 256 << 10), ("pair of 1 MiB", 1 << 20), ("pair of 32 MiB", 32 << 20)]
    {
        group.bench_function(name, |b| {
            b.iter(|| {
                let block = take(&heap, black_box(bytes));
                // SAFETY: taken just above.
                unsafe { give(&heap, black_box(block), bytes) };
            });
        });
    }
    group.bench_function("purge of 1 MiB that was written", |b| {
        b.iter(|| {
            let block = take(&heap, 1 << 20);
            // SAFETY: the block has 1 MiB; taken just above, freed once.
            unsafe {
                block.write_bytes(1, 1 << 20);
                give(&heap, block, 1 << 20);
            }
            black_box(heap.domain().purge(u64::MAX, true));
        });
    });
    group.bench_function("growth from 64 KiB to 16 MiB by doubling", |b| {
        b.iter(|| {
            let (mut block, mut bytes) = (take(&heap, 64 << 10), 64 << 10);
            while bytes < 16 << 20 {
                // SAFETY: the block has `bytes` bytes and is replaced by what comes back.
                let grown = unsafe { heap.realloc(block, bytes, 8, bytes * 2) };
                block = grown.expect("the machine has memory to give");
                bytes *= 2;
            }
            // SAFETY: the block has `bytes` bytes.
            unsafe { give(&heap, block, bytes) };
        });
    });
    group.finish();
}

fn facade(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("Terrane");
    const LAYOUT: Layout = Layout::new::<[u64; 8]>();
    group.bench_function("pair of constant 64 B", |b| {
        b.iter(|| {
            // SAFETY: the layout has a size; the block is freed once with the same layout.
            unsafe { Terrane.dealloc(black_box(Terrane.alloc(LAYOUT)), LAYOUT) };
        });
    });
    let sizes: Vec<usize> = scattered(1024).into_iter().map(|n| n % 2048 + 1).collect();
    group.throughput(Throughput::Elements(1024));
    group.bench_function("pairs of 1024 sizes", |b| {
        b.iter(|| {
            for size in &sizes {
                let layout = Layout::from_size_align(black_box(*size), 8).expect("sizes are small");
                // SAFETY: as above.
                unsafe { Terrane.dealloc(black_box(Terrane.alloc(layout)), layout) };
            }
        });
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .sample_size(30)
        .configure_from_args();
    for tier in [bitmaps, size_classes, lists, slabs_and_segments, giving_back, facade] {
        tier(&mut criterion);
    }
    criterion.final_summary();
}
