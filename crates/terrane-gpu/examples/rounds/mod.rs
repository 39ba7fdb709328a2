//! What the examples do on whatever device they found: allocate, copy there and back, free.

use std::error::Error;
use std::sync::Arc;
use terrane_fit::Tlsf;
use terrane_gpu::transfer::Transfers;
use terrane_gpu::{ChunkConfig, Device, DeviceBuf, DevicePool, PinnedPool, VariablePool};

/// Three rounds, of which only the first takes memory from the device. The copies own their buffers meanwhile.
pub fn run<D: Device + ?Sized + 'static>(device: &Arc<D>) -> Result<(), Box<dyn Error>> {
    let stream = device.stream_create()?;
    let pool = Arc::new(VariablePool::on(device.clone(), ChunkConfig::default(), || Tlsf::with_granule(256)));
    let pinned = PinnedPool::new(device.clone(), ChunkConfig::default());
    let transfers = Transfers::new(device.clone(), pinned.clone());
    let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    for _ in 0..3 {
        let there = DeviceBuf::new_in(pool.clone(), values.len(), stream)?;
        let (_, there) = transfers.upload(pinned.copied(&values)?, there)?.wait()?;
        let (back, _) = transfers.download(there, pinned.zeroed(values.len())?)?.wait()?;
        assert_eq!(back[..], values[..]);
    }
    let (name, grows) = (&device.info().name, pool.stats().grows);
    println!("three rounds on {name}, {grows} chunk(s) taken from it");
    assert_eq!(grows, 1);
    Ok(())
}
