//! A pool on a device under OpenCL: allocate, copy there and back, free.
//!
//! `cargo run -p terrane-gpu --features opencl --example opencl_pool` (it says which device it found)

use std::error::Error;
use std::sync::Arc;
use terrane_fit::Tlsf;
use terrane_gpu::transfer::Transfers;
use terrane_gpu::{ChunkConfig, Device, DeviceBuf, DevicePool, OpenCl, PinnedPool, VariablePool};

fn main() -> Result<(), Box<dyn Error>> {
    let device = match OpenCl::open(0) {
        Ok(device) => device,
        Err(why) => {
            println!("no device: {why}");
            return Ok(());
        }
    };
    let stream = device.stream_create()?;
    let engine = || Tlsf::with_granule(256);
    let pool = Arc::new(VariablePool::on(device.clone(), ChunkConfig::default(), engine));
    let pinned = PinnedPool::new(device.clone(), ChunkConfig::default());
    let transfers = Transfers::new(device.clone(), pinned.clone());
    let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    for _ in 0..3 {
        let there = DeviceBuf::new_in(pool.clone(), values.len(), stream)?;
        let (_, there) = transfers.upload(pinned.copied(&values)?, there)?.wait()?;
        let (back, _) = transfers.download(there, pinned.zeroed(values.len())?)?.wait()?;
        assert_eq!(back[..], values[..]);
    }
    println!("three rounds on {}, {} chunk(s) taken from it", device.info().name, pool.stats().grows);
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_runs() {
        super::main().unwrap();
    }
}
