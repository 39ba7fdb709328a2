//! What happens to a span that was never placed, or was vacated before.

use terrane_core::{Placement, PlacementError, Span};

/// An engine that tells live spans from all others, as every engine of this crate does.
pub trait Checked: Placement {
    /// Whether exactly `span` is live.
    fn is_live(&self, span: Span) -> bool;

    /// [`Placement::vacate`] that checks: the one difference is that a wrong span is an error, in every build.
    ///
    /// # Errors
    /// [`PlacementError::NotPlaced`] if `span` is not a live one; nothing has changed then.
    fn try_vacate(&mut self, span: Span) -> Result<(), PlacementError>;
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
