//! The pools' checks that run on any device, real ones included: contents, order and accounting, judged by what is read
//! back. On the simulated device the checker judges as well.
//!
//! Each check is a function of a device; [`run`] does them all, and [`run_between`] those that take two. Contents are written by
//! fills and copies, because a device need not be able to run a kernel of ours. On a real device an order that is missing shows
//! only if there is enough work in flight, so the checks of order submit some before.

mod copies;
#[cfg(feature = "cuda")]
mod cuda;
mod pools;

use crate::chunks::ChunkConfig;
use crate::device::{Device, Stream};
use crate::fixed::{FixedConfig, FixedPool, Locked};
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

type Check<'a> = (&'static str, Box<dyn Fn() -> Result<(), Failure> + 'a>);

fn outcomes(checks: Vec<Check<'_>>) -> Vec<Outcome> {
    let outcome =
        |(name, check): Check<'_>| Outcome { name, failure: check().err().map(|why| why.to_string()) };
    checks.into_iter().map(outcome).collect()
}

/// Runs every check on `device`, with pools that divide their space by engines from `engine`.
pub fn run<D: Device + ?Sized + 'static, P: Engine>(device: &Arc<D>, engine: fn() -> P) -> Vec<Outcome> {
    let chunks = ChunkConfig { chunk_len: 8 << 20, limit: 256 << 20, ..ChunkConfig::default() };
    let mapped = VmmConfig { limit: 256 << 20, ..VmmConfig::default() };
    let on_chunks = move || VariablePool::on(device.clone(), chunks, engine);
    // A device that cannot map, or has no pool of its own, passes the checks of that.
    let maps = device.virtual_memory().is_some();
    let orders = device.ordered_memory().is_some();
    let checks: Vec<Check<'_>> = vec![
        ("memory keeps what is written", Box::new(|| copies::keeps_contents(device))),
        ("events order streams", Box::new(|| copies::events_order_streams(device))),
        ("the host is called when work is done", Box::new(|| copies::calls_back(device))),
        (
            "fixed pool, lock-free lists",
            Box::new(|| pools::fixed(device, &FixedPool::new(device.clone(), fixed_config())?)),
        ),
        (
            "fixed pool, locked lists",
            Box::new(|| {
                pools::fixed(device, &FixedPool::<D, Locked>::with_lists(device.clone(), fixed_config())?)
            }),
        ),
        ("variable pool over chunks", Box::new(|| pools::mixed(device, &on_chunks(), 1))),
        (
            "variable pool over mapped pieces",
            Box::new(|| {
                if !maps {
                    return Ok(());
                }
                pools::mixed(device, &VariablePool::mapped_on(device.clone(), mapped, engine)?, 2)
            }),
        ),
        (
            "size classes over a variable pool",
            Box::new(|| {
                let classes = SizeClassConfig::default();
                pools::mixed(device, &SizeClassPool::new(on_chunks(), device.clone(), classes), 3)
            }),
        ),
        ("adaptors around a variable pool", Box::new(|| pools::adapted(device, on_chunks()))),
        ("threads on streams of their own", Box::new(|| pools::threads(device, &on_chunks()))),
        ("one stream's memory on another", Box::new(|| pools::handed_over(device, engine))),
        (
            "a buffer that two streams use",
            Box::new(|| {
                pools::used_elsewhere(device, &FixedPool::new(device.clone(), pools::ONE)?)?;
                pools::used_elsewhere(device, &pools::cramped(device, engine))
            }),
        ),
        ("memory of a declared capture", Box::new(|| pools::captured(device, &on_chunks()))),
        ("a request for too much", Box::new(|| pools::too_much(device, engine))),
        ("blocks that are moved", Box::new(|| pools::moved(device, Arc::new(on_chunks())))),
        (
            "remapping keeps live contents",
            Box::new(|| if maps { pools::remapping(device, engine) } else { Ok(()) }),
        ),
        ("sleep and wake", Box::new(|| if maps { pools::sleep_and_wake(device, engine) } else { Ok(()) })),
        ("the driver's own pool", Box::new(|| if orders { pools::ordered(device) } else { Ok(()) })),
        ("page-locked copies", Box::new(|| copies::pinned(device))),
        ("transfers", Box::new(|| copies::transfers(device, Arc::new(on_chunks())))),
    ];
    outcomes(checks)
}

/// Runs the checks that take two devices.
pub fn run_between<D: Device + ?Sized + 'static, P: Engine>(
    devices: [&Arc<D>; 2],
    engine: fn() -> P,
) -> Vec<Outcome> {
    let [one, other] = devices;
    outcomes(vec![
        ("copies from the one device to the other", Box::new(|| copies::between(one, other, engine))),
        ("copies from the other to the one", Box::new(|| copies::between(other, one, engine))),
    ])
}

/// Runs the checks that only CUDA can pass: with `cudarc`, and of graphs.
#[cfg(feature = "cuda")]
pub fn run_on_cuda<P: Engine>(device: &Arc<crate::Cuda>, engine: fn() -> P) -> Vec<Outcome> {
    outcomes(vec![
        ("buffers in the hands of cudarc", Box::new(|| cuda::buffers(device, engine))),
        ("memory of a captured graph", Box::new(|| cuda::graphs(device, engine))),
    ])
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
    expect_at(device, block.address(), block.len(), byte, stream)
}

/// `len` bytes at `at` are `byte`: the first, the last, and a stretch in the middle.
fn expect_at<D: Device + ?Sized>(
    device: &D,
    at: u64,
    len: u64,
    byte: u8,
    stream: Stream,
) -> Result<(), Failure> {
    let part = len.min(4096);
    for start in [0, (len - part) / 2, len - part] {
        let bytes = read(device, at + start, part, stream)?;
        let wrong = bytes.iter().position(|&b| b != byte);
        require(wrong.is_none(), || {
            let (index, found) = wrong.map_or((0, byte), |i| (i as u64, bytes[i]));
            format!("byte {} of {len} is {found}, not {byte}", start + index)
        })?;
    }
    Ok(())
}

fn give(pool: &impl DevicePool, block: Block, stream: Stream) {
    // SAFETY: no check submits work with a block after giving it back.
    unsafe { pool.deallocate(block, stream, &[]) }
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
