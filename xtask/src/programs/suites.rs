//! The tests of other crates, run from their registry packages: the same verdicts on the system's allocator and on Terrane.
//!
//! The package is copied to a folder of its own and built once; its test programs, which take their memory from `malloc`, run
//! twice, the second time with the library preloaded. Nothing of the package becomes part of this repository.

use crate::process::run_reading;
use crate::test::{Check, Room, Verdict, build_library};
use crate::workspace::{Error, cargo, host, library, root, target};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A package whose tests run.
struct Suite {
    /// Name of the check.
    check: &'static str,
    package: &'static str,
    /// Which of its tests, as `cargo test` takes them: those that the package has all files for.
    targets: &'static [&'static str],
    /// Fewer tests than this are not the suite.
    least: usize,
}

const fn suite(check: &'static str, package: &'static str, least: usize) -> Suite {
    Suite { check, package, targets: &["--lib", "--tests"], least }
}

const SUITES: &[Suite] = &[
    suite("suite-bytes", "bytes", 1000),
    suite("suite-hashbrown", "hashbrown", 100),
    suite("suite-crossbeam", "crossbeam", 5),
    suite("suite-crossbeam-channel", "crossbeam-channel", 150),
    suite("suite-crossbeam-deque", "crossbeam-deque", 20),
    suite("suite-crossbeam-epoch", "crossbeam-epoch", 20),
    suite("suite-crossbeam-queue", "crossbeam-queue", 10),
    suite("suite-crossbeam-utils", "crossbeam-utils", 30),
    // The tests beside these libraries read files that the packages do not hold.
    Suite { check: "suite-regex", package: "regex", targets: &["--lib"], least: 5 },
    Suite { check: "suite-regex-automata", package: "regex-automata", targets: &["--lib"], least: 50 },
    suite("suite-regex-syntax", "regex-syntax", 140),
    suite("suite-serde_json", "serde_json", 140),
];

/// Programs whose own tests cannot be had, and why; that they are not run is said with every summary.
const NOT_TO_BE_HAD: &[(&str, &str)] = &[
    (
        "suite-sqlite",
        "its own tests come with its sources, no binary package holds them (program-sqlite3 plays it)",
    ),
    (
        "suite-redis",
        "its own tests come with its sources, no binary package holds them (program-redis plays it)",
    ),
];

/// The checks, one per package.
pub fn all() -> Vec<Check> {
    let not_to_be_had = NOT_TO_BE_HAD
        .iter()
        .map(|&(check, why)| Check::new(check, move |_| Ok(Verdict::Skipped(why.to_owned()))));
    SUITES
        .iter()
        .map(|suite| {
            Check::new(suite.check, move |room| compare(suite, room))
                .only_full("builds another crate's tests")
        })
        .chain(not_to_be_had)
        .collect()
}

fn compare(suite: &Suite, room: &Room) -> Result<Verdict, Error> {
    let package = suite.package;
    if let Err(why) = build_library(room)? {
        return Ok(Verdict::Failed(why));
    }
    let Some(source) = source(package)? else {
        return Ok(Verdict::Skipped(format!("no package {package} is at hand, and none can be fetched")));
    };
    let folder = room.scratch.join(package);
    copy(&source, &folder)?;
    // Inside our workspace's folder, but none of its members.
    let manifest = folder.join("Cargo.toml");
    let text = fs::read_to_string(&manifest)
        .map_err(|cause| Error::io(format_args!("cannot read {}", manifest.display()), cause))?;
    fs::write(&manifest, format!("{text}\n[workspace]\n"))
        .map_err(|cause| Error::io(format_args!("cannot write {}", manifest.display()), cause))?;

    let test = |preload: Option<&Path>, args: &[&str]| {
        let mut command = cargo(["test", "--no-fail-fast"]);
        command.args(suite.targets).args(args).current_dir(&folder);
        command.arg("--target-dir").arg(target().join("suites"));
        command.env("CARGO_TERM_COLOR", "never").env("RUSTFLAGS", "--cap-lints=allow");
        // Some of these tests spin: without any optimisation they take minutes.
        command.env("CARGO_PROFILE_TEST_OPT_LEVEL", "1").env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
        if let (Some(library), Some(host)) = (preload, host()) {
            let name = host.to_uppercase().replace('-', "_");
            let report = room.scratch.join("report");
            command.env(
                format!("CARGO_TARGET_{name}_RUNNER"),
                format!("env LD_PRELOAD={} TERRANE_REPORT={}", library.display(), report.display()),
            );
        }
        command
    };
    let minutes = |count: u64| Duration::from_secs(60 * count);
    let (built, _) = run_reading(&mut test(None, &["--no-run"]), &room.log, minutes(10))?;
    if !built.success() {
        return Ok(Verdict::Skipped(format!(
            "the tests of {package} do not build here ({})",
            built.describe()
        )));
    }
    let (plain, printed) = run_reading(&mut test(None, &[]), &room.log, minutes(10))?;
    let expected = verdicts(&printed);
    if expected.len() < suite.least {
        return Ok(Verdict::Failed(format!("only {} tests ran", expected.len())));
    }
    let (preloaded, printed) = run_reading(&mut test(Some(&library()), &[]), &room.log, minutes(10))?;
    let got = verdicts(&printed);
    let left_report =
        fs::read_to_string(room.scratch.join("report")).is_ok_and(|text| text.contains("heap report"));
    Ok(if let Some(difference) = difference(&expected, &got) {
        Verdict::Failed(difference)
    } else if plain.success() != preloaded.success() {
        Verdict::Failed(format!("without Terrane {}, on it {}", plain.describe(), preloaded.describe()))
    } else if !left_report {
        Verdict::Failed("no test program left a heap report: Terrane was not loaded".into())
    } else {
        let failed = expected.iter().filter(|line| line.ends_with("FAILED")).count();
        Verdict::Passed(format!(
            "{package} {}: {} verdicts equal, {failed} of them failures",
            version(&source),
            got.len()
        ))
    })
}

/// Where two sorted lists of verdicts first differ; a verdict may stand in each several times.
fn difference(expected: &[String], got: &[String]) -> Option<String> {
    let at = (0..expected.len().max(got.len())).find(|&at| expected.get(at) != got.get(at))?;
    let show = |side: &[String]| side.get(at).map_or("nothing", String::as_str).to_owned();
    Some(format!("verdicts differ, the first: without Terrane “{}”, on it “{}”", show(expected), show(got)))
}

/// The lines `test … ok` (or FAILED, ignored) of the harnesses, sorted.
fn verdicts(printed: &str) -> Vec<String> {
    let ends = ["... ok", "... FAILED", "... ignored"];
    let mut lines: Vec<String> = printed
        .lines()
        .filter(|line| line.starts_with("test ") && ends.iter().any(|end| line.contains(end)))
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

/// The folder of the package in cargo's own store, in the newest version that our lock file names.
fn source(package: &str) -> Result<Option<PathBuf>, Error> {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap_or_default();
    let wanted = format!("name = \"{package}\"");
    let lines: Vec<&str> = lock.lines().collect();
    let version = lines
        .windows(2)
        .filter(|pair| pair[0] == wanted)
        .filter_map(|pair| pair[1].strip_prefix("version = \"")?.strip_suffix('"'))
        .next_back();
    let Some(version) = version else { return Ok(None) };
    // What the lock file names is fetched, if it is not there yet.
    let fetched = cargo(["fetch", "--locked", "--quiet"]).status();
    fetched.map_err(|cause| Error::io("cannot start cargo", cause))?;
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let Some(registries) = home.and_then(|home| fs::read_dir(home.join("registry/src")).ok()) else {
        return Ok(None);
    };
    let folder = format!("{package}-{version}");
    Ok(registries.filter_map(Result::ok).map(|entry| entry.path().join(&folder)).find(|path| path.is_dir()))
}

fn version(source: &Path) -> String {
    let name = source.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.rsplit('-').next().unwrap_or_default().to_owned()
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let mut command = Command::new("cp");
    let done = command.arg("-r").arg(from).arg(to).status();
    match done.map_err(|cause| Error::io("cannot start cp", cause))? {
        status if status.success() => Ok(()),
        status => Err(Error(format!("cannot copy {}: {status}", from.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::{difference, verdicts};

    #[test]
    fn a_verdict_that_changes_or_is_missing_is_a_difference() {
        let list = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let expected = list(&["test a ... ok", "test a ... ok", "test b ... ok"]);
        assert_eq!(difference(&expected, &expected), None);
        assert!(
            difference(&expected, &list(&["test a ... ok", "test a ... ok", "test b ... FAILED"])).is_some()
        );
        // The program died after its first two tests.
        assert!(difference(&expected, &expected[..2]).is_some());
        assert!(difference(&expected, &list(&["test a ... ok", "test b ... ok", "test b ... ok"])).is_some());
    }

    #[test]
    fn verdicts_are_the_lines_of_tests_and_sorted() {
        let printed = "running 2 tests\ntest b ... FAILED\ntest a ... ok\ntest result: FAILED. 1 passed\n";
        assert_eq!(verdicts(printed), ["test a ... ok", "test b ... FAILED"]);
    }
}
