//! Checks of what CUDA alone has: buffers in the hands of `cudarc`, and graphs.

use super::{Failure, read, require};
use crate::buf::DeviceBuf;
use crate::chunks::ChunkConfig;
use crate::cuda::{Cuda, CudaBuf};
use crate::device::{Device, Stream};
use crate::pool::DevicePool;
use crate::variable::{Engine, VariablePool};
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, sys};
use std::sync::Arc;

const CHUNKS: ChunkConfig =
    ChunkConfig { chunk_len: 4 << 20, whole_from: 8 << 20, idle_percent: 10, limit: u64::MAX };

fn context(device: &Cuda) -> Result<Arc<CudaContext>, Failure> {
    Ok(CudaContext::new(device.info().ordinal as usize)?)
}

fn adopted(device: &Cuda, stream: &CudaStream) -> Result<Stream, Failure> {
    // SAFETY: the callers hold the stream for as long as they use this.
    Ok(unsafe { device.adopt(stream.cu_stream().cast()) }?)
}

/// A pool's buffer goes wherever `cudarc` takes a device pointer, and is ordered between its streams.
pub(super) fn buffers<P: Engine>(device: &Arc<Cuda>, engine: fn() -> P) -> Result<(), Failure> {
    let context = context(device)?;
    let (main, side) = (context.new_stream()?, context.new_stream()?);
    require(adopted(device, &main)? == adopted(device, &main)?, || "a stream got two keys".into())?;
    let pool = Arc::new(VariablePool::on(device.clone(), CHUNKS, engine));
    let mut buf = CudaBuf::<f32, _>::new_in(device, pool.clone(), 1000, &main)?;
    let same = |found: Vec<f32>, expected: &[f32]| {
        require(found == expected, || format!("it starts {:?}, not {:?}", &found[..4], &expected[..4]))
    };
    let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    main.memcpy_htod(&values, &mut buf)?;
    same(main.clone_dtoh(&buf)?, &values)?;
    // On another stream: ordered behind the first, and the first behind it afterwards.
    let doubled: Vec<f32> = values.iter().map(|v| v * 2.0).collect();
    side.memcpy_htod(&doubled, &mut buf)?;
    same(main.clone_dtoh(&buf)?, &doubled)?;
    main.memset_zeros(&mut buf)?;
    same(side.clone_dtoh(&buf)?, &[0.0; 1000])?;
    let address = *buf.arg();
    require(buf.as_buf().address() == address && DeviceSlice::<f32>::len(&buf) == 1000, || {
        format!("{buf:?}")
    })?;
    require(buf.device_ptr(&main).0 == address, || "another address to read".into())?;
    require(buf.device_ptr_mut(&side).0 == address, || "another address to write".into())?;
    drop(buf);
    // Freed on `main`, and used on `side`: whoever comes next waits for both.
    let again = CudaBuf::<f32, _>::new_in(device, pool.clone(), 1000, &side)?;
    let stats = pool.stats();
    require(*again.arg() == address && stats.waits >= 1, || format!("{again:?}, {stats:?}"))?;
    drop(again);
    require(pool.stats().live_blocks == 0, || format!("{:?}", pool.stats()))?;
    context.check_err()?;
    [main, side].iter().try_for_each(|stream| {
        pool.retire_stream(adopted(device, stream)?);
        Ok(())
    })
}

/// Captured work keeps its memory for as long as the graph lives, and others go on while it is captured: they take memory from
/// the driver and give it back.
pub(super) fn graphs<P: Engine>(device: &Arc<Cuda>, engine: fn() -> P) -> Result<(), Failure> {
    const LEN: u64 = 4096;
    let context = context(device)?;
    let stream = context.new_stream()?;
    let pool = VariablePool::on(device.clone(), CHUNKS, engine);
    let (own, other, out) = (adopted(device, &stream)?, device.stream_create()?, device.alloc(LEN)?);

    let capture = pool.begin_capture(own)?;
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL)?;
    let inside = DeviceBuf::<u8, _>::new_in(&pool, LEN as usize, own)?;
    let address = inside.address();
    // SAFETY: both are held, the buffer by the graph's memory.
    unsafe {
        device.fill(address, 5, LEN, own)?;
        device.copy(out, address, LEN, own)?;
    }
    drop(inside);
    let blocks = (0..9).map(|_| pool.allocate(1 << 20, 256, other)).collect::<Result<Vec<_>, _>>()?;
    for block in blocks {
        // SAFETY: the block is held until the work is submitted.
        unsafe {
            device.fill(block.address(), 7, block.len(), other)?;
            pool.deallocate(block, other, &[]);
        }
    }
    pool.trim();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0))?.ok_or("the graph is empty")?;
    let memory = capture.end();

    let after = DeviceBuf::<u8, _>::new_in(&pool, LEN as usize, own)?;
    require(after.address() != address, || "the graph's memory was handed out".into())?;
    for launch in 0..3 {
        // SAFETY: both are held.
        unsafe {
            device.fill(after.address(), 6, LEN, own)?;
            device.fill(out, 0, LEN, own)?;
        }
        require(read(&**device, out, 1, own)? == [0], || format!("before launch {launch}"))?;
        graph.launch()?;
        let found = read(&**device, out + LEN - 1, 1, own)?;
        require(found == [5], || format!("launch {launch} left {found:?}"))?;
    }
    drop((graph, memory, after));
    // SAFETY: all work is done.
    unsafe { device.free(out)? };
    pool.retire_stream(own);
    super::retire(device, &pool, &[other])
}
