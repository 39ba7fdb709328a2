//! Compaction by copying.
#![cfg(not(loom))]

use parking_lot::Mutex;
use std::sync::Arc;
use terrane_core::Span;
use terrane_fit::{BestFit, FirstFit};
use terrane_gpu::movable::{Compaction, Movable, MovableSet};
use terrane_gpu::sim::{Call, Fault, Sim, SimConfig};
use terrane_gpu::{Block, ChunkConfig, Device, DevicePool, Regions, VariablePool, VmmConfig, VmmPool};

const LEN: u64 = 64 << 10;

#[test]
fn live_blocks_move_down_with_their_contents_and_whole_chunks_become_free() {
    for seed in 0..10 {
        let sim = Sim::with(SimConfig { seed, ..SimConfig::default() });
        let device = sim.device(0);
        let chunks = ChunkConfig { chunk_len: 8 * LEN, ..ChunkConfig::default() };
        let pool = Arc::new(VariablePool::on(device.clone(), chunks, || FirstFit::with_granule(256)));
        let set = MovableSet::new(device.clone(), pool.clone());
        let stream = device.stream_create().unwrap();
        // Half of them are taken from the pool first, and may be moved only later.
        let one = |i: u8| match i % 2 {
            0 => set.allocate(LEN, 256, stream).unwrap(),
            // SAFETY: just taken, and nobody knows its address.
            _ => unsafe { set.adopt(pool.allocate(LEN, 256, stream).unwrap(), 256, stream) },
        };
        let mut blocks: Vec<_> = (0..64u8).map(|i| (i, one(i))).collect();
        for (i, block) in &blocks {
            let place = block.pin();
            // SAFETY: pinned, and submitted to the block's stream.
            unsafe { device.fill(place.address(), *i, place.len(), stream).unwrap() };
        }
        blocks.retain(|(i, _)| i % 4 == 3);
        pool.trim();
        device.synchronize().unwrap();
        pool.trim();
        assert_eq!(pool.stats().reserved, 64 * LEN, "every chunk has a live block");

        let highest = blocks.last().unwrap().1.pin();
        let before = highest.address();
        let first = set.compact().unwrap();
        assert_eq!(first.pinned, 1);
        assert!(first.moved >= 10 && first.bytes == first.moved * LEN, "{first:?}");
        assert_eq!(highest.address(), before);
        drop(highest);
        set.compact().unwrap();
        pool.trim();
        device.synchronize().unwrap();
        pool.trim();
        assert!(pool.stats().reserved <= 24 * LEN, "{:?}", pool.stats());
        for (i, block) in &blocks {
            let place = block.pin();
            assert_eq!(sim.peek(place.address(), LEN as usize).unwrap(), vec![*i; LEN as usize]);
        }
        assert_eq!(sim.violations(), []);
        drop(blocks);
        assert_eq!(pool.stats().live, 0);
    }
}

#[test]
fn a_copy_that_is_refused_leaves_the_block_where_it_was() {
    let sim = Sim::new();
    let device = sim.device(0);
    let chunks = ChunkConfig { chunk_len: 8 * LEN, ..ChunkConfig::default() };
    let pool = Arc::new(VariablePool::on(device.clone(), chunks, || FirstFit::with_granule(256)));
    let set = MovableSet::new(device.clone(), pool.clone());
    let stream = device.default_stream();
    let mut blocks: Vec<_> = (0..16).map(|_| set.allocate(LEN, 256, stream).unwrap()).collect();
    // One is left in each of two chunks.
    let (low, high) = (blocks.remove(7), blocks.remove(7));
    drop(blocks);
    let places = |blocks: [&Movable<_>; 2]| blocks.map(|block| block.pin().address());
    let before = places([&low, &high]);
    sim.inject(Fault { call: Some(Call::Copy), after: 0, times: 1, code: 999 });
    assert_eq!(set.compact().unwrap_err().code, 999);
    assert_eq!(places([&low, &high]), before);
    let done = set.compact().unwrap();
    assert_eq!((done.moved, done.bytes), (2, 2 * LEN));
    let [a, b] = places([&low, &high]);
    assert_eq!(a.abs_diff(b), LEN, "side by side");
    drop((low, high));
    assert_eq!((pool.stats().live_blocks, sim.violations()), (0, vec![]));
}

/// Blocks of a little more than half a piece, of which two in three end: of the rest, hardly a piece is free as a whole.
#[test]
fn what_remapping_cannot_join_a_compaction_can() {
    const PIECE: u64 = 2 << 20;
    for (limit, rounds) in [(u64::MAX, "at once"), (300 * PIECE, "in rounds")] {
        let sim = Sim::with(SimConfig { capacity: 4 << 30, ..SimConfig::default() });
        let device = sim.device(0);
        let config = VmmConfig { limit, ..VmmConfig::default() };
        let engine = || BestFit::with_granule(256);
        let pool = Arc::new(VariablePool::mapped_on(device.clone(), config, engine).unwrap());
        let set = MovableSet::new(device.clone(), pool.clone());
        let stream = device.stream_create().unwrap();
        let len = |i: u64| (PIECE / 2 + i * 7919 % (PIECE / 4)).next_multiple_of(256);
        let mut blocks: Vec<_> = (0..450).map(|i| (i, set.allocate(len(i), 256, stream).unwrap())).collect();
        for (i, block) in &blocks {
            let place = block.pin();
            // SAFETY: pinned, and submitted to the block's stream.
            unsafe { device.fill(place.address(), *i as u8, place.len(), stream).unwrap() };
        }
        blocks.retain(|(i, _)| i % 3 == 0);
        let live: u64 = blocks.iter().map(|(i, _)| len(*i)).sum();
        let held = |pool: &VmmPool<_, _>| {
            device.synchronize().unwrap();
            pool.trim();
            pool.stats().reserved
        };
        assert!(held(&pool) > live * 3 / 2, "{rounds}: holes in nearly every piece");
        let done = set.compact().unwrap();
        assert!(held(&pool) <= live + live / 16 + PIECE, "{rounds}: {} for {live}", held(&pool));
        assert!(done.bytes <= 2 * live, "{rounds}: no block is moved again and again");
        for (i, block) in &blocks {
            let place = block.pin();
            let bytes = sim.peek(place.address(), place.len() as usize).unwrap();
            assert!(bytes.iter().all(|byte| *byte == *i as u8), "{rounds}: block {i}");
        }
        assert_eq!(set.compact().unwrap(), Compaction::default(), "{rounds}: there is no more to gain");
        drop(blocks);
        assert_eq!((pool.stats().live, sim.violations()), (0, vec![]));
    }
}

/// With no memory to be had, the sparse chunks go into each other.
#[test]
fn a_pool_at_its_limit_is_compacted_into_its_own_holes() {
    let sim = Sim::new();
    let device = sim.device(0);
    let chunks = ChunkConfig { chunk_len: 8 * LEN, limit: 64 * LEN, ..ChunkConfig::default() };
    let pool = Arc::new(VariablePool::on(device.clone(), chunks, || FirstFit::with_granule(256)));
    let set = MovableSet::new(device.clone(), pool.clone());
    let stream = device.default_stream();
    let mut blocks: Vec<_> = (0..64).map(|i| (i, set.allocate(LEN, 256, stream).unwrap())).collect();
    blocks.retain(|(i, _)| i % 2 == 0);
    let foreign = pool.allocate(LEN, 256, stream).unwrap();
    let of_foreign = pool.regions_of(&foreign);
    set.compact().unwrap();
    device.synchronize().unwrap();
    pool.trim();
    let stats = pool.stats();
    assert!(stats.reserved <= 40 * LEN, "33 blocks are live: {stats:?}");
    assert_eq!(pool.regions_of(&foreign), of_foreign);
    let long = pool.allocate(24 * LEN, 256, stream).unwrap();
    // SAFETY: no work uses the blocks.
    unsafe {
        pool.deallocate(long, stream, &[]);
        pool.deallocate(foreign, stream, &[]);
    }
    drop(blocks);
    assert_eq!((pool.stats().live_blocks, sim.violations()), (0, vec![]));
}

#[test]
fn blocks_beside_a_block_that_the_set_does_not_know_are_not_moved() {
    let sim = Sim::new();
    let device = sim.device(0);
    let chunks = ChunkConfig { chunk_len: 8 * LEN, ..ChunkConfig::default() };
    let pool = Arc::new(VariablePool::on(device.clone(), chunks, || FirstFit::with_granule(256)));
    let set = MovableSet::new(device.clone(), pool.clone());
    let stream = device.default_stream();
    let mut blocks: Vec<_> = (0..24).map(|_| pool.allocate(LEN, 256, stream).unwrap()).collect();
    let mut own = Vec::new();
    // Of each chunk two are left, of which the set knows one.
    for kept in [23, 22, 15, 14, 7, 6] {
        let block = blocks.remove(kept);
        // SAFETY: no work uses the block.
        own.push(if kept % 8 == 7 { Ok(unsafe { set.adopt(block, 256, stream) }) } else { Err(block) });
    }
    // SAFETY: no work uses the blocks.
    blocks.into_iter().for_each(|block| unsafe { pool.deallocate(block, stream, &[]) });
    assert_eq!(set.compact().unwrap(), Compaction::default());
    for block in own {
        // SAFETY: no work uses the block.
        let _ = block.map_err(|block| unsafe { pool.deallocate(block, stream, &[]) });
    }
    assert_eq!((pool.stats().live_blocks, sim.violations()), (0, vec![]));
}

#[test]
fn a_region_is_closed_only_if_its_blocks_are_known_and_serves_again_when_opened() {
    let sim = Sim::new();
    let device = sim.device(0);
    let chunks = ChunkConfig { chunk_len: 4 * LEN, limit: 4 * LEN, ..ChunkConfig::default() };
    let pool = VariablePool::on(device.clone(), chunks, || FirstFit::with_granule(256));
    let stream = device.default_stream();
    let (a, b) = (pool.allocate(LEN, 256, stream).unwrap(), pool.allocate(LEN, 256, stream).unwrap());
    let span = |block: &Block| Span::new(block.key(), block.len());
    let [region] = pool.regions_of(&a)[..] else { panic!("a block lies in one chunk") };
    assert!(pool.close(region, &[span(&a)]).is_none(), "another block is in there");
    assert_eq!(pool.stats().largest_free, 2 * LEN, "and nothing has changed");
    let closed = pool.close(region, &[span(&a), span(&b)]).unwrap();
    assert!(pool.allocate(LEN, 256, stream).is_err());
    // SAFETY: no work uses the block.
    unsafe { pool.deallocate(a, stream, &[]) };
    pool.trim();
    // SAFETY: closed by this pool.
    unsafe { pool.open(closed) };
    let three = pool.allocate(2 * LEN, 256, stream).unwrap();
    // SAFETY: no work uses the blocks.
    unsafe {
        pool.deallocate(three, stream, &[]);
        pool.deallocate(b, stream, &[]);
    }
    pool.trim();
    device.synchronize().unwrap();
    pool.trim();
    assert_eq!((pool.stats().reserved, sim.used_bytes(0)), (0, 0), "the holes joined again");
}

#[test]
fn a_closed_piece_is_not_taken_for_a_hole() {
    const PIECE: u64 = 2 << 20;
    let sim = Sim::new();
    let device = sim.device(0);
    let config = VmmConfig { limit: 8 * PIECE, ..VmmConfig::default() };
    let pool = VariablePool::mapped_on(device.clone(), config, || BestFit::with_granule(256)).unwrap();
    let stream = device.default_stream();
    pool.reserve(4 * PIECE).unwrap();
    let block = pool.allocate(PIECE, 256, stream).unwrap();
    let [first] = pool.regions_of(&block)[..] else { panic!("a piece") };
    // SAFETY: no work uses the block.
    unsafe { pool.deallocate(block, stream, &[]) };
    device.synchronize().unwrap();
    pool.make_room(2 * PIECE).unwrap();
    let closed = pool.close(first, &[]);
    assert!(closed.is_none(), "it is in the list of the stream");
    let long = pool.allocate(4 * PIECE, 256, stream).unwrap();
    // SAFETY: no work uses the block.
    unsafe { pool.deallocate(long, stream, &[]) };
    device.synchronize().unwrap();
    pool.trim();
    pool.reserve(4 * PIECE).unwrap();
    let closed = pool.close(first, &[]).expect("all of it is a hole");
    let long = pool.allocate(4 * PIECE, 256, stream).unwrap();
    assert!(!pool.regions_of(&long).contains(&first));
    // SAFETY: closed by this pool.
    unsafe { pool.open(closed) };
    let short = pool.allocate(PIECE, 256, stream).unwrap();
    assert_eq!(pool.regions_of(&short), [first]);
    // SAFETY: no work uses the blocks.
    unsafe {
        pool.deallocate(long, stream, &[]);
        pool.deallocate(short, stream, &[]);
    }
}

#[test]
fn a_block_that_is_pinned_during_a_compaction_stays_from_then_on() {
    let sim = Sim::new();
    let device = sim.device(0);
    let chunks = ChunkConfig { chunk_len: 8 * LEN, ..ChunkConfig::default() };
    let pool = Arc::new(VariablePool::on(device.clone(), chunks, || FirstFit::with_granule(256)));
    let set = MovableSet::new(device.clone(), pool.clone());
    let stream = device.default_stream();
    let mut blocks: Vec<_> = (0..32).map(|_| Arc::new(set.allocate(LEN, 256, stream).unwrap())).collect();
    let mut at = 0..;
    blocks.retain(|_| at.next().unwrap() % 8 == 0);
    // At the first copy all others are pinned.
    let others = Mutex::new(blocks[1..].to_vec());
    let pinned: Arc<Mutex<Vec<u64>>> = Arc::default();
    let there = pinned.clone();
    sim.watch_calls(move |call| {
        if call == Call::Copy {
            for block in others.lock().drain(..) {
                let pin = block.pin();
                there.lock().push(pin.address());
                core::mem::forget(pin);
            }
        }
    });
    assert_eq!(set.compact().unwrap().moved, 1);
    let now: Vec<u64> = blocks[1..].iter().map(|block| block.pin().address()).collect();
    assert_eq!((now.len(), now), (3, pinned.lock().clone()));
    assert_eq!(sim.violations(), []);
}
