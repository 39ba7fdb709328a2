//! Child processes with a time limit, whose output goes to files.
//!
//! Invariant: a child is the leader of a process group of its own, and when its time is over, or we are interrupted, the
//! whole group is killed: no grandchild outlives the check that started it. Output goes to files, not to pipes, so a
//! child never waits for us to read, and the log is there even when we die.

use crate::workspace::Error;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

/// Process groups that are alive now; 0 is an empty place. Checks run at most two children at once.
static GROUPS: [AtomicI32; 8] = [const { AtomicI32::new(0) }; 8];

/// A child in a process group of its own; killed with its group when dropped.
pub struct Group {
    child: Child,
    place: Option<&'static AtomicI32>,
}

/// How a child ended.
pub struct Ended {
    /// Its status; `None` when it was killed because its time was over.
    pub status: Option<ExitStatus>,
    /// How long it ran.
    pub wall: Duration,
}

impl Ended {
    /// Whether it ended by itself with exit code 0.
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// How it ended, for people.
    pub fn describe(&self) -> String {
        match self.status {
            Some(status) => status.to_string(),
            None => format!("killed after its limit of {} s", self.wall.as_secs()),
        }
    }
}

impl Group {
    /// Starts `command` without standard input unless it has one already, `stdout` and `stderr` going to these files.
    pub fn start(command: &mut Command, stdout: File, stderr: File) -> Result<Self, Error> {
        command.stdout(stdout).stderr(stderr).process_group(0);
        let child = command.spawn().map_err(|cause| {
            Error(format!("cannot start {}: {cause}", command.get_program().to_string_lossy()))
        })?;
        let id = child.id().cast_signed();
        let place = GROUPS
            .iter()
            .find(|place| place.compare_exchange(0, id, Ordering::SeqCst, Ordering::SeqCst).is_ok());
        Ok(Self { child, place })
    }

    /// Whether the child has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until the child ends or `limit` has passed; then kills whatever its group still holds.
    pub fn wait(mut self, limit: Duration) -> Result<Ended, Error> {
        let begin = Instant::now();
        let mut nap = Duration::from_millis(2);
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(Ended { status: Some(status), wall: begin.elapsed() }),
                Ok(None) if begin.elapsed() >= limit => {
                    return Ok(Ended { status: None, wall: begin.elapsed() });
                }
                Ok(None) => std::thread::sleep(nap),
                Err(cause) => return Err(Error::io("cannot wait for a child", cause)),
            }
            nap = (nap * 2).min(Duration::from_millis(50));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let id = self.child.id().cast_signed();
        // SAFETY: kill has no memory effects. The group id cannot name a stranger's group: while our child is not
        // reaped its id is taken, and after that only members of the same group keep the group id alive; an empty
        // group gives ESRCH unless the id was given out again in the meantime, which takes a whole turn of the pids.
        unsafe { libc::kill(-id, libc::SIGKILL) };
        let _ = self.child.wait();
        if let Some(place) = self.place {
            place.store(0, Ordering::SeqCst);
        }
    }
}

/// Runs `command` to its end or for at most `limit`, both outputs appended to `log`.
pub fn run_logged(command: &mut Command, log: &Path, limit: Duration) -> Result<Ended, Error> {
    let open = || {
        if let Some(parent) = log.parent() {
            fs::create_dir_all(parent)?;
        }
        File::options().create(true).append(true).open(log)
    };
    let describe = |cause| Error::io(format_args!("cannot write {}", log.display()), cause);
    let mut out = open().map_err(describe)?;
    {
        use std::io::Write;
        let line: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        writeln!(out, "$ {}", line.join(" ")).map_err(describe)?;
    }
    let err = out.try_clone().map_err(describe)?;
    command.stdin(Stdio::null());
    Group::start(command, out, err)?.wait(limit)
}

/// Like [`run_logged`], and returns what this command added to the log.
pub fn run_reading(command: &mut Command, log: &Path, limit: Duration) -> Result<(Ended, String), Error> {
    let before = fs::metadata(log).map_or(0, |meta| meta.len());
    let ended = run_logged(command, log, limit)?;
    let bytes =
        fs::read(log).map_err(|cause| Error::io(format_args!("cannot read {}", log.display()), cause))?;
    let start = usize::try_from(before).unwrap_or(usize::MAX).min(bytes.len());
    Ok((ended, String::from_utf8_lossy(&bytes[start..]).into_owned()))
}

extern "C" fn on_interrupt(signal: libc::c_int) {
    for place in &GROUPS {
        let id = place.load(Ordering::SeqCst);
        if id > 0 {
            // SAFETY: kill is async-signal-safe; the id is that of a group we started and have not reaped.
            unsafe { libc::kill(-id, libc::SIGKILL) };
        }
    }
    // SAFETY: _exit is async-signal-safe.
    unsafe { libc::_exit(128 + signal) };
}

/// From now on SIGINT, SIGTERM and SIGHUP kill the children that run, then us; a reader of our output that goes away
/// ends us quietly.
pub fn kill_children_on_interrupt() {
    // SAFETY: the default action runs no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler calls async-signal-safe functions only and touches only atomics.
        unsafe { libc::signal(signal, on_interrupt as *const () as libc::sighandler_t) };
    }
}
