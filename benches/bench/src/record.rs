//! What a worker tells the driver: one line of JSON on standard output, made after everything is measured.
//!
//! Invariant: every figure here is raw (counts, nanoseconds, bytes); ratios and percentiles belong to [`crate::stats`].

use serde::{Deserialize, Serialize};

/// The result of one workload, run once, in one process, under one allocator.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// Operations completed, over all threads; each workload says what one operation is.
    pub ops: u64,
    /// Wall time from the first thread's start to the last thread's end, in nanoseconds.
    pub elapsed_ns: u64,
    /// Largest resident set of the process so far (`VmHWM`), in bytes.
    pub peak_bytes: u64,
    /// Resident set after the workload has freed everything, in bytes.
    pub end_bytes: u64,
    /// Anonymous resident memory gained since before the workload, after it ended, in bytes.
    pub end_anon_bytes: u64,
    /// Memory one second after a burst, for the workload that looks at it.
    pub idle: Option<Idle>,
    /// Page faults served without input or output while the workload ran.
    pub minor_faults: u64,
    /// Voluntary and involuntary context switches while the workload ran.
    pub switches: u64,
    /// Sampled latencies of single allocations, as `(upper bound in ns, samples)`; empty unless asked for.
    pub alloc_latency: Vec<(u64, u64)>,
    /// Sampled latencies of single frees, as `(upper bound in ns, samples)`; empty unless asked for.
    pub free_latency: Vec<(u64, u64)>,
}

/// Memory of a process that did a burst of work, freed it, and has then been idle for a second.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Idle {
    /// Bytes that the program still holds on purpose.
    pub live_bytes: u64,
    /// Anonymous resident bytes above those before the program's first own allocation.
    pub anon_bytes: u64,
    /// Of those, bytes the kernel may take back under pressure (`MADV_FREE`) but has not.
    pub lazy_bytes: u64,
}
