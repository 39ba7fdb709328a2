//! One allocation and its free, by size, by pool, by number of threads.

use crate::goals::Goal;
use crate::{Bench, Failure, engine, median};
use std::panic::resume_unwind;
use std::sync::Barrier;
use std::time::Instant;
use terrane_gpu::adaptors::Statistics;
use terrane_gpu::{
    ChunkConfig, DevicePool, FixedConfig, FixedPool, Locked, PoolError, Stream, VariablePool, VmmConfig,
};

/// Pairs in a round of a measurement.
const PAIRS: u64 = 200_000;
/// Odd lengths.
const LENGTHS: u64 = 61;

const SIZES: [(&str, u64); 7] = [
    ("256 B", 256),
    ("4 KiB", 4 << 10),
    ("64 KiB", 64 << 10),
    ("1 MiB", 1 << 20),
    ("2 MiB", 2 << 20),
    ("16 MiB", 16 << 20),
    ("256 MiB", 256 << 20),
];

type Nanos = Result<f64, Failure>;

fn pair(pool: &impl DevicePool, len: u64, stream: Stream) -> Result<(), PoolError> {
    let block = pool.allocate(len, 256, stream)?;
    // SAFETY: no work uses the block.
    unsafe { pool.deallocate(block, stream, &[]) }
    Ok(())
}

/// The table of sizes, then mixed lengths between holes, threads, and the cost of statistics.
pub fn run(bench: &Bench) -> Result<(), Failure> {
    let stream = bench.device.stream_create()?;
    println!("pair by size (one thread, median of {})", bench.rounds());
    let names = ["size", "fixed", "fixed lock", "variable", "vmm", "cuMemAlloc", "async 0", "async max"];
    println!("{}", names.map(|n| format!("{n:>12}")).concat());
    let mut failures = Vec::new();
    for (name, len) in SIZES {
        let [fixed, locked, variable, vmm] = ours(bench, len, stream)?;
        let [plain, nothing_kept, all_kept] = driver(bench, len, stream);
        goals(bench, len, [&fixed, &variable], [&plain, &nothing_kept, &all_kept]);
        let mut row = format!("{name:>12}");
        for cell in [fixed, locked, variable, vmm, plain, nothing_kept, all_kept] {
            let text = match cell {
                None => "–".into(),
                Some(Ok(nanos)) => bench.shown_nanos(nanos),
                Some(Err(why)) => {
                    failures.push(format!("{name}: {why}"));
                    "failed".into()
                }
            };
            row += &format!("{text:>12}");
        }
        println!("{row}");
    }
    holes(bench, stream)?;
    threads(bench)?;
    statistics(bench, stream)?;
    bench.device.stream_destroy(stream)?;
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ").into()) }
}

/// Our pools: fixed with lock-free and with locked lists, variable over chunks and over mapped pieces.
fn ours(bench: &Bench, len: u64, stream: Stream) -> Result<[Option<Nanos>; 4], Failure> {
    let device = &bench.device;
    let config = FixedConfig { blocks_per_chunk: 1, ..FixedConfig::new(len) };
    let free = FixedPool::new(device.clone(), config)?;
    let locked = FixedPool::<_, Locked>::with_lists(device.clone(), config)?;
    let chunks = ChunkConfig { chunk_len: len.max(64 << 20), ..ChunkConfig::default() };
    let variable = VariablePool::on(device.clone(), chunks, engine);
    let vmm = device.virtual_memory().map(|_| {
        let vmm = VariablePool::mapped_on(device.clone(), VmmConfig::default(), engine)?;
        bench.nanos(PAIRS, || pair(&vmm, len, stream))
    });
    Ok([
        Some(bench.nanos(PAIRS, || pair(&free, len, stream))),
        Some(bench.nanos(PAIRS, || pair(&locked, len, stream))),
        Some(bench.nanos(PAIRS, || pair(&variable, len, stream))),
        vmm,
    ])
}

/// The driver's own: plain, and stream-ordered with nothing and with everything kept.
fn driver(bench: &Bench, len: u64, stream: Stream) -> [Option<Nanos>; 3] {
    let device = &bench.device;
    if !bench.driver {
        return [None, None, None];
    }
    let plain = bench.nanos(50, || {
        let address = device.alloc(len)?;
        // SAFETY: no work uses the memory.
        unsafe { device.free(address) }
    });
    let ordered = |keep| {
        let pool = device.ordered_memory()?;
        let measure = || {
            pool.keep_unused(keep)?;
            let nanos = bench.nanos(1000, || {
                let address = pool.alloc_ordered(len, stream)?;
                // SAFETY: no work uses the memory.
                unsafe { pool.free_ordered(address, stream) }
            })?;
            device.synchronize()?;
            pool.trim(0)?;
            Ok(nanos)
        };
        Some(measure())
    };
    [Some(plain), ordered(0), ordered(u64::MAX)]
}

fn goals(bench: &Bench, len: u64, ours: [&Option<Nanos>; 2], driver: [&Option<Nanos>; 3]) {
    let nanos = |cell: &Option<Nanos>| cell.as_ref().and_then(|nanos| nanos.as_ref().ok().copied());
    let [fixed, variable] = ours.map(nanos);
    let [plain, nothing_kept, all_kept] = driver.map(nanos);
    if let Some(fixed) = fixed {
        bench.found(Goal::FixedPair, fixed);
        if let Some(plain) = plain {
            bench.found(Goal::FixedOverAlloc, plain / fixed);
            if len >= 2 << 20 {
                bench.found(Goal::FixedOverAllocLong, plain / fixed);
            }
        }
    }
    if let Some(variable) = variable {
        bench.found(Goal::VariablePair, variable);
        bench.variable_pairs.borrow_mut().push((len, variable));
        // Whichever setting suits the driver better.
        if let Some(ordered) = [nothing_kept, all_kept].into_iter().flatten().reduce(f64::min) {
            bench.found(Goal::VariableOverAsync, ordered / variable);
        }
    }
}

/// The lengths of the blocks between which holes are made, and of the pairs then: odd ones, 61 of them.
fn odd(i: u64) -> u64 {
    1024 + (i * 37 % LENGTHS) * 256
}

/// Pairs of mixed lengths with 2000 holes between live blocks: first as they come, when the stream's list has blocks of each
/// length, and then with all of them merged into holes before, when the engine has to find a place each time.
fn holes(bench: &Bench, stream: Stream) -> Result<(), Failure> {
    let pool = VariablePool::on(bench.device.clone(), ChunkConfig::default(), engine);
    let blocks = (0..4000).map(|i| pool.allocate(odd(i), 256, stream)).collect::<Result<Vec<_>, _>>()?;
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
    let listed = bench.nanos(PAIRS, || {
        turn += 1;
        pair(&pool, odd(turn), stream)
    })?;
    let mut rounds = Vec::new();
    for _ in 0..bench.amount(200, 3) {
        pool.trim();
        let start = Instant::now();
        (0..LENGTHS).try_for_each(|i| pair(&pool, odd(i), stream))?;
        rounds.push(start.elapsed().as_nanos() as f64 / LENGTHS as f64);
    }
    let placed = median(rounds);
    bench.found(Goal::VariablePair, listed);
    bench.variable_between_holes.set(Some(listed));
    println!(
        "variable pool, mixed lengths, 2000 free blocks: {} a pair from the stream's list, {} from the engine",
        bench.shown_nanos(listed),
        bench.shown_nanos(placed)
    );
    for block in live {
        // SAFETY: no work uses the block.
        unsafe { pool.deallocate(block, stream, &[]) }
    }
    Ok(())
}

fn threads(bench: &Bench) -> Result<(), Failure> {
    for (name, goal) in [("fixed", Goal::ThreadsFixed), ("variable", Goal::ThreadsVariable)] {
        let mut single = 0.0;
        print!("{name}, threads on own streams, pairs per µs ({} cores here):", bench.cores);
        for threads in [1, 2, 4, 8, 16] {
            let rate = if matches!(goal, Goal::ThreadsFixed) {
                let pool = FixedPool::new(bench.device.clone(), FixedConfig::new(4096))?;
                rate(bench, &pool, threads)?
            } else {
                let pool = VariablePool::on(bench.device.clone(), ChunkConfig::default(), engine);
                rate(bench, &pool, threads)?
            };
            if threads == 1 {
                single = rate;
            }
            if threads == 16 {
                bench.found(goal, rate / single);
            }
            print!("  {threads}: {}", bench.shown(format!("{rate:.1} ({:.2}×)", rate / single)));
        }
        println!();
    }
    Ok(())
}

fn rate(bench: &Bench, pool: &impl DevicePool, threads: usize) -> Result<f64, Failure> {
    let pairs = bench.amount(300_000, 300);
    let streams = (0..threads).map(|_| bench.device.stream_create()).collect::<Result<Vec<_>, _>>()?;
    let mut rounds = Vec::new();
    for _ in 0..bench.rounds() {
        let barrier = Barrier::new(threads + 1);
        let mut start = Instant::now();
        let work = |stream| {
            barrier.wait();
            (0..pairs).try_for_each(|_| pair(pool, 4096, stream))
        };
        let work = &work;
        std::thread::scope(|scope| {
            let workers: Vec<_> = streams.iter().map(|&stream| scope.spawn(move || work(stream))).collect();
            barrier.wait();
            start = Instant::now();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })?;
        let micros = start.elapsed().as_nanos() as f64 / 1e3;
        rounds.push(pairs as f64 * threads as f64 / micros);
    }
    for stream in streams {
        pool.retire_stream(stream);
        bench.device.stream_destroy(stream)?;
    }
    Ok(median(rounds))
}

/// What counting adds to a pair, with rounds of each kind in turn, so that they see the same weather.
fn statistics(bench: &Bench, stream: Stream) -> Result<(), Failure> {
    let variable = || VariablePool::on(bench.device.clone(), ChunkConfig::default(), engine);
    let (plain, counted, exact) = (variable(), Statistics::new(variable()), Statistics::exact(variable()));
    let mut added = [Vec::new(), Vec::new()];
    for _ in 0..bench.rounds() * 8 {
        let without = bench.nanos(20_000, || pair(&plain, 4096, stream))?;
        let with = bench.nanos(20_000, || pair(&counted, 4096, stream))?;
        let with_exact = bench.nanos(20_000, || pair(&exact, 4096, stream))?;
        added[0].push((with / without - 1.0) * 100.0);
        added[1].push((with_exact / without - 1.0) * 100.0);
    }
    let [counted, exact] = added.map(median);
    bench.found(Goal::Statistics, counted);
    println!(
        "per-stream figures are always on, in the figures above; statistics over all threads: {} on a variable pair, with an \
         exact peak: {}",
        bench.shown(format!("{counted:+.1} %")),
        bench.shown(format!("{exact:+.1} %"))
    );
    Ok(())
}
