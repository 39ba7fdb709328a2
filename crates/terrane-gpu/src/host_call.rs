//! A function of the host that a driver calls once, on a thread of its own, by a pointer to C.
//!
//! Invariant: the box behind the pointer belongs to whoever calls, or to us again if the driver refuses: it is opened once.

use crate::device::DriverResult;
use core::ffi::c_void;

type Then = Box<dyn FnOnce() + Send>;

/// Has `submit` give `then` to the driver, as a pointer for [`call`]. If it refuses, `then` is dropped uncalled.
pub(crate) fn give(then: Then, submit: impl FnOnce(*mut c_void) -> DriverResult<()>) -> DriverResult<()> {
    let data = Box::into_raw(Box::new(then)).cast::<c_void>();
    submit(data).inspect_err(|_| {
        // SAFETY: the driver refused, so it will not call: the box is still ours.
        drop(unsafe { Box::from_raw(data.cast::<Then>()) });
    })
}

/// Calls what [`give`] gave.
///
/// # Safety
/// `data` came from `give`, whose `submit` succeeded, and this is the only call for it.
pub(crate) unsafe fn call(data: *mut c_void) {
    // SAFETY: `give` made this box and gave it away.
    let then = unsafe { Box::from_raw(data.cast::<Then>()) };
    // A panic must not cross into the driver.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(then));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::DriverError;
    use core::cell::Cell;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn what_is_refused_is_dropped_uncalled_and_what_is_called_may_panic() {
        let called = Arc::new(AtomicU32::new(0));
        let then = || -> Then {
            let called = called.clone();
            Box::new(move || {
                called.fetch_add(1, Ordering::Relaxed);
                panic!("on purpose");
            })
        };
        let error = DriverError { call: "submit", code: 1 };
        assert_eq!(give(then(), |_| Err(error)), Err(error));
        assert_eq!((called.load(Ordering::Relaxed), Arc::strong_count(&called)), (0, 1));
        let kept = Cell::new(core::ptr::null_mut());
        give(then(), |data| {
            kept.set(data);
            Ok(())
        })
        .unwrap();
        // SAFETY: given above, and called once.
        unsafe { call(kept.get()) };
        assert_eq!((called.load(Ordering::Relaxed), Arc::strong_count(&called)), (1, 1));
    }
}
