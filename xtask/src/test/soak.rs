//! The check `soak`: the program of `cargo xtask soak` for some seconds; with `--full` for minutes.

use super::steps::logged;
use super::{Room, Verdict};
use crate::process::run_logged;
use crate::soak;
use crate::workspace::Error;
use std::process::Command;
use std::time::Duration;

const SECONDS: u64 = 12;
const SECONDS_IN_FULL: u64 = 300;

/// A planted fault is found, and a run finds none.
pub fn check(room: &Room) -> Result<Verdict, Error> {
    if let failed @ Verdict::Failed(_) = logged(room, &mut soak::build(), 900)? {
        return Ok(failed);
    }
    let planted =
        run_logged(Command::new(soak::program()).arg("--plant"), &room.log, Duration::from_secs(60))?;
    if planted.success() || !room.log_text().contains("soak: WRONG: list") {
        return Ok(Verdict::Failed("a write to a freed block was not found".into()));
    }
    let seconds = if room.full { SECONDS_IN_FULL } else { SECONDS };
    let verdict = logged(room, &mut soak::run(seconds, 8), seconds + 120)?;
    if let failed @ Verdict::Failed(_) = verdict {
        return Ok(failed);
    }
    let text = room.log_text();
    let figure = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split([',', '.']).next().unwrap_or_default().trim().to_owned()
    };
    let [operations, forks, verifications] = ["operations", "forks", "verifications"].map(figure);
    Ok(Verdict::Passed(format!("{operations} operations, {forks} forks, {verifications} verifications")))
}
