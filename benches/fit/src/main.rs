//! The comparison of placement engines.

mod count;
mod measure;
mod peers;
mod pictures;
mod runs;

use clap::Parser;
use measure::{NAMES, least_space, pair, play};
use terrane_fit::Workload;

/// Compares placement engines: time per pair, least space, failures.
#[derive(Parser)]
struct Args {
    /// Pairs for each figure of time
    #[arg(long, default_value_t = 300_000)]
    pairs: usize,
    /// Live spans of the traces
    #[arg(long, default_value_t = 2_000)]
    spans: usize,
    /// Seed of the traces
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Space in which requests are timed, over the peak of live units of the trace
    #[arg(long, default_value_t = 1.5)]
    room: f64,
    /// Only contenders whose name contains this, or one of several such
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only draw the pictures of the book, into this folder
    #[arg(long)]
    pictures: Option<std::path::PathBuf>,
    /// Only compare the bitmaps of the slab heap with the engines, on this recorded trace of runs of slices
    #[arg(long)]
    runs: Option<std::path::PathBuf>,
    /// Only count instructions with valgrind's callgrind, which come out the same however busy the machine is
    #[arg(long)]
    count: bool,
    /// Only serve what `--count` counts for the contender of this number
    #[arg(long, hide = true)]
    serve: Option<usize>,
    /// The row of `--serve`
    #[arg(long, hide = true, default_value_t = 0)]
    row: usize,
    /// Leave out the figures of time per pair
    #[arg(long)]
    no_pairs: bool,
    /// Leave out the figures of traces
    #[arg(long)]
    no_traces: bool,
}

/// Prints the first lines of a table with a column for each of `chosen`.
fn head(first: &str, chosen: &[usize]) {
    println!("| {first} | {} |", chosen.iter().map(|&which| NAMES[which]).collect::<Vec<_>>().join(" | "));
    println!("|---|{}", "---:|".repeat(chosen.len()));
}

/// The time of a pair. The contenders take turns, so that what else the machine does hits all of them.
fn pairs(chosen: &[usize], pairs: usize) {
    println!("Nanoseconds per pair, 16 B to 16 KiB\n");
    head("live spans", chosen);
    for spans in [1_000, 10_000, 100_000] {
        let mut times = vec![f64::INFINITY; chosen.len()];
        for turn in 0..4 {
            for (time, &which) in times.iter_mut().zip(chosen) {
                // Linear searches get fewer pairs, or they take minutes.
                match (matches!(NAMES[which], "range-alloc" | "linear best fit"), turn) {
                    (true, 1..) => {}
                    (true, _) => *time = pair::<false>(which, spans, 5_000),
                    (false, _) => *time = time.min(pair::<false>(which, spans, pairs)),
                }
            }
        }
        let cells = times.iter().map(|ns| if ns.is_finite() { format!("{ns:.0}") } else { "—".into() });
        println!("| {spans} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    println!();
}

/// Least space, time of a request and failures on each trace. The contenders take turns.
fn traces(chosen: &[usize], args: &Args) {
    let room = args.room;
    println!("Least space / peak live · ns per request in {room} × peak live · failures in 1.05 × peak live");
    println!("*: not all requests were served in {room} × peak live\n");
    head("trace", chosen);
    for workload in Workload::ALL {
        let trace = workload.trace(args.spans, args.seed);
        let space = (trace.peak_live() as f64 * room) as u64 & !15;
        let mut times = vec![f64::INFINITY; chosen.len()];
        let mut served = vec![true; chosen.len()];
        for _ in 0..11 {
            for ((time, served), &which) in times.iter_mut().zip(&mut served).zip(chosen) {
                let (failed, took) = play::<false>(which, &trace, space);
                (*time, *served) = (time.min(took), failed == 0);
            }
        }
        let cells = chosen.iter().zip(times.iter().zip(&served)).map(|(&which, (time, served))| {
            let (failed, _) = play::<false>(which, &trace, (trace.peak_live() * 21 / 20) & !15);
            let nanoseconds = time * 1e9 / trace.requests().len() as f64;
            let mark = if *served { "" } else { "*" };
            format!("{:.3} · {nanoseconds:.1}{mark} · {failed}", least_space(which, &trace))
        });
        println!("| {} | {} |", workload.name(), cells.collect::<Vec<_>>().join(" | "));
    }
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    if let Some(folder) = &args.pictures {
        return pictures::draw(folder);
    }
    if let Some(file) = &args.runs {
        let trace = std::fs::read_to_string(file)?.parse().map_err(std::io::Error::other)?;
        runs::compare(&trace);
        return Ok(());
    }
    if let Some(which) = args.serve {
        println!("{}", count::serve(which, args.row, args.spans));
        return Ok(());
    }
    let chosen: Vec<usize> = (0..NAMES.len())
        .filter(|&which| args.only.is_empty() || args.only.iter().any(|only| NAMES[which].contains(only)))
        .collect();
    if args.count {
        return count::table(&chosen, args.spans);
    }
    if !args.no_pairs {
        pairs(&chosen, args.pairs);
    }
    if !args.no_traces {
        traces(&chosen, &args);
    }
    Ok(())
}
