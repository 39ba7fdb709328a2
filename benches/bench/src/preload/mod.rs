//! Whole programs under preloaded libraries.
//!
//! Invariant: rounds alternate as they do for workloads; a program whose output under a library differs from its
//! output under none has failed under that library, and has no time.

pub mod launch;
mod programs;
mod redis;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::peers::{self, OURS};
use crate::results::Program as Outcome;
use programs::{Kind, Program};

/// A library to preload; an empty path preloads nothing.
pub struct Library {
    /// The allocator's name.
    pub name: &'static str,
    /// The shared object.
    pub path: PathBuf,
}

/// Debian's file names of the libraries, and the names they go by here.
const PACKAGED: &[(&str, &str)] = &[
    ("mimalloc2", "libmimalloc.so.2"),
    ("jemalloc", "libjemalloc.so.2"),
    ("tcmalloc", "libtcmalloc_minimal.so.4"),
    ("tbbmalloc", "libtbbmalloc_proxy.so.2"),
];

const FOLDERS: &[&str] =
    &["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];

/// The libraries that this machine has, and what it lacks, with reasons.
pub fn libraries() -> (Vec<Library>, Vec<(String, String)>) {
    let mut found = vec![Library { name: "system", path: PathBuf::new() }];
    let mut lacking = Vec::new();
    for (name, file) in PACKAGED {
        let path = FOLDERS.iter().map(|folder| Path::new(folder).join(file)).find(|path| path.exists());
        match path {
            Some(path) => found.push(Library { name, path }),
            None => lacking.push(((*name).to_owned(), format!("{file} is not installed"))),
        }
    }
    match ours() {
        Ok(path) => found.push(Library { name: OURS, path }),
        Err(reason) => lacking.push((OURS.to_owned(), reason)),
    }
    (found, lacking)
}

/// Builds the library of this repository.
fn ours() -> Result<PathBuf, String> {
    let path = peers::workspace().join("target/release/libterrane.so");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(peers::workspace())
        .args(["build", "--release", "--package", "terrane-malloc"])
        .output()
        .map_err(|error| format!("cargo cannot be run: {error}"))?;
    if output.status.success() && path.exists() {
        return Ok(path);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("libterrane.so does not build: {}", text.lines().next().unwrap_or("no message")))
}

/// Time, peak memory, and everything the program put out.
type Run = Result<(f64, u64, Vec<u8>), String>;

fn run_batch(command: &[OsString], makes: Option<&Path>, library: &OsStr) -> Run {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(own)
        .arg(launch::WORD)
        .arg(library)
        .args(command)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or("no message");
    if !output.status.success() {
        return Err(last.to_owned());
    }
    let mut words = last.split(' ');
    let mut number = || words.next()?.parse::<f64>().ok();
    let (Some(seconds), Some(peak)) = (number(), number()) else { return Err(format!("no figures: {last}")) };
    let mut put_out = output.stdout;
    if let Some(file) = makes {
        put_out.extend(std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?);
    }
    Ok((seconds, peak as u64, put_out))
}

fn run_one(program: &Program, library: &Library) -> Run {
    match &program.kind {
        Kind::Batch { command, makes } => run_batch(command, makes.as_deref(), library.path.as_os_str()),
        Kind::Redis => {
            redis::run(library.path.as_os_str()).map(|(seconds, peak)| (seconds, peak, Vec::new()))
        }
    }
}

/// The figures of a run whose output is the first run's; the first run is the one without a library.
fn judge(expected: &mut Option<Vec<u8>>, run: Run) -> Result<(f64, u64), String> {
    let (seconds, peak, put_out) = run?;
    match expected {
        Some(expected) if *expected != put_out => {
            Err("its output differs from that without a library".into())
        }
        Some(_) => Ok((seconds, peak)),
        None => {
            *expected = Some(put_out);
            Ok((seconds, peak))
        }
    }
}

/// Runs all programs under all libraries, `rounds` times in alternation; `tell` hears what is about to run.
///
/// # Errors
///
/// The inputs cannot be written.
pub fn run(libraries: &[Library], rounds: usize, mut tell: impl FnMut(&str)) -> Result<Vec<Outcome>, String> {
    let folder = peers::output_folder().join("programs");
    let (programs, lacking) =
        programs::all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for name in lacking {
        tell(&format!("{name} is not installed: left out"));
    }
    let mut outcomes = Vec::new();
    for program in &programs {
        let mut outcome = Outcome { name: program.name.to_owned(), ..Outcome::default() };
        let mut expected: Option<Vec<u8>> = None;
        for round in 0..rounds {
            for library in libraries {
                if outcome.failures.contains_key(library.name) {
                    continue;
                }
                tell(&format!("{} under {}, round {}", program.name, library.name, round + 1));
                match judge(&mut expected, run_one(program, library)) {
                    Ok(figures) => outcome.by.entry(library.name.to_owned()).or_default().push(figures),
                    Err(reason) => {
                        outcome.by.remove(library.name);
                        outcome.failures.insert(library.name.to_owned(), reason);
                    }
                }
            }
        }
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_whose_output_differs_has_no_time() {
        let mut expected = None;
        assert_eq!(judge(&mut expected, Ok((1.0, 2, b"42".to_vec()))), Ok((1.0, 2)));
        assert_eq!(judge(&mut expected, Ok((3.0, 4, b"42".to_vec()))), Ok((3.0, 4)));
        assert!(judge(&mut expected, Ok((0.1, 1, b"41".to_vec()))).is_err_and(|why| why.contains("differs")));
        assert_eq!(judge(&mut expected, Err("crashed".into())), Err("crashed".into()));
    }
}
