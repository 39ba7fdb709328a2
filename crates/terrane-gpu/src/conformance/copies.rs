//! Checks of memory, events, copies and transfers.

use super::{Failure, expect_at, read, require, retire};
use crate::buf::DeviceBuf;
use crate::chunks::ChunkConfig;
use crate::device::Device;
use crate::error::DriverError;
use crate::manager::DeviceManager;
use crate::pinned::PinnedPool;
use crate::pool::DevicePool;
use crate::transfer::Transfers;
use crate::variable::{Engine, VariablePool};
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Wake;
use std::thread::Thread;
use std::time::{Duration, Instant};

pub(super) fn keeps_contents<D: Device + ?Sized>(device: &Arc<D>) -> Result<(), Failure> {
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

pub(super) fn events_order_streams<D: Device + ?Sized>(device: &Arc<D>) -> Result<(), Failure> {
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

pub(super) fn pinned<D: Device + ?Sized>(device: &Arc<D>) -> Result<(), Failure> {
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

/// What is submitted before is done when the host is called, and it is called once.
pub(super) fn calls_back<D: Device + ?Sized>(device: &Arc<D>) -> Result<(), Failure> {
    let stream = device.stream_create()?;
    let called = Arc::new(AtomicU32::new(0));
    for _ in 0..3 {
        let there = called.clone();
        device.when_done(
            stream,
            Box::new(move || {
                there.fetch_add(1, Ordering::SeqCst);
            }),
        )?;
    }
    device.stream_synchronize(stream)?;
    // Some drivers let the host go on a moment before.
    let soon = Instant::now() + Duration::from_secs(10);
    while called.load(Ordering::SeqCst) < 3 && Instant::now() < soon {
        std::thread::yield_now();
    }
    device.stream_destroy(stream)?;
    let called = called.load(Ordering::SeqCst);
    require(called == 3, || format!("called {called} times for 3"))
}

/// Wakes a thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The result of `transfer`, polled whenever it wakes this thread, and now and then.
fn awaited<T>(mut transfer: impl Future<Output = Result<T, DriverError>> + Unpin) -> Result<T, Failure> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    for _ in 0..10_000 {
        if let Poll::Ready(result) = Pin::new(&mut transfer).poll(&mut context) {
            return Ok(result?);
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    Err("an awaited transfer is never ready".into())
}

/// Every kind of transfer, waited for, polled, awaited and dropped.
pub(super) fn transfers<D: Device + ?Sized + 'static, P: DevicePool + 'static>(
    device: &Arc<D>,
    pool: Arc<P>,
) -> Result<(), Failure> {
    let (a, b) = (device.stream_create()?, device.stream_create()?);
    let pinned = PinnedPool::new(device.clone(), ChunkConfig::default());
    let transfers = Transfers::new(device.clone(), pinned.clone());
    // In more pieces than are in flight at once.
    let values: Vec<u32> = (0..6_000_000).map(|i: u32| i.wrapping_mul(2_654_435_761)).collect();
    let there = DeviceBuf::new_in(pool.clone(), values.len(), a)?;
    let there = transfers.upload_slice(&values, there)?.wait()?;
    let other = DeviceBuf::new_in(pool.clone(), values.len(), b)?;
    let (there, other) = awaited(transfers.copy(there, other)?)?;
    let mut read = vec![0; values.len()];
    transfers.download_slice(&other, &mut read)?;
    require(read == values, || "a slice came back changed".into())?;
    drop((there, other));
    let (mut host, mut there) =
        (pinned.copied(&values[..1 << 20])?, DeviceBuf::new_in(pool.clone(), 1 << 20, a)?);
    for round in 0..8u32 {
        host[round as usize] = round;
        (host, there) = awaited(transfers.upload(host, there)?)?;
        let back = transfers.download(there, pinned.zeroed(1 << 20)?)?;
        let (back, same) = match back.poll_done()? {
            Ok(both) => both,
            Err(pending) => pending.wait()?,
        };
        require(back[..] == host[..], || format!("round {round} came back changed"))?;
        there = same;
    }
    drop(transfers.upload(host, there)?);
    drop(transfers);
    let out = (pool.stats().live_blocks, pinned.stats().live_blocks);
    require(out == (0, 0), || format!("{out:?} buffers are lost"))?;
    pinned.trim();
    require(pinned.stats().reserved == 0, || format!("{:?}", pinned.stats()))?;
    retire(device, &pool, &[a, b])
}

/// A buffer of the one device, copied to the other and used there at once.
pub(super) fn between<D: Device + ?Sized + 'static, P: Engine>(
    from: &Arc<D>,
    to: &Arc<D>,
    engine: fn() -> P,
) -> Result<(), Failure> {
    let chunks = ChunkConfig::default();
    let make = |device: &Arc<D>| Ok(VariablePool::on(device.clone(), chunks, engine));
    let manager = DeviceManager::new([from.clone(), to.clone()], make)?;
    let (source, target) = (from.info().uuid, to.info().uuid);
    require(manager.entries().len() == 2, || "the devices have one name".into())?;
    let (here, there) = (from.stream_create()?, to.stream_create()?);
    for round in 1..=3u8 {
        let pool = manager.get(source).ok_or("the manager does not know its device")?.pool().clone();
        let buf = DeviceBuf::<u8, _>::new_in(pool, 8 << 20, here)?;
        // SAFETY: the buffer is held.
        unsafe { from.fill(buf.address(), round, buf.bytes(), here)? };
        let copy = manager.copy_to(&buf, target, there)?;
        drop(buf);
        expect_at(&**to, copy.address(), copy.bytes(), round, there)?;
    }
    from.synchronize()?;
    to.synchronize()?;
    for (entry, stream) in manager.entries().iter().zip([here, there]) {
        require(entry.pool().stats().live_blocks == 0, || "a buffer is lost".into())?;
        retire(entry.device(), entry.pool(), &[stream])?;
    }
    Ok(())
}
