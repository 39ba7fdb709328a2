//! Objects that one waits for: [`Managed`].
//!
//! Invariant: at most as many leases are out as there are permits, and there are as many permits as the pool may have objects.
//! A lease returns its object before its permit, so whoever gets a permit finds an object, or room for one.
//!
//! Waiting is fair, first come first served, and cancelled by dropping the future: a permit that was granted meanwhile goes to
//! the next in line.

use crate::error::Exhausted;
use crate::lease::OwnedLease;
use crate::pool::{Builder, Pool, PoolStats};
use crate::recycle::Recycle;
use core::fmt;
use core::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Why a wait ended without an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum WaitError {
    /// The deadline passed.
    TimedOut {
        /// How long was waited.
        waited: Duration,
    },
    /// The pool was closed.
    Closed,
}

impl fmt::Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut { waited } => write!(f, "no object within {waited:?}"),
            Self::Closed => f.write_str("the pool is closed"),
        }
    }
}

impl core::error::Error for WaitError {}

/// A pool whose acquire waits until an object is there.
pub struct Managed<T: Send + 'static, R: Recycle<T>> {
    pool: Pool<T, R>,
    permits: Arc<Semaphore>,
    max: usize,
}

impl<T: Send, R: Recycle<T>> fmt::Debug for Managed<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Managed")
            .field("max", &self.max)
            .field("free", &self.permits.available_permits())
            .finish_non_exhaustive()
    }
}

impl<T: Send, R: Recycle<T>> Managed<T, R> {
    /// A pool of at most `max` objects, otherwise as `builder` says.
    ///
    /// # Panics
    /// If `max` is above [`Semaphore::MAX_PERMITS`].
    pub fn new(builder: Builder<R>, max: usize) -> Self {
        Self { pool: builder.max(max).build(), permits: Arc::new(Semaphore::new(max)), max }
    }

    /// An object, as soon as there is one.
    ///
    /// # Errors
    /// [`WaitError::Closed`].
    pub async fn acquire(&self) -> Result<ManagedLease<T, R>, WaitError> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| WaitError::Closed)?;
        Ok(self.with(permit))
    }

    /// An object, if there is one within `limit`.
    ///
    /// # Errors
    /// [`WaitError`].
    pub async fn acquire_within(&self, limit: Duration) -> Result<ManagedLease<T, R>, WaitError> {
        tokio::time::timeout(limit, self.acquire())
            .await
            .unwrap_or(Err(WaitError::TimedOut { waited: limit }))
    }

    /// An object, if there is one now and nobody waits for it.
    ///
    /// # Errors
    /// [`Exhausted`].
    pub fn try_acquire(&self) -> Result<ManagedLease<T, R>, Exhausted> {
        let exhausted = Exhausted { max: self.max };
        self.permits.clone().try_acquire_owned().map(|permit| self.with(permit)).map_err(|_| exhausted)
    }

    fn with(&self, permit: OwnedSemaphorePermit) -> ManagedLease<T, R> {
        // By the module's invariant; only this type takes objects of the pool.
        let lease = self.pool.acquire_owned().expect("a permit stands for an object");
        ManagedLease { lease, _permit: permit }
    }

    /// Makes all who wait, and will, fail. What is out may be returned.
    pub fn close(&self) {
        self.permits.close();
    }

    /// Leases that could be had without waiting.
    pub fn free(&self) -> usize {
        self.permits.available_permits()
    }

    /// As [`Pool::stats`].
    pub fn stats(&self) -> PoolStats {
        self.pool.stats()
    }

    /// As [`Pool::tick`].
    pub fn tick(&self) {
        self.pool.tick();
    }
}

/// An object of a [`Managed`] pool, until this is dropped.
pub struct ManagedLease<T: Send + 'static, R: Recycle<T>> {
    /// Dropped first: fields are dropped in order.
    lease: OwnedLease<T, R>,
    _permit: OwnedSemaphorePermit,
}

impl<T: Send, R: Recycle<T>> Deref for ManagedLease<T, R> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.lease
    }
}

impl<T: Send, R: Recycle<T>> DerefMut for ManagedLease<T, R> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.lease
    }
}

impl<T: Send + fmt::Debug, R: Recycle<T>> fmt::Debug for ManagedLease<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ManagedLease").field(&**self).finish()
    }
}
