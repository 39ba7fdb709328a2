//! Where pages come from: host memory reserved, committed, given back and moved, as [`terrane_core::PageSource`]s.

#![no_std]

#[cfg(feature = "std")]
extern crate std;

pub mod huge;
mod lock;
pub mod mmap;
pub mod numa;
mod page;
pub mod sbrk;
mod sys;

pub use huge::HugePages;
pub use mmap::{Commit, Mmap};
pub use page::{huge_page_size, page_size};
pub use sbrk::Sbrk;
pub use sys::TransparentHugePages;
