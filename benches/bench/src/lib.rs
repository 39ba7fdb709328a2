//! The comparison benchmark of Terrane: the same workloads, from one source, under every allocator.
//!
//! A worker program is built once per allocator, each from the same source with the allocator chosen by a feature, so
//! that it is inlined as in a user's program. The driver runs the workers in alternation and compares:
//!
//! ```text
//!   catalogue ──┬─> worker (one binary per allocator) ──> one record per run
//!               │                                              │
//!               └─> driver: schedule ─> runner ─> results <────┘
//!                                                  │
//!                             table, JSON, HTML report, page for the book, verdicts on the goals
//! ```
//!
//! # Example
//!
//! ```
//! use terrane_bench::catalogue::WORKLOADS;
//! use terrane_bench::stats::median;
//!
//! assert!(WORKLOADS.iter().any(|workload| workload.name == "larson"));
//! assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
//! ```
//!
//! # Features
//!
//! `peer-NAME` chooses the allocator of the worker; at most one at a time. Peers written in C or C++ need a toolchain,
//! so none is a default.
//!
//! # Limits
//!
//! Memory and page faults are read from Linux's `/proc`. Latencies are sampled with the processor's tick counter on
//! x86-64 and with the system's clock elsewhere, which is too coarse for single hits.

pub mod book;
pub mod callgrind;
pub mod catalogue;
pub mod goals;
pub mod machine;
pub mod peers;
pub mod preload;
pub mod record;
pub mod report;
pub mod results;
pub mod runner;
pub mod schedule;
pub mod stats;
pub mod table;
