//! How deep caches should be: [`Sizing`], a pure policy of samples in and moves out.
//!
//! A policy runs on a ticker or a slow path, never inside a free. It sees one [`Sample`] per cache (one class of one
//! thread, one pool) and answers with [`Move`]s. It holds no locks, touches no memory but its own, and is deterministic:
//! the same samples give the same moves, so that policies can be tested on recorded traces.

/// What one cache did since the last look at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sample {
    /// Which cache: the caller's own number, given back in [`Move::cache`].
    pub cache: u32,
    /// Requests served from the cache.
    pub hits: u64,
    /// Requests that had to go to the level below.
    pub misses: u64,
    /// Returns that did not fit and went to the level below.
    pub overflows: u64,
    /// Fewest objects that the cache held: these were never needed.
    pub low_water: u32,
    /// Objects that the cache may hold now.
    pub capacity: u32,
    /// Bytes of one object.
    pub object_bytes: u32,
}

/// A decision: this cache may hold so many objects from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// The [`Sample::cache`] that this is about.
    pub cache: u32,
    /// Objects that it may hold from now on.
    pub capacity: u32,
}

/// A sizing policy.
pub trait Sizing {
    /// Looks at all `samples` and calls `apply` for each cache whose capacity should change. The bytes of all capacities
    /// together never pass `budget` through these moves.
    fn decide(&mut self, samples: &[Sample], budget: u64, apply: &mut dyn FnMut(Move));
}

/// Leaves every cache as it is.
impl Sizing for () {
    fn decide(&mut self, _: &[Sample], _: u64, _: &mut dyn FnMut(Move)) {}
}
