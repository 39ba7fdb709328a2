//! The program as a whole, over a driver made of the simulated device: every part that only runs where there is a driver
//! runs, so that it works the first time there is a device. No figure is looked at, and none is shown.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder in which the fake driver has the driver's name.
fn driver() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    // As the tests of that crate build it.
    let build = ["build", "--profile", "test", "--quiet", "--message-format", "json"];
    let which = ["--package", "terrane-gpu", "--example", "fake_cuda"];
    let built = Command::new(env!("CARGO")).args(build).args(which).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let said = String::from_utf8_lossy(&built.stdout).into_owned();
    let library =
        said.split('"').find(|text| text.ends_with("libfake_cuda.so")).expect("cargo names what it built");
    place(Path::new(library), &folder.join("driver"), "libcuda.so");
    folder.join("driver")
}

/// Copies a file into a folder under a name, whoever else does the same.
fn place(from: &Path, folder: &Path, name: &str) {
    std::fs::create_dir_all(folder).unwrap();
    let own = folder.join(format!("{name}-{:?}", std::thread::current().id()));
    std::fs::copy(from, &own).unwrap();
    std::fs::rename(own, folder.join(name)).unwrap();
}

fn run(args: &[&str], environment: &[(&str, &str)]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_terrane-gpu-bench"))
        .args(args)
        .env("LD_LIBRARY_PATH", driver())
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let text = text.into_owned();
    (output, text)
}

/// The line that starts so.
fn line<'a>(text: &'a str, start: &str) -> &'a str {
    let found = text.lines().find(|line| line.trim_start().starts_with(start));
    found.unwrap_or_else(|| panic!("no line starts with {start:?}:\n{text}"))
}

#[test]
fn every_part_runs_over_a_driver_and_no_figure_of_it_is_shown() {
    let (output, text) = run(&["--small", "--rounds", "1", "--python", "/nowhere/python"], &[]);
    assert!(output.status.success(), "{text}");
    assert!(line(&text, "device:").contains("simulated") && text.contains("REHEARSAL"), "{text}");
    let checks: Vec<&str> = text.lines().filter(|line| line.starts_with("check")).collect();
    assert!(checks.len() > 20 && checks.iter().all(|line| line.ends_with(" ok")), "{text}");
    assert!(line(&text, "check memory of a captured graph").ends_with(" ok"), "{text}");
    // Each size on each of four pools of ours and three of the driver's.
    for size in ["256 B", "4 KiB", "64 KiB", "1 MiB", "2 MiB", "16 MiB", "256 MiB"] {
        let cells: Vec<&str> = line(&text, size).split_whitespace().skip(2).collect();
        assert_eq!(cells, ["ran"; 7], "{text}");
    }
    for start in ["fixed, threads", "variable, threads", "per-stream figures", "transfers of"] {
        assert!(line(&text, start).contains("ran"), "{text}");
    }
    assert_eq!(text.lines().filter(|line| line.contains("by remapping ran")).count(), 2, "{text}");
    for peer in ["PyTorch", "CuPy", "RMM"] {
        assert!(line(&text, peer).contains("skipped: /nowhere/python"), "{text}");
    }
    assert!(!text.contains("FAILED") && !text.contains("failed"), "{text}");
    // No number with a unit of time.
    let words: Vec<&str> = text.split("goals:").next().unwrap_or_default().split_whitespace().collect();
    let timed = |words: &[&str]| words[0].parse::<f64>().is_ok() && matches!(words[1], "ns" | "µs" | "ms");
    assert!(!words.windows(2).any(timed), "{text}");
    let goals = text.split("goals:").nth(1).expect("the goals come last");
    assert!(!goals.contains(" met") && !goals.contains("MET"), "{text}");
    for goal in [
        "fixed pool over cuMemAlloc, every",
        "variable pool over cuMemAllocAsync",
        "remapping",
        "both directions",
    ] {
        assert!(line(goals, goal).ends_with("only rehearsed"), "{text}");
    }
    assert!(line(goals, "variable pool over PyTorch").ends_with("not run"), "{text}");
}

/// Stand-ins for the peers, whose calls take their time.
const STUBS: [(&str, &str); 3] = [
    (
        "torch.py",
        "from types import SimpleNamespace as N\n\
         live = set()\n\
         def take(n, stream):\n    live.add(a := len(live) + 1000 * n)\n    return a\n\
         def give(a):\n    live.remove(a)\n\
         cuda = N(init=lambda: None, current_stream=lambda: N(cuda_stream=0))\n\
         _C = N(_cuda_cudaCachingAllocator_raw_alloc=take, _cuda_cudaCachingAllocator_raw_delete=give)\n",
    ),
    ("cupy.py", "raise OSError('this peer does not load')\n"),
    (
        "rmm.py",
        "from types import SimpleNamespace as N\n\
         class Pool:\n    def __init__(self, upstream, initial_pool_size): self.calls = 0\n\
         \x20   def allocate(self, n):\n        self.calls += 1\n        if self.calls > 100: raise MemoryError('full')\n        return n\n\
         \x20   def deallocate(self, a, n):\n        assert a == n\n\
         mr = N(PoolMemoryResource=Pool, CudaMemoryResource=lambda: None)\n",
    ),
];

#[test]
fn a_peer_is_measured_without_python_s_own_loop_and_one_that_fails_says_why() {
    if Command::new("python3").arg("--version").output().is_err() {
        return;
    }
    let stubs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stubs");
    std::fs::create_dir_all(&stubs).unwrap();
    for (name, text) in STUBS {
        std::fs::write(stubs.join(name), text).unwrap();
    }
    let args = ["--small", "--rounds", "3", "--no-checks", "--part", "peers", "--part", "pairs"];
    let (output, text) = run(&args, &[("PYTHONPATH", stubs.to_str().unwrap())]);
    assert!(output.status.success(), "{text}");
    let of = |peer: &str| text.lines().filter(|line| line.trim_start().starts_with(peer)).collect::<Vec<_>>();
    // Seven sizes, and mixed lengths between free blocks.
    assert_eq!(of("PyTorch").len(), 8, "{text}");
    assert!(of("PyTorch")[7].contains("2000 free"), "{text}");
    assert_eq!(of("CuPy").len(), 1, "{text}");
    assert!(of("CuPy")[0].contains("skipped") && of("CuPy")[0].contains("does not load"), "{text}");
    // Ten calls and one before, three rounds: the fourth size is its last.
    assert_eq!(of("RMM").len(), 4, "{text}");
    assert!(of("RMM")[3].contains("stopped") && of("RMM")[3].contains("full"), "{text}");
    assert!(line(&text, "variable pool over RMM, nearly").ends_with("only rehearsed"), "{text}");
    assert!(line(&text, "variable pool over RMM, 2000").ends_with("not run"), "{text}");
}

#[test]
fn without_a_driver_the_parts_that_need_one_say_so_and_a_device_that_is_not_there_is_a_failure() {
    let args =
        ["--sim", "--small", "--no-checks", "--part", "remapping", "--part", "transfers", "--part", "peers"];
    let (output, text) = run(&args, &[]);
    assert!(output.status.success(), "{text}");
    assert_eq!(text.lines().filter(|line| line.ends_with("how fast, needs a device")).count(), 2, "{text}");
    assert!(text.contains("bandwidth needs a device") && text.contains("RMM need a device"), "{text}");
    let (output, text) = run(&["--device", "4000"], &[]);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("no device number 4000: the driver reports 2") && text.contains("--sim"), "{text}");
}
