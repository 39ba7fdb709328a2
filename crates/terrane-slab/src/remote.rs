//! Batches of remote frees: blocks on their way to slabs that this heap does not own.
//!
//! Invariant: a batch holds blocks of one slab, linked and counted; they are out, from the slab's point of view, until the
//! whole batch is pushed by one exchange. The batches of a heap are a small table indexed by a hash of the slab, so frees
//! into a few slabs in turn are gathered without a search; when two slabs meet in one place the older batch is sent off.
//! (Batching of remote frees per destination follows Lietar et al., "snmalloc", ISMM 2019; carrying the count with the
//! batch follows "BatchIt", ISMM 2024.)

use crate::slab::{Block, Chain, Slab};
use core::ptr;

/// Places of the table.
pub(crate) const PLACES: usize = 128;
/// Most blocks of one batch.
const MOST_BLOCKS: u32 = 64;
/// Most bytes of one batch.
const MOST_BYTES: u32 = 16 * 1024;

#[derive(Clone, Copy, Debug)]
struct Batch {
    slab: *const Slab,
    chain: Chain,
}

/// The batches of one heap.
#[derive(Debug)]
pub(crate) struct Batches {
    places: [Batch; PLACES],
}

/// Blocks that must be sent to their slab now.
pub(crate) type Due = Option<(*const Slab, Chain)>;

impl Batches {
    pub(crate) const fn new() -> Self {
        let none = Chain { head: ptr::null_mut(), tail: ptr::null_mut(), count: 0 };
        Self { places: [Batch { slab: ptr::null(), chain: none }; PLACES] }
    }

    /// Adds `block`, of `block_bytes` bytes, on its way to `slab`. What is returned must be sent off now.
    ///
    /// # Safety
    /// The block is the slab's and the caller's.
    #[inline]
    pub(crate) unsafe fn add(&mut self, slab: *const Slab, block: *mut Block, block_bytes: u32) -> Due {
        let hash = (slab.addr() >> 7) ^ (slab.addr() >> 25);
        let place = &mut self.places[hash % PLACES];
        if place.slab == slab {
            // SAFETY: the block is the caller's.
            unsafe { Block::emplace(block, place.chain.head) };
            place.chain.head = block;
            place.chain.count += 1;
            if place.chain.count >= MOST_BLOCKS || place.chain.count * block_bytes >= MOST_BYTES {
                place.slab = ptr::null();
                return Some((slab, place.chain));
            }
            return None;
        }
        // SAFETY: the block is the caller's.
        unsafe { Block::emplace(block, ptr::null_mut()) };
        let fresh = Batch { slab, chain: Chain { head: block, tail: block, count: 1 } };
        let old = core::mem::replace(place, fresh);
        if block_bytes >= MOST_BYTES {
            debug_assert!(old.slab.is_null() || old.slab != slab);
            // Too long to wait: it goes at once, and what was there before stays.
            *place = old;
            return Some((slab, fresh.chain));
        }
        (!old.slab.is_null()).then_some((old.slab, old.chain))
    }

    /// The batches that wait.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (*const Slab, Chain)> {
        self.places.iter().filter(|place| !place.slab.is_null()).map(|place| (place.slab, place.chain))
    }

    /// Takes the batch at a place out, if one is there.
    pub(crate) fn take(&mut self, place: usize) -> Due {
        let place = &mut self.places[place];
        if place.slab.is_null() {
            return None;
        }
        Some((core::mem::replace(&mut place.slab, ptr::null()), place.chain))
    }
}
