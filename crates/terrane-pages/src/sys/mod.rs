//! The one place for platform differences: each platform module offers the same functions.
//!
//! Invariant: no function here allocates, takes a lock, formats, or leaves `errno` changed; each either does what it
//! says or leaves every range as it was, except where its comment says otherwise. Ranges are whole pages.
//!
//! | function | what it does |
//! |---|---|
//! | `page_size`, `huge_page_size` | bytes in a page |
//! | `reserve_aligned` | address space, accessible (`Access::Open`) or not |
//! | `reserve_hugetlb` | address space backed by explicit huge pages |
//! | `release` | gives address space back |
//! | `open` | makes pages readable and writable |
//! | `close` | drops contents, access and the memory charge |
//! | `discard` | drops contents now; pages then read as zero |
//! | `discard_lazily` | lets the system drop contents when it needs memory |
//! | `MOVES_PAGES`, `move_pages` | moves pages between two accessible ranges without copying |
//! | `populate`, `advise_huge`, `bind` | hints |
//! | `charges_reservations` | whether accessible reservations are charged before they are touched |
//! | `transparent_huge_pages` | what the system does on its own |
//! | `sleep_while`, `wake_one` | waiting for a word to change |
//! | `break_now`, `break_move` | the program break (on WebAssembly: the end of linear memory) |
//! | `current_cpu`, `current_node`, `online_nodes` | where the calling thread runs, and the nodes there are |

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use linux::*;

#[cfg(target_vendor = "apple")]
mod macos;
#[cfg(target_vendor = "apple")]
pub(crate) use macos::*;

#[cfg(unix)]
mod unix;

#[cfg(feature = "std")]
pub(crate) mod files;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub(crate) use windows::*;

#[cfg(target_family = "wasm")]
mod wasm;
#[cfg(target_family = "wasm")]
pub(crate) use wasm::*;

#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_vendor = "apple",
    windows,
    target_family = "wasm"
)))]
compile_error!("terrane-pages knows Linux, Android, macOS, Windows and WebAssembly");

/// Whether reserved pages can be touched before they are committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Readable and writable at once; a commit costs nothing.
    Open,
    /// Not accessible; a commit changes the protection.
    Closed,
}

/// What the system does about transparent huge pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransparentHugePages {
    /// For every range that does not refuse them.
    Always,
    /// For ranges that ask for them.
    OnRequest,
    /// Never, or the system has none.
    Never,
}
