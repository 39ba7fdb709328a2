//! A process between the driver and a program, so that the program's peak memory is its own.
//!
//! Invariant: the kernel starts a child's peak at that of the process image it was started from. The driver may have
//! grown large; this process is the driver's binary freshly started, and small.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::Instant;

/// The first argument that makes the driver act as the launcher.
pub const WORD: &str = "launch-one-program";

/// Time, peak memory and end of one program.
#[derive(Clone, Copy, Debug)]
pub struct Launched {
    /// From start to end.
    pub seconds: f64,
    /// Largest resident set of the program or of a process it waited for.
    pub peak_bytes: u64,
    /// How it ended.
    pub status: ExitStatus,
}

/// Starts `command` and waits for it.
pub fn launch(mut command: Command) -> std::io::Result<Launched> {
    let start = Instant::now();
    let child = command.spawn()?;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    let mut status = 0;
    let pid = libc::pid_t::try_from(child.id()).map_err(std::io::Error::other)?;
    // SAFETY: both pointers are valid for the call; the child is ours and nobody else waits for it.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
    if waited != pid {
        return Err(std::io::Error::last_os_error());
    }
    let seconds = start.elapsed().as_secs_f64();
    // SAFETY: all-zero bytes are an rusage, and the kernel filled it in.
    let usage = unsafe { usage.assume_init() };
    let peak_bytes = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
    Ok(Launched { seconds, peak_bytes, status: ExitStatus::from_raw(status) })
}

/// The launcher's own life: `launch-one-program LIBRARY PROGRAM ARGUMENTS…`; an empty library preloads nothing. The
/// program inherits the standard streams, the figures go to standard error as one line.
pub fn main(mut args: impl Iterator<Item = std::ffi::OsString>) -> Result<(), String> {
    let (Some(library), Some(program)) = (args.next(), args.next()) else {
        return Err("a library and a program are needed".into());
    };
    let mut command = Command::new(&program);
    command.args(args);
    if !library.is_empty() {
        command.env("LD_PRELOAD", library);
    }
    let done = launch(command).map_err(|error| format!("{}: {error}", program.to_string_lossy()))?;
    if !done.status.success() {
        return Err(format!("ended with {}", done.status));
    }
    eprintln!("{} {}", done.seconds, done.peak_bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_timed_and_its_end_is_known() {
        let mut sleeps = Command::new("sh");
        sleeps.args(["-c", "sleep 0.05; exit 3"]);
        let done = launch(sleeps).expect("there is a shell");
        assert!(done.seconds >= 0.05 && done.peak_bytes > 0, "{done:?}");
        assert_eq!(done.status.code(), Some(3));
        assert!(launch(Command::new("/no/such/program")).is_err());
    }
}
