//! The peers, each behind the same two operations. A token is what a peer needs to free a span.

use std::alloc::Layout;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use terrane_fit::{Placement, Span};

/// An engine or a peer over one fixed space.
pub trait Contender {
    /// What it takes to free a span.
    type Token: Copy;
    /// Places `len` units; `None` if there is no room.
    fn place(&mut self, len: u64) -> Option<Self::Token>;
    /// Frees what `place` gave.
    fn vacate(&mut self, token: Self::Token);
    /// Touches the space, if the contender keeps records in it, so that no page fault is counted as its time.
    fn warm(&mut self) {}
}

/// An engine of `terrane-fit`.
pub struct Ours<E>(pub E);

impl<E: Placement> Contender for Ours<E> {
    type Token = (u64, u64);
    #[inline]
    fn place(&mut self, len: u64) -> Option<Self::Token> {
        self.0.place(len, 1).ok().map(|span| (span.offset, span.len))
    }
    #[inline]
    fn vacate(&mut self, (offset, len): (u64, u64)) {
        self.0.vacate(Span::new(offset, len));
    }
}

/// The `offset-allocator` crate.
pub struct OffsetAllocator(pub offset_allocator::Allocator<u32>);

impl Contender for OffsetAllocator {
    type Token = offset_allocator::Allocation<u32>;
    #[inline]
    fn place(&mut self, len: u64) -> Option<Self::Token> {
        self.0.allocate(u32::try_from(len).ok()?)
    }
    #[inline]
    fn vacate(&mut self, token: Self::Token) {
        self.0.free(token);
    }
}

/// The `rlsf` crate over host memory, in which it keeps its headers.
pub struct Rlsf {
    engine: rlsf::Tlsf<'static, u32, u32, 32, 32>,
    memory: (NonNull<u8>, Layout),
}

impl Rlsf {
    /// Over `len` bytes of memory.
    pub fn new(len: u64) -> Self {
        let layout =
            Layout::from_size_align(len as usize, 4096).expect("a space is shorter than half the memory");
        // SAFETY: the length is not zero.
        let start =
            NonNull::new(unsafe { std::alloc::alloc(layout) }).expect("there is memory for the space");
        let mut engine = rlsf::Tlsf::new();
        // SAFETY: the memory is ours until `drop`, and the engine is gone by then.
        let pool =
            unsafe { std::slice::from_raw_parts_mut(start.as_ptr().cast::<MaybeUninit<u8>>(), len as usize) };
        engine.insert_free_block(pool);
        Self { engine, memory: (start, layout) }
    }
}

impl Drop for Rlsf {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; the engine is not used again.
        unsafe { std::alloc::dealloc(self.memory.0.as_ptr(), self.memory.1) };
    }
}

impl Contender for Rlsf {
    type Token = (u64, u64);
    #[inline]
    fn place(&mut self, len: u64) -> Option<Self::Token> {
        let layout = Layout::from_size_align(len as usize, 1).ok()?;
        self.engine.allocate(layout).map(|start| (start.as_ptr() as u64, len))
    }
    fn warm(&mut self) {
        let (start, layout) = self.memory;
        for page in (4096..layout.size().saturating_sub(4096)).step_by(4096) {
            // SAFETY: inside the memory, which is one free block so far: its header is at the start, its end mark in the last
            // page, and between them nothing is kept.
            unsafe { start.as_ptr().add(page).write_volatile(0) };
        }
    }
    #[inline]
    fn vacate(&mut self, (offset, _): (u64, u64)) {
        if let Some(start) = NonNull::new(offset as *mut u8) {
            // SAFETY: the address came from `allocate` with alignment 1 and is freed once.
            unsafe { self.engine.deallocate(start, 1) };
        }
    }
}

/// The frame allocator of the `buddy_system_allocator` crate, which works on numbers too.
pub struct BuddySystem(pub buddy_system_allocator::FrameAllocator<33>);

impl Contender for BuddySystem {
    type Token = (u64, u64);
    fn place(&mut self, len: u64) -> Option<Self::Token> {
        self.0.alloc(len as usize).map(|at| (at as u64, len))
    }
    fn vacate(&mut self, (offset, len): (u64, u64)) {
        self.0.dealloc(offset as usize, len as usize);
    }
}

/// The `range-alloc` crate.
pub struct RangeAlloc(pub range_alloc::RangeAllocator<u64>);

impl Contender for RangeAlloc {
    type Token = (u64, u64);
    fn place(&mut self, len: u64) -> Option<Self::Token> {
        self.0.allocate_range(len).ok().map(|range| (range.start, range.end))
    }
    fn vacate(&mut self, (start, end): (u64, u64)) {
        self.0.free_range(start..end);
    }
}

/// Best fit over one list of holes in order of address, searched from end to end, as pools of device memory keep it.
pub struct LinearBestFit(Vec<Span>);

impl LinearBestFit {
    /// Over `len` units.
    pub fn new(len: u64) -> Self {
        Self(vec![Span::new(0, len)])
    }
}

impl Contender for LinearBestFit {
    type Token = (u64, u64);
    fn place(&mut self, len: u64) -> Option<Self::Token> {
        let fitting = self.0.iter().enumerate().filter(|(_, hole)| hole.len >= len);
        let (at, &hole) = fitting.min_by_key(|(_, hole)| hole.len)?;
        if hole.len == len {
            self.0.remove(at);
        } else {
            self.0[at] = Span::new(hole.offset + len, hole.len - len);
        }
        Some((hole.offset, len))
    }
    fn vacate(&mut self, (offset, len): (u64, u64)) {
        let at = self.0.iter().position(|hole| hole.offset > offset).unwrap_or(self.0.len());
        let joins_above = self.0.get(at).is_some_and(|hole| hole.offset == offset + len);
        match at.checked_sub(1).filter(|&below| self.0[below].offset + self.0[below].len == offset) {
            Some(below) if joins_above => {
                self.0[below].len += len + self.0[at].len;
                self.0.remove(at);
            }
            Some(below) => self.0[below].len += len,
            None if joins_above => self.0[at] = Span::new(offset, len + self.0[at].len),
            None => self.0.insert(at, Span::new(offset, len)),
        }
    }
}
