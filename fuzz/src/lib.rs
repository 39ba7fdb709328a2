//! What the fuzz targets share: a reference model of an allocator, and the decoding of operation sequences from bytes.
//!
//! A target turns the fuzzer's bytes into operations, carries each out on the allocator and on the [`model::Model`], and
//! panics where the two disagree. Any bytes decode to some sequence, so that no input is wasted.

pub mod bytes;
pub mod heap;
pub mod model;
pub mod targets;
