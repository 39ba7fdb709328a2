//! The walk over what one heap owns.

use super::{Broken, Met, VerifyError, VerifyReport, at_most, equal, has_entry, holds, slab_of};
use crate::heap::{Heap, Parts};
use crate::large;
use crate::lists::Lists;
use crate::queue::Queue;
use crate::segment::{SLICE_BYTES, Segment, entry};
use crate::sharing::Sharing;
use crate::size_class::{CLASSES, TABLE};
use crate::slab::{Block, HeapId, Slab};
use core::ptr;
use terrane_core::{Observer, PageSource};

/// No list of a thread is longer: see `heap/small.rs`.
const LONGEST: u64 = crate::heap::LONGEST_LIST as u64;

struct Walk<'a> {
    domain: *const (),
    name: HeapId,
    heap: Parts<'a>,
    lists: Option<&'a Lists>,
    report: VerifyReport,
}

impl<S: PageSource, K: Sharing, O: Observer> Heap<S, K, O> {
    /// Checks everything that this heap owns, and the thread's lists that belong to it. Other threads may run.
    ///
    /// # Errors
    /// The first promise that does not hold.
    pub fn verify(&self, lists: &Lists) -> Result<VerifyReport, VerifyError> {
        // SAFETY: the caller has the heap, so nobody else touches the slabs that it owns.
        unsafe { self.verify_with(Some(lists)) }
    }

    /// The same; of a heap whose lists are out of reach without them.
    ///
    /// # Safety
    /// The heap is the calling thread's, or nobody uses it meanwhile.
    pub(super) unsafe fn verify_with(&self, lists: Option<&Lists>) -> Result<VerifyReport, VerifyError> {
        let domain: *const () = ptr::from_ref(self.domain()).cast();
        let report = VerifyReport { heaps: 1, ..VerifyReport::default() };
        let lists = lists.filter(|lists| lists.name() == Some(self.name()));
        let mut walk = Walk { domain, name: self.name(), heap: self.parts(), lists, report };
        for class in 0..CLASSES {
            walk.list(class)?;
            // SAFETY: the caller's promise.
            unsafe { walk.queue(class)? };
        }
        walk.batches()?;
        walk.large_cache()?;
        Ok(walk.report)
    }
}

impl Walk<'_> {
    /// The heads of the lists of free blocks of `class` that the thread keeps.
    fn heads(&self, class: usize) -> [*mut Block; 2] {
        [self.lists.map_or(ptr::null_mut(), |lists| lists.head(class)), self.heap.aside[class]]
    }

    /// Blocks of a list are of its class, start where blocks start, and the list ends.
    fn list(&mut self, class: usize) -> Result<(), VerifyError> {
        for mut block in self.heads(class) {
            let mut len = 0;
            while !block.is_null() {
                let address = block.addr();
                let Some(slab) = slab_of(self.domain, address) else {
                    return holds(Broken::ListClass, address, false);
                };
                // SAFETY: the entry of a slab's slice was written before its blocks were handed out.
                let (start, found) = unsafe { ((*slab).start(), entry((*slab).start()).class()) };
                equal(
                    Broken::ListClass,
                    address,
                    class as u64,
                    found.map_or(u64::MAX, |class| class as u64),
                )?;
                let offset = address - start.addr();
                let bytes = TABLE[class].block_bytes as usize;
                let is_block = offset.is_multiple_of(bytes) && offset / bytes < TABLE[class].blocks as usize;
                holds(Broken::BlockOutside, address, is_block)?;
                // SAFETY: it is a block, and one of the thread's.
                block = unsafe { Block::next(block) };
                len += 1;
                at_most(Broken::ListEndless, address, LONGEST, len)?;
            }
            self.report.listed_blocks += len;
        }
        Ok(())
    }

    /// The bins link what the heap owns, there and back, and count it.
    ///
    /// # Safety
    /// Nobody but the caller uses the heap.
    unsafe fn queue(&mut self, class: usize) -> Result<(), VerifyError> {
        let queue = &self.heap.queues[class];
        let mut slabs = 0;
        for (bin, &first) in queue.bins().iter().enumerate() {
            let is_hinted = queue.hint() >> bin & 1 == 1;
            equal(Broken::QueueHint, first.addr(), !first.is_null() as u64, is_hinted as u64)?;
            let (mut slab, mut previous) = (first, ptr::null_mut());
            while !slab.is_null() {
                at_most(Broken::QueueLength, slab.addr(), queue.len() as u64, slabs + 1)?;
                // SAFETY: the links were written by this heap into metadata that the program cannot reach by its blocks.
                let next = unsafe { self.owned_slab(slab, class, bin as u8, previous)? };
                (slab, previous) = (next, slab);
                slabs += 1;
            }
        }
        self.report.owned_slabs += slabs;
        equal(Broken::QueueLength, class, queue.len() as u64, slabs)
    }

    /// One slab of a bin; the next.
    ///
    /// # Safety
    /// As for [`queue`](Self::queue).
    unsafe fn owned_slab(
        &mut self,
        slab: *mut Slab,
        class: usize,
        bin: u8,
        previous: *mut Slab,
    ) -> Result<*mut Slab, VerifyError> {
        // SAFETY: slab metadata is readable, and the heap owns the slab, as is checked first.
        unsafe {
            let start = (*slab).start().addr();
            equal(Broken::SlabOwner, start, self.name as u64, (*slab).owner() as u64)?;
            let (local, _, mut met) = super::slab(slab, &mut self.report)?;
            equal(Broken::SlabShape, start, class as u64, local.class as u64)?;
            super::slab_entries(slab, &local, Some(self.name))?;
            equal(Broken::QueueLink, start, previous.addr() as u64, local.previous.addr() as u64)?;
            holds(Broken::QueueLink, start, local.queued)?;
            equal(Broken::QueueLink, start, bin as u64, local.bin as u64)?;
            let limit = Queue::limit_of(bin, local.capacity);
            equal(Broken::QueueLink, start, limit as u64, local.bin_limit as u64)?;
            self.listed_in(slab, class, local.virgin, &mut met, local.out)?;
            Ok(local.next)
        }
    }

    /// No block of the thread's lists that is one of the slab's is in the slab's lists, or in two of the thread's.
    fn listed_in(
        &self,
        slab: *const Slab,
        class: usize,
        virgin: u32,
        met: &mut Met,
        out: u32,
    ) -> Result<(), VerifyError> {
        // SAFETY: the slab is the heap's.
        let start = unsafe { (*slab).start().addr() };
        let shape = TABLE[class];
        let mut listed = 0;
        for mut block in self.heads(class) {
            while !block.is_null() {
                if block.addr().wrapping_sub(start) < shape.slab_bytes() {
                    met.meet(start, shape.block_bytes, virgin, block)?;
                    listed += 1;
                }
                // SAFETY: the list was walked before.
                block = unsafe { Block::next(block) };
            }
        }
        at_most(Broken::ListedNotOut, start, out as u64, listed)
    }

    /// A batch links as many blocks of its slab as it says, and ends with the one that it says.
    fn batches(&mut self) -> Result<(), VerifyError> {
        for (slab, chain) in self.heap.batches.waiting() {
            // SAFETY: a batch names metadata of a slab of the domain, some of whose blocks are out.
            let (start, class, owner) =
                unsafe { ((*slab).start(), entry((*slab).start()).class(), (*slab).owner()) };
            let Some(class) = class else { return holds(Broken::ListClass, start.addr(), false) };
            holds(Broken::SlabOwner, start.addr(), owner != 0)?;
            let shape = TABLE[class];
            at_most(Broken::BatchChain, start.addr(), shape.blocks as u64, chain.count as u64)?;
            let (mut met, mut block) = (Met::none(), chain.head);
            for left in (0..chain.count).rev() {
                met.meet(start.addr(), shape.block_bytes, shape.blocks, block)?;
                if left == 0 {
                    equal(Broken::BatchChain, start.addr(), chain.tail.addr() as u64, block.addr() as u64)?;
                } else {
                    // SAFETY: it is a block of the slab, and in a batch of the thread's.
                    block = unsafe { Block::next(block) };
                }
            }
            self.report.batched_blocks += chain.count as u64;
        }
        Ok(())
    }

    /// Large blocks in the thread's lists are in use by nothing else, and as many as were granted and are not out.
    fn large_cache(&mut self) -> Result<(), VerifyError> {
        let (bytes, sum) = self.heap.large.bytes();
        equal(Broken::LargeCacheBytes, 0, sum as u64, bytes as u64)?;
        let Some(lists) = self.lists else { return Ok(()) };
        for (slices, first, count) in self.heap.large.stocks(&lists.large) {
            let mut block = first;
            for _ in 0..count {
                let address = block.addr();
                holds(
                    Broken::LargeCache,
                    address,
                    has_entry(address) && address.is_multiple_of(size_of::<u64>()),
                )?;
                let start = block.cast::<u8>();
                // SAFETY: the map knows the segment, and the address lies behind its header.
                let (tag, run, is_free) = unsafe {
                    let segment = Segment::containing(start);
                    let index = (address - segment.addr()) / SLICE_BYTES;
                    let run = large::run_of((*segment).slab(index));
                    (entry(start).tag(), run, crate::bitmap::all_set(&(*segment).free, index, 1))
                };
                equal(Broken::LargeCache, address, 0, tag as u64)?;
                // A block that was shrunk where it stood is longer than its list's.
                at_most(Broken::LargeCache, address, run.len as u64, slices as u64)?;
                holds(Broken::LargeCache, address, !is_free)?;
                self.report.cached_large_blocks += 1;
                self.report.cached_large_bytes += (run.len * SLICE_BYTES) as u64;
                // SAFETY: blocks of the list are the thread's.
                block = unsafe { Block::next(block) };
            }
            equal(Broken::LargeCache, first.addr(), 0, block.addr() as u64)?;
        }
        Ok(())
    }
}
