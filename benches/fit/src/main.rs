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
        println!("Nanoseconds per pair, 16 B to 16 KiB\n");
        println!("| live spans | {} |", chosen.iter().map(|&w| NAMES[w]).collect::<Vec<_>>().join(" | "));
        println!("|---:|{}", "---:|".repeat(chosen.len()));
        for spans in [1_000, 10_000, 100_000] {
            // The contenders take turns, so that what else the machine does hits all of them. Linear searches get fewer
            // pairs, or they take minutes.
            let mut times = vec![f64::INFINITY; chosen.len()];
            for turn in 0..4 {
                for (time, &which) in times.iter_mut().zip(&chosen) {
                    match (matches!(NAMES[which], "range-alloc" | "linear best fit"), turn) {
                        (true, 1..) => {}
                        (true, _) => *time = pair(which, spans, 5_000),
                        (false, _) => *time = time.min(pair(which, spans, args.pairs)),
                    }
                }
            }
            let figures: Vec<String> =
                times.iter().map(|ns| if ns.is_finite() { format!("{ns:.0}") } else { "—".into() }).collect();
            println!("| {spans} | {} |", figures.join(" | "));
        }
        println!();
    }
    if args.no_traces {
        return Ok(());
    }
    let traces: Vec<_> =
        Workload::ALL.iter().map(|workload| (workload, workload.trace(args.spans, 1))).collect();
    println!("Least space / peak live · ns per request in 1.5 × peak live · failures in 1.05 × peak live");
    println!("*: not all requests were served in 1.5 × peak live\n");
    println!("| trace | {} |", chosen.iter().map(|&w| NAMES[w]).collect::<Vec<_>>().join(" | "));
    println!("|---|{}", "---:|".repeat(chosen.len()));
    for (workload, trace) in &traces {
        let peak = trace.peak_live();
        // The contenders take turns, so that what else the machine does hits all of them.
        let mut times = vec![f64::INFINITY; chosen.len()];
        let mut served = vec![true; chosen.len()];
        for _ in 0..11 {
            for ((time, served), &which) in times.iter_mut().zip(&mut served).zip(&chosen) {
                let (failed, took) = play(which, trace, (peak * 3 / 2) & !15);
                (*time, *served) = (time.min(took), failed == 0);
            }
        }
        let cells = chosen.iter().zip(times.iter().zip(&served)).map(|(&which, (time, served))| {
            let (failed, _) = play(which, trace, (peak * 21 / 20) & !15);
            let nanoseconds = time * 1e9 / trace.requests().len() as f64;
            let mark = if *served { "" } else { "*" };
            format!("{:.3} · {nanoseconds:.1}{mark} · {failed}", least_space(which, trace))
        });
        println!("| {} | {} |", workload.name(), cells.collect::<Vec<_>>().join(" | "));
    }
    Ok(())
}
