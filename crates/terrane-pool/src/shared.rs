//! What leases need of their pool: [`Shared`].
//!
//! Invariant: an object is idle (in the store), out (behind a lease, a key, or nothing: forgotten), or being made, reset or dropped.
//! `references` counts those that are idle or out, and the pool itself. What is shared is freed with the last reference: a lease
//! may outlive its pool.

use crate::group::Object;
use crate::key::{Key, Keys};
use crate::recycle::{Recycle, Verdict};
use crate::shard::Counts;
use crate::slots::Slots;
use crate::store::Store;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use terrane_core::Sizing;

/// What leases need of their pool; lives as long as any object.
pub(crate) struct Shared<T, R: Recycle<T>, M: Store> {
    pub(crate) store: M,
    pub(crate) recycle: R,
    /// Objects that exist, and one for the pool until it is dropped.
    pub(crate) references: AtomicUsize,
    pub(crate) max: usize,
    pub(crate) object_bytes: u32,
    pub(crate) created: AtomicU64,
    pub(crate) discarded: AtomicU64,
    pub(crate) gathers: AtomicU64,
    /// Made for the first object that travels as a key.
    pub(crate) keys: OnceLock<Box<Keys>>,
    pub(crate) slots: Slots<T>,
    pub(crate) ticker: Mutex<Ticker>,
}

/// What [`Pool::tick`](crate::Pool::tick) decides by.
pub(crate) struct Ticker {
    pub(crate) policy: Box<dyn Sizing + Send>,
    pub(crate) budget: u64,
    /// Counts at the last tick, by cache.
    pub(crate) last: Vec<Counts>,
    /// Ticks in a row in which no thread missed.
    pub(crate) quiet: u8,
}

impl<T, R: Recycle<T>, M: Store> Shared<T, R, M> {
    /// Counts one more object, if one more may exist.
    pub(crate) fn reserve(&self) -> bool {
        let most = self.max;
        // `references` counts the pool too, so with `max` objects it is `max + 1`.
        self.references
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| (now <= most).then_some(now + 1))
            .is_ok()
    }

    /// Makes an object, if one more may exist; nothing has changed if that panics.
    ///
    /// # Safety
    /// The pool is alive: what is shared is there, and stays there during the call.
    pub(crate) unsafe fn make(this: NonNull<Self>) -> Option<NonNull<T>> {
        // SAFETY: the caller's promise.
        let shared = unsafe { this.as_ref() };
        if !shared.reserve() {
            return None;
        }
        let undo = Reserved(shared);
        let object = shared.recycle.create();
        core::mem::forget(undo);
        // SAFETY: the caller's promise.
        Some(unsafe { Self::place(this, object) })
    }

    /// Puts an object that is counted already into a place.
    ///
    /// # Safety
    /// As for [`make`](Self::make).
    pub(crate) unsafe fn place(this: NonNull<Self>, object: T) -> NonNull<T> {
        // SAFETY: the caller's promise.
        let shared = unsafe { this.as_ref() };
        shared.created.fetch_add(1, Ordering::Relaxed);
        shared.slots.make(object, this.cast())
    }

    /// Counts `objects` no more, which the caller has: there is room for as many others. The pool is alive, so these
    /// are not the last references.
    pub(crate) fn forget(&self, objects: usize) {
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

    /// What is shared by the pool of an object.
    ///
    /// # Safety
    /// The object is there, and of a pool of these types.
    #[inline(always)]
    unsafe fn of(object: NonNull<T>) -> NonNull<Self> {
        // SAFETY: the pool told its slots that it is their owner.
        unsafe { Slots::owner(object) }.cast()
    }

    /// Takes an object out of its place and ends the place.
    ///
    /// # Safety
    /// The object is the caller's, and its place is not used afterwards.
    unsafe fn discard(object: NonNull<T>) -> T {
        // SAFETY: the object is the caller's, and a reference of what is shared, which is given up last.
        unsafe {
            let shared = Self::of(object);
            let object = shared.as_ref().end(object);
            Self::release(shared);
            object
        }
    }

    /// The same for an object that is counted no more, or is a reference of the caller's.
    ///
    /// # Safety
    /// The object is of this pool and the caller's, and its place is not used afterwards.
    unsafe fn end(&self, object: NonNull<T>) -> T {
        self.discarded.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { self.slots.end(object) }
    }

    /// Drops objects that came from the store and are [counted no more](Self::forget).
    pub(crate) fn drop_objects(&self, objects: Vec<Object>) {
        // If the drop of one panics, that of `rest` goes on with the others.
        let mut rest = Rest { shared: self, objects };
        rest.drop_all();
    }

    /// Resets an object and puts it back.
    ///
    /// # Safety
    /// The object is the caller's, and is not used afterwards.
    #[inline]
    pub(crate) unsafe fn give(mut object: NonNull<T>) {
        let doomed = Doomed::<T, R, M>(object, PhantomData);
        // SAFETY: the object is the caller's; it is a reference of what is shared.
        let shared = unsafe { Self::of(object) };
        // SAFETY: as above.
        let this = unsafe { shared.as_ref() };
        // SAFETY: the object is the caller's, and nobody else refers to it.
        if this.recycle.reset(unsafe { object.as_mut() }) == Verdict::Discard {
            return;
        }
        core::mem::forget(doomed);
        // SAFETY: the object is of the pool's shape, is kept until it is taken, and is `Send` (a pool has no others).
        if let Err(object) = unsafe { this.store.put(object.cast()) } {
            // SAFETY: as above.
            unsafe { Self::give_slowly(shared, object) };
        }
    }

    #[cold]
    #[inline(never)]
    unsafe fn give_slowly(shared: NonNull<Self>, object: Object) {
        // SAFETY: the object that is being given is a reference, so what is shared is there; one more keeps it there.
        let this = unsafe { shared.as_ref() };
        this.references.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as in `give`.
        if let Err(object) = unsafe { this.store.put_slowly(object) } {
            // SAFETY: the store did not take the object: it is still ours.
            drop(unsafe { Self::discard(object.cast()) });
        }
        // SAFETY: the reference taken above.
        unsafe { Self::release(shared) };
    }

    /// Takes an object out of its pool for good.
    ///
    /// # Safety
    /// As for [`give`](Self::give).
    pub(crate) unsafe fn detach(object: NonNull<T>) -> T {
        // SAFETY: the caller's promise.
        unsafe { Self::discard(object) }
    }

    /// Puts an object away under a key.
    ///
    /// # Safety
    /// As for [`give`](Self::give).
    pub(crate) unsafe fn into_key(object: NonNull<T>) -> Key {
        // SAFETY: the object is a reference of what is shared.
        let shared = unsafe { Self::of(object) };
        // SAFETY: as above.
        unsafe { shared.as_ref() }.keys.get_or_init(Box::default).put(object.cast())
    }
}

/// Gives up the reference that a pool is.
pub(crate) struct PoolsReference<T, R: Recycle<T>, M: Store>(pub(crate) NonNull<Shared<T, R, M>>);

impl<T, R: Recycle<T>, M: Store> Drop for PoolsReference<T, R, M> {
    fn drop(&mut self) {
        // SAFETY: the pool is one of the references, and gives itself up once, at its end.
        unsafe { Shared::release(self.0) };
    }
}

/// Objects that are to be dropped.
struct Rest<'s, T, R: Recycle<T>, M: Store> {
    shared: &'s Shared<T, R, M>,
    objects: Vec<Object>,
}

impl<T, R: Recycle<T>, M: Store> Rest<'_, T, R, M> {
    fn drop_all(&mut self) {
        while let Some(object) = self.objects.pop() {
            // SAFETY: the store has objects of this pool only, and these are the caller's.
            drop(unsafe { self.shared.end(object.cast()) });
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
struct Doomed<T, R: Recycle<T>, M: Store>(NonNull<T>, PhantomData<fn() -> (R, M)>);

impl<T, R: Recycle<T>, M: Store> Drop for Doomed<T, R, M> {
    fn drop(&mut self) {
        // SAFETY: the object is held by whoever made this, and is not used afterwards.
        drop(unsafe { Shared::<T, R, M>::discard(self.0) });
    }
}
