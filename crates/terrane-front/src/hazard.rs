//! Blocks that readers may still be looking at, by hazard pointers: [`Hazards`].
//!
//! Invariant: a retired block is freed after a look at all slots, made after it was retired, that did not find it. So a reader
//! that stalls holds back the one block in its slot and nothing else.
//!
//! | | epochs | hazard pointers |
//! |---|---|---|
//! | a read costs | one guard for any number of blocks | one fence for each block |
//! | a stalled reader holds | all that is retired from then on | one block |
//!
//! Protocol: a reader writes the address into its slot, passes a fence, and looks whether the source still holds that address;
//! if so, whoever retires the block later finds it in the slot. The retiring thread gathers blocks until it has twice as many as
//! there are slots, passes a fence, reads all slots, and frees the blocks that are in none: at least half of them.
//! (Michael, "Hazard pointers", 2004.)

use crate::fault::{Fault, order, planted};
use crate::reclaim::Retired;
use core::alloc::Layout;
use core::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};
use terrane_core::sync::atomic::{AtomicBool, AtomicPtr, Ordering, fence};

#[derive(Debug)]
#[repr(align(128))]
struct Slot {
    taken: AtomicBool,
    address: AtomicPtr<u8>,
}

/// A group of threads that read and retire the same blocks.
#[derive(Debug)]
pub struct Hazards {
    slots: Box<[Slot]>,
    /// Blocks of members that left while readers held them.
    left: Mutex<Vec<Retired>>,
}

impl Hazards {
    /// A group of at most `members` threads.
    pub fn new(members: usize) -> Self {
        let slot = || Slot { taken: AtomicBool::new(false), address: AtomicPtr::new(ptr::null_mut()) };
        Self { slots: (0..members).map(|_| slot()).collect(), left: Mutex::new(Vec::new()) }
    }

    /// A thread's membership; `None` if there are as many as there may be.
    pub fn register(&self) -> Option<Member<'_>> {
        let slot = self.slots.iter().find(|slot| {
            slot.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
        })?;
        Some(Member { group: self, slot, retired: Vec::new() })
    }

    /// Most blocks that a member holds back: what all of them hold is at most this times their number.
    pub fn bound(&self) -> usize {
        self.slots.len() * 2
    }
}

impl Drop for Hazards {
    fn drop(&mut self) {
        for retired in core::mem::take(self.left.get_mut().unwrap_or_else(PoisonError::into_inner)) {
            // SAFETY: no member is left, so no reader is.
            unsafe { retired.free() };
        }
    }
}

/// A thread's membership in [`Hazards`], with one slot.
#[derive(Debug)]
pub struct Member<'h> {
    group: &'h Hazards,
    slot: &'h Slot,
    retired: Vec<Retired>,
}

impl Member<'_> {
    /// What `source` holds, safe to read until the next call of this or of [`clear`](Self::clear), as long as blocks that were in
    /// `source` are freed by [`retire`](Self::retire) only, after they were taken out.
    #[must_use]
    pub fn protect<T>(&mut self, source: &AtomicPtr<T>) -> *mut T {
        let mut found = source.load(Ordering::Relaxed);
        loop {
            // Release: reads of the block before in this slot are done when others see this.
            self.slot.address.store(found.cast(), Ordering::Release);
            // The slot is seen by all who retire after this, or the second look sees that the block was taken out.
            if !planted(Fault::ProtectUnfenced) {
                fence(Ordering::SeqCst);
            }
            let again = source.load(Ordering::Acquire);
            if again == found || planted(Fault::ProtectUnchecked) {
                return found;
            }
            found = again;
        }
    }

    /// Lets go of what was protected.
    pub fn clear(&mut self) {
        // Release: reads of the block are done when others see this.
        self.slot.address.store(ptr::null_mut(), order(Fault::ClearRelaxed, Ordering::Release));
    }

    /// Frees `block` when no reader can look at it any more.
    ///
    /// # Safety
    /// The block came from this allocator with `layout`; it was taken out of every source; it is retired once.
    pub unsafe fn retire(&mut self, block: NonNull<u8>, layout: Layout) {
        self.retired.push(Retired { block, layout });
        if self.retired.len() >= self.group.bound() {
            self.scan();
        }
    }

    /// Blocks that this member holds back.
    pub fn waiting(&self) -> usize {
        self.retired.len()
    }

    /// Frees all retired blocks that are in no slot, and those that members left behind.
    pub fn scan(&mut self) {
        if let Ok(mut left) = self.group.left.try_lock() {
            self.retired.append(&mut left);
        }
        if !planted(Fault::ScanUnfenced) {
            fence(Ordering::SeqCst);
        }
        let mut held: Vec<*mut u8> =
            self.group.slots.iter().map(|slot| slot.address.load(Ordering::Acquire)).collect();
        held.sort_unstable();
        for retired in core::mem::take(&mut self.retired) {
            if held.binary_search(&retired.block.as_ptr()).is_ok() {
                self.retired.push(retired);
            } else {
                // SAFETY: the block was taken out of its sources before the fence, so whoever reads it has it in a slot, and no
                // slot had it: nobody reads it, or will. `retire`'s caller promised the rest.
                unsafe { retired.free() };
            }
        }
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.clear();
        self.scan();
        let mut left = self.group.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.append(&mut self.retired);
        drop(left);
        self.slot.taken.store(false, Ordering::Release);
    }
}
