//! No driver call is made under a lock: while one is in progress, others can look at the pool and use it.
#![cfg(not(loom))]

#[path = "common/dice.rs"]
mod dice;

use dice::Dice;
use parking_lot::Mutex;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use terrane_fit::Tlsf;
use terrane_gpu::sim::{Call, Sim, SimConfig};
use terrane_gpu::{
    Block, ChunkConfig, Device, DevicePool, FixedConfig, FixedPool, Locked, SizeClassConfig, SizeClassPool,
    Stream, VariablePool, VmmConfig,
};

thread_local! {
    /// Set on threads whose own driver calls are not looked at.
    static LOOKING: Cell<bool> = const { Cell::new(false) };
}

fn sim() -> Sim {
    Sim::with(SimConfig { seed: 9, capacity: 4 << 20, granularity: 64 << 10, ..SimConfig::default() })
}

/// Has `look` run on another thread at every driver call from now on. Returns the calls that were seen, and those during
/// which `look` did not get through.
fn look_during_calls(
    sim: &Sim,
    look: impl Fn() + Send + Sync + 'static,
) -> Arc<Mutex<(BTreeSet<String>, BTreeSet<String>)>> {
    let seen: Arc<Mutex<(BTreeSet<String>, BTreeSet<String>)>> = Arc::default();
    let (look, notes) = (Arc::new(look), seen.clone());
    sim.watch_calls(move |call: Call| {
        // One call that others wait for is enough.
        if LOOKING.get() || !notes.lock().1.is_empty() {
            return;
        }
        notes.lock().0.insert(format!("{call:?}"));
        let (look, (done, is_done)) = (look.clone(), mpsc::channel());
        std::thread::spawn(move || {
            LOOKING.set(true);
            look();
            let _ = done.send(());
        });
        if is_done.recv_timeout(Duration::from_secs(10)).is_err() {
            notes.lock().1.insert(format!("{call:?}"));
        }
    });
    seen
}

/// Requests of chance on three streams, some blocks shared between two of them, with trims.
fn wander(sim: &Sim, pool: &impl DevicePool, longest: u64) {
    let device = sim.device(0);
    let streams: [Stream; 3] = core::array::from_fn(|_| device.stream_create().unwrap());
    let mut dice = Dice(3);
    let mut held: Vec<(Block, Stream)> = Vec::new();
    for round in 0..160u64 {
        let stream = streams[dice.below(3) as usize];
        if dice.below(100) < 60 {
            if let Ok(block) = pool.allocate(1 + dice.below(longest), 256, stream) {
                held.push((block, stream));
            }
        } else if !held.is_empty() {
            let (block, stream) = held.swap_remove(dice.below(held.len() as u64) as usize);
            let also = [streams[dice.below(3) as usize]];
            let also = if dice.below(4) == 0 { &also[..] } else { &[] };
            // SAFETY: no work uses the block.
            unsafe { pool.deallocate(block, stream, also) };
        }
        if round % 40 == 39 {
            pool.trim();
            sim.step(40);
        }
    }
    for (block, stream) in held {
        // SAFETY: no work uses the block.
        unsafe { pool.deallocate(block, stream, &[]) };
    }
    pool.trim();
    streams.into_iter().for_each(|stream| pool.retire_stream(stream));
}

macro_rules! check {
    ($pool:expr, $sim:expr, $longest:expr, $($call:ident),*) => {{
        let pool = Arc::new($pool);
        let looker = Arc::downgrade(&pool);
        let seen = look_during_calls(&$sim, move || {
            let Some(pool) = looker.upgrade() else { return };
            // Between them these take every lock that there is.
            pool.stats();
            pool.order().poll(u32::MAX);
        });
        wander(&$sim, &*pool, $longest);
        let (seen, stuck) = seen.lock().clone();
        assert_eq!(stuck, BTreeSet::new(), "under a lock");
        $(assert!(seen.contains(stringify!($call)), "{} was never made: {seen:?}", stringify!($call));)*
    }};
}

fn engine() -> Tlsf {
    Tlsf::with_granule(256)
}

#[test]
fn fixed_pools_call_the_driver_without_a_lock() {
    let config = FixedConfig { block_len: 4096, align: 256, blocks_per_chunk: 4, max_blocks: 64 };
    let a = sim();
    check!(FixedPool::new(a.device(0), config).unwrap(), a, 4096, Alloc, EventRecord, StreamWait);
    let b = sim();
    check!(
        FixedPool::<_, Locked>::with_lists(b.device(0), config).unwrap(),
        b,
        4096,
        Alloc,
        EventRecord,
        StreamWait
    );
}

#[test]
fn variable_pools_call_the_driver_without_a_lock() {
    let a = sim();
    let chunks = ChunkConfig { chunk_len: 256 << 10, whole_from: 128 << 10, ..ChunkConfig::default() };
    check!(VariablePool::on(a.device(0), chunks, engine), a, 200 << 10, Alloc, Free, EventRecord);
    let b = sim();
    let pieces = VmmConfig { piece_len: 64 << 10, range_len: 64 << 20, ..VmmConfig::default() };
    let pool = VariablePool::mapped_on(b.device(0), pieces, engine).unwrap();
    check!(pool, b, 200 << 10, Create, Map, Unmap, EventRecord);
}

#[test]
fn size_classes_call_the_driver_without_a_lock() {
    let a = sim();
    let chunks = ChunkConfig { chunk_len: 128 << 10, ..ChunkConfig::default() };
    let behind = VariablePool::on(a.device(0), chunks, engine);
    let config = SizeClassConfig { largest: 8192, slab_len: 32 << 10 };
    check!(SizeClassPool::new(behind, a.device(0), config), a, 8192, Alloc, EventRecord, StreamWait);
}
