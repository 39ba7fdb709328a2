//! Where a pool's idle objects lie: [`LockFree`] and [`Mutexed`], the choices for a pool's third parameter.
//!
//! Invariant: an object that was put is taken once, or drained once. After [`Store::close`] nothing can be put, so a drained
//! store stays empty.
//!
//! The lock-free store has a [shard](crate::shard) per thread and a common depot:
//!
//! ```text
//!   take   own magazines ─▶ own depot ─▶ common depot ─▶ other threads' depots, same node first, from a random one on
//!   put    own magazines ─▶ own depot                    (threads without a number: common depot)
//!   gather (the bound is reached and nothing was found)   seize all shards, take what is idle anywhere
//! ```

use crate::depot::Depot;
use crate::fences::{self, Asymmetric, Fences};
use crate::group::{Object, Shape};
use crate::shard::{Counts, Private, Shard};
use crate::thread;
use core::fmt::Debug;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// What a pool asks of its store. Sealed: implemented by [`LockFree`] and [`Mutexed`].
pub trait Store: Debug + Send + Sync + sealed::Sealed + 'static {
    /// A store of objects of that shape, whose caches hold up to `capacity` objects each at the beginning.
    fn new(capacity: u32, shape: Shape) -> Self;

    /// Takes an idle object that can be had without disturbing others.
    fn take(&self) -> Option<Object>;

    /// Takes an idle object wherever there is one: none was idle at some moment of the call if it finds none.
    fn gather(&self) -> Option<Object>;

    /// Puts an object, if no more is needed for that than the thread's own cache.
    ///
    /// # Errors
    /// The object, if more is needed: then [`put_slowly`](Self::put_slowly).
    ///
    /// # Safety
    /// The object is of the store's shape and the caller's, stays valid while it is here, and may be taken by any thread. It may be
    /// gone, and the store with it, as soon as it is put.
    unsafe fn put(&self, object: Object) -> Result<(), Object>;

    /// Puts an object.
    ///
    /// # Errors
    /// The object, if the store is closed.
    ///
    /// # Safety
    /// As for [`put`](Self::put), and the store is kept alive until this returns.
    unsafe fn put_slowly(&self, object: Object) -> Result<(), Object>;

    /// Takes all but `keep` of the objects that are in no thread's own cache. Calls `gone` with how many these are before anyone
    /// else can find that they are not here any more.
    fn trim(&self, keep: u32, gone: &mut dyn FnMut(usize)) -> Vec<Object>;

    /// Looks at every cache, and sets its capacity to what `resize` answers; what is then too much becomes available to all.
    /// Returns how many objects are idle in no thread's own cache.
    fn inspect(&self, resize: &mut dyn FnMut(Look) -> u32) -> u64;

    /// Takes everything and accepts nothing any more. `gone` as for [`trim`](Self::trim).
    fn close(&self, gone: &mut dyn FnMut(usize)) -> Vec<Object>;
}

/// What [`Store::inspect`] sees of one cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Look {
    /// Number of the cache.
    pub cache: u32,
    /// Idle objects in it.
    pub idle: u32,
    /// Fewest idle objects since the last look.
    pub low_water: u32,
    /// Idle objects that it may hold.
    pub capacity: u32,
    /// What it did since it was made.
    pub counts: Counts,
}

mod sealed {
    /// Keeps the stores to this crate, where their invariants are.
    pub trait Sealed {}
    impl Sealed for super::LockFree {}
    impl Sealed for super::Mutexed {}
}

#[derive(Debug)]
struct Slot {
    shard: Shard<Asymmetric>,
    /// NUMA node of the thread that made the shard, or of the one that used its number since and had a miss.
    node: AtomicU32,
    /// State of the generator that picks victims. Only the owner writes it.
    random: AtomicU32,
}

const FIRST: usize = 16;

/// A cache per thread, without locks between them.
#[derive(Debug)]
pub struct LockFree {
    /// Slots of the first threads, found without another load.
    first: [AtomicPtr<Slot>; FIRST],
    /// Those of the others: most pools never need them.
    others: OnceLock<Box<[AtomicPtr<Slot>]>>,
    /// Slots at or above this are empty.
    used: AtomicUsize,
    common: Depot<Asymmetric>,
    capacity: u32,
    shape: Shape,
    /// Held to seize shards. Whether the store is closed.
    control: Mutex<bool>,
}

impl LockFree {
    /// Where the slot of thread `number` is, or will be.
    #[inline(always)]
    fn place(&self, number: usize) -> Option<&AtomicPtr<Slot>> {
        match self.first.get(number) {
            Some(place) => Some(place),
            None => self.others.get()?.get(number - FIRST),
        }
    }

    #[inline(always)]
    fn mine(&self) -> Option<&Slot> {
        let slot = self.place(thread::number()?)?.load(Ordering::Acquire);
        // SAFETY: slots are made once and live as long as the store.
        unsafe { slot.as_ref() }
    }

    fn control(&self) -> MutexGuard<'_, bool> {
        // No code of others runs under this lock, so a poisoned one is as good as any.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This thread's slot, made now if it has none; `None` if this thread cannot have one, or the store is closed.
    fn mine_or_made(&self) -> Option<&Slot> {
        let number = thread::number()?;
        let slot = match self.first.get(number) {
            Some(slot) => slot,
            None => {
                &self.others.get_or_init(|| (FIRST..thread::MOST).map(|_| AtomicPtr::default()).collect())
                    [number - FIRST]
            }
        };
        let mut found = slot.load(Ordering::Acquire);
        if found.is_null() {
            let closed = self.control();
            if *closed {
                return None;
            }
            found = Box::into_raw(Box::new(Slot {
                shard: Shard::new(self.capacity),
                node: AtomicU32::new(thread::node()),
                random: AtomicU32::new(number as u32 * 2 + 1),
            }));
            slot.store(found, Ordering::Release);
            self.used.fetch_max(number + 1, Ordering::Release);
        }
        // SAFETY: as in `mine`.
        unsafe { found.as_ref() }
    }

    fn all(&self) -> impl Iterator<Item = (usize, &Slot)> {
        let used = self.used.load(Ordering::Acquire);
        (0..used).filter_map(|number| {
            // SAFETY: as in `mine`.
            Some((number, unsafe { self.place(number)?.load(Ordering::Acquire).as_ref() }?))
        })
    }

    /// Seizes every shard, and calls `f` with the magazines and the depot of each in turn. `_held` is the control lock.
    fn seize_all(&self, _held: &mut bool, mut f: impl FnMut(usize, &mut Private, &Depot<Asymmetric>)) {
        // New shards are made under the control lock: there will be no others.
        self.all().for_each(|(_, slot)| slot.shard.seize());
        Asymmetric::heavy();
        for (number, slot) in self.all() {
            // SAFETY: the control lock excludes other seizers; the shard was seized before the fence.
            unsafe { slot.shard.wait(|private| f(number, private, slot.shard.depot())) };
        }
    }

    #[cold]
    #[inline(never)]
    fn take_slowly(&self) -> Option<Object> {
        loop {
            let Some(slot) = self.mine_or_made() else {
                let _held = self.control();
                return self.take_common();
            };
            // SAFETY: the slot is of this thread's number, and no visit is open.
            if let Some(mut visit) = unsafe { slot.shard.enter() } {
                if let Some(object) = visit.pop() {
                    return Some(object);
                }
                visit.missed();
                // SAFETY: all objects of the store are of its shape.
                let mut take_over = |depot| unsafe { visit.take_over(depot, &self.shape) };
                if let Some(object) = take_over(slot.shard.depot()).or_else(|| take_over(&self.common)) {
                    return Some(object);
                }
                slot.node.store(thread::node(), Ordering::Relaxed);
                return self.victims(slot).find_map(take_over);
            }
            // Seized: whoever does that holds the lock. A store that was closed stays seized, and has nothing.
            if *self.control() {
                return None;
            }
        }
    }

    /// The depots of the other threads: those of the same node first, beginning with a random one.
    fn victims<'s>(&'s self, thief: &'s Slot) -> impl Iterator<Item = &'s Depot<Asymmetric>> {
        // A step of xorshift (Marsaglia, 2003).
        let mut random = thief.random.load(Ordering::Relaxed);
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        thief.random.store(random, Ordering::Relaxed);
        let start = random as usize % self.used.load(Ordering::Relaxed).max(1);
        let node = thief.node.load(Ordering::Relaxed);
        [true, false].into_iter().flat_map(move |same| {
            self.all()
                .skip(start)
                .chain(self.all().take(start))
                .map(|(_, victim)| victim)
                .filter(move |victim| {
                    !ptr::eq(*victim, thief) && (victim.node.load(Ordering::Relaxed) == node) == same
                })
                .map(|victim| victim.shard.depot())
        })
    }

    /// Takes one object from the common depot. The control lock is held.
    fn take_common(&self) -> Option<Object> {
        let mut groups = self.common.take();
        let mut one = Vec::with_capacity(1);
        // SAFETY: all objects of the store are of its shape.
        unsafe { groups.draw::<Asymmetric>(&self.shape, 1, &mut one) };
        self.common.push_all(groups);
        one.pop()
    }

    /// Makes objects available to all.
    ///
    /// # Safety
    /// As for [`Depot::put`]; the control lock is held.
    unsafe fn put_common(&self, objects: &[Object]) {
        // SAFETY: the caller's promise; all objects of the store are of its shape.
        unsafe { self.common.put(&self.shape, objects) };
    }
}

impl Store for LockFree {
    fn new(capacity: u32, shape: Shape) -> Self {
        fences::prepare();
        Self {
            first: [const { AtomicPtr::new(ptr::null_mut()) }; FIRST],
            others: OnceLock::new(),
            used: AtomicUsize::new(0),
            common: Depot::new(),
            capacity,
            shape,
            control: Mutex::new(false),
        }
    }

    #[inline(always)]
    fn take(&self) -> Option<Object> {
        if let Some(slot) = self.mine() {
            // SAFETY: the slot is of this thread's number, and no visit is open.
            if let Some(mut visit) = unsafe { slot.shard.enter() }
                && let Some(object) = visit.pop()
            {
                return Some(object);
            }
        }
        self.take_slowly()
    }

    #[cold]
    fn gather(&self) -> Option<Object> {
        let mut held = self.control();
        if *held {
            return None;
        }
        self.seize_all(&mut held, |_, private, depot| {
            // SAFETY: the objects are this call's: the shard forgets them.
            private.drain(|objects| unsafe { self.put_common(objects) });
            self.common.push_all(depot.take());
        });
        let object = self.take_common();
        self.all().for_each(|(_, slot)| slot.shard.release());
        object
    }

    #[inline(always)]
    unsafe fn put(&self, object: Object) -> Result<(), Object> {
        if let Some(slot) = self.mine() {
            // SAFETY: the slot is of this thread's number, and no visit is open.
            if let Some(mut visit) = unsafe { slot.shard.enter() } {
                // SAFETY: the caller's promise.
                unsafe { visit.push(object, &self.shape) };
                return Ok(());
            }
        }
        Err(object)
    }

    #[cold]
    unsafe fn put_slowly(&self, object: Object) -> Result<(), Object> {
        loop {
            match self.mine_or_made() {
                // SAFETY: the caller's promise.
                Some(_) => match unsafe { self.put(object) } {
                    Ok(()) => return Ok(()),
                    Err(_) if *self.control() => return Err(object),
                    Err(_) => {}
                },
                None => {
                    let closed = self.control();
                    if *closed {
                        return Err(object);
                    }
                    // SAFETY: the caller's promise.
                    unsafe { self.put_common(&[object]) };
                    return Ok(());
                }
            }
        }
    }

    fn trim(&self, keep: u32, gone: &mut dyn FnMut(usize)) -> Vec<Object> {
        let mut held = self.control();
        self.seize_all(&mut held, |_, _, depot| self.common.push_all(depot.take()));
        let trimmed = surplus(&self.common, &self.shape, keep.into());
        gone(trimmed.len());
        if !*held {
            self.all().for_each(|(_, slot)| slot.shard.release());
        }
        trimmed
    }

    fn inspect(&self, resize: &mut dyn FnMut(Look) -> u32) -> u64 {
        let mut held = self.control();
        let mut idle = 0;
        self.seize_all(&mut held, |number, private, depot| {
            idle += look(number as u32, private, depot, &self.shape, resize);
        });
        idle += count(&self.common);
        if !*held {
            self.all().for_each(|(_, slot)| slot.shard.release());
        }
        idle
    }

    fn close(&self, gone: &mut dyn FnMut(usize)) -> Vec<Object> {
        let mut held = self.control();
        *held = true;
        let mut all = Vec::new();
        // The shards stay seized.
        self.seize_all(&mut held, |_, private, depot| {
            private.drain(|objects| all.extend_from_slice(objects));
            self.common.push_all(depot.take());
        });
        all.append(&mut surplus(&self.common, &self.shape, 0));
        gone(all.len());
        all
    }
}

impl Drop for LockFree {
    fn drop(&mut self) {
        for slot in self.first.iter().chain(self.others.get().into_iter().flatten()) {
            let slot = slot.load(Ordering::Acquire);
            if !slot.is_null() {
                // SAFETY: the store made the slot, and nobody uses the store any more.
                drop(unsafe { Box::from_raw(slot) });
            }
        }
    }
}

#[derive(Debug)]
struct Shelf {
    private: Private,
    /// What the magazines have too many of.
    depot: Depot<Asymmetric>,
    closed: bool,
}

// SAFETY: idle objects belong to the shelf, and whoever puts objects promises that any thread may take them.
unsafe impl Send for Shelf {}

/// One cache behind the standard library's mutex: the yardstick, and the choice where threads are few and objects dear.
#[derive(Debug)]
pub struct Mutexed {
    shelf: Mutex<Shelf>,
    shape: Shape,
}

impl Mutexed {
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // As for the lock-free store.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cold]
    fn refill(&self, shelf: &mut Shelf) -> Option<Object> {
        let mut groups = shelf.depot.take();
        // SAFETY: all objects of the store are of its shape.
        let object = unsafe { shelf.private.refill::<Asymmetric>(&mut groups, &self.shape) };
        shelf.depot.push_all(groups);
        object
    }
}

impl Store for Mutexed {
    fn new(capacity: u32, shape: Shape) -> Self {
        let shelf = Shelf { private: Private::new(capacity), depot: Depot::new(), closed: false };
        Self { shelf: Mutex::new(shelf), shape }
    }

    #[inline]
    fn take(&self) -> Option<Object> {
        let mut shelf = self.shelf();
        if let Some(object) = shelf.private.pop() {
            return Some(object);
        }
        shelf.private.missed();
        self.refill(&mut shelf)
    }

    fn gather(&self) -> Option<Object> {
        let mut shelf = self.shelf();
        shelf.private.pop().or_else(|| self.refill(&mut shelf))
    }

    #[inline]
    unsafe fn put(&self, object: Object) -> Result<(), Object> {
        let mut shelf = self.shelf();
        if shelf.closed {
            return Err(object);
        }
        let Shelf { private, depot, .. } = &mut *shelf;
        // SAFETY: the caller's promise; all objects of the store are of its shape.
        unsafe { private.push(object, depot, &self.shape) };
        Ok(())
    }

    unsafe fn put_slowly(&self, object: Object) -> Result<(), Object> {
        // SAFETY: the caller's promise.
        unsafe { self.put(object) }
    }

    fn trim(&self, keep: u32, gone: &mut dyn FnMut(usize)) -> Vec<Object> {
        let shelf = self.shelf();
        let trimmed = surplus(&shelf.depot, &self.shape, keep.into());
        gone(trimmed.len());
        trimmed
    }

    fn inspect(&self, resize: &mut dyn FnMut(Look) -> u32) -> u64 {
        let mut shelf = self.shelf();
        let Shelf { private, depot, .. } = &mut *shelf;
        look(0, private, depot, &self.shape, resize)
    }

    fn close(&self, gone: &mut dyn FnMut(usize)) -> Vec<Object> {
        let mut shelf = self.shelf();
        shelf.closed = true;
        let mut all = surplus(&shelf.depot, &self.shape, 0);
        shelf.private.drain(|objects| all.extend_from_slice(objects));
        gone(all.len());
        all
    }
}

/// Idle objects in a depot that nobody else uses meanwhile.
fn count(depot: &Depot<Asymmetric>) -> u64 {
    let groups = depot.take();
    let count = groups.count();
    depot.push_all(groups);
    count
}

/// All but `keep` objects of a depot, whose objects are of that shape, and that nobody else uses meanwhile.
fn surplus(depot: &Depot<Asymmetric>, shape: &Shape, keep: u64) -> Vec<Object> {
    let mut groups = depot.take();
    let most = groups.count().saturating_sub(keep) as usize;
    let mut surplus = Vec::with_capacity(most);
    // SAFETY: the caller knows the shape.
    unsafe { groups.draw::<Asymmetric>(shape, most, &mut surplus) };
    depot.push_all(groups);
    surplus
}

/// Looks at one cache, whose objects are of that shape, and that nobody else uses meanwhile: see [`Store::inspect`].
fn look(
    cache: u32,
    private: &mut Private,
    depot: &Depot<Asymmetric>,
    shape: &Shape,
    resize: &mut dyn FnMut(Look) -> u32,
) -> u64 {
    let (counts, low_water) = private.report();
    let look = Look { cache, idle: private.len(), low_water, capacity: private.capacity(), counts };
    private.set_capacity(resize(look));
    // SAFETY: the objects are this call's: the cache forgets them.
    private.cut(private.capacity(), |objects| unsafe { depot.put(shape, objects) });
    count(depot)
}
