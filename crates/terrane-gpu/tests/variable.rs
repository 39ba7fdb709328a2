//! What a pool of blocks of any length promises, over chunks and over mapped pieces, on the simulated device.
#![cfg(not(loom))]

mod common;
#[path = "common/dice.rs"]
mod dice;

use common::FirstFit;
use dice::Dice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use terrane_gpu::sim::{Access, Call, Fault, Sim, SimConfig, SimDevice, Violation};
use terrane_gpu::{
    Backing, Block, ChunkConfig, Device, DeviceBuf, DevicePool, DevicePoolOf, DriverError, Engine, PoolError,
    Shortage, Stream, Streams, VariablePool, VmmConfig, VmmPool,
};

const PIECE: u64 = 64 << 10;

fn sim(seed: u64, capacity: u64) -> Sim {
    Sim::with(SimConfig { seed, capacity, granularity: PIECE, ..SimConfig::default() })
}

fn chunked(sim: &Sim, config: ChunkConfig) -> DevicePoolOf<FirstFit, SimDevice> {
    VariablePool::on(sim.device(0), config, FirstFit::default)
}

fn mapped(sim: &Sim) -> VmmPool<FirstFit, SimDevice> {
    let config = VmmConfig { piece_len: PIECE, range_len: 64 << 20, ..VmmConfig::default() };
    VariablePool::mapped_on(sim.device(0), config, FirstFit::default).unwrap()
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

/// A long run of chance: blocks of many lengths on several streams, filled, checked, shared, given back, while driver
/// calls may fail. Returns the number of requests that were served.
fn wander<P: Engine, B: Backing<SimDevice>>(
    sim: &Sim,
    pool: &VariablePool<P, B, SimDevice>,
    seed: u64,
    rounds: u32,
) -> u32 {
    let device = sim.device(0);
    let streams: [Stream; 3] = streams(sim);
    let event = device.event_create().unwrap();
    let mut dice = Dice(seed);
    let mut held: Vec<(Block, Stream, u8)> = Vec::new();
    let mut served = 0;
    let changed = Arc::new(AtomicU32::new(0));
    for round in 0..rounds {
        let stream = streams[dice.below(3) as usize];
        if dice.below(100) < 55 {
            let magnitude = 6 + dice.below(12);
            let len = 1 + dice.below(1 << magnitude);
            let align = 1 << dice.below(13);
            match pool.allocate(len, align, stream) {
                Ok(block) => {
                    served += 1;
                    assert!(block.len() >= len && block.address().is_multiple_of(align));
                    for (other, ..) in &held {
                        let (a, b) = (block.address(), other.address());
                        assert!(a + block.len() <= b || b + other.len() <= a, "blocks overlap");
                    }
                    let byte = (round % 200) as u8;
                    // SAFETY: the block is held.
                    let filled = unsafe { device.fill(block.address(), byte, block.len(), stream) };
                    if filled.is_ok() {
                        held.push((block, stream, byte));
                    } else {
                        give(pool, block, stream);
                    }
                }
                Err(error) => assert_ne!(error.shortage, Shortage::BadRequest, "{error}"),
            }
        } else if !held.is_empty() {
            let (block, stream, byte) = held.swap_remove(dice.below(held.len() as u64) as usize);
            let (address, len) = (block.address(), block.len());
            let changed_there = changed.clone();
            let checked = device.launch(stream, &[Access::read(address, len)], move |memory| {
                let mut bytes = vec![0; len as usize];
                memory.read(address, &mut bytes);
                changed_there.fetch_add(u32::from(bytes.iter().any(|&b| b != byte)), SeqCst);
            });
            assert!(checked.is_ok() || sim.violations().is_empty());
            let other = streams[dice.below(3) as usize];
            let ordered = |first, then| {
                device.event_record(event, first).is_ok() && device.stream_wait(then, event).is_ok()
            };
            let shared = dice.below(4) == 0
                && ordered(stream, other)
                // SAFETY: the block is held.
                && unsafe { device.fill(address, 0, len, other) }.is_ok();
            if shared {
                // The poison of the free is ordered after the freeing stream only, so that stream waits too.
                assert!(ordered(other, stream) || ordered(other, stream), "one call fails, not two");
            }
            let also: &[Stream] = if shared { &[other] } else { &[] };
            // SAFETY: all streams are named.
            unsafe { pool.deallocate(block, stream, also) };
        }
        if round % 97 == 0 {
            pool.trim();
        }
        if round % 31 == 0 {
            sim.step(20);
        }
    }
    sim.clear_faults();
    let live: u64 = held.iter().map(|(b, ..)| b.len()).sum();
    assert_eq!(pool.stats().live, live);
    held.into_iter().for_each(|(block, stream, _)| give(pool, block, stream));
    assert_eq!((pool.stats().live, pool.stats().live_blocks, pool.stats().requested), (0, 0, 0));
    assert_eq!(sim.violations(), []);
    sim.run_all();
    assert_eq!((sim.violations(), changed.load(SeqCst)), (vec![], 0), "contents of live blocks changed");
    // The first trim records what has to be past; the second finds that it is.
    pool.trim();
    sim.run_all();
    pool.trim();
    assert_eq!(pool.stats().reserved, 0, "a hole was lost");
    served
}

#[test]
fn nothing_overlaps_and_no_reuse_comes_early_whatever_the_seed() {
    for seed in 1..=20 {
        let small = ChunkConfig { chunk_len: 256 << 10, ..ChunkConfig::default() };
        let sim_a = sim(seed, 4 << 20);
        assert!(wander(&sim_a, &chunked(&sim_a, small), seed, 1500) > 500);
        let sim_b = sim(seed, 4 << 20);
        assert!(wander(&sim_b, &mapped(&sim_b), seed, 1500) > 500);
        for sim in [sim_a, sim_b] {
            assert_eq!(sim.used_bytes(0), 0, "everything went back");
            assert_eq!(sim.violations(), []);
        }
    }
}

fn wander_over_both<P: Engine>(engine: fn() -> P) {
    for seed in 1..=5 {
        let small = ChunkConfig { chunk_len: 256 << 10, ..ChunkConfig::default() };
        let sim_a = sim(seed, 4 << 20);
        wander(&sim_a, &VariablePool::on(sim_a.device(0), small, engine), seed, 1500);
        let sim_b = sim(seed, 4 << 20);
        let config = VmmConfig { piece_len: PIECE, range_len: 64 << 20, ..VmmConfig::default() };
        let pool = VariablePool::mapped_on(sim_b.device(0), config, engine).unwrap();
        wander(&sim_b, &pool, seed, 1500);
    }
}

#[test]
fn every_engine_serves() {
    wander_over_both(|| terrane_fit::Tlsf::with_granule(256));
    wander_over_both(|| terrane_fit::BestFit::with_granule(256));
    wander_over_both(|| terrane_fit::FirstFit::with_granule(256));
    wander_over_both(|| terrane_fit::NextFit::with_granule(256));
}

#[test]
fn every_driver_call_may_fail_and_the_pools_stay_whole() {
    let count = |run: &dyn Fn(&Sim)| {
        let sim = sim(5, 1 << 20);
        run(&sim);
        sim.total_calls()
    };
    let chunks = |sim: &Sim| {
        let pool = chunked(sim, ChunkConfig { chunk_len: 128 << 10, ..ChunkConfig::default() });
        wander(sim, &pool, 5, 220);
    };
    let pieces = |sim: &Sim| {
        wander(sim, &mapped(sim), 5, 220);
    };
    for run in [&chunks as &dyn Fn(&Sim), &pieces] {
        let calls = count(run);
        assert!(calls > 100, "{calls}");
        for nth in 6..=calls {
            for code in [DriverError::OUT_OF_MEMORY, 999] {
                let sim = sim(5, 1 << 20);
                sim.fail_nth_call(nth, code);
                run(&sim);
                assert_eq!(sim.violations(), [], "call {nth} failed with {code}");
            }
        }
    }
}

#[test]
fn a_pair_on_one_stream_makes_no_driver_call_after_the_first() {
    for_each_pool(|sim, pool| {
        let [a] = streams(sim);
        for len in [1, 256, 4096, 100_000] {
            let block = pool.allocate(len, 256, a).unwrap();
            let address = block.address();
            give(&pool, block, a);
            let calls = sim.total_calls();
            for _ in 0..100 {
                let block = pool.allocate(len, 256, a).unwrap();
                assert_eq!(block.address(), address);
                give(&pool, block, a);
            }
            assert_eq!(sim.total_calls(), calls);
        }
    });
}

#[test]
fn an_event_used_again_still_holds_back_who_waited_for_its_former_record() {
    for seed in 0..30 {
        let sim = sim(seed, 1 << 20);
        let device = sim.device(0);
        let [a, b, c] = streams(&sim);
        let event = device.event_create().unwrap();
        let address = device.alloc(512).unwrap();
        // SAFETY: the memory is never freed.
        unsafe {
            device.fill(address, 1, 512, a).unwrap();
            device.event_record(event, a).unwrap();
            device.stream_wait(b, event).unwrap();
            device.event_record(event, c).unwrap();
            device.fill(address, 2, 512, b).unwrap();
        }
        sim.run_all();
        assert_eq!(sim.peek(address, 1).unwrap(), [2]);
    }
}

fn for_each_pool(check: impl Fn(&Sim, &dyn DevicePool)) {
    let sim_a = sim(1, 16 << 20);
    check(&sim_a, &chunked(&sim_a, ChunkConfig { chunk_len: 1 << 20, ..ChunkConfig::default() }));
    let sim_b = sim(1, 16 << 20);
    check(&sim_b, &mapped(&sim_b));
}

#[test]
fn a_block_that_another_stream_used_too_is_not_reused_before_that_work() {
    for_each_pool(|sim, pool| {
        let device = sim.device(0);
        let [a, b, c] = streams(sim);
        let event = device.event_create().unwrap();
        let block = pool.allocate(4096, 256, a).unwrap();
        let address = block.address();
        fill(sim, &block, 1, a);
        device.event_record(event, a).unwrap();
        device.stream_wait(b, event).unwrap();
        fill(sim, &block, 2, b);
        // SAFETY: both streams are named.
        unsafe { pool.deallocate(block, a, &[b]) };
        assert_eq!(sim.violations(), [], "the free itself is in order");
        let reused = pool.allocate(4096, 256, c).unwrap();
        assert_eq!(reused.address(), address);
        fill(sim, &reused, 3, c);
        assert_eq!((pool.stats().waits, sim.violations()), (2, vec![]), "for both streams");
        give(&pool, reused, c);
    });
}

#[test]
fn idle_lists_of_two_streams_are_merged_before_the_pool_grows() {
    for_each_pool(|sim, pool| {
        let [a, b] = streams(sim);
        let mut blocks: Vec<(Block, Stream)> = (0..16)
            .map(|i| if i % 2 == 0 { a } else { b })
            .map(|stream| (pool.allocate(PIECE, 256, stream).unwrap(), stream))
            .collect();
        let reserved = pool.stats().reserved;
        blocks.drain(..).for_each(|(block, stream)| give(&pool, block, stream));
        let whole = pool.allocate(16 * PIECE, 256, a).unwrap();
        fill(sim, &whole, 1, a);
        assert_eq!(pool.stats().reserved, reserved, "neighbours freed by different streams were joined");
        assert_eq!(sim.calls(Call::EventSynchronize) + sim.calls(Call::StreamSynchronize), 0);
        assert_eq!(sim.violations(), []);
        give(&pool, whole, a);
    });
}

#[test]
fn what_a_stream_took_from_others_and_waited_for_is_counted_for_that_stream() {
    let sim = Sim::with(SimConfig { eagerness: 0, granularity: PIECE, ..SimConfig::default() });
    let pool = chunked(&sim, ChunkConfig { chunk_len: PIECE, limit: PIECE, ..ChunkConfig::default() });
    let [a, b, c] = streams(&sim);
    for (freed_by, taken_by) in [(a, b), (b, c), (a, c)] {
        let block = pool.allocate(PIECE, 256, freed_by).unwrap();
        fill(&sim, &block, 1, freed_by);
        give(&pool, block, freed_by);
        let block = pool.allocate(PIECE, 256, taken_by).unwrap();
        give(&pool, block, taken_by);
    }
    let figures = pool.stream_figures();
    let counted: Vec<_> = figures.iter().map(|f| (f.stream, f.steals, f.waits)).collect();
    // `a` and `b` each had to take back what the others had freed last.
    assert_eq!(counted, [(a.key(), 1, 1), (b.key(), 1, 1), (c.key(), 2, 2)]);
    let stats = pool.stats();
    assert_eq!((stats.steals, stats.waits), (4, 4), "in all");
    assert_eq!(sim.violations(), []);
}

#[test]
fn a_request_for_all_that_is_free_is_served_though_its_length_would_be_rounded_up() {
    let len = 67 * PIECE;
    let sim = sim(1, len);
    let pool = chunked(&sim, ChunkConfig { chunk_len: len, limit: len, ..ChunkConfig::default() });
    let [a] = streams(&sim);
    let all = pool.allocate(len, 256, a).unwrap();
    assert_eq!((all.len(), pool.stats().largest_free), (len, 0));
    assert_eq!(pool.allocate(256, 256, a).unwrap_err().shortage, Shortage::Limit);
    give(&pool, all, a);
    let again = pool.allocate(len - 100, 256, a).unwrap();
    assert_eq!(again.len(), len);
    give(&pool, again, a);
}

#[test]
fn a_chunk_whose_work_cannot_be_told_to_be_past_is_not_given_back() {
    let sim = Sim::with(SimConfig { eagerness: 0, granularity: PIECE, ..SimConfig::default() });
    let [a] = streams(&sim);
    for refused in [false, true] {
        let pool = chunked(&sim, ChunkConfig { chunk_len: PIECE, ..ChunkConfig::default() });
        let before = sim.used_bytes(0);
        let block = pool.allocate(4096, 256, a).unwrap();
        fill(&sim, &block, 1, a);
        give(&pool, block, a);
        if refused {
            sim.inject(Fault { call: Some(Call::EventSynchronize), after: 0, times: 2, code: 999 });
        }
        drop(pool);
        assert_eq!(sim.used_bytes(0) - before, if refused { PIECE } else { 0 });
        assert_eq!(sim.violations(), []);
    }
}

#[test]
fn spans_never_cross_from_one_chunk_into_a_neighbour() {
    let sim = sim(1, 1 << 20);
    let pool = chunked(&sim, ChunkConfig { chunk_len: PIECE, ..ChunkConfig::default() });
    let [a] = streams(&sim);
    let (first, second) = (pool.allocate(PIECE, 256, a).unwrap(), pool.allocate(PIECE, 256, a).unwrap());
    assert_eq!(first.address() + PIECE, second.address(), "the driver handed out neighbours");
    give(&pool, first, a);
    give(&pool, second, a);
    let longer = pool.allocate(2 * PIECE, 256, a).unwrap();
    assert_eq!(sim.calls(Call::Alloc), 3, "two chunks do not make one of twice the length");
    give(&pool, longer, a);
}

#[test]
fn long_blocks_get_chunks_of_their_own_which_go_back_before_others_are_taken() {
    let sim = Sim::with(SimConfig { capacity: 1 << 30, watch_blocks: false, ..SimConfig::default() });
    let (device, mib) = (sim.device(0), 1 << 20);
    let pool = VariablePool::on(device.clone(), ChunkConfig::default(), FirstFit::default);
    let [a] = streams(&sim);
    let long = pool.allocate(100 * mib, 256, a).unwrap();
    assert_eq!((pool.stats().reserved, long.len()), (100 * mib, 100 * mib), "no more than it needs");
    let short = pool.allocate(mib, 256, a).unwrap();
    assert_eq!(pool.stats().reserved, 132 * mib);
    give(&pool, long, a);
    let shorts: Vec<Block> = (0..31).map(|_| pool.allocate(mib, 256, a).unwrap()).collect();
    let near = pool.allocate(96 * mib, 256, a).unwrap();
    assert_eq!((pool.stats().grows, near.len()), (2, 100 * mib), "an idle one serves what is nearly as long");
    give(&pool, near, a);
    device.synchronize().unwrap();
    let other = pool.allocate(50 * mib, 256, a).unwrap();
    assert_eq!(pool.stats().reserved, 82 * mib, "and goes back before another is taken");
    assert_eq!(pool.stats().peak_reserved, 132 * mib);
    // Great alignments, and room made beforehand, are for sharing.
    let aligned = pool.allocate(20 * mib, 4096, a).unwrap();
    assert!(aligned.address().is_multiple_of(4096));
    pool.reserve(40 * mib).unwrap();
    let grows = pool.stats().grows;
    let many: Vec<Block> = (0..40).map(|_| pool.allocate(mib, 256, a).unwrap()).collect();
    assert_eq!(pool.stats().grows, grows);
    let all = shorts.into_iter().chain(many).chain([short, other, aligned]);
    all.for_each(|block| give(&pool, block, a));
    pool.trim();
    sim.run_all();
    pool.trim();
    assert_eq!((pool.stats().reserved, pool.stats().live, sim.violations()), (0, 0, vec![]));
}

#[test]
fn errors_say_what_was_there() {
    let sim = sim(1, 8 * PIECE);
    let pool = chunked(&sim, ChunkConfig { chunk_len: PIECE, limit: 6 * PIECE, ..ChunkConfig::default() });
    let [a] = streams(&sim);
    let mut blocks: Vec<Block> = (0..6).map(|_| pool.allocate(PIECE, 256, a).unwrap()).collect();
    let error = pool.allocate(PIECE, 256, a).unwrap_err();
    assert_eq!((error.shortage, error.limit, error.free), (Shortage::Limit, Some(6 * PIECE), 0));
    let second = blocks.swap_remove(1);
    let address = second.address();
    give(&pool, second, a);
    let keep = pool.allocate(PIECE / 4, 256, a).unwrap();
    let error = pool.allocate(PIECE - 256, 256, a).unwrap_err();
    assert_eq!((error.shortage, error.largest), (Shortage::Limit, PIECE * 3 / 4), "{error} {address:x}");
    let half = pool.allocate(PIECE / 4, 256, a).unwrap();
    give(&pool, keep, a);
    let error = pool.allocate(PIECE * 3 / 4, 256, a).unwrap_err();
    assert_eq!(
        (error.shortage, error.free, error.largest),
        (Shortage::Fragmentation, PIECE * 3 / 4, PIECE / 2)
    );
    for (len, align) in [(0, 256), (1, 3), (u64::MAX, 256), (256, 1 << 40)] {
        let error = pool.allocate(len, align, a).unwrap_err();
        assert_eq!(error, PoolError::bad_request(len));
    }
    blocks.into_iter().chain([half]).for_each(|block| give(&pool, block, a));
    let pool = chunked(&sim, ChunkConfig { chunk_len: PIECE, ..ChunkConfig::default() });
    let error = pool.allocate(9 * PIECE, 256, a).unwrap_err();
    assert_eq!((error.shortage, error.free), (Shortage::Exhaustion, 0));
}

#[test]
fn holes_between_live_blocks_are_closed_by_remapping_without_a_copy_or_a_wait_or_more_memory() {
    let sim = sim(3, 64 << 20);
    let pool = mapped(&sim);
    let [a] = streams(&sim);
    let mut blocks: Vec<Block> = (0..64).map(|_| pool.allocate(PIECE, 256, a).unwrap()).collect();
    let mut kept = Vec::new();
    for (i, block) in blocks.drain(..).enumerate() {
        fill(&sim, &block, i as u8, a);
        if i % 2 == 0 { give(&pool, block, a) } else { kept.push((i as u8, block)) }
    }
    pool.order().close(a).unwrap();
    sim.run_all();
    let reserved = pool.stats().reserved;
    assert_eq!(reserved, 64 * PIECE);

    let long = pool.allocate(32 * PIECE, 256, a).unwrap();
    fill(&sim, &long, 0xAA, a);
    assert_eq!(pool.stats().reserved, reserved, "no more memory");
    assert_eq!(pool.stats().remaps, 32);
    assert_eq!(sim.calls(Call::Copy) + sim.calls(Call::EventSynchronize), 0, "no copy, no wait");
    sim.run_all();
    for (byte, block) in &kept {
        assert_eq!(sim.peek(block.address(), block.len() as usize).unwrap(), vec![*byte; PIECE as usize]);
    }
    assert_eq!(sim.violations(), []);
    kept.into_iter().map(|(_, b)| b).chain([long]).for_each(|block| give(&pool, block, a));
}

#[test]
fn pieces_with_work_in_flight_are_not_unmapped_while_there_is_another_way() {
    let sim = Sim::with(SimConfig {
        eagerness: 0,
        capacity: 16 * PIECE,
        granularity: PIECE,
        ..SimConfig::default()
    });
    let pool = mapped(&sim);
    let [a] = streams(&sim);
    let blocks: Vec<Block> = (0..8).map(|_| pool.allocate(PIECE, 256, a).unwrap()).collect();
    let mut kept = Vec::new();
    for (i, block) in blocks.into_iter().enumerate() {
        fill(&sim, &block, 1, a);
        if i % 2 == 0 { give(&pool, block, a) } else { kept.push(block) }
    }
    let long = pool.allocate(8 * PIECE, 256, a).unwrap();
    assert_eq!((pool.stats().remaps, pool.stats().reserved), (0, 16 * PIECE), "grown, not moved");
    assert_eq!(sim.calls(Call::EventSynchronize), 0);
    // Now the device is full: the host waits, and only then are pieces moved.
    let last = pool.allocate(4 * PIECE, 256, a).unwrap();
    assert!(pool.stats().remaps > 0 && sim.calls(Call::EventSynchronize) > 0);
    assert_eq!(sim.violations(), []);
    kept.into_iter().chain([long, last]).for_each(|block| give(&pool, block, a));
}

#[test]
fn a_pool_that_sleeps_holds_no_memory_and_wakes_with_the_same_addresses_and_contents() {
    for save in [false, true] {
        let sim = sim(2, 64 << 20);
        let pool = mapped(&sim);
        let [a] = streams(&sim);
        let blocks: Vec<Block> = (0..5).map(|i| pool.allocate(PIECE + i, 256, a).unwrap()).collect();
        let gone = pool.allocate(10 * PIECE, 256, a).unwrap();
        blocks.iter().enumerate().for_each(|(i, block)| fill(&sim, block, i as u8 + 1, a));
        fill(&sim, &gone, 9, a);
        give(&pool, gone, a);
        // SAFETY: nothing is submitted until the pool wakes.
        let bytes = unsafe { pool.sleep(save).unwrap() };
        assert_eq!((sim.used_bytes(0), pool.stats().reserved), (0, 0));
        assert!(bytes >= 15 * PIECE);
        assert_eq!(pool.allocate(20 * PIECE, 256, a).unwrap_err().shortage, Shortage::Asleep);
        sim.inject(Fault { call: Some(Call::Create), after: 2, times: 1, code: DriverError::OUT_OF_MEMORY });
        assert!(pool.wake().is_err());
        assert_eq!(sim.used_bytes(0), 0, "still asleep");
        pool.wake().unwrap();
        for (i, block) in blocks.iter().enumerate() {
            let byte = if save { i as u8 + 1 } else { 0xCD };
            assert_eq!(
                sim.peek(block.address(), block.len() as usize).unwrap(),
                vec![byte; block.len() as usize]
            );
            fill(&sim, block, 7, a);
        }
        assert_eq!(sim.violations(), []);
        blocks.into_iter().for_each(|block| give(&pool, block, a));
        let again = pool.allocate(20 * PIECE, 256, a).unwrap();
        fill(&sim, &again, 8, a);
        give(&pool, again, a);
        assert_eq!(sim.violations(), []);
    }
}

#[test]
fn trimming_gives_back_what_is_past_and_nothing_else() {
    for_each_pool(|sim, pool| {
        let [a] = streams(sim);
        let keep = pool.allocate(1 << 20, 256, a).unwrap();
        let drop = pool.allocate(2 << 20, 256, a).unwrap();
        fill(sim, &drop, 1, a);
        give(&pool, drop, a);
        assert_eq!(pool.trim(), 0, "the fill may not be past");
        sim.run_all();
        assert!(pool.trim() >= 2 << 20);
        assert_eq!(pool.stats().reserved, sim.used_bytes(0));
        let b = sim.device(0).stream_create().unwrap();
        give(&pool, keep, b);
        assert_eq!(sim.violations(), [], "{:?}", pool.stats());
    });
}

#[test]
fn a_captured_stream_allocates_from_memory_that_stays_with_the_graph_and_nobody_asks_meanwhile() {
    let sim = sim(4, 64 << 20);
    let device = sim.device(0);
    let pool = chunked(&sim, ChunkConfig { chunk_len: 1 << 20, ..ChunkConfig::default() });
    let [a, b] = streams(&sim);
    let before = pool.allocate(4096, 256, a).unwrap();
    let old = before.address();
    fill(&sim, &before, 1, a);
    give(&pool, before, a);

    let capture = pool.begin_capture(a).unwrap();
    assert!(pool.begin_capture(a).is_err(), "once only");
    device.capture_begin(a).unwrap();
    let inside = pool.allocate(4096, 256, a).unwrap();
    assert_ne!(inside.address(), old, "memory of its own");
    let address = inside.address();
    fill(&sim, &inside, 5, a);
    give(&pool, inside, a);
    let again = pool.allocate(4096, 256, a).unwrap();
    assert_eq!(again.address(), address, "reused within the capture");
    // Others go on meanwhile, and grow, and steal, and ask nothing.
    let queries = sim.calls(Call::EventQuery);
    let others: Vec<Block> = (0..30).map(|i| pool.allocate(100_000 + i, 256, b).unwrap()).collect();
    others.into_iter().for_each(|block| give(&pool, block, b));
    pool.trim();
    assert_eq!(sim.calls(Call::EventQuery), queries);
    fill(&sim, &again, 5, a);
    let graph = device.capture_end(a).unwrap();
    let memory = capture.end();
    give(&pool, again, a);

    let after = pool.allocate(4096, 256, a).unwrap();
    assert_ne!(after.address(), address, "the graph's memory is not for others");
    fill(&sim, &after, 6, a);
    for _ in 0..3 {
        device.graph_launch(graph, a).unwrap();
    }
    device.synchronize().unwrap();
    assert_eq!(sim.peek(address, 1).unwrap(), [5]);
    assert_eq!(sim.violations(), []);
    let held = sim.used_bytes(0);
    assert!(memory.stats().reserved > 0);
    drop(memory);
    assert!(sim.used_bytes(0) < held, "the graph is gone, and its memory with it");
    give(&pool, after, a);
}

#[test]
fn a_buffer_that_outlives_its_capture_keeps_the_memory_until_it_is_dropped() {
    let sim = sim(4, 64 << 20);
    let pool = Arc::new(chunked(&sim, ChunkConfig { chunk_len: 1 << 20, ..ChunkConfig::default() }));
    let [a] = streams(&sim);
    let capture = pool.begin_capture(a).unwrap();
    let buf = DeviceBuf::<f32, _>::new_in(pool.clone(), 1000, a).unwrap();
    drop(capture.end());
    assert_eq!(sim.used_bytes(0), 1 << 20);
    // SAFETY: the buffer is held.
    unsafe { sim.device(0).fill(buf.address(), 1, buf.bytes(), a).unwrap() };
    drop(buf);
    assert_eq!(sim.used_bytes(0), 0);
    assert_eq!(sim.violations(), []);
}

#[test]
fn a_source_of_other_memory_serves_under_the_same_pool() {
    use terrane_gpu::{Chunks, DeviceMemory, Immediate};
    let sim = sim(1, 1 << 20);
    let chunks =
        Chunks::new(DeviceMemory(sim.device(0)), ChunkConfig { chunk_len: PIECE, ..ChunkConfig::default() });
    let pool = VariablePool::over(Arc::new(Immediate), chunks, FirstFit::default);
    let block = pool.allocate(1000, 256, Immediate::STREAM).unwrap();
    give(&pool, block, Immediate::STREAM);
    assert_eq!(pool.trim(), PIECE);
    assert_eq!(sim.used_bytes(0), 0);
}

#[test]
fn threads_on_their_own_streams_and_on_one_another_s_never_share_a_block() {
    let sim = sim(8, 8 << 20);
    let pool = chunked(&sim, ChunkConfig { chunk_len: 1 << 20, limit: 4 << 20, ..ChunkConfig::default() });
    let shared = sim.device(0).stream_create().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (pool, sim) = (&pool, &sim);
            let own = sim.device(0).stream_create().unwrap();
            scope.spawn(move || {
                let mut dice = Dice(thread);
                let mut held: Vec<(Block, Stream, u8)> = Vec::new();
                for round in 0..2000u64 {
                    let stream = if dice.below(3) == 0 { shared } else { own };
                    if held.len() < 16
                        && let Ok(block) = pool.allocate(1 + dice.below(60_000), 256, stream)
                    {
                        let byte = (round * 4 + thread) as u8;
                        fill(sim, &block, byte, stream);
                        held.push((block, stream, byte));
                    }
                    if dice.below(2) == 0 && !held.is_empty() {
                        let (block, stream, byte) = held.swap_remove(dice.below(held.len() as u64) as usize);
                        let (address, len) = (block.address(), block.len());
                        let device = sim.device(0);
                        device
                            .launch(stream, &[Access::read(address, len)], move |memory| {
                                let mut bytes = vec![0; len as usize];
                                memory.read(address, &mut bytes);
                                assert!(bytes.iter().all(|&b| b == byte));
                            })
                            .unwrap();
                        give(pool, block, stream);
                    }
                }
                held.into_iter().for_each(|(block, stream, _)| give(pool, block, stream));
            });
        }
    });
    assert_eq!(pool.stats().live, 0);
    let races: Vec<Violation> = sim.violations();
    assert_eq!(races, []);
}
