//! What length classes in front of a pool promise, whatever the pool behind, on the simulated device.
#![cfg(not(loom))]

#[path = "common/dice.rs"]
mod dice;

use dice::Dice;
use std::sync::Arc;
use terrane_fit::Tlsf;
use terrane_gpu::adaptors::{Limit, OnOutOfMemory, Statistics, Trace, Track};
use terrane_gpu::sim::{Call, Sim, SimConfig, SimDevice};
use terrane_gpu::{
    Block, ChunkConfig, Device, DeviceBuf, DevicePool, DevicePoolOf, DriverError, DriverPool, FixedConfig,
    FixedPool, Shortage, SizeClassConfig, SizeClassPool, Stream, Streams, VariablePool, VmmConfig,
};

const CONFIG: SizeClassConfig = SizeClassConfig { largest: 4096, slab_len: 16 << 10 };

fn sim(seed: u64, capacity: u64) -> Sim {
    Sim::with(SimConfig { seed, capacity, granularity: 64 << 10, ..SimConfig::default() })
}

fn engine() -> Tlsf {
    Tlsf::with_granule(256)
}

fn behind(sim: &Sim) -> DevicePoolOf<Tlsf, SimDevice> {
    let config = ChunkConfig { chunk_len: 128 << 10, ..ChunkConfig::default() };
    VariablePool::on(sim.device(0), config, engine)
}

fn front<P: DevicePool>(sim: &Sim, behind: P) -> SizeClassPool<P, SimDevice> {
    SizeClassPool::new(behind, sim.device(0), CONFIG)
}

fn streams<const N: usize>(sim: &Sim) -> [Stream; N] {
    core::array::from_fn(|_| sim.device(0).stream_create().unwrap())
}

fn fill(sim: &Sim, block: &Block, byte: u8, stream: Stream) {
    // SAFETY: the block is held by the caller.
    unsafe { sim.device(0).fill(block.address(), byte, block.len(), stream).unwrap() }
}

fn give(pool: &impl DevicePool, block: Block, stream: Stream) {
    // SAFETY: the tests submit no work with a block after this.
    unsafe { pool.deallocate(block, stream, &[]) }
}

fn take(pool: &impl DevicePool, count: usize, len: u64, stream: Stream) -> Vec<Block> {
    (0..count).map(|_| pool.allocate(len, 256, stream).unwrap()).collect()
}

#[test]
fn short_blocks_share_slabs_and_long_ones_pass() {
    let sim = sim(1, 16 << 20);
    let pool = front(&sim, behind(&sim));
    let [a] = streams(&sim);
    let blocks = take(&pool, 64, 256, a);
    assert_eq!(pool.inner().stats().live_blocks, 1, "64 blocks of 256 bytes are one slab of 16 KiB");
    let long = pool.allocate(4097, 256, a).unwrap();
    assert_eq!(pool.inner().stats().live_blocks, 2);
    let stats = pool.stats();
    assert_eq!((stats.live_blocks, stats.live), (65, 64 * 256 + long.len()));
    assert_eq!(stats.requested, 64 * 256 + 4097);
    blocks.into_iter().chain([long]).for_each(|block| give(&pool, block, a));
    let stats = pool.stats();
    assert_eq!((stats.live, stats.live_blocks, stats.requested), (0, 0, 0));
}

#[test]
fn a_pair_on_one_stream_makes_no_driver_call_and_does_not_reach_the_pool_behind() {
    let sim = sim(1, 16 << 20);
    let pool = front(&sim, behind(&sim));
    let [a] = streams(&sim);
    let first = pool.allocate(1000, 256, a).unwrap();
    let address = first.address();
    give(&pool, first, a);
    let (calls, taken) = (sim.total_calls(), pool.inner().stream_figures());
    for _ in 0..100 {
        let block = pool.allocate(1000, 256, a).unwrap();
        assert_eq!(block.address(), address);
        give(&pool, block, a);
    }
    assert_eq!((sim.total_calls(), pool.inner().stream_figures()), (calls, taken));
}

#[test]
fn another_stream_gets_idle_blocks_before_a_slab_is_carved_and_waits_on_the_device() {
    let sim = Sim::with(SimConfig { eagerness: 0, ..SimConfig::default() });
    let pool = front(&sim, behind(&sim));
    let [a, b] = streams(&sim);
    let blocks = take(&pool, 64, 256, a);
    blocks.iter().for_each(|block| fill(&sim, block, 1, a));
    blocks.into_iter().for_each(|block| give(&pool, block, a));
    let blocks = take(&pool, 64, 256, b);
    blocks.iter().for_each(|block| fill(&sim, block, 2, b));
    assert_eq!(pool.inner().stats().live_blocks, 1, "no second slab");
    assert!(pool.stats().waits >= 1 && pool.stats().steals == 64);
    assert_eq!(sim.calls(Call::EventSynchronize) + sim.calls(Call::StreamSynchronize), 0, "no host waits");
    sim.run_all();
    assert_eq!(sim.violations(), []);
    assert!(blocks.iter().all(|block| sim.peek(block.address(), 1).unwrap() == [2]));
    blocks.into_iter().for_each(|block| give(&pool, block, b));
}

#[test]
fn a_block_that_two_streams_used_is_ordered_after_both() {
    let sim = Sim::with(SimConfig { eagerness: 0, ..SimConfig::default() });
    let device = sim.device(0);
    let config = SizeClassConfig { largest: 4096, slab_len: 256 };
    let pool = SizeClassPool::new(behind(&sim), device.clone(), config);
    let [a, b, c] = streams(&sim);
    let event = device.event_create().unwrap();
    let mut blocks = take(&pool, 8, 256, a);
    let shared = blocks.pop().unwrap();
    fill(&sim, &shared, 1, a);
    device.event_record(event, a).unwrap();
    device.stream_wait(b, event).unwrap();
    fill(&sim, &shared, 2, b);
    // The poison of the free comes in the order of `a`.
    device.event_record(event, b).unwrap();
    device.stream_wait(a, event).unwrap();
    // SAFETY: both streams are named.
    unsafe { pool.deallocate(shared, a, &[b]) };
    let again = pool.allocate(256, 256, c).unwrap();
    fill(&sim, &again, 3, c);
    assert_eq!(pool.inner().stats().live_blocks, 1, "the shared block was used again");
    sim.run_all();
    assert_eq!((sim.violations(), sim.peek(again.address(), 1).unwrap()), (vec![], vec![3]));
    give(&pool, again, c);
    blocks.into_iter().for_each(|block| give(&pool, block, a));
}

#[test]
fn idle_slabs_make_room_for_what_the_pool_behind_could_not_serve() {
    let sim = sim(1, 128 << 10);
    let pool = front(&sim, behind(&sim));
    let [a, b] = streams(&sim);
    let blocks: Vec<Block> = take(&pool, 200, 500, a).into_iter().collect();
    blocks.into_iter().for_each(|block| give(&pool, block, a));
    let whole = pool.allocate(128 << 10, 256, b).unwrap();
    fill(&sim, &whole, 1, b);
    assert_eq!(pool.allocate(256, 256, a).unwrap_err().requested, 256);
    give(&pool, whole, b);
    let short = pool.allocate(256, 256, a).unwrap();
    fill(&sim, &short, 1, a);
    give(&pool, short, a);
    pool.trim();
    sim.run_all();
    assert_eq!(sim.violations(), []);
}

#[test]
fn trimming_gives_idle_slabs_back_to_the_device_and_keeps_the_others() {
    let sim = sim(1, 16 << 20);
    let pool = front(&sim, behind(&sim));
    let [a, b] = streams(&sim);
    let keep = pool.allocate(100, 256, a).unwrap();
    let mut blocks = take(&pool, 3000, 1000, a);
    // What is freed in the order of `b` was taken for `a`.
    sim.device(0).synchronize().unwrap();
    blocks.split_off(1500).into_iter().for_each(|block| give(&pool, block, b));
    blocks.into_iter().for_each(|block| give(&pool, block, a));
    for _ in 0..3 {
        pool.trim();
        sim.run_all();
    }
    let (stats, slabs) = (pool.stats(), pool.inner().stats().live_blocks);
    assert_eq!((stats.live_blocks, stats.live, slabs), (1, 256, 1));
    assert_eq!(stats.reserved, 128 << 10, "one chunk");
    give(&pool, keep, a);
    drop(pool);
    assert_eq!((sim.used_bytes(0), sim.violations()), (0, vec![]));
}

#[test]
fn what_a_retired_stream_freed_is_used_by_others_and_goes_back() {
    let sim = Sim::with(SimConfig { eagerness: 0, ..SimConfig::default() });
    let pool = front(&sim, behind(&sim));
    let [a, b] = streams(&sim);
    let blocks = take(&pool, 64, 256, a);
    blocks.iter().for_each(|block| fill(&sim, block, 1, a));
    blocks.into_iter().for_each(|block| give(&pool, block, a));
    pool.retire_stream(a);
    sim.device(0).stream_destroy(a).unwrap();
    let block = pool.allocate(256, 256, b).unwrap();
    fill(&sim, &block, 2, b);
    assert_eq!(pool.inner().stats().live_blocks, 1);
    give(&pool, block, b);
    pool.retire_stream(b);
    sim.device(0).stream_destroy(b).unwrap();
    drop(pool);
    assert_eq!((sim.used_bytes(0), sim.violations()), (0, vec![]), "also with no stream left");
}

#[test]
fn a_capture_gets_memory_of_its_own_and_none_from_slabs() {
    let sim = sim(1, 16 << 20);
    let pool = front(&sim, behind(&sim));
    let [a] = streams(&sim);
    let before = pool.allocate(256, 256, a).unwrap();
    let capture = pool.inner().begin_capture(a).unwrap();
    let during = pool.allocate(256, 256, a).unwrap();
    let graph = capture.end();
    assert_eq!(graph.stats().live_blocks, 1, "from the private pool behind");
    let after = pool.allocate(256, 256, a).unwrap();
    assert_eq!(after.address(), before.address() + 256, "from the slab again");
    give(&pool, during, a);
    assert_eq!(graph.stats().live_blocks, 0, "and back to where it came from");
    give(&pool, before, a);
    give(&pool, after, a);
    assert_eq!(pool.stats().live_blocks, 0);
}

/// A long run of chance on three streams, while driver calls may fail.
fn wander(sim: &Sim, pool: &impl DevicePool, seed: u64, rounds: u32) {
    let streams: [Stream; 3] = streams(sim);
    let mut dice = Dice(seed);
    let mut held: Vec<(Block, Stream)> = Vec::new();
    for round in 0..rounds {
        let stream = streams[dice.below(3) as usize];
        if dice.below(100) < 55 {
            let magnitude = 6 + dice.below(9);
            let len = 1 + dice.below(1 << magnitude);
            match pool.allocate(len, 256, stream) {
                Ok(block) => {
                    assert!(block.len() >= len && block.asked() == len);
                    let end = block.address() + block.len();
                    let apart = |o: &Block| end <= o.address() || o.address() + o.len() <= block.address();
                    assert!(held.iter().all(|(other, _)| apart(other)), "blocks overlap");
                    // SAFETY: the block is held.
                    let _ = unsafe { sim.device(0).fill(block.address(), 1, block.len(), stream) };
                    held.push((block, stream));
                }
                Err(error) => assert_ne!(error.shortage, Shortage::BadRequest, "{error}"),
            }
        } else if !held.is_empty() {
            let (block, stream) = held.swap_remove(dice.below(held.len() as u64) as usize);
            give(pool, block, stream);
        }
        if round % 41 == 0 {
            pool.trim();
        }
        if round % 31 == 0 {
            sim.step(20);
        }
    }
    sim.clear_faults();
    assert_eq!(pool.stats().live, held.iter().map(|(block, _)| block.len()).sum::<u64>());
    held.into_iter().for_each(|(block, stream)| give(pool, block, stream));
    assert_eq!((pool.stats().live, pool.stats().live_blocks, pool.stats().requested), (0, 0, 0));
    sim.run_all();
    assert_eq!(sim.violations(), []);
}

#[test]
fn nothing_overlaps_and_no_reuse_comes_early_over_any_pool() {
    for seed in 1..=8 {
        let chunked = sim(seed, 512 << 10);
        wander(&chunked, &front(&chunked, behind(&chunked)), seed, 1500);
        let pieces = sim(seed, 512 << 10);
        let config = VmmConfig { piece_len: 64 << 10, range_len: 64 << 20, ..VmmConfig::default() };
        let mapped = VariablePool::mapped_on(pieces.device(0), config, engine).unwrap();
        wander(&pieces, &front(&pieces, mapped), seed, 1500);
        let driven = sim(seed, 8 << 20);
        wander(&driven, &front(&driven, DriverPool::new(driven.device(0), 1 << 20).unwrap()), seed, 1500);
        let twice = sim(seed, 512 << 10);
        wander(&twice, &front(&twice, front(&twice, behind(&twice))), seed, 1500);
        for sim in [chunked, pieces, twice] {
            assert_eq!((sim.used_bytes(0), sim.violations()), (0, vec![]), "everything went back");
        }
    }
}

#[test]
fn every_driver_call_may_fail_and_the_pool_stays_whole() {
    let run = |sim: &Sim| wander(sim, &front(sim, behind(sim)), 5, 220);
    let calls = {
        let sim = sim(5, 256 << 10);
        run(&sim);
        sim.total_calls()
    };
    assert!(calls > 60, "{calls}");
    for nth in 4..=calls {
        for code in [DriverError::OUT_OF_MEMORY, 999] {
            let sim = sim(5, 256 << 10);
            sim.fail_nth_call(nth, code);
            run(&sim);
            assert_eq!(sim.violations(), [], "call {nth} failed with {code}");
        }
    }
}

#[test]
fn all_adaptors_stack_around_it_and_behind_it() {
    let sim = sim(1, 16 << 20);
    let device = sim.device(0);
    let [a] = streams(&sim);
    let behind = Arc::new(Track::new(Limit::new(behind(&sim), 1 << 20)));
    let classes = SizeClassPool::new(behind.clone(), device.clone(), CONFIG);
    let pool = Trace::new(Statistics::new(Track::new(OnOutOfMemory::new(classes, |_, _| false))), 16);
    let bufs: Vec<_> = (0..10).map(|_| DeviceBuf::<u8, _>::new_in(&pool, 300, a).unwrap()).collect();
    assert_eq!((pool.inner().inner().live().len(), behind.live().len()), (10, 1));
    assert_eq!(pool.inner().inner().live()[0].site.file(), file!());
    assert_eq!(pool.stats().requested, 3000);
    drop(bufs);
    assert!(pool.inner().inner().live().is_empty());
    let one_length = FixedConfig { blocks_per_chunk: 8, ..FixedConfig::new(16 << 10) };
    let one_length = FixedPool::new(device.clone(), one_length).unwrap();
    let pool = SizeClassPool::new(one_length, device, SizeClassConfig { largest: 2048, ..CONFIG });
    let blocks = take(&pool, 100, 700, a);
    assert_eq!(pool.inner().stats().live_blocks, 5, "21 blocks of 768 bytes to a slab");
    blocks.into_iter().for_each(|block| give(&pool, block, a));
}
