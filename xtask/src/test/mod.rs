//! `cargo xtask test [--full] [filter]`: every check, one line each, and a summary line at the end.
//!
//! A check passes, fails, or is skipped with the reason in its line; nothing is skipped silently. What a check prints
//! goes to `target/xtask-test/NAME.log`, and its end is shown when the check fails. The last line is always
//! `N passed, N failed, N skipped`: tests that cargo ran count one each, every other check counts one.

mod book;
mod forks;
mod install;
mod schedules;
mod soak;
mod steps;
mod valgrind;

pub use install::{Wanted, ensure};
pub use steps::build_library;

use crate::workspace::{Error, Outcome, target};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Only checks whose name contains this
    filter: Option<String>,
    /// The long forms of the checks as well
    #[arg(long)]
    full: bool,
    /// List the checks and end
    #[arg(long)]
    list: bool,
}

/// Where a check works.
pub struct Room {
    /// The file that everything its programs print goes to.
    pub log: PathBuf,
    /// A folder of its own, empty at the start.
    pub scratch: PathBuf,
    /// Whether the long form is wanted.
    pub full: bool,
}

impl Room {
    /// Adds a line to the log.
    pub fn note(&self, line: &str) {
        let file = fs::File::options().create(true).append(true).open(&self.log);
        if let Ok(mut file) = file {
            // A note that cannot be written is missing from the log only; the verdict does not depend on it.
            let _ = writeln!(file, "{line}");
        }
    }

    /// All that is in the log.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

/// What came of a check.
pub enum Verdict {
    /// It holds; a remark for its line.
    Passed(String),
    /// It does not hold, and why.
    Failed(String),
    /// It could not be tried, and why.
    Skipped(String),
    /// It ran this many tests.
    Tests {
        /// That passed.
        passed: u64,
        /// That failed; with none of these and `Some` problem the run as a whole failed.
        failed: u64,
        /// That were left out.
        skipped: u64,
        /// What went wrong beside failed tests.
        problem: Option<String>,
    },
}

/// The function behind a check.
pub type Run = Box<dyn Fn(&Room) -> Result<Verdict, Error>>;

/// A named check.
pub struct Check {
    /// Its name, also that of its log; words joined by `-`.
    pub name: &'static str,
    /// Why it runs with `--full` only, if it does.
    pub full_only: Option<&'static str>,
    /// What it does.
    pub run: Run,
}

impl Check {
    /// A check from a name and a function.
    pub fn new(name: &'static str, run: impl Fn(&Room) -> Result<Verdict, Error> + 'static) -> Self {
        Self { name, full_only: None, run: Box::new(run) }
    }

    /// The same check, for `--full` only (or called by its whole name), because it `why`: "takes five minutes".
    pub fn only_full(self, why: &'static str) -> Self {
        Self { full_only: Some(why), ..self }
    }

    /// Why these arguments leave the check out, if they do.
    fn left_out(&self, args: &Args) -> Option<&'static str> {
        let is_named = args.filter.as_deref() == Some(self.name);
        self.full_only.filter(|_| !args.full && !is_named)
    }
}

/// Runs the checks and prints the summary.
pub fn main(args: &Args) -> Outcome {
    let mut checks = steps::all();
    checks.extend(crate::programs::all());
    if let Some(filter) = &args.filter {
        checks.retain(|check| check.name.contains(filter.as_str()));
    }
    if args.list {
        for check in &checks {
            match check.full_only {
                None => println!("{}", check.name),
                Some(why) => println!("{} (with --full: {why})", check.name),
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let logs = target().join("xtask-test");
    let _ = fs::remove_dir_all(logs.join("scratch"));
    fs::create_dir_all(&logs)
        .map_err(|cause| Error::io(format_args!("cannot make {}", logs.display()), cause))?;

    let mut sum = Sum::default();
    let begin = Instant::now();
    let mut ran = 0;
    for check in &checks {
        let verdict = match check.left_out(args) {
            Some(why) => {
                let verdict = Verdict::Skipped(format!("only with --full, it {why}"));
                print!("{:<22} ", check.name);
                tell(&verdict, Duration::ZERO);
                verdict
            }
            None => {
                ran += 1;
                one(check, &logs, args.full)?
            }
        };
        sum.add(check.name, &verdict);
    }
    println!("\n{ran} checks in {:.0} s, logs in {}", begin.elapsed().as_secs_f64(), logs.display());
    sum.skips.iter().for_each(|skip| println!("skipped {skip}"));
    sum.failures.iter().for_each(|failure| println!("FAILED {failure}"));
    println!("{} passed, {} failed, {} skipped", sum.passed, sum.failed, sum.skipped);
    Ok(if sum.failed == 0 && sum.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one check and prints its line, and the end of its log if it fails.
fn one(check: &Check, logs: &Path, full: bool) -> Result<Verdict, Error> {
    let room = Room {
        log: logs.join(format!("{}.log", check.name)),
        scratch: logs.join("scratch").join(check.name),
        full,
    };
    let _ = fs::remove_file(&room.log);
    let _ = fs::remove_dir_all(&room.scratch);
    fs::create_dir_all(&room.scratch)
        .map_err(|cause| Error::io(format_args!("cannot make {}", room.scratch.display()), cause))?;

    print!("{:<22} ", check.name);
    let _ = std::io::stdout().flush();
    let begin = Instant::now();
    // That a check could not be carried out says something about the machine or the check; it is not a pass.
    let verdict = (check.run)(&room).unwrap_or_else(|error| Verdict::Failed(error.to_string()));
    if tell(&verdict, begin.elapsed()) {
        let _ = fs::remove_dir_all(&room.scratch);
    } else {
        excerpt(&room.log_text()).iter().for_each(|line| println!("    | {line}"));
    }
    Ok(verdict)
}

/// Ends the line of a check; whether nothing failed.
fn tell(verdict: &Verdict, took: Duration) -> bool {
    let words = match verdict {
        Verdict::Passed(remark) if remark.is_empty() => "ok".to_owned(),
        Verdict::Passed(remark) => format!("ok ({remark})"),
        Verdict::Failed(why) => format!("FAILED: {why}"),
        Verdict::Skipped(why) => format!("skipped: {why}"),
        Verdict::Tests { passed, failed: 0, skipped, problem: None } => {
            format!("ok ({passed} tests passed, {skipped} skipped)")
        }
        Verdict::Tests { passed, failed, skipped, problem } => {
            let problem = problem.as_deref().unwrap_or("some tests failed");
            format!("FAILED: {problem} ({passed} tests passed, {failed} failed, {skipped} skipped)")
        }
    };
    println!("{:7.1} s  {words}", took.as_secs_f64());
    !words.starts_with("FAILED")
}

/// What to show of the log of a failed check: the failed tests with the beginning of what they printed, and the end.
fn excerpt(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let mut shown = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let is_test_output = line.starts_with("---- ") && line.ends_with(" ----");
        if is_test_output && shown.len() < 120 {
            shown.extend(lines[at..].iter().take(20).take_while(|line| **line != "failures:"));
            shown.push("…");
        }
    }
    let rest = if shown.is_empty() { 60 } else { 20 };
    shown.extend(&lines[lines.len().saturating_sub(rest)..]);
    shown
}

#[derive(Default)]
struct Sum {
    passed: u64,
    failed: u64,
    skipped: u64,
    skips: Vec<String>,
    failures: Vec<String>,
}

impl Sum {
    fn add(&mut self, name: &str, verdict: &Verdict) {
        match verdict {
            Verdict::Passed(_) => self.passed += 1,
            Verdict::Failed(why) => {
                self.failed += 1;
                self.failures.push(format!("{name}: {why}"));
            }
            Verdict::Skipped(why) => {
                self.skipped += 1;
                self.skips.push(format!("{name}: {why}"));
            }
            Verdict::Tests { passed, failed, skipped, problem } => {
                self.passed += passed;
                self.skipped += skipped;
                if *skipped > 0 {
                    self.skips.push(format!("{name}: {skipped} tests, named in its log"));
                }
                // A run that broke off counts as a failure even when no single test did.
                self.failed += if problem.is_some() { (*failed).max(1) } else { *failed };
                if *failed > 0 || problem.is_some() {
                    self.failures
                        .push(format!("{name}: {}", problem.as_deref().unwrap_or("some tests failed")));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_counts_tests_one_by_one_and_checks_once() {
        let mut sum = Sum::default();
        sum.add("a", &Verdict::Passed(String::new()));
        sum.add("b", &Verdict::Skipped("absent".into()));
        sum.add("c", &Verdict::Tests { passed: 10, failed: 2, skipped: 1, problem: None });
        assert_eq!((sum.passed, sum.failed, sum.skipped), (11, 2, 2));
    }

    #[test]
    fn a_check_for_full_runs_is_left_out_unless_asked_for() {
        let check = Check::new("long-one", |_| Ok(Verdict::Passed(String::new()))).only_full("takes an hour");
        let args = |filter: Option<&str>, full| Args { filter: filter.map(str::to_owned), full, list: false };
        assert_eq!(check.left_out(&args(None, false)), Some("takes an hour"));
        assert_eq!(check.left_out(&args(Some("long"), false)), Some("takes an hour"));
        assert_eq!(check.left_out(&args(Some("long-one"), false)), None);
        assert_eq!(check.left_out(&args(None, true)), None);
    }

    #[test]
    fn the_excerpt_shows_a_failed_test_that_is_far_from_the_end_of_the_log() {
        let noise = "noise\n".repeat(500);
        let text = format!("{noise}---- a::b stdout ----\nwhy it failed\n\nfailures:\n{noise}last");
        let shown = excerpt(&text);
        assert!(shown.contains(&"why it failed") && shown.last() == Some(&"last") && shown.len() < 60);
    }

    #[test]
    fn a_run_that_broke_off_without_a_failed_test_is_a_failure() {
        let mut sum = Sum::default();
        sum.add(
            "a",
            &Verdict::Tests { passed: 3, failed: 0, skipped: 0, problem: Some("did not compile".into()) },
        );
        assert_eq!(sum.failed, 1);
        assert_eq!(sum.failures, ["a: did not compile"]);
    }
}
