//! The same work on a real device, with `cudarc`, or without one on the simulated device: allocate from the pool, copy there
//! and back, free.
//!
//! `cargo run -p terrane-gpu --example cudarc_pool` (it says which device it found)

use std::error::Error;
use std::sync::Arc;
use terrane_fit::Tlsf;
use terrane_gpu::transfer::Transfers;
use terrane_gpu::{ChunkConfig, Cuda, CudaBuf, Device, DeviceBuf, DevicePool, PinnedPool, Sim, VariablePool};

fn engine() -> Tlsf {
    Tlsf::with_granule(256)
}

/// With `cudarc`: its streams, its copies, our memory.
fn with_cudarc(device: &Arc<Cuda>) -> Result<(), Box<dyn Error>> {
    let context = cudarc::driver::CudaContext::new(device.info().ordinal as usize)?;
    let stream = context.new_stream()?;
    let pool = Arc::new(VariablePool::on(device.clone(), ChunkConfig::default(), engine));
    let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    for _ in 0..3 {
        let mut buf = CudaBuf::<f32, _>::new_in(device, pool.clone(), values.len(), &stream)?;
        stream.memcpy_htod(&values, &mut buf)?;
        // A kernel would take `buf.arg()` as its pointer parameter.
        assert_eq!(stream.clone_dtoh(&buf)?, values);
    }
    println!("three rounds through cudarc, {} chunk(s) taken from the driver", pool.stats().grows);
    Ok(())
}

/// On any device: our own copies, which own their buffers.
fn with_transfers<D: Device + ?Sized + 'static>(device: &Arc<D>) -> Result<(), Box<dyn Error>> {
    let stream = device.stream_create()?;
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

fn main() -> Result<(), Box<dyn Error>> {
    match Cuda::open(0) {
        Ok(device) => {
            with_cudarc(&device)?;
            with_transfers(&device)
        }
        Err(why) => {
            println!("{why}: on the simulated device instead");
            with_transfers(&Sim::new().device(0))
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_runs() {
        super::main().unwrap();
    }
}
