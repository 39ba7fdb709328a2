//! Where a program is played once: an empty folder, and the environment with or without the library.
//!
//! Invariant: apart from the preload variables, the two plays of a program see the same environment and work in a folder
//! of the same name (compilers write it into what they make), so that their transcripts can be compared.

use crate::process::{Ended, Group};
use crate::test::Room;
use crate::workspace::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// One play of a program.
pub struct Stage<'a> {
    room: &'a Room,
    /// The folder that the program works in, empty at the start.
    pub folder: PathBuf,
    report: PathBuf,
    library: Option<PathBuf>,
}

/// What a program printed.
pub struct Printed {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub ended: Ended,
}

impl<'a> Stage<'a> {
    /// A stage called `name` in the room, with this library preloaded.
    pub fn new(room: &'a Room, name: &str, library: Option<PathBuf>) -> Result<Self, Error> {
        let folder = room.scratch.join("stage");
        fs::create_dir_all(&folder)
            .map_err(|cause| Error::io(format_args!("cannot make {}", folder.display()), cause))?;
        Ok(Self { room, report: room.scratch.join(format!("report-{name}")), folder, library })
    }

    /// Empties the folder's place for the next play.
    pub fn clear(&self) -> Result<(), Error> {
        fs::remove_dir_all(&self.folder)
            .map_err(|cause| Error::io(format_args!("cannot clear {}", self.folder.display()), cause))
    }

    /// Whether the long form is wanted.
    pub fn full(&self) -> bool {
        self.room.full
    }

    /// Whether the first program on this stage left a heap report.
    pub fn has_report(&self) -> bool {
        fs::read_to_string(&self.report).is_ok_and(|report| report.contains("heap report"))
    }

    /// A command in the stage's folder, on the allocator of this play.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder).env("LC_ALL", "C").env("TZ", "UTC").env_remove("LD_PRELOAD");
        if let Some(library) = &self.library {
            command.env("LD_PRELOAD", library).env("TERRANE_REPORT", &self.report);
        }
        command
    }

    /// A file of the stage's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a file into the stage's folder.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<PathBuf, Error> {
        let path = self.path(name);
        fs::write(&path, bytes)
            .map_err(|cause| Error::io(format_args!("cannot write {}", path.display()), cause))?;
        Ok(path)
    }

    /// Reads a file of the stage's folder.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.path(name);
        fs::read(&path).map_err(|cause| Error::io(format_args!("cannot read {}", path.display()), cause))
    }

    /// Starts `command` and leaves it running; its output goes to the log of the check.
    pub fn start(&self, command: &mut Command) -> Result<Group, Error> {
        let open = || File::options().create(true).append(true).open(&self.room.log);
        let describe = |cause| Error::io(format_args!("cannot write {}", self.room.log.display()), cause);
        let (out, err) = (open().map_err(describe)?, open().map_err(describe)?);
        Group::start(command.stdin(Stdio::null()), out, err)
    }

    /// Runs `command` to its end, with `input` as its standard input, and returns what it printed.
    pub fn run(&self, command: &mut Command, input: Option<&Path>, seconds: u64) -> Result<Printed, Error> {
        let words: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let is_preloaded = command.get_envs().any(|(name, value)| name == "LD_PRELOAD" && value.is_some());
        self.room.note(&format!("$ {}{}", if is_preloaded { "[terrane] " } else { "" }, words.join(" ")));
        match input {
            Some(path) => {
                let file = File::open(path)
                    .map_err(|cause| Error::io(format_args!("cannot open {}", path.display()), cause))?;
                command.stdin(file);
            }
            None => drop(command.stdin(Stdio::null())),
        }
        let file = |name: &str| {
            let path = self.room.scratch.join(name);
            File::options()
                .create(true)
                .truncate(true)
                .write(true)
                .open(&path)
                .map(|file| (path.clone(), file))
                .map_err(|cause| Error::io(format_args!("cannot write {}", path.display()), cause))
        };
        let ((out_path, out), (err_path, err)) = (file("stdout")?, file("stderr")?);
        let ended = Group::start(command, out, err)?.wait(Duration::from_secs(seconds))?;
        let read = |path: &Path| {
            fs::read(path).map_err(|cause| Error::io(format_args!("cannot read {}", path.display()), cause))
        };
        let printed = Printed { stdout: read(&out_path)?, stderr: read(&err_path)?, ended };
        self.room.note(&format!(
            "  {} after {:.2} s; {} bytes of output",
            printed.ended.describe(),
            printed.ended.wall.as_secs_f64(),
            printed.stdout.len()
        ));
        Ok(printed)
    }

    /// Runs `command`, which must end with exit code 0, and returns its standard output and error, one after the other.
    pub fn say(&self, command: &mut Command, seconds: u64) -> Result<Vec<u8>, Error> {
        self.say_with(command, None, seconds)
    }

    /// Like [`say`](Self::say), with `input` as standard input.
    pub fn say_with(
        &self,
        command: &mut Command,
        input: Option<&Path>,
        seconds: u64,
    ) -> Result<Vec<u8>, Error> {
        let mut printed = self.run(command, input, seconds)?;
        if !printed.ended.success() {
            self.room.note(&String::from_utf8_lossy(&printed.stdout));
            self.room.note(&String::from_utf8_lossy(&printed.stderr));
            return Err(Error(format!(
                "{} ended with {}",
                command.get_program().to_string_lossy(),
                printed.ended.describe()
            )));
        }
        printed.stdout.append(&mut printed.stderr);
        Ok(printed.stdout)
    }
}

/// A deterministic stream of numbers for generated inputs (xorshift64*, Vigna 2016).
pub struct Numbers(pub u64);

impl Numbers {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}
