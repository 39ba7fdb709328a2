//! What the allocator holds and did: a snapshot of counters, added up over the process's heaps.
//!
//! The hit path counts nothing. Blocks are counted when they move between slabs and threads' lists, in batches; so `out` of a
//! class is exact as a sum over heaps, and contains the blocks that wait in lists. For the calling thread those are counted
//! apart. Large blocks that wait in lists of other threads are counted as of those threads' last ticks.
//!
//! Invariant: a snapshot shows no more frees than allocations, and no more blocks returned than taken, whatever other threads
//! do meanwhile: see [`terrane_slab::stats`].

use crate::process::{RECORDS, ThreadRecord, domain};
use crate::thread::current_record;
use crate::tls::with_lists;
use terrane_slab::size_class::{self, CLASSES};
use terrane_slab::stats::add_up;

/// Counters of one size class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClassSnapshot {
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Blocks that slabs have handed to threads so far.
    pub taken: u64,
    /// Blocks that threads have handed back to slabs so far.
    pub returned: u64,
    /// Frees that threads' lists took so far, up to those since a list last got room.
    pub listed: u64,
    /// Slabs made so far.
    pub slabs_made: u64,
    /// Slabs retired so far.
    pub slabs_retired: u64,
    /// Blocks in the calling thread's list, and aside for it.
    pub in_own_list: u64,
}

impl ClassSnapshot {
    /// Blocks that are out of their slabs: with the program, or in threads' lists and batches.
    pub const fn out(&self) -> u64 {
        self.taken.saturating_sub(self.returned)
    }

    /// Allocations so far: every one took a block out of a slab for the first time, or one that a list had taken.
    pub const fn allocations(&self) -> u64 {
        (self.taken + self.listed).saturating_sub(self.in_own_list)
    }
}

/// A snapshot of the process's allocator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// By size class.
    pub classes: [ClassSnapshot; CLASSES],
    /// Heaps ever made.
    pub heaps: u64,
    /// Heaps that threads use now.
    pub heaps_used: u64,
    /// Times a list was filled.
    pub refills: u64,
    /// Times blocks went from a list back to their slabs.
    pub flushes: u64,
    /// Blocks freed into slabs of other heaps.
    pub remote_frees: u64,
    /// Exchanges that carried them.
    pub remote_batches: u64,
    /// Parked slabs of other heaps taken from a shelf.
    pub steals: u64,
    /// Parked slabs claimed by freeing into them.
    pub claims: u64,
    /// Slabs parked.
    pub parks: u64,
    /// Large blocks allocated.
    pub large_allocated: u64,
    /// Large blocks freed.
    pub large_freed: u64,
    /// Of the large blocks allocated, those that came from a cache.
    pub large_cached: u64,
    /// Bytes of large blocks that are live.
    pub large_live_bytes: u64,
    /// Huge blocks allocated.
    pub huge_allocated: u64,
    /// Huge blocks freed.
    pub huge_freed: u64,
    /// Bytes of huge blocks that are live.
    pub huge_live_bytes: u64,
    /// Bytes of address space reserved.
    pub reserved_bytes: u64,
    /// Bytes in use by slabs, large and huge blocks and heap records.
    pub committed_bytes: u64,
    /// Largest value of `committed_bytes` so far.
    pub peak_committed_bytes: u64,
    /// Arenas.
    pub arenas: u64,
    /// Segments in use.
    pub segments: u64,
    /// Bytes given back to the system so far.
    pub purged_bytes: u64,
    /// Times memory was given back.
    pub purges: u64,
    /// Blocks grown where they stood.
    pub grown_in_place: u64,
    /// Blocks moved by remapping their pages.
    pub remapped: u64,
}

impl Snapshot {
    /// Bytes of small blocks that are out of their slabs.
    pub fn small_out_bytes(&self) -> u64 {
        self.classes.iter().map(|class| class.out() * class.block_bytes).sum()
    }

    /// Bytes that the program holds, up to what waits in the lists of other threads.
    pub fn live_bytes(&self) -> u64 {
        let waiting: u64 = self.classes.iter().map(|class| class.in_own_list * class.block_bytes).sum();
        self.small_out_bytes().saturating_sub(waiting) + self.large_live_bytes + self.huge_live_bytes
    }

    /// Allocations so far.
    pub fn allocations(&self) -> u64 {
        self.classes.iter().map(ClassSnapshot::allocations).sum::<u64>()
            + self.large_allocated
            + self.huge_allocated
    }
}

/// Takes a snapshot. Linear in the number of heaps and classes, and in the blocks that wait in the calling thread's lists; allocates
/// nothing.
pub fn snapshot() -> Snapshot {
    if let Some(record) = current_record() {
        // SAFETY: the record is the calling thread's, and counting does not come back to it.
        with_lists(|own| unsafe { record.heap(|heap| heap.count_waiting(own)) });
    }
    let domain = &domain().counters;
    // What ended before what began.
    let huge_freed = domain.huge_freed.get();
    let mut s = Snapshot {
        classes: [ClassSnapshot::default(); CLASSES],
        heaps: 0,
        heaps_used: 0,
        refills: 0,
        flushes: 0,
        remote_frees: 0,
        remote_batches: 0,
        steals: 0,
        claims: 0,
        parks: 0,
        large_allocated: 0,
        large_freed: 0,
        large_cached: 0,
        large_live_bytes: 0,
        huge_allocated: domain.huge_allocated.get(),
        huge_freed,
        huge_live_bytes: domain.huge_live.get(),
        reserved_bytes: domain.reserved.get(),
        committed_bytes: domain.slices_in_use.get() + domain.huge_committed.get(),
        peak_committed_bytes: domain.peak_in_use.get(),
        arenas: domain.arenas.get(),
        segments: domain.segments.get(),
        purged_bytes: domain.purged.get(),
        purges: domain.purges.get(),
        grown_in_place: domain.grown_in_place.get(),
        remapped: domain.remapped.get(),
    };
    let (mut bytes_taken, mut bytes_given, mut large_freed) = (0_u64, 0_u64, 0_u64);
    let (mut returned, mut slabs_retired) = ([0_u64; CLASSES], [0_u64; CLASSES]);
    let ended = |record: &ThreadRecord| {
        let counters = record.counters();
        for (at, class) in counters.classes.iter().enumerate() {
            returned[at] += class.returned.get();
            slabs_retired[at] += class.slabs_retired.get();
        }
        large_freed += counters.large_given.get() + counters.large_waiting.get();
        bytes_given += counters.large_bytes_given.get() + counters.large_bytes_waiting.get();
    };
    let begun = |record: &ThreadRecord| {
        let counters = record.counters();
        s.heaps += 1;
        s.heaps_used += record.is_used() as u64;
        for (sum, class) in s.classes.iter_mut().zip(&counters.classes) {
            sum.taken += class.taken.get();
            sum.listed += class.listed.get();
            sum.slabs_made += class.slabs_made.get();
        }
        s.refills += counters.refills.get();
        s.flushes += counters.flushes.get();
        s.remote_frees += counters.remote_frees.get();
        s.remote_batches += counters.remote_batches.get();
        s.steals += counters.steals.get();
        s.claims += counters.claims.get();
        s.parks += counters.parks.get();
        s.large_allocated += counters.large_taken.get();
        s.large_cached += counters.large_cached.get();
        bytes_taken += counters.large_bytes_taken.get();
    };
    add_up(|| RECORDS.all(), ended, begun);
    for (at, sum) in s.classes.iter_mut().enumerate() {
        (sum.returned, sum.slabs_retired) = (returned[at], slabs_retired[at]);
    }
    s.large_cached += with_lists(|own| own.large_hits());
    s.large_allocated += s.large_cached;
    // A block that goes from a list to the domain right now may count on both sides.
    s.large_freed = (large_freed + s.large_cached).min(s.large_allocated);
    s.large_live_bytes = bytes_taken.saturating_sub(bytes_given);
    let record = current_record();
    let granted = |class: usize| record.map_or(0, |record| record.counters().classes[class].granted.get());
    // SAFETY: the record is the calling thread's, and counting does not come back to it.
    let aside = |class| record.map_or(0, |record| unsafe { record.heap(|heap| heap.aside(class)) } as u64);
    with_lists(|own| {
        for class in 0..CLASSES {
            let entry = &mut s.classes[class];
            entry.block_bytes = size_class::class(class).block_bytes as u64;
            entry.in_own_list = own.len(class) as u64;
            if own.name().is_some() {
                entry.listed += granted(class).saturating_sub(own.room_left(class));
                entry.in_own_list += aside(class);
            }
        }
    });
    s
}
