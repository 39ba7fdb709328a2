//! The check `schedules`: whole heaps in random schedules, and faults in their protocols that must be found there.

use super::steps::tests_of;
use super::{Room, Verdict};
use crate::workspace::{Error, cargo, target};

/// The test is compiled with `--cfg schedules`, into a folder of its own.
pub fn check(room: &Room) -> Result<Verdict, Error> {
    let mut command = cargo(["test", "--release", "--package", "terrane-slab", "--test", "schedules"]);
    command.arg("--target-dir").arg(target().join("schedules")).args(["--", "--nocapture"]);
    tests_of(room, command.env("RUSTFLAGS", "--cfg schedules"))
}
