//! `cargo xtask ci`: what continuous integration does, here: a fresh clone of the last commit, `.ci/run` in it.
//!
//! What is not committed is not in the clone, and nothing that was built before is used, so this finds the file that was
//! forgotten and the step that only works on a machine where it was once done by hand.

use crate::workspace::{Error, Outcome, exit_code, root, target};
use std::fs;
use std::process::{Command, Stdio};

/// Arguments of `cargo xtask ci`.
#[derive(clap::Args)]
pub struct Args {
    /// Leave the clone, with all that was built in it, for a look; it stays anyway when something fails
    #[arg(long)]
    keep: bool,
}

/// Clones, runs, and returns the exit code of `.ci/run`.
pub fn main(args: &Args) -> Outcome {
    let clone = target().join("xtask-ci");
    if clone.exists() {
        fs::remove_dir_all(&clone)
            .map_err(|cause| Error::io(format_args!("cannot clear {}", clone.display()), cause))?;
    }
    let cloned = Command::new("git")
        .args(["-c", "advice.detachedHead=false", "clone", "--quiet", "--no-hardlinks"])
        .args([root(), clone.as_path()])
        .status()
        .map_err(|cause| Error::io("cannot start git", cause))?;
    if !cloned.success() {
        return Err(Error("git could not clone the repository".into()));
    }
    let mut run = Command::new("bash");
    run.arg(".ci/run").current_dir(&clone).env("CI", "true").stdin(Stdio::null());
    // Cargo set these for this program; the run in the clone starts as from a shell.
    for name in ["CARGO", "CARGO_TARGET_DIR", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "RUSTFLAGS"] {
        run.env_remove(name);
    }
    let status = run.status().map_err(|cause| Error::io("cannot start bash", cause))?;
    if !args.keep && status.success() {
        fs::remove_dir_all(&clone)
            .map_err(|cause| Error::io(format_args!("cannot clear {}", clone.display()), cause))?;
    }
    Ok(exit_code(status))
}
