//! Copies between host and device: from pooled page-locked memory against the bare driver, and both directions at once.

use crate::{Bench, Failure, engine};
use std::sync::Arc;
use std::time::Instant;
use terrane_gpu::transfer::Transfers;
use terrane_gpu::{ChunkConfig, DeviceBuf, PinnedPool, VariablePool};

const LEN: usize = 256 << 20;

fn gib_per_second(bytes: usize, start: Instant) -> f64 {
    bytes as f64 / start.elapsed().as_secs_f64() / f64::from(1 << 30)
}

/// Bandwidths, on a real device only.
pub fn run(bench: &Bench) -> Result<(), Failure> {
    if !bench.real {
        println!("transfers: bandwidth needs a device");
        return Ok(());
    }
    let device = &bench.device;
    let (up, down) = (device.stream_create()?, device.stream_create()?);
    let chunks = ChunkConfig { chunk_len: LEN as u64, ..ChunkConfig::default() };
    let pool = Arc::new(VariablePool::on(device.clone(), chunks, engine));
    let pinned = PinnedPool::new(device.clone(), chunks);
    let transfers = Transfers::new(device.clone(), pinned.clone());
    let (mut raw, mut pooled, mut both, mut sliced) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let pageable = vec![1u8; LEN];
    for _ in 0..bench.rounds.max(1) {
        let (host, there) = (device.host_alloc(LEN)?, device.alloc(LEN as u64)?);
        let start = Instant::now();
        // SAFETY: both ends have these bytes, and are freed after the host has waited.
        unsafe {
            device.upload(there, host, LEN as u64, up)?;
            device.stream_synchronize(up)?;
            raw.push(gib_per_second(LEN, start));
            device.host_free(host)?;
            device.free(there)?;
        }
        let (a, b) = (pinned.zeroed::<u8>(LEN)?, pinned.zeroed::<u8>(LEN)?);
        let (x, y) = (DeviceBuf::new_in(pool.clone(), LEN, up)?, DeviceBuf::new_in(pool.clone(), LEN, down)?);
        let start = Instant::now();
        let (a, x) = transfers.upload(a, x)?.wait()?;
        pooled.push(gib_per_second(LEN, start));
        let start = Instant::now();
        let (out, back) = (transfers.upload(a, x)?, transfers.download(y, b)?);
        let (_, x) = out.wait()?;
        drop(back.wait()?);
        both.push(gib_per_second(2 * LEN, start));
        let start = Instant::now();
        drop(transfers.upload_slice(&pageable, x)?.wait()?);
        sliced.push(gib_per_second(LEN, start));
    }
    let median = |mut v: Vec<f64>| {
        v.sort_by(f64::total_cmp);
        v[v.len() / 2]
    };
    let (raw, pooled, both, sliced) = (median(raw), median(pooled), median(both), median(sliced));
    println!(
        "transfers of {} MiB: bare {raw:.2} GiB/s, pooled {pooled:.2} ({:.1} %), both directions {both:.2} ({:.2}×), \
         pageable slice in pieces {sliced:.2}",
        LEN >> 20,
        pooled / raw * 100.0,
        both / pooled
    );
    Ok(())
}
