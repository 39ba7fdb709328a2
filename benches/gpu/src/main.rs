//! `cargo xtask gpu`: the pools' checks and then the pools' figures, on one device, in one run.
//!
//! On a machine with a GPU everything is measured on the CUDA back-end and the table carries the device's name. With
//! `--sim` there is no device: the pools' bookkeeping is real and is timed, whatever would be the driver's or the device's
//! time is left out, and the table says so.

mod pairs;
mod peers;
mod remap;
mod traces;
mod transfers;

use clap::Parser;
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
    /// Only parts whose names start so: pairs, traces, remapping, transfers, peers
    #[arg(long, default_value = "")]
    part: String,
    /// Skip the checks
    #[arg(long)]
    no_checks: bool,
}

/// The device under test, and whether its times mean anything.
pub struct Bench {
    device: Arc<dyn Device>,
    rounds: usize,
    real: bool,
}

/// The engine of the variable pools.
pub fn engine() -> Tlsf {
    Tlsf::with_granule(256)
}

impl Bench {
    /// Nanoseconds per call of `f`, `calls` times in each round: the median of the rounds.
    pub fn nanos(&self, calls: u32, mut f: impl FnMut()) -> f64 {
        let mut rounds: Vec<f64> = (0..self.rounds.max(1))
            .map(|_| {
                let start = std::time::Instant::now();
                (0..calls).for_each(|_| f());
                start.elapsed().as_nanos() as f64 / f64::from(calls)
            })
            .collect();
        rounds.sort_by(f64::total_cmp);
        rounds[rounds.len() / 2]
    }
}

fn open(args: &Args) -> Result<Arc<dyn Device>, String> {
    if args.sim {
        let config = SimConfig { watch_blocks: false, capacity: 80 << 30, ..SimConfig::default() };
        return Ok(Sim::with(config).device(0));
    }
    match Cuda::open(args.device) {
        Ok(device) => Ok(device),
        Err(why) => Err(format!("{why}; `--sim` measures the bookkeeping on a simulated device")),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let device = match open(&args) {
        Ok(device) => device,
        Err(why) => {
            eprintln!("no device: {why}");
            return ExitCode::FAILURE;
        }
    };
    let bench = Bench { rounds: args.rounds, real: !device.info().simulated, device };
    let info = bench.device.info();
    println!("device: {} ({} MiB)", info.name, info.total_bytes >> 20);
    if !bench.real {
        println!(
            "SIMULATED: times below are of the pools' bookkeeping on this CPU. They are no device's times."
        );
    }
    let mut failed = 0;
    if !args.no_checks {
        for outcome in conformance::run(&bench.device, engine) {
            let verdict = outcome.failure.as_deref().unwrap_or("ok");
            failed += usize::from(outcome.failure.is_some());
            println!("check {:<36} {verdict}", outcome.name);
        }
    }
    type Part = fn(&Bench) -> Result<(), Failure>;
    let parts: [(&str, Part); 5] = [
        ("pairs", pairs::run),
        ("traces", traces::run),
        ("remapping", remap::run),
        ("transfers", transfers::run),
        ("peers", peers::run),
    ];
    for (name, part) in parts.into_iter().filter(|(name, _)| name.starts_with(&args.part)) {
        println!();
        if let Err(error) = part(&bench) {
            println!("{name}: FAILED: {error}");
            failed += 1;
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Why a part failed.
pub type Failure = Box<dyn std::error::Error>;
