//! The pool itself: [`Pool`], its [`Builder`] and its [`PoolStats`].
//!
//! Invariant: the pool is one of the references that keep alive what it shares with its leases. After its end
//! nothing can be taken; what is out is dropped when it comes back.

use crate::error::{Exhausted, KeyError, Leaked, Rejected};
use crate::key::Key;
use crate::lease::{Lease, OwnedLease};
use crate::recycle::Recycle;
use crate::shared::{PoolsReference, Shared, Ticker};
use crate::slots::Slots;
use crate::store::{LockFree, Look, Store};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::io::Write;
use std::sync::{Mutex, OnceLock, TryLockError};
use terrane_core::{Sample, Sizing};

/// What a pool does at its end about objects that are still out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AtEnd {
    /// Writes one line to the standard error output.
    #[default]
    Report,
    /// Panics, unless the thread is panicking already.
    Panic,
    /// Nothing.
    Ignore,
}

/// Ticks without a miss after which half of what lies in no thread's cache is dropped: as long as someone misses, it is needed.
const QUIET_TICKS: u8 = 4;

/// Sets a pool up.
pub struct Builder<R> {
    recycle: R,
    max: usize,
    cache: u32,
    at_end: AtEnd,
    object_bytes: Option<u32>,
    budget: u64,
    policy: Box<dyn Sizing + Send>,
}

impl<R: fmt::Debug> fmt::Debug for Builder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("recycle", &self.recycle)
            .field("max", &self.max)
            .field("cache", &self.cache)
            .field("at_end", &self.at_end)
            .finish_non_exhaustive()
    }
}

/// Objects that a pool may have unless it is told otherwise.
pub const DEFAULT_MAX: usize = 1 << 16;
/// Idle objects that a thread keeps for itself at the beginning, unless it is told otherwise.
pub const DEFAULT_CACHE: u32 = 64;

impl<R> Builder<R> {
    /// A pool of objects that `recycle` makes and resets: at most [`DEFAULT_MAX`], at most [`DEFAULT_CACHE`] idle ones per
    /// thread, a fixed size of caches, and a report of leaks.
    pub fn new(recycle: R) -> Self {
        Self {
            recycle,
            max: DEFAULT_MAX,
            cache: DEFAULT_CACHE,
            at_end: AtEnd::default(),
            object_bytes: None,
            budget: u64::MAX,
            policy: Box::new(()),
        }
    }

    /// At most `objects` exist at a time, idle ones included.
    #[must_use]
    pub fn max(mut self, objects: usize) -> Self {
        self.max = objects;
        self
    }

    /// Threads keep up to `objects` idle objects for themselves, until the policy says otherwise.
    #[must_use]
    pub fn cache(mut self, objects: u32) -> Self {
        self.cache = objects;
        self
    }

    /// What happens at the end about objects that are still out.
    #[must_use]
    pub fn at_end(mut self, at_end: AtEnd) -> Self {
        self.at_end = at_end;
        self
    }

    /// The caches of threads are sized by `policy` at each [`Pool::tick`], within `budget` bytes for all of them together.
    /// An object counts as `object_bytes`. The policy may use the pool, but for a tick of its own, which would do nothing.
    #[must_use]
    pub fn sizing(mut self, policy: impl Sizing + Send + 'static, budget: u64, object_bytes: u32) -> Self {
        self.policy = Box::new(policy);
        self.budget = budget;
        self.object_bytes = Some(object_bytes);
        self
    }

    /// The pool, lock-free.
    pub fn build<T: Send + 'static>(self) -> Pool<T, R, LockFree>
    where
        R: Recycle<T>,
    {
        self.build_in()
    }

    /// The pool, over the store `M`.
    pub fn build_in<T: Send + 'static, M: Store>(self) -> Pool<T, R, M>
    where
        R: Recycle<T>,
    {
        let shared = Shared {
            store: M::new(self.cache, Slots::<T>::SHAPE),
            recycle: self.recycle,
            references: AtomicUsize::new(1),
            max: self.max,
            object_bytes: self.object_bytes.unwrap_or(size_of::<T>() as u32),
            created: AtomicU64::new(0),
            discarded: AtomicU64::new(0),
            gathers: AtomicU64::new(0),
            keys: OnceLock::new(),
            slots: Slots::new(),
            ticker: Mutex::new(Ticker {
                policy: self.policy,
                budget: self.budget,
                last: Vec::new(),
                quiet: 0,
            }),
        };
        Pool { shared: NonNull::from(Box::leak(Box::new(shared))), at_end: self.at_end }
    }
}

/// A pool of objects of type `T`, made and reset by `R`. See the [crate] for an example.
///
/// `M` is [`LockFree`] or [`Mutexed`](crate::Mutexed).
pub struct Pool<T: Send + 'static, R: Recycle<T>, M: Store = LockFree> {
    shared: NonNull<Shared<T, R, M>>,
    at_end: AtEnd,
}

// SAFETY: objects are `Send` and change threads only as a whole; `R` and `M` are `Send + Sync`; the rest are atomics and locks.
unsafe impl<T: Send, R: Recycle<T>, M: Store> Send for Pool<T, R, M> {}
// SAFETY: as above; a pool gives no shared access to one object from two threads.
unsafe impl<T: Send, R: Recycle<T>, M: Store> Sync for Pool<T, R, M> {}

impl<T: Send, R: Recycle<T>, M: Store> fmt::Debug for Pool<T, R, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("max", &self.shared().max).finish_non_exhaustive()
    }
}

/// What a pool did so far, and holds now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolStats {
    /// Objects taken from the caller's own cache.
    pub hits: u64,
    /// Acquires that found the own cache empty.
    pub misses: u64,
    /// Of the misses: served by what another thread, or the common level, had to spare.
    pub steals: u64,
    /// Magazines that went from a full cache to where others can take them.
    pub spills: u64,
    /// Times that all caches were searched because the bound was reached.
    pub gathers: u64,
    /// Objects made or attached.
    pub created: u64,
    /// Objects dropped or detached.
    pub discarded: u64,
    /// Objects that wait to be used.
    pub idle: u64,
    /// Objects that exist: idle ones and those that are out.
    pub objects: u64,
}

impl PoolStats {
    /// Share of the acquires that the own cache served, 0 to 1; 1 if there were none.
    pub fn hit_rate(&self) -> f64 {
        let all = self.hits + self.misses;
        if all == 0 { 1.0 } else { self.hits as f64 / all as f64 }
    }

    /// Objects that are out.
    pub const fn out(&self) -> u64 {
        self.objects.saturating_sub(self.idle)
    }
}

impl<T: Send, R: Recycle<T>> Pool<T, R> {
    /// A pool as [`Builder::new`] sets it up.
    pub fn new(recycle: R) -> Self {
        Builder::new(recycle).build()
    }
}

impl<T: Send, R: Recycle<T>, M: Store> Pool<T, R, M> {
    #[inline(always)]
    fn shared(&self) -> &Shared<T, R, M> {
        // SAFETY: the pool is one of the references.
        unsafe { self.shared.as_ref() }
    }

    #[inline]
    fn taken(&self) -> Result<NonNull<T>, Exhausted> {
        match self.shared().store.take() {
            Some(object) => Ok(object.cast()),
            None => self.made(),
        }
    }

    #[cold]
    #[inline(never)]
    fn made(&self) -> Result<NonNull<T>, Exhausted> {
        let shared = self.shared();
        loop {
            // SAFETY: the pool is alive.
            if let Some(object) = unsafe { Shared::make(self.shared) } {
                return Ok(object);
            }
            shared.gathers.fetch_add(1, Ordering::Relaxed);
            if let Some(object) = shared.store.gather() {
                return Ok(object.cast());
            }
            // Between the two looks an object may have been dropped: then there is room for another.
            if shared.references.load(Ordering::Relaxed) > shared.max {
                return Err(Exhausted { max: shared.max });
            }
        }
    }

    /// How objects are made and reset.
    pub fn recycle(&self) -> &R {
        &self.shared().recycle
    }

    /// An object, until the lease is dropped.
    ///
    /// # Errors
    /// [`Exhausted`] if as many as may exist are out, or being made.
    ///
    /// # Panics
    /// If [`Recycle::create`] does.
    #[inline]
    pub fn acquire(&self) -> Result<Lease<'_, T, R, M>, Exhausted> {
        // SAFETY: the object was taken, and is the lease's.
        self.taken().map(|object| unsafe { Lease::new(object) })
    }

    /// An object, until the lease is dropped, which may be on another thread, and after the end of the pool.
    ///
    /// # Errors
    /// [`Exhausted`] if as many as may exist are out, or being made.
    ///
    /// # Panics
    /// If [`Recycle::create`] does.
    #[inline]
    pub fn acquire_owned(&self) -> Result<OwnedLease<T, R, M>, Exhausted> {
        // SAFETY: the object was taken, and is the lease's.
        self.taken().map(|object| unsafe { OwnedLease::new(object) })
    }

    /// Takes an object from outside under the pool's care. It is not reset before it comes back.
    ///
    /// # Errors
    /// The object, if the pool has as many as it may have.
    pub fn attach(&self, object: T) -> Result<OwnedLease<T, R, M>, Rejected<T>> {
        if !self.shared().reserve() {
            return Err(Rejected { object, cause: Exhausted { max: self.shared().max } });
        }
        // SAFETY: the pool is alive; the object's place is new, and the lease's.
        Ok(unsafe { OwnedLease::new(Shared::place(self.shared, object)) })
    }

    /// The lease that [`OwnedLease::into_key`] turned into `key`. Each key can be claimed once, and says nothing of its pool: one of
    /// another pool is refused, or leads to an object of this one.
    ///
    /// # Errors
    /// [`KeyError`], and nothing has changed.
    pub fn claim(&self, key: Key) -> Result<OwnedLease<T, R, M>, KeyError> {
        let keys = self.shared().keys.get().ok_or(KeyError::Unknown { index: key.index() })?;
        let object = keys.take(key)?;
        // SAFETY: only objects of this pool are put under its keys, and each is claimed once.
        Ok(unsafe { OwnedLease::new(object.cast()) })
    }

    /// Makes objects until `objects` exist, and leaves them where any thread can take them, each reset once. Returns how many exist.
    ///
    /// # Panics
    /// If [`Recycle::create`] does: what was made by then stays.
    pub fn warm(&self, objects: usize) -> usize {
        let mut leases: Vec<Lease<'_, T, R, M>> = Vec::new();
        let shared = self.shared();
        while shared.references.load(Ordering::Relaxed) - 1 < objects {
            // SAFETY: the pool is alive.
            let Some(object) = (unsafe { Shared::make(self.shared) }) else { break };
            // SAFETY: the object is new, and the lease's.
            leases.push(unsafe { Lease::new(object) });
        }
        drop(leases);
        shared.references.load(Ordering::Relaxed) - 1
    }

    /// Lets the policy look at the caches of all threads, and drops half of the idle objects that lie in no thread's cache if
    /// nobody missed for some ticks.
    /// Never called by the pool itself: call it on a timer, or when the program is idle. While another tick of the pool is under
    /// way, on another thread or because the policy called this, it does nothing.
    ///
    /// # Panics
    /// If the policy does, or the drop of an object: then the others are dropped first.
    pub fn tick(&self) {
        let shared = self.shared();
        let mut guard = match shared.ticker.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let ticker = &mut *guard;
        let mut looks: Vec<Look> = Vec::new();
        let mut common = shared.store.inspect(&mut |look| {
            looks.push(look);
            look.capacity
        });
        let samples: Vec<Sample> = looks
            .iter()
            .map(|look| {
                let index = look.cache as usize;
                if ticker.last.len() <= index {
                    ticker.last.resize(index + 1, Default::default());
                }
                let last = core::mem::replace(&mut ticker.last[index], look.counts);
                Sample {
                    cache: look.cache,
                    hits: look.counts.hits - last.hits,
                    misses: look.counts.misses - last.misses,
                    overflows: look.counts.spills - last.spills,
                    low_water: look.low_water,
                    capacity: look.capacity,
                    object_bytes: shared.object_bytes,
                }
            })
            .collect();
        let mut moves = Vec::new();
        ticker.policy.decide(&samples, ticker.budget, &mut |to| moves.push(to));
        if !moves.is_empty() {
            let capacity = |look: Look| {
                moves.iter().find(|to| to.cache == look.cache).map_or(look.capacity, |to| to.capacity)
            };
            common = shared.store.inspect(&mut |look| capacity(look));
        }
        let quiet = samples.iter().all(|sample| sample.misses == 0);
        ticker.quiet = if quiet { ticker.quiet + 1 } else { 0 };
        if ticker.quiet < QUIET_TICKS {
            return;
        }
        ticker.quiet = 0;
        drop(guard);
        self.trim(u32::try_from(common / 2).unwrap_or(u32::MAX));
    }

    /// Drops the idle objects that are in no thread's own cache, but for `keep` of them. There is room for as many others before
    /// the first is dropped.
    ///
    /// # Panics
    /// If the drop of an object does: then the others are dropped first.
    pub fn trim(&self, keep: u32) {
        let shared = self.shared();
        shared.drop_objects(shared.store.trim(keep, &mut |objects| shared.forget(objects)));
    }

    /// What the pool did and holds. Disturbs all threads that use it: not for every request.
    pub fn stats(&self) -> PoolStats {
        let shared = self.shared();
        let mut stats = PoolStats {
            gathers: shared.gathers.load(Ordering::Relaxed),
            created: shared.created.load(Ordering::Relaxed),
            discarded: shared.discarded.load(Ordering::Relaxed),
            ..PoolStats::default()
        };
        let mut cached = 0;
        let common = shared.store.inspect(&mut |look| {
            // What is above the capacity goes to the common level during the look.
            cached += u64::from(look.idle.min(look.capacity));
            stats.hits += look.counts.hits;
            stats.misses += look.counts.misses;
            stats.steals += look.counts.steals;
            stats.spills += look.counts.spills;
            look.capacity
        });
        stats.idle = common + cached;
        stats.objects = shared.references.load(Ordering::Relaxed) as u64 - 1;
        stats
    }

    /// Ends the pool and says whether objects are still out, instead of what [`Builder::at_end`] chose.
    ///
    /// # Errors
    /// How many are out.
    pub fn close(mut self) -> Result<(), Leaked> {
        self.at_end = AtEnd::Ignore;
        match self.end() {
            0 => Ok(()),
            objects => Err(Leaked { objects }),
        }
    }

    /// Drops what is idle; how many objects are out. The store accepts nothing any more.
    fn end(&self) -> usize {
        let shared = self.shared();
        shared.drop_objects(shared.store.close(&mut |objects| shared.forget(objects)));
        shared.references.load(Ordering::Acquire) - 1
    }
}

impl<T: Send, R: Recycle<T>, M: Store> Drop for Pool<T, R, M> {
    fn drop(&mut self) {
        // Also if the drop of an object panics.
        let _reference = PoolsReference(self.shared);
        let objects = self.end();
        if objects == 0 {
            return;
        }
        let leaked = Leaked { objects };
        match self.at_end {
            AtEnd::Ignore => {}
            AtEnd::Panic if !std::thread::panicking() => panic!("{leaked}"),
            AtEnd::Panic | AtEnd::Report => {
                // A program without a standard error output has chosen not to hear of it.
                let _ = writeln!(std::io::stderr(), "terrane-pool: {leaked}");
            }
        }
    }
}
