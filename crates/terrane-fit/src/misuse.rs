//! What happens to a span that was never placed, or was vacated before, and to a space that is malformed.

use core::fmt;
use terrane_core::{PlaceError, Placement, PlacementError, Span};

/// An engine that tells live spans from all others, as every engine of this crate does, by a table of their offsets.
pub trait Checked: Placement {
    /// Whether exactly `span` is live. Takes constant time.
    fn is_live(&self, span: Span) -> bool;

    /// [`Placement::vacate`] that checks: the one difference is that a wrong span is an error, in every build.
    ///
    /// # Errors
    /// [`PlacementError::NotPlaced`] if `span` is not a live one; nothing has changed then.
    fn try_vacate(&mut self, span: Span) -> Result<(), PlacementError>;
}

/// Why a span was not [resized](crate::Engine::resize).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResizeError {
    /// The span is not one that was placed and is still live.
    NotPlaced {
        /// The span.
        span: Span,
    },
    /// There is no place for the new length where the span lies.
    NoPlace(PlaceError),
}

impl From<PlaceError> for ResizeError {
    fn from(cause: PlaceError) -> Self {
        Self::NoPlace(cause)
    }
}

impl fmt::Display for ResizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotPlaced { span } => PlacementError::NotPlaced { span }.fmt(f),
            Self::NoPlace(cause) => cause.fmt(f),
        }
    }
}

impl core::error::Error for ResizeError {}

/// Whether `space` is one that an engine with `granule` can manage.
pub(crate) fn check_space(space: Span, granule: u64) -> Result<(), PlacementError> {
    let bits = space.offset | space.len;
    if space.len == 0 || bits & (granule - 1) != 0 || space.end().is_none() {
        return Err(PlacementError::BadSpan { span: space });
    }
    Ok(())
}

/// Ends the process in debug builds, with `error` in the message; does nothing in release builds.
///
/// It does not unwind: an allocator that stands on an engine must not.
#[cold]
#[cfg_attr(not(debug_assertions), inline)]
pub(crate) fn misuse(error: PlacementError) {
    if cfg!(debug_assertions) {
        struct Abort;
        impl Drop for Abort {
            fn drop(&mut self) {
                // A panic while unwinding aborts, which is what `core` offers in place of `std::process::abort`.
                panic!("a placement engine was misused");
            }
        }
        let _abort = Abort;
        panic!("{error}");
    }
}
