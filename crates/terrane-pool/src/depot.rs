//! Where surplus objects wait for whoever needs them: [`Depot`].
//!
//! Invariant: a depot is a stack of [groups](crate::group) with idle objects. It is only ever taken as a whole, by one exchange, and
//! whoever takes it holds its groups; so no thread looks below a group that another may hold: there is no ABA problem and
//! nothing to reclaim.
//!
//! Models: `model_cross_thread_return`, `model_stealing` and `model_passing_on` in `tests/loom_pool.rs`. The argument:
//! `docs/src/protocols/pool-stealing.md`.

use crate::fences::Fences;
use crate::group::{Group, Object, Shape};
use core::marker::PhantomData;
use core::ptr;
use terrane_core::sync::atomic::{AtomicPtr, Ordering};

/// A stack of groups, for any number of threads.
#[derive(Debug)]
pub struct Depot<F> {
    top: AtomicPtr<Group>,
    fences: PhantomData<fn() -> F>,
}

impl<F: Fences> Depot<F> {
    /// A depot of nothing.
    pub fn new() -> Self {
        Self { top: AtomicPtr::new(ptr::null_mut()), fences: PhantomData }
    }

    /// Whether there was nothing a moment ago.
    pub fn is_empty(&self) -> bool {
        self.top.load(Ordering::Relaxed).is_null()
    }

    /// Makes `objects` idle. Those whose group has idle objects already come to lie where that lies; the others here.
    ///
    /// # Safety
    /// The objects are of that shape and the caller's, who gives them up; any thread may take them.
    pub unsafe fn put(&self, shape: &Shape, objects: &[Object]) {
        // SAFETY: the caller's promise; the groups are held.
        unsafe { shape.give::<F>(objects, |group| self.push(group)) };
    }

    /// # Safety
    /// The caller holds the group, and gives it up.
    unsafe fn push(&self, group: *const Group) {
        let mut below = self.top.load(Ordering::Relaxed);
        loop {
            // SAFETY: the group is the caller's until the exchange succeeds.
            unsafe { (*group).set_below(below) };
            match self.top.compare_exchange_weak(below, group.cast_mut(), F::PUBLISH, Ordering::Relaxed) {
                Ok(_) => return,
                Err(found) => below = found,
            }
        }
    }

    /// Puts down what is left of another depot: at once if nothing lies here, group by group otherwise.
    pub fn push_all(&self, mut groups: Groups) {
        let (top, nothing) = (groups.top.cast_mut(), ptr::null_mut());
        if top.is_null() || self.top.compare_exchange(nothing, top, F::PUBLISH, Ordering::Relaxed).is_ok() {
            return;
        }
        while !groups.is_empty() {
            let group = groups.top;
            // SAFETY: groups that were taken are held, and what is below this one is read before it is given up.
            unsafe {
                groups.top = (*group).below();
                self.push(group);
            }
        }
    }

    /// Takes everything.
    pub fn take(&self) -> Groups {
        if self.is_empty() {
            return Groups { top: ptr::null() };
        }
        Groups { top: self.top.swap(ptr::null_mut(), F::TAKE) }
    }
}

impl<F: Fences> Default for Depot<F> {
    fn default() -> Self {
        Self::new()
    }
}

/// Groups that were taken out of a depot, held until they are empty or [passed on](Depot::push_all).
#[derive(Debug)]
#[must_use = "objects of groups that are forgotten are lost"]
pub struct Groups {
    top: *const Group,
}

impl Groups {
    /// Whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.top.is_null()
    }

    /// Takes objects until `to` has `most`, or nothing is left.
    ///
    /// # Safety
    /// The groups are of chunks of that shape.
    pub unsafe fn draw<F: Fences>(&mut self, shape: &Shape, most: usize, to: &mut Vec<Object>) {
        while !self.is_empty() && to.len() < most {
            let group = self.top;
            let missing = u32::try_from(most - to.len()).unwrap_or(u32::MAX);
            // SAFETY: groups that were taken are held. What is below is read before the bits are cleared, with which the group may be
            // another's.
            unsafe {
                let below = if F::LATE { ptr::null() } else { (*group).below() };
                if !shape.claim::<F>(group, missing, to) {
                    self.top = if F::LATE { (*group).below() } else { below };
                }
            }
        }
    }

    /// Idle objects in all of them, as of some moment during the call.
    pub fn count(&self) -> u64 {
        let (mut group, mut count) = (self.top, 0);
        while !group.is_null() {
            // SAFETY: groups that were taken are held.
            unsafe {
                count += u64::from((*group).count());
                group = (*group).below();
            }
        }
        count
    }
}
