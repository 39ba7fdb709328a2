//! `cargo xtask numa-vm [--nodes N]`: an emulated machine of several memory nodes, and where Terrane's blocks lie on it.
//!
//! ```text
//!   qemu (of this machine, or unpacked from Debian's packages) ── -numa node … ── Debian's kernel
//!                                                                                    └ initramfs: /init = terrane-nodes
//! ```
//!
//! `benches/nodes`, linked statically, is the first and only program of the machine. It binds threads to nodes, allocates,
//! frees across nodes, steals and moves threads, and reads the node of every page back from the kernel: once with nodes kept
//! apart, which is judged, and once without, for comparison. Processors are emulated (TCG), so no rights and no hardware are
//! needed; timings on such a machine mean nothing.
//!
//! Nothing is installed: packages are unpacked under `target/numa-vm`.

mod cpio;
mod packages;

use crate::process::run_reading;
use crate::test::{Room, Verdict};
use crate::workspace::{Error, Outcome, cargo, host, target};
use packages::Machine;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Memory of a node in MiB.
const NODE_MIB: usize = 512;
/// Processors of a node.
const NODE_CPUS: usize = 2;
/// What the program prints at the end of a run that is as it should be.
const MET: &str = "verdict: every goal is met";

/// Arguments of `cargo xtask numa-vm`.
#[derive(clap::Args)]
pub struct Args {
    /// Nodes of the machine; without it, a machine of 2 and one of 4
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=8))]
    nodes: Option<u8>,
}

/// Boots the machines and prints what they print; fails if a goal is not met, or a machine cannot be made.
pub fn main(args: &Args) -> Outcome {
    let log = target().join("numa-vm.log");
    let _ = fs::remove_file(&log);
    let sizes = args.nodes.map_or(vec![2, 4], |nodes| vec![nodes.into()]);
    Ok(match run(&sizes, &log, &mut |line| println!("{line}"))? {
        Verdict::Passed(remark) => {
            println!("{remark}");
            ExitCode::SUCCESS
        }
        Verdict::Skipped(why) => {
            println!("skipped: {why}");
            ExitCode::SUCCESS
        }
        Verdict::Failed(why) => {
            println!("FAILED: {why}, see {}", log.display());
            ExitCode::FAILURE
        }
        Verdict::Tests { .. } => ExitCode::FAILURE,
    })
}

/// The check of `cargo xtask test --full`.
pub fn check(room: &Room) -> Result<Verdict, Error> {
    run(&[2, 4], &room.log, &mut |line| room.note(&line))
}

/// Boots a machine of each size and gives its tables to `line`.
fn run(sizes: &[usize], log: &Path, line: &mut dyn FnMut(String)) -> Result<Verdict, Error> {
    let machine = match packages::machine(&folder(), log)? {
        Ok(machine) => machine,
        Err(why) => return Ok(Verdict::Skipped(why)),
    };
    let program = match build(log)? {
        Ok(program) => program,
        Err(why) => return Ok(Verdict::Failed(why)),
    };
    let initramfs = folder().join("initramfs.cpio");
    let read = |path: &Path| {
        fs::read(path).map_err(|cause| Error::io(format_args!("cannot read {}", path.display()), cause))
    };
    fs::write(&initramfs, cpio::archive(&read(&program)?))
        .map_err(|cause| Error::io(format_args!("cannot write {}", initramfs.display()), cause))?;

    let mut unmet = Vec::new();
    for &nodes in sizes {
        let mut command = boot(&machine, &initramfs, nodes);
        let limit = Duration::from_secs(180 + 60 * nodes as u64);
        let (ended, printed) = run_reading(&mut command, log, limit)?;
        line(format!("\nmachine of {nodes} nodes, {:.0} s:", ended.wall.as_secs_f64()));
        for printed in said(&printed) {
            line(printed.to_owned());
        }
        if !printed.contains(MET) {
            unmet.push(format!("on {nodes} nodes ({})", ended.describe()));
        }
    }
    Ok(if unmet.is_empty() {
        let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
        Verdict::Passed(format!("every goal is met on machines of {} nodes", sizes.join(" and ")))
    } else {
        Verdict::Failed(format!("not every goal is met {}", unmet.join(", ")))
    })
}

fn folder() -> PathBuf {
    target().join("numa-vm")
}

/// Builds the program that is the machine's first process, without a need for libraries.
fn build(log: &Path) -> Result<Result<PathBuf, String>, Error> {
    let Some(host) = host() else { return Ok(Err("rustc does not name its host".into())) };
    let mut command = cargo(["build", "--release", "--package", "terrane-nodes", "--target", &host]);
    let target = folder().join("build");
    command.arg("--target-dir").arg(&target);
    // With a target named, build scripts and macros are compiled without this flag.
    command.env("RUSTFLAGS", "-Ctarget-feature=+crt-static").env("CARGO_TERM_COLOR", "never");
    let (ended, _) = run_reading(&mut command, log, Duration::from_secs(600))?;
    Ok(if ended.success() {
        Ok(target.join(host).join("release/terrane-nodes"))
    } else {
        Err(format!("terrane-nodes does not build: {}", ended.describe()))
    })
}

/// The command that boots a machine of `nodes` nodes, equally far from each other.
fn boot(machine: &Machine, initramfs: &Path, nodes: usize) -> Command {
    let mut command = machine.qemu();
    command.args(["-machine", "q35,hpet=off", "-accel", "tcg", "-cpu", "max", "-m"]);
    command.arg((nodes * NODE_MIB).to_string()).arg("-smp");
    command.arg(format!("{},sockets={nodes},cores={NODE_CPUS}", nodes * NODE_CPUS));
    for node in 0..nodes {
        let (first, last) = (node * NODE_CPUS, (node + 1) * NODE_CPUS - 1);
        command.arg("-object").arg(format!("memory-backend-ram,id=memory{node},size={NODE_MIB}M"));
        command.arg("-numa").arg(format!("node,nodeid={node},memdev=memory{node},cpus={first}-{last}"));
    }
    command.arg("-kernel").arg(&machine.kernel).arg("-initrd").arg(initramfs);
    // The kernel must not move pages itself: what is read is where they were placed. `panic=-1` ends a machine
    // that fails; a busy host makes the emulated timer late, which the kernel would take for a broken one.
    command.arg("-append").arg(
        "console=ttyS0 quiet loglevel=1 panic=-1 nokaslr no_timer_check numa_balancing=disable \
         transparent_hugepage=madvise tsc=reliable random.trust_cpu=on",
    );
    command.args(["-nographic", "-no-reboot", "-net", "none", "-monitor", "none", "-serial", "stdio"]);
    command
}

/// The lines of the program among those of the firmware and the kernel.
fn said(printed: &str) -> impl Iterator<Item = &str> {
    let starts = printed.find("node 0:").unwrap_or(0);
    printed[starts..].lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('['))
}

#[cfg(test)]
mod tests {
    use super::said;

    #[test]
    fn what_firmware_and_kernel_print_is_left_out() {
        let printed =
            "\u{1b}cSeaBIOS\r\nBooting\r\n\u{1b}[2Jnode 0: x\r\nrow\r\n[  1.5] reboot: Power down\r\n";
        assert_eq!(said(printed).collect::<Vec<_>>(), ["node 0: x", "row"]);
    }
}
