//! `cargo xtask bench`: builds and runs the allocator benchmark, or that of pools; all arguments are theirs.

use crate::workspace::{Outcome, cargo_run_release};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Compare object pools instead of allocators
    #[arg(long)]
    pools: bool,
    /// Arguments for the allocator benchmark (`--help` after `--` lists them)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs `terrane-bench`.
pub fn main(args: &Args) -> Outcome {
    cargo_run_release(if args.pools { "terrane-pools-bench" } else { "terrane-bench" }, &args.rest)
}
