//! Closing holes by remapping, against closing them by copying what lies between.

use crate::{Bench, Failure, engine};
use std::time::Instant;
use terrane_gpu::{Block, DevicePool, VariablePool, VmmConfig};

/// Bytes of holes.
const HOLES: u64 = 8 << 30;

/// Makes holes, asks for one block as long as all of them together, and then does what a compaction by copying would.
pub fn run(bench: &Bench) -> Result<(), Failure> {
    if bench.device.virtual_memory().is_none() {
        println!("remapping: this device cannot map");
        return Ok(());
    }
    let free = bench.device.memory()?.free;
    let holes = HOLES.min(free / 3) >> 25 << 25;
    if holes == 0 {
        println!("remapping: too little memory is free");
        return Ok(());
    }
    for piece in [2 << 20, 32 << 20] {
        let config = VmmConfig { piece_len: piece, limit: 2 * holes, ..VmmConfig::default() };
        let pool = VariablePool::mapped_on(bench.device.clone(), config, engine)?;
        let stream = bench.device.stream_create()?;
        let blocks = (0..2 * holes / piece)
            .map(|_| pool.allocate(piece, 256, stream))
            .collect::<Result<Vec<_>, _>>()?;
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
        let remapping = start.elapsed();
        let moved = pool.stats().remaps;
        // A compaction by copying moves the live blocks, which are as many bytes.
        let start = Instant::now();
        for (i, block) in kept.iter().enumerate() {
            let to = long.address() + i as u64 * piece;
            // SAFETY: both ends are ours and do not overlap.
            unsafe { bench.device.copy(to, block.address(), piece, stream)? };
        }
        bench.device.stream_synchronize(stream)?;
        let copying = start.elapsed();
        print!(
            "remapping {} MiB of holes in pieces of {} MiB: {moved} pieces moved",
            holes >> 20,
            piece >> 20
        );
        if bench.real {
            let ratio = copying.as_secs_f64() / remapping.as_secs_f64();
            println!(", {remapping:.2?}; copying as much: {copying:.2?} ({ratio:.1}×)");
        } else {
            println!(", {remapping:.2?} with a simulated driver, which says nothing: this needs a device");
        }
        for block in kept.into_iter().chain([long]) {
            // SAFETY: the work is done.
            unsafe { pool.deallocate(block, stream, &[]) }
        }
    }
    Ok(())
}
