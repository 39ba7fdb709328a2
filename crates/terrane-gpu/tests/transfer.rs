//! Copies that own their buffers, and several devices.
#![cfg(not(loom))]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use terrane_fit::Tlsf;
use terrane_gpu::manager::{DeviceManager, Policy};
use terrane_gpu::sim::{Call, Fault, Sim, SimConfig, SimDevice};
use terrane_gpu::transfer::{TransferError, Transfers};
use terrane_gpu::{
    ChunkConfig, Device, DeviceBuf, DevicePool, DevicePoolOf, DriverError, DriverPool, PinnedPool, Shortage,
    Stream, VariablePool,
};

type Pool = DevicePoolOf<Tlsf, SimDevice>;

fn lazy(seed: u64) -> SimConfig {
    SimConfig { seed, eagerness: 0, ..SimConfig::default() }
}

fn pool(device: &Arc<SimDevice>) -> Pool {
    let config = ChunkConfig { chunk_len: 1 << 20, ..ChunkConfig::default() };
    VariablePool::on(device.clone(), config, || Tlsf::with_granule(256))
}

fn set_up(seed: u64) -> (Sim, Stream, Arc<Pool>, PinnedPool<SimDevice>, Transfers<SimDevice>) {
    let sim = Sim::with(lazy(seed));
    let device = sim.device(0);
    let pinned =
        PinnedPool::new(device.clone(), ChunkConfig { chunk_len: 1 << 20, ..ChunkConfig::default() });
    let transfers = Transfers::new(device.clone(), pinned.clone());
    let stream = device.stream_create().unwrap();
    (sim, stream, Arc::new(pool(&device)), pinned, transfers)
}

#[test]
fn a_transfer_gives_both_ends_back_when_it_is_done_and_not_before() {
    let (sim, stream, pool, pinned, transfers) = set_up(1);
    let values: Vec<u32> = (0..10_000).collect();
    let host = pinned.copied(&values).unwrap();
    let there = DeviceBuf::new_in(pool, values.len(), stream).unwrap();
    let transfer = transfers.upload(host, there).unwrap();
    let Ok(Err(transfer)) = transfer.poll_done() else { panic!("nothing has run yet") };
    sim.run_all();
    let Ok(Ok((host, there))) = transfer.poll_done() else { panic!("everything has run") };
    assert_eq!(host[..], values[..]);
    let (back, _) = transfers.download(there, pinned.zeroed(values.len()).unwrap()).unwrap().wait().unwrap();
    assert_eq!(back[..], values[..]);
    assert_eq!(sim.violations(), []);
}

#[test]
fn a_transfer_that_is_dropped_parks_its_buffers_until_the_copy_is_done() {
    let (sim, stream, pool, pinned, transfers) = set_up(2);
    let host = pinned.zeroed::<u64>(1000).unwrap();
    let address = host.as_ptr();
    let there = DeviceBuf::new_in(pool.clone(), 1000, stream).unwrap();
    drop(transfers.upload(host, there).unwrap());
    assert_eq!((transfers.parked(), pinned.stats().live_blocks, pool.stats().live_blocks), (1, 1, 1));
    let other = pinned.zeroed::<u64>(1000).unwrap();
    assert_ne!(other.as_ptr(), address, "not while the copy reads it");
    transfers.sweep();
    assert_eq!(transfers.parked(), 1);
    sim.run_all();
    transfers.sweep();
    assert_eq!((transfers.parked(), pinned.stats().live_blocks, pool.stats().live_blocks), (0, 1, 0));
    drop(transfers.upload(other, DeviceBuf::new_in(pool.clone(), 1000, stream).unwrap()).unwrap());
    drop(transfers);
    assert_eq!((pinned.stats().live_blocks, pool.stats().live_blocks), (0, 0), "the last one waits");
    assert_eq!(sim.violations(), []);
}

#[test]
fn slices_are_copied_in_pieces_of_which_only_a_few_are_in_flight() {
    let (sim, stream, pool, pinned, transfers) = set_up(3);
    let values: Vec<u64> = (0..5_000_000).map(|i| i * 7).collect();
    let there = DeviceBuf::new_in(pool, values.len(), stream).unwrap();
    let transfer = transfers.upload_slice(&values, there).unwrap();
    let under_way = pinned.stats().live_blocks;
    assert!((1..=3).contains(&under_way), "{under_way} pieces are kept while they are copied");
    let there = transfer.wait().unwrap();
    let mut back = vec![0; values.len()];
    transfers.download_slice(&there, &mut back).unwrap();
    assert_eq!(back, values);
    assert!(pinned.stats().peak_reserved <= 24 << 20, "{:?}", pinned.stats());
    assert!(sim.calls(Call::Upload) == 10 && sim.calls(Call::Download) == 10);
    assert_eq!(sim.violations(), []);
    let short = transfers.download_slice(&there, &mut back[1..]).unwrap_err();
    assert_eq!(short, TransferError::Length { from: 5_000_000, to: 4_999_999 });
}

#[test]
fn a_copy_within_the_device_waits_for_the_other_stream() {
    for seed in 0..10 {
        let (sim, a, pool, pinned, transfers) = set_up(seed);
        let b = sim.device(0).stream_create().unwrap();
        let from = DeviceBuf::<u8, _>::new_in(pool.clone(), 4096, a).unwrap();
        // SAFETY: the buffer is held.
        unsafe { sim.device(0).fill(from.address(), 42, 4096, a).unwrap() };
        let to = DeviceBuf::new_in(pool.clone(), 4096, b).unwrap();
        let (from, to) = transfers.copy(from, to).unwrap().wait().unwrap();
        drop(from);
        let (host, _) = transfers.download(to, pinned.zeroed(4096).unwrap()).unwrap().wait().unwrap();
        assert!(host.iter().all(|&byte| byte == 42));
        assert_eq!(sim.violations(), []);
    }
}

#[test]
fn every_driver_call_of_a_transfer_may_fail() {
    let run = |nth: Option<u64>| {
        let (sim, stream, pool, pinned, transfers) = set_up(4);
        let values = vec![7u32; 100_000];
        let before = sim.total_calls();
        if let Some(nth) = nth {
            sim.fail_nth_call(nth, 999);
        }
        let up = DeviceBuf::new_in(pool.clone(), values.len(), stream)
            .map_err(TransferError::from)
            .and_then(|there| transfers.upload_slice(&values, there))
            .and_then(|transfer| Ok(transfer.wait()?));
        let failed = match up {
            Ok(there) => {
                let mut back = vec![0; values.len()];
                let result = transfers.download_slice(&there, &mut back);
                assert!(result.is_err() || back == values);
                result.is_err()
            }
            Err(_) => true,
        };
        let calls = sim.total_calls() - before;
        sim.clear_faults();
        sim.run_all();
        drop(transfers);
        assert_eq!((pinned.stats().live_blocks, pool.stats().live_blocks), (0, 0));
        assert_eq!(sim.violations(), []);
        (calls, failed)
    };
    let (calls, failed) = run(None);
    assert!(calls > 10 && !failed);
    let failures = (1..=calls).filter(|&nth| run(Some(nth)).1).count();
    assert!(failures > 5, "{failures}");
}

struct Count(AtomicU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_transfer_that_is_awaited_wakes_its_task_once_the_copy_is_done() {
    let (sim, stream, pool, pinned, transfers) = set_up(5);
    let there = DeviceBuf::new_in(pool, 100, stream).unwrap();
    let mut transfer = pin!(transfers.upload(pinned.zeroed::<u8>(100).unwrap(), there).unwrap());
    let count = Arc::new(Count(AtomicU32::new(0)));
    let waker = Waker::from(count.clone());
    let mut context = Context::from_waker(&waker);
    assert!(transfer.as_mut().poll(&mut context).is_pending());
    assert!(transfer.as_mut().poll(&mut context).is_pending());
    assert_eq!(count.0.load(SeqCst), 0);
    sim.run_all();
    assert_eq!(count.0.load(SeqCst), 1);
    let Poll::Ready(Ok((host, _))) = transfer.as_mut().poll(&mut context) else { panic!("not ready") };
    assert_eq!(host.len(), 100);
    assert_eq!(sim.calls(Call::HostFunction), 1);
}

#[test]
fn a_transfer_that_is_awaited_during_a_capture_asks_nothing_and_is_ready_all_the_same() {
    let (sim, stream, pool, pinned, transfers) = set_up(5);
    let device = sim.device(0);
    let captured = device.stream_create().unwrap();
    let there = DeviceBuf::new_in(pool.clone(), 100, stream).unwrap();
    let mut transfer = pin!(transfers.upload(pinned.zeroed::<u8>(100).unwrap(), there).unwrap());
    let count = Arc::new(Count(AtomicU32::new(0)));
    let waker = Waker::from(count.clone());
    let mut context = Context::from_waker(&waker);
    let capture = pool.begin_capture(captured).unwrap();
    device.capture_begin(captured).unwrap();
    let asked = sim.calls(Call::EventQuery);
    assert!(transfer.as_mut().poll(&mut context).is_pending());
    transfers.sweep();
    sim.run_all();
    assert_eq!(count.0.load(SeqCst), 1, "woken");
    assert!(transfer.as_mut().poll(&mut context).is_ready());
    assert_eq!(sim.calls(Call::EventQuery), asked);
    device.capture_end(captured).unwrap();
    drop(capture.end());
    assert_eq!(sim.violations(), []);
}

fn manager(sim: &Sim) -> DeviceManager<SimDevice, Pool> {
    DeviceManager::new(sim.devices().iter().cloned(), |device| Ok(pool(device))).unwrap()
}

#[test]
fn policies_pick_as_they_say() {
    let sim = Sim::with(SimConfig { devices: 3, capacity: 8 << 20, ..lazy(1) });
    let manager = manager(&sim);
    let ordinal = |policy: &Policy, len| manager.pick(policy, len).unwrap().device().info().ordinal;
    let turns: Vec<u32> = (0..6).map(|_| ordinal(&Policy::RoundRobin, 1)).collect();
    assert_eq!(turns, [0, 1, 2, 0, 1, 2]);

    let (first, second) = (sim.device(0), sim.device(1));
    let taken = DeviceBuf::<u8, _>::new_in(
        manager.get(first.info().uuid).unwrap().pool().clone(),
        5 << 20,
        first.default_stream(),
    )
    .unwrap();
    assert_eq!(ordinal(&Policy::MostFree, 1), 1, "the first of those with the most");
    let liking = Policy::Affinity(first.info().uuid);
    assert_eq!((ordinal(&liking, 1 << 20), ordinal(&liking, 6 << 20)), (0, 1));
    drop(taken);
    assert_eq!(ordinal(&liking, 6 << 20), 0, "free in the pool counts");

    let mut picked = [0; 3];
    (0..4000).for_each(|_| picked[ordinal(&Policy::Weighted(vec![1, 0, 3]), 1) as usize] += 1);
    assert!(picked[1] == 0 && (900..1100).contains(&picked[0]), "{picked:?}");
    assert!(manager.pick(&Policy::Weighted(vec![0]), 1).is_none());
    assert_eq!(manager.get(second.info().uuid).unwrap().device().info().ordinal, 1);
    let again = DeviceManager::new([first.clone(), first], |device| Ok(pool(device))).unwrap();
    assert_eq!(again.entries().len(), 1, "a device that is named twice is one device");
}

#[test]
fn buffers_are_copied_between_devices_directly_where_there_is_a_link_and_otherwise_through_the_host() {
    for seed in 0..10 {
        let sim = Sim::with(SimConfig { devices: 3, links: vec![(0, 1)], ..lazy(seed) });
        let manager = manager(&sim);
        let uuid = |i: usize| sim.device(i).info().uuid;
        let streams: Vec<Stream> = (0..3).map(|i| sim.device(i).stream_create().unwrap()).collect();
        let from = DeviceBuf::<u8, _>::new_in(manager.entries()[0].pool().clone(), 1000, streams[0]).unwrap();
        // SAFETY: the buffer is held.
        unsafe { sim.device(0).fill(from.address(), 9, 1000, streams[0]).unwrap() };
        let near = manager.copy_to(&from, uuid(1), streams[1]).unwrap();
        assert_eq!((sim.calls(Call::CopyPeer), sim.calls(Call::Download)), (1, 0));
        let far = manager.copy_to(&from, uuid(2), streams[2]).unwrap();
        drop(from);
        // SAFETY: the buffers are held, and these fills race with the copies unless the streams wait.
        unsafe {
            sim.device(1).fill(near.address() + 999, 1, 1, streams[1]).unwrap();
            sim.device(2).fill(far.address() + 999, 1, 1, streams[2]).unwrap();
        }
        for device in sim.devices() {
            device.synchronize().unwrap();
        }
        for buf in [&near, &far] {
            let bytes = sim.peek(buf.address(), 1000).unwrap();
            assert!(bytes[..999].iter().all(|&b| b == 9) && bytes[999] == 1);
        }
        assert_eq!(sim.violations(), []);
    }
}

#[test]
fn a_buffer_of_no_device_of_the_manager_is_not_copied() {
    let sim = Sim::with(SimConfig { devices: 2, links: vec![(0, 1)], ..lazy(1) });
    let manager = manager(&sim);
    let (here, there) = (sim.device(0).stream_create().unwrap(), sim.device(1).stream_create().unwrap());
    let from = DeviceBuf::<u8, _>::new_in(Arc::new(pool(&sim.device(0))), 1000, here).unwrap();
    let refused = manager.copy_to(&from, sim.device(1).info().uuid, there).unwrap_err();
    assert!(
        matches!(refused.shortage, Shortage::Driver(error) if error.code == DriverError::PEER_UNSUPPORTED)
    );
    assert_eq!(manager.stats().live_blocks, 0);
}

#[test]
fn devices_on_one_numa_node_share_page_locked_memory() {
    let sim = Sim::with(SimConfig { devices: 4, numa_nodes: vec![0, 1, 0], ..lazy(1) });
    let manager = manager(&sim);
    let _held = manager.entries()[0].pinned().zeroed::<u8>(10).unwrap();
    let live: Vec<u64> = manager.entries().iter().map(|e| e.pinned().stats().live_blocks).collect();
    assert_eq!(live, [1, 0, 1, 0]);
}

#[test]
fn the_driver_s_own_pool_is_a_pool_like_the_others() {
    let (sim, a, ..) = set_up(6);
    let device = sim.device(0);
    let b = device.stream_create().unwrap();
    let pool = DriverPool::new(device.clone(), 1 << 20).unwrap();
    let buf = DeviceBuf::<f32, _>::new_in(&pool, 1000, a).unwrap();
    let event = terrane_gpu::Streams::event_create(&*device).unwrap();
    terrane_gpu::Streams::event_record(&*device, event, a).unwrap();
    terrane_gpu::Streams::stream_wait(&*device, b, event).unwrap();
    // SAFETY: the buffer is held.
    unsafe { device.fill(buf.address(), 0, 4000, b).unwrap() };
    buf.used_on(b);
    assert_eq!((pool.stats().live, pool.stats().live_blocks), (4000, 1));
    drop(buf);
    assert_eq!(sim.violations(), [], "the free waits for the other stream");
    drop(DeviceBuf::<f32, _>::new_in(&pool, 10, a).unwrap());
    let stats = pool.stats();
    assert_eq!((stats.live_blocks, stats.live, stats.peak_live), (0, 0, 4000));
    assert!(stats.peak_reserved >= 4000, "{stats:?}");
    sim.inject(Fault { call: Some(Call::AllocOrdered), after: 0, times: 1, code: 2 });
    assert!(DeviceBuf::<f32, _>::new_in(&pool, 1000, a).is_err());
}
