//! Inputs that once failed, kept in `regressions/TARGET`, replayed without a fuzzer.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use terrane_fuzz::targets::{PRELOADED, TARGETS, Target, c_abi};

/// The kept inputs of a target: none is fine, a target may never have failed.
fn inputs(name: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(name);
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.expect("the folder can be read").path()).collect()
}

fn replay(targets: &[Target]) -> usize {
    let mut count = 0;
    for (name, run) in targets {
        for path in inputs(name) {
            println!("{name}: {}", path.display());
            run(&std::fs::read(&path).expect("the input can be read"));
            count += 1;
        }
        // The shortest inputs are inputs too.
        run(&[]);
        run(&[0]);
        run(&[255; 64]);
    }
    count
}

#[test]
fn what_once_failed_passes() {
    let kept = TARGETS.iter().map(|(name, _)| inputs(name).len()).sum::<usize>();
    assert_eq!(replay(&TARGETS), kept);
}

#[test]
fn every_folder_of_kept_inputs_belongs_to_a_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    for entry in std::fs::read_dir(folder).expect("there are kept inputs") {
        let name = entry.expect("the folder can be read").file_name();
        let is_known = TARGETS.iter().chain(&PRELOADED).any(|(target, _)| name == *target);
        assert!(is_known, "{}: no such target", name.display());
    }
}

#[test]
fn what_once_failed_on_the_c_interface_passes() {
    if c_abi::is_preloaded() {
        replay(&PRELOADED);
        return;
    }
    let library = std::env::var_os("TERRANE_LIBRARY")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/libterrane.so"));
    if !library.is_file() {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: the kept inputs of the C interface: {} is not built",
            library.display()
        );
        return;
    }
    let ended = Command::new(std::env::current_exe().expect("this program has a path"))
        .args(["--exact", "what_once_failed_on_the_c_interface_passes", "--nocapture"])
        .env("LD_PRELOAD", library)
        .output()
        .expect("this program can be started again");
    let text = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && text.contains("1 passed"), "{}: {text}", ended.status);
}
