//! Errors as values: what the driver refused, why there is no driver, and why a pool had nothing to give.

use core::fmt;
use terrane_core::SourceError;

/// A driver call that failed: its name and the driver's own code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DriverError {
    /// The driver's name of the call, for example `cuMemAlloc`.
    pub call: &'static str,
    /// The driver's code (`CUresult` for CUDA, and the same numbers on the simulated device).
    pub code: i32,
}

impl DriverError {
    /// Out of device memory.
    pub const OUT_OF_MEMORY: i32 = 2;
    /// An argument was wrong.
    pub const INVALID_VALUE: i32 = 1;
    /// A handle (stream, event, physical memory) is not alive.
    pub const INVALID_HANDLE: i32 = 400;
    /// No way from the one device to the other.
    pub const PEER_UNSUPPORTED: i32 = 217;
    /// An address that is not mapped.
    pub const ILLEGAL_ADDRESS: i32 = 700;
    /// The device, or this driver, cannot do this.
    pub const NOT_SUPPORTED: i32 = 801;
    /// The call is not allowed while a stream is being captured.
    pub const CAPTURE_UNSUPPORTED: i32 = 900;
    /// The capture was spoilt by a call that is not allowed in it.
    pub const CAPTURE_INVALIDATED: i32 = 901;
    /// A captured stream was to wait for work outside of the capture.
    pub const CAPTURE_ISOLATION: i32 = 905;

    /// Whether the device had no memory left.
    pub const fn is_out_of_memory(&self) -> bool {
        self.code == Self::OUT_OF_MEMORY
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = match self.code {
            Self::INVALID_VALUE => " (invalid value)",
            Self::OUT_OF_MEMORY => " (out of memory)",
            Self::PEER_UNSUPPORTED => " (no peer access)",
            Self::INVALID_HANDLE => " (invalid handle)",
            Self::ILLEGAL_ADDRESS => " (illegal address)",
            Self::NOT_SUPPORTED => " (not supported)",
            Self::CAPTURE_UNSUPPORTED => " (not allowed during capture)",
            Self::CAPTURE_INVALIDATED => " (capture invalidated)",
            Self::CAPTURE_ISOLATION => " (work outside of the capture)",
            _ => "",
        };
        write!(f, "{} failed with code {}{meaning}", self.call, self.code)
    }
}

impl core::error::Error for DriverError {}

/// Why there is no device to work with.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GpuAbsence {
    /// The driver's library is not installed.
    NoLibrary {
        /// The file names that were tried.
        tried: &'static str,
    },
    /// The library is there, and too old: it lacks a function that every pool needs.
    MissingSymbol {
        /// The name of the function.
        symbol: &'static str,
    },
    /// The driver runs, and has no device with this number.
    NoDevice {
        /// The number asked for.
        ordinal: u32,
        /// How many devices there are.
        count: u32,
    },
    /// The driver refused to start.
    Driver(DriverError),
}

impl fmt::Display for GpuAbsence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLibrary { tried } => write!(f, "no driver library (tried {tried})"),
            Self::MissingSymbol { symbol } => write!(f, "the driver library lacks {symbol}"),
            Self::NoDevice { ordinal, count } => {
                write!(f, "no device number {ordinal}: the driver reports {count}")
            }
            Self::Driver(error) => write!(f, "the driver does not start: {error}"),
        }
    }
}

impl core::error::Error for GpuAbsence {}

impl From<DriverError> for GpuAbsence {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

/// What kind of shortage an allocation met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Shortage {
    /// The bytes are there in sum, but no hole is long enough, and no more could be had.
    Fragmentation,
    /// The bytes are not there.
    Exhaustion,
    /// A limit set on the pool would be passed.
    Limit,
    /// The driver refused something else than memory.
    Driver(DriverError),
    /// The pool sleeps, and would have had to grow.
    Asleep,
    /// The request itself is wrong: length zero, or an alignment that is no power of two or above the pool's.
    BadRequest,
}

/// An allocation that a pool could not serve, with what was there at that moment. All figures are bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolError {
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes free in the pool.
    pub free: u64,
    /// Longest hole in the pool.
    pub largest: u64,
    /// The limit on the pool's size, if it has one.
    pub limit: Option<u64>,
    /// Why the request was not served.
    pub shortage: Shortage,
}

impl PoolError {
    /// A request that no pool serves.
    pub const fn bad_request(requested: u64) -> Self {
        Self { requested, free: 0, largest: 0, limit: None, shortage: Shortage::BadRequest }
    }

    /// A driver's refusal; a lack of memory becomes [`Shortage::Exhaustion`].
    pub const fn driver(requested: u64, error: DriverError) -> Self {
        let shortage = if error.is_out_of_memory() { Shortage::Exhaustion } else { Shortage::Driver(error) };
        Self { requested, free: 0, largest: 0, limit: None, shortage }
    }

    /// The same error with what was free in the pool.
    pub const fn with_room(mut self, free: u64, largest: u64) -> Self {
        self.free = free;
        self.largest = largest;
        self
    }

    /// The same error with the pool's limit.
    pub const fn with_limit(mut self, limit: Option<u64>) -> Self {
        self.limit = limit;
        self
    }

    /// The shortage that a source's refusal stands for.
    pub const fn from_source(requested: u64, error: SourceError) -> Self {
        let shortage = match error {
            SourceError::OutOfMemory { .. } => Shortage::Exhaustion,
            SourceError::Limit { .. } => Shortage::Limit,
            SourceError::Os { code } => Shortage::Driver(DriverError { call: "acquire", code }),
            SourceError::BadLength { .. } | SourceError::BadAlign { .. } => Shortage::BadRequest,
            _ => Shortage::Driver(DriverError { call: "acquire", code: DriverError::NOT_SUPPORTED }),
        };
        Self { requested, free: 0, largest: 0, limit: None, shortage }
    }
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requested, free, largest, .. } = self;
        match self.shortage {
            Shortage::Fragmentation => {
                write!(f, "fragmented: {requested} bytes requested, {free} free, largest hole {largest}")
            }
            Shortage::Exhaustion => {
                write!(f, "out of device memory: {requested} bytes requested, {free} free in the pool")
            }
            Shortage::Limit => write!(
                f,
                "limit of {} bytes reached: {requested} bytes requested, {free} free in the pool",
                self.limit.unwrap_or(0)
            ),
            Shortage::Driver(error) => write!(f, "{requested} bytes requested: {error}"),
            Shortage::Asleep => write!(f, "the pool sleeps: {requested} bytes requested, {free} free"),
            Shortage::BadRequest => write!(f, "malformed request for {requested} bytes"),
        }
    }
}

impl core::error::Error for PoolError {}
