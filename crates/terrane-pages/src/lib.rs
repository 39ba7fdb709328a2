//! Where pages come from: host memory reserved, committed, given back and moved, as [`terrane_core::PageSource`]s.

#![no_std]

#[cfg(feature = "std")]
extern crate std;

#[cfg(feature = "std")]
pub mod accounting;
pub mod faulty;
#[cfg(feature = "std")]
pub mod file;
mod forward;
pub mod huge;
#[cfg(feature = "std")]
mod intervals;
mod list;
mod lock;
#[cfg(feature = "std")]
mod mapped;
pub mod mmap;
pub mod numa;
mod page;
pub mod page_sized;
pub mod sbrk;
#[cfg(feature = "std")]
pub mod shared;
mod sys;
#[cfg(feature = "std")]
pub mod topology;

#[cfg(feature = "std")]
pub use accounting::{Accounting, Misuse, Totals};
pub use faulty::{Call, Faulty};
#[cfg(feature = "std")]
pub use file::FileBacked;
pub use huge::HugePages;
pub use mmap::{Commit, Mmap};
pub use numa::{NodeChoice, Numa};
pub use page::{huge_page_size, page_size};
pub use page_sized::PageSized;
pub use sbrk::Sbrk;
#[cfg(feature = "std")]
pub use shared::Shared;
#[cfg(feature = "std")]
pub use topology::{Node, Topology, TopologyError};
