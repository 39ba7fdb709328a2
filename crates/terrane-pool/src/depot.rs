//! Where surplus lists wait for whoever needs them: [`Depot`].
//!
//! Invariant: a list in a depot is nobody's; whoever takes it out owns every object in it. A depot is a stack of whole lists.
//! It is only ever taken as a whole, by one exchange, so no thread reads a link that another may have taken: there is no ABA
//! problem and nothing to reclaim.
//!
//! Model: `model_cross_thread_return` in `tests/loom_pool.rs`. The argument: `docs/src/protocols/pool-stealing.md`.

use crate::fences::Fences;
use crate::link::{Link, List};
use core::marker::PhantomData;
use core::ptr;
use terrane_core::sync::atomic::{AtomicPtr, Ordering};

/// A stack of lists, for any number of threads.
#[derive(Debug)]
pub struct Depot<F> {
    head: AtomicPtr<Link>,
    fences: PhantomData<fn() -> F>,
}

impl<F: Fences> Depot<F> {
    /// A depot of nothing.
    pub fn new() -> Self {
        Self { head: AtomicPtr::new(ptr::null_mut()), fences: PhantomData }
    }

    /// Whether there was nothing a moment ago.
    pub fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed).is_null()
    }

    /// Puts a whole list down. An empty one is no list.
    pub fn push(&self, list: List) {
        if list.is_empty() {
            return;
        }
        let mut below = self.head.load(Ordering::Relaxed);
        loop {
            // The list is the caller's until the exchange succeeds.
            let head = list.onto(below);
            match self.head.compare_exchange_weak(below, head, F::PUBLISH, Ordering::Relaxed) {
                Ok(_) => return,
                Err(found) => below = found,
            }
        }
    }

    /// Puts down what is left of another depot: at once if nothing lies here, list by list otherwise.
    pub fn push_all(&self, lists: Lists) {
        if lists.head.is_null() {
            return;
        }
        let nothing = ptr::null_mut();
        if self.head.compare_exchange(nothing, lists.head, F::PUBLISH, Ordering::Relaxed).is_err() {
            lists.for_each(|list| self.push(list));
        }
    }

    /// Takes everything.
    pub fn take(&self) -> Lists {
        if self.is_empty() {
            return Lists { head: ptr::null_mut() };
        }
        Lists { head: self.head.swap(ptr::null_mut(), F::TAKE) }
    }
}

impl<F: Fences> Default for Depot<F> {
    fn default() -> Self {
        Self::new()
    }
}

/// Lists that were taken out of a depot.
#[derive(Debug)]
pub struct Lists {
    head: *mut Link,
}

impl Iterator for Lists {
    type Item = List;

    fn next(&mut self) -> Option<List> {
        if self.head.is_null() {
            return None;
        }
        // SAFETY: the lists were taken by one exchange and are the holder's; each was made a word by `push`.
        let (list, below) = unsafe { List::off(self.head) };
        self.head = below;
        Some(list)
    }
}
