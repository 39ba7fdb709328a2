//! Giving back: what a heap lets go of on its own, on request, and at its thread's end.
//!
//! Invariant: after [`Heap::abandon`] no slab's word names the heap, and no block waits in it.

use super::small::LONGEST_LIST;
use super::*;
use crate::depths::Seen;

/// Blocks of a list that are found not needed in one look, at most.
const MOST_NOT_NEEDED: u32 = 64;

/// Lists that are looked at for each slab that is made, and blocks that one of them lets go of.
const LOOKS_PER_SLAB: usize = 4;
const BLOCKS_PER_SLAB: u32 = 64;

/// Batches that are sent for each slab that is made.
const BATCHES_PER_SLAB: usize = 8;

/// How lists were when they were last looked at because memory had grown.
#[derive(Debug)]
pub(super) struct Unused {
    class: usize,
    place: usize,
    marks: [u32; CLASSES],
}

impl Unused {
    pub(super) const fn new() -> Self {
        Self { class: 0, place: 0, marks: [0; CLASSES] }
    }
}

impl<S: PageSource, K: Sharing, O: Observer> Heap<S, K, O> {
    /// Lets go of blocks in lists that were not used while memory grew, and of batches that wait: what they pin may serve instead
    /// of fresh memory. A few for each slab that was made, in turn, so that no call pays for many.
    #[cold]
    pub(super) fn let_unused_go(&mut self, lists: &Lists) {
        let slabs = core::mem::replace(&mut self.slabs_made, 0) as usize;
        for _ in 0..slabs * BATCHES_PER_SLAB {
            self.unused.place = (self.unused.place + 1) % crate::remote::PLACES;
            self.send_place(self.unused.place, true);
        }
        for _ in 0..slabs * LOOKS_PER_SLAB {
            let class = self.unused.class;
            let mark = |lists: &Lists| (lists.head(class).addr() >> 3) as u32 ^ lists.room(class) as u32;
            let used = mark(lists) != self.unused.marks[class];
            if !used && self.aside[class].is_null() {
                self.aside[class] = lists.head(class);
                lists.set_head(class, ptr::null_mut());
            }
            if !used {
                self.aside[class] = self.return_blocks(self.aside[class], class, BLOCKS_PER_SLAB);
            }
            self.unused.marks[class] = mark(lists);
            if used || self.aside[class].is_null() && lists.is_empty(class) {
                self.unused.class = (class + 1) % CLASSES;
            }
        }
    }

    #[inline]
    pub(super) fn look_at_clock(&mut self, lists: &Lists) {
        self.calls += 1;
        if self.calls >= CALLS_PER_LOOK {
            self.calls = 0;
            let now = self.domain().now();
            if now >= self.tick_at {
                self.tick(lists, now);
            }
            self.looks += 1;
            if self.looks >= LOOKS_PER_DECISION {
                self.looks = 0;
                self.size_lists(lists, true);
            }
        }
    }

    /// Lets the policy decide how deep lists are, and returns what is aside beyond that. With `busy`, only those lists are looked
    /// at that got blocks from slabs, or let some go, since the last time.
    #[cold]
    fn size_lists(&mut self, lists: &Lists, busy: bool) {
        let sizing = self.domain().list_sizing();
        let (counters, aside) = (&self.counters.classes, &self.aside);
        let seen = |class: usize| {
            let counters = &counters[class];
            let listed = counters.granted.get().saturating_sub(lists.room_left(class));
            Seen { listed: counters.listed.get() + listed, taken: counters.taken.get() }
        };
        // As many as one decision takes off, at most: the walk is short.
        let aside = |class: usize| {
            let (mut count, mut block) = (0, aside[class]);
            while !block.is_null() && count < MOST_NOT_NEEDED {
                count += 1;
                // SAFETY: what is aside is the heap's.
                block = unsafe { Block::next(block) };
            }
            count
        };
        let mut surplus = [0_u16; CLASSES];
        self.depths.decide(sizing, busy, seen, aside, |class, blocks| surplus[class] = blocks as u16);
        for (class, &blocks) in surplus.iter().enumerate() {
            if blocks > 0 && !self.aside[class].is_null() {
                self.aside[class] = self.return_blocks(self.aside[class], class, blocks as u32);
            }
        }
    }

    /// Lets go of what this heap and its domain have held unused since the last tick. Called by itself on slow paths, at
    /// most once per purge delay; may be called at any time.
    #[cold]
    pub fn tick(&mut self, lists: &Lists, now: u64) {
        let delay = self.domain().purge_delay();
        self.tick_at = now.saturating_add(delay.max(1));
        self.follow_thread(lists);
        self.send_all(true);
        for class in 0..CLASSES {
            let holds = !lists.is_empty(class) || !self.aside[class].is_null();
            if holds && self.rooms_at_tick[class] == lists.room(class) {
                self.drain_list(lists, class);
            }
            self.rooms_at_tick[class] = lists.room(class);
            self.park_surplus(class);
        }
        self.decay_large(lists, false);
        self.size_lists(lists, false);
        if delay != PurgePolicy::NEVER {
            self.domain().purge(now, false);
        }
    }

    /// Gives up large blocks that wait in the thread's lists: those not used since the last call, or, with `all`, all.
    fn decay_large(&mut self, lists: &Lists, all: bool) {
        // SAFETY: a heap never outlives its domain.
        let domain = unsafe { &*self.domain };
        let (mut given, mut bytes) = (0, 0);
        let hits = self.large.decay(&lists.large, all, |run| {
            given += 1;
            bytes += (run.len * SLICE_BYTES) as u64;
            domain.give_run(run);
        });
        self.counters.large_cached.add(hits);
        self.counters.large_given.add(given);
        self.counters.large_bytes_given.add(bytes);
        self.count_waiting(lists);
    }

    /// Notes how many large blocks wait in the thread's lists.
    pub fn count_waiting(&mut self, lists: &Lists) {
        let (blocks, bytes) = self.large.waiting(&lists.large);
        self.counters.large_waiting.set(blocks);
        self.counters.large_bytes_waiting.set(bytes);
    }

    pub(super) fn drain_list(&mut self, lists: &Lists, class: usize) {
        let head = lists.head(class);
        lists.set_head(class, ptr::null_mut());
        self.settle_room(lists, class, lists::room_when_short(self.depths.depth(class)));
        let aside = core::mem::replace(&mut self.aside[class], ptr::null_mut());
        for list in [head, aside] {
            let rest = self.return_blocks(list, class, LONGEST_LIST);
            if !rest.is_null() {
                // A block was freed twice, and the list runs in a circle.
                self.misuse(Misuse::DoubleFree, rest.addr());
            }
        }
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
        self.decay_large(lists, true);
        self.domain().purge(self.domain().now(), true);
    }

    /// Gives up all slabs, so that other heaps can use them: the thread is ending. The heap is as new afterwards, and its
    /// name and counters stay.
    pub fn abandon(&mut self, lists: &Lists) {
        self.collect(lists);
        self.decay_large(lists, true);
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
