//! Checks of pools.

use super::{Failure, expect, expect_at, fill, give, read, require, retire};
use crate::adaptors::{Limit, Statistics, Track};
use crate::buf::DeviceBuf;
use crate::chunks::{ChunkConfig, DevicePoolOf};
use crate::device::{Device, Stream};
use crate::driver_pool::DriverPool;
use crate::error::Shortage;
use crate::fixed::{FixedConfig, FixedPool};
use crate::free_list::FreeList;
use crate::movable::MovableSet;
use crate::pool::{Block, DevicePool};
use crate::regions::Regions;
use crate::variable::{Engine, VariablePool};
use crate::vmm::VmmConfig;
use std::sync::Arc;

/// Bytes of a block on which work takes a while.
const LONG: u64 = 64 << 20;
/// A pool with one such block.
pub(super) const ONE: FixedConfig =
    FixedConfig { block_len: LONG, align: 256, blocks_per_chunk: 1, max_blocks: 1 };

pub(super) fn fixed<D: Device + ?Sized, L: FreeList>(
    device: &Arc<D>,
    pool: &FixedPool<D, L>,
) -> Result<(), Failure> {
    let streams = [device.stream_create()?, device.stream_create()?];
    for round in 0..6u8 {
        let stream = streams[usize::from(round % 2)];
        let blocks = (0..100).map(|_| pool.take(stream)).collect::<Result<Vec<_>, _>>()?;
        for (i, block) in blocks.iter().enumerate() {
            fill(&**device, block, round ^ i as u8, stream)?;
        }
        for (i, block) in blocks.into_iter().enumerate() {
            if i % 7 == 0 {
                expect(&**device, &block, round ^ i as u8, stream)?;
            }
            give(pool, block, stream);
        }
    }
    let stats = pool.stats();
    require(stats.live_blocks == 0, || format!("blocks are lost: {stats:?}"))?;
    require(stats.reserved <= 128 * (64 << 10), || format!("streams did not share: {stats:?}"))?;
    retire(device, pool, &streams)
}

/// Blocks of many lengths on some streams, in an order of chance, each filled, checked and given back.
fn wander<D: Device + ?Sized>(
    device: &Arc<D>,
    pool: &impl DevicePool,
    streams: &[Stream],
    seed: u64,
) -> Result<(), Failure> {
    let mut state = seed;
    let mut dice = |sides: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % sides
    };
    let mut held: Vec<(Block, u8, Stream)> = Vec::new();
    for round in 0..600u32 {
        let stream = streams[dice(streams.len() as u64) as usize];
        if held.len() < 40 && dice(5) < 3 {
            let magnitude = 8 + dice(14);
            let block = pool.allocate(1 + dice(1 << magnitude), 256, stream)?;
            fill(&**device, &block, round as u8, stream)?;
            held.push((block, round as u8, stream));
        } else if !held.is_empty() {
            let (block, byte, stream) = held.swap_remove(dice(held.len() as u64) as usize);
            if dice(4) == 0 {
                expect(&**device, &block, byte, stream)?;
            }
            give(pool, block, stream);
        }
    }
    for (block, byte, stream) in held {
        expect(&**device, &block, byte, stream)?;
        give(pool, block, stream);
    }
    Ok(())
}

/// Nothing is out, and an idle pool gives back all that it holds.
fn is_whole<D: Device + ?Sized>(device: &Arc<D>, pool: &impl DevicePool) -> Result<(), Failure> {
    let stats = pool.stats();
    require(stats.live == 0 && stats.live_blocks == 0, || format!("memory is lost: {stats:?}"))?;
    // The first trim records what has to be past; the second finds that it is.
    pool.trim();
    device.synchronize()?;
    pool.trim();
    let kept = pool.stats().reserved;
    require(kept == 0, || format!("{kept} bytes were not given back by an idle pool"))
}

pub(super) fn mixed<D: Device + ?Sized>(
    device: &Arc<D>,
    pool: &impl DevicePool,
    seed: u64,
) -> Result<(), Failure> {
    let streams = [device.stream_create()?, device.stream_create()?];
    wander(device, pool, &streams, seed)?;
    is_whole(device, pool)?;
    retire(device, pool, &streams)
}

/// Four threads, each with two streams that no other thread uses.
pub(super) fn threads<D: Device + ?Sized>(device: &Arc<D>, pool: &impl DevicePool) -> Result<(), Failure> {
    let streams = (0..8).map(|_| device.stream_create()).collect::<Result<Vec<_>, _>>()?;
    std::thread::scope(|scope| {
        let run = |(i, own)| scope.spawn(move || wander(device, pool, own, 10 + i as u64));
        let threads: Vec<_> = streams.chunks(2).enumerate().map(run).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(_) => Err("a thread panicked".into()),
        })
    })?;
    is_whole(device, pool)?;
    retire(device, pool, &streams)
}

pub(super) fn adapted<D: Device + ?Sized>(device: &Arc<D>, pool: impl DevicePool) -> Result<(), Failure> {
    let pool = Track::new(Statistics::new(Limit::new(pool, 128 << 20)));
    mixed(device, &pool, 4)?;
    require(pool.live().is_empty(), || format!("not given back: {:?}", pool.live()))?;
    let peak = pool.stats().peak_live;
    require(peak > 0 && peak <= 128 << 20, || format!("a peak of {peak} bytes"))?;
    let stream = device.stream_create()?;
    let refused = pool.allocate((128 << 20) + 1, 256, stream).err();
    require(refused.is_some_and(|error| error.shortage == Shortage::Limit), || format!("{refused:?}"))?;
    retire(device, &pool, &[stream])
}

/// A pool with room for one block of `LONG` bytes.
pub(super) fn cramped<D: Device + ?Sized + 'static, P: Engine>(
    device: &Arc<D>,
    engine: fn() -> P,
) -> DevicePoolOf<P, D> {
    let chunks = ChunkConfig { chunk_len: LONG, limit: LONG, ..ChunkConfig::default() };
    VariablePool::on(device.clone(), chunks, engine)
}

/// A stream has much to do with a block and gives it back; another takes it at once, and what that one writes must come last.
pub(super) fn handed_over<D: Device + ?Sized + 'static, P: Engine>(
    device: &Arc<D>,
    engine: fn() -> P,
) -> Result<(), Failure> {
    let pools: [Box<dyn DevicePool + '_>; 2] =
        [Box::new(FixedPool::new(device.clone(), ONE)?), Box::new(cramped(device, engine))];
    let streams = [device.stream_create()?, device.stream_create()?];
    for pool in &pools {
        for round in 0..4u8 {
            let (from, to) = (streams[usize::from(round % 2)], streams[usize::from(1 - round % 2)]);
            let block = pool.allocate(LONG, 256, from)?;
            for _ in 0..16 {
                fill(&**device, &block, 0xAA, from)?;
            }
            let before = block.address();
            give(pool, block, from);
            let block = pool.allocate(LONG, 256, to)?;
            require(block.address() == before, || "the pool had room for one more block".into())?;
            fill(&**device, &block, round, to)?;
            device.synchronize()?;
            expect(&**device, &block, round, to)?;
            give(pool, block, to);
        }
        streams.iter().for_each(|&stream| pool.retire_stream(stream));
    }
    streams.into_iter().try_for_each(|stream| Ok(device.stream_destroy(stream)?))
}

/// A second stream reads a buffer that the first gives back and takes again: it must still find what was there.
pub(super) fn used_elsewhere<D: Device + ?Sized>(
    device: &Arc<D>,
    pool: &impl DevicePool,
) -> Result<(), Failure> {
    let (own, other) = (device.stream_create()?, device.stream_create()?);
    let (copy, event) = (device.alloc(LONG)?, device.event_create()?);
    for round in 0..3u8 {
        let buf = DeviceBuf::<u8, _>::new_in(pool, LONG as usize, own)?;
        // SAFETY: the buffer is held until all of this is submitted, and the pool is told of the other stream.
        unsafe {
            device.fill(buf.address(), round, LONG, own)?;
            device.event_record(event, own)?;
            device.stream_wait(other, event)?;
            for _ in 0..4 {
                device.copy(copy, buf.address(), LONG, other)?;
            }
        }
        buf.used_on(other);
        drop(buf);
        let next = DeviceBuf::<u8, _>::new_in(pool, LONG as usize, own)?;
        // SAFETY: the buffer is held.
        unsafe { device.fill(next.address(), 0xFF, LONG, own)? };
        device.synchronize()?;
        expect_at(&**device, copy, LONG, round, other)?;
        expect_at(&**device, next.address(), LONG, 0xFF, own)?;
    }
    device.event_destroy(event);
    // SAFETY: all work is done.
    unsafe { device.free(copy)? };
    retire(device, pool, &[own, other])
}

/// What a captured stream takes lies apart from the rest, and comes back when the capture's memory is let go.
pub(super) fn captured<D: Device + ?Sized + 'static, P: Engine>(
    device: &Arc<D>,
    pool: &DevicePoolOf<P, D>,
) -> Result<(), Failure> {
    let (stream, other) = (device.stream_create()?, device.stream_create()?);
    let before = pool.allocate(1 << 20, 256, stream)?;
    give(pool, before, stream);
    let capture = pool.begin_capture(stream)?;
    let block = pool.allocate(1 << 20, 256, stream)?;
    let outside = pool.allocate(1 << 20, 256, other)?;
    fill(&**device, &outside, 1, other)?;
    let memory = capture.end();
    fill(&**device, &block, 2, stream)?;
    device.synchronize()?;
    expect(&**device, &outside, 1, other)?;
    expect(&**device, &block, 2, stream)?;
    require(block.address() != outside.address(), || "one place was handed out twice".into())?;
    give(pool, block, stream);
    drop(memory);
    give(pool, outside, other);
    is_whole(device, pool)?;
    retire(device, pool, &[stream, other])
}

/// A request for twice the device's memory is refused as what it is, and harms nothing.
pub(super) fn too_much<D: Device + ?Sized + 'static, P: Engine>(
    device: &Arc<D>,
    engine: fn() -> P,
) -> Result<(), Failure> {
    let pool = VariablePool::on(device.clone(), ChunkConfig::default(), engine);
    let stream = device.stream_create()?;
    let refused = pool.allocate(device.memory()?.total * 2, 256, stream).err();
    require(refused.is_some_and(|error| error.shortage == Shortage::Exhaustion), || format!("{refused:?}"))?;
    let block = pool.allocate(1 << 20, 256, stream)?;
    fill(&**device, &block, 7, stream)?;
    expect(&**device, &block, 7, stream)?;
    give(&pool, block, stream);
    is_whole(device, &pool)?;
    retire(device, &pool, &[stream])
}

/// Blocks between holes are moved, and keep what is in them.
pub(super) fn moved<D: Device + ?Sized, P: Regions>(device: &Arc<D>, pool: Arc<P>) -> Result<(), Failure> {
    let set = MovableSet::new(device.clone(), pool.clone());
    let stream = device.stream_create()?;
    let mut blocks = Vec::new();
    for i in 0..64u8 {
        let block = set.allocate(1 << 20, 256, stream)?;
        let place = block.pin();
        // SAFETY: pinned until it is submitted.
        unsafe { device.fill(place.address(), i, place.len(), stream)? };
        drop(place);
        blocks.push((i, block));
    }
    blocks.retain(|(i, _)| i % 4 == 3);
    let done = set.compact()?;
    require(done.moved > 0, || format!("{done:?}"))?;
    for (i, block) in &blocks {
        let place = block.pin();
        expect_at(&**device, place.address(), place.len(), *i, stream)?;
    }
    drop(blocks);
    is_whole(device, &pool)?;
    retire(device, &pool, &[stream])
}

pub(super) fn remapping<D: Device + ?Sized + 'static, P: Engine>(
    device: &Arc<D>,
    engine: fn() -> P,
) -> Result<(), Failure> {
    let piece = device.virtual_memory().map_or(0, |vm| vm.granularity()).max(2 << 20);
    let config = VmmConfig { piece_len: piece, limit: 32 * piece, ..VmmConfig::default() };
    let pool = VariablePool::mapped_on(device.clone(), config, engine)?;
    let stream = device.stream_create()?;
    let blocks = (0..32).map(|_| pool.allocate(piece, 256, stream)).collect::<Result<Vec<_>, _>>()?;
    let mut kept = Vec::new();
    for (i, block) in blocks.into_iter().enumerate() {
        fill(&**device, &block, i as u8, stream)?;
        if i % 2 == 0 { give(&pool, block, stream) } else { kept.push((block, i as u8)) }
    }
    device.stream_synchronize(stream)?;
    // The pool is at its limit, and no hole is longer than one piece.
    let long = pool.allocate(16 * piece, 256, stream)?;
    fill(&**device, &long, 0xEE, stream)?;
    for (block, byte) in &kept {
        expect(&**device, block, *byte, stream)?;
    }
    expect(&**device, &long, 0xEE, stream)?;
    let stats = pool.stats();
    require(stats.remaps >= 15 && stats.reserved == 32 * piece, || format!("{stats:?}"))?;
    kept.into_iter().map(|(block, _)| block).chain([long]).for_each(|block| give(&pool, block, stream));
    retire(device, &pool, &[stream])
}

pub(super) fn sleep_and_wake<D: Device + ?Sized + 'static, P: Engine>(
    device: &Arc<D>,
    engine: fn() -> P,
) -> Result<(), Failure> {
    let pool = VariablePool::mapped_on(device.clone(), VmmConfig::default(), engine)?;
    let stream = device.stream_create()?;
    let blocks = (0..4).map(|i| pool.allocate((3 << 20) + i, 256, stream)).collect::<Result<Vec<_>, _>>()?;
    for (i, block) in blocks.iter().enumerate() {
        fill(&**device, block, i as u8 + 1, stream)?;
    }
    // SAFETY: nothing is submitted until the pool is awake.
    let bytes = unsafe { pool.sleep(true)? };
    require(bytes >= 12 << 20 && pool.stats().reserved == 0, || format!("gave {bytes} bytes back"))?;
    pool.wake()?;
    for (i, block) in blocks.iter().enumerate() {
        expect(&**device, block, i as u8 + 1, stream)?;
    }
    blocks.into_iter().for_each(|block| give(&pool, block, stream));
    retire(device, &pool, &[stream])
}

/// By hand, and behind the trait of all pools.
pub(super) fn ordered<D: Device + ?Sized>(device: &Arc<D>) -> Result<(), Failure> {
    let pool = DriverPool::new(device.clone(), 64 << 20)?;
    let streams = [device.stream_create()?, device.stream_create()?];
    wander(device, &pool, &streams, 5)?;
    let stats = pool.stats();
    require(stats.live == 0 && stats.live_blocks == 0, || format!("memory is lost: {stats:?}"))?;
    device.synchronize()?;
    retire(device, &pool, &streams)?;
    drop(pool);
    let Some(driver) = device.ordered_memory() else { return Ok(()) };
    let stream = device.stream_create()?;
    driver.keep_unused(64 << 20)?;
    for round in 0..4u8 {
        let address = driver.alloc_ordered(1 << 20, stream)?;
        // SAFETY: the memory is ours until it is freed in the order of the stream.
        unsafe { device.fill(address, round, 1 << 20, stream)? };
        let bytes = read(&**device, address + (1 << 19), 64, stream)?;
        // SAFETY: as above.
        unsafe { driver.free_ordered(address, stream)? };
        require(bytes == [round; 64], || format!("round {round} read {bytes:?}"))?;
    }
    device.stream_synchronize(stream)?;
    let used = driver.usage()?.used;
    driver.trim(0)?;
    device.stream_destroy(stream)?;
    require(used == 0, || format!("{used} bytes are still in use"))
}
