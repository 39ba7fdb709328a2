//! Models of the slab word, the shelves, the bitmaps and the cache of huge spans, over the production code. The arguments are in
//! `docs/src/protocols/`: slab-word.md, shelf.md, bitmaps.md, huge-cache.md. Each model has a twin with a planted fault, which
//! must fail.
#![cfg(loom)]

mod harness;

use harness::{check, models};
use loom::thread;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use terrane_core::sync::atomic::{
    AtomicU64 as ModelU64, AtomicUsize as ModelUsize, Ordering as ModelOrdering,
};
use terrane_core::sync::cell::UnsafeCell;
use terrane_slab::Shared;
use terrane_slab::bitmap;
use terrane_slab::fault::{Fault, plant_pauses};
use terrane_slab::huge::HugeCache;
use terrane_slab::segment::{HEADER_SLICES, SEGMENT_BYTES, Segment};
use terrane_slab::shelf::Shelf;
use terrane_slab::size_class;
use terrane_slab::slab::{Block, Chain, PARKED, Pending, Pushed, Slab};

/// A class whose blocks have room for loom's own cells.
const CLASS: u16 = 19;

/// One segment's worth of memory for all models of this process.
fn segment() -> *mut Segment {
    static START: OnceLock<usize> = OnceLock::new();
    let start = *START.get_or_init(|| {
        // SAFETY: a fresh anonymous mapping, twice as long as needed so that an aligned part exists.
        let at = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), 2 * SEGMENT_BYTES, access, flags, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        (at.expose_provenance()).next_multiple_of(SEGMENT_BYTES)
    });
    std::ptr::with_exposed_provenance_mut(start)
}

/// Slab `n` of the segment, with fresh metadata.
fn slab(n: usize) -> &'static Slab {
    // SAFETY: models run one at a time on this thread (see `alone`), and the metadata is made anew for each execution.
    unsafe {
        let slab = (*segment()).slab(HEADER_SLICES + n);
        slab.write(Slab::new());
        &*slab
    }
}

/// Blocks travel between model threads by address.
#[derive(Clone, Copy)]
struct Address(usize);

impl Address {
    fn of(block: *mut Block) -> Self {
        Self(block.expose_provenance())
    }

    fn chain(self) -> Chain {
        let block = std::ptr::with_exposed_provenance_mut(self.0);
        Chain { head: block, tail: block, count: 1 }
    }
}

/// Opens a slab of `capacity` blocks for heap `me` and takes `out` of them.
fn open(slab: &Slab, me: u32, capacity: u32, out: u32) -> Vec<Address> {
    assert!(size_class::class(CLASS as usize).block_bytes as usize >= size_of::<Block>());
    // SAFETY: the slab is free and the model's.
    unsafe {
        slab.open::<Shared>(me, CLASS, capacity, 1, false);
        let mut blocks = Vec::new();
        for _ in 0..out {
            let (block, 1, _) = slab.carve(1).unwrap() else { panic!("one block was asked for") };
            blocks.push(Address::of(block));
        }
        blocks
    }
}

/// Takes what is free in a slab, as a refill does, and walks it, as the thread's allocations do; how many blocks there were.
///
/// # Safety
/// The caller owns the slab.
unsafe fn take_and_walk(slab: &Slab) -> u32 {
    // SAFETY: the caller owns the slab, and so the blocks of its free list.
    unsafe {
        let Some((mut block, count)) = slab.take_free() else { return 0 };
        for _ in 0..count {
            assert!(!block.is_null(), "the free list is shorter than its count");
            block = Block::next(block);
        }
        assert!(block.is_null(), "the free list is longer than its count");
        count
    }
}

models! {
    model_push_collect: push_collect, threads 4,
        faults [fault_push_collect_unacquired: CollectRelaxed, fault_push_collect_unreleased: PushRelaxed];
    model_park_claim: park_claim, threads 3,
        faults [fault_park_claim_park_relaxed: ParkRelaxed, fault_park_claim_claim_relaxed: ClaimRelaxed];
    model_emptied: emptied, threads 3, faults [fault_emptied_park_unchecked: ParkUnchecked];
    model_steal: steal, threads 3, faults [fault_steal_claim_relaxed: ClaimRelaxed];
    model_shelf: shelf, threads 2, faults [fault_shelf_untagged: ShelfUntagged];
    model_reopen: reopen, threads 2, faults [fault_reopen_park_relaxed: ParkRelaxed];
    model_runs: runs, threads 2, faults [fault_runs_half_kept: RunKept, fault_runs_release_relaxed: ReleaseRelaxed];
    model_huge_cache: huge_cache, threads 3, faults [fault_huge_cache_put_relaxed: PutRelaxed];
}

/// Two threads free into a slab while its owner collects: every block arrives once, and its link is read after it was written.
fn push_collect(iterations: &'static AtomicU64) {
    check(3, iterations, || {
        let slab = slab(0);
        let blocks = open(slab, 1, 4, 3);
        let pushers: Vec<_> = blocks[..2]
            .iter()
            .map(|&block| {
                thread::spawn(move || {
                    // SAFETY: the block is this slab's, and this thread's.
                    let pushed = unsafe { slab.push::<Shared>(block.chain(), 4, 1) };
                    assert_eq!(pushed, Ok(Pushed::Waiting { shelve: false }), "an owned slab is not shelved");
                })
            })
            .collect();
        let owner = thread::spawn(move || {
            // SAFETY: this thread is heap 1, which owns the slab.
            unsafe {
                let collected = slab.collect::<Shared>().unwrap();
                assert_eq!(take_and_walk(slab), collected);
                collected
            }
        });
        let first = owner.join().unwrap();
        pushers.into_iter().for_each(|pusher| pusher.join().unwrap());
        // SAFETY: heap 1 is this thread now.
        unsafe {
            let second = slab.collect::<Shared>().unwrap();
            assert_eq!(first + second, 2);
            let counts = slab.counts();
            assert_eq!((counts.out, counts.free, counts.virgin), (1 + first, second, 1));
            assert_eq!(take_and_walk(slab), second);
        }
    });
}

/// The owner parks a slab; two heaps try to claim it: one gets it, with the local part as the owner left it.
fn park_claim(iterations: &'static AtomicU64) {
    check(3, iterations, || {
        let slab = slab(0);
        open(slab, 1, 4, 1);
        let claimers: Vec<_> = [2, 3]
            .into_iter()
            .map(|me| {
                thread::spawn(move || {
                    if slab.claim::<Shared>(me, false).unwrap() {
                        // SAFETY: the claim made the slab this heap's.
                        let counts = unsafe { slab.counts() };
                        assert_eq!((counts.out, counts.free, counts.virgin), (2, 0, 2));
                        // SAFETY: as above.
                        unsafe { slab.carve(1) }.unwrap();
                        assert_eq!(slab.owner(), me);
                        1
                    } else {
                        0
                    }
                })
            })
            .collect();
        let owner = thread::spawn(move || {
            // SAFETY: this thread is heap 1, which owns the slab until it is parked.
            unsafe {
                slab.carve(1).unwrap();
                assert_eq!(slab.park::<Shared>(1), Ok(true), "blocks are free, so it is to be shelved");
            }
        });
        owner.join().unwrap();
        let claimed: u32 = claimers.into_iter().map(|claimer| claimer.join().unwrap()).sum();
        let parked = slab.owner() == PARKED;
        assert_eq!(claimed, 1 - parked as u32, "claimed once, or nobody came after the park");
    });
}

/// Two threads free the last two blocks of a slab that its owner is parking: it is retired exactly once.
fn emptied(iterations: &'static AtomicU64) {
    check(3, iterations, || {
        let slab = slab(0);
        let blocks = open(slab, 1, 2, 2);
        let retired = loom::sync::Arc::new(ModelUsize::new(0));
        let freers: Vec<_> = blocks
            .iter()
            .zip([2, 3])
            .map(|(&block, me)| {
                let retired = retired.clone();
                thread::spawn(move || {
                    // SAFETY: the block is this slab's, and this thread's.
                    let pushed = unsafe { slab.push::<Shared>(block.chain(), 2, 2) }.unwrap();
                    if let Pushed::Emptied { .. } = pushed
                        && slab.claim::<Shared>(me, false).unwrap()
                    {
                        // SAFETY: the claim made the slab this heap's.
                        unsafe {
                            assert_eq!(slab.counts().out, 0);
                            assert!(slab.retire::<Shared>());
                        }
                        retired.fetch_add(1, ModelOrdering::Relaxed);
                    }
                })
            })
            .collect();
        let owner = {
            let retired = retired.clone();
            // SAFETY: this thread is heap 1, which owns the slab until it is parked or retired.
            thread::spawn(move || unsafe {
                loop {
                    if slab.counts().out == 0 {
                        assert!(slab.retire::<Shared>());
                        retired.fetch_add(1, ModelOrdering::Relaxed);
                        break;
                    }
                    match slab.park::<Shared>(1) {
                        Ok(_) => break,
                        Err(Pending) => drop(slab.collect::<Shared>().unwrap()),
                    }
                }
            })
        };
        owner.join().unwrap();
        freers.into_iter().for_each(|freer| freer.join().unwrap());
        assert_eq!(retired.load(ModelOrdering::Relaxed), 1);
        assert_eq!(slab.owner(), 0);
    });
}

/// The owner parks and shelves a slab; a thief takes it off the shelf; a third heap frees into it: no block is lost.
fn steal(iterations: &'static AtomicU64) {
    check(2, iterations, || {
        let slab = slab(0);
        let shelf = loom::sync::Arc::new(Shelf::new());
        let blocks = open(slab, 1, 4, 2);
        let thief = {
            let shelf = shelf.clone();
            thread::spawn(move || match shelf.pop::<Shared>() {
                Some(found) => {
                    let claimed = found.claim::<Shared>(2, true).unwrap();
                    // SAFETY: the slab is the thief's now.
                    claimed.then(|| unsafe { take_and_walk(found) })
                }
                None => None,
            })
        };
        let block = blocks[0];
        let freer = thread::spawn(move || {
            // SAFETY: the block is this slab's, and this thread's.
            let pushed = unsafe { slab.push::<Shared>(block.chain(), 4, 1) }.unwrap();
            assert!(
                matches!(pushed, Pushed::Waiting { shelve: false }),
                "another block is out, and the bit was set before"
            );
        });
        let owner = {
            let shelf = shelf.clone();
            // SAFETY: this thread is heap 1, which owns the slab until it is parked.
            thread::spawn(move || unsafe {
                let shelve = loop {
                    match slab.park::<Shared>(1) {
                        Ok(shelve) => break shelve,
                        Err(Pending) => drop(slab.collect::<Shared>().unwrap()),
                    }
                };
                assert!(shelve);
                shelf.push::<Shared>(slab);
            })
        };
        owner.join().unwrap();
        let stolen = thief.join().unwrap();
        freer.join().unwrap();
        if stolen.is_none() {
            let found = shelf.pop::<Shared>().expect("a slab that nobody took is still on the shelf");
            assert!(found.claim::<Shared>(2, true).unwrap());
        }
        // SAFETY: the slab is heap 2's now, which this thread plays.
        unsafe {
            slab.collect::<Shared>().unwrap();
            let counts = slab.counts();
            let taken = stolen.unwrap_or(0);
            assert_eq!((counts.out, counts.free, counts.virgin), (1 + taken, 1 - taken, 2));
            assert_eq!(take_and_walk(slab), 1 - taken);
        }
    });
}

/// One thread pops while another pops two and puts the first back: no slab is in two hands.
fn shelf(iterations: &'static AtomicU64) {
    check(3, iterations, || {
        let slabs = [slab(0), slab(1)];
        // Whoever pops first is held up between its look at the top and its exchange.
        plant_pauses(1);
        let shelf = loom::sync::Arc::new(Shelf::new());
        let held = loom::sync::Arc::new([ModelUsize::new(0), ModelUsize::new(0)]);
        // SAFETY: the slabs are on no shelf. (The shelved bit is not looked at by the shelf itself.)
        unsafe {
            shelf.push::<Shared>(slabs[1]);
            shelf.push::<Shared>(slabs[0]);
        }
        let hold = move |held: &[ModelUsize; 2], slab: &Slab| {
            let which = std::ptr::eq(slab, slabs[1]) as usize;
            assert_eq!(held[which].swap(1, ModelOrdering::AcqRel), 0, "a slab is in two hands");
            which
        };
        let other = {
            let (shelf, held) = (shelf.clone(), held.clone());
            thread::spawn(move || {
                if let Some(first) = shelf.pop::<Shared>() {
                    let which = hold(&held, first);
                    if let Some(second) = shelf.pop::<Shared>() {
                        hold(&held, second);
                    }
                    held[which].store(0, ModelOrdering::Release);
                    // SAFETY: the slab was just popped.
                    unsafe { shelf.push::<Shared>(first) };
                }
            })
        };
        let taker = {
            let (shelf, held) = (shelf.clone(), held.clone());
            thread::spawn(move || {
                while let Some(slab) = shelf.pop::<Shared>() {
                    hold(&held, slab);
                }
            })
        };
        taker.join().unwrap();
        other.join().unwrap();
    });
}

/// A slab is retired and made anew while it is on a shelf, and a thief pops it meanwhile: afterwards the thief has it, or it is on
/// the shelf.
fn reopen(iterations: &'static AtomicU64) {
    check(3, iterations, || {
        let slab = slab(0);
        let shelf = loom::sync::Arc::new(Shelf::new());
        open(slab, 1, 4, 0);
        // SAFETY: this thread is heap 1.
        unsafe {
            assert_eq!(slab.park::<Shared>(1), Ok(true));
            shelf.push::<Shared>(slab);
        }
        let thief = {
            let shelf = shelf.clone();
            thread::spawn(move || match shelf.pop::<Shared>() {
                Some(found) if found.claim::<Shared>(2, true).unwrap() => {
                    // SAFETY: the claim made the slab heap 2's.
                    let counts = unsafe { found.counts() };
                    assert!(counts.capacity == 4 || counts.capacity == 2);
                    true
                }
                _ => false,
            })
        };
        let owner = {
            let shelf = shelf.clone();
            thread::spawn(move || {
                let claimed = slab.claim::<Shared>(1, false).unwrap();
                if claimed {
                    // SAFETY: the claim made the slab heap 1's; nothing of it is out.
                    unsafe {
                        assert!(slab.retire::<Shared>());
                        slab.open::<Shared>(1, CLASS, 2, 1, false);
                        if slab.park::<Shared>(1) == Ok(true) {
                            shelf.push::<Shared>(slab);
                        }
                    }
                }
                claimed
            })
        };
        let claimed = owner.join().unwrap();
        let stolen = thief.join().unwrap();
        if !stolen {
            let found = shelf.pop::<Shared>();
            assert!(
                found.is_some(),
                "a parked slab with free blocks is in nobody's reach (claimed first: {claimed})",
            );
        }
    });
}

/// Two threads claim overlapping runs of bits across two words: never both, and what one wrote the next sees.
fn runs(iterations: &'static AtomicU64) {
    check(3, iterations, || {
        struct Map {
            words: [ModelU64; 2],
            // What the holder of bits 62..66 writes.
            memory: UnsafeCell<u32>,
        }
        // SAFETY: the memory is touched by the holder of the bits alone; loom checks exactly that.
        unsafe impl Sync for Map {}
        // SAFETY: as above.
        unsafe impl Send for Map {}
        let map = loom::sync::Arc::new(Map {
            words: [ModelU64::new(u64::MAX), ModelU64::new(u64::MAX)],
            memory: UnsafeCell::new(0),
        });
        let work = |map: &Map, start: usize, len: usize| {
            if bitmap::claim_run::<Shared>(&map.words, start, len) {
                // SAFETY: bits 62..66 are claimed.
                map.memory.with_mut(|memory| unsafe { *memory += 1 });
                bitmap::release::<Shared>(&map.words, start, len);
            }
        };
        let holders: Vec<_> = [(60, 6), (62, 10)]
            .into_iter()
            .map(|(start, len)| {
                let map = map.clone();
                thread::spawn(move || work(&map, start, len))
            })
            .collect();
        holders.into_iter().for_each(|holder| holder.join().unwrap());
        assert!(bitmap::all_set(&map.words, 0, 128), "every bit came back");
    });
}

/// One thread puts a span into the cache; two others take: one gets it, with its header as it was left.
fn huge_cache(iterations: &'static AtomicU64) {
    check(3, iterations, || {
        struct Cache {
            cache: HugeCache,
            header: UnsafeCell<u32>,
        }
        // SAFETY: the header is touched by whoever has the span alone; loom checks exactly that.
        unsafe impl Sync for Cache {}
        // SAFETY: as above.
        unsafe impl Send for Cache {}
        let shared = loom::sync::Arc::new(Cache { cache: HugeCache::new(), header: UnsafeCell::new(0) });
        let taker = {
            let shared = shared.clone();
            thread::spawn(move || {
                let got = shared.cache.take::<Shared>(1, 4, |_| true) == Some(7);
                if got {
                    // SAFETY: the span is this thread's.
                    shared.header.with_mut(|header| unsafe { *header += 1 });
                }
                got as u32
            })
        };
        let decayer = {
            let shared = shared.clone();
            thread::spawn(move || {
                let got = shared.cache.take_old::<Shared>(1000, 0) == Some(7);
                if got {
                    // SAFETY: the span is this thread's.
                    shared.header.with_mut(|header| unsafe { *header += 1 });
                }
                got as u32
            })
        };
        let putter = {
            let shared = shared.clone();
            thread::spawn(move || {
                // SAFETY: the span is this thread's until it is put.
                shared.header.with_mut(|header| unsafe { *header = 1 });
                assert!(shared.cache.put::<Shared>(7, 2, 64));
            })
        };
        putter.join().unwrap();
        let taken = taker.join().unwrap() + decayer.join().unwrap();
        let left = shared.cache.take::<Shared>(1, 4, |_| true).is_some() as u32;
        assert_eq!(taken + left, 1, "the span left the cache once, or is there");
    });
}
