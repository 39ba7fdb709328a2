//! Handles of objects that are out: [`Lease`] and [`OwnedLease`].
//!
//! Invariant: a lease holds one object that is not idle, and nobody else holds it. Dropping the lease gives the object back, on
//! whatever thread that is.

use crate::key::Key;
use crate::pool::Pool;
use crate::recycle::Recycle;
use crate::shared::Shared;
use crate::store::{LockFree, Store};
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

/// An object on loan from a pool that it cannot outlive.
pub struct Lease<'p, T: Send + 'static, R: Recycle<T>, M: Store = LockFree> {
    lease: OwnedLease<T, R, M>,
    pool: PhantomData<&'p Pool<T, R, M>>,
}

impl<T: Send, R: Recycle<T>, M: Store> Lease<'_, T, R, M> {
    /// # Safety
    /// As for [`OwnedLease::new`].
    #[inline(always)]
    pub(crate) unsafe fn new(object: NonNull<T>) -> Self {
        // SAFETY: the caller's promise.
        Self { lease: unsafe { OwnedLease::new(object) }, pool: PhantomData }
    }

    /// Takes the object out of the pool for good.
    pub fn detach(self) -> T {
        self.lease.detach()
    }

    /// The same lease, free of the pool's lifetime.
    pub fn into_owned(self) -> OwnedLease<T, R, M> {
        self.lease
    }
}

/// An object on loan from a pool, for any thread and any time: if the pool ends first, the object ends with the lease.
pub struct OwnedLease<T: Send + 'static, R: Recycle<T>, M: Store = LockFree> {
    object: NonNull<T>,
    pool: PhantomData<fn() -> (R, M)>,
}

// SAFETY: the lease is the only way to its object, which is `Send`.
unsafe impl<T: Send, R: Recycle<T>, M: Store> Send for OwnedLease<T, R, M> {}
// SAFETY: a shared lease gives shared references to the object only.
unsafe impl<T: Send + Sync, R: Recycle<T>, M: Store> Sync for OwnedLease<T, R, M> {}

impl<T: Send, R: Recycle<T>, M: Store> OwnedLease<T, R, M> {
    /// # Safety
    /// The object is of a pool of these types, not idle, and the caller's, who gives it up.
    #[inline(always)]
    pub(crate) unsafe fn new(object: NonNull<T>) -> Self {
        Self { object, pool: PhantomData }
    }

    /// Takes the object out of the pool for good.
    pub fn detach(self) -> T {
        let lease = ManuallyDrop::new(self);
        // SAFETY: the object is the lease's (module invariant), which is gone.
        unsafe { Shared::<T, R, M>::detach(lease.object) }
    }

    /// Puts the object away under a number, for [`Pool::claim`]. It counts as out until it is claimed and returned; if it never
    /// is, it is a leak: after the end of the pool nobody can claim it.
    pub fn into_key(self) -> Key {
        let lease = ManuallyDrop::new(self);
        // SAFETY: the object is the lease's (module invariant), which is gone.
        unsafe { Shared::<T, R, M>::into_key(lease.object) }
    }

    /// The lease as a pointer to its object, for [`from_raw`](Self::from_raw).
    pub fn into_raw(self) -> NonNull<T> {
        ManuallyDrop::new(self).object
    }

    /// The lease that became `object`.
    ///
    /// # Safety
    /// The pointer came from [`into_raw`](Self::into_raw) of the same types, and is used up by this.
    pub const unsafe fn from_raw(object: NonNull<T>) -> Self {
        Self { object, pool: PhantomData }
    }
}

impl<T: Send, R: Recycle<T>, M: Store> Drop for OwnedLease<T, R, M> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the object is the lease's (module invariant), which is gone.
        unsafe { Shared::<T, R, M>::give(self.object) };
    }
}

impl<T: Send, R: Recycle<T>, M: Store> Deref for OwnedLease<T, R, M> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the object is the lease's (module invariant).
        unsafe { self.object.as_ref() }
    }
}

impl<T: Send, R: Recycle<T>, M: Store> DerefMut for OwnedLease<T, R, M> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the object is the lease's (module invariant), which is borrowed alone.
        unsafe { self.object.as_mut() }
    }
}

impl<T: Send, R: Recycle<T>, M: Store> Deref for Lease<'_, T, R, M> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.lease
    }
}

impl<T: Send, R: Recycle<T>, M: Store> DerefMut for Lease<'_, T, R, M> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.lease
    }
}

impl<T: Send + fmt::Debug, R: Recycle<T>, M: Store> fmt::Debug for OwnedLease<T, R, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnedLease").field(&**self).finish()
    }
}

impl<T: Send + fmt::Debug, R: Recycle<T>, M: Store> fmt::Debug for Lease<'_, T, R, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&**self).finish()
    }
}
