//! One run of one worker: start it, watch it, read its record.
//!
//! Invariant: a worker that crashes, hangs, or finds a block with foreign content yields an error that says so, never
//! a figure.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::record::Record;

/// The exit code by which a worker says that a block lost its content.
const CORRUPT: i32 = 86;

/// How long a worker may take before it is taken for stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a run is to measure besides the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Nothing: the worker has the machine to itself.
    Nothing,
    /// The latency of single operations, sampled inside the worker.
    Latency,
    /// Resident memory over time, read from outside every few milliseconds.
    Memory,
}

/// A record, and memory over time where it was watched.
pub struct Run {
    /// The worker's own figures.
    pub record: Record,
    /// `(milliseconds since the start, resident bytes)`.
    pub timeline: Vec<(u64, u64)>,
}

fn command(worker: &Path, workload: &str, threads: usize, scale: f64, watch: Watch) -> Command {
    let mut command = Command::new(worker);
    command.arg(workload).arg(threads.to_string()).arg(scale.to_string());
    if watch == Watch::Latency {
        command.arg("latency");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn resident_of(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    // SAFETY: sysconf reads a constant.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(pages * u64::try_from(page).ok()?)
}

fn wait(child: &mut Child, watch: Watch, timeline: &mut Vec<(u64, u64)>) -> Result<(), String> {
    let start = Instant::now();
    // Looking is cheap but not free; only where memory is watched is it done often.
    let pause = Duration::from_millis(if watch == Watch::Memory { 2 } else { 4 });
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) if status.code() == Some(CORRUPT) => {
                return Err("a block lost its content".into());
            }
            Ok(Some(status)) => {
                let mut said = String::new();
                if let Some(stderr) = child.stderr.as_mut() {
                    let _ = stderr.read_to_string(&mut said);
                }
                let last = said.lines().last().unwrap_or("without a word").to_owned();
                return Err(format!("ended with {status}: {last}"));
            }
            Ok(None) if start.elapsed() > PATIENCE => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("did not end within {} s", PATIENCE.as_secs()));
            }
            Ok(None) => {}
            Err(error) => return Err(format!("cannot be waited for: {error}")),
        }
        if watch == Watch::Memory
            && let Some(bytes) = resident_of(child.id())
        {
            timeline.push((start.elapsed().as_millis() as u64, bytes));
        }
        std::thread::sleep(pause);
    }
}

/// Runs `workload` once.
pub fn run(worker: &Path, workload: &str, threads: usize, scale: f64, watch: Watch) -> Result<Run, String> {
    if workload == "startup" {
        return startup(worker, scale);
    }
    let mut child = command(worker, workload, threads, scale, watch)
        .spawn()
        .map_err(|error| format!("{} cannot be started: {error}", worker.display()))?;
    let mut timeline = Vec::new();
    wait(&mut child, watch, &mut timeline)?;
    Ok(Run { record: read(&mut child)?, timeline })
}

fn read(child: &mut Child) -> Result<Record, String> {
    let mut line = String::new();
    if let Some(stdout) = child.stdout.as_mut() {
        stdout.read_to_string(&mut line).map_err(|error| format!("output cannot be read: {error}"))?;
    }
    serde_json::from_str(&line).map_err(|error| format!("not a record: {error}"))
}

/// Starts the process again and again and takes the median of its whole life.
fn startup(worker: &Path, scale: f64) -> Result<Run, String> {
    let times = ((20.0 * scale) as usize).max(3);
    let mut lives = Vec::with_capacity(times);
    let mut record = Record::default();
    for _ in 0..times {
        let start = Instant::now();
        let output = command(worker, "startup", 1, scale, Watch::Nothing)
            .output()
            .map_err(|error| format!("{} cannot be started: {error}", worker.display()))?;
        lives.push(start.elapsed().as_nanos() as f64);
        if !output.status.success() {
            return Err(format!("ended with {}", output.status));
        }
        record = serde_json::from_slice(&output.stdout).map_err(|error| format!("not a record: {error}"))?;
    }
    record.elapsed_ns = crate::stats::median(&lives).unwrap_or_default() as u64;
    Ok(Run { record, timeline: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a shell script in place of a worker; the script is given the workload as its first argument.
    fn run_script(name: &str, script: &str, watch: Watch) -> Result<Run, String> {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("terrane-bench-{name}-{}", std::process::id()));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("the temporary folder is writable");
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&path, executable).expect("own files may be made executable");
        let busy = |result: &Result<Run, String>| result.as_ref().is_err_and(|why| why.contains("busy"));
        // A child of another test may hold the script open for the moment between its fork and its exec.
        let mut result = run(&path, "lifo", 3, 0.5, watch);
        while busy(&result) {
            result = run(&path, "lifo", 3, 0.5, watch);
        }
        std::fs::remove_file(&path).expect("the script is still there");
        result
    }

    #[test]
    fn a_record_is_read_and_the_worker_is_told_what_to_run() {
        let script = r#"[ "$*" = "lifo 3 0.5 latency" ] || exit 9
            echo '{"ops":7,"elapsed_ns":9,"peak_bytes":1,"end_bytes":1,"end_anon_bytes":0,"idle":null,
                   "minor_faults":0,"switches":0,"alloc_latency":[[5,1]],"free_latency":[]}'"#;
        let run = run_script("record", script, Watch::Latency).expect("a record");
        assert_eq!((run.record.ops, run.record.alloc_latency.as_slice()), (7, &[(5, 1)][..]));
    }

    #[test]
    fn corruption_crashes_and_nonsense_are_errors_that_say_so() {
        let error = |name, script| run_script(name, script, Watch::Nothing).err().expect("no figure");
        assert_eq!(error("corrupt", "exit 86"), "a block lost its content");
        let crash = error("crash", "echo last words >&2; kill -SEGV $$");
        assert!(crash.contains("signal") && crash.contains("last words"), "{crash}");
        assert!(error("nonsense", "echo hello").contains("not a record"));
    }

    #[test]
    fn memory_is_watched_while_the_worker_lives() {
        let script = r#"sleep 0.1; echo '{"ops":1,"elapsed_ns":1,"peak_bytes":1,"end_bytes":1,"end_anon_bytes":0,
            "idle":null,"minor_faults":0,"switches":0,"alloc_latency":[],"free_latency":[]}'"#;
        let run = run_script("memory", script, Watch::Memory).expect("a record");
        assert!(
            run.timeline.len() > 1 && run.timeline.iter().all(|(_, bytes)| *bytes > 0),
            "{:?}",
            run.timeline
        );
    }
}
