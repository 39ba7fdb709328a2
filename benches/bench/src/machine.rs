//! What the machine is, as far as it matters to a comparison.
//!
//! Invariant: only what a reader needs to judge the figures; no host names, paths or users.

use std::process::Command;

/// The label of the load average when the run began.
pub const LOAD: &str = "load at the start";

fn file(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn after(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// Label and value of each known property.
pub fn describe() -> Vec<(String, String)> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = after(&file("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.split_ascii_whitespace().next()?.parse::<u64>().ok())
        .map(|kb| format!("{:.0} GiB", kb as f64 / (1 << 20) as f64));
    let huge = file("/sys/kernel/mm/transparent_hugepage/enabled");
    let huge = huge.split('[').nth(1).and_then(|text| text.split(']').next()).map(str::to_owned);
    // Above zero, something else was running when the benchmark began.
    let load = file("/proc/loadavg").split_ascii_whitespace().next().map(str::to_owned);
    let all = [
        ("date", said("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
        ("processor", after(&file("/proc/cpuinfo"), "model name")),
        ("cores", Some(cores.to_string())),
        ("memory", memory),
        // The version alone: what follows it names whoever built the kernel.
        ("kernel", said("uname", &["-sr"]).and_then(|text| Some(text.split('-').next()?.to_owned()))),
        ("transparent huge pages", huge),
        (LOAD, load),
        ("C library", said("getconf", &["GNU_LIBC_VERSION"])),
        ("compiler", said("rustc", &["--version"])),
        ("source", said("git", &["describe", "--always", "--dirty"])),
    ];
    all.into_iter().filter_map(|(label, value)| Some((label.to_owned(), value?))).collect()
}
