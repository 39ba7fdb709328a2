//! Writes the map of a pool's memory over time, as one HTML page, to the file that is named, or to standard output:
//! `cargo run --example memory_map -- map.html`.
//!
//! The program is a few steps of something like training, on a simulated device: what is kept, what comes and goes with
//! each step, on two streams.

use std::error::Error;
use std::io::Write;
use terrane_fit::Tlsf;
use terrane_gpu::adaptors::Trace;
use terrane_gpu::snapshot::Snapshot;
use terrane_gpu::{ChunkConfig, Device, DeviceBuf, Sim, VariablePool};

fn page() -> Result<String, Box<dyn Error>> {
    let sim = Sim::new();
    let device = sim.device(0);
    let (compute, copy) = (device.stream_create()?, device.stream_create()?);
    let pool = VariablePool::on(device.clone(), ChunkConfig::default(), || Tlsf::with_granule(256));
    let pool = Trace::new(pool, 10_000);
    let mut kept = Vec::new();
    for _ in 0..6 {
        kept.push(DeviceBuf::<u8, _>::new_in(&pool, 3 << 20, compute)?);
    }
    for step in 0..8 {
        let mut activations = Vec::new();
        for layer in 0..12 {
            activations.push(DeviceBuf::<u8, _>::new_in(&pool, (1 + (layer + step) % 4) << 19, compute)?);
            let _batch = DeviceBuf::<u8, _>::new_in(&pool, 600 << 10, copy)?;
        }
        kept.push(DeviceBuf::new_in(&pool, 20 << 10, copy)?);
        while let Some(activation) = activations.pop() {
            let _gradient = DeviceBuf::<u8, _>::new_in(&pool, activation.len() / 2, compute)?;
        }
        sim.run_all();
    }
    let refused = DeviceBuf::<u8, _>::new_in(&pool, 1 << 50, compute);
    debug_assert!(refused.is_err());
    let snapshot = Snapshot::of(&pool, device.info());
    Ok(snapshot.to_html())
}

fn main() -> Result<(), Box<dyn Error>> {
    let page = page()?;
    match std::env::args().nth(1) {
        Some(path) => std::fs::write(path, page)?,
        None => std::io::stdout().write_all(page.as_bytes())?,
    }
    Ok(())
}

#[test]
fn the_page_shows_every_block() {
    let page = page().unwrap();
    assert_eq!(page.matches("<rect").count(), 6 + 8 * (12 * 3 + 1));
    assert_eq!(page.matches("still handed out").count(), 1);
}
