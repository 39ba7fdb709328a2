//! Terrane's pools beside other crates' and beside plain allocation: nanoseconds per acquire and release, and bytes.
//!
//! Every row is run in rounds; in each round every subject runs once, so that a change of the machine's speed meets all of them.
//! What is printed is the median of a subject's rounds. The last column is Terrane's over the best of the others.

mod lists;
mod sizing;
mod subjects;

use clap::Parser;
use crossbeam::queue::{ArrayQueue, SegQueue};
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Barrier;
use std::time::{Duration, Instant};
use subjects::{
    Item, Linear, LinearMutex, ObjectPool, Opool, Plain, Queued, Sharded, Subject, Terrane, TerraneMutex,
};

#[derive(Parser)]
#[command(name = "cargo xtask bench --pools", about = "Object pools compared")]
struct Args {
    /// Rounds per row
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Operations per thread and round
    #[arg(long, default_value_t = 200_000)]
    operations: usize,
    /// Compare policies of sizing instead of pools
    #[arg(long)]
    sizing: bool,
    /// Compare policies of sizing for the allocator's own lists
    #[arg(long)]
    lists: bool,
    /// Print the bytes beside an object for pools of 100 to 20 000 objects
    #[arg(long)]
    memory: bool,
    /// Only take so many objects at a time from Terrane's pool, for a tool that counts instructions
    #[arg(long, value_name = "OBJECTS")]
    held: Option<usize>,
}

/// A measurement: how many operations per thread → a figure.
type Measure = fn(usize) -> f64;

/// Objects that every pool of bounded size may hold.
const OBJECTS: usize = 4096;

/// Nanoseconds per pair on each of `THREADS` threads, each with `HELD` objects at a time.
fn pairs<S: Subject, const THREADS: usize, const HELD: usize>(operations: usize) -> f64 {
    let pool = S::new(OBJECTS);
    let barrier = Barrier::new(THREADS);
    let slowest = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let mut held = Vec::with_capacity(HELD);
                    let mut round = || {
                        held.extend((0..HELD).map(|_| black_box(pool.take())));
                        held.clear();
                    };
                    (0..100).for_each(|_| round());
                    barrier.wait();
                    let start = Instant::now();
                    (0..operations / HELD).for_each(|_| round());
                    start.elapsed()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker panicked")).max()
    });
    slowest.unwrap_or(Duration::ZERO).as_nanos() as f64 / operations as f64
}

/// Nanoseconds per object that one thread takes and another gives back.
fn handed_over<S: Subject>(operations: usize) -> f64 {
    let pool = S::new(OBJECTS);
    let queue = ArrayQueue::new(256);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..operations {
                let mut item = pool.take();
                while let Err(full) = queue.push(item) {
                    item = full;
                    std::thread::yield_now();
                }
            }
        });
        scope.spawn(|| {
            let mut got = 0;
            while got < operations {
                match queue.pop() {
                    Some(item) => {
                        drop(item);
                        got += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
    });
    start.elapsed().as_nanos() as f64 / operations as f64
}

/// Bytes in use by the process's heap.
fn heap_bytes() -> usize {
    // SAFETY: the call takes nothing and returns numbers.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

/// Bytes per object beyond the object itself, with so many idle ones.
fn overhead<S: Subject>(idle: usize) -> f64 {
    let before = heap_bytes();
    let pool = S::new(idle.max(OBJECTS));
    drop((0..idle).map(|_| pool.take()).collect::<Vec<_>>());
    let bytes = heap_bytes().saturating_sub(before);
    drop(pool);
    // 16 bytes is what the C library adds to a block of 1 KiB.
    bytes as f64 / idle as f64 - (size_of_val(&*Item::default().0) + 16) as f64
}

/// Idle objects with which the row of bytes is measured. Array pools at their best: 2000 fill an array that grows by doubling.
const IDLE: usize = 2000;
/// And those of the mean over sizes: as much above one doubling as below the next.
const SIZES: [usize; 8] = [1000, 1250, 1500, 1750, 2000, 2500, 3000, 3500];

/// [`overhead`] with as many as each of [`SIZES`], on average.
fn mean_overhead<S: Subject>(_: usize) -> f64 {
    SIZES.iter().map(|idle| overhead::<S>(*idle)).sum::<f64>() / SIZES.len() as f64
}

struct Row {
    name: &'static str,
    /// By the order of [`NAMES`]; plain allocation keeps nothing, so it has no memory row.
    measures: [Option<Measure>; 10],
}

const NAMES: [&str; 10] = [
    "terrane",
    "t. mutex",
    "object-pool",
    "opool",
    "lf linear",
    "lf mutex",
    "sharded-slab",
    "ArrayQueue",
    "SegQueue",
    "plain",
];

macro_rules! row {
    ($name:literal, $plain:expr, |$S:ident| $measure:expr) => {{
        macro_rules! of {
            ($subject:ty) => {{
                type $S = $subject;
                let measure: Measure = $measure;
                Some(measure)
            }};
        }
        let plain = of!(Plain);
        Row {
            name: $name,
            measures: [
                of!(Terrane),
                of!(TerraneMutex),
                of!(ObjectPool),
                of!(Opool),
                of!(Linear),
                of!(LinearMutex),
                of!(Sharded),
                of!(Queued<ArrayQueue<Item>>),
                of!(Queued<SegQueue<Item>>),
                plain.filter(|_| $plain),
            ],
        }
    }};
}

fn header(title: &str) {
    print!("{title:<26}");
    NAMES.iter().for_each(|name| print!("{name:>13}"));
}

/// Bytes beside an object, by the number of objects.
fn memory() {
    header("bytes beside an object");
    println!();
    let row = row!("", false, |S| overhead::<S>);
    for idle in [100, 300, 1000, 1250, 1500, 1750, 2000, 2500, 3000, 3500, 4000, 20_000] {
        print!("{:<26}", format!("{idle} objects"));
        for measure in row.measures.into_iter().flatten() {
            print!("{:>13.1}", measure(idle));
        }
        println!();
    }
}

/// Takes `operations` objects of Terrane's pool, `held` at a time.
fn alone(held: usize, operations: usize) {
    let pool = Terrane::new(OBJECTS);
    if held == 1 {
        // A pair as it is, without a place to hold it in.
        (0..operations).for_each(|_| drop(black_box(pool.take())));
        return;
    }
    let mut items = Vec::with_capacity(held);
    for _ in 0..operations / held {
        items.extend((0..held).map(|_| black_box(pool.take())));
        items.clear();
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.sizing {
        sizing::table();
        return ExitCode::SUCCESS;
    }
    if args.lists {
        lists::table(args.rounds.max(1));
        return ExitCode::SUCCESS;
    }
    if args.memory {
        memory();
        return ExitCode::SUCCESS;
    }
    if let Some(held) = args.held {
        alone(held.clamp(1, OBJECTS), args.operations);
        return ExitCode::SUCCESS;
    }
    let rows = [
        row!("pair, 1 thread (ns)", true, |S| pairs::<S, 1, 1>),
        row!("pair, 2 threads (ns)", true, |S| pairs::<S, 2, 1>),
        row!("pair, 8 threads (ns)", true, |S| pairs::<S, 8, 1>),
        row!("32 held, 1 thread (ns)", true, |S| pairs::<S, 1, 32>),
        row!("32 held, 8 threads (ns)", true, |S| pairs::<S, 8, 32>),
        row!("returned elsewhere (ns)", true, |S| handed_over::<S>),
        row!("beside an object (bytes)", false, |S| |_| overhead::<S>(IDLE)),
        row!("… mean of sizes (bytes)", false, |S| mean_overhead::<S>),
    ];
    header("");
    println!("{:>10}", "ratio");
    let mut behind = Vec::new();
    for row in &rows {
        let mut figures = vec![Vec::new(); row.measures.len()];
        for _ in 0..args.rounds {
            for (figures, measure) in figures.iter_mut().zip(row.measures) {
                figures.extend(measure.map(|measure| measure(args.operations)));
            }
        }
        let medians: Vec<Option<f64>> = figures
            .into_iter()
            .map(|mut figures| {
                figures.sort_by(f64::total_cmp);
                figures.get(figures.len() / 2).copied()
            })
            .collect();
        print!("{:<26}", row.name);
        for median in &medians {
            match median {
                Some(figure) => print!("{figure:>13.1}"),
                None => print!("{:>13}", "-"),
            }
        }
        let best = medians[2..].iter().flatten().copied().fold(f64::INFINITY, f64::min);
        let ratio = medians[0].unwrap_or(f64::NAN) / best;
        println!("{ratio:>10.2}");
        if ratio > 1.0 {
            behind.push(format!("{} ({ratio:.2} × the best)", row.name));
        }
    }
    if behind.is_empty() {
        println!("terrane is ahead on every row");
    } else {
        println!("terrane is behind on: {}", behind.join(", "));
    }
    ExitCode::SUCCESS
}
