//! One allocation and its free, by size, by pool, by number of threads.

use crate::{Bench, Failure, engine};
use std::sync::Barrier;
use std::time::Instant;
use terrane_gpu::adaptors::Statistics;
use terrane_gpu::{ChunkConfig, DevicePool, FixedConfig, FixedPool, Locked, Stream, VariablePool, VmmConfig};

const SIZES: [(&str, u64); 7] = [
    ("256 B", 256),
    ("4 KiB", 4 << 10),
    ("64 KiB", 64 << 10),
    ("1 MiB", 1 << 20),
    ("2 MiB", 2 << 20),
    ("16 MiB", 16 << 20),
    ("256 MiB", 256 << 20),
];

fn pair(pool: &impl DevicePool, len: u64, stream: Stream) {
    if let Ok(block) = pool.allocate(len, 256, stream) {
        // SAFETY: no work uses the block.
        unsafe { pool.deallocate(block, stream, &[]) }
    }
}

fn cell(nanos: Option<f64>) -> String {
    nanos.map_or_else(
        || "–".into(),
        |n| if n < 10_000.0 { format!("{n:.1} ns") } else { format!("{:.1} µs", n / 1e3) },
    )
}

/// The table of sizes, then threads, then the cost of statistics.
pub fn run(bench: &Bench) -> Result<(), Failure> {
    let stream = bench.device.stream_create()?;
    println!("pair by size (one thread, median of {})", bench.rounds);
    let names = ["size", "fixed", "fixed lock", "variable", "vmm", "cuMemAlloc", "async 0", "async max"];
    println!("{}", names.map(|n| format!("{n:>12}")).concat());
    for (name, len) in SIZES {
        let config = FixedConfig { blocks_per_chunk: 1, ..FixedConfig::new(len) };
        let free = FixedPool::new(bench.device.clone(), config)?;
        let locked = FixedPool::<_, Locked>::with_lists(bench.device.clone(), config)?;
        let chunks = ChunkConfig { chunk_len: len.max(64 << 20), ..ChunkConfig::default() };
        let variable = VariablePool::on(bench.device.clone(), chunks, engine);
        let vmm = VariablePool::mapped_on(bench.device.clone(), VmmConfig::default(), engine)?;
        let ours = [
            bench.nanos(200_000, || pair(&free, len, stream)),
            bench.nanos(200_000, || pair(&locked, len, stream)),
            bench.nanos(200_000, || pair(&variable, len, stream)),
            bench.nanos(200_000, || pair(&vmm, len, stream)),
        ];
        let driver = if bench.real { driver(bench, len, stream)? } else { [None; 3] };
        let cells = ours.map(Some).into_iter().chain(driver).map(|n| format!("{:>12}", cell(n)));
        println!("{name:>12}{}", cells.collect::<String>());
    }
    holes(bench, stream)?;
    threads(bench)?;
    statistics(bench, stream)?;
    Ok(())
}

/// The driver's own: plain, and stream-ordered with nothing and with everything kept.
fn driver(bench: &Bench, len: u64, stream: Stream) -> Result<[Option<f64>; 3], Failure> {
    let device = &bench.device;
    let plain = bench.nanos(50, || {
        if let Ok(address) = device.alloc(len) {
            // SAFETY: no work uses the memory.
            let _ = unsafe { device.free(address) };
        }
    });
    let mut ordered = [None, None];
    if let Some(pool) = device.ordered_memory() {
        for (slot, keep) in ordered.iter_mut().zip([0, u64::MAX]) {
            pool.keep_unused(keep)?;
            *slot = Some(bench.nanos(1000, || {
                if let Ok(address) = pool.alloc_ordered(len, stream) {
                    // SAFETY: no work uses the memory.
                    let _ = unsafe { pool.free_ordered(address, stream) };
                }
            }));
        }
        device.synchronize()?;
        pool.trim(0)?;
    }
    Ok([Some(plain), ordered[0], ordered[1]])
}

/// With 2000 holes of odd lengths between live blocks, a pair that misses the stream's list each time.
fn holes(bench: &Bench, stream: Stream) -> Result<(), Failure> {
    let pool = VariablePool::on(bench.device.clone(), ChunkConfig::default(), engine);
    let blocks = (0..4000u64)
        .map(|i| pool.allocate(1024 + (i * 37 % 61) * 256, 256, stream))
        .collect::<Result<Vec<_>, _>>()?;
    let mut live = Vec::new();
    for (i, block) in blocks.into_iter().enumerate() {
        if i % 2 == 0 {
            // SAFETY: no work uses the block.
            unsafe { pool.deallocate(block, stream, &[]) }
        } else {
            live.push(block);
        }
    }
    let mut turn = 0u64;
    let nanos = bench.nanos(200_000, || {
        turn += 1;
        pair(&pool, 1024 + (turn * 37 % 61) * 256, stream);
    });
    println!("variable pool, mixed lengths, 2000 free blocks: {} a pair", cell(Some(nanos)));
    for block in live {
        // SAFETY: no work uses the block.
        unsafe { pool.deallocate(block, stream, &[]) }
    }
    Ok(())
}

fn threads(bench: &Bench) -> Result<(), Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for (name, fixed) in [("fixed", true), ("variable", false)] {
        let mut single = 0.0;
        print!("{name}, threads on own streams, pairs per µs ({cores} cores here):");
        for threads in [1, 2, 4, 8, 16] {
            let rate = if fixed {
                let pool = FixedPool::new(bench.device.clone(), FixedConfig::new(4096))?;
                rate(bench, &pool, threads)?
            } else {
                let pool = VariablePool::on(bench.device.clone(), ChunkConfig::default(), engine);
                rate(bench, &pool, threads)?
            };
            if threads == 1 {
                single = rate;
            }
            print!("  {threads}: {rate:.1} ({:.2}×)", rate / single);
        }
        println!();
    }
    Ok(())
}

fn rate(bench: &Bench, pool: &impl DevicePool, threads: usize) -> Result<f64, Failure> {
    const PAIRS: u32 = 300_000;
    let streams = (0..threads).map(|_| bench.device.stream_create()).collect::<Result<Vec<_>, _>>()?;
    let mut rounds = Vec::new();
    for _ in 0..bench.rounds.max(1) {
        let barrier = Barrier::new(threads + 1);
        let mut start = Instant::now();
        std::thread::scope(|scope| {
            for &stream in &streams {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    (0..PAIRS).for_each(|_| pair(pool, 4096, stream));
                });
            }
            barrier.wait();
            start = Instant::now();
        });
        let micros = start.elapsed().as_nanos() as f64 / 1e3;
        rounds.push(f64::from(PAIRS) * threads as f64 / micros);
    }
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[rounds.len() / 2])
}

/// What counting adds to a pair, with rounds of each kind in turn, so that they see the same weather.
fn statistics(bench: &Bench, stream: Stream) -> Result<(), Failure> {
    let variable = || VariablePool::on(bench.device.clone(), ChunkConfig::default(), engine);
    let (plain, counted, exact) = (variable(), Statistics::new(variable()), Statistics::exact(variable()));
    let mut ratios = [Vec::new(), Vec::new()];
    for _ in 0..bench.rounds.max(1) * 8 {
        let without = bench.nanos(20_000, || pair(&plain, 4096, stream));
        ratios[0].push(bench.nanos(20_000, || pair(&counted, 4096, stream)) / without);
        ratios[1].push(bench.nanos(20_000, || pair(&exact, 4096, stream)) / without);
    }
    let [counted, exact] = ratios.map(|mut ratios| {
        ratios.sort_by(f64::total_cmp);
        (ratios[ratios.len() / 2] - 1.0) * 100.0
    });
    println!(
        "per-stream figures are always on, in the figures above; statistics over all threads: {counted:+.1} % on a variable \
         pair, with an exact peak: {exact:+.1} %"
    );
    Ok(())
}
