//! Pools around pools, and what can be seen of them.
#![cfg(not(loom))]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use terrane_gpu::adaptors::{Limit, OnOutOfMemory, Statistics, Trace, Track};
use terrane_gpu::{
    Block, Device, DeviceBuf, DevicePool, FixedConfig, FixedPool, Shortage, Sim, SimConfig, SimDevice, Stream,
};

fn pool(sim: &Sim, max_blocks: u32) -> FixedPool<SimDevice> {
    let config = FixedConfig { block_len: 4096, align: 256, blocks_per_chunk: 4, max_blocks };
    FixedPool::new(sim.device(0), config).unwrap()
}

fn give(pool: &impl DevicePool, block: Block, stream: Stream) {
    // SAFETY: no work uses the block.
    unsafe { pool.deallocate(block, stream, &[]) }
}

#[test]
fn a_limit_counts_whole_blocks_and_says_what_is_left() {
    let sim = Sim::new();
    let stream = sim.device(0).default_stream();
    let limited = Limit::new(pool(&sim, 64), 10_000);
    let a = limited.allocate(100, 16, stream).unwrap();
    let b = limited.allocate(100, 16, stream).unwrap();
    let error = limited.allocate(2000, 16, stream).unwrap_err();
    assert_eq!((error.shortage, error.limit, error.free), (Shortage::Limit, Some(10_000), 10_000 - 8192));
    give(&limited, a, stream);
    let c = limited.allocate(2000, 16, stream).unwrap();
    give(&limited, b, stream);
    give(&limited, c, stream);
    assert_eq!(limited.allocate(u64::MAX, 16, stream).unwrap_err().shortage, Shortage::Limit);
    assert_eq!(limited.allocate(5000, 16, stream).unwrap_err().shortage, Shortage::BadRequest);
    let all: Vec<Block> = (0..2).map(|_| limited.allocate(4096, 16, stream).unwrap()).collect();
    all.into_iter().for_each(|block| give(&limited, block, stream));
}

#[test]
fn the_callback_may_free_something_and_ask_for_another_attempt() {
    let sim = Sim::new();
    let stream = sim.device(0).default_stream();
    let inner = Arc::new(pool(&sim, 4));
    let hoard: Arc<parking_lot::Mutex<Vec<Block>>> = Arc::default();
    let calls = Arc::new(AtomicU32::new(0));
    let pool = {
        let (inner, hoard, calls) = (inner.clone(), hoard.clone(), calls.clone());
        OnOutOfMemory::new(inner.clone(), move |error, attempt| {
            calls.fetch_add(1, SeqCst);
            assert_eq!((error.shortage, attempt), (Shortage::Limit, 1));
            let freed = hoard.lock().pop();
            freed.map(|block| give(&inner, block, stream)).is_some()
        })
    };
    hoard.lock().extend((0..4).map(|_| inner.take(stream).unwrap()));
    let block = pool.allocate(1, 16, stream).unwrap();
    assert_eq!((calls.load(SeqCst), hoard.lock().len()), (1, 3));
    hoard.lock().clear();
    assert!(pool.allocate(1, 16, stream).is_err(), "nothing left to free");
    assert_eq!(calls.load(SeqCst), 2);
    assert_eq!(pool.allocate(0, 16, stream).unwrap_err().shortage, Shortage::BadRequest);
    assert_eq!(calls.load(SeqCst), 2, "a malformed request is no shortage");
    give(&pool, block, stream);
}

#[test]
fn leaks_are_reported_with_the_line_that_asked_for_them() {
    let sim = Sim::new();
    let stream = sim.device(0).default_stream();
    let reported: Arc<parking_lot::Mutex<Vec<(u64, u32)>>> = Arc::default();
    let there = reported.clone();
    let tracked = Arc::new(Track::reporting(pool(&sim, 64), move |leaks| {
        there.lock().extend(leaks.iter().map(|leak| (leak.asked, leak.site.line())));
        assert!(leaks.iter().all(|leak| leak.site.file().ends_with("adaptors.rs")), "{leaks:?}");
    }));
    drop(DeviceBuf::<u32, _>::new_in(tracked.clone(), 10, stream).unwrap());
    let line = line!() + 1;
    let leaked = DeviceBuf::<u32, _>::new_in(&*tracked, 25, stream).unwrap();
    std::mem::forget(leaked);
    assert_eq!(tracked.live().len(), 1);
    assert!(tracked.live()[0].to_string().contains("100 bytes"));
    drop(tracked);
    assert_eq!(*reported.lock(), [(100, line)]);
}

#[test]
fn statistics_of_one_thread_are_exact() {
    let sim = Sim::new();
    let stream = sim.device(0).default_stream();
    for counted in [Statistics::new(pool(&sim, 8)), Statistics::exact(pool(&sim, 8))] {
        let mut blocks: Vec<Block> = (0..5).map(|_| counted.allocate(100, 16, stream).unwrap()).collect();
        blocks.drain(1..).for_each(|block| give(&counted, block, stream));
        let stats = counted.stats();
        assert_eq!((stats.live, stats.peak_live, stats.requested), (4096, 5 * 4096, 100));
        assert_eq!((stats.live_blocks, stats.reserved), (1, 8 * 4096));
        assert!((stats.internal_fragmentation() - (1.0 - 100.0 / 4096.0)).abs() < 1e-9);
        assert!(counted.allocate(5000, 16, stream).is_err());
        assert_eq!(counted.failures(), 1);
        counted.reset_peak();
        let peak = counted.stats().peak_live;
        assert!((4096..=4096 + counted.peak_error()).contains(&peak), "{peak}");
        blocks.into_iter().for_each(|block| give(&counted, block, stream));
    }
}

#[test]
fn the_peak_over_threads_is_never_too_low_and_no_more_than_the_slack_too_high() {
    const THREADS: u64 = 4;
    let sim = Sim::with(SimConfig { watch_blocks: false, ..SimConfig::default() });
    let stream = sim.device(0).default_stream();
    for slack in [0, 3 * 4096, 1 << 20] {
        let counted = Statistics::with_slack(pool(&sim, 4096), slack);
        let barrier = std::sync::Barrier::new(THREADS as usize);
        // In steps, so that what is out at each of them is known: all threads take, all but one give back, and so on.
        let highest: u64 = 4096 * (THREADS * 30 + 10);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (counted, barrier) = (&counted, &barrier);
                scope.spawn(move || {
                    let take = |count: u64| -> Vec<Block> {
                        (0..count).map(|_| counted.allocate(4096, 16, stream).unwrap()).collect()
                    };
                    for round in 0..THREADS {
                        let first = take(20);
                        barrier.wait();
                        if thread != round {
                            first.into_iter().for_each(|block| give(counted, block, stream));
                        } else {
                            // Given back by a thread that did not take them.
                            let give_all = move || first.into_iter().for_each(|b| give(counted, b, stream));
                            scope.spawn(give_all).join().unwrap();
                        }
                        barrier.wait();
                    }
                    let last = take(if thread == 0 { 40 } else { 30 });
                    barrier.wait();
                    assert_eq!(counted.stats().live, highest);
                    barrier.wait();
                    last.into_iter().for_each(|block| give(counted, block, stream));
                });
            }
        });
        let stats = counted.stats();
        assert_eq!((stats.live, stats.live_blocks, stats.requested), (0, 0, 0), "slack {slack}");
        assert!(
            (highest..=highest + counted.peak_error()).contains(&stats.peak_live),
            "slack {slack}: {stats:?}"
        );
        assert!(slack > 0 || counted.peak_error() == 0);
        assert!(
            counted.peak_error() <= slack * 2 * THREADS,
            "threads that ended leave their shards to others"
        );
    }
}

#[test]
fn a_thread_that_uses_many_counted_pools_counts_each_of_them_right() {
    let sim = Sim::new();
    let stream = sim.device(0).default_stream();
    for round in 1..=2u64 {
        let pools: Vec<_> = (0..9).map(|_| Statistics::new(pool(&sim, 64))).collect();
        let blocks: Vec<Vec<Block>> = (0..round * 3)
            .map(|_| pools.iter().map(|pool| pool.allocate(1, 16, stream).unwrap()).collect())
            .collect();
        for pool in &pools {
            assert_eq!((pool.stats().live_blocks, pool.stats().requested), (round * 3, round * 3));
        }
        for row in blocks {
            pools.iter().zip(row).for_each(|(pool, block)| give(pool, block, stream));
        }
        assert!(
            pools.iter().all(|pool| pool.stats().live == 0 && pool.stats().peak_live == round * 3 * 4096)
        );
    }
}

#[test]
fn a_thread_that_is_ending_still_counts() {
    use std::cell::RefCell;
    type Counted = Arc<Statistics<FixedPool<SimDevice>>>;
    struct Late(Counted, Option<Block>, Stream);
    impl Drop for Late {
        fn drop(&mut self) {
            give(&self.0, self.1.take().unwrap(), self.2);
        }
    }
    thread_local!(static LATE: RefCell<Option<Late>> = const { RefCell::new(None) });
    let sim = Sim::new();
    let stream = sim.device(0).default_stream();
    let counted: Counted = Arc::new(Statistics::new(pool(&sim, 8)));
    for _ in 0..3 {
        let there = counted.clone();
        std::thread::spawn(move || {
            // Made before the thread's shard, so that it is dropped after that is let go, or the other way round.
            LATE.with(|late| late.borrow_mut().take().is_none());
            let block = there.allocate(1, 16, stream).unwrap();
            LATE.with(|late| *late.borrow_mut() = Some(Late(there, Some(block), stream)));
        })
        .join()
        .unwrap();
    }
    let stats = counted.stats();
    assert_eq!((stats.live, stats.live_blocks, stats.requested), (0, 0, 0));
    assert_eq!(stats.peak_live, 4096, "one after the other");
}

#[test]
fn a_trace_is_bounded_in_its_past_and_complete_in_its_present() {
    let sim = Sim::new();
    let stream = sim.device(0).default_stream();
    let traced = Trace::new(pool(&sim, 64), 10);
    let kept: Vec<Block> = (0..20).map(|_| traced.allocate(1, 16, stream).unwrap()).collect();
    for _ in 0..30 {
        give(&traced, traced.allocate(2, 16, stream).unwrap(), stream);
    }
    let lifetimes = traced.lifetimes();
    assert_eq!(lifetimes.iter().filter(|life| life.died_nanos.is_none()).count(), 20);
    assert_eq!((lifetimes.len(), traced.dropped()), (30, 20));
    assert!(traced.allocate(1 << 40, 16, stream).is_err());
    assert_eq!(traced.failures().len(), 1);
    kept.into_iter().for_each(|block| give(&traced, block, stream));
}

#[cfg(feature = "snapshot")]
#[test]
fn a_snapshot_is_readable_by_programs_and_by_people() {
    use terrane_gpu::snapshot::Snapshot;
    let sim = Sim::new();
    let device = sim.device(0);
    let (a, b) = (device.default_stream(), device.stream_create().unwrap());
    let traced = Trace::new(pool(&sim, 64), 1000);
    let kept = traced.allocate(100, 16, a).unwrap();
    for i in 0..50 {
        let stream = if i % 2 == 0 { a } else { b };
        give(&traced, traced.allocate(200, 16, stream).unwrap(), stream);
    }
    assert!(traced.allocate(1 << 40, 16, a).is_err());
    let snapshot = Snapshot::of(&traced, device.info());
    let json: serde_json::Value = serde_json::from_str(&snapshot.to_json().unwrap()).unwrap();
    assert_eq!(json["blocks"].as_array().unwrap().len(), 51);
    assert_eq!(json["stats"]["live_blocks"], 1);
    assert_eq!(json["simulated"], true);
    let html = snapshot.to_html();
    assert_eq!(html.matches("<rect").count(), 51);
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    assert!(html.contains("simulated device") && html.contains("malformed request"));
    assert!(!html.contains("http"), "nothing from elsewhere");
    give(&traced, kept, a);
    let empty = Snapshot::of(&Trace::new(pool(&sim, 4), 1), device.info()).to_html();
    assert!(empty.contains("<svg") && !empty.contains("NaN"));
}
