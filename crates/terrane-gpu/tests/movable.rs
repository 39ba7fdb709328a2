//! Compaction by copying.
#![cfg(not(loom))]

use std::sync::Arc;
use terrane_fit::FirstFit;
use terrane_gpu::movable::MovableSet;
use terrane_gpu::sim::{Call, Fault, Sim, SimConfig};
use terrane_gpu::{ChunkConfig, Device, DevicePool, VariablePool};

const LEN: u64 = 64 << 10;

#[test]
fn live_blocks_move_down_with_their_contents_and_whole_chunks_become_free() {
    for seed in 0..10 {
        let sim = Sim::with(SimConfig { seed, ..SimConfig::default() });
        let device = sim.device(0);
        let chunks = ChunkConfig { chunk_len: 8 * LEN, ..ChunkConfig::default() };
        let pool = Arc::new(VariablePool::on(device.clone(), chunks, || FirstFit::with_granule(256)));
        let set = MovableSet::new(device.clone(), pool.clone());
        let stream = device.stream_create().unwrap();
        // Half of them are taken from the pool first, and may be moved only later.
        let one = |i: u8| match i % 2 {
            0 => set.allocate(LEN, 256, stream).unwrap(),
            // SAFETY: just taken, and nobody knows its address.
            _ => unsafe { set.adopt(pool.allocate(LEN, 256, stream).unwrap(), 256, stream) },
        };
        let mut blocks: Vec<_> = (0..64u8).map(|i| (i, one(i))).collect();
        for (i, block) in &blocks {
            let place = block.pin();
            // SAFETY: pinned, and submitted to the block's stream.
            unsafe { device.fill(place.address(), *i, place.len(), stream).unwrap() };
        }
        blocks.retain(|(i, _)| i % 4 == 3);
        pool.trim();
        device.synchronize().unwrap();
        pool.trim();
        assert_eq!(pool.stats().reserved, 64 * LEN, "every chunk has a live block");

        let highest = blocks.last().unwrap().1.pin();
        let before = highest.address();
        let first = set.compact().unwrap();
        assert_eq!(first.pinned, 1);
        assert!(first.moved >= 10 && first.bytes == first.moved * LEN, "{first:?}");
        assert_eq!(highest.address(), before);
        drop(highest);
        set.compact().unwrap();
        pool.trim();
        device.synchronize().unwrap();
        pool.trim();
        assert!(pool.stats().reserved <= 24 * LEN, "{:?}", pool.stats());
        for (i, block) in &blocks {
            let place = block.pin();
            assert_eq!(sim.peek(place.address(), LEN as usize).unwrap(), vec![*i; LEN as usize]);
        }
        assert_eq!(sim.violations(), []);
        drop(blocks);
        assert_eq!(pool.stats().live, 0);
    }
}

#[test]
fn a_copy_that_is_refused_leaves_the_block_where_it_was() {
    let sim = Sim::new();
    let device = sim.device(0);
    let chunks = ChunkConfig { chunk_len: 8 * LEN, ..ChunkConfig::default() };
    let pool = Arc::new(VariablePool::on(device.clone(), chunks, || FirstFit::with_granule(256)));
    let set = MovableSet::new(device.clone(), pool.clone());
    let stream = device.default_stream();
    let low = set.allocate(LEN, 256, stream).unwrap();
    let high = set.allocate(LEN, 256, stream).unwrap();
    drop(low);
    let before = high.pin().address();
    sim.inject(Fault { call: Some(Call::Copy), after: 0, times: 1, code: 999 });
    assert_eq!(set.compact().unwrap_err().code, 999);
    assert_eq!(high.pin().address(), before);
    assert_eq!(set.compact().unwrap().moved, 1);
    assert_ne!(high.pin().address(), before);
    drop(high);
    assert_eq!((pool.stats().live_blocks, sim.violations()), (0, vec![]));
}
