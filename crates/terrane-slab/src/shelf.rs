//! Shelves: where parked slabs with free blocks wait to be stolen, one stack a class.
//!
//! Invariant: a slab is linked on at most one shelf, and only while the *shelved* bit of its word is set. The thread that
//! sets the bit links it; the thread that pops it clears the bit. A slab may be claimed, filled, retired or even
//! become part of another slab while it is linked; whoever pops it looks at its word and takes it, or lets it go.
//!
//! Protocol: a Treiber stack (R. K. Treiber, 1986) whose top carries a count of pops, so that a top that was popped and
//! pushed again meanwhile is noticed (the ABA problem). Slab metadata is never unmapped, so a reader with a stale top reads
//! a link that is old but readable, and its exchange fails.
//!
//! | bits of the top | field |
//! |---|---|
//! | 0..32 | number of the first slab, 0 if the shelf is empty |
//! | 32..64 | pops so far, wrapping |

use crate::fault::{Fault, pause, planted};
use crate::sharing::Sharing;
use crate::slab::{NUMBER_BITS, Slab};
use terrane_core::sync::atomic::{AtomicU64, Ordering};

const NUMBER_MASK: u64 = (1 << NUMBER_BITS) - 1;

/// A stack of parked slabs.
#[derive(Debug)]
#[repr(transparent)]
pub struct Shelf(AtomicU64);

impl Shelf {
    terrane_core::const_unless_loom! {
        /// An empty shelf.
        pub fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// Whether nothing is on the shelf, as of some moment during the call.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) & NUMBER_MASK == 0
    }

    /// Number of the slab on top, 0 if there is none, as of some moment during the call.
    pub(crate) fn top(&self) -> u64 {
        self.0.load(Ordering::Acquire) & NUMBER_MASK
    }

    /// Puts `slab` on top.
    ///
    /// # Safety
    /// The caller has just set the slab's shelved bit, which was clear, and the slab lies in an arena that outlives the
    /// shelf's use.
    pub unsafe fn push<K: Sharing>(&self, slab: &Slab) {
        let mut top = self.0.load(Ordering::Relaxed);
        loop {
            slab.shelf_next().store(top & NUMBER_MASK, Ordering::Relaxed);
            let new = (top & !NUMBER_MASK) | slab.number();
            // Release: who pops the slab reads the link that we wrote.
            match K::compare_exchange(&self.0, top, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// Takes the top off. The caller must clear the slab's shelved bit, through [`Slab::claim`] with `unshelve`.
    pub fn pop<K: Sharing>(&self) -> Option<&'static Slab> {
        let mut top = self.0.load(Ordering::Acquire);
        loop {
            if top & NUMBER_MASK == 0 {
                return None;
            }
            // SAFETY: a slab that was ever on a shelf has metadata that stays mapped while its domain lives.
            let slab = unsafe { &*Slab::by_number(top & NUMBER_MASK) };
            let next = slab.shelf_next().load(Ordering::Relaxed);
            pause();
            let pops = if planted(Fault::ShelfUntagged) { 0 } else { 1 };
            let new = ((top >> NUMBER_BITS).wrapping_add(pops) << NUMBER_BITS) | next;
            match K::compare_exchange(&self.0, top, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(slab),
                Err(now) => top = now,
            }
        }
    }
}

impl Default for Shelf {
    fn default() -> Self {
        Self::new()
    }
}
