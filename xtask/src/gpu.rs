//! `cargo xtask gpu`: builds and runs the benchmark of device memory pools; all arguments are its own.

use crate::workspace::{Outcome, cargo_run_release};

/// Arguments of `cargo xtask gpu`.
#[derive(clap::Args)]
pub struct Args {
    /// Arguments for the benchmark of device memory pools (`--help` after `--` lists them)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs `terrane-gpu-bench`.
pub fn main(args: &Args) -> Outcome {
    cargo_run_release("terrane-gpu-bench", &args.rest)
}
