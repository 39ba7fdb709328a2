//! Where the emulator and the kernel come from: this machine, or Debian's packages, unpacked without being installed.
//!
//! An installation of the emulator could replace other programs of the machine, and wants root; a folder of its own does not.

use crate::process::{run_logged, run_reading};
use crate::workspace::{Error, which};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// The package that depends on the newest small kernel.
const KERNEL: &str = "linux-image-cloud-amd64";

/// What boots a machine.
pub struct Machine {
    /// The kernel.
    pub kernel: PathBuf,
    /// The folder that the emulator was unpacked to; none if it is installed.
    unpacked: Option<PathBuf>,
}

impl Machine {
    /// The emulator, ready for arguments.
    pub fn qemu(&self) -> Command {
        let Some(root) = &self.unpacked else { return Command::new(PROGRAM) };
        let mut command = Command::new(root.join("usr/bin").join(PROGRAM));
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
            .map(|folder| root.join(folder).to_string_lossy().into_owned());
        command.env("LD_LIBRARY_PATH", libraries.join(":"));
        for data in ["usr/share/seabios", "usr/share/qemu"] {
            command.arg("-L").arg(root.join(data));
        }
        command
    }
}

/// Finds or fetches emulator and kernel; why there are none, as the reason of a skip.
pub fn machine(folder: &Path, log: &Path) -> Result<Result<Machine, String>, Error> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Ok(Err("the emulated machine runs programs for x86-64 Linux".into()));
    }
    let root = folder.join("root");
    let is_unpacked = || root.join("usr/bin").join(PROGRAM).is_file();
    let lacks_qemu = which(PROGRAM).is_none() && !is_unpacked();
    if lacks_qemu || kernel(&root).is_none() {
        let make = |folder: &Path| {
            fs::create_dir_all(folder)
                .map_err(|cause| Error::io(format_args!("cannot make {}", folder.display()), cause))
        };
        make(&root)?;
        for tool in ["apt-get", "apt-cache", "dpkg"] {
            if which(tool).is_none() {
                return Ok(Err(format!("{PROGRAM} or a kernel is missing, and no {tool} to fetch it with")));
            }
        }
        // Lists that are old are as good, if they still name what is there.
        let _ = run_logged(Command::new("apt-get").args(["update", "-qq"]), log, Duration::from_secs(120));
        let packages = folder.join("packages");
        let _ = fs::remove_dir_all(&packages);
        make(&packages.join("partial"))?;
        if lacks_qemu && !fetch_with_dependencies(&packages, log)? {
            return Ok(Err(format!("{PROGRAM} is not installed, and its packages cannot be fetched")));
        }
        if kernel(&root).is_none() && !fetch_kernel(&packages, log)? {
            return Ok(Err("no Debian kernel can be fetched".into()));
        }
        unpack(&packages, &root, log)?;
    }
    let Some(kernel) = kernel(&root) else { return Ok(Err("the kernel's package holds no kernel".into())) };
    let unpacked = is_unpacked().then_some(root);
    if unpacked.is_none() && which(PROGRAM).is_none() {
        return Ok(Err(format!("{PROGRAM} is not installed, and is not in the package {PACKAGE}")));
    }
    let machine = Machine { kernel, unpacked };
    let (ended, _) = run_reading(machine.qemu().arg("--version"), log, Duration::from_secs(20))?;
    Ok(if ended.success() { Ok(machine) } else { Err(format!("{PROGRAM} does not start here")) })
}

fn kernel(root: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(root.join("boot")).ok()?;
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
}

/// The emulator's package and those that it needs and this machine lacks.
fn fetch_with_dependencies(packages: &Path, log: &Path) -> Result<bool, Error> {
    let mut command = Command::new("apt-get");
    command.args(["install", "--download-only", "-y", "-qq", "--no-install-recommends"]);
    command.arg("-o").arg(format!("Dir::Cache::archives={}", packages.display()));
    command.args(["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root", PACKAGE]);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    Ok(run_logged(&mut command, log, Duration::from_secs(300))?.success())
}

fn fetch_kernel(packages: &Path, log: &Path) -> Result<bool, Error> {
    let seconds = Duration::from_secs(30);
    let (_, text) = run_reading(Command::new("apt-cache").args(["depends", KERNEL]), log, seconds)?;
    let Some(name) = text.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-")) else {
        return Ok(false);
    };
    let mut command = Command::new("apt-get");
    command.args(["download", "-q", "-o", "APT::Sandbox::User=root"]).arg(format!("linux-image-{name}"));
    command.current_dir(packages);
    Ok(run_logged(&mut command, log, Duration::from_secs(300))?.success())
}

fn unpack(packages: &Path, root: &Path, log: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(packages)
        .map_err(|cause| Error::io(format_args!("cannot list {}", packages.display()), cause))?;
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "deb") {
            let mut command = Command::new("dpkg");
            command.arg("-x").arg(&path).arg(root);
            let ended = run_logged(&mut command, log, Duration::from_secs(120))?;
            if !ended.success() {
                return Err(Error(format!("cannot unpack {}: {}", path.display(), ended.describe())));
            }
        }
    }
    // The packages are as large as what was in them.
    let _ = fs::remove_dir_all(packages);
    Ok(())
}
