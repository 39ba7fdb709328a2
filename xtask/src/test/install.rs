//! Programs and headers that a check wants: found, installed where that is possible, or named as missing.
//!
//! Installing is tried only as root with `apt-get` at hand, with time limits; `apt-get update` runs at most once.

use crate::process::run_logged;
use crate::workspace::which;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// Something that has to be on the machine.
#[derive(Clone, Copy)]
pub enum Wanted {
    /// A program on `PATH`, and the Debian package that has it.
    Program(&'static str, &'static str),
    /// A file, and the Debian package that has it.
    File(&'static str, &'static str),
}

impl Wanted {
    fn is_there(self) -> bool {
        match self {
            Self::Program(program, _) => which(program).is_some(),
            Self::File(path, _) => Path::new(path).exists(),
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Program(_, package) | Self::File(_, package) => package,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Program(name, _) | Self::File(name, _) => name,
        }
    }
}

/// Makes sure that everything in `wanted` is there; otherwise says what is missing, as the reason of a skip.
pub fn ensure(wanted: &[Wanted], log: &Path) -> Result<(), String> {
    let missing = || wanted.iter().copied().filter(|want| !want.is_there()).collect::<Vec<_>>();
    let before = missing();
    if before.is_empty() {
        return Ok(());
    }
    let refusal = install(&before, log).err();
    let after = missing();
    if after.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = after.iter().map(|want| want.name()).collect();
    Err(format!(
        "{} is not installed ({})",
        names.join(", "),
        refusal.unwrap_or("its package does not hold it")
    ))
}

fn install(wanted: &[Wanted], log: &Path) -> Result<(), &'static str> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return Err("only root can install it");
    }
    if which("apt-get").is_none() {
        return Err("no apt-get to install it with");
    }
    static UPDATED: OnceLock<bool> = OnceLock::new();
    let updated = *UPDATED.get_or_init(|| apt(&["update", "-qq"], log, 120));
    let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
    args.extend(wanted.iter().map(|want| want.package()));
    if apt(&args, log, 300) {
        Ok(())
    } else if updated {
        Err("apt-get could not install it")
    } else {
        Err("apt-get update failed")
    }
}

fn apt(args: &[&str], log: &Path, seconds: u64) -> bool {
    // RUNLEVEL keeps packages with a service from starting it.
    let mut command = Command::new("apt-get");
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    run_logged(&mut command, log, Duration::from_secs(seconds)).is_ok_and(|ended| ended.success())
}
