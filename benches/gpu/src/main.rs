//! `cargo xtask gpu`: the pools' checks and then the pools' figures, on one device, in one run.
//!
//! On a machine with a GPU everything is measured on the CUDA back-end and the table carries the device's name. With
//! `--sim` there is no device: the pools' bookkeeping is real and is timed, whatever would be the driver's or the device's
//! time is left out, and the table says so. With `--small`, or over a driver that is itself simulated, every part runs and no
//! figure is shown: that is how it is known that the program works before there is a device.

mod goals;
mod pairs;
mod peers;
mod remap;
mod traces;
mod transfers;

use clap::Parser;
use goals::{Goal, Goals, Worth};
use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::process::ExitCode;
use std::sync::Arc;
use terrane_fit::Tlsf;
use terrane_gpu::{Cuda, Device, Sim, SimConfig, conformance};

/// What to run.
#[derive(Parser)]
#[command(about = "Checks and measures device memory pools")]
pub struct Args {
    /// Run on a simulated device: bookkeeping only
    #[arg(long)]
    sim: bool,
    /// Number of the device
    #[arg(long, default_value_t = 0)]
    device: u32,
    /// Rounds of each measurement; the median is shown
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only parts whose names start so (may be given more than once): pairs, traces, remapping, transfers, peers
    #[arg(long)]
    part: Vec<String>,
    /// Skip the checks
    #[arg(long)]
    no_checks: bool,
    /// Small sizes and few calls: shows that every part works, and no figures
    #[arg(long)]
    small: bool,
    /// The Python that has PyTorch, CuPy or RMM
    #[arg(long, default_value = "python3")]
    python: String,
}

/// The device under test, and what its figures stand for.
pub struct Bench {
    device: Arc<dyn Device>,
    args: Args,
    /// There is a driver to compare with, whatever stands behind it.
    driver: bool,
    worth: Worth,
    cores: usize,
    goals: Goals,
    /// What a pair on a variable pool took: length and nanoseconds. For the peers, who are measured later.
    variable_pairs: RefCell<Vec<(u64, f64)>>,
    /// The same with 2000 free blocks.
    variable_between_holes: Cell<Option<f64>>,
}

/// The engine of the variable pools.
pub fn engine() -> Tlsf {
    Tlsf::with_granule(256)
}

/// The middle one.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Bench {
    fn new(device: Arc<dyn Device>, args: Args) -> Self {
        let info = device.info();
        let worth = if args.small || (!info.simulated && info.name.contains("simulated")) {
            Worth::Nothing
        } else if info.simulated {
            Worth::Bookkeeping
        } else {
            Worth::Device
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let driver = !info.simulated;
        let goals = Goals::new(worth, cores);
        let (variable_pairs, variable_between_holes) = (RefCell::default(), Cell::new(None));
        Self { device, args, driver, worth, cores, goals, variable_pairs, variable_between_holes }
    }

    /// Rounds of a measurement, one at least.
    pub fn rounds(&self) -> usize {
        self.args.rounds.max(1)
    }

    /// A number of calls, or of bytes; less of it if the run is to be small.
    pub fn amount(&self, full: u64, small: u64) -> u64 {
        if self.args.small { small.min(full) } else { full }
    }

    /// Nanoseconds per call of `f`, `calls` times in each round: the median of the rounds.
    ///
    /// # Errors
    /// What `f` meets: a call that fails is not a fast one.
    pub fn nanos<E: Display>(
        &self,
        calls: u64,
        mut f: impl FnMut() -> Result<(), E>,
    ) -> Result<f64, Failure> {
        let calls = self.amount(calls, 100);
        let mut rounds = Vec::new();
        for _ in 0..self.rounds() {
            let start = std::time::Instant::now();
            let result = (0..calls).try_for_each(|_| f());
            let elapsed = start.elapsed().as_nanos() as f64;
            result.map_err(|error| error.to_string())?;
            rounds.push(elapsed / calls as f64);
        }
        Ok(median(rounds))
    }

    /// A figure as it is shown: not at all if it stands for nothing.
    pub fn shown(&self, figure: impl Display) -> String {
        if self.worth == Worth::Nothing { "ran".into() } else { figure.to_string() }
    }

    /// Nanoseconds as they are shown.
    pub fn shown_nanos(&self, nanos: f64) -> String {
        let text =
            if nanos < 10_000.0 { format!("{nanos:.1} ns") } else { format!("{:.1} µs", nanos / 1e3) };
        self.shown(text)
    }

    /// Notes a figure for a goal.
    pub fn found(&self, goal: Goal, figure: f64) {
        self.goals.found(goal, figure);
    }
}

type AnyDevice = Arc<dyn Device>;

/// What was opened: the device to be measured, another one if there is any, and the first one as what it is under CUDA.
struct Opened {
    device: AnyDevice,
    other: Option<AnyDevice>,
    cuda: Option<Arc<Cuda>>,
}

fn open(args: &Args) -> Result<Opened, String> {
    if args.sim {
        let config =
            SimConfig { watch_blocks: false, devices: 2, capacity: 80 << 30, ..SimConfig::default() };
        let sim = Sim::with(config);
        return Ok(Opened { device: sim.device(0), other: Some(sim.device(1)), cuda: None });
    }
    let cuda = Cuda::open(args.device)
        .map_err(|why| format!("{why}; `--sim` measures the bookkeeping on a simulated device"))?;
    let other = Cuda::open(u32::from(args.device == 0)).ok().map(|other| other as AnyDevice);
    Ok(Opened { device: cuda.clone(), other, cuda: Some(cuda) })
}

/// The pools' checks; how many failed.
fn check(opened: &Opened) -> usize {
    let mut outcomes = conformance::run(&opened.device, engine);
    match &opened.other {
        Some(other) => outcomes.extend(conformance::run_between([&opened.device, other], engine)),
        None => println!("(one device: nothing is copied between devices)"),
    }
    if let Some(cuda) = &opened.cuda {
        outcomes.extend(conformance::run_on_cuda(cuda, engine));
    }
    for outcome in &outcomes {
        println!("check {:<40} {}", outcome.name, outcome.failure.as_deref().unwrap_or("ok"));
    }
    outcomes.iter().filter(|outcome| outcome.failure.is_some()).count()
}

fn main() -> ExitCode {
    let args = Args::parse();
    let opened = match open(&args) {
        Ok(opened) => opened,
        Err(why) => {
            eprintln!("no device: {why}");
            return ExitCode::FAILURE;
        }
    };
    let bench = Bench::new(opened.device.clone(), args);
    let info = bench.device.info();
    println!("device: {} ({} MiB)", info.name, info.total_bytes >> 20);
    println!("processor: {} cores", bench.cores);
    match bench.worth {
        Worth::Device => {}
        Worth::Bookkeeping => println!(
            "SIMULATED: times below are of the pools' bookkeeping on this CPU. They are no device's times."
        ),
        Worth::Nothing => println!("REHEARSAL: every part runs, and none is measured."),
    }
    let mut failed = 0;
    if !bench.args.no_checks {
        failed += check(&opened);
    }
    type Part = fn(&Bench) -> Result<(), Failure>;
    let parts: [(&str, Part); 5] = [
        ("pairs", pairs::run),
        ("traces", traces::run),
        ("remapping", remap::run),
        ("transfers", transfers::run),
        ("peers", peers::run),
    ];
    let wanted =
        |name: &str| bench.args.part.is_empty() || bench.args.part.iter().any(|part| name.starts_with(part));
    for (name, part) in parts.into_iter().filter(|(name, _)| wanted(name)) {
        println!();
        if let Err(error) = part(&bench) {
            println!("{name}: FAILED: {error}");
            failed += 1;
        }
    }
    println!();
    bench.goals.print();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Why a part failed.
pub type Failure = Box<dyn std::error::Error>;
