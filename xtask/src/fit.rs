//! `cargo xtask fit`: builds and runs the benchmark of placement engines; all arguments are its own.

use crate::workspace::{Outcome, cargo_run_release};

/// Arguments of `cargo xtask fit`.
#[derive(clap::Args)]
pub struct Args {
    /// Arguments for the benchmark of placement engines (`--help` after `--` lists them)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs `terrane-fit-bench`.
pub fn main(args: &Args) -> Outcome {
    cargo_run_release("terrane-fit-bench", &args.rest)
}
