//! Instructions per operation, counted by valgrind's callgrind.
//!
//! Invariant: a workload is counted twice, at two amounts of work, and the difference is divided by the difference of
//! operations: start-up, preparation and the record do not count. Only one thread is counted: valgrind runs threads
//! one at a time.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::record::Record;

/// Shares of the full work at which a workload is counted.
const SCALES: (f64, f64) = (0.01, 0.03);

/// Whether valgrind can be run.
pub fn is_installed() -> bool {
    let found =
        Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

fn count(worker: &Path, workload: &str, scale: f64) -> Result<(u64, u64), String> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(worker)
        .args([workload, "1", &scale.to_string()])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("valgrind cannot be run: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!(
            "ended with {} under valgrind: {}",
            output.status,
            said.lines().last().unwrap_or("")
        ));
    }
    let record: Record =
        serde_json::from_slice(&output.stdout).map_err(|error| format!("not a record: {error}"))?;
    let collected = collected(&said).ok_or("valgrind named no count")?;
    Ok((collected, record.ops))
}

/// The number in callgrind's line `==1== Collected : 12345`.
fn collected(said: &str) -> Option<u64> {
    let line = said.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Instructions of one operation; an error where the workload cannot be counted.
pub fn per_operation(worker: &Path, workload: &str) -> Result<f64, String> {
    let (low, high) = (count(worker, workload, SCALES.0)?, count(worker, workload, SCALES.1)?);
    if high.1 <= low.1 {
        return Err("too few operations at a small scale".into());
    }
    Ok(high.0.saturating_sub(low.0) as f64 / (high.1 - low.1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read_from_what_callgrind_says() {
        let said = "==7== Events    : Ir\n==7== Collected : 181346\n==7==\n==7== I   refs:      181,346\n";
        assert_eq!(collected(said), Some(181_346));
        assert_eq!(collected("==7== Aborted"), None);
    }
}
