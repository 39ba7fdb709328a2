//! The CUDA back-end. The `cuda_…` tests run on whatever driver the machine has and are skipped where there is none; the
//! others run them again in a child process over a driver made of the simulated device, and look at what happens when the
//! driver is missing, too old, empty or broken.
#![cfg(all(feature = "cuda", not(loom)))]

mod common;

use common::FirstFit;
use cudarc::driver::CudaContext;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use terrane_gpu::conformance;
use terrane_gpu::{ChunkConfig, Cuda, Device, GpuAbsence, PinnedPool, Sim, SimConfig, Streams};

fn device(ordinal: u32, test: &str) -> Option<Arc<Cuda>> {
    match Cuda::open(ordinal) {
        Ok(device) => Some(device),
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
            None
        }
    }
}

/// The simulation behind the fake driver reports what was done against the rules.
fn assert_no_violations() {
    // SAFETY: the library is loaded, and the function, where it exists, has this type.
    let violations = unsafe {
        cudarc::driver::sys::culib()
            .get::<unsafe extern "C" fn() -> u64>(b"fake_cuda_violations\0")
            .map_or(0, |count| count())
    };
    assert_eq!(violations, 0);
}

#[test]
fn the_simulated_device_conforms() {
    for seed in 0..4 {
        // With a link between the devices, and without.
        let links = if seed % 2 == 0 { vec![(0, 1)] } else { Vec::new() };
        let sim = Sim::with(SimConfig { seed, devices: 2, links, ..SimConfig::default() });
        for outcome in conformance::run(&sim.device(0), FirstFit::default) {
            assert_eq!(outcome.failure, None, "{}", outcome.name);
        }
        for outcome in conformance::run_between([&sim.device(0), &sim.device(1)], FirstFit::default) {
            assert_eq!(outcome.failure, None, "{}", outcome.name);
        }
        assert_eq!(sim.violations(), []);
        assert_eq!((sim.used_bytes(0), sim.used_bytes(1)), (0, 0));
    }
}

#[test]
fn cuda_device_conforms() {
    let Some(device) = device(0, "cuda_device_conforms") else { return };
    assert!(!device.info().simulated && device.info().total_bytes > 0 && !device.info().name.is_empty());
    let mut outcomes = conformance::run(&device, FirstFit::default);
    outcomes.extend(conformance::run_on_cuda(&device, FirstFit::default));
    for outcome in outcomes {
        assert_eq!(outcome.failure, None, "{}", outcome.name);
    }
    if Cuda::count().unwrap() > 1 {
        let other = Cuda::open(1).unwrap();
        for outcome in conformance::run_between([&device, &other], FirstFit::default) {
            assert_eq!(outcome.failure, None, "{}", outcome.name);
        }
    }
    assert_no_violations();
}

#[test]
fn cuda_pinned_memory_comes_from_the_node_of_the_device() {
    let Some(device) = device(0, "cuda_pinned_memory") else { return };
    let Some(node) = device.info().numa_node else { return };
    let pool = PinnedPool::near(device.clone(), node, ChunkConfig::default());
    let mut buf = pool.copied(&[7u32; 5000]).unwrap();
    assert_eq!((pool.node(), buf[4999]), (Some(node), 7));
    buf[4999] = 8;
    #[cfg(target_os = "linux")]
    {
        use std::ptr::NonNull;
        use terrane_core::{PageSource, Source};
        let plain = terrane_pages::Mmap::new();
        let extent = plain.acquire(1 << 16, 4096).unwrap();
        // SAFETY: inside the extent, which is then released. A sandbox may forbid it.
        let can_bind = unsafe {
            let bound = plain.bind(NonNull::new(extent.as_ptr()).unwrap(), 1 << 16, node).is_ok();
            plain.release(extent).unwrap();
            bound
        };
        // What the kernel says of the chunk.
        let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap_or_default();
        let start = |line: &str| u64::from_str_radix(line.split(' ').next()?, 16).ok();
        let address = buf.as_ptr() as u64;
        let line = maps.lines().rfind(|line| start(line).is_some_and(|at| at <= address));
        let prefers = |line: &str| line.contains("prefer") && line.contains(&format!(":{node}"));
        if can_bind && !maps.is_empty() {
            assert!(line.is_some_and(prefers), "{line:?}");
        } else {
            let _ = writeln!(std::io::stderr(), "not shown: where pages lie: this system binds none");
        }
    }
    drop(buf);
    assert!(pool.trim() > 0);
    // Where there are several nodes the pool of a device picks its node by itself.
    let own = PinnedPool::new(device.clone(), ChunkConfig::default());
    assert_eq!(own.node().is_some(), terrane_pages::numa::node_count() > 1);
    assert_eq!(own.zeroed::<u8>(9).unwrap()[..], [0; 9]);
    assert_no_violations();
}

#[test]
fn cuda_streams_are_known_again_and_errors_are_codes() {
    let Some(device) = device(0, "cuda_streams") else { return };
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    // SAFETY: the stream is alive.
    let (a, b) = unsafe {
        (device.adopt(stream.cu_stream().cast()).unwrap(), device.adopt(stream.cu_stream().cast()).unwrap())
    };
    assert_eq!(a, b);
    let own = device.stream_create().unwrap();
    assert_ne!(own.key(), a.key());
    device.stream_destroy(own).unwrap();
    let error = device.alloc(1 << 50).unwrap_err();
    assert!(error.is_out_of_memory(), "{error}");
}

#[test]
fn cuda_calls_back_when_work_is_done() {
    let Some(device) = device(0, "cuda_calls_back") else { return };
    let stream = device.stream_create().unwrap();
    let called = Arc::new(AtomicU32::new(0));
    let there = called.clone();
    device.when_done(stream, Box::new(move || there.store(1, Ordering::SeqCst))).unwrap();
    device.stream_synchronize(stream).unwrap();
    assert_eq!(called.load(Ordering::SeqCst), 1);
    let event = device.event_create().unwrap();
    device.event_record(event, stream).unwrap();
    device.event_synchronize(event).unwrap();
    assert!(device.event_query(event).unwrap());
    device.event_destroy(event);
}

#[test]
fn cuda_copies_between_devices() {
    let Some(from) = device(0, "cuda_copies_between_devices") else { return };
    let Some(to) = device(1, "cuda_copies_between_devices") else { return };
    let (a, b) = (from.alloc(4096).unwrap(), to.alloc(4096).unwrap());
    let (stream, there) = (from.stream_create().unwrap(), to.stream_create().unwrap());
    let mut bytes = [0; 16];
    // SAFETY: the memory is ours until it is freed, after the host has waited.
    unsafe {
        from.fill(a, 77, 4096, stream).unwrap();
        from.copy_peer(b, to.info().uuid, a, 4096, stream).unwrap();
        from.stream_synchronize(stream).unwrap();
        to.download(bytes.as_mut_ptr(), b + 4000, 16, there).unwrap();
        to.stream_synchronize(there).unwrap();
        from.free(a).unwrap();
        to.free(b).unwrap();
    }
    assert_eq!(bytes, [77; 16]);
    assert_no_violations();
}

#[test]
fn child_says_what_is_absent() {
    if let Ok(expected) = std::env::var("EXPECTED_ABSENCE") {
        // As in a program that is built to abort on a panic: one that somebody catches would end this one too.
        std::panic::set_hook(Box::new(|panic| {
            eprintln!("{panic}");
            std::process::abort();
        }));
        let kind = match Cuda::open(0).map(|_| ()) {
            Ok(()) => "None",
            Err(GpuAbsence::NoLibrary { .. }) => "NoLibrary",
            Err(GpuAbsence::MissingSymbol { .. }) => "MissingSymbol",
            Err(GpuAbsence::NoDevice { .. }) => "NoDevice",
            Err(GpuAbsence::Driver(_)) => "Driver",
            Err(other) => panic!("{other}"),
        };
        assert_eq!(kind, expected);
    }
}

/// What the example libraries are made of.
fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut files, mut folders) = (Vec::new(), vec![root.join("src"), root.join("examples")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { &mut folders } else { &mut files }.push(path);
        }
    }
    files
}

/// A folder that holds the named example library as the driver.
fn folder_with(library: &str) -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    let built = deps.parent().unwrap().join("examples").join(format!("lib{library}.so"));
    // Where only one test is asked for, cargo does not build the examples.
    let age = |path: &Path| std::fs::metadata(path).and_then(|about| about.modified()).ok();
    if age(&built).is_none_or(|built| sources().iter().filter_map(|file| age(file)).any(|file| file > built))
    {
        let build =
            ["build", "--profile", "test", "--quiet", "--package", "terrane-gpu", "--example", library];
        assert!(Command::new(env!("CARGO")).args(build).status().unwrap().success());
    }
    let folder = deps.join(format!("driver-{library}"));
    std::fs::create_dir_all(&folder).unwrap();
    // Two tests may do this at once: each copies to a name of its own and moves that into place.
    static COPIES: AtomicU32 = AtomicU32::new(0);
    let copy = COPIES.fetch_add(1, Ordering::Relaxed);
    let own = folder.join(format!("{}-{copy}", std::process::id()));
    std::fs::copy(&built, &own).unwrap_or_else(|e| panic!("{}: {e}", built.display()));
    std::fs::rename(own, folder.join("libcuda.so")).unwrap();
    folder
}

fn child(folder: &Path, filter: &str, environment: &[(&str, &str)]) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args([filter, "--nocapture", "--test-threads=1"])
        .env("LD_LIBRARY_PATH", folder)
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn the_back_end_passes_over_a_driver_made_of_the_simulation() {
    let folder = folder_with("fake_cuda");
    for seed in ["1", "2", "3"] {
        let output = child(&folder, "cuda_", &[("FAKE_CUDA_SEED", seed), ("FAKE_CUDA_NUMA", "0")]);
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("5 passed") && !text.contains("skipped:"), "{text}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn every_kind_of_absence_is_told_and_nothing_panics() {
    let fake = folder_with("fake_cuda");
    let old = folder_with("fake_cuda_old");
    let cases = [
        (&old, "MissingSymbol", vec![]),
        (&fake, "NoDevice", vec![("FAKE_CUDA_DEVICES", "0")]),
        (&fake, "Driver", vec![("FAKE_CUDA_INIT", "999")]),
        (&fake, "None", vec![]),
    ];
    for (folder, expected, mut environment) in cases {
        environment.push(("EXPECTED_ABSENCE", expected));
        let output = child(folder, "child_says_what_is_absent", &environment);
        assert!(output.status.success(), "{expected}: {}", String::from_utf8_lossy(&output.stdout));
    }
    if matches!(Cuda::open(0), Err(GpuAbsence::NoLibrary { .. })) {
        let output = child(Path::new("/nowhere"), "child_says", &[("EXPECTED_ABSENCE", "NoLibrary")]);
        assert!(output.status.success());
    }
}
