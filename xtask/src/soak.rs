//! `cargo xtask soak --minutes N`: many threads on Terrane for a long time, with the allocator's books verified at intervals.
//!
//! The program is the example `soak` of the crate `terrane`; this command builds it, shows that it finds a planted fault, and
//! runs it.

use crate::workspace::{Error, Outcome, cargo, target};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Arguments of `cargo xtask soak`.
#[derive(clap::Args)]
pub struct Args {
    /// How long
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Threads at one time
    #[arg(long, default_value_t = 8)]
    threads: u64,
}

/// Builds it, plants a fault, runs it.
pub fn main(args: &Args) -> Outcome {
    let status = build().status().map_err(|cause| Error::io("cannot start cargo", cause))?;
    if !status.success() {
        return Ok(ExitCode::FAILURE);
    }
    let planted = Command::new(program()).arg("--plant").output();
    let planted = planted.map_err(|cause| Error::io("cannot start the example", cause))?;
    if planted.status.success() {
        eprintln!("xtask: a write to a freed block was not found");
        return Ok(ExitCode::FAILURE);
    }
    let mut command = run(args.minutes * 60, args.threads);
    let ended = command.status().map_err(|cause| Error::io("cannot start the example", cause))?;
    Ok(if ended.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The command that builds the program.
pub fn build() -> Command {
    let mut command = cargo(["build", "--release", "--package", "terrane", "--example", "soak"]);
    command.env("CARGO_TERM_COLOR", "never");
    command
}

/// The command that runs it.
pub fn run(seconds: u64, threads: u64) -> Command {
    let mut command = Command::new(program());
    command.args(["--seconds", &seconds.to_string(), "--threads", &threads.to_string()]);
    command
}

/// Where it is.
pub fn program() -> PathBuf {
    target().join("release/examples/soak")
}
