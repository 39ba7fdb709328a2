//! Copies between host and device: from pooled page-locked memory against the bare driver, and both directions at once.

use crate::goals::Goal;
use crate::{Bench, Failure, engine, median};
use std::sync::Arc;
use std::time::Instant;
use terrane_gpu::transfer::Transfers;
use terrane_gpu::{ChunkConfig, DeviceBuf, PinnedPool, VariablePool};

fn gib_per_second(bytes: usize, start: Instant) -> f64 {
    bytes as f64 / start.elapsed().as_secs_f64() / f64::from(1 << 30)
}

/// Bandwidths, where there is a driver.
pub fn run(bench: &Bench) -> Result<(), Failure> {
    if !bench.driver {
        println!("transfers: bandwidth needs a device");
        return Ok(());
    }
    let device = &bench.device;
    let len = bench.amount(256 << 20, 9 << 20) as usize;
    let (up, down) = (device.stream_create()?, device.stream_create()?);
    let chunks = ChunkConfig { chunk_len: len as u64, ..ChunkConfig::default() };
    let pool = Arc::new(VariablePool::on(device.clone(), chunks, engine));
    let pinned = PinnedPool::new(device.clone(), chunks);
    let transfers = Transfers::new(device.clone(), pinned.clone());
    let (mut raw, mut pooled, mut both, mut sliced) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let pageable = vec![1u8; len];
    // The first round brings memory and streams into being, and is not counted.
    for round in 0..=bench.rounds() {
        let (host, there) = (device.host_alloc(len)?, device.alloc(len as u64)?);
        let start = Instant::now();
        // SAFETY: both ends have these bytes, and are freed after the host has waited.
        unsafe {
            device.upload(there, host, len as u64, up)?;
            device.stream_synchronize(up)?;
            raw.push(gib_per_second(len, start));
            device.host_free(host)?;
            device.free(there)?;
        }
        let (a, b) = (pinned.zeroed::<u8>(len)?, pinned.zeroed::<u8>(len)?);
        let (x, y) = (DeviceBuf::new_in(pool.clone(), len, up)?, DeviceBuf::new_in(pool.clone(), len, down)?);
        let start = Instant::now();
        let (a, x) = transfers.upload(a, x)?.wait()?;
        pooled.push(gib_per_second(len, start));
        let start = Instant::now();
        let (out, back) = (transfers.upload(a, x)?, transfers.download(y, b)?);
        let (_, x) = out.wait()?;
        drop(back.wait()?);
        both.push(gib_per_second(2 * len, start));
        let start = Instant::now();
        let x = transfers.upload_slice(&pageable, x)?.wait()?;
        sliced.push(gib_per_second(len, start));
        let mut read = vec![0u8; len];
        transfers.download_slice(&x, &mut read)?;
        if read != pageable {
            return Err("what came back is not what was sent".into());
        }
        if round == 0 {
            [&mut raw, &mut pooled, &mut both, &mut sliced].into_iter().for_each(Vec::clear);
        }
    }
    device.stream_destroy(up)?;
    device.stream_destroy(down)?;
    let [raw, pooled, both, sliced] = [raw, pooled, both, sliced].map(median);
    let (share, ways) = (pooled / raw * 100.0, both / pooled);
    bench.found(Goal::Pinned, share);
    bench.found(Goal::BothWays, ways);
    println!(
        "transfers of {} MiB, GiB/s: bare {}, pooled {} ({}), both directions {} ({}), pageable slice in pieces {}",
        len >> 20,
        bench.shown(format!("{raw:.2}")),
        bench.shown(format!("{pooled:.2}")),
        bench.shown(format!("{share:.1} %")),
        bench.shown(format!("{both:.2}")),
        bench.shown(format!("{ways:.2}×")),
        bench.shown(format!("{sliced:.2}")),
    );
    Ok(())
}
