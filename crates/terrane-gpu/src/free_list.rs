//! Free blocks of one stream, as indices: the lock-free stack of [`FixedPool`](crate::FixedPool), and one with a lock.
//!
//! Invariant: an index is in at most one list, once. Device memory cannot be read by the host, so the links lie beside
//! the blocks, in an array that the lists share ([`Links`]).
//!
//! The head of a [`TaggedStack`] is one word:
//!
//! | bits | meaning |
//! |---|---|
//! | 0–31 | index of the first block, or `u32::MAX` for none |
//! | 32–63 | tag: moves on with every pop |
//!
//! A pop reads the head and the link of its block, then exchanges the head. Between the two another thread may pop that
//! block, pop the next, and push the first again: the head's index is as before, and the link that was read is stale. The
//! tag tells. (`fault_stack_without_tags` shows the double hand-out that happens without it.) A wrong match would take
//! 2³² pops between two instructions.

use parking_lot::Mutex;
use terrane_core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// No index.
pub const NONE: u32 = u32::MAX;

/// The links that lists use: one word per block.
pub trait Links {
    /// The word of block `index`.
    fn link(&self, index: u32) -> &AtomicU32;
}

/// A list of free blocks. Any thread may push and pop.
pub trait FreeList: Default + Send + Sync {
    /// Adds a block that is in no list.
    fn push(&self, links: &impl Links, index: u32);

    /// Takes the block that was added last.
    fn pop(&self, links: &impl Links) -> Option<u32>;

    /// Some block of the list, perhaps gone by now.
    fn peek(&self) -> Option<u32>;

    /// Blocks in the list; only exact while nobody else uses it.
    fn len(&self, links: &impl Links) -> u64;

    /// Whether the list has no block right now.
    fn is_empty(&self) -> bool {
        self.peek().is_none()
    }
}

/// A lock-free stack. `TAG_STEP` is what the tag moves by, and is 1 but in the model that shows why it is there.
#[derive(Debug)]
pub struct TaggedStack<const TAG_STEP: u32 = 1> {
    head: AtomicU64,
}

const fn pack(index: u32, tag: u32) -> u64 {
    (tag as u64) << 32 | index as u64
}

impl<const TAG_STEP: u32> Default for TaggedStack<TAG_STEP> {
    fn default() -> Self {
        Self { head: AtomicU64::new(pack(NONE, 0)) }
    }
}

impl<const TAG_STEP: u32> FreeList for TaggedStack<TAG_STEP> {
    #[inline]
    fn push(&self, links: &impl Links, index: u32) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            links.link(index).store(head as u32, Ordering::Relaxed);
            let next = pack(index, (head >> 32) as u32);
            // Release: whoever pops the block sees its link and all that was written about it before the push. Every
            // change of the head is a read-modify-write, so this also holds for blocks further down.
            match self.head.compare_exchange_weak(head, next, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    #[inline]
    fn pop(&self, links: &impl Links) -> Option<u32> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let index = head as u32;
            if index == NONE {
                return None;
            }
            let rest = links.link(index).load(Ordering::Relaxed);
            let next = pack(rest, ((head >> 32) as u32).wrapping_add(TAG_STEP));
            match self.head.compare_exchange_weak(head, next, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(index),
                Err(now) => head = now,
            }
        }
    }

    fn peek(&self) -> Option<u32> {
        let index = self.head.load(Ordering::Acquire) as u32;
        (index != NONE).then_some(index)
    }

    fn len(&self, links: &impl Links) -> u64 {
        let (mut index, mut count) = (self.head.load(Ordering::Acquire) as u32, 0);
        // Bounded, because a stack that changes meanwhile could lead the walk in a circle.
        while index != NONE && count < u64::from(NONE) {
            index = links.link(index).load(Ordering::Relaxed);
            count += 1;
        }
        count
    }
}

/// A stack under a mutex.
#[derive(Debug, Default)]
pub struct LockedStack {
    blocks: Mutex<Vec<u32>>,
}

impl FreeList for LockedStack {
    fn push(&self, _: &impl Links, index: u32) {
        self.blocks.lock().push(index);
    }

    fn pop(&self, _: &impl Links) -> Option<u32> {
        self.blocks.lock().pop()
    }

    fn peek(&self) -> Option<u32> {
        self.blocks.lock().last().copied()
    }

    fn len(&self, _: &impl Links) -> u64 {
        self.blocks.lock().len() as u64
    }
}
