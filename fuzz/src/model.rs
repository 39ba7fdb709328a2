//! The reference model: which blocks are live, where, and what is in them.
//!
//! Invariant: live blocks never overlap, each is aligned as asked, and holds the bytes that were written when it was
//! made or last resized. Every check panics with what was asked and what was there.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::BTreeMap;

/// Blocks above this many bytes are written at both ends only: touching them whole would take the machine's memory.
const WHOLE: usize = 1 << 16;
/// Bytes written at each end of a larger block.
const ENDS: usize = 256;
/// Live bytes above which blocks are given back before more are made.
const LIVE: usize = 1 << 28;

/// A live block.
#[derive(Clone, Copy)]
struct Block {
    address: usize,
    layout: Layout,
    seed: u8,
}

/// An allocator beside what we know about it.
pub struct Model<'a, A: GlobalAlloc> {
    allocator: &'a A,
    blocks: Vec<Block>,
    by_address: BTreeMap<usize, usize>,
    live: usize,
    may_fail: bool,
}

impl<'a, A: GlobalAlloc> Model<'a, A> {
    /// A model of an allocator from which we have nothing yet.
    pub fn new(allocator: &'a A) -> Self {
        Self { allocator, blocks: Vec::new(), by_address: BTreeMap::new(), live: 0, may_fail: false }
    }

    /// Whether the allocator may refuse what there is room for, because its pages are refused on purpose.
    pub fn may_fail(&mut self, may_fail: bool) {
        self.may_fail = may_fail;
    }

    /// Live blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether no block is live.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Allocates; a size of 0, which `GlobalAlloc` forbids, becomes 1.
    pub fn allocate(&mut self, layout: Layout, zeroed: bool, seed: u8) {
        let layout = nonzero(layout);
        while self.live.saturating_add(layout.size()) > LIVE && !self.blocks.is_empty() {
            self.free(0);
        }
        // SAFETY: the size is not zero.
        let pointer = unsafe {
            if zeroed { self.allocator.alloc_zeroed(layout) } else { self.allocator.alloc(layout) }
        };
        if pointer.is_null() {
            assert!(
                self.may_fail || layout.size() > LIVE || layout.align() > 1 << 26,
                "no memory for {layout:?}"
            );
            return;
        }
        let block = Block { address: pointer as usize, layout, seed };
        if zeroed {
            block.each(|at, _| {
                // SAFETY: `at` is inside the block, which is ours.
                let byte = unsafe { *pointer.add(at) };
                assert_eq!(byte, 0, "byte {at} of a zeroed block of {layout:?}");
            });
        }
        self.insert(block);
        if layout.size() > LIVE {
            self.free(self.blocks.len() - 1);
        }
    }

    /// Checks and frees the block with this index.
    pub fn free(&mut self, index: usize) {
        let block = self.remove(index);
        // SAFETY: the block came from this allocator with this layout, and is out of the model now.
        unsafe { self.allocator.dealloc(block.address as *mut u8, block.layout) };
    }

    /// Resizes the block with this index; its contents up to the smaller size have to survive, also when it fails.
    pub fn resize(&mut self, index: usize, size: usize) {
        let old = self.remove(index);
        let largest = (isize::MAX as usize) - (old.layout.align() - 1);
        let size = size.clamp(1, largest);
        let layout =
            Layout::from_size_align(size, old.layout.align()).expect("clamped to what the alignment allows");
        // SAFETY: the block came from this allocator with this layout; the new size is not zero and fits the alignment.
        let pointer = unsafe { self.allocator.realloc(old.address as *mut u8, old.layout, size) };
        if pointer.is_null() {
            assert!(
                self.may_fail || size > LIVE || layout.align() > 1 << 26,
                "no memory to grow {:?} to {size}",
                old.layout
            );
            old.check(old.layout.size());
            self.insert(old);
            return;
        }
        let new = Block { address: pointer as usize, layout, seed: old.seed };
        // The old pattern is in the common part, but what is known of a large block is its ends.
        Block { layout: old.layout, ..new }.check(size);
        self.insert(new);
        if size > LIVE {
            self.free(self.blocks.len() - 1);
        }
    }

    /// Checks and frees everything.
    pub fn end(mut self) {
        while !self.blocks.is_empty() {
            self.free(self.blocks.len() - 1);
        }
    }

    fn insert(&mut self, block: Block) {
        let (start, size) = (block.address, block.layout.size());
        let Some(end) = start.checked_add(size) else { panic!("{start:#x} + {size} bytes wraps around") };
        assert_eq!(start % block.layout.align(), 0, "{start:#x} is not aligned for {:?}", block.layout);
        if let Some((_, &before)) = self.by_address.range(..end).next_back() {
            let other = self.blocks[before];
            let other_end = other.address + other.layout.size();
            assert!(other_end <= start, "{start:#x}..{end:#x} overlaps {:#x}..{other_end:#x}", other.address);
        }
        block.write();
        self.live += size;
        self.by_address.insert(start, self.blocks.len());
        self.blocks.push(block);
    }

    /// Takes a block out after its contents were checked.
    fn remove(&mut self, index: usize) -> Block {
        let block = self.blocks.swap_remove(index);
        block.check(block.layout.size());
        self.by_address.remove(&block.address);
        if let Some(moved) = self.blocks.get(index) {
            self.by_address.insert(moved.address, index);
        }
        self.live -= block.layout.size();
        block
    }
}

impl Block {
    /// Calls `visit` with every position that is written, and the byte that belongs there.
    fn each(&self, mut visit: impl FnMut(usize, u8)) {
        let size = self.layout.size();
        let byte = |at: usize| self.seed.wrapping_add((at as u8).wrapping_mul(7));
        if size <= WHOLE {
            (0..size).for_each(|at| visit(at, byte(at)));
        } else {
            (0..ENDS).chain(size - ENDS..size).for_each(|at| visit(at, byte(at)));
        }
    }

    fn write(&self) {
        self.each(|at, byte| {
            // SAFETY: `at` is inside the block, which is ours.
            unsafe { (self.address as *mut u8).add(at).write(byte) };
        });
    }

    /// Checks the bytes below `limit`.
    fn check(&self, limit: usize) {
        self.each(|at, byte| {
            if at < limit {
                // SAFETY: `at` is inside the block, which is ours.
                let found = unsafe { (self.address as *const u8).add(at).read() };
                assert_eq!(found, byte, "byte {at} of the block of {:?} at {:#x}", self.layout, self.address);
            }
        });
    }
}

fn nonzero(layout: Layout) -> Layout {
    if layout.size() > 0 {
        return layout;
    }
    Layout::from_size_align(1, layout.align()).expect("one byte fits every alignment")
}
