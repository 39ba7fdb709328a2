//! Heaps of one's own, and their builder.

use std::fmt;
use terrane_core::{Decommit, PageSource, SourceError};
use terrane_pages::Mmap;
use terrane_slab::domain::Policy;
use terrane_slab::stats::{DomainCounters, HeapCounters};
use terrane_slab::{Growth, PrivateHeap, PurgePolicy};

pub use terrane_slab::private::Classes;

/// A single-threaded heap of its own: no atomic read-modify-write, any page source, destroyed at once with everything in it.
///
/// `&Heap` is an [`Allocator`](allocator_api2::alloc::Allocator), so collections can live in it:
///
/// ```
/// use allocator_api2::boxed::Box;
/// use terrane::{Heap, PurgePolicy};
///
/// let heap = Heap::builder()
///     .purge(PurgePolicy { delay_ms: PurgePolicy::NEVER, ..PurgePolicy::DEFAULT })
///     .build()
///     .unwrap();
/// let boxed = Box::new_in([0_u8; 4096], &heap);
/// assert_eq!(boxed[17], 0);
/// ```
///
/// The heap is neither `Send` nor `Sync`: make one for each thread.
pub struct Heap<S: PageSource = Mmap> {
    heap: PrivateHeap<S>,
}

impl Heap {
    /// Begins a heap over memory-mapped pages.
    pub const fn builder() -> HeapBuilder<Mmap> {
        HeapBuilder::new_in(Mmap::new())
    }
}

impl<S: PageSource> Heap<S> {
    /// A heap over `source`, otherwise by default.
    ///
    /// # Errors
    /// The source has no page for the heap itself.
    pub fn new_in(source: S) -> Result<Self, SourceError> {
        HeapBuilder::new_in(source).build()
    }

    pub(crate) const fn private(&self) -> &PrivateHeap<S> {
        &self.heap
    }

    /// Gives all free memory of the heap back to its source.
    pub fn purge(&self) {
        self.heap.release_free_memory();
    }

    /// What the heap counted.
    pub fn counters(&self) -> &HeapCounters {
        self.heap.counters()
    }

    /// Checks the heap from end to end: every arena, slab, list and sum.
    ///
    /// # Errors
    /// What is broken, and where.
    pub fn verify(&self) -> Result<terrane_slab::VerifyReport, terrane_slab::VerifyError> {
        self.heap.verify()
    }

    /// What the tiers below the heap counted.
    pub fn tier_counters(&self) -> &DomainCounters {
        &self.heap.domain().counters
    }
}

impl<S: PageSource> fmt::Debug for Heap<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tiers = self.tier_counters();
        f.debug_struct("Heap")
            .field("reserved_bytes", &tiers.reserved.get())
            .field("slices_in_use_bytes", &tiers.slices_in_use.get())
            .field("huge_live_bytes", &tiers.huge_live.get())
            .finish_non_exhaustive()
    }
}

/// How a heap is to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct HeapBuilder<S> {
    source: S,
    policy: Policy,
    classes: Classes,
}

impl<S: PageSource> HeapBuilder<S> {
    /// Begins a heap over `source`.
    pub const fn new_in(source: S) -> Self {
        let policy = Policy {
            growth: Growth::SMALL,
            clock: terrane_front::process::milliseconds,
            on_misuse: terrane_front::process::abort_on_misuse,
            ..Policy::DEFAULT
        };
        Self { source, policy, classes: Classes::Fine }
    }

    /// Takes pages from `source`. For memory near one NUMA node, wrap a source in [`Numa`](terrane_pages::Numa).
    pub fn source<T: PageSource>(self, source: T) -> HeapBuilder<T> {
        HeapBuilder { source, policy: self.policy, classes: self.classes }
    }

    /// How memory goes back to the source.
    pub const fn purge(mut self, purge: PurgePolicy) -> Self {
        self.policy.purge = purge;
        self
    }

    /// Whether memory goes back lazily or at once.
    pub const fn decommit(mut self, how: Decommit) -> Self {
        self.policy.purge.how = how;
        self
    }

    /// Whether huge blocks (above 4 MiB) that are expected to be filled are backed by transparent huge pages.
    pub const fn huge_pages(mut self, on: bool) -> Self {
        self.policy.huge_pages = on;
        self
    }

    /// Sizes of the heap's arenas.
    pub const fn growth(mut self, growth: Growth) -> Self {
        self.policy.growth = growth;
        self
    }

    /// How many size classes the heap uses.
    pub const fn classes(mut self, classes: Classes) -> Self {
        self.classes = classes;
        self
    }

    /// Makes the heap.
    ///
    /// # Errors
    /// The source has no page for the heap itself.
    pub fn build(self) -> Result<Heap<S>, SourceError> {
        let heap = PrivateHeap::with_policy(self.source, self.policy, ())?.with_classes(self.classes);
        Ok(Heap { heap })
    }
}
