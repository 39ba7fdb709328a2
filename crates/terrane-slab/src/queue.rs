//! Queues: the slabs of one class that a heap owns, sorted by fullness.
//!
//! Invariant: a slab is in the queue of its class exactly while its local part says `queued`, in the bin that its free
//! blocks had when it was last filed. The set bits of `hint` are the bins that are not empty.
//!
//! Blocks are taken from the fullest slabs, so that the emptiest have a chance to drain; slabs that are too many are parked
//! from the emptiest bin, where a thief finds most.

use crate::slab::Slab;
use core::ptr;

/// Bins by free share: less than a quarter, less than half, less than three quarters, more.
const BINS: usize = 4;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Queue {
    bins: [*mut Slab; BINS],
    hint: u8,
    len: u32,
}

impl Queue {
    pub(crate) const fn new() -> Self {
        Self { bins: [ptr::null_mut(); BINS], hint: 0, len: 0 }
    }

    /// The first slab of every bin.
    pub(crate) fn bins(&self) -> &[*mut Slab] {
        &self.bins
    }

    /// Bit set: the bin is not empty.
    pub(crate) fn hint(&self) -> u8 {
        self.hint
    }

    /// Slabs in the queue.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// The fullest slab, null if there is none.
    #[inline]
    pub(crate) fn fullest(&self) -> *mut Slab {
        if self.hint == 0 { ptr::null_mut() } else { self.bins[self.hint.trailing_zeros() as usize] }
    }

    /// The emptiest slab, null if there is none.
    pub(crate) fn emptiest(&self) -> *mut Slab {
        if self.hint == 0 { ptr::null_mut() } else { self.bins[self.hint.ilog2() as usize] }
    }

    fn bin_of(free: u32, capacity: u32) -> u8 {
        (free as usize * BINS / capacity as usize).min(BINS - 1) as u8
    }

    /// Free blocks from which a slab of bin `bin` belongs in a higher one.
    pub(crate) fn limit_of(bin: u8, capacity: u32) -> u32 {
        if bin as usize == BINS - 1 { u32::MAX } else { ((bin as u32 + 1) * capacity).div_ceil(BINS as u32) }
    }

    /// Files `slab`, wherever it was filed before, by the blocks that it has free now.
    ///
    /// # Safety
    /// The queue's heap owns the slab.
    pub(crate) unsafe fn file(&mut self, slab: *mut Slab) {
        // SAFETY: the queue's heap owns the slab.
        let (bin, filed, limit) = unsafe {
            let counts = (*slab).counts();
            let filed = (*slab).local(|local| local.queued.then_some(local.bin));
            let bin = Self::bin_of(counts.free + counts.virgin, counts.capacity);
            (bin, filed, Self::limit_of(bin, counts.capacity))
        };
        if filed == Some(bin) {
            return;
        }
        // SAFETY: all slabs of the queue are owned by its heap.
        unsafe {
            if filed.is_some() {
                self.remove(slab);
            }
            let next = self.bins[bin as usize];
            (*slab).local(|local| {
                (local.next, local.previous, local.queued, local.bin) = (next, ptr::null_mut(), true, bin);
                local.bin_limit = limit;
            });
            if !next.is_null() {
                (*next).local(|local| local.previous = slab);
            }
        }
        self.bins[bin as usize] = slab;
        self.hint |= 1 << bin;
        self.len += 1;
    }

    /// Takes `slab` out.
    ///
    /// # Safety
    /// The slab is in this queue.
    pub(crate) unsafe fn remove(&mut self, slab: *mut Slab) {
        // SAFETY: all slabs of the queue are owned by its heap.
        unsafe {
            let (next, previous, bin) = (*slab).local(|local| {
                debug_assert!(local.queued);
                local.queued = false;
                (local.next, local.previous, local.bin as usize)
            });
            if next.is_null() {
                // Last of its bin.
            } else {
                (*next).local(|local| local.previous = previous);
            }
            if previous.is_null() {
                self.bins[bin] = next;
                if next.is_null() {
                    self.hint &= !(1 << bin);
                }
            } else {
                (*previous).local(|local| local.next = next);
            }
        }
        self.len -= 1;
    }
}
