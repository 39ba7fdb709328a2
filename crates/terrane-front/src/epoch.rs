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

use crate::reclaim::{Budget, Retired};
use core::alloc::Layout;
use core::cell::RefCell;
use core::fmt;
use core::ptr::NonNull;
use crossbeam_epoch::{Collector, Guard, LocalHandle};
use std::sync::Arc;

/// Blocks that a participant gathers before it hands them over.
pub const BUFFER: usize = 64;

/// Times that the epoch is pushed on before a block is refused: two steps make a block free, one more may be needed for the
/// blocks of a step that had begun.
const PUSHES: usize = 4;

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
    budget: Arc<Budget>,
}

impl Epochs {
    /// A group with at most `limit` bytes of garbage.
    pub fn new(limit: usize) -> Self {
        Self { collector: Collector::new(), budget: Arc::new(Budget::new(limit)) }
    }

    /// A thread's membership.
    pub fn register(&self) -> Participant<'_> {
        Participant { group: self, local: self.collector.register(), buffer: RefCell::new(Vec::new()) }
    }

    /// Bytes retired and not freed yet, but for those in buffers.
    pub fn garbage(&self) -> usize {
        self.budget.used()
    }
}

/// A thread's membership in [`Epochs`].
#[derive(Debug)]
pub struct Participant<'e> {
    group: &'e Epochs,
    local: LocalHandle,
    buffer: RefCell<Vec<Retired>>,
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
            return Err(Backlog { block, garbage: self.group.garbage(), limit: self.group.budget.limit() });
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
        let budget = &self.group.budget;
        let mut reserved = budget.reserve(bytes);
        for _ in 0..PUSHES {
            if reserved {
                break;
            }
            self.local.pin().flush();
            reserved = budget.reserve(bytes);
        }
        if reserved {
            let blocks = core::mem::replace(buffer, Vec::with_capacity(BUFFER));
            let budget = budget.clone();
            let guard = self.local.pin();
            // SAFETY: `retire`'s callers promise that nobody who pins from now on reaches the blocks; the engine calls this when
            // all who had pinned are gone. What is moved in owns its memory, and may be used on any thread.
            unsafe {
                guard.defer_unchecked(move || {
                    blocks.into_iter().for_each(|retired| retired.free());
                    budget.give_back(bytes);
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
