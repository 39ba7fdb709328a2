//! The pool itself: [`Pool`], its [`Builder`] and its [`PoolStats`].
//!
//! Invariant: an object is idle (in the store), out (behind a lease, a key, or nothing: forgotten), or being made or dropped;
//! `references` counts all of them, and the pool itself. What is shared is freed with the last: a lease may outlive its pool.

use crate::error::{Exhausted, KeyError, Leaked, Rejected};
use crate::key::{Key, Keys};
use crate::lease::{Lease, OwnedLease};
use crate::link::{Link, List};
use crate::recycle::{Recycle, Verdict};
use crate::slots::{Node, Slots};
use crate::store::{LockFree, Look, Store};
use core::fmt;
use core::marker::PhantomData;
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

/// What leases need of their pool; lives as long as any object.
pub(crate) struct Shared<T, R: Recycle<T>, M: Store> {
    store: M,
    recycle: R,
    /// Objects that exist, and one for the pool until it is dropped.
    references: AtomicUsize,
    max: usize,
    object_bytes: u32,
    created: AtomicU64,
    discarded: AtomicU64,
    gathers: AtomicU64,
    /// Made for the first object that travels as a key.
    keys: OnceLock<Box<Keys>>,
    slots: Slots<T>,
    ticker: Mutex<Ticker>,
}

struct Ticker {
    policy: Box<dyn Sizing + Send>,
    budget: u64,
    /// Counts at the last tick, by cache.
    last: Vec<crate::shard::Counts>,
    /// Ticks in a row in which no thread missed.
    quiet: u8,
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
            store: M::new(self.cache),
            recycle: self.recycle,
            references: AtomicUsize::new(1),
            max: self.max,
            object_bytes: self.object_bytes.unwrap_or(size_of::<Node<T>>() as u32),
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
    fn node(&self) -> Result<NonNull<Node<T>>, Exhausted> {
        match self.shared().store.take() {
            // SAFETY: links in the store are those of nodes of this pool, and never null.
            Some(link) => Ok(unsafe { NonNull::new_unchecked(link.cast()) }),
            None => self.made(),
        }
    }

    #[cold]
    #[inline(never)]
    fn made(&self) -> Result<NonNull<Node<T>>, Exhausted> {
        let shared = self.shared();
        loop {
            if shared.reserve() {
                let undo = Reserved(shared);
                let object = shared.recycle.create();
                core::mem::forget(undo);
                return Ok(self.wrap(object));
            }
            shared.gathers.fetch_add(1, Ordering::Relaxed);
            if let Some(link) = shared.store.gather() {
                // SAFETY: as in `node`.
                return Ok(unsafe { NonNull::new_unchecked(link.cast()) });
            }
            // Between the two looks an object may have been dropped: then there is room for another.
            if shared.references.load(Ordering::Relaxed) > shared.max {
                return Err(Exhausted { max: shared.max });
            }
        }
    }

    /// Puts an object that is counted already into a node.
    fn wrap(&self, object: T) -> NonNull<Node<T>> {
        self.shared().created.fetch_add(1, Ordering::Relaxed);
        self.shared().slots.make(object, self.shared.cast())
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
        // SAFETY: the node was taken, and is the lease's.
        self.node().map(|node| unsafe { Lease::new(node) })
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
        // SAFETY: the node was taken, and is the lease's.
        self.node().map(|node| unsafe { OwnedLease::new(node) })
    }

    /// Takes an object from outside under the pool's care. It is not reset before it comes back.
    ///
    /// # Errors
    /// The object, if the pool has as many as it may have.
    pub fn attach(&self, object: T) -> Result<OwnedLease<T, R, M>, Rejected<T>> {
        if !self.shared().reserve() {
            return Err(Rejected { object, cause: Exhausted { max: self.shared().max } });
        }
        // SAFETY: the node is new, and the lease's.
        Ok(unsafe { OwnedLease::new(self.wrap(object)) })
    }

    /// The lease that [`OwnedLease::into_key`] turned into `key`. Each key can be claimed once, and says nothing of its pool: one of
    /// another pool is refused, or leads to an object of this one.
    ///
    /// # Errors
    /// [`KeyError`], and nothing has changed.
    pub fn claim(&self, key: Key) -> Result<OwnedLease<T, R, M>, KeyError> {
        let keys = self.shared().keys.get().ok_or(KeyError::Unknown { index: key.index() })?;
        let link = keys.take(key)?;
        // SAFETY: only nodes of this pool are put under its keys, and each is claimed once.
        Ok(unsafe { OwnedLease::new(NonNull::new_unchecked(link.cast())) })
    }

    /// Makes objects until `objects` exist, and leaves them where any thread can take them, each reset once. Returns how many exist.
    ///
    /// # Panics
    /// If [`Recycle::create`] does: what was made by then stays.
    pub fn warm(&self, objects: usize) -> usize {
        let mut leases: Vec<Lease<'_, T, R, M>> = Vec::new();
        let shared = self.shared();
        while shared.references.load(Ordering::Relaxed) - 1 < objects.min(shared.max) && shared.reserve() {
            let undo = Reserved(shared);
            let object = shared.recycle.create();
            core::mem::forget(undo);
            // SAFETY: the node is new, and the lease's.
            leases.push(unsafe { Lease::new(self.wrap(object)) });
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

/// Gives up the reference that a pool is.
struct PoolsReference<T, R: Recycle<T>, M: Store>(NonNull<Shared<T, R, M>>);

impl<T, R: Recycle<T>, M: Store> Drop for PoolsReference<T, R, M> {
    fn drop(&mut self) {
        // SAFETY: the pool is one of the references, and gives itself up once, at its end.
        unsafe { Shared::release(self.0) };
    }
}

/// Objects that are to be dropped.
struct Rest<'s, T, R: Recycle<T>, M: Store> {
    shared: &'s Shared<T, R, M>,
    lists: Vec<List>,
}

impl<T, R: Recycle<T>, M: Store> Rest<'_, T, R, M> {
    fn drop_all(&mut self) {
        while let Some(list) = self.lists.last_mut() {
            match list.pop() {
                // SAFETY: links of the store are those of nodes of this pool, and the lists are the caller's.
                Some(link) => drop(unsafe { self.shared.end(NonNull::new_unchecked(link.cast())) }),
                None => _ = self.lists.pop(),
            }
        }
    }
}

impl<T, R: Recycle<T>, M: Store> Drop for Rest<'_, T, R, M> {
    fn drop(&mut self) {
        self.drop_all();
    }
}

/// Undoes a reservation if making the object panics.
struct Reserved<'s, T, R: Recycle<T>, M: Store>(&'s Shared<T, R, M>);

impl<T, R: Recycle<T>, M: Store> Drop for Reserved<'_, T, R, M> {
    fn drop(&mut self) {
        self.0.forget(1);
    }
}

/// Drops an object instead of keeping it if its reset panics.
struct Doomed<T, R: Recycle<T>, M: Store>(NonNull<Node<T>>, PhantomData<fn() -> (R, M)>);

impl<T, R: Recycle<T>, M: Store> Drop for Doomed<T, R, M> {
    fn drop(&mut self) {
        // SAFETY: the node is held by whoever made this, and is not used afterwards.
        drop(unsafe { Shared::<T, R, M>::discard(self.0) });
    }
}

impl<T, R: Recycle<T>, M: Store> Shared<T, R, M> {
    /// Counts one more object, if one more may exist.
    fn reserve(&self) -> bool {
        let most = self.max;
        // `references` counts the pool too, so with `max` objects it is `max + 1`.
        self.references
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| (now <= most).then_some(now + 1))
            .is_ok()
    }

    /// Counts `objects` no more, of which the caller has the nodes: there is room for as many others. The pool is alive, so these
    /// are not the last references.
    fn forget(&self, objects: usize) {
        self.references.fetch_sub(objects, Ordering::Release);
    }

    /// Gives a reference up; frees what is shared with the last.
    ///
    /// # Safety
    /// The reference is the caller's.
    unsafe fn release(this: NonNull<Self>) {
        // SAFETY: a reference is the caller's.
        if unsafe { this.as_ref() }.references.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: it was the last; it was made by a box.
            drop(unsafe { Box::from_raw(this.as_ptr()) });
        }
    }

    /// What is shared by the pool of a node.
    ///
    /// # Safety
    /// The node is live, and of a pool of these types.
    #[inline(always)]
    unsafe fn of(node: NonNull<Node<T>>) -> NonNull<Self> {
        // SAFETY: the pool told its slots that it is their owner.
        unsafe { Slots::owner(node) }.cast()
    }

    /// Takes the object out of its node and ends the node.
    ///
    /// # Safety
    /// The node is the caller's, and is not used afterwards.
    unsafe fn discard(node: NonNull<Node<T>>) -> T {
        // SAFETY: the node is the caller's, and a reference of what is shared, which is given up last.
        unsafe {
            let shared = Self::of(node);
            let object = shared.as_ref().end(node);
            Self::release(shared);
            object
        }
    }

    /// Takes the object out of its node and ends the node, which is counted no more, or is a reference of the caller's.
    ///
    /// # Safety
    /// The node is of this pool and the caller's, and is not used afterwards.
    unsafe fn end(&self, node: NonNull<Node<T>>) -> T {
        self.discarded.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { self.slots.end(node) }
    }

    /// Drops all objects of lists that came from the store and are [counted no more](Self::forget).
    fn drop_objects(&self, lists: Vec<List>) {
        // If the drop of one panics, that of `rest` goes on with the others.
        let mut rest = Rest { shared: self, lists };
        rest.drop_all();
    }

    /// Resets an object and puts it back.
    ///
    /// # Safety
    /// The node is the caller's, and is not used afterwards.
    #[inline]
    pub(crate) unsafe fn give(node: NonNull<Node<T>>) {
        let doomed = Doomed::<T, R, M>(node, PhantomData);
        // SAFETY: the node is the caller's; it is a reference of what is shared.
        let shared = unsafe { Self::of(node) };
        // SAFETY: as above.
        let this = unsafe { shared.as_ref() };
        // SAFETY: the node is the caller's, and nobody else refers to the object.
        if this.recycle.reset(unsafe { &mut (*node.as_ptr()).object }) == Verdict::Discard {
            return;
        }
        core::mem::forget(doomed);
        // SAFETY: the node is in no list, is kept until it is taken, and its object is `Send` (a pool has no others).
        if let Err(link) = unsafe { this.store.put(node.as_ptr().cast()) } {
            // SAFETY: as above.
            unsafe { Self::give_slowly(shared, link) };
        }
    }

    #[cold]
    #[inline(never)]
    unsafe fn give_slowly(shared: NonNull<Self>, link: *mut Link) {
        // SAFETY: the object that is being given is a reference, so what is shared is there; one more keeps it there.
        let this = unsafe { shared.as_ref() };
        this.references.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as in `give`.
        if let Err(link) = unsafe { this.store.put_slowly(link) } {
            // SAFETY: the store did not take the node: it is still ours.
            drop(unsafe { Self::discard(NonNull::new_unchecked(link.cast())) });
        }
        // SAFETY: the reference taken above.
        unsafe { Self::release(shared) };
    }

    /// Takes an object out of its pool for good.
    ///
    /// # Safety
    /// As for [`give`](Self::give).
    pub(crate) unsafe fn detach(node: NonNull<Node<T>>) -> T {
        // SAFETY: the caller's promise.
        unsafe { Self::discard(node) }
    }

    /// Puts an object away under a key.
    ///
    /// # Safety
    /// As for [`give`](Self::give).
    pub(crate) unsafe fn into_key(node: NonNull<Node<T>>) -> Key {
        // SAFETY: the node is a reference of what is shared.
        let shared = unsafe { Self::of(node) };
        // SAFETY: as above.
        unsafe { shared.as_ref() }.keys.get_or_init(Box::default).put(node.as_ptr().cast())
    }
}
