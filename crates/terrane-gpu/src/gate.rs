//! One thread does a slow thing; the others that need it wait for what comes of it, and no lock is held meanwhile.
//!
//! Invariant: at most one thread is inside at any time.

use parking_lot::{Condvar, Mutex};

#[derive(Default)]
pub(crate) struct Gate {
    busy: Mutex<bool>,
    opened: Condvar,
}

/// Leaves the gate when dropped.
pub(crate) struct Inside<'a>(&'a Gate);

impl Gate {
    /// Waits until nobody is inside, then goes in.
    pub(crate) fn enter(&self) -> Inside<'_> {
        let mut busy = self.busy.lock();
        while *busy {
            self.opened.wait(&mut busy);
        }
        *busy = true;
        Inside(self)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        *self.0.busy.lock() = false;
        self.0.opened.notify_all();
    }
}
