//! The driver: builds a worker per allocator, runs the schedule, and reports.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use terrane_bench::catalogue::WORKLOADS;
use terrane_bench::peers::{self, PEERS};
use terrane_bench::results::{Metric, Results};
use terrane_bench::schedule::{Contender, Schedule};
use terrane_bench::{book, callgrind, goals, machine, preload, report, table};

/// Compares allocators over the same workloads, in alternating rounds.
#[derive(Parser)]
#[command(name = "bench")]
struct Options {
    /// A selection of workloads and allocators that takes less than three minutes once the workers are built
    #[arg(long)]
    quick: bool,
    /// Only workloads whose names contain one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these allocators
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Only these numbers of threads
    #[arg(long, value_delimiter = ',')]
    threads: Vec<usize>,
    /// Rounds per case [default: 5, or 3 when quick]
    #[arg(long)]
    rounds: Option<usize>,
    /// Share of the full amount of work per run
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// A worker built elsewhere, say before a change, measured beside the others
    #[arg(long, value_name = "NAME=WORKER")]
    with: Vec<String>,
    /// Count instructions per operation with callgrind as well, on one thread
    #[arg(long)]
    instructions: bool,
    /// Run whole programs under preloaded libraries instead of workloads
    #[arg(long)]
    preload: bool,
    /// Use the workers as they were last built
    #[arg(long)]
    no_build: bool,
    /// Where to write the results [default: target/bench/results.json]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Make the report anew from the results of an earlier run, and end
    #[arg(long)]
    report: bool,
    /// Write the book's page of results as well
    #[arg(long)]
    page: bool,
    /// List workloads and allocators, and end
    #[arg(long)]
    list: bool,
}

fn list() {
    for workload in WORKLOADS {
        let threads: Vec<String> = workload.threads.iter().map(usize::to_string).collect();
        println!("{:<18} threads {:<6} {}", workload.name, threads.join(","), workload.about);
    }
    println!();
    for peer in PEERS {
        println!("{:<12} {}", peer.name, peer.about);
    }
}

/// Builds the workers that are asked for; those that do not build go to `skipped`.
fn contenders(options: &Options, results: &mut Results) -> Result<Vec<Contender>, String> {
    if let Some(unknown) = options.peers.iter().find(|name| peers::find(name).is_none()) {
        return Err(format!("no allocator is called {unknown}; --list shows them all"));
    }
    let wanted = |peer: &&peers::Peer| match options.peers.is_empty() {
        true => peer.quick || !options.quick,
        false => options.peers.iter().any(|name| name == peer.name),
    };
    let mut contenders = Vec::new();
    for peer in PEERS.iter().filter(wanted) {
        let kept = peers::worker_path(peer.name);
        if options.no_build && kept.exists() {
            contenders.push(Contender { name: peer.name.to_owned(), worker: kept });
            continue;
        }
        eprintln!("building the worker with {}", peer.name);
        match peers::build(peer) {
            Ok(worker) => contenders.push(Contender { name: peer.name.to_owned(), worker }),
            Err(reason) => {
                eprintln!("skipping {}: {reason}", peer.name);
                results.skipped.push((peer.name.to_owned(), reason));
            }
        }
    }
    for with in &options.with {
        let (name, path) = with.split_once('=').ok_or("--with wants NAME=WORKER")?;
        contenders.push(Contender { name: name.to_owned(), worker: path.into() });
    }
    Ok(contenders)
}

fn progress(total: u64) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(total) } else { ProgressBar::hidden() };
    let style =
        ProgressStyle::with_template("{bar:32} {pos}/{len} runs, {elapsed} of about {duration}  {msg}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn compare(options: &Options) -> Result<(), String> {
    let rounds = options.rounds.unwrap_or(if options.quick { 3 } else { 5 }).max(1);
    let mut results =
        Results { machine: machine::describe(), rounds, quick: options.quick, ..Results::default() };
    let contenders = contenders(options, &mut results)?;
    results.allocators = contenders.iter().map(|contender| contender.name.clone()).collect();
    let schedule = Schedule {
        contenders,
        rounds,
        scale: options.scale,
        quick: options.quick,
        only: options.only.clone(),
        threads: options.threads.clone(),
    };
    let cases = schedule.cases();
    if cases.is_empty() || schedule.contenders.is_empty() {
        return Err("nothing to run: --list shows workloads and allocators".into());
    }
    let bar = progress(cases.iter().map(|(workload, _)| schedule.runs_of(workload)).sum());
    for (workload, threads) in cases {
        if bar.is_hidden() {
            eprintln!("{} ×{threads}", workload.name);
        }
        let case = schedule.run(workload, threads, |allocator| {
            bar.set_message(format!("{} ×{threads} {allocator}", workload.name));
            bar.inc(1);
        });
        for (allocator, why) in case.by.iter().filter_map(|(name, runs)| Some((name, runs.failure.as_ref()?)))
        {
            bar.suspend(|| eprintln!("{allocator} failed in {} ×{threads}: {why}", workload.name));
        }
        results.cases.push(case);
    }
    bar.finish_and_clear();
    if options.instructions {
        count_instructions(&schedule, &mut results);
    }
    finish(options, &results)
}

/// Adds instruction counts to the cases of one thread.
fn count_instructions(schedule: &Schedule, results: &mut Results) {
    if !callgrind::is_installed() {
        eprintln!("valgrind is not installed: no instructions are counted");
        return;
    }
    for case in results.cases.iter_mut().filter(|case| case.threads == 1) {
        for contender in &schedule.contenders {
            eprintln!("counting {} with {}", case.workload, contender.name);
            match callgrind::per_operation(&contender.worker, &case.workload) {
                Ok(count) => {
                    case.by.entry(contender.name.clone()).or_default().instructions = Some(count);
                }
                Err(reason) => {
                    eprintln!("{} cannot be counted with {}: {reason}", case.workload, contender.name)
                }
            }
        }
    }
}

/// Runs whole programs. Their results join those of an earlier run of the workloads, where there is one.
fn preload_programs(options: &Options) -> Result<(), String> {
    let (libraries, lacking) = preload::libraries();
    for (name, reason) in lacking {
        eprintln!("skipping {name}: {reason}");
    }
    let rounds = options.rounds.unwrap_or(if options.quick { 3 } else { 5 }).max(1);
    let mut results = earlier(options).unwrap_or_else(|_| Results {
        machine: machine::describe(),
        rounds,
        quick: options.quick,
        ..Results::default()
    });
    results.programs = preload::run(&libraries, rounds, |about| eprintln!("{about}"))?;
    finish(options, &results)
}

/// Writes the results, prints the tables and writes the report.
fn finish(options: &Options, results: &Results) -> Result<(), String> {
    let text = serde_json::to_string(results).map_err(|error| error.to_string())?;
    write(&json_path(options), &text)?;
    show(options, results)
}

fn json_path(options: &Options) -> PathBuf {
    options.json.clone().unwrap_or_else(|| peers::output_folder().join("results.json"))
}

/// The results of an earlier run.
fn earlier(options: &Options) -> Result<Results, String> {
    let path = json_path(options);
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn print_rows(rows: &[Vec<String>]) {
    match rows.len() {
        0 | 1 => println!("  (none)\n"),
        _ => println!("\n{}", table::plain(rows)),
    }
}

/// Prints the tables and writes the report beside the results.
fn show(options: &Options, results: &Results) -> Result<(), String> {
    if !options.preload {
        println!("time per operation, median of {} rounds, * best of the row", results.rounds);
        print_rows(&table::of_metric(results, Metric::Time));
        println!("peak resident memory");
        print_rows(&table::of_metric(results, Metric::Peak));
        println!("latency of single operations, sampled");
        print_rows(&table::latencies(results));
        println!("anonymous memory of the idle process, one second after a burst");
        print_rows(&table::idle(results));
        println!("instructions per operation");
        print_rows(&table::instructions(results));
    }
    println!("whole programs under preloaded libraries");
    print_rows(&table::programs(results));
    if goals::can_judge(results) {
        println!("goals");
        print_rows(&goals::rows(results));
    }
    let json = json_path(options);
    let page = json.with_file_name("report.html");
    write(&page, &report::html(results))?;
    println!("results: {}\nreport:  {}", json.display(), page.display());
    if options.page {
        let page = peers::workspace().join("docs/src/performance/results.md");
        write(&page, &book::page(results))?;
        println!("page:    {}", page.display());
    }
    Ok(())
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|word| word == preload::launch::WORD) {
        return match preload::launch::main(args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => {
                eprintln!("{message}");
                ExitCode::FAILURE
            }
        };
    }
    let options = Options::parse();
    if options.list {
        list();
        return ExitCode::SUCCESS;
    }
    let done = match (options.report, options.preload) {
        (true, _) => earlier(&options).and_then(|results| show(&options, &results)),
        (false, true) => preload_programs(&options),
        (false, false) => compare(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
