//! One thread's part of a pool: [`Shard`].
//!
//! Invariant: the private lists of a shard are touched only by its owner between [`Shard::enter`] and the end of the
//! [`Visit`], or by a seizer between [`Shard::seize`] and [`Shard::release`]; never by both. Seizers exclude one another by
//! a lock of the pool. All of the owner's accesses to any depot lie within visits too, so a seizer of all shards sees every
//! idle object.
//!
//! ```text
//!   owner                               seizer (holds the pool's lock)
//!   busy := true                        seized := true
//!   light fence                         heavy fence
//!   seized? ── yes: busy := false,      while busy: wait
//!      │            go the slow way     … the private lists are the seizer's …
//!      no: … the lists are the owner's  seized := false
//!   busy := false
//! ```
//!
//! Objects lie in two magazines, `loaded` and `spare` (Bonwick and Adams, "Magazines and Vmem", 2001): when both are full one
//! goes to the depot as a whole, and when both are empty one comes from there, so that a thread that takes and gives in turn
//! never goes back and forth at a boundary.
//!
//! Models: `model_seizure`, `model_resize` in `tests/loom_pool.rs`. The argument: `docs/src/protocols/pool-seizure.md`.

use crate::depot::Depot;
use crate::fences::Fences;
use crate::link::{Link, List};
use core::sync::atomic::Ordering;
use terrane_core::sync::atomic::AtomicBool;
use terrane_core::sync::cell::UnsafeCell;
use terrane_core::sync::hint;

/// What a shard has done since it was last looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Objects taken from the private lists.
    pub hits: u64,
    /// Times that the private lists were empty.
    pub misses: u64,
    /// Magazines that went to a depot because both were full.
    pub spills: u64,
    /// Of the misses: served by objects that another thread had left in its depot.
    pub steals: u64,
}

/// What only one thread at a time may touch.
#[derive(Debug)]
pub struct Private {
    loaded: List,
    spare: List,
    /// Objects that one magazine takes.
    magazine: u32,
    /// Fewest objects since this was last asked.
    low_water: u32,
    counts: Counts,
}

impl Private {
    /// Idle objects.
    pub const fn len(&self) -> u32 {
        self.loaded.len() + self.spare.len()
    }

    /// Whether there is no idle object.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Objects that the two magazines take together.
    pub const fn capacity(&self) -> u32 {
        self.magazine * 2
    }

    /// Sets how many objects the magazines take; rounded up to an even number, or down to the greatest. What is above stays until
    /// it is taken.
    pub const fn set_capacity(&mut self, objects: u32) {
        self.magazine = (objects / 2).saturating_add(objects % 2);
        if self.magazine > u32::MAX / 2 {
            self.magazine = u32::MAX / 2;
        }
    }

    /// Takes the lists, as for a trim or the end.
    pub fn drain(&mut self) -> [List; 2] {
        self.low_water = 0;
        [self.loaded.take(), self.spare.take()]
    }

    /// Takes objects until at most `keep` are left.
    pub fn cut(&mut self, keep: u32) -> List {
        let mut surplus = List::empty();
        while self.len() > keep {
            let list = if self.spare.is_empty() { &mut self.loaded } else { &mut self.spare };
            if let Some(link) = list.pop() {
                // SAFETY: the link was in a list that is ours, and is in none now.
                unsafe { surplus.push(link) };
            }
        }
        self.low_water = self.low_water.min(self.len());
        surplus
    }

    /// Everything counted so far, and the fewest objects since the last call.
    pub fn report(&mut self) -> (Counts, u32) {
        let low = self.low_water.min(self.len());
        self.low_water = self.len();
        (self.counts, low)
    }

    #[inline(always)]
    fn pop(&mut self) -> Option<*mut Link> {
        if self.loaded.is_empty() {
            if self.spare.is_empty() {
                self.low_water = 0;
                return None;
            }
            core::mem::swap(&mut self.loaded, &mut self.spare);
        }
        let link = self.loaded.pop();
        self.counts.hits += 1;
        let len = self.len();
        if len < self.low_water {
            self.low_water = len;
        }
        link
    }

    /// # Safety
    /// As for [`List::push`].
    #[inline(always)]
    unsafe fn push<F: Fences>(&mut self, link: *mut Link, depot: &Depot<F>) {
        if self.loaded.len() >= self.magazine {
            let full = self.loaded.take();
            let older = core::mem::replace(&mut self.spare, full);
            if !older.is_empty() {
                self.counts.spills += 1;
                depot.push(older);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.loaded.push(link) };
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

// SAFETY: the private lists are touched by one thread at a time (module invariant), and links may change threads: whoever
// puts objects into a shard promises that they are `Send`.
unsafe impl<F: Fences> Send for Shard<F> {}
// SAFETY: as above.
unsafe impl<F: Fences> Sync for Shard<F> {}

impl<F: Fences> Shard<F> {
    /// A shard that holds up to `capacity` idle objects for its owner.
    pub fn new(capacity: u32) -> Self {
        let mut private = Private {
            loaded: List::empty(),
            spare: List::empty(),
            magazine: 0,
            low_water: 0,
            counts: Counts::default(),
        };
        private.set_capacity(capacity);
        Self {
            busy: AtomicBool::new(false),
            seized: AtomicBool::new(false),
            private: UnsafeCell::new(private),
            depot: Aligned(Depot::new()),
        }
    }

    /// Lists that this shard had too many of: anyone may take them.
    pub const fn depot(&self) -> &Depot<F> {
        &self.depot.0
    }

    /// The owner begins to use its lists; `None` while they are seized.
    ///
    /// # Safety
    /// Only one thread, the owner, enters a shard, and leaves before it enters it again. If the owner changes, the change
    /// happens after all that the old owner did.
    #[inline(always)]
    pub unsafe fn enter(&self) -> Option<Visit<'_, F>> {
        self.busy.store(true, Ordering::Relaxed);
        F::light();
        // Acquire: what a seizer did to the lists happened before it let them go.
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

    /// Waits until the owner's present visit ends, and hands the lists over.
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
        // SAFETY: within a visit the lists are the owner's (module invariant); `f` is code of this module and enters nothing.
        self.shard.private.with_mut(|private| f(unsafe { &mut *private }))
    }

    /// Takes an idle object from the private lists.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<*mut Link> {
        self.private(Private::pop)
    }

    /// Puts an object into the private lists; surplus goes to the depot.
    ///
    /// # Safety
    /// As for [`List::push`]; the object may be taken by any thread.
    #[inline(always)]
    pub unsafe fn push(&mut self, link: *mut Link) {
        let depot = self.shard.depot();
        // SAFETY: the caller's promise.
        self.private(|private| unsafe { private.push(link, depot) });
    }

    /// Takes over everything in `depot`, which may be anyone's, and then one object. What is more than a magazine goes to
    /// this shard's own depot. `None`, and a count less, if nothing was there.
    pub fn take_over(&mut self, depot: &Depot<F>) -> Option<*mut Link> {
        let mut lists = depot.take();
        let mut first = lists.next()?;
        let link = first.pop();
        let own = self.shard.depot();
        let stolen = !core::ptr::eq(own, depot);
        own.push_all(lists);
        self.private(|private| {
            private.counts.steals += u64::from(stolen);
            if private.loaded.is_empty() {
                private.loaded = first;
            } else {
                own.push(first);
            }
        });
        link
    }

    /// Counts a miss.
    pub fn missed(&mut self) {
        self.private(|private| private.counts.misses += 1);
    }
}

impl<F: Fences> Drop for Visit<'_, F> {
    #[inline(always)]
    fn drop(&mut self) {
        self.shard.busy.store(false, Ordering::Release);
    }
}
