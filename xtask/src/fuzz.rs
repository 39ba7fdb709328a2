//! `cargo xtask fuzz [--long | --seconds N] [target]`: the fuzz targets, for a while.
//!
//! The targets are built on the stable toolchain with the coverage instrumentation that LLVM brings along (the flags are
//! those of `cargo fuzz --sanitizer none`) and linked with libFuzzer, so neither `cargo fuzz` nor a nightly toolchain is
//! needed; a C++ compiler is. What the fuzzer learns stays in `target/fuzz/corpus`; inputs that once failed are kept in
//! `fuzz/regressions/TARGET` and replayed first; a new finding is left in `fuzz/artifacts/TARGET`.

use crate::process::{run_logged, run_reading};
use crate::workspace::{Error, Outcome, cargo, host, library, root, target};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// The target that calls `malloc` and its relatives by name, and runs with the library preloaded.
const PRELOADED: &str = "c_abi";

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Args {
    /// Only targets whose name contains this
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Five minutes for each target
    #[arg(long, conflicts_with = "seconds")]
    long: bool,
}

/// Builds and runs the targets, prints a table; fails if one has a finding.
pub fn main(args: &Args) -> Outcome {
    let seconds = if args.long { 300 } else { args.seconds };
    let log = target().join("fuzz.log");
    let _ = fs::remove_file(&log);
    let report = run(args.target.as_deref(), seconds, &log, &mut |line| println!("{line}"))?;
    if report.targets == 0 {
        println!("no target matches");
    }
    report.failures.iter().for_each(|failure| println!("FAILED {failure}"));
    Ok(if report.failures.is_empty() && report.targets > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What came of a run over the targets.
pub struct Report {
    /// Targets that ran.
    pub targets: usize,
    /// Inputs tried, over all targets.
    pub runs: u64,
    /// What failed, one sentence each.
    pub failures: Vec<String>,
}

/// Runs every target that matches `filter` for `seconds` each and gives the table to `line`, row by row.
pub fn run(
    filter: Option<&str>,
    seconds: u64,
    log: &Path,
    line: &mut dyn FnMut(String),
) -> Result<Report, Error> {
    let mut report = Report { targets: 0, runs: 0, failures: Vec::new() };
    let names: Vec<String> =
        targets().into_iter().filter(|name| filter.is_none_or(|filter| name.contains(filter))).collect();
    if names.is_empty() {
        return Ok(report);
    }
    let folder = match build(log)? {
        Ok(folder) => folder,
        Err(why) => {
            report.failures.push(format!("the targets do not build: {why}, see {}", log.display()));
            return Ok(report);
        }
    };
    if names.iter().any(|name| name == PRELOADED) {
        let mut command = cargo(["build", "--release", "--package", "terrane-malloc"]);
        let ended = run_logged(command.env("CARGO_TERM_COLOR", "never"), log, Duration::from_secs(900))?;
        if !ended.success() {
            report.failures.push(format!(
                "libterrane.so does not build: {}, see {}",
                ended.describe(),
                log.display()
            ));
            return Ok(report);
        }
    }
    line(format!("{:<16} {:>8} {:>12}  outcome", "target", "seconds", "inputs"));
    for name in names {
        report.targets += 1;
        let artifacts = root().join("fuzz/artifacts").join(&name);
        let corpus = target().join("fuzz/corpus").join(&name);
        let regressions = root().join("fuzz/regressions").join(&name);
        for folder in [&artifacts, &corpus] {
            fs::create_dir_all(folder)
                .map_err(|cause| Error::io(format_args!("cannot make {}", folder.display()), cause))?;
        }
        let mut command = Command::new(folder.join(&name));
        command.arg(format!("-max_total_time={seconds}"));
        command.args(["-timeout=30", "-rss_limit_mb=4096", "-max_len=4096", "-print_final_stats=1"]);
        command.arg(format!("-artifact_prefix={}/", artifacts.display()));
        if name == PRELOADED {
            command.env("LD_PRELOAD", library());
        }
        command.arg(&corpus);
        if regressions.is_dir() {
            command.arg(&regressions);
        }
        let (ended, printed) = run_reading(&mut command, log, Duration::from_secs(seconds + 120))?;
        let runs = inputs(&printed);
        report.runs += runs;
        let outcome = if ended.success() && runs > 0 {
            "no finding".to_owned()
        } else {
            let finding = printed
                .lines()
                .find_map(|line| line.split("Test unit written to ").nth(1))
                .map_or_else(|| ended.describe(), |path| format!("FINDING {path}"));
            report.failures.push(format!("{name}: {finding}, see {}", log.display()));
            finding
        };
        line(format!("{name:<16} {:>8.0} {runs:>12}  {outcome}", ended.wall.as_secs_f64()));
    }
    Ok(report)
}

/// The names of the targets: the sources in `fuzz/fuzz_targets`, each a program of the package.
fn targets() -> Vec<String> {
    let Ok(entries) = fs::read_dir(root().join("fuzz/fuzz_targets")) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

/// Builds all targets; the folder of the programs, or why there are none.
fn build(log: &Path) -> Result<Result<PathBuf, String>, Error> {
    let Some(host) = host() else { return Ok(Err("rustc does not name its host".into())) };
    let flags = [
        "--cfg fuzzing",
        "-Cpasses=sancov-module",
        "-Cllvm-args=-sanitizer-coverage-level=4",
        "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
        "-Cllvm-args=-sanitizer-coverage-pc-table",
        "-Cllvm-args=-sanitizer-coverage-trace-compares",
        "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
        "-Ccodegen-units=1",
    ];
    let target = target().join("fuzz/build");
    // With a target named, build scripts and macros are compiled without these flags.
    let mut command = cargo(["build", "--release", "--bins", "--manifest-path", "fuzz/Cargo.toml"]);
    command.args(["--target", &host]).arg("--target-dir").arg(&target);
    command.env("RUSTFLAGS", flags.join(" ")).env("CARGO_TERM_COLOR", "never");
    let ended = run_logged(&mut command, log, Duration::from_secs(900))?;
    Ok(if ended.success() { Ok(target.join(host).join("release")) } else { Err(ended.describe()) })
}

/// How many inputs libFuzzer says it has tried.
fn inputs(printed: &str) -> u64 {
    printed
        .lines()
        .filter_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .filter_map(|number| number.trim().parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::inputs;

    #[test]
    fn the_number_of_inputs_is_read_from_the_statistics() {
        assert_eq!(
            inputs("Done 12 runs\nstat::number_of_executed_units: 12345\nstat::peak_rss_mb: 40\n"),
            12345
        );
        assert_eq!(inputs("==1== ERROR: libFuzzer: deadly signal\n"), 0);
    }
}
