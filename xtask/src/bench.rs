//! `cargo xtask bench`: builds and runs the allocator benchmark; all arguments are its own.

use crate::workspace::{Outcome, cargo_run_release};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Arguments for the allocator benchmark (`--help` after `--` lists them)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs `terrane-bench`.
pub fn main(args: &Args) -> Outcome {
    cargo_run_release("terrane-bench", &args.rest)
}
