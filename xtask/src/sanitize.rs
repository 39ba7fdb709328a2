//! `cargo xtask sanitize [address|thread|miri [package]]`: tests under the sanitizers of the nightly toolchain, and under Miri.
//!
//! ```text
//!   thread    data races: tests and standard library compiled with ThreadSanitizer (needs rust-src)
//!   address   accesses outside of objects, and leaks where the system's allocator serves the test
//!   miri      undefined behaviour of the crates that need no system: an interpreter (needs miri)
//! ```
//!
//! Before a tool is believed it has to report a planted fault: a program of a few lines that has exactly one. A tool that
//! is not there is skipped with the command that installs it; nothing is installed behind anybody's back.
//!
//! ThreadSanitizer sees orderings of atomic operations and not `fence`: a protocol that rests on one can be reported although
//! it is right. No test needs an exception for that today, so there is no list of any: a report is a failure.

use crate::process::run_reading;
use crate::workspace::{Error, Outcome, root, target};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Arguments of `cargo xtask sanitize`.
#[derive(clap::Args)]
pub struct Args {
    /// Only this tool
    tool: Option<Tool>,
    /// Only the tests of this package
    package: Option<String>,
}

/// What looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Tool {
    /// ThreadSanitizer
    Thread,
    /// AddressSanitizer, with LeakSanitizer
    Address,
    /// Miri
    Miri,
}

/// A `cargo test` under a tool.
struct Run {
    /// Packages and targets, as cargo takes them.
    args: &'static str,
    /// Whether leaks count: only where every block is the system allocator's, as nobody else's are known.
    leaks: bool,
}

impl Run {
    /// The package whose tests run.
    fn package(&self) -> &'static str {
        self.args.split_whitespace().nth(1).unwrap_or_default()
    }
}

impl Tool {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Thread, Self::Address, Self::Miri];

    const fn name(self) -> &'static str {
        match self {
            Self::Thread => "thread",
            Self::Address => "address",
            Self::Miri => "miri",
        }
    }

    /// The words with which its reports begin.
    const fn report(self) -> &'static [&'static str] {
        match self {
            Self::Thread => &["WARNING: ThreadSanitizer:", "FATAL: ThreadSanitizer"],
            Self::Address => &["ERROR: AddressSanitizer:", "ERROR: LeakSanitizer:"],
            Self::Miri => {
                &["error: Undefined Behavior", "error: memory leaked", "error: unsupported operation"]
            }
        }
    }

    /// Left out are tests that limit address space, of which the tools take terabytes; `cuda`, which runs cargo itself; the
    /// library that is opened and closed, which would need the tool's own symbols from the program; and of the leaks the one that
    /// a test makes on purpose, to see that the pool tells of it.
    const fn runs(self) -> &'static [Run] {
        match self {
            Self::Thread => &[
                Run { args: "-p terrane --test threads --test background --test sources", leaks: false },
                Run { args: "-p terrane-front --tests", leaks: false },
                Run { args: "-p terrane-pool --lib --tests", leaks: false },
                Run {
                    args: "-p terrane-gpu --lib --test fixed --test variable --test movable --test transfer --test sim",
                    leaks: false,
                },
                Run { args: "-p terrane-slab --lib --tests", leaks: false },
            ],
            Self::Address => &[
                Run {
                    args: "-p terrane-pool --lib --tests -- --skip a_pool_reports_what_is_still_out",
                    leaks: true,
                },
                Run { args: "-p terrane-fit --lib --tests", leaks: true },
                Run { args: "-p terrane-slab --lib --tests", leaks: true },
                Run {
                    args: "-p terrane-pages --lib --test decorators --test mapped --test mmap --test sbrk",
                    leaks: true,
                },
                Run {
                    args: "-p terrane-gpu --lib --test fixed --test variable --test movable --test transfer --test sim",
                    leaks: true,
                },
                Run { args: "-p terrane-front --tests", leaks: false },
                Run { args: "-p terrane --tests -- --skip a_library_with_its_own_terrane", leaks: false },
            ],
            // Whole suites take hours in the interpreter.
            Self::Miri => &[
                Run { args: "-p terrane-core --lib --tests", leaks: true },
                Run { args: "-p terrane-fit --test compaction", leaks: true },
                Run {
                    args: "-p terrane-pool --test pool -- detached_ a_destructor an_object_whose objects_ warm trim",
                    leaks: true,
                },
            ],
        }
    }

    /// A program with one fault that the tool has to report.
    const fn planted(self) -> &'static str {
        match self {
            Self::Thread => {
                "static mut SUM: u64 = 0;
                fn add() { for _ in 0..1000 { unsafe { let sum = &raw mut SUM; sum.write_volatile(sum.read_volatile() + 1) } } }
                fn main() { let other = std::thread::spawn(add); add(); other.join().unwrap(); }"
            }
            Self::Address | Self::Miri => {
                "fn main() { let bytes = vec![1_u8; 40].into_boxed_slice(); let at = std::hint::black_box(40);
                std::process::exit(unsafe { bytes.as_ptr().add(at).read_volatile() }.into()) }"
            }
        }
    }
}

/// What came of one tool.
pub enum Report {
    /// It is not there, and why.
    Absent(String),
    /// It ran.
    Ran {
        /// Tests that passed.
        passed: u64,
        /// What failed, one sentence each.
        failures: Vec<String>,
    },
}

/// Runs the tools and prints a line each.
pub fn main(args: &Args) -> Outcome {
    let mut code = ExitCode::SUCCESS;
    for tool in Tool::ALL.into_iter().filter(|tool| args.tool.is_none_or(|wanted| wanted == *tool)) {
        let log = target().join(format!("sanitize-{}.log", tool.name()));
        let _ = fs::remove_file(&log);
        match run(tool, args.package.as_deref(), &log, &mut |line| println!("{line}"))? {
            Report::Absent(why) => println!("{:<8} skipped: {why}", tool.name()),
            Report::Ran { passed, failures } => {
                println!("{:<8} {passed} tests passed, {} failures", tool.name(), failures.len());
                failures.iter().for_each(|failure| println!("FAILED {failure}, see {}", log.display()));
                if !failures.is_empty() {
                    code = ExitCode::FAILURE;
                }
            }
        }
    }
    Ok(code)
}

/// Shows the tool a planted fault, then runs the tests under it, of `package` or all; a line to `tell` for each package.
pub fn run(
    tool: Tool,
    package: Option<&str>,
    log: &Path,
    tell: &mut dyn FnMut(String),
) -> Result<Report, Error> {
    let nightly = match Nightly::find(tool) {
        Ok(nightly) => nightly,
        Err(why) => return Ok(Report::Absent(why)),
    };
    let (mut passed, mut failures) = (0, Vec::new());
    if let Err(why) = nightly.sees_planted(tool, log)? {
        failures.push(why);
        return Ok(Report::Ran { passed, failures });
    }
    for run in tool.runs().iter().filter(|run| package.is_none_or(|wanted| wanted == run.package())) {
        let (ended, text) = run_reading(&mut nightly.tests(tool, run), log, Duration::from_secs(1800))?;
        let lines: Vec<&str> = text.lines().collect();
        let sum: u64 = lines.iter().filter_map(|line| passed_in(line)).sum();
        passed += sum;
        let seconds = ended.wall.as_secs();
        tell(format!("{:<8} {:<16} {sum:>5} passed {seconds:>5} s", tool.name(), run.package()));
        let reported = lines.iter().find(|line| tool.report().iter().any(|words| line.contains(words)));
        if let Some(line) = reported {
            failures.push(format!("{}: {line}", run.args));
        } else if !ended.success() {
            failures.push(format!("{}: {}", run.args, ended.describe()));
        } else if sum == 0 {
            failures.push(format!("{}: no test ran", run.args));
        }
    }
    if passed == 0 && failures.is_empty() {
        failures.push(format!("{} has no tests of {}", tool.name(), package.unwrap_or("any package")));
    }
    Ok(Report::Ran { passed, failures })
}

/// A nightly toolchain that has what a tool needs.
struct Nightly {
    host: String,
    has_source: bool,
}

impl Nightly {
    fn command(program: &str) -> Command {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", program]).current_dir(root());
        // What the cargo around us has set is the other toolchain's.
        for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "RUSTFLAGS", "LD_LIBRARY_PATH"] {
            command.env_remove(name);
        }
        command.env("CARGO_TERM_COLOR", "never");
        command
    }

    fn output(program: &str, args: &[&str]) -> Option<String> {
        let output = Self::command(program).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn find(tool: Tool) -> Result<Self, String> {
        let version = Self::output("rustc", &["-vV"])
            .ok_or("no nightly toolchain (rustup toolchain install nightly --profile minimal)")?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or("").to_owned();
        let sysroot = Self::output("rustc", &["--print", "sysroot"]).unwrap_or_default();
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/Cargo.toml");
        let has_source = source.is_file();
        // Without its sources the standard library is not instrumented: its locks and channels would be reported.
        if !has_source && tool != Tool::Address {
            return Err(
                "no sources of the standard library (rustup component add rust-src --toolchain nightly)"
                    .into(),
            );
        }
        if tool == Tool::Miri && Self::output("cargo", &["miri", "--version"]).is_none() {
            return Err("no Miri (rustup component add miri --toolchain nightly)".into());
        }
        Ok(Self { host, has_source })
    }

    fn folder(tool: Tool) -> PathBuf {
        target().join("sanitize").join(tool.name())
    }

    /// Whether the tool reports the fault that was planted for it.
    fn sees_planted(&self, tool: Tool, log: &Path) -> Result<Result<(), String>, Error> {
        let folder = Self::folder(tool).join("planted");
        let package = "[package]\nname = \"planted\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n\
                       [[bin]]\nname = \"planted\"\npath = \"main.rs\"\n";
        let written = fs::create_dir_all(&folder)
            .and_then(|()| fs::write(folder.join("Cargo.toml"), package))
            .and_then(|()| fs::write(folder.join("main.rs"), tool.planted()));
        written.map_err(|cause| Error::io(format_args!("cannot write {}", folder.display()), cause))?;
        let mut command = self.cargo(tool, "run", true);
        command.arg("--manifest-path").arg(folder.join("Cargo.toml"));
        let (ended, text) = run_reading(&mut command, log, Duration::from_secs(900))?;
        Ok(if !ended.success() && tool.report().iter().any(|words| text.contains(words)) {
            Ok(())
        } else {
            Err(format!("the planted fault was not reported: {}", ended.describe()))
        })
    }

    fn tests(&self, tool: Tool, run: &Run) -> Command {
        let mut command = self.cargo(tool, "test", run.leaks);
        command.arg("--no-fail-fast").args(run.args.split_whitespace());
        command
    }

    fn cargo(&self, tool: Tool, what: &str, leaks: bool) -> Command {
        let mut command = Self::command("cargo");
        if tool == Tool::Miri {
            // The cases of property tests are few: the interpreter is a hundred times slower. Addresses are numbers in
            // device and page sources, which permissive provenance allows.
            command.args(["miri", what]).env("PROPTEST_CASES", "4");
            command.env("MIRIFLAGS", "-Zmiri-disable-isolation -Zmiri-permissive-provenance");
        } else {
            command.arg(what).args(["--target", &self.host]);
            if self.has_source {
                command.arg("-Zbuild-std");
            }
            command.env("RUSTFLAGS", format!("-Zsanitizer={}", tool.name()));
            command.env("ASAN_OPTIONS", if leaks { "detect_leaks=1" } else { "detect_leaks=0" });
        }
        command.arg("--target-dir").arg(Self::folder(tool));
        command
    }
}

/// The tests that a line of a test harness says have passed.
fn passed_in(line: &str) -> Option<u64> {
    let rest = line.strip_prefix("test result: ")?;
    rest.split(';').next()?.strip_suffix(" passed")?.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::passed_in;

    #[test]
    fn passed_tests_are_read_from_the_harness() {
        let line =
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1 s";
        assert_eq!(passed_in(line), Some(12));
        assert_eq!(passed_in("test result: FAILED. 3 passed; 1 failed; 0 ignored"), Some(3));
        assert_eq!(passed_in("test a ... ok"), None);
    }
}
