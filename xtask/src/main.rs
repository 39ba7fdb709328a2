//! Terrane's own commands: `cargo xtask <command>`.
//!
//! ```text
//!   run      a program on Terrane, with a heap report        test     everything that has to hold, with a summary
//!   classes  the table of size classes                       loom     the models of the lock-free protocols
//!   bench    Terrane beside other allocators                 fuzz     operation sequences beside a reference model
//!   fit      placement engines compared                      gpu      device pools measured
//!   golden   the hit path, instruction by instruction        numa-vm  where blocks lie on emulated NUMA machines
//!   sanitize tests under sanitizers and Miri                 ci       `.ci/run` in a fresh clone
//!   soak     many threads for a long time, verified
//! ```
//!
//! One file per command. Commands only start other programs (mostly `cargo`), so this crate depends on no other crate
//! of the workspace and still works when one of them does not build.

mod bench;
mod ci;
mod classes;
mod fit;
mod fuzz;
mod golden;
mod gpu;
mod loom;
mod numa_vm;
mod process;
mod programs;
mod run;
mod sanitize;
mod soak;
mod test;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Terrane's own commands", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a program on Terrane (preloaded) and print the heap report when it ends
    Run(run::Args),
    /// Run every check and end with a summary line
    Test(test::Args),
    /// Do what continuous integration does: `.ci/run` in a fresh clone
    Ci(ci::Args),
    /// Print the table of size classes
    Classes(classes::Args),
    /// Run the loom models and their planted faults
    Loom(loom::Args),
    /// Compare Terrane with other allocators
    Bench(bench::Args),
    /// Run the fuzz targets for a while
    Fuzz(fuzz::Args),
    /// Run tests under sanitizers and Miri
    Sanitize(sanitize::Args),
    /// Count the instructions of the hit path
    Golden(golden::Args),
    /// Compare placement engines
    Fit(fit::Args),
    /// Boot emulated machines of several memory nodes and ask where blocks lie
    NumaVm(numa_vm::Args),
    /// Run many threads on Terrane for a long time, and verify its books at intervals
    Soak(soak::Args),
    /// Measure device memory pools
    Gpu(gpu::Args),
}

fn main() -> ExitCode {
    process::kill_children_on_interrupt();
    let result = match Cli::parse().command {
        Command::Run(args) => run::main(&args),
        Command::Test(args) => test::main(&args),
        Command::Ci(args) => ci::main(&args),
        Command::Classes(args) => classes::main(&args),
        Command::Loom(args) => loom::main(&args),
        Command::Bench(args) => bench::main(&args),
        Command::Fuzz(args) => fuzz::main(&args),
        Command::Sanitize(args) => sanitize::main(&args),
        Command::Golden(args) => golden::main(&args),
        Command::Fit(args) => fit::main(&args),
        Command::NumaVm(args) => numa_vm::main(&args),
        Command::Soak(args) => soak::main(&args),
        Command::Gpu(args) => gpu::main(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error}");
        ExitCode::FAILURE
    })
}
