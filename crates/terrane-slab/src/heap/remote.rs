//! Remote frees: sending batches to slabs that this heap does not own.
//!
//! Invariant: a batch is sent while its blocks are out, so its slab cannot be retired before the batch arrives.

use super::*;

impl<S: PageSource, K: Sharing, O: Observer> Heap<S, K, O> {
    /// # Safety
    /// The block is the slab's and the caller's.
    pub(super) unsafe fn send_batched(&mut self, slab: *const Slab, block: *mut Block, class: usize) {
        let block_bytes = size_class::class(class).block_bytes;
        // SAFETY: the same promise.
        let due = unsafe { self.batches.add(slab, block, block_bytes) };
        if let Some((slab, chain)) = due {
            // SAFETY: the blocks of a batch are its slab's and ours.
            unsafe { self.send(slab, chain, true) };
        }
    }

    /// Sends a batch to its slab: into it, if the slab is parked and can be claimed (`may_claim`), is of this node, and this heap
    /// has none of its class; else to its remote list. A thread that frees what others have left behind thus frees on the hit
    /// path, and does not gather slabs.
    ///
    /// # Safety
    /// The blocks are the slab's and the caller's.
    pub(super) unsafe fn send(&mut self, slab: *const Slab, chain: Chain, may_claim: bool) {
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
            let near = self.is_near(Segment::containing((*slab).start()));
            let wanted = may_claim && near && self.queues[class].len() == 0;
            if wanted && (*slab).owner() == crate::slab::PARKED {
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
    pub(super) unsafe fn give_chain(&mut self, slab: *mut Slab, chain: Chain, class: usize) {
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

    pub(super) fn send_all(&mut self, may_claim: bool) {
        // Sending makes no new batches.
        for place in 0..crate::remote::PLACES {
            self.send_place(place, may_claim);
        }
    }

    pub(super) fn send_place(&mut self, place: usize, may_claim: bool) {
        if let Some((slab, chain)) = self.batches.take(place) {
            // SAFETY: the blocks of a batch are its slab's and ours.
            unsafe { self.send(slab, chain, may_claim) };
        }
    }
}
