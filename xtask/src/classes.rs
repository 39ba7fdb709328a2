//! `cargo xtask classes`: the table of size classes, with waste and utilisation.

use crate::workspace::{Error, Outcome, cargo, exit_code};

/// Arguments of `cargo xtask classes`.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the example of `terrane-slab` that prints its table.
pub fn main(_: &Args) -> Outcome {
    let status = cargo(["run", "--quiet", "--package", "terrane-slab", "--example", "classes"])
        .status()
        .map_err(|cause| Error::io("cannot start cargo", cause))?;
    Ok(exit_code(status))
}
