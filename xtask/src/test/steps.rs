//! The checks of the workspace itself: formatting, lints, tests, packages, models.

use super::{Check, Room, Verdict, Wanted, book, ensure, forks, schedules, soak, valgrind};
use crate::process::run_logged;
use crate::sanitize::{Report, Tool};
use crate::workspace::{Error, cargo, crates, has_crate, library, root};
use std::fs;
use std::process::Command;
use std::time::Duration;

/// The checks, in order: cheap and telling ones first.
pub fn all() -> Vec<Check> {
    let mut checks = vec![
        Check::new("fmt", fmt),
        Check::new("book", book::check),
        Check::new("clippy", |room| {
            cargo_check(room, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], 1500)
        }),
        Check::new("tests", |room| {
            cargo_tests(
                room,
                &["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests", "--examples"],
            )
        }),
        Check::new("doc-tests", |room| {
            cargo_tests(room, &["test", "--workspace", "--no-fail-fast", "--doc"])
        }),
        Check::new("docs", |room| {
            let mut command = cargo(["doc", "--workspace", "--no-deps", "--locked"]);
            command.env("RUSTDOCFLAGS", "-D warnings");
            logged(room, &mut command, 600)
        }),
        Check::new("packages", packages),
        Check::new("golden", |room| {
            cargo_check(room, &["run", "--release", "--package", crate::golden::PACKAGE], 900)
        }),
        Check::new("loom", loom),
        Check::new("valgrind", valgrind::check),
        Check::new("fuzz-regressions", fuzz_regressions),
        Check::new("fuzz", fuzz),
        Check::new("soak", soak::check),
        Check::new("schedules", schedules::check),
        Check::new("forks", forks::check).only_full("forks a thousand times"),
    ];
    for (name, tool) in [
        ("sanitize-thread", Tool::Thread),
        ("sanitize-address", Tool::Address),
        ("sanitize-miri", Tool::Miri),
    ] {
        checks.push(
            Check::new(name, move |room| sanitize(room, tool))
                .only_full("takes about ten minutes on two cores"),
        );
    }
    if has_crate("terrane-pages") {
        checks.push(Check::new("hwloc", hwloc));
    }
    checks.push(Check::new("numa-vm", crate::numa_vm::check).only_full("boots emulated machines"));
    checks.push(Check::new("fixed-addresses", fixed_addresses).only_full("runs tests a second time"));
    if has_crate("terrane") {
        checks.push(Check::new("only-rust", only_rust));
    }
    checks
}

/// Runs `command`; its exit code is the verdict.
pub fn logged(room: &Room, command: &mut Command, seconds: u64) -> Result<Verdict, Error> {
    let ended = run_logged(command, &room.log, Duration::from_secs(seconds))?;
    Ok(if ended.success() { Verdict::Passed(String::new()) } else { Verdict::Failed(ended.describe()) })
}

/// The workspace and the fuzz package, which is a workspace of its own.
fn fmt(room: &Room) -> Result<Verdict, Error> {
    match cargo_check(room, &["fmt", "--all", "--check"], 120)? {
        Verdict::Passed(_) => {
            cargo_check(room, &["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"], 120)
        }
        other => Ok(other),
    }
}

fn cargo_check(room: &Room, args: &[&str], seconds: u64) -> Result<Verdict, Error> {
    logged(room, cargo(args).env("CARGO_TERM_COLOR", "never"), seconds)
}

/// Runs a `cargo test` and counts what the harnesses report.
pub fn cargo_tests(room: &Room, args: &[&str]) -> Result<Verdict, Error> {
    tests_of(room, &mut cargo(args))
}

/// The same for a command that runs a `cargo test` in its own way.
pub fn tests_of(room: &Room, command: &mut Command) -> Result<Verdict, Error> {
    command.env("CARGO_TERM_COLOR", "never");
    let ended = run_logged(command, &room.log, Duration::from_secs(2400))?;
    let text = room.log_text();
    let [passed, failed, skipped] = counts(&text);
    let problem = if ended.success() && passed == 0 {
        Some("no test ran".to_owned())
    } else if !ended.success() && failed == 0 {
        Some(ended.describe())
    } else {
        None
    };
    Ok(Verdict::Tests { passed, failed, skipped, problem })
}

/// Sums over the lines `test result: ok. N passed; N failed; N ignored; …`. A test that needs something that this
/// machine lacks writes a line `skipped: what: why` to standard error itself (past the harness, which shows the output
/// of failed tests only) and returns; the harness counts it as passed, so it is moved over.
fn counts(text: &str) -> [u64; 3] {
    let mut sums: [u64; 3] = [0; 3];
    for line in text.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        for (sum, word) in sums.iter_mut().zip([" passed", " failed", " ignored"]) {
            let number = line
                .split(';')
                .find_map(|part| part.strip_suffix(word))
                .and_then(|part| part.split_whitespace().last()?.parse::<u64>().ok());
            *sum += number.unwrap_or(0);
        }
    }
    let left_out = text.lines().filter(|line| line.contains("skipped: ")).count() as u64;
    sums[0] = sums[0].saturating_sub(left_out);
    sums[2] += left_out;
    sums
}

/// Every crate makes a package that has all it names: the way to the registry is open. Nothing is uploaded or compiled.
fn packages(room: &Room) -> Result<Verdict, Error> {
    let names = crates();
    let mut command = cargo(["package", "--no-verify", "--allow-dirty", "--locked"]);
    for name in &names {
        command.args(["--package", name]);
    }
    command.arg("--target-dir").arg(crate::workspace::target().join("package-check"));
    command.env("CARGO_TERM_COLOR", "never");
    let ended = run_logged(&mut command, &room.log, Duration::from_secs(300))?;
    if ended.success() {
        return Ok(Verdict::Passed(format!("{} crates", names.len())));
    }
    let text = room.log_text();
    let is_offline = [
        "failed to download",
        "Could not resolve host",
        "failed to query replaced source",
        "spurious network",
    ]
    .iter()
    .any(|sign| text.contains(sign));
    Ok(if is_offline {
        Verdict::Skipped("the package registry cannot be reached".into())
    } else {
        Verdict::Failed(ended.describe())
    })
}

fn loom(room: &Room) -> Result<Verdict, Error> {
    let report = crate::loom::run(None, Duration::from_secs(300), &mut |line| room.note(&line))?;
    for failure in &report.failures {
        room.note(failure);
    }
    Ok(match report.failures.first() {
        Some(first) => Verdict::Failed(format!("{} failures, the first: {first}", report.failures.len())),
        None if report.models == 0 => Verdict::Skipped("no crate has a loom model yet".into()),
        None => Verdict::Passed(format!("{} models, every planted fault caught", report.models)),
    })
}

/// The inputs that once failed, replayed by plain functions: no fuzzer, no C++ compiler.
fn fuzz_regressions(room: &Room) -> Result<Verdict, Error> {
    if let Err(why) = build_library(room)? {
        return Ok(Verdict::Failed(why));
    }
    let manifest = ["--manifest-path", "fuzz/Cargo.toml", "--no-default-features"];
    let mut lints = cargo(["clippy", "--all-targets"]);
    lints.args(manifest).arg("--target-dir").arg(crate::workspace::target().join("fuzz/replay"));
    lints.args(["--", "-D", "warnings"]).env("CARGO_TERM_COLOR", "never");
    if let failed @ Verdict::Failed(_) = logged(room, &mut lints, 600)? {
        return Ok(failed);
    }
    let mut command = cargo(["test"]);
    command.args(manifest).arg("--target-dir").arg(crate::workspace::target().join("fuzz/replay"));
    command.env("TERRANE_LIBRARY", library());
    tests_of(room, &mut command)
}

fn sanitize(room: &Room, tool: Tool) -> Result<Verdict, Error> {
    Ok(match crate::sanitize::run(tool, None, &room.log, &mut |line| room.note(&line))? {
        Report::Absent(why) => Verdict::Skipped(why),
        Report::Ran { passed, failures } => Verdict::Tests {
            passed,
            failed: failures.len() as u64,
            skipped: 0,
            problem: failures.into_iter().next(),
        },
    })
}

/// Every fuzz target for a few seconds; kept findings are replayed first.
fn fuzz(room: &Room) -> Result<Verdict, Error> {
    if let Err(why) = ensure(&[Wanted::Program("c++", "g++")], &room.log) {
        return Ok(Verdict::Skipped(why));
    }
    let seconds = if room.full { 120 } else { 8 };
    let report = crate::fuzz::run(None, seconds, &room.log, &mut |line| room.note(&line))?;
    Ok(match report.failures.first() {
        Some(first) => Verdict::Failed(first.clone()),
        None if report.targets == 0 => Verdict::Failed("no target was found".into()),
        None => Verdict::Passed(format!("{} targets, {} inputs, no finding", report.targets, report.runs)),
    })
}

/// The topology through hwloc, on machines that have its headers or can get them.
fn hwloc(room: &Room) -> Result<Verdict, Error> {
    let manifest = fs::read_to_string(root().join("crates/terrane-pages/Cargo.toml")).unwrap_or_default();
    if !manifest.lines().any(|line| line.trim_start().starts_with("hwloc")) {
        return Ok(Verdict::Failed("terrane-pages has no feature `hwloc`".into()));
    }
    let wanted = [
        Wanted::File("/usr/include/hwloc.h", "libhwloc-dev"),
        Wanted::File("/usr/include/libudev.h", "libudev-dev"),
        Wanted::Program("pkg-config", "pkg-config"),
    ];
    if let Err(why) = ensure(&wanted, &room.log) {
        return Ok(Verdict::Skipped(why));
    }
    cargo_tests(room, &["test", "--package", "terrane-pages", "--features", "hwloc"])
}

/// The tests of the tiers above the pages where the system lays out address spaces the same way every time: what only
/// holds because two mappings seldom touch fails here.
fn fixed_addresses(room: &Room) -> Result<Verdict, Error> {
    if let Err(why) = ensure(&[Wanted::Program("setarch", "util-linux")], &room.log) {
        return Ok(Verdict::Skipped(why));
    }
    let plain = cargo(["test", "--no-fail-fast", "--lib", "--tests"]);
    let mut command = Command::new("setarch");
    command.arg("--addr-no-randomize").arg(plain.get_program()).args(plain.get_args()).current_dir(root());
    for name in ["terrane-slab", "terrane-front", "terrane", "terrane-malloc"]
        .into_iter()
        .filter(|name| has_crate(name))
    {
        command.args(["--package", name]);
    }
    tests_of(room, &mut command)
}

/// A program outside the workspace, with Terrane as its global allocator, built with nothing but Rust: every C compiler
/// and `pkg-config` that a build script could call is `/bin/false`.
fn only_rust(room: &Room) -> Result<Verdict, Error> {
    let here = &room.scratch;
    let manifest = format!(
        "[package]\nname = \"throw-away\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
         [dependencies]\nterrane = {{ path = {:?} }}\n",
        root().join("crates/terrane")
    );
    let write = |name: &str, text: &str| {
        let path = here.join(name);
        fs::create_dir_all(path.parent().unwrap_or(here))
            .and_then(|()| fs::write(&path, text))
            .map_err(|cause| Error::io(format_args!("cannot write {}", path.display()), cause))
    };
    write("Cargo.toml", &manifest)?;
    write("src/main.rs", include_str!("only_rust_main.rs"))?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["run", "--quiet", "--release"]).current_dir(here);
    for tool in ["CC", "CXX", "HOST_CC", "TARGET_CC", "PKG_CONFIG", "CMAKE"] {
        command.env(tool, "/bin/false");
    }
    // The folder is outside every workspace only with a target folder of its own and no settings of ours.
    command.env_remove("RUSTFLAGS").env("CARGO_TARGET_DIR", here.join("target"));
    let verdict = logged(room, &mut command, 600)?;
    if matches!(verdict, Verdict::Passed(_)) && !room.log_text().contains("sum 3199960000 on terrane") {
        return Ok(Verdict::Failed("it ran, but did not print what it should".into()));
    }
    Ok(verdict)
}

/// Builds the library that is preloaded; why not, otherwise.
pub fn build_library(room: &Room) -> Result<Result<(), String>, Error> {
    let mut command = cargo(["build", "--release", "--package", "terrane-malloc"]);
    let ended = run_logged(command.env("CARGO_TERM_COLOR", "never"), &room.log, Duration::from_secs(900))?;
    if !ended.success() {
        return Ok(Err(format!("libterrane.so does not build: {}", ended.describe())));
    }
    Ok(if library().is_file() { Ok(()) } else { Err(format!("{} was not built", library().display())) })
}

#[cfg(test)]
mod tests {
    use super::counts;

    #[test]
    fn results_of_several_harnesses_are_added_up() {
        let text = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
                    noise\n\
                    test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(counts(text), [15, 2, 1]);
    }

    #[test]
    fn a_test_that_says_it_was_skipped_does_not_count_as_passed() {
        let text = "test c_abi ... skipped: c_abi: no C compiler\nok\ntest result: ok. 2 passed; 0 failed; 0 ignored\n";
        assert_eq!(counts(text), [1, 0, 1]);
    }
}
