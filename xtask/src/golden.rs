//! `cargo xtask golden`: counts the instructions of the hit path in compiled code and compares them with the recorded table.

use crate::workspace::{Outcome, cargo_run_release};

/// Arguments of `cargo xtask golden`.
#[derive(clap::Args)]
pub struct Args {
    /// Record the counts as they are now
    #[arg(long)]
    bless: bool,
}

/// The package that counts its own code.
pub const PACKAGE: &str = "terrane-golden";

/// Runs the count.
pub fn main(args: &Args) -> Outcome {
    let bless: Vec<String> = args.bless.then(|| "--bless".to_owned()).into_iter().collect();
    cargo_run_release(PACKAGE, &bless)
}
