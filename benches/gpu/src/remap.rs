//! Closing holes by remapping, against closing them by copying what lies between.

use crate::goals::Goal;
use crate::{Bench, Failure, engine, median};
use std::time::Instant;
use terrane_gpu::{Block, DevicePool, VariablePool, VmmConfig};

/// Makes holes, asks for one block as long as all of them together, and then does what a compaction by copying would.
pub fn run(bench: &Bench) -> Result<(), Failure> {
    if bench.device.virtual_memory().is_none() {
        println!("remapping: this device cannot map");
        return Ok(());
    }
    let free = bench.device.memory()?.free;
    // A power of two: no pool rounds that up, and twice as much is all that this one may hold.
    let most = bench.amount(8 << 30, 256 << 20).min(free / 3);
    let holes = most.checked_ilog2().map_or(0, |log| 1 << log);
    if holes < 64 << 20 {
        println!("remapping: too little memory is free");
        return Ok(());
    }
    for (piece, goal) in [(2 << 20, Goal::Remap2), (32 << 20, Goal::Remap32)] {
        let (mut remapping, mut copying, mut moved) = (Vec::new(), Vec::new(), 0);
        for _ in 0..bench.rounds().min(3) {
            let (by_map, by_copy, pieces) = once(bench, holes, piece)?;
            remapping.push(by_map);
            copying.push(by_copy);
            moved = pieces;
        }
        let (remapping, copying) = (median(remapping), median(copying));
        print!("{} MiB of holes in pieces of {} MiB: {moved} pieces moved", holes >> 20, piece >> 20);
        if bench.driver {
            let ratio = copying / remapping;
            bench.found(goal, ratio);
            let each = remapping / moved.max(1) as f64;
            println!(
                ", by remapping {} ({} a piece), by copying as much {} ({})",
                bench.shown_nanos(remapping),
                bench.shown_nanos(each),
                bench.shown_nanos(copying),
                bench.shown(format!("{ratio:.1}×"))
            );
        } else {
            println!("; how fast, needs a device");
        }
    }
    Ok(())
}

/// Nanoseconds of remapping and of copying, and how many pieces were moved.
fn once(bench: &Bench, holes: u64, piece: u64) -> Result<(f64, f64, u64), Failure> {
    let config = VmmConfig { piece_len: piece, limit: 2 * holes, ..VmmConfig::default() };
    let pool = VariablePool::mapped_on(bench.device.clone(), config, engine)?;
    let stream = bench.device.stream_create()?;
    let blocks =
        (0..2 * holes / piece).map(|_| pool.allocate(piece, 256, stream)).collect::<Result<Vec<_>, _>>()?;
    let mut kept: Vec<Block> = Vec::new();
    for (i, block) in blocks.into_iter().enumerate() {
        if i % 2 == 0 {
            // SAFETY: no work uses the block.
            unsafe { pool.deallocate(block, stream, &[]) }
        } else {
            kept.push(block);
        }
    }
    pool.order().close(stream)?;
    bench.device.synchronize()?;
    let start = Instant::now();
    let long = pool.allocate(holes, 256, stream)?;
    let remapping = start.elapsed().as_nanos() as f64;
    let moved = pool.stats().remaps;
    // A compaction by copying moves the live blocks, which are as many bytes.
    let start = Instant::now();
    for (i, block) in kept.iter().enumerate() {
        let to = long.address() + i as u64 * piece;
        // SAFETY: both ends are ours and do not overlap.
        unsafe { bench.device.copy(to, block.address(), piece, stream)? };
    }
    bench.device.stream_synchronize(stream)?;
    let copying = start.elapsed().as_nanos() as f64;
    for block in kept.into_iter().chain([long]) {
        // SAFETY: the work is done.
        unsafe { pool.deallocate(block, stream, &[]) }
    }
    pool.retire_stream(stream);
    bench.device.stream_destroy(stream)?;
    Ok((remapping, copying, moved))
}
