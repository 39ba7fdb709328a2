//! Every driver call of the longer operations may fail: copies, copies between devices, sleep and wake, captures, compaction.
//! Each run is made once for every call in it with that call failing; afterwards nothing is used early, nothing that was
//! promised is lost, and everything goes back.
#![cfg(not(loom))]

use parking_lot::Mutex;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use terrane_fit::FirstFit;
use terrane_gpu::manager::DeviceManager;
use terrane_gpu::movable::MovableSet;
use terrane_gpu::sim::{Call, Sim, SimConfig, SimDevice};
use terrane_gpu::transfer::Transfers;
use terrane_gpu::{
    Block, ChunkConfig, Device, DeviceBuf, DevicePool, DevicePoolOf, PinnedPool, Stream, VariablePool,
    VmmConfig,
};

const PIECE: u64 = 64 << 10;

fn lazy() -> SimConfig {
    SimConfig { seed: 3, eagerness: 0, granularity: PIECE, ..SimConfig::default() }
}

fn engine() -> FirstFit {
    FirstFit::with_granule(256)
}

fn pool(device: &Arc<SimDevice>) -> DevicePoolOf<FirstFit, SimDevice> {
    VariablePool::on(device.clone(), ChunkConfig { chunk_len: 1 << 20, ..ChunkConfig::default() }, engine)
}

fn fill(device: &SimDevice, address: u64, byte: u8, len: u64, stream: Stream) {
    // SAFETY: the callers hold the memory.
    unsafe { device.fill(address, byte, len, stream).unwrap() }
}

/// Runs `run` as it is, and then for every driver call that it makes between two calls of its second argument, once with
/// that call failing. `run` says whether something was refused. Returns how many runs met a refusal.
fn with_every_call_failing(config: &SimConfig, run: impl Fn(&Sim, &dyn Fn(&Sim)) -> bool) -> u64 {
    let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
    let sim = Sim::with(config.clone());
    let there = calls.clone();
    sim.watch_calls(move |call| there.lock().push(call));
    let marks = RefCell::new(Vec::new());
    assert!(!run(&sim, &|_| marks.borrow_mut().push(calls.lock().len())), "nothing fails by itself");
    let [before, after] = marks.borrow()[..] else { panic!("marked at the start and at the end") };
    let failing = calls.lock()[before..after].to_vec();
    assert!(failing.len() > 1);
    let mut refusals = 0;
    for (nth, call) in (1..).zip(failing) {
        let sim = Sim::with(config.clone());
        let marked = Cell::new(false);
        refusals += u64::from(run(&sim, &|sim| {
            if marked.replace(true) { sim.clear_faults() } else { sim.fail_nth_call(nth, 999) }
        }));
        sim.run_all();
        assert_eq!(sim.violations(), [], "{call:?}, call {nth}, failed");
        // What the driver will not take back is lost; nothing else is.
        if !matches!(call, Call::Free | Call::Release) {
            let used: u64 = (0..config.devices as usize).map(|device| sim.used_bytes(device)).sum();
            assert_eq!(used, 0, "{call:?}, call {nth}, failed");
        }
    }
    refusals
}

#[test]
fn a_copy_that_owns_its_ends_gives_them_back_or_frees_them_whatever_fails() {
    for kind in ["upload", "download", "copy"] {
        let refusals = with_every_call_failing(&lazy(), |sim, mark| {
            let device = sim.device(0);
            let (a, b) = (device.stream_create().unwrap(), device.stream_create().unwrap());
            let pool = Arc::new(pool(&device));
            let pinned = PinnedPool::new(device.clone(), ChunkConfig::default());
            let transfers = Transfers::new(device.clone(), pinned.clone());
            let one = DeviceBuf::<u8, _>::new_in(pool.clone(), 4096, a).unwrap();
            let two = DeviceBuf::<u8, _>::new_in(pool.clone(), 4096, b).unwrap();
            let host = pinned.zeroed::<u8>(4096).unwrap();
            fill(&device, one.address(), 7, 4096, a);
            fill(&device, two.address(), 9, 4096, b);
            mark(sim);
            let refused = match kind {
                "upload" => transfers.upload(host, one).map(|t| t.wait().is_err()).unwrap_or(true),
                "download" => match transfers.download(one, host).map(|t| t.wait()) {
                    Ok(Ok((host, _))) => {
                        assert!(host.iter().all(|&byte| byte == 7));
                        false
                    }
                    _ => true,
                },
                _ => {
                    drop(host);
                    transfers.copy(one, two).map(|t| t.wait().is_err()).unwrap_or(true)
                }
            };
            mark(sim);
            // What was given back is used again at once.
            for stream in [b, a] {
                let again = DeviceBuf::<u8, _>::new_in(pool.clone(), 4096, stream).unwrap();
                fill(&device, again.address(), 1, 4096, stream);
            }
            sim.run_all();
            transfers.sweep();
            assert_eq!((transfers.parked(), pinned.stats().live_blocks), (0, 0));
            refused
        });
        assert!(refusals >= 2, "{kind}: {refusals}");
    }
}

#[test]
fn memory_on_another_device_is_not_given_back_under_a_copy_to_it() {
    for links in [vec![(0, 1)], vec![]] {
        let refusals = with_every_call_failing(&SimConfig { devices: 2, links, ..lazy() }, |sim, mark| {
            let manager = DeviceManager::new(sim.devices().iter().cloned(), |d| Ok(pool(d))).unwrap();
            let (near, far) = (sim.device(0), sim.device(1));
            let (here, there) = (near.stream_create().unwrap(), far.stream_create().unwrap());
            let from = DeviceBuf::<u8, _>::new_in(manager.entries()[0].pool().clone(), 4096, here).unwrap();
            fill(&near, from.address(), 5, 4096, here);
            let target = manager.entries()[1].pool().clone();
            // So that the copy's memory has a past, and needs no chunk.
            drop(DeviceBuf::<u8, _>::new_in(target.clone(), 4096, there).unwrap());
            mark(sim);
            let copied = manager.copy_to(&from, far.info().uuid, there);
            mark(sim);
            let refused = copied.is_err();
            match copied {
                Ok(to) => {
                    far.synchronize().unwrap();
                    assert_eq!(sim.peek(to.address(), 4096).unwrap(), [5; 4096]);
                }
                Err(_) => {
                    let again = DeviceBuf::<u8, _>::new_in(target, 4096, there).unwrap();
                    fill(&far, again.address(), 6, 4096, there);
                }
            }
            sim.run_all();
            refused
        });
        assert!(refusals >= 4, "{refusals}");
    }
}

#[test]
fn sleep_and_wake_keep_every_byte_whatever_fails() {
    let refusals = with_every_call_failing(&lazy(), |sim, mark| {
        let device = sim.device(0);
        let config = VmmConfig { piece_len: PIECE, range_len: 64 << 20, ..VmmConfig::default() };
        let pool = VariablePool::mapped_on(device.clone(), config, engine).unwrap();
        let stream = device.stream_create().unwrap();
        let blocks: Vec<Block> =
            (0..4).map(|i| pool.allocate(PIECE + i * 512, 256, stream).unwrap()).collect();
        let check = |what: &str| {
            for (byte, block) in (1..).zip(&blocks) {
                let bytes = sim.peek(block.address(), block.len() as usize).unwrap();
                assert!(bytes.iter().all(|&b| b == byte), "{what}");
            }
        };
        (1..).zip(&blocks).for_each(|(byte, b)| fill(&device, b.address(), byte, b.len(), stream));
        device.synchronize().unwrap();
        mark(sim);
        // SAFETY: nothing is submitted until the pool is awake.
        let slept = unsafe { pool.sleep(true) }.is_ok();
        if !slept {
            check("awake, since the sleep was refused");
        }
        let woke = pool.wake().is_ok();
        mark(sim);
        if !woke {
            assert_eq!(sim.used_bytes(0), 0, "still asleep");
            pool.wake().unwrap();
        }
        check("after the wake");
        // SAFETY: no work uses the blocks.
        blocks.into_iter().for_each(|block| unsafe { pool.deallocate(block, stream, &[]) });
        !slept || !woke
    });
    assert!(refusals > 10, "{refusals}");
}

#[test]
fn a_capture_and_its_memory_end_well_whatever_fails() {
    let refusals = with_every_call_failing(&lazy(), |sim, mark| {
        let device = sim.device(0);
        let pool = pool(&device);
        let (a, b) = (device.stream_create().unwrap(), device.stream_create().unwrap());
        mark(sim);
        let Ok(capture) = pool.begin_capture(a) else {
            mark(sim);
            return true;
        };
        let block = capture.reserve(8192).and_then(|()| pool.allocate(4096, 256, a));
        let other = pool.allocate(4096, 256, b);
        let memory = capture.end();
        let refused = block.is_err() || other.is_err();
        // SAFETY: no work uses the blocks.
        unsafe {
            block.into_iter().for_each(|block| pool.deallocate(block, a, &[]));
            other.into_iter().for_each(|block| pool.deallocate(block, b, &[]));
        }
        drop(memory);
        mark(sim);
        assert_eq!(sim.violations(), []);
        assert_eq!(pool.stats().live_blocks, 0);
        let again = pool.allocate(4096, 256, a).unwrap();
        // SAFETY: no work uses the block.
        unsafe { pool.deallocate(again, a, &[]) };
        refused
    });
    assert!(refusals >= 2, "{refusals}");
}

#[test]
fn a_compaction_that_is_cut_short_has_moved_what_it_has_moved() {
    let refusals = with_every_call_failing(&lazy(), |sim, mark| {
        let device = sim.device(0);
        let pool = Arc::new(pool(&device));
        let set = MovableSet::new(device.clone(), pool.clone());
        let stream = device.stream_create().unwrap();
        // Three chunks, of which a third stays: less than one.
        let mut blocks: Vec<_> = (0..45u8).map(|i| (i, set.allocate(PIECE, 256, stream).unwrap())).collect();
        blocks.iter().for_each(|(i, block)| fill(&device, block.pin().address(), *i, PIECE, stream));
        blocks.retain(|(i, _)| i % 3 == 2);
        mark(sim);
        let refused = set.compact().is_err();
        mark(sim);
        device.synchronize().unwrap();
        for (i, block) in &blocks {
            let bytes = sim.peek(block.pin().address(), PIECE as usize).unwrap();
            assert!(bytes.iter().all(|b| b == i));
        }
        refused
    });
    assert!(refusals >= 3, "{refusals}");
}
