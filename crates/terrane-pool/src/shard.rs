//! One thread's part of a pool: [`Shard`].
//!
//! Invariant: the magazines of a shard are touched only by its owner between [`Shard::enter`] and the end of the
//! [`Visit`], or by a seizer between [`Shard::seize`] and [`Shard::release`]; never by both. Seizers exclude one another by
//! a lock of the pool. All of the owner's accesses to any depot lie within visits too, so a seizer of all shards sees every
//! idle object.
//!
//! ```text
//!   owner                               seizer (holds the pool's lock)
//!   busy := true                        seized := true
//!   light fence                         heavy fence
//!   seized? ── yes: busy := false,      while busy: wait
//!      │            go the slow way     … the magazines are the seizer's …
//!      no: … they are the owner's …     seized := false
//!   busy := false
//! ```
//!
//! Objects lie in two magazines, `loaded` and `spare` (Bonwick and Adams, "Magazines and Vmem", 2001): when both are full one
//! goes to the depot as a whole, and when both are empty one is filled from there, so that a thread that takes and gives in turn
//! never goes back and forth at a boundary. A magazine is an array of pointers; it grows as it is filled.
//!
//! Models: `model_seizure`, `model_resize` in `tests/loom_pool.rs`. The argument: `docs/src/protocols/pool-seizure.md`.

use crate::depot::{Depot, Groups};
use crate::fences::Fences;
use crate::group::{Object, Shape};
use core::sync::atomic::Ordering;
use terrane_core::sync::atomic::AtomicBool;
use terrane_core::sync::cell::UnsafeCell;
use terrane_core::sync::hint;

/// What a shard has done since it was last looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Objects taken from the magazines.
    pub hits: u64,
    /// Times that the magazines were empty.
    pub misses: u64,
    /// Magazines that went to a depot because both were full.
    pub spills: u64,
    /// Of the misses: served by objects that another thread had left in its depot.
    pub steals: u64,
}

/// What only one thread at a time may touch.
#[derive(Debug)]
pub struct Private {
    loaded: Vec<Object>,
    spare: Vec<Object>,
    /// Objects that `loaded` takes as it is: at most its array's length, and at most [`magazine`](Self::magazine).
    room: usize,
    /// Objects that one magazine takes.
    magazine: u32,
    /// Fewest objects since this was last asked.
    low_water: u32,
    counts: Counts,
}

/// Objects for which a magazine's first array has room.
const FIRST: usize = 8;
/// Objects for which room is made before it is known that there are as many.
const MOST_AT_ONCE: usize = 64;

impl Private {
    /// Magazines that take up to `capacity` objects together.
    pub(crate) fn new(capacity: u32) -> Self {
        let mut private = Self {
            loaded: Vec::new(),
            spare: Vec::new(),
            room: 0,
            magazine: 0,
            low_water: 0,
            counts: Counts::default(),
        };
        private.set_capacity(capacity);
        private
    }

    /// Idle objects.
    pub const fn len(&self) -> u32 {
        (self.loaded.len() + self.spare.len()) as u32
    }

    /// Whether there is no idle object.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Objects that the two magazines take together.
    pub const fn capacity(&self) -> u32 {
        self.magazine * 2
    }

    /// Objects that one magazine takes: one, even if it should take none.
    fn magazine(&self) -> usize {
        self.magazine.max(1) as usize
    }

    /// Sets how many objects the magazines take; rounded up to an even number, or down to the greatest. What is above stays until
    /// it is taken.
    pub fn set_capacity(&mut self, objects: u32) {
        self.magazine = (objects / 2).saturating_add(objects % 2).min(u32::MAX / 2);
        self.measure();
    }

    fn measure(&mut self) {
        self.room = self.loaded.capacity().min(self.magazine());
    }

    /// Hands all objects to `f`, as for a search or the end.
    pub fn drain(&mut self, mut f: impl FnMut(&[Object])) {
        self.low_water = 0;
        for magazine in [&mut self.loaded, &mut self.spare] {
            f(magazine);
            magazine.clear();
        }
    }

    /// Hands objects to `f` until at most `keep` are left, and lets go of arrays that are longer than magazines need.
    pub fn cut(&mut self, keep: u32, mut f: impl FnMut(&[Object])) {
        let most = self.magazine();
        let mut surplus = self.len().saturating_sub(keep) as usize;
        for magazine in [&mut self.spare, &mut self.loaded] {
            let left = magazine.len().saturating_sub(surplus);
            surplus -= magazine.len() - left;
            f(&magazine[left..]);
            magazine.truncate(left);
            magazine.shrink_to(most);
        }
        self.low_water = self.low_water.min(self.len());
        self.measure();
    }

    /// Everything counted so far, and the fewest objects since the last call.
    pub fn report(&mut self) -> (Counts, u32) {
        let low = self.low_water.min(self.len());
        self.low_water = self.len();
        (self.counts, low)
    }

    /// Takes an object.
    #[inline(always)]
    pub(crate) fn pop(&mut self) -> Option<Object> {
        if self.loaded.is_empty() {
            if self.spare.is_empty() {
                self.low_water = 0;
                return None;
            }
            core::mem::swap(&mut self.loaded, &mut self.spare);
            self.measure();
        }
        let object = self.loaded.pop();
        self.counts.hits += 1;
        let len = self.len();
        if len < self.low_water {
            self.low_water = len;
        }
        object
    }

    /// Puts an object; surplus goes to `depot`.
    ///
    /// # Safety
    /// As for [`Depot::put`].
    #[inline(always)]
    pub(crate) unsafe fn push<F: Fences>(&mut self, object: Object, depot: &Depot<F>, shape: &Shape) {
        if self.loaded.len() >= self.room {
            // SAFETY: the depot gets what was pushed under the same promise.
            unsafe { self.make_room(depot, shape) };
        }
        let len = self.loaded.len();
        // SAFETY: fewer are here than there is room for in the array (`room`).
        unsafe {
            self.loaded.as_mut_ptr().add(len).write(object);
            self.loaded.set_len(len + 1);
        }
    }

    /// Counts a miss.
    pub(crate) fn missed(&mut self) {
        self.counts.misses += 1;
    }

    /// Fills a magazine, which is empty, with what was taken out of a depot, and takes an object of that.
    ///
    /// # Safety
    /// The groups, and all objects here, are of that shape.
    pub(crate) unsafe fn refill<F: Fences>(&mut self, groups: &mut Groups, shape: &Shape) -> Option<Object> {
        let most = self.magazine();
        self.loaded.reserve_exact(most.saturating_sub(self.loaded.len()).min(MOST_AT_ONCE));
        // SAFETY: the caller's promise.
        unsafe { groups.draw::<F>(shape, most, &mut self.loaded) };
        self.measure();
        self.loaded.pop()
    }

    /// Makes room for one object at least: in a longer array, or by passing a magazine on.
    ///
    /// # Safety
    /// As for [`Depot::put`], of all objects here.
    #[cold]
    #[inline(never)]
    unsafe fn make_room<F: Fences>(&mut self, depot: &Depot<F>, shape: &Shape) {
        let most = self.magazine();
        if self.loaded.len() >= most {
            core::mem::swap(&mut self.loaded, &mut self.spare);
            if !self.loaded.is_empty() {
                self.counts.spills += 1;
                // SAFETY: the objects are this shard's, which forgets them.
                unsafe { depot.put(shape, &self.loaded) };
                self.loaded.clear();
            }
        }
        let len = self.loaded.len();
        if len == self.loaded.capacity() {
            self.loaded.reserve_exact((len * 2).clamp(FIRST.min(most), most) - len);
        }
        self.measure();
    }
}

/// See the [module](self).
#[derive(Debug)]
#[repr(align(128))]
pub struct Shard<F: Fences> {
    busy: AtomicBool,
    seized: AtomicBool,
    private: UnsafeCell<Private>,
    /// What others may take without asking; on lines of its own.
    depot: Aligned<Depot<F>>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Aligned<D>(D);

// SAFETY: the magazines are touched by one thread at a time (module invariant), and objects may change threads: whoever
// puts objects into a shard promises that they are `Send`.
unsafe impl<F: Fences> Send for Shard<F> {}
// SAFETY: as above.
unsafe impl<F: Fences> Sync for Shard<F> {}

impl<F: Fences> Shard<F> {
    /// A shard that holds up to `capacity` idle objects for its owner.
    pub fn new(capacity: u32) -> Self {
        Self {
            busy: AtomicBool::new(false),
            seized: AtomicBool::new(false),
            private: UnsafeCell::new(Private::new(capacity)),
            depot: Aligned(Depot::new()),
        }
    }

    /// Objects that this shard had too many of: anyone may take them.
    pub const fn depot(&self) -> &Depot<F> {
        &self.depot.0
    }

    /// The owner begins to use its magazines; `None` while they are seized.
    ///
    /// # Safety
    /// Only one thread, the owner, enters a shard, and leaves before it enters it again. If the owner changes, the change
    /// happens after all that the old owner did.
    #[inline(always)]
    pub unsafe fn enter(&self) -> Option<Visit<'_, F>> {
        self.busy.store(true, Ordering::Relaxed);
        F::light();
        // Acquire: what a seizer did to the magazines happened before it let them go.
        if self.seized.load(Ordering::Acquire) {
            self.busy.store(false, Ordering::Release);
            return None;
        }
        Some(Visit { shard: self })
    }

    /// Makes the owner stay out from its next visit on. After a [heavy fence](Fences::heavy) [`wait`](Self::wait).
    pub fn seize(&self) {
        self.seized.store(true, Ordering::Relaxed);
    }

    /// Waits until the owner's present visit ends, and hands the magazines over.
    ///
    /// # Safety
    /// The caller excludes other seizers, has [seized](Self::seize) the shard, and has passed a heavy fence since.
    pub unsafe fn wait<R>(&self, f: impl FnOnce(&mut Private) -> R) -> R {
        while self.busy.load(Ordering::Acquire) {
            hint::spin_loop();
            #[cfg(not(loom))]
            std::thread::yield_now();
        }
        // SAFETY: the owner is outside and stays there (module invariant); other seizers are excluded by the caller.
        self.private.with_mut(|private| f(unsafe { &mut *private }))
    }

    /// Lets the owner in again.
    pub fn release(&self) {
        self.seized.store(false, Ordering::Release);
    }
}

/// The owner's use of its shard, until this is dropped.
#[derive(Debug)]
pub struct Visit<'s, F: Fences> {
    shard: &'s Shard<F>,
}

impl<F: Fences> Visit<'_, F> {
    #[inline(always)]
    fn private<R>(&mut self, f: impl FnOnce(&mut Private) -> R) -> R {
        // SAFETY: within a visit the magazines are the owner's (module invariant); `f` is code of this module and enters nothing.
        self.shard.private.with_mut(|private| f(unsafe { &mut *private }))
    }

    /// Takes an idle object from the magazines.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<Object> {
        self.private(Private::pop)
    }

    /// Puts an object into the magazines; surplus goes to the depot.
    ///
    /// # Safety
    /// As for [`Depot::put`]: all objects of this shard are of that shape.
    #[inline(always)]
    pub unsafe fn push(&mut self, object: Object, shape: &Shape) {
        let depot = self.shard.depot();
        // SAFETY: the caller's promise.
        self.private(|private| unsafe { private.push(object, depot, shape) });
    }

    /// Takes over everything in `depot`, which may be anyone's: a magazine of it for itself, and one object of that for the caller.
    /// The rest goes to this shard's own depot. `None` if nothing was there.
    ///
    /// # Safety
    /// All objects in the depot, and of this shard, are of that shape.
    pub unsafe fn take_over(&mut self, depot: &Depot<F>, shape: &Shape) -> Option<Object> {
        let mut groups = depot.take();
        if groups.is_empty() {
            return None;
        }
        let own = self.shard.depot();
        let stolen = !core::ptr::eq(own, depot);
        let object = self.private(|private| {
            private.counts.steals += u64::from(stolen);
            // SAFETY: the caller's promise.
            unsafe { private.refill::<F>(&mut groups, shape) }
        });
        own.push_all(groups);
        object
    }

    /// Counts a miss.
    pub fn missed(&mut self) {
        self.private(Private::missed);
    }
}

impl<F: Fences> Drop for Visit<'_, F> {
    #[inline(always)]
    fn drop(&mut self) {
        self.shard.busy.store(false, Ordering::Release);
    }
}
