//! Heaps: one thread's view of a domain. Queues of slabs, batches of remote frees, a cache of large blocks.
//!
//! ```text
//!   alloc: list ─miss─▶ alloc_miss ─▶ queue: fullest slab ─▶ its free list │ its remote list │ virgin blocks
//!                                       └ none ─▶ steal: a parked slab from a shelf
//!                                                  └ none ─▶ make_slab: slices of a segment ─▶ arena ─▶ source
//!   free:  list ─miss─▶ free_miss  ─▶ at home, no room: cut the list back ─▶ give: slab's free list
//!                                       └ elsewhere: batch ─▶ send: claim a parked slab, or push to its word
//! ```
//!
//! Invariant: a heap is used by one thread at a time, and touches the local part of a slab only while the slab's word names
//! it as the owner. Slabs in its queues are owned by it. With [`Shared`](crate::sharing::Shared), a slab that runs out of
//! blocks is parked, and so are slabs beyond [`KEEP`] in a class: an idle heap strands only the few that it allocates from.
//! With [`Local`](crate::sharing::Local) nobody else could use a parked slab, so slabs stay owned.

use crate::domain::Domain;
use crate::huge::MAX_HUGE;
use crate::large::{self, LargeCache};
use crate::lists::{BOUND, Lists};
use crate::purge::PurgePolicy;
use crate::queue::Queue;
use crate::remote::Batches;
use crate::segment::{Kind, SLICE_BYTES, Segment, entry};
use crate::sharing::Sharing;
use crate::size_class::{self, CLASSES};
use crate::slab::{Block, Chain, HeapId, Misuse, Pushed, Slab};
use crate::stats::HeapCounters;
use core::ptr::{self, NonNull};
use terrane_core::{Event, Observer, PageSource};

/// Slabs that a queue keeps; further ones are parked.
pub const KEEP: u32 = 4;

/// Slow-path calls between looks at the clock.
const CALLS_PER_LOOK: u32 = 64;

/// Bytes of virgin memory that a refill carves at once.
const CARVE_BYTES: u32 = 4096;

/// One thread's heap: see the [module](self).
#[derive(Debug)]
pub struct Heap<S, K, O = ()> {
    domain: *const Domain<S, K, O>,
    name: HeapId,
    node: u32,
    shard: usize,
    random: u32,
    calls: u32,
    tick_at: u64,
    segment: *const Segment,
    queues: [Queue; CLASSES],
    rooms_at_tick: [i32; CLASSES],
    batches: Batches,
    large: LargeCache,
    counters: HeapCounters,
}

/// A chain for a thread's list, and whether its first block reads as zero beyond its link.
struct Refill {
    head: *mut Block,
    count: u32,
    zero: bool,
}

impl<S: PageSource, K: Sharing, O: Observer> Heap<S, K, O> {
    /// A heap over `domain` under a name that the domain gave, for a thread that runs on NUMA node `node`.
    pub const fn new(domain: *const Domain<S, K, O>, name: HeapId, node: u32) -> Self {
        Self {
            domain,
            name,
            node,
            shard: 0,
            random: name.wrapping_mul(0x9E37_79B9) | 1,
            calls: 0,
            tick_at: 0,
            segment: ptr::null(),
            queues: [const { Queue::new() }; CLASSES],
            rooms_at_tick: [0; CLASSES],
            batches: Batches::new(),
            large: LargeCache::new(),
            counters: HeapCounters::new(),
        }
    }

    /// Makes the heap serve a thread with these lists, on this node.
    pub fn attach(&mut self, lists: &Lists, node: u32) {
        self.node = node;
        self.shard = self.shard_of(node, self.name);
        for class in 0..CLASSES {
            lists.set_room(class, BOUND[class] as i32);
        }
        lists.bind(self.name);
    }

    /// The heap's name in its domain.
    pub const fn name(&self) -> HeapId {
        self.name
    }

    /// What the heap counted.
    pub const fn counters(&self) -> &HeapCounters {
        &self.counters
    }

    /// The domain that the heap is over.
    #[inline(always)]
    pub fn domain(&self) -> &Domain<S, K, O> {
        // SAFETY: a heap never outlives its domain: that is the contract of whoever makes one.
        unsafe { &*self.domain }
    }

    fn misuse(&self, what: Misuse, address: usize) -> ! {
        self.domain().misuse(what, address)
    }

    // ---- small blocks ---------------------------------------------------------------------------------------------

    /// A block of `class` when the list has none; null when memory is out.
    #[cold]
    #[inline(never)]
    pub fn alloc_miss(&mut self, lists: &Lists, class: usize) -> *mut u8 {
        self.alloc_miss_zero(lists, class).0
    }

    /// The same, and whether the block reads as zero beyond its first word.
    pub fn alloc_miss_zero(&mut self, lists: &Lists, class: usize) -> (*mut u8, bool) {
        self.look_at_clock(lists);
        if !lists.is_empty(class) {
            // The look at the clock, or a free by a destructor, may have brought blocks home meanwhile.
            // SAFETY: the class is a class.
            return (unsafe { lists.pop(class) }, false);
        }
        let refill = match self.refill(class) {
            Some(refill) => refill,
            None => {
                // What this heap holds back may be what is missing.
                self.release_caches(lists);
                match self.refill(class) {
                    Some(refill) => refill,
                    None => return (ptr::null_mut(), false),
                }
            }
        };
        self.counters.refills.add(1);
        self.counters.classes[class].taken.add(refill.count as u64);
        self.settle_room(lists, class);
        self.domain().observe(Event::Refill { class: class as u16, blocks: refill.count });
        // SAFETY: the chain is ours.
        lists.set_head(class, unsafe { Block::next(refill.head) });
        (refill.head.cast(), refill.zero)
    }

    /// Counts the frees that went through a list since it last got room, and gives it its full room again.
    fn settle_room(&mut self, lists: &Lists, class: usize) {
        let bound = BOUND[class] as i32;
        self.counters.classes[class].listed.add((bound - lists.room(class).max(0)) as u64);
        lists.set_room(class, bound);
        self.rooms_at_tick[class] = -1;
    }

    fn refill(&mut self, class: usize) -> Option<Refill> {
        loop {
            let slab = self.queues[class].fullest();
            if slab.is_null() {
                if self.steal(class) || self.make_slab(class) {
                    continue;
                }
                return None;
            }
            // SAFETY: slabs of the queue are owned by this heap, and their memory is committed.
            unsafe {
                if let Some((head, count)) = (*slab).take_free() {
                    self.queues[class].file(slab);
                    return Some(Refill { head, count, zero: false });
                }
                match (*slab).collect::<K>() {
                    Ok(0) => {}
                    Ok(_) => continue,
                    Err(misuse) => self.misuse(misuse, (*slab).start().addr()),
                }
                let most = (CARVE_BYTES / size_class::class(class).block_bytes).max(1);
                if let Some((head, count, zero)) = (*slab).carve(most) {
                    self.queues[class].file(slab);
                    return Some(Refill { head, count, zero });
                }
                self.queues[class].remove(slab);
                self.let_go(slab, class);
            }
        }
    }

    /// Parks a slab that is not in the queue any more, or retires it if nothing of it is out.
    ///
    /// # Safety
    /// This heap owns the slab.
    unsafe fn let_go(&mut self, slab: *mut Slab, class: usize) {
        if !K::SHARED {
            return;
        }
        // SAFETY: this heap owns the slab until it is parked or retired.
        unsafe {
            loop {
                if (*slab).counts().out == 0 {
                    self.retire(slab, class);
                    return;
                }
                if let Ok(shelve) = (*slab).park::<K>(self.name) {
                    self.counters.parks.add(1);
                    if shelve {
                        self.shelve(slab, class);
                    }
                    return;
                }
                if let Err(misuse) = (*slab).collect::<K>() {
                    self.misuse(misuse, (*slab).start().addr());
                }
            }
        }
    }

    /// Puts a slab on this heap's shelf, after its shelved bit was set.
    ///
    /// # Safety
    /// The caller set the bit.
    unsafe fn shelve(&self, slab: *const Slab, class: usize) {
        // SAFETY: the same promise; slabs of a domain live as long as it.
        unsafe { self.domain().shelves[self.shard][class].push::<K>(&*slab) };
    }

    /// The shelf that a heap of this name uses: one of those of its node.
    fn shard_of(&self, node: u32, name: HeapId) -> usize {
        let shards = crate::domain::SHARDS;
        let nodes = (self.domain().nodes() as usize).clamp(1, shards);
        let per_node = shards / nodes;
        (node as usize % nodes) * per_node + name as usize % per_node
    }

    /// Takes a parked slab of `class` into the queue: from this heap's shelf, then from a random other of the same node,
    /// then from any.
    fn steal(&mut self, class: usize) -> bool {
        if !K::SHARED {
            return false;
        }
        let shards = crate::domain::SHARDS;
        let nodes = (self.domain().nodes() as usize).clamp(1, shards);
        let per_node = shards / nodes;
        let first = self.shard / per_node * per_node;
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        let random = self.random as usize;
        let near = (0..per_node).map(|i| first + (random + i) % per_node);
        let far =
            (0..shards - per_node).map(|i| (first + per_node + (random + i) % (shards - per_node)) % shards);
        let own = self.shard;
        for shard in core::iter::once(own).chain(near).chain(far) {
            while let Some(slab) = self.domain().shelves[shard][class].pop::<K>() {
                match slab.claim::<K>(self.name, true) {
                    Ok(false) => continue,
                    Ok(true) => {}
                    Err(misuse) => self.misuse(misuse, slab.start().addr()),
                }
                let slab = ptr::from_ref(slab).cast_mut();
                // SAFETY: the claim made the slab ours.
                let (found, counts, theirs) = unsafe {
                    let found = (*slab).local(|local| local.class as usize);
                    (found, (*slab).counts(), entry((*slab).start()).home() != self.name)
                };
                self.adopt(slab);
                if theirs {
                    self.counters.steals.add(1);
                    self.domain().observe(Event::Steal { class: found as u16 });
                }
                // SAFETY: the slab is ours and in no queue.
                unsafe {
                    if found != class || counts.free + counts.virgin == 0 {
                        // It was reused for another class, or filled up, while it was on the shelf.
                        self.let_go(slab, found);
                        continue;
                    }
                    self.queues[class].file(slab);
                }
                return true;
            }
        }
        false
    }

    /// Makes this heap the home of a slab that it has just claimed.
    fn adopt(&self, slab: *mut Slab) {
        let (segment, index) = crate::segment::position_of(slab);
        // SAFETY: the slab is ours, and lies in a live segment.
        unsafe {
            let (class, slices) = (*slab).local(|local| (local.class, local.slices as usize));
            (*segment).set_entries(index, slices, self.name, class + 1);
        }
    }

    fn make_slab(&mut self, class: usize) -> bool {
        let shape = size_class::class(class);
        let Ok(run) = self.domain().take_run(shape.slices as usize, 1, self.node, self.segment) else {
            return false;
        };
        self.segment = run.segment;
        // SAFETY: the slices are ours, so their metadata is.
        unsafe {
            let slab = (*run.segment).slab(run.index);
            (*slab).open::<K>(self.name, class as u16, shape.blocks, shape.slices, run.zero);
            (*run.segment).set_entries(run.index, run.len, self.name, class as u16 + 1);
            self.queues[class].file(slab);
        }
        self.counters.classes[class].slabs_made.add(1);
        self.domain().observe(Event::SlabMade { class: class as u16 });
        true
    }

    /// Gives the slices of a slab back, none of whose blocks is out.
    ///
    /// # Safety
    /// This heap owns the slab, and it is in no queue.
    unsafe fn retire(&mut self, slab: *mut Slab, class: usize) {
        let (segment, index) = crate::segment::position_of(slab);
        // SAFETY: this heap owns the slab until its word says free, and its slices until they are given back.
        unsafe {
            let len = (*slab).local(|local| local.slices as usize);
            if !(*slab).retire::<K>() {
                // Blocks came back although none was out.
                self.misuse(Misuse::DoubleFree, (*slab).start().addr());
            }
            (*segment).set_entries(index, len, 0, 0);
            self.counters.classes[class].slabs_retired.add(1);
            self.domain().observe(Event::SlabRetired { class: class as u16 });
            self.domain().give_run(crate::domain::Run { segment, index, len, zero: false });
        }
    }

    /// Takes a block of `class` back that its list did not take.
    ///
    /// # Safety
    /// The block is one of this domain, of this class, and not used any more.
    #[cold]
    #[inline(never)]
    pub unsafe fn free_miss(&mut self, lists: &Lists, block: *mut u8, class: usize) {
        // SAFETY: a live block lies behind the header of a live segment.
        let entry = unsafe { entry(block) };
        match entry.class() {
            Some(found) if found == class => {}
            Some(_) => self.misuse(Misuse::SizeMismatch, block.addr()),
            None => self.misuse(Misuse::DoubleFree, block.addr()),
        }
        if entry.home() == self.name {
            // SAFETY: the block is the caller's.
            unsafe { lists.push_anyway(block.cast(), class) };
            self.cut_back(lists, class);
        } else {
            self.domain().check_owns(Segment::containing(block), block);
            // SAFETY: the entry names the first slice of the block's slab.
            unsafe {
                let slab = (*Segment::containing(block)).slab(entry.head());
                self.counters.classes[class].returned.add(1);
                self.counters.remote_frees.add(1);
                self.send_batched(slab, block.cast(), class);
            }
        }
        self.look_at_clock(lists);
    }

    /// Cuts a list back to half its bound if it is longer than its bound, and gives it room again.
    fn cut_back(&mut self, lists: &Lists, class: usize) {
        self.settle_room(lists, class);
        let bound = BOUND[class];
        let (mut last_kept, mut block, mut len) = (ptr::null_mut(), lists.head(class), 0);
        while !block.is_null() {
            len += 1;
            if len > LONGEST_LIST {
                // A block was freed twice, and the list runs in a circle.
                self.misuse(Misuse::DoubleFree, block.addr());
            }
            if len == bound / 2 {
                last_kept = block;
            }
            // SAFETY: blocks of the list are ours.
            block = unsafe { Block::next(block) };
        }
        if len <= bound {
            return;
        }
        // SAFETY: blocks of the list are ours.
        let rest = unsafe {
            let rest = Block::next(last_kept);
            Block::set_next(last_kept, ptr::null_mut());
            rest
        };
        self.return_blocks(rest, class);
        self.park_surplus(class);
    }

    /// Returns a list of blocks to their slabs.
    fn return_blocks(&mut self, mut block: *mut Block, class: usize) {
        let mut count = 0;
        while !block.is_null() {
            // SAFETY: the blocks are ours; their entries name their slabs.
            unsafe {
                let next = Block::next(block);
                let slab = (*Segment::containing(block.cast())).slab(entry(block.cast()).head());
                if (*slab).owner() == self.name {
                    self.give(slab, block, class);
                } else {
                    self.send_batched(slab, block, class);
                }
                block = next;
            }
            count += 1;
        }
        if count > 0 {
            self.counters.flushes.add(1);
            self.counters.classes[class].returned.add(count as u64);
            self.domain().observe(Event::Flush { class: class as u16, blocks: count });
        }
    }

    /// Puts a block on the free list of a slab of this heap, and retires the slab if it was the last and others remain.
    ///
    /// # Safety
    /// This heap owns the slab; the block is the slab's and the caller's.
    unsafe fn give(&mut self, slab: *mut Slab, block: *mut Block, class: usize) {
        // SAFETY: this heap owns the slab.
        unsafe {
            match (*slab).give(block) {
                Ok((0, _)) => self.emptied(slab, class),
                Ok((_, true)) => self.queues[class].file(slab),
                Ok((_, false)) => {}
                Err(misuse) => self.misuse(misuse, block.addr()),
            }
        }
    }

    /// Decides what becomes of an owned slab none of whose blocks is out: one is kept for a class that has no other.
    ///
    /// # Safety
    /// This heap owns the slab.
    unsafe fn emptied(&mut self, slab: *mut Slab, class: usize) {
        // SAFETY: this heap owns the slab.
        unsafe {
            let queued = (*slab).local(|local| local.queued);
            if self.queues[class].len() > queued as u32 {
                if queued {
                    self.queues[class].remove(slab);
                }
                self.retire(slab, class);
            } else {
                self.queues[class].file(slab);
            }
        }
    }

    /// Parks slabs beyond [`KEEP`], the emptiest first.
    fn park_surplus(&mut self, class: usize) {
        while K::SHARED && self.queues[class].len() > KEEP {
            let slab = self.queues[class].emptiest();
            // SAFETY: slabs of the queue are owned by this heap.
            unsafe {
                self.queues[class].remove(slab);
                self.let_go(slab, class);
            }
        }
    }

    // ---- remote frees ---------------------------------------------------------------------------------------------

    /// # Safety
    /// The block is the slab's and the caller's.
    unsafe fn send_batched(&mut self, slab: *const Slab, block: *mut Block, class: usize) {
        let block_bytes = size_class::class(class).block_bytes;
        // SAFETY: the same promise.
        let due = unsafe { self.batches.add(slab, block, block_bytes) };
        if let Some((slab, chain)) = due {
            // SAFETY: the blocks of a batch are its slab's and ours.
            unsafe { self.send(slab, chain, true) };
        }
    }

    /// Sends a batch to its slab: into it, if the slab is parked and can be claimed (`may_claim`) and this heap has few of its
    /// class; else to its remote list.
    ///
    /// # Safety
    /// The blocks are the slab's and the caller's.
    unsafe fn send(&mut self, slab: *const Slab, chain: Chain, may_claim: bool) {
        // SAFETY: a block that is out keeps its slab from being retired, so the entry stays. It tells the class without
        // touching the local part.
        let class = unsafe { entry((*slab).start()).class() };
        let Some(class) = class else { self.misuse(Misuse::DoubleFree, chain.head.addr()) };
        // SAFETY: the same; slab metadata stays readable in any case.
        unsafe {
            if (*slab).owner() == self.name {
                self.give_chain(slab.cast_mut(), chain, class);
                return;
            }
            self.counters.remote_batches.add(1);
            if may_claim && self.queues[class].len() < KEEP && (*slab).owner() == crate::slab::PARKED {
                match (*slab).claim::<K>(self.name, false) {
                    Ok(true) => {
                        self.counters.claims.add(1);
                        self.domain().observe(Event::Claim { class: class as u16 });
                        self.adopt(slab.cast_mut());
                        self.give_chain(slab.cast_mut(), chain, class);
                        return;
                    }
                    Ok(false) => {}
                    Err(misuse) => self.misuse(misuse, (*slab).start().addr()),
                }
            }
            self.domain().observe(Event::RemoteFree { class: class as u16, blocks: chain.count });
            let capacity = size_class::class(class).blocks;
            let pushed = (*slab).push::<K>(chain, capacity, (capacity / 16).max(1));
            match pushed {
                Ok(Pushed::Waiting { shelve }) => {
                    if shelve {
                        self.shelve(slab, class);
                    }
                }
                Ok(Pushed::Emptied { shelve }) => {
                    if shelve {
                        self.shelve(slab, class);
                    }
                    match (*slab).claim::<K>(self.name, false) {
                        Ok(false) => {}
                        Ok(true) => self.let_go(slab.cast_mut(), class),
                        Err(misuse) => self.misuse(misuse, (*slab).start().addr()),
                    }
                }
                Err(misuse) => self.misuse(misuse, chain.head.addr()),
            }
        }
    }

    /// # Safety
    /// This heap owns the slab; the blocks are the slab's and the caller's.
    unsafe fn give_chain(&mut self, slab: *mut Slab, chain: Chain, class: usize) {
        let mut block = chain.head;
        for left in (0..chain.count).rev() {
            // SAFETY: the blocks are ours, and the link of the last is not followed. After the last block the slab may be
            // gone, before it not.
            unsafe {
                let next = if left > 0 { Block::next(block) } else { ptr::null_mut() };
                self.give(slab, block, class);
                block = next;
            }
        }
    }

    fn send_all(&mut self, may_claim: bool) {
        while let Some((slab, chain)) = self.batches.take() {
            // SAFETY: the blocks of a batch are its slab's and ours.
            unsafe { self.send(slab, chain, may_claim) };
        }
    }

    // ---- large and huge blocks --------------------------------------------------------------------------------------

    /// A block of `bytes`, more than [`size_class::MAX_SMALL`] or with an alignment above it; null when memory is out. The
    /// second answer is whether the block reads as zero. `dense` says that all of a huge block is expected to be used.
    #[inline]
    pub fn alloc_large(&mut self, lists: &Lists, bytes: usize, align: usize, dense: bool) -> (*mut u8, bool) {
        if bytes.wrapping_sub(1) < large::MAX_LARGE_BYTES && align <= SLICE_BYTES {
            let (block, length) = self.large.take(bytes);
            if !block.is_null() {
                self.counters.large_allocated.add(1);
                self.counters.large_cached.add(1);
                self.counters.large_bytes_allocated.add(length as u64);
                return (block, false);
            }
        }
        self.alloc_large_miss(lists, bytes, align, dense)
    }

    #[cold]
    #[inline(never)]
    fn alloc_large_miss(
        &mut self,
        lists: &Lists,
        bytes: usize,
        align: usize,
        dense: bool,
    ) -> (*mut u8, bool) {
        let first = self.alloc_large_fresh(bytes, align, 0, dense);
        if !first.0.is_null() || bytes > MAX_HUGE {
            return first;
        }
        self.release_caches(lists);
        self.alloc_large_fresh(bytes, align, 0, dense)
    }

    fn alloc_large_fresh(
        &mut self,
        bytes: usize,
        align: usize,
        spare: usize,
        dense: bool,
    ) -> (*mut u8, bool) {
        let bytes = bytes.max(1);
        let align_slices = align.div_ceil(SLICE_BYTES);
        if bytes <= large::MAX_LARGE_BYTES && align_slices <= large::MAX_LARGE_SLICES / 2 {
            let slices = large::slices_for(bytes);
            // SAFETY: a heap never outlives its domain.
            let domain = unsafe { &*self.domain };
            let taken = large::alloc_fresh(domain, slices, align_slices, self.node, &mut self.segment);
            let Some(taken) = taken else { return (ptr::null_mut(), false) };
            self.counters.large_allocated.add(1);
            self.counters.large_bytes_allocated.add((slices * SLICE_BYTES) as u64);
            return taken;
        }
        match self.domain().huge_alloc(bytes, align, spare, dense, self.node) {
            Ok((block, zero)) => (block.as_ptr(), zero),
            Err(_) => (ptr::null_mut(), false),
        }
    }

    /// Frees a large or huge block.
    ///
    /// # Safety
    /// The block is one of this domain, is not small, and is not used any more.
    #[inline]
    pub unsafe fn free_large(&mut self, lists: &Lists, block: *mut u8) {
        let segment = header_of(block);
        self.domain().check_owns(segment, block);
        // SAFETY: the segment is one of this domain.
        unsafe {
            if (*segment).kind() == Kind::Huge {
                if (*segment).huge_block() != block || !self.domain().huge_free(&*segment) {
                    self.misuse(Misuse::DoubleFree, block.addr());
                }
            } else {
                let domain = &*self.domain;
                match large::free(domain, &mut self.large, block) {
                    Some(bytes) => {
                        self.counters.large_freed.add(1);
                        self.counters.large_bytes_freed.add(bytes as u64);
                    }
                    None => self.misuse(Misuse::DoubleFree, block.addr()),
                }
            }
        }
        self.look_at_clock(lists);
    }

    /// Makes a large or huge block at least `bytes` long without copying, where it stands or by moving its pages; where it is
    /// then, or `None` if the caller must copy. `align` is the alignment that a moved block must have.
    ///
    /// # Safety
    /// The block is a live large or huge block of this domain, and the caller's.
    pub unsafe fn grow_large(
        &mut self,
        lists: &Lists,
        block: *mut u8,
        bytes: usize,
        align: usize,
    ) -> Option<*mut u8> {
        if bytes > MAX_HUGE {
            return None;
        }
        let segment = header_of(block);
        // SAFETY: the segment and the block are live.
        unsafe {
            let old = if (*segment).kind() == Kind::Huge {
                if self.domain().huge_grow(&*segment, bytes) {
                    return Some(block);
                }
                (*segment).huge_usable()
            } else {
                let metadata = large::metadata_of(block)?;
                let run = large::run_of(metadata);
                let old = run.len * SLICE_BYTES;
                if bytes <= old {
                    return Some(block);
                }
                let wanted = bytes.div_ceil(SLICE_BYTES);
                if wanted <= large::MAX_LARGE_SLICES {
                    let wanted = large::slices_for(bytes);
                    if self.domain().extend_run(&run, wanted - run.len) {
                        (*metadata).local(|local| local.slices = wanted as u16);
                        self.counters.large_bytes_allocated.add(((wanted - run.len) * SLICE_BYTES) as u64);
                        self.domain().counters.grown_in_place.add_shared::<K>(1);
                        return Some(block);
                    }
                }
                old
            };
            let page = self.domain().source.page_size();
            if old < REMAP_FROM || !old.is_multiple_of(page) || !block.addr().is_multiple_of(page) {
                return None;
            }
            let (new, _) = self.alloc_large_fresh(bytes, align, bytes / 2, true);
            let (to, from) = (NonNull::new(new)?, NonNull::new(block)?);
            let usable = self.usable_large(new);
            if !usable.is_multiple_of(page) || !new.addr().is_multiple_of(page) {
                self.free_large(lists, new);
                return None;
            }
            if self.domain().source.remap(from, old, to, usable).is_err() {
                self.free_large(lists, new);
                return None;
            }
            self.domain().counters.remapped.add_shared::<K>(1);
            self.free_moved(lists, block);
            Some(new)
        }
    }

    /// Frees a block whose pages were moved away: it holds no memory, so it is not kept for reuse as if it did.
    unsafe fn free_moved(&mut self, lists: &Lists, block: *mut u8) {
        let segment = header_of(block);
        // SAFETY: the block is live; its range is decommitted and must be committed again before it is reused.
        unsafe {
            if (*segment).kind() == Kind::Slices
                && let Some(metadata) = large::metadata_of(block)
            {
                let run = large::run_of(metadata);
                let bytes = run.len * SLICE_BYTES;
                (*segment).set_entries(run.index, 1, 0, 0);
                if self.domain().source.geometry().zeroed {
                    crate::bitmap::clear::<K>(&(*segment).dirty, run.index, run.len);
                }
                self.counters.large_freed.add(1);
                self.counters.large_bytes_freed.add(bytes as u64);
                self.domain().give_run(run);
            } else {
                self.domain().huge_moved(&*segment);
                let _ = lists;
            }
        }
    }

    /// Shrinks a live huge block, or does nothing to a large one.
    ///
    /// # Safety
    /// The block is a live large or huge block of this domain, and the caller's.
    pub unsafe fn shrink_large(&mut self, block: *mut u8, bytes: usize) {
        let segment = header_of(block);
        // SAFETY: the segment is live.
        unsafe {
            if (*segment).kind() == Kind::Huge {
                self.domain().huge_shrink(&*segment, bytes);
            }
        }
    }

    /// Bytes that the program may use of a live large or huge block.
    ///
    /// # Safety
    /// The block is a live large or huge block of this domain.
    pub unsafe fn usable_large(&self, block: *mut u8) -> usize {
        let segment = header_of(block);
        // SAFETY: the segment and the block are live.
        unsafe {
            if (*segment).kind() == Kind::Huge {
                (*segment).huge_usable()
            } else {
                large::metadata_of(block).map_or(0, |metadata| large::run_of(metadata).len * SLICE_BYTES)
            }
        }
    }

    // ---- giving back ------------------------------------------------------------------------------------------------

    #[inline]
    fn look_at_clock(&mut self, lists: &Lists) {
        self.calls += 1;
        if self.calls >= CALLS_PER_LOOK {
            self.calls = 0;
            let now = self.domain().now();
            if now >= self.tick_at {
                self.tick(lists, now);
            }
        }
    }

    /// Lets go of what this heap and its domain have held unused since the last tick. Called by itself on slow paths, at
    /// most once per purge delay; may be called at any time.
    #[cold]
    pub fn tick(&mut self, lists: &Lists, now: u64) {
        let delay = self.domain().purge_delay();
        self.tick_at = now.saturating_add(delay.max(1));
        self.send_all(true);
        for class in 0..CLASSES {
            if self.rooms_at_tick[class] == lists.room(class) && !lists.is_empty(class) {
                self.drain_list(lists, class);
            }
            self.rooms_at_tick[class] = lists.room(class);
            self.park_surplus(class);
        }
        // SAFETY: a heap never outlives its domain.
        let domain = unsafe { &*self.domain };
        self.large.decay(false, |run| domain.give_run(run));
        if delay != PurgePolicy::NEVER {
            domain.purge(now, false);
        }
    }

    fn drain_list(&mut self, lists: &Lists, class: usize) {
        let head = lists.head(class);
        lists.set_head(class, ptr::null_mut());
        self.settle_room(lists, class);
        self.return_blocks(head, class);
    }

    /// Returns every block that this heap holds back to its slab, and retires what is empty.
    pub fn collect(&mut self, lists: &Lists) {
        for class in 0..CLASSES {
            self.drain_list(lists, class);
        }
        self.send_all(false);
        for class in 0..CLASSES {
            let mut old = core::mem::replace(&mut self.queues[class], Queue::new());
            while let Some(slab) = NonNull::new(old.fullest()) {
                let slab = slab.as_ptr();
                // SAFETY: slabs of the queue are owned by this heap.
                unsafe {
                    old.remove(slab);
                    if let Err(misuse) = (*slab).collect::<K>() {
                        self.misuse(misuse, (*slab).start().addr());
                    }
                    if (*slab).counts().out == 0 {
                        self.retire(slab, class);
                    } else {
                        self.queues[class].file(slab);
                    }
                }
            }
        }
    }

    /// Lets go of everything that could serve another request: lists, batches, empty slabs, cached large blocks, and the free
    /// memory of the domain.
    pub fn release_caches(&mut self, lists: &Lists) {
        self.collect(lists);
        // SAFETY: a heap never outlives its domain.
        let domain = unsafe { &*self.domain };
        self.large.decay(true, |run| domain.give_run(run));
        domain.purge(domain.now(), true);
    }

    /// Gives up all slabs, so that other heaps can use them: the thread is ending. The heap is as new afterwards, and its
    /// name and counters stay.
    pub fn abandon(&mut self, lists: &Lists) {
        self.collect(lists);
        // SAFETY: a heap never outlives its domain.
        let domain = unsafe { &*self.domain };
        self.large.decay(true, |run| domain.give_run(run));
        for class in 0..CLASSES {
            loop {
                let slab = self.queues[class].fullest();
                if slab.is_null() {
                    break;
                }
                // SAFETY: slabs of the queue are owned by this heap.
                unsafe {
                    self.queues[class].remove(slab);
                    self.let_go(slab, class);
                }
            }
        }
        lists.unbind();
    }
}

/// No list is longer: its bound, the room between two looks, and the largest refill together.
const LONGEST_LIST: u32 = 2 * 256 + 2 * (SLICE_BYTES / 8) as u32 * 16;

/// Length from which pages are moved rather than copied.
const REMAP_FROM: usize = 256 * 1024;

/// The header that describes the large or huge block at `block`. A block never starts at the start of a segment with a
/// header: one that does is a huge block behind the first segment of its span.
#[inline]
pub(crate) fn header_of(block: *mut u8) -> *mut Segment {
    Segment::containing(block.wrapping_sub(1))
}
