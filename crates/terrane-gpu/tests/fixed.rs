//! What a pool of equal blocks promises, on the simulated device.
#![cfg(not(loom))]

use std::collections::HashSet;
use std::sync::Arc;
use terrane_gpu::fixed::{FixedConfig, FixedPool, LockFree, Locked};
use terrane_gpu::free_list::FreeList;
use terrane_gpu::sim::{Call, Fault, Sim, SimConfig, Violation};
use terrane_gpu::{Block, Device, DeviceBuf, DevicePool, DriverError, Shortage, SimDevice, Stream};

const LEN: u64 = 4096;

fn config() -> FixedConfig {
    FixedConfig { block_len: LEN, align: 256, blocks_per_chunk: 8, max_blocks: 64 }
}

fn set_up<L: FreeList>(seed: u64) -> (Sim, Arc<SimDevice>, FixedPool<SimDevice, L>, [Stream; 3]) {
    let sim = Sim::with(SimConfig { seed, ..SimConfig::default() });
    let device = sim.device(0);
    let pool = FixedPool::with_lists(device.clone(), config()).unwrap();
    let streams = core::array::from_fn(|_| device.stream_create().unwrap());
    (sim, device, pool, streams)
}

fn fill(device: &SimDevice, block: &Block, byte: u8, stream: Stream) {
    // SAFETY: the block is held by the caller.
    unsafe { device.fill(block.address(), byte, block.len(), stream).unwrap() }
}

fn give<L: FreeList>(pool: &FixedPool<SimDevice, L>, block: Block, stream: Stream) {
    // SAFETY: the tests submit no work with a block after this.
    unsafe { pool.deallocate(block, stream, &[]) }
}

#[test]
fn reuse_on_the_same_stream_makes_no_driver_call() {
    let (sim, _, pool, [a, ..]) = set_up::<LockFree>(1);
    let block = pool.take(a).unwrap();
    let address = block.address();
    give(&pool, block, a);
    let calls = sim.total_calls();
    for _ in 0..1000 {
        let block = pool.take(a).unwrap();
        assert_eq!(block.address(), address, "last in, first out");
        give(&pool, block, a);
    }
    assert_eq!(sim.total_calls(), calls);
    assert_eq!(sim.violations(), []);
}

#[test]
fn reuse_by_another_stream_waits_on_the_device_once_per_epoch_and_the_host_never_waits() {
    let (sim, device, pool, [a, b, _]) = set_up::<LockFree>(1);
    let blocks: Vec<Block> = (0..64).map(|_| pool.take(a).unwrap()).collect();
    for block in blocks {
        fill(&device, &block, 1, a);
        give(&pool, block, a);
    }
    let stolen: Vec<Block> = (0..64).map(|_| pool.take(b).unwrap()).collect();
    for block in &stolen {
        fill(&device, block, 2, b);
    }
    let stats = pool.stats();
    assert_eq!((stats.events_recorded, stats.waits), (1, 1), "one epoch, one wait for 64 blocks");
    assert_eq!(stats.steals, 64);
    assert_eq!(sim.calls(Call::EventSynchronize) + sim.calls(Call::StreamSynchronize), 0);
    assert_eq!(sim.violations(), []);
    stolen.into_iter().for_each(|block| give(&pool, block, b));
}

#[test]
fn a_pool_that_forgets_to_wait_is_found_by_the_checker() {
    // The same reuse without the pool: the block is handed from stream to stream with nothing in between.
    let (sim, device, pool, [a, b, _]) = set_up::<LockFree>(1);
    let block = pool.take(a).unwrap();
    fill(&device, &block, 1, a);
    use terrane_gpu::Streams;
    device.note_freed(block.address(), LEN, a);
    device.note_taken(block.address(), LEN, b);
    assert!(matches!(sim.violations()[..], [Violation::Race { what: "allocation from a pool", .. }]));
    give(&pool, block, b);
}

#[test]
fn blocks_known_to_be_past_are_taken_without_a_wait() {
    let (sim, device, pool, [a, b, c]) = set_up::<LockFree>(1);
    let blocks: Vec<Block> = (0..64).map(|_| pool.take(a).unwrap()).collect();
    blocks.into_iter().for_each(|block| give(&pool, block, a));
    pool.order().close(a).unwrap();
    device.synchronize().unwrap();
    let block = pool.take(b).unwrap();
    fill(&device, &block, 2, b);
    let other = pool.take(c).unwrap();
    fill(&device, &other, 2, c);
    assert_eq!(pool.stats().waits, 0);
    assert_eq!(sim.violations(), []);
    give(&pool, block, b);
    give(&pool, other, c);
}

#[test]
fn idle_blocks_of_other_streams_are_taken_before_the_pool_grows() {
    let (sim, _, pool, [a, b, _]) = set_up::<LockFree>(1);
    let blocks: Vec<Block> = (0..8).map(|_| pool.take(a).unwrap()).collect();
    assert_eq!(sim.calls(Call::Alloc), 1);
    blocks.into_iter().for_each(|block| give(&pool, block, a));
    let again: Vec<Block> = (0..8).map(|_| pool.take(b).unwrap()).collect();
    assert_eq!(sim.calls(Call::Alloc), 1);
    again.into_iter().for_each(|block| give(&pool, block, b));
}

#[test]
fn a_buffer_used_on_another_stream_is_not_reused_before_that_work() {
    let (sim, device, pool, [a, b, c]) = set_up::<LockFree>(3);
    {
        let buf = DeviceBuf::<u8, _>::new_in(&pool, LEN as usize, a).unwrap();
        let event = terrane_gpu::Streams::event_create(&*device).unwrap();
        // SAFETY: `buf` is held until the work is submitted.
        unsafe { device.fill(buf.address(), 1, LEN, a).unwrap() };
        terrane_gpu::Streams::event_record(&*device, event, a).unwrap();
        terrane_gpu::Streams::stream_wait(&*device, b, event).unwrap();
        // SAFETY: as above.
        unsafe { device.fill(buf.address(), 2, LEN, b).unwrap() };
        buf.used_on(b);
    }
    assert_eq!(sim.violations(), [], "the free itself is in order");
    let rest: Vec<Block> = (0..7).map(|_| pool.take(c).unwrap()).collect();
    let reused = pool.take(c).unwrap();
    fill(&device, &reused, 3, c);
    assert_eq!(pool.stats().waits, 2, "for both streams");
    assert_eq!(sim.violations(), []);
    rest.into_iter().chain([reused]).for_each(|block| give(&pool, block, c));
}

#[test]
fn a_full_pool_says_what_its_limit_is_and_goes_on_after_a_free() {
    let (_, _, pool, [a, ..]) = set_up::<Locked>(1);
    let mut blocks: Vec<Block> = (0..64).map(|_| pool.take(a).unwrap()).collect();
    let error = pool.take(a).unwrap_err();
    assert_eq!((error.shortage, error.limit), (Shortage::Limit, Some(64 * LEN)));
    give(&pool, blocks.pop().unwrap(), a);
    blocks.push(pool.take(a).unwrap());
    let distinct: HashSet<u64> = blocks.iter().map(Block::address).collect();
    assert_eq!(distinct.len(), 64);
    assert_eq!((pool.stats().live_blocks, pool.stats().reserved), (64, 64 * LEN));
    blocks.into_iter().for_each(|block| give(&pool, block, a));
    assert_eq!(pool.stats().live_blocks, 0);
}

#[test]
fn every_driver_call_may_fail_and_the_pool_stays_whole() {
    let script = |sim: &Sim, device: &SimDevice, pool: &FixedPool<SimDevice>, streams: [Stream; 3]| {
        let mut held: Vec<(Block, Stream)> = Vec::new();
        for round in 0..60u64 {
            let stream = streams[(round % 3) as usize];
            if let Ok(block) = pool.take(stream) {
                // SAFETY: the block is held.
                let _ = unsafe { device.fill(block.address(), 1, LEN, stream) };
                held.push((block, stream));
            }
            if round % 5 > 1 && !held.is_empty() {
                let (block, stream) = held.swap_remove((round as usize * 7) % held.len());
                give(pool, block, stream);
            }
        }
        sim.clear_faults();
        let distinct: HashSet<u64> = held.iter().map(|(b, _)| b.address()).collect();
        assert_eq!(distinct.len(), held.len());
        held.into_iter().for_each(|(block, stream)| give(pool, block, stream));
        assert_eq!(pool.stats().live_blocks, 0);
        let all = (0..64).map(|_| pool.take(streams[0]).unwrap()).collect::<Vec<_>>();
        all.into_iter().for_each(|block| give(pool, block, streams[0]));
        assert_eq!(sim.violations(), []);
    };
    let (sim, device, pool, streams) = set_up::<LockFree>(1);
    let before = sim.total_calls();
    script(&sim, &device, &pool, streams);
    let calls = sim.total_calls() - before;
    assert!(calls > 20, "{calls}");
    for nth in 1..=calls {
        for code in [DriverError::OUT_OF_MEMORY, DriverError::INVALID_HANDLE] {
            let (sim, device, pool, streams) = set_up::<LockFree>(nth);
            sim.fail_nth_call(nth, code);
            script(&sim, &device, &pool, streams);
        }
    }
}

#[test]
fn a_driver_out_of_memory_is_exhaustion_and_leaves_no_trace() {
    let (sim, _, pool, [a, ..]) = set_up::<LockFree>(1);
    sim.inject(Fault { call: Some(Call::Alloc), after: 0, times: 1, code: DriverError::OUT_OF_MEMORY });
    assert_eq!(pool.take(a).unwrap_err().shortage, Shortage::Exhaustion);
    assert_eq!(pool.stats().reserved, 0);
    let block = pool.take(a).unwrap();
    give(&pool, block, a);
}

#[test]
fn blocks_of_a_destroyed_stream_are_reused_after_it_was_retired() {
    let (sim, device, pool, [a, b, _]) = set_up::<LockFree>(1);
    let blocks: Vec<Block> = (0..64).map(|_| pool.take(a).unwrap()).collect();
    for block in blocks {
        fill(&device, &block, 1, a);
        give(&pool, block, a);
    }
    pool.retire_stream(a);
    device.stream_destroy(a).unwrap();
    let block = pool.take(b).unwrap();
    fill(&device, &block, 1, b);
    assert_eq!(sim.violations(), []);
    give(&pool, block, b);
}

fn threads_never_hold_the_same_block<L: FreeList>() {
    let (sim, device, pool, _) = set_up::<L>(9);
    let pool = Arc::new(pool);
    let owners: Arc<Vec<std::sync::atomic::AtomicU32>> =
        Arc::new((0..64).map(|_| std::sync::atomic::AtomicU32::new(0)).collect());
    std::thread::scope(|scope| {
        for thread in 1..=4u32 {
            let (pool, owners, stream) = (pool.clone(), owners.clone(), device.stream_create().unwrap());
            let foreign = device.default_stream();
            scope.spawn(move || {
                use std::sync::atomic::Ordering::SeqCst;
                let mut held = Vec::new();
                for round in 0..3000u32 {
                    if held.len() < 20
                        && let Ok(block) = pool.take(stream)
                    {
                        let owner = &owners[block.key() as usize];
                        assert_eq!(owner.swap(thread, SeqCst), 0, "handed out twice");
                        held.push(block);
                    }
                    if round % 3 != 0
                        && let Some(block) = held.pop()
                    {
                        assert_eq!(owners[block.key() as usize].swap(0, SeqCst), thread);
                        let also = if round % 7 == 0 { &[foreign][..] } else { &[] };
                        // SAFETY: no work was submitted.
                        unsafe { pool.deallocate(block, stream, also) };
                    }
                }
                for block in held {
                    owners[block.key() as usize].store(0, SeqCst);
                    // SAFETY: no work was submitted.
                    unsafe { pool.deallocate(block, stream, &[]) };
                }
            });
        }
    });
    assert_eq!(pool.stats().live_blocks, 0);
    assert_eq!(sim.violations(), []);
}

#[test]
fn threads_never_hold_the_same_block_lock_free() {
    threads_never_hold_the_same_block::<LockFree>();
}

#[test]
fn threads_never_hold_the_same_block_locked() {
    threads_never_hold_the_same_block::<Locked>();
}
