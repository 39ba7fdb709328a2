//! The worker: one workload, once, under the one allocator it was built with; one line of JSON at the end.
//!
//! ```text
//! terrane-bench-worker WORKLOAD THREADS SCALE [latency]
//! ```

mod allocator;
mod block;
mod gang;
mod memory;
mod probe;
mod rng;
mod workloads;

use gang::Plan;
use probe::{Clock, Quiet, Sampled};
use terrane_bench::record::Record;

fn usage() -> ! {
    eprintln!(
        "usage: terrane-bench-worker WORKLOAD THREADS SCALE [latency]   (built with {})",
        allocator::NAME
    );
    std::process::exit(2);
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(name), Some(threads), Some(scale)) = (args.next(), args.next(), args.next()) else { usage() };
    let (Ok(threads), Ok(scale)) = (threads.parse(), scale.parse()) else { usage() };
    let latency = args.next().is_some_and(|word| word == "latency");
    let plan = Plan { threads, scale };

    let before = memory::resident();
    let (faults, switches) = memory::faults_and_switches();
    let measured =
        if latency { workloads::run::<Sampled>(&name, plan) } else { workloads::run::<Quiet>(&name, plan) };
    let Some(measured) = measured else { usage() };
    let (faults_after, switches_after) = memory::faults_and_switches();
    let (after, peak) = (memory::resident(), memory::peak());

    let clock = measured.samples.as_ref().map(|_| Clock::calibrate());
    let samples = measured.samples.as_ref().zip(clock.as_ref());
    let record = Record {
        ops: measured.ops,
        elapsed_ns: measured.elapsed_ns,
        peak_bytes: peak,
        end_bytes: after.rss,
        end_anon_bytes: after.anon.saturating_sub(before.anon),
        idle: measured.idle,
        minor_faults: faults_after - faults,
        switches: switches_after - switches,
        alloc_latency: samples.map(|(s, clock)| s.alloc.in_nanoseconds(clock)).unwrap_or_default(),
        free_latency: samples.map(|(s, clock)| s.free.in_nanoseconds(clock)).unwrap_or_default(),
    };
    match serde_json::to_string(&record) {
        Ok(line) => println!("{line}"),
        Err(error) => {
            eprintln!("the record could not be written: {error}");
            std::process::exit(1);
        }
    }
}
