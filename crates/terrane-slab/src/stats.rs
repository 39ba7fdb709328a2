//! Counters: one writer each, merged when somebody asks.
//!
//! Invariant: a counter of a heap is written by that heap's thread only, by a load and a store, so counting costs no
//! atomic read-modify-write; a reader adds the heaps up. The counters of the domain count rare things and are shared.
//!
//! Counting releases and reading acquires. So a reader that first adds up what ended (frees) and then what began (allocations)
//! never sees more ended than begun: [`add_up`]. The argument is in the book, chapter "Statistics".

use crate::fault::{Fault, order, planted};
use crate::sharing::Sharing;
use crate::size_class::CLASSES;
use core::sync::atomic::{AtomicU64, Ordering};

/// The word of a counter: the machine's own, or, in models of counting itself, one that loom watches.
pub trait Word {
    /// The value.
    fn load(&self, order: Ordering) -> u64;
    /// Replaces the value.
    fn store(&self, value: u64, order: Ordering);
}

impl Word for AtomicU64 {
    #[inline(always)]
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }
    #[inline(always)]
    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }
}

#[cfg(loom)]
impl Word for terrane_core::sync::atomic::AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }
    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }
}

/// Adds up what `records` counted, in the order that keeps sums consistent while others count: `ended` is called with every
/// record to read what ended, then `begun` to read what began.
pub fn add_up<R: Iterator>(
    records: impl Fn() -> R,
    mut ended: impl FnMut(R::Item),
    mut begun: impl FnMut(R::Item),
) {
    if planted(Fault::BegunFirst) {
        records().for_each(&mut begun);
        records().for_each(&mut ended);
        return;
    }
    records().for_each(&mut ended);
    records().for_each(&mut begun);
}

/// A counter with one writer.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Counter<W = AtomicU64>(W);

impl<W: Word> Counter<W> {
    /// A counter that begins with the value of `word`.
    pub const fn of(word: W) -> Self {
        Self(word)
    }

    /// Adds `n`. Only the one writer calls this.
    #[inline]
    pub fn add(&self, n: u64) {
        // Release: who reads this count sees all that was counted before.
        let release = order(Fault::CountRelaxed, Ordering::Release);
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), release);
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl Counter {
    /// Zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Makes the counter `n`. Only the one writer calls this.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Adds `n`, from any thread that shares the domain.
    #[inline]
    pub fn add_shared<K: Sharing>(&self, n: u64) {
        if K::SHARED {
            self.0.fetch_add(n, Ordering::Release);
        } else {
            self.add(n);
        }
    }

    /// Takes `n` off, from any thread that shares the domain.
    #[inline]
    pub fn sub_shared<K: Sharing>(&self, n: u64) {
        self.add_shared::<K>(n.wrapping_neg());
    }

    /// Raises the counter to `n` if it is below, from any thread that shares the domain.
    #[inline]
    pub fn raise_shared<K: Sharing>(&self, n: u64) {
        if self.get() >= n {
            // The common case needs no write.
        } else if K::SHARED {
            self.0.fetch_max(n, Ordering::Relaxed);
        } else {
            self.0.store(n, Ordering::Relaxed);
        }
    }
}

/// What one heap counted of one class.
#[derive(Debug, Default)]
pub struct ClassCounters {
    /// Blocks moved from slabs to the thread's list.
    pub taken: Counter,
    /// Blocks moved from the thread back to slabs, its own or others'.
    pub returned: Counter,
    /// Frees that went through the thread's list, as of when it last got room.
    pub listed: Counter,
    /// Room that the list got last.
    pub granted: Counter,
    /// Slabs made.
    pub slabs_made: Counter,
    /// Slabs retired.
    pub slabs_retired: Counter,
}

/// What one heap counted.
#[derive(Debug)]
pub struct HeapCounters {
    /// By size class.
    pub classes: [ClassCounters; CLASSES],
    /// Times a thread's list was filled.
    pub refills: Counter,
    /// Times blocks went from a thread's list, or from what is aside for it, back to their slabs.
    pub flushes: Counter,
    /// Blocks freed into slabs of other heaps.
    pub remote_frees: Counter,
    /// Exchanges that carried them.
    pub remote_batches: Counter,
    /// Slabs of other heaps taken from a shelf.
    pub steals: Counter,
    /// Parked slabs claimed by freeing into them.
    pub claims: Counter,
    /// Slabs parked.
    pub parks: Counter,
    /// Large blocks taken from the domain.
    pub large_taken: Counter,
    /// Large blocks given back to the domain.
    pub large_given: Counter,
    /// Large blocks allocated from the thread's own lists, as of the last tick.
    pub large_cached: Counter,
    /// Large blocks that waited in the thread's lists at the last tick.
    pub large_waiting: Counter,
    /// Bytes of large blocks taken from the domain.
    pub large_bytes_taken: Counter,
    /// Bytes of large blocks given back to the domain.
    pub large_bytes_given: Counter,
    /// Bytes of large blocks that waited in the thread's lists at the last tick.
    pub large_bytes_waiting: Counter,
}

impl HeapCounters {
    /// All zero.
    pub const fn new() -> Self {
        Self {
            classes: [const {
                ClassCounters {
                    taken: Counter::new(),
                    returned: Counter::new(),
                    listed: Counter::new(),
                    granted: Counter::new(),
                    slabs_made: Counter::new(),
                    slabs_retired: Counter::new(),
                }
            }; CLASSES],
            refills: Counter::new(),
            flushes: Counter::new(),
            remote_frees: Counter::new(),
            remote_batches: Counter::new(),
            steals: Counter::new(),
            claims: Counter::new(),
            parks: Counter::new(),
            large_taken: Counter::new(),
            large_given: Counter::new(),
            large_cached: Counter::new(),
            large_waiting: Counter::new(),
            large_bytes_taken: Counter::new(),
            large_bytes_given: Counter::new(),
            large_bytes_waiting: Counter::new(),
        }
    }
}

impl Default for HeapCounters {
    fn default() -> Self {
        Self::new()
    }
}

/// What a domain counted: rare things, from any thread.
#[derive(Debug)]
pub struct DomainCounters {
    /// Bytes of address space reserved in arenas.
    pub reserved: Counter,
    /// Arenas.
    pub arenas: Counter,
    /// Segments in use, for slices or as part of a huge span.
    pub segments: Counter,
    /// Bytes of slices in use by slabs, large blocks and heap records.
    pub slices_in_use: Counter,
    /// Largest value of `slices_in_use` plus `huge_committed`.
    pub peak_in_use: Counter,
    /// Bytes of `slices_in_use` that hold records, for good.
    pub record_bytes: Counter,
    /// Bytes of huge blocks handed out.
    pub huge_live: Counter,
    /// Bytes of huge spans that hold memory, live or cached.
    pub huge_committed: Counter,
    /// Huge blocks allocated.
    pub huge_allocated: Counter,
    /// Huge blocks freed.
    pub huge_freed: Counter,
    /// Of the huge blocks allocated, those served from the cache.
    pub huge_cached: Counter,
    /// Bytes given back to the system.
    pub purged: Counter,
    /// Times memory was given back.
    pub purges: Counter,
    /// Blocks grown in place.
    pub grown_in_place: Counter,
    /// Blocks moved by remapping their pages.
    pub remapped: Counter,
}

impl DomainCounters {
    /// All zero.
    pub const fn new() -> Self {
        Self {
            reserved: Counter::new(),
            arenas: Counter::new(),
            segments: Counter::new(),
            slices_in_use: Counter::new(),
            peak_in_use: Counter::new(),
            record_bytes: Counter::new(),
            huge_live: Counter::new(),
            huge_committed: Counter::new(),
            huge_allocated: Counter::new(),
            huge_freed: Counter::new(),
            huge_cached: Counter::new(),
            purged: Counter::new(),
            purges: Counter::new(),
            grown_in_place: Counter::new(),
            remapped: Counter::new(),
        }
    }
}

impl Default for DomainCounters {
    fn default() -> Self {
        Self::new()
    }
}
