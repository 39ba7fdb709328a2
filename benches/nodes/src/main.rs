//! Where blocks lie on a machine of several memory nodes: threads bound to nodes allocate, free each other's blocks, end and
//! leave slabs behind, and are moved to other nodes; after every round the kernel is asked for the node of each page.
//!
//! ```text
//! terrane-nodes              nodes kept apart (terrane::set_numa), goals judged: exit code 0 if all are met, 3 on one node
//! terrane-nodes --numa off   the same without, for comparison; nothing is judged
//! ```
//!
//! As the first process of a machine (`/init`) it does both and switches the machine off.

mod kernel;
mod load;
mod rounds;

use clap::{Parser, ValueEnum};
use std::process::ExitCode;
use terrane_pages::Topology;

#[global_allocator]
static GLOBAL: terrane::Terrane = terrane::Terrane;

#[derive(Parser)]
#[command(about = "Where Terrane's blocks lie on a machine of several memory nodes")]
struct Args {
    /// Whether memory of nodes is kept apart
    #[arg(long, value_enum, default_value = "on")]
    numa: Switch,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        first_process();
    }
    let is_on = Args::parse().numa == Switch::On;
    terrane::set_numa(is_on);
    let topology = Topology::system();
    let nodes: Vec<_> =
        topology.nodes().iter().filter(|node| !node.cpus.is_empty() && node.memory_bytes > 0).collect();
    for node in &nodes {
        println!("node {}: processors {:?}, {} MiB", node.id, node.cpus, node.memory_bytes >> 20);
    }
    if nodes.len() < 2 {
        println!("this machine has one node: nothing to tell apart");
        return ExitCode::from(3);
    }
    println!("nodes kept apart: {}", if is_on { "on" } else { "off (for comparison, not judged)" });
    match rounds::play(&nodes) {
        Ok(unmet) if !is_on => {
            println!("comparison: {} goals would not be met", unmet.len());
            ExitCode::SUCCESS
        }
        Ok(unmet) if unmet.is_empty() => {
            println!("verdict: every goal is met");
            ExitCode::SUCCESS
        }
        Ok(unmet) => {
            unmet.iter().for_each(|goal| println!("not met: {goal}"));
            println!("verdict: {} goals are not met", unmet.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("verdict: the kernel did not answer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Plays the comparison and the judged run as programs of their own, so that neither starts with the other's memory.
fn first_process() -> ! {
    if let Err(error) = kernel::mount_what_is_read() {
        println!("cannot mount /proc or /sys: {error}");
        kernel::power_off();
    }
    for numa in ["off", "on"] {
        match std::process::Command::new("/proc/self/exe").args(["--numa", numa]).status() {
            Ok(status) => println!("ended with {status}"),
            Err(error) => println!("cannot start again: {error}"),
        }
    }
    kernel::power_off()
}
