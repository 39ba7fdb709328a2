//! One module for each target: `run` decodes the bytes and panics at the first disagreement.

pub mod c_abi;
pub mod config;
pub mod global;
pub mod page_source;
pub mod placement;
pub mod private_heap;
pub mod remote;
pub mod size_class;

/// A target: its name, which its program and its folder of regressions have too, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets but those that run on a preloaded library.
pub const TARGETS: [Target; 7] = [
    ("config", config::run),
    ("global", global::run),
    ("page_source", page_source::run),
    ("placement", placement::run),
    ("private_heap", private_heap::run),
    ("remote", remote::run),
    ("size_class", size_class::run),
];

/// Targets that need the library preloaded: they call `malloc` and its relatives by name.
pub const PRELOADED: [Target; 1] = [("c_abi", c_abi::run)];
