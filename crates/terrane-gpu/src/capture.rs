//! Memory for the work of graphs: while a stream is being captured it allocates from a pool of its own.
//!
//! Invariant: an address that captured work uses belongs to a private pool until the graph is gone: until then the graph
//! can be launched at any time, which the host's order of frees says nothing about. Nothing waits, and no event is asked,
//! on behalf of a captured stream.

use crate::device::{Stream, Streams};
use crate::error::PoolError;
use crate::pool::{DevicePool, PoolStats};
use crate::variable::{Backing, Engine, VariablePool};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Marks the key of a block from a private pool.
pub(crate) const PRIVATE: u64 = 1 << 63;

/// The private pools of a pool, by number.
pub(crate) struct Captures<A> {
    next: AtomicU64,
    pools: Mutex<HashMap<u64, (A, bool)>>,
}

impl<A> Default for Captures<A> {
    fn default() -> Self {
        Self { next: AtomicU64::new(1), pools: Mutex::new(HashMap::new()) }
    }
}

impl<A: Clone> Captures<A> {
    pub(crate) fn add(&self, pool: A) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.pools.lock().insert(id, (pool, false));
        id
    }

    /// Calls `f` with a pool; if its graph is gone and it `is_empty` after that, the pool goes too.
    pub(crate) fn with(&self, id: u64, f: impl FnOnce(&A), is_empty: impl Fn(&A) -> bool) {
        let found = self.pools.lock().get(&id).cloned();
        let Some((pool, gone)) = found else { return };
        f(&pool);
        if gone && is_empty(&pool) {
            let last = self.pools.lock().remove(&id);
            drop(last);
        }
    }

    /// The graph is gone; the pool goes when its last block does.
    pub(crate) fn graph_gone(&self, is: impl Fn(&A) -> bool, empty: impl Fn(&A) -> bool) {
        let last = {
            let mut pools = self.pools.lock();
            let Some(id) = pools.iter().find(|(_, (pool, _))| is(pool)).map(|(&id, _)| id) else { return };
            if let Some(entry) = pools.get_mut(&id) {
                entry.1 = true;
            }
            if pools.get(&id).is_some_and(|(pool, _)| empty(pool)) { pools.remove(&id) } else { None }
        };
        // Dropped without the lock: the pool gives its memory back.
        drop(last);
    }
}

/// A capture in progress; made by [`VariablePool::begin_capture`].
#[must_use = "end the capture to keep the memory that the graph uses"]
pub struct Capture<'a, P: Engine, B: Backing<S>, S: Streams + ?Sized + 'static> {
    pool: &'a VariablePool<P, B, S>,
    private: Option<Arc<VariablePool<P, B, S>>>,
    stream: Stream,
}

impl<'a, P: Engine, B: Backing<S>, S: Streams + ?Sized + 'static> Capture<'a, P, B, S> {
    pub(crate) fn new(
        pool: &'a VariablePool<P, B, S>,
        private: Arc<VariablePool<P, B, S>>,
        stream: Stream,
    ) -> Self {
        Self { pool, private: Some(private), stream }
    }

    /// The stream's capture is over: it allocates from the pool again. What is returned keeps the graph's memory, and is
    /// to be dropped when no launch of the graph is in flight and none will come.
    pub fn end(mut self) -> GraphMemory<'a, P, B, S> {
        self.pool.end_capture(self.stream);
        GraphMemory { pool: self.pool, private: self.private.take() }
    }

    /// Takes `len` bytes for the private pool before the capture begins, so that it need not grow during it.
    ///
    /// # Errors
    /// As for an allocation.
    pub fn reserve(&self, len: u64) -> Result<(), PoolError> {
        self.private.as_ref().map_or(Ok(()), |private| private.reserve(len))
    }
}

impl<P: Engine, B: Backing<S>, S: Streams + ?Sized + 'static> Drop for Capture<'_, P, B, S> {
    fn drop(&mut self) {
        if self.private.is_some() {
            self.pool.end_capture(self.stream);
            forget(self.pool, self.private.take());
        }
    }
}

fn forget<P: Engine, B: Backing<S>, S: Streams + ?Sized + 'static>(
    pool: &VariablePool<P, B, S>,
    private: Option<Arc<VariablePool<P, B, S>>>,
) {
    if let Some(private) = private {
        pool.captures.graph_gone(|other| Arc::ptr_eq(other, &private), |p| p.stats().live_blocks == 0);
    }
}

/// The memory of a graph, kept until this is dropped.
pub struct GraphMemory<'a, P: Engine, B: Backing<S>, S: Streams + ?Sized + 'static> {
    pool: &'a VariablePool<P, B, S>,
    private: Option<Arc<VariablePool<P, B, S>>>,
}

impl<P: Engine, B: Backing<S>, S: Streams + ?Sized + 'static> GraphMemory<'_, P, B, S> {
    /// The figures of the graph's private pool.
    pub fn stats(&self) -> PoolStats {
        self.private.as_ref().map(|private| private.stats()).unwrap_or_default()
    }
}

impl<P: Engine, B: Backing<S>, S: Streams + ?Sized + 'static> Drop for GraphMemory<'_, P, B, S> {
    fn drop(&mut self) {
        forget(self.pool, self.private.take());
    }
}
