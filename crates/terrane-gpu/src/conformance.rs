//! The pools' checks that run on any device, real ones included: contents, order and accounting, judged by what is read
//! back. On the simulated device the checker judges as well.
//!
//! Each check is a function of a device; [`run`] does them all. Contents are written by fills and copies, because a device
//! need not be able to run a kernel of ours.

use crate::chunks::ChunkConfig;
use crate::device::{Device, Stream};
use crate::fixed::{FixedConfig, FixedPool, Locked};
use crate::free_list::FreeList;
use crate::pool::{Block, DevicePool};
use crate::size_class_pool::{SizeClassConfig, SizeClassPool};
use crate::variable::{Engine, VariablePool};
use crate::vmm::VmmConfig;
use std::sync::Arc;

/// Why a check failed.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What came of one check.
#[derive(Debug)]
pub struct Outcome {
    /// The check.
    pub name: &'static str,
    /// `None` if it passed, otherwise why not.
    pub failure: Option<String>,
}

fn require(holds: bool, what: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(what().into()) }
}

/// Runs every check on `device`, with pools that divide their space by engines from `engine`.
pub fn run<D: Device + ?Sized + 'static, P: Engine>(device: &Arc<D>, engine: fn() -> P) -> Vec<Outcome> {
    type Check<'a> = (&'static str, Box<dyn Fn() -> Result<(), Failure> + 'a>);
    let chunks = ChunkConfig { chunk_len: 8 << 20, limit: 256 << 20, ..ChunkConfig::default() };
    let checks: Vec<Check<'_>> = vec![
        ("memory keeps what is written", Box::new(|| keeps_contents(device))),
        ("events order streams", Box::new(|| events_order_streams(device))),
        (
            "fixed pool, lock-free lists",
            Box::new(|| fixed(device, &FixedPool::new(device.clone(), fixed_config())?)),
        ),
        (
            "fixed pool, locked lists",
            Box::new(|| fixed(device, &FixedPool::<D, Locked>::with_lists(device.clone(), fixed_config())?)),
        ),
        (
            "variable pool over chunks",
            Box::new(|| mixed(device, &VariablePool::on(device.clone(), chunks, engine), 1)),
        ),
        (
            "variable pool over mapped pieces",
            Box::new(|| {
                if device.virtual_memory().is_none() {
                    return Ok(());
                }
                let config = VmmConfig { limit: 256 << 20, ..VmmConfig::default() };
                mixed(device, &VariablePool::mapped_on(device.clone(), config, engine)?, 2)
            }),
        ),
        (
            "size classes over a variable pool",
            Box::new(|| {
                let behind = VariablePool::on(device.clone(), chunks, engine);
                mixed(device, &SizeClassPool::new(behind, device.clone(), SizeClassConfig::default()), 3)
            }),
        ),
        ("remapping keeps live contents", Box::new(|| remapping(device, engine))),
        ("sleep and wake", Box::new(|| sleep_and_wake(device, engine))),
        ("the driver's own pool", Box::new(|| ordered(device))),
        ("page-locked copies", Box::new(|| pinned(device))),
    ];
    checks
        .into_iter()
        .map(|(name, check)| Outcome { name, failure: check().err().map(|failure| failure.to_string()) })
        .collect()
}

fn fixed_config() -> FixedConfig {
    FixedConfig { block_len: 64 << 10, align: 256, blocks_per_chunk: 32, max_blocks: 256 }
}

fn read<D: Device + ?Sized>(device: &D, address: u64, len: u64, stream: Stream) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; len as usize];
    // SAFETY: the callers hold the memory; memory that is not page-locked is written before the call returns.
    unsafe { device.download(bytes.as_mut_ptr(), address, len, stream)? };
    device.stream_synchronize(stream)?;
    Ok(bytes)
}

fn fill<D: Device + ?Sized>(device: &D, block: &Block, byte: u8, stream: Stream) -> Result<(), Failure> {
    // SAFETY: the callers hold the block.
    unsafe { device.fill(block.address(), byte, block.len(), stream)? };
    Ok(())
}

fn expect<D: Device + ?Sized>(device: &D, block: &Block, byte: u8, stream: Stream) -> Result<(), Failure> {
    // First and last bytes, and a stretch in the middle.
    let len = block.len().min(4096);
    for at in [0, (block.len() - len) / 2, block.len() - len] {
        let bytes = read(device, block.address() + at, len, stream)?;
        let wrong = bytes.iter().position(|&b| b != byte);
        require(wrong.is_none(), || {
            format!("byte {} of {block:?} is {:?}, not {byte}", at, wrong.map(|i| bytes[i]))
        })?;
    }
    Ok(())
}

fn give(pool: &impl DevicePool, block: Block, stream: Stream) {
    // SAFETY: no check submits work with a block after giving it back.
    unsafe { pool.deallocate(block, stream, &[]) }
}

fn keeps_contents<D: Device + ?Sized>(device: &Arc<D>) -> Result<(), Failure> {
    let stream = device.stream_create()?;
    let address = device.alloc(1 << 20)?;
    let pattern: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    // SAFETY: the memory is ours, and the host's is not page-locked.
    unsafe { device.upload(address, pattern.as_ptr(), 1 << 20, stream)? };
    let same = read(&**device, address, 1 << 20, stream)? == pattern;
    // SAFETY: all work is done.
    unsafe { device.free(address)? };
    device.stream_destroy(stream)?;
    require(same, || "what was read back is not what was written".into())
}

fn events_order_streams<D: Device + ?Sized>(device: &Arc<D>) -> Result<(), Failure> {
    let (a, b) = (device.stream_create()?, device.stream_create()?);
    let event = device.event_create()?;
    let (len, address) = (32 << 20, device.alloc(64 << 20)?);
    for round in 1..=8u8 {
        // SAFETY: the memory is ours.
        unsafe {
            device.fill(address, round, len, a)?;
            device.event_record(event, a)?;
            device.stream_wait(b, event)?;
            device.copy(address + len, address, len, b)?;
            device.event_record(event, b)?;
            device.stream_wait(a, event)?;
        }
        let last = read(&**device, address + 2 * len - 16, 16, b)?;
        require(last == [round; 16], || format!("round {round} read {last:?}"))?;
    }
    device.synchronize()?;
    device.event_destroy(event);
    // SAFETY: all work is done.
    unsafe { device.free(address)? };
    device.stream_destroy(a)?;
    device.stream_destroy(b)?;
    Ok(())
}

fn fixed<D: Device + ?Sized, L: FreeList>(device: &Arc<D>, pool: &FixedPool<D, L>) -> Result<(), Failure> {
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

fn retire<D: Device + ?Sized>(
    device: &Arc<D>,
    pool: &impl DevicePool,
    streams: &[Stream],
) -> Result<(), Failure> {
    for &stream in streams {
        pool.retire_stream(stream);
        device.stream_destroy(stream)?;
    }
    Ok(())
}

/// Blocks of many lengths on two streams, in an order of chance, each filled, checked and given back.
fn mixed<D: Device + ?Sized>(device: &Arc<D>, pool: &impl DevicePool, seed: u64) -> Result<(), Failure> {
    let streams = [device.stream_create()?, device.stream_create()?];
    let mut state = seed;
    let mut dice = |sides: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % sides
    };
    let mut held: Vec<(Block, u8, Stream)> = Vec::new();
    for round in 0..600u32 {
        let stream = streams[dice(2) as usize];
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
    let stats = pool.stats();
    require(stats.live == 0 && stats.live_blocks == 0, || format!("memory is lost: {stats:?}"))?;
    // The first trim records what has to be past; the second finds that it is.
    pool.trim();
    device.synchronize()?;
    pool.trim();
    let kept = pool.stats().reserved;
    require(kept == 0, || format!("{kept} bytes were not given back by an idle pool"))?;
    retire(device, pool, &streams)
}

fn remapping<D: Device + ?Sized + 'static, P: Engine>(
    device: &Arc<D>,
    engine: fn() -> P,
) -> Result<(), Failure> {
    let Some(vm) = device.virtual_memory() else { return Ok(()) };
    let piece = vm.granularity().max(2 << 20);
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

fn sleep_and_wake<D: Device + ?Sized + 'static, P: Engine>(
    device: &Arc<D>,
    engine: fn() -> P,
) -> Result<(), Failure> {
    if device.virtual_memory().is_none() {
        return Ok(());
    }
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

fn ordered<D: Device + ?Sized>(device: &Arc<D>) -> Result<(), Failure> {
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
    let (_, used) = driver.usage()?;
    driver.trim(0)?;
    device.stream_destroy(stream)?;
    require(used == 0, || format!("{used} bytes are still in use"))
}

fn pinned<D: Device + ?Sized>(device: &Arc<D>) -> Result<(), Failure> {
    let len = 4 << 20;
    let stream = device.stream_create()?;
    let (from, to) = (device.host_alloc(len)?, device.host_alloc(len)?);
    let address = device.alloc(len as u64)?;
    // SAFETY: all three are `len` bytes and ours; the host touches them only while no copy is in flight.
    unsafe {
        for i in 0..len {
            from.add(i).write(((i * 31) >> 3) as u8);
        }
        device.upload(address, from, len as u64, stream)?;
        device.download(to, address, len as u64, stream)?;
        device.stream_synchronize(stream)?;
        let same = core::slice::from_raw_parts(from, len) == core::slice::from_raw_parts(to, len);
        device.host_free(from)?;
        device.host_free(to)?;
        device.free(address)?;
        device.stream_destroy(stream)?;
        require(same, || "what came back is not what was sent".into())
    }
}
