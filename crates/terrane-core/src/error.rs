//! Errors as values: what was asked, and what was there.

use crate::{Extent, Span};
use core::fmt;

/// Why a [`Source`](crate::Source) or [`PageSource`](crate::PageSource) could not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SourceError {
    /// The supplier has no room for `requested` bytes.
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
    },
    /// A limit set by the user or the system would be passed.
    Limit {
        /// Bytes asked for.
        requested: u64,
        /// Bytes that the limit would still have allowed.
        available: u64,
    },
    /// The length is zero, not a multiple of the granule, or above the largest length.
    BadLength {
        /// Bytes asked for.
        requested: u64,
        /// The granule that the length must be a multiple of, in bytes.
        granule: u64,
    },
    /// The alignment is not a power of two, or above the largest alignment.
    BadAlign {
        /// Alignment asked for, in bytes.
        requested: u64,
        /// Largest alignment that the source offers, in bytes.
        max: u64,
    },
    /// The source cannot do this at all; the caller should take its other way.
    Unsupported,
    /// The operating system or the driver refused; its own error number.
    Os {
        /// `errno`, `GetLastError` or the driver's code.
        code: i32,
    },
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OutOfMemory { requested } => write!(f, "out of memory: {requested} bytes requested"),
            Self::Limit { requested, available } => {
                write!(f, "limit reached: {requested} bytes requested, {available} bytes allowed")
            }
            Self::BadLength { requested, granule } => {
                write!(f, "bad length: {requested} bytes requested, granule is {granule} bytes")
            }
            Self::BadAlign { requested, max } => {
                write!(f, "bad alignment: {requested} bytes requested, at most {max} bytes offered")
            }
            Self::Unsupported => f.write_str("not supported by this source"),
            Self::Os { code } => write!(f, "refused by the system with code {code}"),
        }
    }
}

impl core::error::Error for SourceError {}

/// A release that failed, with the extent, which still belongs to the caller.
#[derive(Debug)]
pub struct ReleaseError {
    /// The extent that was not released.
    pub extent: Extent,
    /// Why not.
    pub cause: SourceError,
}

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "could not release {} bytes at {:#x}: {}",
            self.extent.len(),
            self.extent.address(),
            self.cause
        )
    }
}

impl core::error::Error for ReleaseError {}

/// Why a [`Placement`](crate::Placement) found no span.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PlaceError {
    /// No hole is long enough at this alignment.
    NoRoom {
        /// Length asked for.
        requested: u64,
        /// Bytes free in all holes together.
        free: u64,
        /// Length of the largest hole.
        largest: u64,
    },
    /// The length is zero or above what the engine can describe.
    BadLength {
        /// Length asked for.
        requested: u64,
    },
    /// The alignment is not a power of two.
    BadAlign {
        /// Alignment asked for.
        requested: u64,
    },
    /// The engine has no memory left for its own metadata.
    NoMetadata,
}

impl fmt::Display for PlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoRoom { requested, free, largest } => {
                write!(f, "no room: {requested} requested, {free} free, largest hole {largest}")
            }
            Self::BadLength { requested } => write!(f, "bad length {requested}"),
            Self::BadAlign { requested } => write!(f, "bad alignment {requested}"),
            Self::NoMetadata => f.write_str("no memory left for placement metadata"),
        }
    }
}

impl core::error::Error for PlaceError {}

/// Why a space could not be grown, shrunk, or a span given back in checked mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PlacementError {
    /// The span overlaps space that the engine manages already.
    Overlap {
        /// The offending span.
        span: Span,
    },
    /// The span is not wholly inside the managed space.
    Outside {
        /// The offending span.
        span: Span,
    },
    /// The span, or part of it, is in use.
    InUse {
        /// The offending span.
        span: Span,
    },
    /// The span is not one that was placed and is still live.
    NotPlaced {
        /// The offending span.
        span: Span,
    },
    /// The span is empty, wraps around, or breaks the engine's granule.
    BadSpan {
        /// The offending span.
        span: Span,
    },
    /// The engine has no memory left for its own metadata.
    NoMetadata,
}

impl fmt::Display for PlacementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, span) = match *self {
            Self::Overlap { span } => ("overlaps the managed space", span),
            Self::Outside { span } => ("lies outside the managed space", span),
            Self::InUse { span } => ("is in use", span),
            Self::NotPlaced { span } => ("was not placed or is not live", span),
            Self::BadSpan { span } => ("is malformed", span),
            Self::NoMetadata => return f.write_str("no memory left for placement metadata"),
        };
        write!(f, "span at {} of length {} {what}", span.offset, span.len)
    }
}

impl core::error::Error for PlacementError {}
