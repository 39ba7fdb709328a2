//! Where things are, and how cargo is called.
//!
//! Invariant: every path is absolute, so commands work from any folder of the workspace.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What a command returns: the exit code, or why it could not be carried out.
pub type Outcome = Result<ExitCode, Error>;

/// Why a command could not be carried out, as a sentence.
#[derive(Debug)]
pub struct Error(pub String);

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error {
    /// `what` could not be done because of `cause`.
    pub fn io(what: impl std::fmt::Display, cause: io::Error) -> Self {
        Self(format!("{what}: {cause}"))
    }
}

/// The root of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// The folder for build products: `CARGO_TARGET_DIR` or `target`.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The shared library that is preloaded, as `cargo build --release -p terrane-malloc` leaves it.
pub fn library() -> PathBuf {
    target().join("release").join("libterrane.so")
}

/// The names of the crates in `crates/`, which are also the names of their folders, sorted.
pub fn crates() -> Vec<String> {
    let Ok(entries) = fs::read_dir(root().join("crates")) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("Cargo.toml").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Whether the workspace has a crate of this name in `crates/`.
pub fn has_crate(name: &str) -> bool {
    root().join("crates").join(name).join("Cargo.toml").is_file()
}

/// A cargo command in the root of the workspace, free of the variables that the cargo around us set for us.
pub fn cargo<I, S>(args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// The system that rustc compiles for when nobody says otherwise.
pub fn host() -> Option<String> {
    let output = Command::new("rustc").arg("-vV").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned)
}

/// Builds the package in release and runs it with `args`, on this terminal; its exit code is ours.
pub fn cargo_run_release(package: &str, args: &[String]) -> Outcome {
    let status = cargo(["run", "--quiet", "--release", "--package", package, "--"])
        .args(args)
        .status()
        .map_err(|cause| Error::io("cannot start cargo", cause))?;
    Ok(exit_code(status))
}

/// The exit code that a shell would give for `status`: 128 + n after signal n.
pub fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// The full path of `program` on `PATH`.
pub fn which(program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| {
        fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}
