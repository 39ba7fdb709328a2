//! Large and huge blocks of a heap: which of the two, and growing without copying.
//!
//! Invariant: every large or huge block is found from its address alone, through [`header_of`].

use super::*;
use crate::colour;
use crate::large::Place;

impl<S: PageSource, K: Sharing, O: Observer> Heap<S, K, O> {
    /// A block of `bytes`, more than [`size_class::MAX_SMALL`] or with an alignment above it; null when memory is out. The
    /// second answer is whether the block reads as zero. `dense` says that all of a huge block is expected to be used.
    #[inline]
    pub fn alloc_large(&mut self, lists: &Lists, bytes: usize, align: usize, dense: bool) -> (*mut u8, bool) {
        if align <= SLICE_BYTES {
            let block = lists.pop_large(bytes, align);
            if !block.is_null() {
                return (block, false);
            }
        }
        self.alloc_large_miss(lists, bytes, align, dense)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn alloc_large_miss(
        &mut self,
        lists: &Lists,
        bytes: usize,
        align: usize,
        dense: bool,
    ) -> (*mut u8, bool) {
        self.follow_thread(lists);
        let bytes = bytes.max(1);
        let place = Place::Anywhere(bytes, align);
        let first = self.alloc_large_fresh(bytes, align, place, 0, dense);
        if !first.0.is_null() || bytes > MAX_HUGE {
            return first;
        }
        self.release_caches(lists);
        self.alloc_large_fresh(bytes, align, place, 0, dense)
    }

    pub(super) fn alloc_large_fresh(
        &mut self,
        bytes: usize,
        align: usize,
        place: Place,
        spare: usize,
        dense: bool,
    ) -> (*mut u8, bool) {
        let align_slices = align.div_ceil(SLICE_BYTES);
        let reach = place.reach(bytes);
        if reach <= large::MAX_LARGE_BYTES && align_slices <= large::MAX_LARGE_SLICES / 2 {
            let slices = large::slices_for(reach);
            // SAFETY: a heap never outlives its domain.
            let domain = unsafe { &*self.domain };
            let taken = large::alloc_fresh(domain, slices, align_slices, place, self.node, &mut self.segment);
            let Some(taken) = taken else { return (ptr::null_mut(), false) };
            self.counters.large_taken.add(1);
            self.counters.large_bytes_taken.add((slices * SLICE_BYTES) as u64);
            return taken;
        }
        match self.domain().huge_alloc(bytes, align, place, spare, dense, self.node) {
            Ok((block, zero)) => (block.as_ptr(), zero),
            Err(_) => (ptr::null_mut(), false),
        }
    }

    /// Frees a large or huge block.
    ///
    /// # Safety
    /// The block is one of this domain, is not small, and is not used any more.
    #[inline]
    pub unsafe fn free_large(&mut self, lists: &Lists, block: *mut u8) {
        let segment = header_of(block);
        self.domain().check_owns(segment, block);
        // SAFETY: the segment is one of this domain.
        unsafe {
            if (*segment).kind() == Kind::Huge {
                if (*segment).huge_block() != block || !self.domain().huge_free(&*segment) {
                    self.misuse(Misuse::DoubleFree, block.addr());
                }
            } else {
                let domain = &*self.domain;
                let near = self.is_near(segment);
                match large::free(domain, &mut self.large, &lists.large, block, near) {
                    Some(0) => {}
                    Some(bytes) => {
                        self.counters.large_given.add(1);
                        self.counters.large_bytes_given.add(bytes as u64);
                    }
                    None => self.misuse(Misuse::DoubleFree, block.addr()),
                }
            }
        }
        self.look_at_clock(lists);
    }

    /// Makes a large or huge block at least `bytes` long without copying, where it stands or by moving its pages; where it is
    /// then, or `None` if the caller must copy. `align` is the alignment that a moved block must have.
    ///
    /// # Safety
    /// The block is a live large or huge block of this domain, and the caller's.
    pub unsafe fn grow_large(
        &mut self,
        lists: &Lists,
        block: *mut u8,
        bytes: usize,
        align: usize,
    ) -> Option<*mut u8> {
        if bytes > MAX_HUGE {
            return None;
        }
        let segment = header_of(block);
        let start = colour::strip(block);
        let colour = block.addr() - start.addr();
        // SAFETY: the segment and the block are live.
        unsafe {
            let old = if (*segment).kind() == Kind::Huge {
                if self.domain().huge_grow(&*segment, bytes) {
                    return Some(block);
                }
                (*segment).huge_committed()
            } else {
                let metadata = large::metadata_of(block)?;
                let run = large::run_of(metadata);
                let old = run.len * SLICE_BYTES;
                let reach = bytes + colour;
                if reach <= old {
                    return Some(block);
                }
                if reach <= large::MAX_LARGE_BYTES {
                    let wanted = large::slices_for(reach);
                    if self.domain().extend_run(&run, wanted - run.len) {
                        (*metadata).local(|local| local.slices = wanted as u16);
                        self.counters.large_bytes_taken.add(((wanted - run.len) * SLICE_BYTES) as u64);
                        self.domain().counters.grown_in_place.add_shared::<K>(1);
                        return Some(block);
                    }
                }
                old
            };
            let page = self.domain().source.page_size();
            // Pages that move stay on their node; a copy is near to the thread.
            if !self.is_near(segment) {
                return None;
            }
            let whole_pages = old.is_multiple_of(page) && start.addr().is_multiple_of(page);
            if old < REMAP_FROM || !whole_pages || !colour.is_multiple_of(align) {
                return None;
            }
            // Pages move as they are, so the block keeps its colour.
            let (new, _) = self.alloc_large_fresh(bytes, align, Place::At(colour), bytes / 2, true);
            let (to, from) = (NonNull::new(colour::strip(new))?, NonNull::new(start)?);
            let len = self.usable_large(new) + colour;
            if !len.is_multiple_of(page) || !to.addr().get().is_multiple_of(page) {
                self.free_large(lists, new);
                return None;
            }
            if self.domain().source.remap(from, old, to, len).is_err() {
                self.free_large(lists, new);
                return None;
            }
            if self.domain().nodes() > 1 {
                // What is left behind is a fresh mapping, which no node was asked for.
                self.domain().prefer(from, old, (*segment).node);
            }
            self.domain().counters.remapped.add_shared::<K>(1);
            self.free_moved(lists, block);
            Some(new)
        }
    }

    /// Frees a block whose pages were moved away: it holds no memory, so it is not kept for reuse as if it did.
    pub(super) unsafe fn free_moved(&mut self, lists: &Lists, block: *mut u8) {
        let segment = header_of(block);
        // SAFETY: the block is live; its range is decommitted and must be committed again before it is reused.
        unsafe {
            if (*segment).kind() == Kind::Slices
                && let Some(metadata) = large::metadata_of(block)
            {
                let run = large::run_of(metadata);
                let bytes = run.len * SLICE_BYTES;
                (*segment).set_entries(run.index, 1, 0, 0);
                if self.domain().source.geometry().zeroed {
                    crate::bitmap::clear::<K>(&(*segment).dirty, run.index, run.len);
                }
                self.counters.large_given.add(1);
                self.counters.large_bytes_given.add(bytes as u64);
                self.domain().give_run(run);
            } else {
                self.domain().huge_moved(&*segment);
                let _ = lists;
            }
        }
    }

    /// Shrinks a live huge block, or does nothing to a large one.
    ///
    /// # Safety
    /// The block is a live large or huge block of this domain, and the caller's.
    pub unsafe fn shrink_large(&mut self, block: *mut u8, bytes: usize) {
        let segment = header_of(block);
        // SAFETY: the segment is live.
        unsafe {
            if (*segment).kind() == Kind::Huge {
                self.domain().huge_shrink(&*segment, bytes);
            }
        }
    }

    /// Bytes that the program may use of a live large or huge block.
    ///
    /// # Safety
    /// The block is a live large or huge block of this domain.
    pub unsafe fn usable_large(&self, block: *mut u8) -> usize {
        let segment = header_of(block);
        // SAFETY: the segment and the block are live.
        unsafe {
            if (*segment).kind() == Kind::Huge {
                (*segment).huge_usable()
            } else {
                large::metadata_of(block).map_or(0, |metadata| {
                    large::run_of(metadata).len * SLICE_BYTES - block.addr() % SLICE_BYTES
                })
            }
        }
    }
}

/// Length from which pages are moved rather than copied.
const REMAP_FROM: usize = 256 * 1024;

/// The header that describes the large or huge block at `block`. A block never starts at the start of a segment with a
/// header: one that does is a huge block behind the first segment of its span.
#[inline]
pub(crate) fn header_of(block: *mut u8) -> *mut Segment {
    Segment::containing(block.wrapping_sub(1))
}
