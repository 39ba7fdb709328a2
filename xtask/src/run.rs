//! `cargo xtask run [--json] -- program …`: a program on Terrane, and its heap report.
//!
//! The library writes its report to the file that `TERRANE_REPORT` names, not to the program's standard error, because
//! many programs close that, or their parent reads it. Of a program that starts others, the report is that of the first. Input, output, exit code and the signal of the program's death
//! are passed through as they are.

use crate::workspace::{Error, Outcome, cargo, exit_code, library, target};
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

/// Arguments of `cargo xtask run`.
#[derive(clap::Args)]
pub struct Args {
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

/// Builds the library, runs the program on it, prints the report to standard error.
pub fn main(args: &Args) -> Outcome {
    let built = cargo(["build", "--quiet", "--release", "--package", "terrane-malloc"])
        .status()
        .map_err(|cause| Error::io("cannot start cargo", cause))?;
    if !built.success() {
        return Ok(exit_code(built));
    }
    let [program, rest @ ..] = args.command.as_slice() else { return Err(Error("no program named".into())) };
    let report = target().join(format!("terrane-report-{}", std::process::id()));

    let mut command = Command::new(program);
    command
        .args(rest)
        .env("LD_PRELOAD", preload(&library()))
        .env("TERRANE_REPORT", &report)
        .env("TERRANE_REPORT_FORMAT", if args.json { "json" } else { "text" });
    // The terminal sends its signals to the program as well; it decides what they mean, and we report either way.
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: ignoring a signal has no memory effects. The child gets the default back below.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    restore_signals_in_child(&mut command);
    let status = command
        .status()
        .map_err(|cause| Error::io(format_args!("cannot start {}", program.to_string_lossy()), cause))?;

    let text = fs::read(&report).unwrap_or_default();
    let _ = fs::remove_file(&report);
    // A process that has begun leaves its number there; the report replaces it.
    if text.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_whitespace()) {
        eprintln!(
            "xtask: the program left no report: it ended without running exit handlers, or is statically linked"
        );
    } else {
        std::io::stderr().write_all(&text).map_err(|cause| Error::io("cannot write the report", cause))?;
    }
    if let Some(signal) = status.signal() {
        // SAFETY: neither call touches memory. We end the way the program ended; core dumps are the program's business.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

/// `library` in front of what is preloaded already.
fn preload(library: &std::path::Path) -> OsString {
    let mut value = OsString::from(library);
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        value.push(":");
        value.push(others);
    }
    value
}

fn restore_signals_in_child(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: the closure runs between fork and exec and calls only `signal`, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
}
