//! The check `forks`: a program forks a thousand times while eight of its threads allocate, on the library as released. Each
//! child allocates, frees what threads of its parent held, starts threads, forks again and exits.

use super::steps::{build_library, logged};
use super::{Room, Verdict, Wanted, ensure};
use crate::workspace::{Error, library, root};
use std::process::Command;

const FORKS: u32 = 1000;

/// The program of the tests of the C interface, with more forks than there.
pub fn check(room: &Room) -> Result<Verdict, Error> {
    if let Err(why) = ensure(&[Wanted::Program("cc", "gcc")], &room.log) {
        return Ok(Verdict::Skipped(why));
    }
    if let Err(why) = build_library(room)? {
        return Ok(Verdict::Failed(why));
    }
    let program = room.scratch.join("fork");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-std=c11", "-O1", "-fno-builtin"])
        .arg(root().join("crates/terrane-malloc/tests/c/fork.c"));
    compiler.arg("-o").arg(&program).arg("-lpthread");
    if let failed @ Verdict::Failed(_) = logged(room, &mut compiler, 60)? {
        return Ok(failed);
    }
    let mut command = Command::new(&program);
    command.arg(FORKS.to_string()).env("LD_PRELOAD", library()).env("ON_TERRANE", "1");
    let verdict = logged(room, &mut command, 600)?;
    Ok(match verdict {
        Verdict::Passed(_) if !room.log_text().lines().any(|line| line == "ok") => {
            Verdict::Failed("it ended without having said ok".into())
        }
        Verdict::Passed(_) => Verdict::Passed(format!("{FORKS} forks beside 8 allocating threads")),
        other => other,
    })
}
