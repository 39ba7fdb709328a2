//! A pool at one moment, and how it came to that: as JSON for programs, and as one HTML page with a map of memory over
//! time for people.
//!
//! ```
//! use terrane_gpu::adaptors::Trace;
//! use terrane_gpu::snapshot::Snapshot;
//! use terrane_gpu::{Device, DeviceBuf, FixedConfig, FixedPool, Sim};
//!
//! let sim = Sim::new();
//! let device = sim.device(0);
//! let pool = Trace::new(FixedPool::new(device.clone(), FixedConfig::new(4096))?, 1000);
//! drop(DeviceBuf::<u8, _>::new_in(&pool, 100, device.default_stream())?);
//!
//! let snapshot = Snapshot::of(&pool, device.info());
//! assert!(snapshot.to_json()?.contains("\"reserved\""));
//! assert!(snapshot.to_html().contains("<svg"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod html;

use crate::adaptors::{Lifetime, Trace};
use crate::device::DeviceInfo;
use crate::pool::{DevicePool, PoolStats};
use crate::variable::StreamFigures;
use serde::Serialize;

/// A refusal in a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Refusal {
    /// Nanoseconds from the start of the trace.
    pub nanos: u64,
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes free in the pool.
    pub free: u64,
    /// Longest hole.
    pub largest: u64,
    /// The whole error in words.
    pub message: String,
}

/// A pool at one moment. Lengths are bytes, times are nanoseconds from the start of the trace.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Snapshot {
    /// The device's name.
    pub device: String,
    /// The device's UUID.
    pub uuid: String,
    /// Whether the device is simulated, so that its times mean nothing.
    pub simulated: bool,
    /// When the snapshot was taken.
    pub nanos: u64,
    /// The pool's figures.
    pub stats: PoolStats,
    /// The part of live memory that was not asked for.
    pub internal_fragmentation: f64,
    /// The part of free memory that the largest request could not have.
    pub external_fragmentation: f64,
    /// The figures of each stream, where the pool keeps them.
    pub streams: Vec<StreamFigures>,
    /// Blocks by time of birth.
    pub blocks: Vec<Lifetime>,
    /// Blocks given back of which nothing is known any more.
    pub forgotten: u64,
    /// The last requests that were refused.
    pub refusals: Vec<Refusal>,
}

impl Snapshot {
    /// The state and the history of a traced pool on a device.
    pub fn of<P: DevicePool>(pool: &Trace<P>, device: &DeviceInfo) -> Self {
        let stats = pool.stats();
        let refusal = |(nanos, error): (u64, crate::error::PoolError)| Refusal {
            nanos,
            requested: error.requested,
            free: error.free,
            largest: error.largest,
            message: error.to_string(),
        };
        Self {
            device: device.name.clone(),
            uuid: device.uuid.to_string(),
            simulated: device.simulated,
            nanos: pool.now_nanos(),
            stats,
            internal_fragmentation: stats.internal_fragmentation(),
            external_fragmentation: stats.external_fragmentation(),
            streams: Vec::new(),
            blocks: pool.lifetimes(),
            forgotten: pool.dropped(),
            refusals: pool.failures().into_iter().map(refusal).collect(),
        }
    }

    /// The same with the figures of streams ([`VariablePool::stream_figures`](crate::VariablePool::stream_figures)).
    pub fn with_streams(mut self, streams: Vec<StreamFigures>) -> Self {
        self.streams = streams;
        self
    }

    /// As JSON.
    ///
    /// # Errors
    /// Those of the JSON writer.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// As one HTML page that needs nothing else.
    pub fn to_html(&self) -> String {
        html::page(self)
    }
}
