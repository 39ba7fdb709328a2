//! The same work on a real device, with `cudarc`, or without one on the simulated device: allocate from the pool, copy there
//! and back, free.
//!
//! `cargo run -p terrane-gpu --example cudarc_pool` (it says which device it found)

mod rounds;

use std::error::Error;
use std::sync::Arc;
use terrane_fit::Tlsf;
use terrane_gpu::{ChunkConfig, Cuda, CudaBuf, Device, DevicePool, Sim, VariablePool};

/// With `cudarc`: its streams, its copies, our memory.
fn with_cudarc(device: &Arc<Cuda>) -> Result<(), Box<dyn Error>> {
    let context = cudarc::driver::CudaContext::new(device.info().ordinal as usize)?;
    let stream = context.new_stream()?;
    let pool = Arc::new(VariablePool::on(device.clone(), ChunkConfig::default(), || Tlsf::with_granule(256)));
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

fn main() -> Result<(), Box<dyn Error>> {
    match Cuda::open(0) {
        Ok(device) => {
            with_cudarc(&device)?;
            rounds::run(&device)
        }
        Err(why) => {
            println!("{why}: on the simulated device instead");
            rounds::run(&Sim::new().device(0))
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
