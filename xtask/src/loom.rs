//! `cargo xtask loom [filter]`: the models of the lock-free protocols, each with its planted fault.
//!
//! What a model file is: `crates/*/tests/loom*.rs`, compiled with `--cfg loom`. A test `model_NAME` explores the
//! protocol and prints `model NAME threads=N iterations=N`; a test whose name begins with `fault_NAME` runs the same
//! model over code with a planted fault and passes only if loom found it. A model without a fault that is caught, and a
//! model that prints no line, fail: nobody would know whether such a model can see anything.
//!
//! Every test runs in a process of its own, so that its time is known and a model that never ends can be stopped.

use crate::process::{Ended, run_reading};
use crate::workspace::{Error, Outcome, cargo, crates, root, target};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Arguments of `cargo xtask loom`.
#[derive(clap::Args)]
pub struct Args {
    /// Only models whose name contains this
    filter: Option<String>,
    /// Seconds after which a model counts as failed
    #[arg(long, default_value_t = 300)]
    limit: u64,
}

/// Runs the models, prints the table; fails if a model fails or a planted fault is not caught.
pub fn main(args: &Args) -> Outcome {
    let report =
        run(args.filter.as_deref(), Duration::from_secs(args.limit), &mut |line| println!("{line}"))?;
    if report.models == 0 {
        println!("no model matches");
    }
    Ok(if report.failures.is_empty() && report.models > 0 {
        ExitCode::SUCCESS
    } else {
        for failure in &report.failures {
            println!("FAILED {failure}");
        }
        ExitCode::FAILURE
    })
}

/// What came of a run over the models.
pub struct Report {
    /// Models that ran.
    pub models: usize,
    /// What failed, one sentence each.
    pub failures: Vec<String>,
}

/// Runs every model that matches `filter` and gives the table to `line`, row by row.
pub fn run(filter: Option<&str>, limit: Duration, line: &mut dyn FnMut(String)) -> Result<Report, Error> {
    let mut report = Report { models: 0, failures: Vec::new() };
    let log = target().join("loom.log");
    let _ = fs::remove_file(&log);
    line(format!("{:<44} {:>7} {:>11} {:>8}  planted fault", "model", "threads", "iterations", "seconds"));
    for (package, file) in model_files() {
        let path = root().join("crates").join(&package).join("tests").join(format!("{file}.rs"));
        let text = fs::read_to_string(&path)
            .map_err(|cause| Error::io(format_args!("cannot read {}", path.display()), cause))?;
        if !filter.is_none_or(|filter| package.contains(filter) || may_have(&text, filter)) {
            continue;
        }
        let binary = match build(&package, &file, &log)? {
            Ok(binary) => binary,
            Err(why) => {
                report.failures.push(format!("{package} {file}: {why}, see {}", log.display()));
                continue;
            }
        };
        let names = list(&binary)?;
        for model in names.iter().filter_map(|name| Some((name, base(name, "model_")?))) {
            let (test, name) = model;
            if !filter.is_none_or(|filter| test.contains(filter) || package.contains(filter)) {
                continue;
            }
            report.models += 1;
            let ran = one(&binary, &package, test, &log, limit)?;
            let facts = facts(&ran.output);
            let mut problem = None;
            if !ran.ended.success() {
                problem = Some(format!("model {test} of {package}: {}", ran.ended.describe()));
            } else if facts.is_none() {
                problem =
                    Some(format!("model {test} of {package} prints no `model NAME threads=N iterations=N`"));
            }

            let twins: Vec<&String> = names
                .iter()
                .filter(|other| base(other, "fault_").is_some_and(|fault| is_twin(fault, name, &names)))
                .collect();
            let mut caught = 0;
            for twin in &twins {
                let ran = one(&binary, &package, twin, &log, limit)?;
                if ran.ended.success() {
                    caught += 1;
                } else {
                    report.failures.push(format!("{twin} of {package}: the planted fault was not caught"));
                }
            }
            if twins.is_empty() {
                report
                    .failures
                    .push(format!("model {test} of {package} has no planted fault (no test fault_{name}…)"));
            }
            let verdict = match (caught, twins.len()) {
                (0, 0) => "none planted".to_owned(),
                (1, 1) => "fault caught".to_owned(),
                (caught, planted) if caught == planted => format!("fault caught ({caught} of {planted})"),
                (caught, planted) => format!("FAULT MISSED ({caught} of {planted} caught)"),
            };
            let (threads, iterations) = facts.unwrap_or(("?", "?"));
            line(format!(
                "{:<44} {threads:>7} {iterations:>11} {:>8.1}  {verdict}",
                format!("{package} {name}"),
                ran.ended.wall.as_secs_f64(),
            ));
            report.failures.extend(problem);
        }
    }
    Ok(report)
}

/// The model files as (package, test target), sorted.
fn model_files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for package in crates() {
        let Ok(entries) = fs::read_dir(root().join("crates").join(&package).join("tests")) else { continue };
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            if stem.starts_with("loom") && path.extension().is_some_and(|extension| extension == "rs") {
                files.push((package.clone(), stem));
            }
        }
    }
    files.sort();
    files
}

/// Compiles one model file; the path of its test program, or why there is none.
fn build(package: &str, test: &str, log: &Path) -> Result<Result<PathBuf, String>, Error> {
    let target = target().join("loom");
    let mut flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    flags.push_str(" --cfg loom");
    let mut command = cargo(["test", "--release", "--no-run", "--package", package, "--test", test]);
    command.arg("--target-dir").arg(&target).env("RUSTFLAGS", flags.trim()).env("CARGO_TERM_COLOR", "never");
    let (ended, output) = run_reading(&mut command, log, Duration::from_secs(900))?;
    if !ended.success() {
        return Ok(Err(format!("does not compile ({})", ended.describe())));
    }
    // cargo names the program in its last line: `Executable tests/loom.rs (target/loom/release/deps/loom-…)`.
    let path = output
        .lines()
        .rev()
        .find(|line| line.trim_start().starts_with("Executable"))
        .and_then(|line| line.rsplit_once('(')?.1.strip_suffix(')'))
        .map(|path| root().join(path));
    Ok(path.ok_or_else(|| "cargo named no test program".to_owned()))
}

/// The names of the tests in `binary`.
fn list(binary: &Path) -> Result<Vec<String>, Error> {
    let output = Command::new(binary)
        .args(["--list", "--format", "terse"])
        .output()
        .map_err(|cause| Error::io(format_args!("cannot start {}", binary.display()), cause))?;
    let mut names: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.strip_suffix(": test").map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

struct Ran {
    ended: Ended,
    output: String,
}

fn one(binary: &Path, package: &str, test: &str, log: &Path, limit: Duration) -> Result<Ran, Error> {
    let mut command = Command::new(binary);
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .current_dir(root().join("crates").join(package));
    let (ended, output) = run_reading(&mut command, log, limit)?;
    Ok(Ran { ended, output })
}

/// Whether a file with this text may have a model whose name contains `filter`: it need not be compiled if not.
fn may_have(text: &str, filter: &str) -> bool {
    // A name stands in the file as it is; a path to it need not.
    text.contains(filter) || filter.contains(':')
}

/// The last path segment of `test` without `prefix`, if it begins with it.
fn base<'a>(test: &'a str, prefix: &str) -> Option<&'a str> {
    test.rsplit("::").next()?.strip_prefix(prefix)
}

/// Whether `fault` is planted in the model `name`: it is the longest model name that `fault` begins with.
fn is_twin(fault: &str, name: &str, tests: &[String]) -> bool {
    begins_with_word(fault, name)
        && !tests
            .iter()
            .filter_map(|test| base(test, "model_"))
            .any(|other| other.len() > name.len() && begins_with_word(fault, other))
}

fn begins_with_word(text: &str, word: &str) -> bool {
    text.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

/// Threads and iterations from a line `model NAME threads=N iterations=N`.
fn facts(output: &str) -> Option<(&str, &str)> {
    let line = output
        .lines()
        .find_map(|line| line.find("model ").map(|at| &line[at..]).filter(|l| l.contains("threads=")))?;
    let value = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key));
    let (threads, iterations) = (value("threads=")?, value("iterations=")?);
    let is_positive = |text: &str| text.parse::<u64>().is_ok_and(|number| number > 0);
    (is_positive(threads) && is_positive(iterations)).then_some((threads, iterations))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_line_is_understood_after_the_harness_prefix() {
        let output = "\nrunning 1 test\ntest model_push ... model push threads=3 iterations=1204\nok\n";
        assert_eq!(facts(output), Some(("3", "1204")));
    }

    #[test]
    fn a_file_without_the_name_that_is_asked_for_need_not_be_compiled() {
        let text = "models! { model_push_collect: push_collect, threads 4 }";
        assert!(
            may_have(text, "push_coll") && may_have(text, "inner::model_push") && !may_have(text, "shelf")
        );
    }

    #[test]
    fn a_model_that_explored_nothing_is_no_model() {
        assert_eq!(facts("model push threads=3 iterations=0\n"), None);
        assert_eq!(facts("ok\n"), None);
    }

    #[test]
    fn a_fault_belongs_to_the_model_with_the_longest_matching_name() {
        let tests: Vec<String> =
            ["model_push", "model_push_collect", "fault_push_relaxed", "fault_push_collect_lost"]
                .map(str::to_owned)
                .to_vec();
        assert!(is_twin("push_relaxed", "push", &tests));
        assert!(is_twin("push_collect_lost", "push_collect", &tests));
        assert!(!is_twin("push_collect_lost", "push", &tests));
        assert!(!is_twin("pushed", "push", &tests));
    }
}
