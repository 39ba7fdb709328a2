//! Small blocks: the miss paths of a thread's lists, and the life of slabs between queue, shelf and segment.
//!
//! Invariant: a slab that this heap opens, claims or steals is in its queue until it is parked, retired, or, in a heap of one
//! thread, out of blocks.

use super::*;

impl<S: PageSource, K: Sharing, O: Observer> Heap<S, K, O> {
    /// A block of `class` when the list has none; null when memory is out.
    #[cold]
    #[inline(never)]
    pub fn alloc_miss(&mut self, lists: &Lists, class: usize) -> *mut u8 {
        self.alloc_miss_zero(lists, class).0
    }

    /// The same, and whether the block reads as zero beyond its first word.
    pub fn alloc_miss_zero(&mut self, lists: &Lists, class: usize) -> (*mut u8, bool) {
        self.follow_thread(lists);
        self.look_at_clock(lists);
        if !lists.is_empty(class) {
            // The look at the clock, or a free by a destructor, may have brought blocks home meanwhile.
            // SAFETY: the class is a class.
            return (unsafe { lists.pop(class) }, false);
        }
        if let Some(block) = self.take_aside(lists, class) {
            return (block, false);
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
        self.depths.ran_out(class);
        self.long_looks[class] = 0;
        self.settle_room(lists, class, lists::room_when_short(self.depths.depth(class)));
        self.domain().observe(Event::Refill { class: class as u16, blocks: refill.count });
        // SAFETY: the chain is ours.
        lists.set_head(class, unsafe { Block::next(refill.head) });
        if self.slabs_made > 0 {
            self.let_unused_go(lists);
        }
        (refill.head.cast(), refill.zero)
    }

    /// Makes what was set aside the list, which is empty, but for one block; that block.
    fn take_aside(&mut self, lists: &Lists, class: usize) -> Option<*mut u8> {
        let block = self.aside[class];
        if block.is_null() {
            return None;
        }
        self.aside[class] = ptr::null_mut();
        self.long_looks[class] = 0;
        self.settle_room(lists, class, lists::part(self.depths.depth(class)));
        // SAFETY: what is aside is ours.
        lists.set_head(class, unsafe { Block::next(block) });
        Some(block.cast())
    }

    /// Counts the frees that went through a list since it last got room, and gives it new room.
    pub(super) fn settle_room(&mut self, lists: &Lists, class: usize, room: u32) {
        let counters = &self.counters.classes[class];
        counters.listed.add(counters.granted.get().saturating_sub(lists.room_left(class)));
        counters.granted.set(room as u64);
        lists.set_room(class, room as i32);
        self.rooms_at_tick[class] = -1;
    }

    pub(super) fn refill(&mut self, class: usize) -> Option<Refill> {
        loop {
            let slab = self.queues[class].fullest();
            if slab.is_null() {
                // With nodes kept apart, fresh memory of this node comes before old memory of another.
                if self.steal_near(class) || self.make_slab(class) || self.steal_far(class) {
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
    pub(super) unsafe fn let_go(&mut self, slab: *mut Slab, class: usize) {
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

    /// Puts a slab on a shelf of its memory's node, after its shelved bit was set.
    ///
    /// # Safety
    /// The caller set the bit.
    pub(super) unsafe fn shelve(&self, slab: *const Slab, class: usize) {
        let (segment, _) = crate::segment::position_of(slab.cast_mut());
        // SAFETY: the same promise; slabs of a domain live as long as it.
        unsafe {
            let domain = self.domain();
            let shard = domain.shard_of((*segment).node, self.name);
            domain.shelves[shard][class].push::<K>(&*slab);
        }
    }

    /// Takes a parked slab of `class` into the queue: from the shelf that this heap uses, then from another of its node.
    pub(super) fn steal_near(&mut self, class: usize) -> bool {
        let own = self.domain().shard_of(self.node, self.name);
        let (first, each) = self.domain().shelves_of(self.node);
        let random = self.random();
        self.steal_from(own, class)
            || (0..each).any(|i| self.steal_from(first + random.wrapping_add(i) % each, class))
    }

    /// The same from the shelves of other nodes: for when there is no fresh memory.
    pub(super) fn steal_far(&mut self, class: usize) -> bool {
        let (first, each) = self.domain().shelves_of(self.node);
        let (others, random) = (SHARDS - each, self.random());
        (0..others).any(|i| self.steal_from((first + each + random.wrapping_add(i) % others) % SHARDS, class))
    }

    /// A number that seldom repeats (xorshift32, Marsaglia 2003).
    fn random(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.random as usize
    }

    fn steal_from(&mut self, shard: usize, class: usize) -> bool {
        if !K::SHARED {
            return false;
        }
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
        false
    }

    /// Makes this heap the home of a slab that it has just claimed.
    pub(super) fn adopt(&self, slab: *mut Slab) {
        let (segment, index) = crate::segment::position_of(slab);
        // SAFETY: the slab is ours, and lies in a live segment.
        unsafe {
            let (class, slices) = (*slab).local(|local| (local.class, local.slices as usize));
            (*segment).set_entries(index, slices, self.name, class + 1);
        }
    }

    pub(super) fn make_slab(&mut self, class: usize) -> bool {
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
        self.slabs_made += 1;
        self.domain().observe(Event::SlabMade { class: class as u16 });
        true
    }

    /// Gives the slices of a slab back, none of whose blocks is out.
    ///
    /// # Safety
    /// This heap owns the slab, and it is in no queue.
    pub(super) unsafe fn retire(&mut self, slab: *mut Slab, class: usize) {
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
            self.counters.classes[class].listed.add(1);
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

    /// Gives a list room again that has none left, and lets go of a part if it is long: of a few blocks at a time, so that no
    /// single free pays for many.
    ///
    /// A short list is left alone. Of a long one, the blocks freed last stay, and the rest is set aside, to serve when the list
    /// is empty; while something is aside already, a [`part`] of it returns to its slabs instead.
    pub(super) fn cut_back(&mut self, lists: &Lists, class: usize) {
        let depth = self.depths.depth(class);
        let part = lists::part(depth);
        let (mut last, mut len) = (lists.head(class), 1);
        // SAFETY: blocks of the list are ours.
        let rest = unsafe {
            while len < part && !Block::next(last).is_null() {
                last = Block::next(last);
                len += 1;
            }
            Block::next(last)
        };
        if rest.is_null() {
            self.long_looks[class] = 0;
            self.settle_room(lists, class, lists::room_when_short(depth));
            return;
        }
        // As many frees as blocks return, the one that misses included: the list does not grow from look to look. Half as many
        // if it has been long for long: it shrinks.
        let shorten = self.long_looks[class] >= LONG_LOOKS;
        self.settle_room(lists, class, if shorten { part / 2 } else { part } - 1);
        if !self.aside[class].is_null() {
            self.long_looks[class] += !shorten as u8;
            self.depths.overflowed(class, part);
            self.aside[class] = self.return_blocks(self.aside[class], class, part);
            self.park_surplus(class);
        }
        if self.aside[class].is_null() {
            // SAFETY: the same.
            unsafe { Block::set_next(last, ptr::null_mut()) };
            self.aside[class] = rest;
        }
    }

    /// Returns the first `most` blocks of a list to their slabs; the rest of the list.
    pub(super) fn return_blocks(&mut self, mut block: *mut Block, class: usize, most: u32) -> *mut Block {
        let mut count = 0;
        while !block.is_null() && count < most {
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
        block
    }

    /// Puts a block on the free list of a slab of this heap, and retires the slab if it was the last and others remain.
    ///
    /// # Safety
    /// This heap owns the slab; the block is the slab's and the caller's.
    pub(super) unsafe fn give(&mut self, slab: *mut Slab, block: *mut Block, class: usize) {
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
    pub(super) unsafe fn emptied(&mut self, slab: *mut Slab, class: usize) {
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
    pub(super) fn park_surplus(&mut self, class: usize) {
        while K::SHARED && self.queues[class].len() > KEEP {
            let slab = self.queues[class].emptiest();
            // SAFETY: slabs of the queue are owned by this heap.
            unsafe {
                self.queues[class].remove(slab);
                self.let_go(slab, class);
            }
        }
    }
}

/// No list is longer: its depth, the room between two looks, and the largest refill together.
pub(crate) const LONGEST_LIST: u32 = 2 * MOST_BLOCKS + 2 * (SLICE_BYTES / 8) as u32 * 16;
