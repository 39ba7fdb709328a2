//! The check `valgrind`: a program on Terrane with the feature `valgrind` under memcheck. The correct one is silent; each
//! planted fault is reported, with the words that memcheck has for it.

use super::{Room, Verdict, Wanted, ensure};
use crate::process::{run_logged, run_reading};
use crate::workspace::{Error, cargo, target};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Exit code that memcheck gives a program with errors.
const FOUND: i32 = 9;

/// Faults of the example `memcheck`, and what memcheck says of each: all of these, on lines of their own.
const FAULTS: [(&str, &[&str]); 12] = [
    ("after-free", &["Invalid read of size 1", "8 bytes inside a block of size"]),
    ("after-free-first-word", &["Invalid write of size 1", "0 bytes inside a block of size"]),
    ("after-free-large", &["Invalid read of size 1", "100,000 bytes inside a block of size 200,000 free'd"]),
    ("after-free-elsewhere", &["Invalid read of size 1", "16 bytes inside a block of size"]),
    ("past-end", &["Invalid write of size 1", "0 bytes after a"]),
    ("past-end-large", &["Invalid read of size 1", "0 bytes after a block of size 200,000 alloc'd"]),
    ("uninitialised", &["Conditional jump or move depends on uninitialised value(s)"]),
    ("leak", &["40 bytes in 1 blocks are definitely lost"]),
    ("double-free", &["Invalid free()"]),
    ("heap-after-free", &["Invalid read of size 1", "100 bytes inside a block of size 300 free'd"]),
    ("heap-past-end", &["Invalid read of size 1"]),
    ("heap-dropped", &["Invalid read of size 1"]),
];

/// Runs the correct program and the faulty ones.
pub fn check(room: &Room) -> Result<Verdict, Error> {
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        return Ok(Verdict::Skipped("client requests are written for x86-64 and AArch64".into()));
    }
    if let Err(why) = ensure(&[Wanted::Program("valgrind", "valgrind")], &room.log) {
        return Ok(Verdict::Skipped(why));
    }
    let folder = target().join("valgrind");
    let mut command =
        cargo(["build", "--package", "terrane", "--features", "valgrind", "--example", "memcheck"]);
    command.arg("--target-dir").arg(&folder).env("CARGO_TERM_COLOR", "never");
    let ended = run_logged(&mut command, &room.log, Duration::from_secs(600))?;
    if !ended.success() {
        return Ok(Verdict::Failed(format!("the program does not build: {}", ended.describe())));
    }
    let program = folder.join("debug/examples/memcheck");
    let (code, text) = play(room, &program, None)?;
    if code != Some(0) || text.contains("Invalid ") {
        return Ok(Verdict::Failed("memcheck reports a program that has no fault".into()));
    }
    for (name, words) in FAULTS {
        let (code, text) = play(room, &program, Some(name))?;
        if let Some(missing) = words.iter().find(|words| !text.lines().any(|line| line.contains(**words))) {
            return Ok(Verdict::Failed(format!("{name}: memcheck did not say “{missing}”")));
        }
        // The pages of a heap that was dropped are gone: the program ends by a signal there.
        if code != Some(FOUND) && name != "heap-dropped" {
            return Ok(Verdict::Failed(format!("{name}: the exit code is {code:?}")));
        }
    }
    Ok(Verdict::Passed(format!("a correct program is silent, {} faults are reported", FAULTS.len())))
}

/// The exit code, and what was printed.
fn play(room: &Room, program: &Path, fault: Option<&str>) -> Result<(Option<i32>, String), Error> {
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--leak-check=full", "--errors-for-leak-kinds=definite"]);
    command.args(["--show-leak-kinds=definite", &format!("--error-exitcode={FOUND}")]);
    command.arg(program).args(fault);
    let (ended, text) = run_reading(&mut command, &room.log, Duration::from_secs(120))?;
    Ok((ended.status.and_then(|status| status.code()), text))
}
