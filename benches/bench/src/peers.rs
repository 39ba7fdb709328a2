//! The allocators compared, and how a worker is built with each.
//!
//! Invariant: every worker comes from the same source with the same profile; only the feature that names its
//! allocator differs. A peer that does not build is reported with the compiler's last words and left out.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What a peer is written in; goals compare with the best of either kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// C or C++.
    C,
    /// Rust.
    Rust,
}

/// One allocator.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// The name on the command line and in results.
    pub name: &'static str,
    /// The cargo feature that chooses it; `None` for the system's allocator.
    pub feature: Option<&'static str>,
    /// What it is written in.
    pub language: Language,
    /// Whether a quick run measures it unless told otherwise.
    pub quick: bool,
    /// What it is.
    pub about: &'static str,
}

/// The allocator that this benchmark is for.
pub const OURS: &str = "terrane";

/// All allocators, in the order of the alternation.
pub const PEERS: &[Peer] = &[
    Peer {
        name: "system",
        feature: None,
        language: Language::C,
        quick: true,
        about: "the C library's malloc",
    },
    Peer {
        name: "mimalloc2",
        feature: Some("peer-mimalloc2"),
        language: Language::C,
        quick: false,
        about: "mimalloc 2 (crate mimalloc, feature v2)",
    },
    Peer {
        name: "mimalloc3",
        feature: Some("peer-mimalloc3"),
        language: Language::C,
        quick: true,
        about: "mimalloc 3 (crate mimalloc)",
    },
    Peer {
        name: "jemalloc",
        feature: Some("peer-jemalloc"),
        language: Language::C,
        quick: true,
        about: "jemalloc 5 (crate tikv-jemallocator)",
    },
    Peer {
        name: "snmalloc",
        feature: Some("peer-snmalloc"),
        language: Language::C,
        quick: false,
        about: "snmalloc (crate snmalloc-rs; needs CMake and a C++20 compiler)",
    },
    Peer {
        name: "rpmalloc",
        feature: Some("peer-rpmalloc"),
        language: Language::C,
        quick: false,
        about: "rpmalloc (crate rpmalloc)",
    },
    Peer {
        name: "rusty_alloc",
        feature: Some("peer-rusty-alloc"),
        language: Language::Rust,
        quick: false,
        about: "rusty_alloc (crate rusty_alloc-api)",
    },
    Peer {
        name: OURS,
        feature: Some("peer-terrane"),
        language: Language::Rust,
        quick: true,
        about: "Terrane, from this repository",
    },
];

/// The peer of that name.
pub fn find(name: &str) -> Option<&'static Peer> {
    PEERS.iter().find(|peer| peer.name == name)
}

/// The folder that holds the workspace's `Cargo.toml`.
pub fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).unwrap_or(package).to_path_buf()
}

/// The folder for workers, results and the report.
pub fn output_folder() -> PathBuf {
    workspace().join("target/bench")
}

/// Builds the worker for `peer` and returns its path, or what the compiler said.
///
/// Debug information is switched off because some build scripts take it for a wish for a debug build: snmalloc's
/// would then compile its assertions in, and the comparison would be unfair.
pub fn build(peer: &Peer) -> Result<PathBuf, String> {
    let folder = output_folder();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(workspace()).args(["build", "--release", "--package", "terrane-bench"]);
    command.args(["--bin", "terrane-bench-worker"]).arg("--target-dir").arg(folder.join("cargo"));
    command.env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    if let Some(feature) = peer.feature {
        command.args(["--features", feature]);
    }
    let output = command.output().map_err(|error| format!("cargo cannot be run: {error}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let telling = text.lines().find(|line| line.starts_with("error")).or_else(|| text.lines().last());
        return Err(format!("does not build: {}", telling.unwrap_or("no message")));
    }
    let (built, kept) = (folder.join("cargo/release/terrane-bench-worker"), worker_path(peer.name));
    // Copied aside and renamed, so that a worker that is still running keeps its file.
    let fresh = kept.with_extension("new");
    std::fs::copy(&built, &fresh)
        .and_then(|_| std::fs::rename(&fresh, &kept))
        .map_err(|error| format!("{} cannot be copied: {error}", built.display()))?;
    Ok(kept)
}

/// Where the worker of `name` is kept.
pub fn worker_path(name: &str) -> PathBuf {
    output_folder().join(format!("worker-{name}"))
}
