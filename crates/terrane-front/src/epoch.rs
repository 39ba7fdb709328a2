//! Blocks that readers may still be looking at, by epochs: [`Epochs`], with crossbeam's as the engine.
//!
//! Invariant: a retired block is freed after every guard that existed when it was retired is gone. `garbage` counts the bytes
//! retired and handed to the engine; it never passes the limit. What waits in a participant's own buffer comes on top: at most
//! [`BUFFER`] blocks each.
//!
//! Protocol: a participant gathers retired blocks in its buffer. When that is full, its bytes are reserved under the limit, and
//! the whole buffer becomes one deferred function of the engine: one box and one shared counter for [`BUFFER`] blocks. When the
//! limit is reached the epoch is pushed on; if a stalled reader prevents that, `retire` refuses the block. Plain epochs would go
//! on collecting garbage. Where a stalled reader must not stop anyone, use [`hazard`](crate::hazard) pointers.
//! (Fraser, "Practical lock-freedom", 2004.)

use crate::free_sized;
use core::alloc::Layout;
use core::cell::RefCell;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use crossbeam_epoch::{Collector, Guard, LocalHandle};
use std::sync::Arc;

/// Blocks that a participant gathers before it hands them over.
pub const BUFFER: usize = 64;

/// Times that the epoch is pushed on before a block is refused: two steps make a block free, one more may be needed for the
/// blocks of a step that had begun.
const PUSHES: usize = 4;

/// A block that waits.
pub(crate) struct Retired {
    pub(crate) block: NonNull<u8>,
    pub(crate) layout: Layout,
}

// SAFETY: a retired block is memory that nobody uses but late readers.
unsafe impl Send for Retired {}

impl Retired {
    /// # Safety
    /// No reader can reach the block any more, and it came from this allocator with this layout.
    pub(crate) unsafe fn free(self) {
        // SAFETY: the caller's promise.
        unsafe { free_sized(self.block.as_ptr(), self.layout.size(), self.layout.align()) };
    }
}

/// A block that could not be retired: readers keep as much garbage alive as may be. The block is still the caller's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backlog {
    /// The block.
    pub block: NonNull<u8>,
    /// Bytes of garbage.
    pub garbage: usize,
    /// Bytes of garbage that there may be.
    pub limit: usize,
}

impl fmt::Display for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "readers hold {} bytes of garbage, {} allowed", self.garbage, self.limit)
    }
}

impl core::error::Error for Backlog {}

/// A group of threads that read and retire the same blocks.
#[derive(Debug)]
pub struct Epochs {
    collector: Collector,
    garbage: Arc<AtomicUsize>,
    limit: usize,
}

impl Epochs {
    /// A group with at most `limit` bytes of garbage.
    pub fn new(limit: usize) -> Self {
        Self { collector: Collector::new(), garbage: Arc::new(AtomicUsize::new(0)), limit }
    }

    /// A thread's membership.
    pub fn register(&self) -> Participant<'_> {
        Participant { group: self, local: self.collector.register(), buffer: RefCell::new(Vec::new()) }
    }

    /// Bytes retired and not freed yet, but for those in buffers.
    pub fn garbage(&self) -> usize {
        self.garbage.load(Ordering::Relaxed)
    }
}

/// A thread's membership in [`Epochs`].
#[derive(Debug)]
pub struct Participant<'e> {
    group: &'e Epochs,
    local: LocalHandle,
    buffer: RefCell<Vec<Retired>>,
}

impl fmt::Debug for Retired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retired").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl Participant<'_> {
    /// While the guard lives, no block is freed that could be reached when it was made.
    pub fn pin(&self) -> Guard {
        self.local.pin()
    }

    /// Frees `block` when no reader can look at it any more. Call it with no guard of this participant alive, or that one
    /// holds the garbage back too.
    ///
    /// # Errors
    /// [`Backlog`] with the block, if the limit is reached and readers do not let go.
    ///
    /// # Safety
    /// The block came from this allocator with `layout`; no reader that pins from now on can reach it; it is retired once.
    pub unsafe fn retire(&self, block: NonNull<u8>, layout: Layout) -> Result<(), Backlog> {
        let mut buffer = self.buffer.borrow_mut();
        if buffer.len() >= BUFFER && !self.hand_over(&mut buffer) {
            return Err(Backlog { block, garbage: self.group.garbage(), limit: self.group.limit });
        }
        buffer.push(Retired { block, layout });
        Ok(())
    }

    /// Hands the buffer over and frees what can be freed; whether the buffer is empty now.
    pub fn flush(&self) -> bool {
        let mut buffer = self.buffer.borrow_mut();
        let done = buffer.is_empty() || self.hand_over(&mut buffer);
        drop(buffer);
        (0..PUSHES).for_each(|_| self.local.pin().flush());
        done
    }

    fn hand_over(&self, buffer: &mut Vec<Retired>) -> bool {
        let bytes: usize = buffer.iter().map(|retired| retired.layout.size()).sum();
        let (garbage, limit) = (&self.group.garbage, self.group.limit);
        let reserve = || {
            garbage
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                    now.checked_add(bytes).filter(|&sum| sum <= limit)
                })
                .is_ok()
        };
        let mut reserved = reserve();
        for _ in 0..PUSHES {
            if reserved {
                break;
            }
            self.local.pin().flush();
            reserved = reserve();
        }
        if reserved {
            let blocks = core::mem::replace(buffer, Vec::with_capacity(BUFFER));
            let garbage = self.group.garbage.clone();
            let guard = self.local.pin();
            // SAFETY: `retire`'s callers promise that nobody who pins from now on reaches the blocks; the engine calls this when
            // all who had pinned are gone. What is moved in owns its memory, and may be used on any thread.
            unsafe {
                guard.defer_unchecked(move || {
                    blocks.into_iter().for_each(|retired| retired.free());
                    garbage.fetch_sub(bytes, Ordering::Relaxed);
                });
            }
        }
        reserved
    }
}

impl Drop for Participant<'_> {
    fn drop(&mut self) {
        let blocks = core::mem::take(self.buffer.get_mut());
        let guard = self.local.pin();
        // SAFETY: as in `hand_over`. The limit is passed by at most one buffer, which counted before too.
        unsafe { guard.defer_unchecked(move || blocks.into_iter().for_each(|retired| retired.free())) };
        guard.flush();
    }
}
