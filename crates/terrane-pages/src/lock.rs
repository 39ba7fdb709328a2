//! A lock that never allocates: [`Lock`], for the sources that keep a record.
//!
//! Invariant: `state` is not [`FREE`] exactly while somebody is inside.
//!
//! | state | meaning |
//! |---|---|
//! | 0 `FREE` | nobody is inside |
//! | 1 `TAKEN` | somebody is inside, nobody sleeps |
//! | 2 `AWAITED` | somebody is inside, somebody may sleep |
//!
//! Protocol: whoever finds the lock taken tries a while, then marks it `AWAITED` and sleeps until the word changes.
//! Whoever leaves an `AWAITED` lock wakes one sleeper, which takes the lock as `AWAITED`, because it cannot know
//! whether others sleep. (The three-state mutex of Ulrich Drepper, "Futexes Are Tricky", 2004.)

use crate::sys;
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const AWAITED: u32 = 2;

/// A value that one thread at a time may use.
#[derive(Debug)]
pub(crate) struct Lock<T> {
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: a guard exists only inside the lock, and only one thread is inside.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { state: AtomicU32::new(FREE), value: UnsafeCell::new(value) }
    }

    pub(crate) fn lock(&self) -> Guard<'_, T> {
        self.enter();
        Guard(self)
    }

    /// Waits until nobody is inside, and enters. Every call is followed by one of [`leave`](Self::leave).
    pub(crate) fn enter(&self) {
        if self.state.compare_exchange(FREE, TAKEN, Acquire, Relaxed).is_err() {
            self.wait();
        }
    }

    #[cold]
    fn wait(&self) {
        for _ in 0..100 {
            if self.state.load(Relaxed) == FREE
                && self.state.compare_exchange(FREE, TAKEN, Acquire, Relaxed).is_ok()
            {
                return;
            }
            core::hint::spin_loop();
        }
        while self.state.swap(AWAITED, Acquire) != FREE {
            sys::sleep_while(&self.state, AWAITED);
        }
    }

    /// Leaves.
    ///
    /// # Safety
    /// The caller entered, or is the forked child of a process in which the calling thread had entered.
    pub(crate) unsafe fn leave(&self) {
        if self.state.swap(FREE, Release) == AWAITED {
            sys::wake_one(&self.state);
        }
    }
}

pub(crate) struct Guard<'a, T>(&'a Lock<T>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this thread is inside the lock.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this thread is inside the lock.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: the guard was made by entering.
        unsafe { self.0.leave() };
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    #[test]
    fn one_thread_is_inside_at_a_time() {
        let lock = Lock::new(0u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for i in 0..5000 {
                        let mut value = lock.lock();
                        let read = *value;
                        if i % 64 == 0 {
                            std::thread::yield_now();
                        }
                        *value = read + 1;
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), 20_000);
        assert_eq!(lock.state.load(Relaxed), FREE);
    }
}
