//! Models of what heaps share below their slabs: arenas and segments, slices that come and go, purging. They run a whole domain
//! over a source of pages that loom can watch. The arguments are in `docs/src/protocols/`: bitmaps.md, purging.md and huge-cache.md. Each model
//! has twins with a planted fault, which must fail.
#![cfg(loom)]

mod harness;
#[path = "harness/pages.rs"]
mod pages;

use harness::{check, models};
use loom::thread;
use pages::{Model, POLICY, domain, heap};
use std::sync::atomic::AtomicU64;
use terrane_slab::Lists;
use terrane_slab::fault::Fault;
use terrane_slab::segment::{SEGMENT_BYTES, SLICE_BYTES, USABLE_SLICES};

models! {
    model_publication: publication, threads 3,
        faults [fault_publication_arena_relaxed: ArenaRelaxed, fault_publication_segment_relaxed: HintRelaxed];
    model_open_hint: open_hint, threads 2, faults [fault_open_hint_unfenced: OpenUnfenced];
    model_part_of_run: part_of_run, threads 2, faults [fault_part_of_run_unopened: PartUnopened];
    model_purge_claim: purge_claim, threads 2,
        faults [fault_purge_claim_unclaimed: PurgeUnclaimed, fault_purge_claim_unopened: PurgeUnopened];
    model_purge_due: purge_due, threads 2, faults [fault_purge_due_unfenced: DueUnfenced];
    model_huge_spans: huge_spans, threads 3,
        faults [fault_huge_spans_put_relaxed: PutRelaxed, fault_huge_spans_take_relaxed: TakeRelaxed];
    model_large_cache: large_cache, threads 2, faults [fault_large_cache_release_relaxed: ReleaseRelaxed];
}

/// A large block of `slices` slices of a thread that comes, takes one block, and goes; its address.
fn take(domain: &Model, name: u32, slices: usize) -> usize {
    let (mut heap, lists) = (heap(domain, name), Lists::new());
    heap.attach(&lists, 0);
    let (block, _) = heap.alloc_large(&lists, slices * SLICE_BYTES, 1, false);
    assert!(!block.is_null());
    domain.source().touch(block.addr(), slices * SLICE_BYTES);
    heap.abandon(&lists);
    block.expose_provenance()
}

/// Frees a large block.
fn give(domain: &Model, name: u32, block: usize) {
    let (mut heap, lists) = (heap(domain, name), Lists::new());
    heap.attach(&lists, 0);
    // SAFETY: the block was taken by `take`, and is freed once.
    unsafe { heap.free_large(&lists, std::ptr::with_exposed_provenance_mut(block)) };
    heap.abandon(&lists);
}

/// Takes every slice of the first segment; the last block has one slice.
fn fill(domain: &Model) -> Vec<usize> {
    let mut left = USABLE_SLICES;
    let mut blocks = Vec::new();
    while left > 1 {
        let slices = (left - 1).min(16);
        blocks.push(take(domain, 1, slices));
        left -= slices;
    }
    blocks.push(take(domain, 1, 1));
    blocks
}

fn segment_of(block: usize) -> usize {
    block / SEGMENT_BYTES
}

/// Two threads take memory of an empty domain while a third walks over all segments: nobody meets half an arena or half a
/// segment, and no slice is in two hands.
fn publication(iterations: &'static AtomicU64) {
    check(1, iterations, || {
        let domain = domain(POLICY);
        let takers: Vec<_> = [2, 3]
            .into_iter()
            .map(|name| {
                let domain = domain.clone();
                thread::spawn(move || take(&domain, name, 16))
            })
            .collect();
        let walker = {
            let domain = domain.clone();
            thread::spawn(move || {
                domain.purge(0, true);
            })
        };
        let blocks: Vec<usize> = takers.into_iter().map(|taker| taker.join().unwrap()).collect();
        walker.join().unwrap();
        assert!(blocks[0].abs_diff(blocks[1]) >= 16 * SLICE_BYTES, "two blocks overlap");
        assert!(domain.arenas().count() <= 2);
    });
}

/// The last slice of a segment comes back while a thread looks for one: whoever looks afterwards finds it, unless that thread did.
fn open_hint(iterations: &'static AtomicU64) {
    check(3, iterations, || {
        let domain = domain(POLICY);
        let mut blocks = fill(&domain);
        let last = blocks.pop().unwrap();
        let giver = {
            let domain = domain.clone();
            thread::spawn(move || give(&domain, 1, last))
        };
        let taker = {
            let domain = domain.clone();
            thread::spawn(move || take(&domain, 2, 1))
        };
        giver.join().unwrap();
        let taken = taker.join().unwrap();
        let next = take(&domain, 3, 1);
        let found = [taken, next].into_iter().filter(|&block| segment_of(block) == segment_of(last)).count();
        assert_eq!(found, 1, "a free slice is in nobody's reach");
    });
}

/// Two slices are free, on both sides of a boundary of words. One thread wants both, another takes one and then one more:
/// what the first held for a moment and gave back is found.
fn part_of_run(iterations: &'static AtomicU64) {
    check(1, iterations, || {
        let domain = domain(POLICY);
        // Slabs' lengths are taken from the top, within words.
        for slices in [16, 16, 16, 15] {
            take(&domain, 1, slices);
        }
        let (upper, lower) = (take(&domain, 1, 1), take(&domain, 1, 1));
        assert_eq!((upper - lower, upper / SLICE_BYTES % 64), (SLICE_BYTES, 0));
        let mut left = USABLE_SLICES - 65;
        while left > 0 {
            take(&domain, 1, left.min(16));
            left -= left.min(16);
        }
        give(&domain, 1, upper);
        give(&domain, 1, lower);
        let both = {
            let domain = domain.clone();
            thread::spawn(move || take(&domain, 2, 2))
        };
        let single = {
            let domain = domain.clone();
            thread::spawn(move || [3, 4].map(|name| take(&domain, name, 1)))
        };
        let both = both.join().unwrap();
        let [first, second] = single.join().unwrap();
        let here = |block: usize| (segment_of(block) == segment_of(upper)) as usize;
        let mut used = 2 * here(both) + here(first) + here(second);
        while used < 2 {
            assert_eq!(here(take(&domain, 5, 1)), 1, "a free slice is in nobody's reach");
            used += 1;
        }
    });
}

/// A pass purges a slice while a thread wants one: nobody is handed memory that is about to vanish, and the slice is found
/// afterwards.
fn purge_claim(iterations: &'static AtomicU64) {
    check(3, iterations, || {
        let domain = domain(POLICY);
        let last = fill(&domain).pop().unwrap();
        give(&domain, 1, last);
        let purger = {
            let domain = domain.clone();
            thread::spawn(move || domain.purge(0, true))
        };
        let taker = {
            let domain = domain.clone();
            thread::spawn(move || take(&domain, 2, 1))
        };
        let purged = purger.join().unwrap();
        let taken = taker.join().unwrap();
        assert!(purged == 0 || purged == SLICE_BYTES);
        let next = take(&domain, 3, 1);
        let found = [taken, next].into_iter().filter(|&block| segment_of(block) == segment_of(last)).count();
        assert_eq!(found, 1, "a slice that was purged is in nobody's reach");
    });
}

/// A slice comes back while a pass is under way: the pass purges it, or the next one does.
fn purge_due(iterations: &'static AtomicU64) {
    check(3, iterations, || {
        let domain = domain(POLICY);
        let first = take(&domain, 1, 1);
        give(&domain, 1, first);
        // A time is set, and nothing is free.
        let second = take(&domain, 1, 1);
        let purger = {
            let domain = domain.clone();
            thread::spawn(move || domain.purge(0, true))
        };
        let giver = {
            let domain = domain.clone();
            thread::spawn(move || give(&domain, 1, second))
        };
        let purged = purger.join().unwrap();
        giver.join().unwrap();
        let later = domain.purge(0, true);
        assert_eq!(purged + later, SLICE_BYTES, "free memory that no pass will look at");
    });
}

/// A huge block is freed into the cache of spans while one thread wants such a block and another lets the cache decay: the
/// span is reused once or given back once, and the books balance.
fn huge_spans(iterations: &'static AtomicU64) {
    // More than any large block.
    const SLICES: usize = 24;
    check(3, iterations, || {
        let domain = domain(POLICY);
        let first = take(&domain, 1, SLICES);
        let freer = {
            let domain = domain.clone();
            thread::spawn(move || {
                domain.source().touch(first, SLICES * SLICE_BYTES);
                give(&domain, 1, first);
            })
        };
        let taker = {
            let domain = domain.clone();
            thread::spawn(move || take(&domain, 2, SLICES))
        };
        let decayer = {
            let domain = domain.clone();
            thread::spawn(move || domain.purge(0, true))
        };
        freer.join().unwrap();
        let second = taker.join().unwrap();
        decayer.join().unwrap();
        assert_eq!(domain.counters.huge_live.get(), (SLICES * SLICE_BYTES) as u64);
        give(&domain, 2, second);
        domain.purge(0, true);
        let counters = &domain.counters;
        let left =
            [&counters.huge_live, &counters.huge_committed, &counters.segments].map(|counter| counter.get());
        assert_eq!(left, [0; 3], "a span is in nobody's hands");
    });
}

/// A thread frees another's large block into its own cache and ends, which empties the cache, while a third takes a run: it sees
/// the slices as they were left.
fn large_cache(iterations: &'static AtomicU64) {
    check(4, iterations, || {
        let purge = terrane_slab::PurgePolicy { large_cache_bytes: usize::MAX, ..POLICY.purge };
        let domain = domain(terrane_slab::Policy { purge, ..POLICY });
        let last = fill(&domain).pop().unwrap();
        let freer = {
            let domain = domain.clone();
            thread::spawn(move || {
                domain.source().touch(last, SLICE_BYTES);
                give(&domain, 2, last);
            })
        };
        let taker = {
            let domain = domain.clone();
            thread::spawn(move || take(&domain, 3, 1))
        };
        freer.join().unwrap();
        let taken = taker.join().unwrap();
        let next = take(&domain, 4, 1);
        assert_ne!(taken, next, "a run is in two hands");
        let found = [taken, next].into_iter().filter(|&block| segment_of(block) == segment_of(last)).count();
        assert_eq!(found, 1, "a run that a cache gave up is in nobody's reach");
    });
}
