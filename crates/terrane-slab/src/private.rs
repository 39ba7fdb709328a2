//! Heaps of their own: one thread, no atomic read-modify-write, destroyed at once with everything in them.
//!
//! Invariant: the heap, its domain and its lists lie in pages that it took from its source; dropping it gives those and all
//! arenas back, so no block outlives it.

use crate::arena::Growth;
use crate::domain::{Domain, Policy};
use crate::heap::Heap;
use crate::lists::Lists;
use crate::segment::SLICE_BYTES;
use crate::sharing::Local;
use crate::size_class::{self, MAX_SMALL};
use crate::slab::MAX_HEAP_ID;
use crate::verify::{VerifyError, VerifyReport};
use core::cell::{Cell, UnsafeCell};
use core::ptr::NonNull;
use terrane_core::{Extent, Observer, PageSource, SourceError};

/// First class above 128 bytes.
const FIRST_PAIRED: usize = 12;

/// How many size classes a heap uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Classes {
    /// All: at most one part in nine of a block is lost to rounding.
    #[default]
    Fine,
    /// Every second one above 128 bytes: fewer slabs that are filled in part, up to one part in five lost to rounding.
    Coarse,
}

/// A single-threaded heap over a page source of its own: see the [module](self) and the crate's example.
///
/// It is `!Sync` and `!Send`: wrap it in a lock, or make one for each thread, to use it from several.
#[derive(Debug)]
pub struct PrivateHeap<S: PageSource, O: Observer = ()> {
    state: NonNull<State<S, O>>,
}

#[derive(Debug)]
struct State<S: PageSource, O: Observer> {
    domain: Domain<S, Local, O>,
    heap: UnsafeCell<Heap<S, Local, O>>,
    lists: Lists,
    /// Or-ed to the number of a class above 128 bytes.
    coarse: Cell<usize>,
    pages: Option<Extent>,
}

impl<S: PageSource> PrivateHeap<S> {
    /// A heap over `source` with arenas that start at one segment and no purging by age.
    ///
    /// # Errors
    /// The source has no page for the heap itself.
    pub fn new_in(source: S) -> Result<Self, SourceError> {
        Self::with_policy(source, Policy { growth: Growth::SMALL, ..Policy::DEFAULT }, ())
    }
}

impl<S: PageSource, O: Observer> PrivateHeap<S, O> {
    /// A heap over `source` with a policy and an observer.
    ///
    /// # Errors
    /// The source has no page for the heap itself.
    pub fn with_policy(source: S, policy: Policy, observer: O) -> Result<Self, SourceError> {
        let bytes = size_of::<State<S, O>>().next_multiple_of(source.page_size());
        let pages = source.acquire(bytes as u64, source.page_size() as u64)?;
        let state: NonNull<State<S, O>> =
            NonNull::new(pages.as_ptr().cast()).ok_or(SourceError::Unsupported)?;
        // SAFETY: the pages are ours, committed, large enough, and aligned to a page; the heap lives beside its domain.
        unsafe {
            let domain = Domain::new(source, policy, observer);
            state.write(State {
                domain,
                heap: UnsafeCell::new(Heap::new(&raw const (*state.as_ptr()).domain, MAX_HEAP_ID, 0)),
                lists: Lists::new(),
                coarse: Cell::new(0),
                pages: Some(pages),
            });
            let state = state.as_ref();
            (*state.heap.get()).attach(&state.lists, 0);
        }
        #[cfg(feature = "valgrind")]
        crate::memcheck::heap_made(state.as_ptr().addr());
        Ok(Self { state })
    }

    /// Chooses which classes the heap uses. Call it before the first allocation.
    ///
    /// # Panics
    /// If the heap has handed out memory already.
    #[must_use]
    pub fn with_classes(self, classes: Classes) -> Self {
        assert_eq!(self.domain().counters.arenas.get(), 0, "classes are chosen before the first allocation");
        self.state().coarse.set((classes == Classes::Coarse) as usize);
        self
    }

    fn state(&self) -> &State<S, O> {
        // SAFETY: the state lives as long as the heap.
        unsafe { self.state.as_ref() }
    }

    #[expect(
        clippy::mut_from_ref,
        reason = "the heap is single-threaded and no reference leaves a method of this type"
    )]
    fn heap(&self) -> &mut Heap<S, Local, O> {
        // SAFETY: the type is neither Send nor Sync, and its methods do not call each other while one holds this.
        unsafe { &mut *self.state().heap.get() }
    }

    /// The class that serves `bytes` at `align`, if it is a small request.
    #[inline(always)]
    fn class_for(&self, bytes: usize, align: usize) -> Option<usize> {
        let rounded = bytes.max(1).checked_next_multiple_of(align)?;
        if rounded > MAX_SMALL || align > SLICE_BYTES {
            return None;
        }
        let class = size_class::class_of_dynamic(rounded);
        // The upper class of each pair is the odd one, and a multiple of the step of half as many classes.
        Some(if class < FIRST_PAIRED { class } else { class | self.state().coarse.get() })
    }

    /// A block of `bytes` at a multiple of `align`, a power of two; `None` when memory is out. An `align` that is no power of two
    /// is a mistake of the caller's: the block may lie anywhere, or the call panic.
    #[inline]
    pub fn alloc(&self, bytes: usize, align: usize) -> Option<NonNull<u8>> {
        #[cfg(feature = "valgrind")]
        return self.told(bytes, align, false);
        #[cfg(not(feature = "valgrind"))]
        self.plain_alloc(bytes, align)
    }

    #[inline(always)]
    fn plain_alloc(&self, bytes: usize, align: usize) -> Option<NonNull<u8>> {
        self.alloc_zero(bytes, align, true).map(|(block, _)| block)
    }

    /// The same, and whether the block reads as zero beyond its first word.
    fn alloc_zero(&self, bytes: usize, align: usize, dense: bool) -> Option<(NonNull<u8>, bool)> {
        let state = self.state();
        let (block, zero) = match self.class_for(bytes, align) {
            Some(class) => {
                // SAFETY: the class is a class.
                let block = unsafe { state.lists.pop(class) };
                if block.is_null() {
                    self.heap().alloc_miss_zero(&state.lists, class)
                } else {
                    (block, false)
                }
            }
            None => self.heap().alloc_large(&state.lists, bytes, align, dense),
        };
        NonNull::new(block).map(|block| (block, zero))
    }

    /// The same, filled with zeros. Memory that is fresh from the source is not filled again.
    pub fn alloc_zeroed(&self, bytes: usize, align: usize) -> Option<NonNull<u8>> {
        #[cfg(feature = "valgrind")]
        return self.told(bytes, align, true);
        #[cfg(not(feature = "valgrind"))]
        self.plain_zeroed(bytes, align)
    }

    #[inline(always)]
    fn plain_zeroed(&self, bytes: usize, align: usize) -> Option<NonNull<u8>> {
        let (block, zero) = self.alloc_zero(bytes, align, false)?;
        let dirty = if zero { bytes.min(size_of::<usize>()) } else { bytes };
        // SAFETY: the block has `bytes` bytes.
        unsafe { block.write_bytes(0, dirty) };
        Some(block)
    }

    /// Frees a block.
    ///
    /// # Safety
    /// The block came from this heap with the same `bytes` and `align`, and is not used any more.
    #[inline]
    pub unsafe fn free(&self, block: NonNull<u8>, bytes: usize, align: usize) {
        #[cfg(feature = "valgrind")]
        let (_quiet, bytes) = self.told_back(block, bytes);
        // SAFETY: the caller's promise.
        unsafe { self.plain_free(block, bytes, align) };
    }

    #[inline(always)]
    unsafe fn plain_free(&self, block: NonNull<u8>, bytes: usize, align: usize) {
        let lists = &self.state().lists;
        // SAFETY: the caller's promise.
        unsafe {
            match self.class_for(bytes, align) {
                Some(class) => {
                    if !lists.push(block.as_ptr(), class, crate::segment::home(block.as_ptr())) {
                        self.heap().free_miss(lists, block.as_ptr(), class);
                    }
                }
                None => self.heap().free_large(lists, block.as_ptr()),
            }
        }
    }

    /// Changes the length of a block to `new_bytes`, moving it if it must; `None` when memory is out, and then the block is
    /// as before.
    ///
    /// # Safety
    /// As for [`free`](Self::free).
    pub unsafe fn realloc(
        &self,
        block: NonNull<u8>,
        bytes: usize,
        align: usize,
        new_bytes: usize,
    ) -> Option<NonNull<u8>> {
        // Under memcheck a block always moves: what pointed to the old one is wrong from now on, and is found.
        #[cfg(not(feature = "valgrind"))]
        // SAFETY: the caller's promise.
        if let Some(outcome) = unsafe { self.resize_in_place(block, bytes, align, new_bytes) } {
            return Some(outcome);
        }
        // SAFETY: the caller's promise; the blocks do not overlap, as both are live.
        unsafe {
            let moved = self.alloc(new_bytes, align)?;
            moved.copy_from_nonoverlapping(block, bytes.min(new_bytes));
            self.free(block, bytes, align);
            Some(moved)
        }
    }

    /// Changes the length of a block without copying it, if that can be done; where it is then.
    #[cfg(not(feature = "valgrind"))]
    unsafe fn resize_in_place(
        &self,
        block: NonNull<u8>,
        bytes: usize,
        align: usize,
        new_bytes: usize,
    ) -> Option<NonNull<u8>> {
        let (old, new) = (self.class_for(bytes, align), self.class_for(new_bytes, align));
        // SAFETY: the caller's promise.
        unsafe {
            match (old, new) {
                (Some(old), Some(new)) if old == new => Some(block),
                (None, None) if new_bytes > bytes => {
                    let lists = &self.state().lists;
                    let grown = self.heap().grow_large(lists, block.as_ptr(), new_bytes, align)?;
                    NonNull::new(grown)
                }
                (None, None) if new_bytes >= bytes / 2 => {
                    self.heap().shrink_large(block.as_ptr(), new_bytes);
                    Some(block)
                }
                _ => None,
            }
        }
    }

    /// Blocks of `class` that wait in the heap's list, and aside for it, to be handed out again. Linear in the answer.
    pub fn listed(&self, class: usize) -> usize {
        self.state().lists.len(class) + self.heap().aside(class)
    }

    /// Free blocks of `class` that should wait in the heap's lists at most, at present.
    pub fn depth(&self, class: usize) -> u32 {
        self.heap().depth(class)
    }

    /// Bytes that should wait in the lists of all classes in use at most, at present.
    pub fn depth_bytes(&self) -> u64 {
        self.heap().depth_bytes()
    }

    /// Lets go of what has been held unused since the last tick, as an allocation does from time to time; `now` is by the clock
    /// of the heap's policy.
    pub fn tick(&self, now: u64) {
        self.heap().tick(&self.state().lists, now);
    }

    /// Returns every free block to its slab, and all free memory to the source.
    pub fn release_free_memory(&self) {
        #[cfg(feature = "valgrind")]
        let _quiet = crate::memcheck::Quiet::new();
        self.heap().release_caches(&self.state().lists);
    }

    /// Checks the heap from end to end: every arena, slab, list and sum.
    ///
    /// # Errors
    /// The first promise of a tier that does not hold: a block was freed twice or written to after it was freed, or there is
    /// a mistake in this crate.
    pub fn verify(&self) -> Result<VerifyReport, VerifyError> {
        let state = self.state();
        // SAFETY: no method of this type holds the heap while the caller runs; it is the only heap of its domain, and nobody
        // else uses either.
        unsafe {
            let heap: &Heap<S, Local, O> = &*state.heap.get();
            state.domain.verify_quiet(|| core::iter::once((heap, Some(&state.lists))))
        }
    }

    /// What the heap counted.
    pub fn counters(&self) -> &crate::stats::HeapCounters {
        // SAFETY: counters are atomics; no method of this type holds the heap while the caller runs.
        unsafe { (*self.state().heap.get()).counters() }
    }

    /// The domain of the heap.
    pub fn domain(&self) -> &Domain<S, Local, O> {
        &self.state().domain
    }
}

/// What memcheck is told of the heap's blocks.
#[cfg(feature = "valgrind")]
impl<S: PageSource, O: Observer> PrivateHeap<S, O> {
    fn owner(&self) -> crate::memcheck::Owner {
        crate::memcheck::Owner::Heap(self.state.as_ptr().addr())
    }

    fn told(&self, bytes: usize, align: usize, zeroed: bool) -> Option<NonNull<u8>> {
        use crate::memcheck::{Quiet, handed_out, padded};
        let _quiet = Quiet::new();
        let padded = padded(bytes);
        let block = if zeroed { self.plain_zeroed(padded, align)? } else { self.plain_alloc(padded, align)? };
        // SAFETY: the block is live, and has `padded` bytes; lengths of classes and of large blocks are multiples of 8.
        unsafe {
            let usable = match self.class_for(padded, align) {
                Some(class) => size_class::class(class).block_bytes as usize,
                None => self.heap().usable_large(block.as_ptr()),
            };
            handed_out(self.owner(), block.as_ptr(), bytes, usable, zeroed);
        }
        Some(block)
    }

    /// Silence while the block is freed, and its length with the red zone.
    fn told_back(&self, block: NonNull<u8>, bytes: usize) -> (crate::memcheck::Quiet, usize) {
        crate::memcheck::given_back(self.owner(), block.as_ptr());
        (crate::memcheck::Quiet::new(), crate::memcheck::padded(bytes))
    }
}

impl<S: PageSource, O: Observer> Drop for PrivateHeap<S, O> {
    fn drop(&mut self) {
        #[cfg(feature = "valgrind")]
        let _quiet = {
            crate::memcheck::heap_dropped(self.state.as_ptr().addr());
            crate::memcheck::Quiet::new()
        };
        // SAFETY: the state is read out once; no block of the heap is used any more, as its owner promised by giving blocks
        // out with its own lifetime.
        unsafe {
            let State { mut domain, pages, .. } = self.state.read();
            domain.destroy();
            if let Some(pages) = pages {
                // Pages that the source does not take back stay reserved.
                let _ = domain.source().release(pages);
            }
        }
    }
}
