//! Allocation and its relatives: the hit path inlined, everything else behind one cold call.

use crate::process::{abort_on_misuse, domain};
use crate::thread::with_heap;
use crate::tls::with_lists;
use core::ptr;
use terrane_slab::segment::{self, Kind, SEGMENT_BYTES, SLICE_BYTES, Segment};
use terrane_slab::segment_map::{self, Place};
use terrane_slab::size_class::{self, MAX_SMALL};
use terrane_slab::{Misuse, slab::Slab};

/// `bytes` rounded up to a multiple of `align`, so that the block of its class is aligned; at most `MAX_SMALL` for small ones.
#[inline(always)]
const fn small_size(bytes: usize, align: usize) -> Option<usize> {
    let bytes = if bytes == 0 { 1 } else { bytes };
    // Requests near the end of the address space wrap around to 0 here, and are no small request.
    let rounded = bytes.wrapping_add(align - 1) & !(align - 1);
    if rounded.wrapping_sub(1) < MAX_SMALL && align <= SLICE_BYTES { Some(rounded) } else { None }
}

/// A block of `bytes` at a multiple of `align`; null when memory is out.
///
/// With constant arguments and the list not empty this is six instructions, as `terrane-golden` counts them.
///
/// # Safety
/// `align` is a power of two.
#[inline(always)]
pub unsafe fn alloc(bytes: usize, align: usize) -> *mut u8 {
    match small_size(bytes, align) {
        Some(rounded) => {
            let class = size_class::class_of_dynamic(rounded);
            // SAFETY: the class is a class.
            let block = with_lists(|lists| unsafe { lists.pop(class) });
            if block.is_null() { alloc_miss(class) } else { block }
        }
        None => alloc_large(bytes, align),
    }
}

#[cold]
#[inline(never)]
fn alloc_miss(class: usize) -> *mut u8 {
    with_heap(|heap, lists| heap.alloc_miss(lists, class)).unwrap_or(ptr::null_mut())
}

#[inline(never)]
fn alloc_large(bytes: usize, align: usize) -> *mut u8 {
    if align <= SLICE_BYTES {
        let block = with_lists(|lists| lists.pop_large(bytes, align));
        if !block.is_null() {
            return block;
        }
    }
    alloc_large_miss(bytes, align)
}

#[cold]
#[inline(never)]
fn alloc_large_miss(bytes: usize, align: usize) -> *mut u8 {
    if bytes > isize::MAX as usize {
        return ptr::null_mut();
    }
    with_heap(|heap, lists| heap.alloc_large(lists, bytes, align, true).0).unwrap_or(ptr::null_mut())
}

/// The same, filled with zeros. Memory that is fresh from the system is not filled again.
///
/// # Safety
/// `align` is a power of two.
#[inline(always)]
pub unsafe fn alloc_zeroed(bytes: usize, align: usize) -> *mut u8 {
    match small_size(bytes, align) {
        Some(rounded) if rounded <= ZERO_TRACKED_FROM => {
            // SAFETY: the caller's promise.
            let block = unsafe { alloc(bytes, align) };
            if !block.is_null() {
                // SAFETY: the block has `bytes` bytes.
                unsafe { block.write_bytes(0, bytes) };
            }
            block
        }
        _ => alloc_zeroed_tracked(bytes, align),
    }
}

/// Small blocks above this length are looked up for being zero already.
const ZERO_TRACKED_FROM: usize = 1024;

#[inline(never)]
fn alloc_zeroed_tracked(bytes: usize, align: usize) -> *mut u8 {
    if bytes > isize::MAX as usize {
        return ptr::null_mut();
    }
    let (block, zero) = match small_size(bytes, align) {
        Some(rounded) => {
            let class = size_class::class_of_dynamic(rounded);
            // SAFETY: the class is a class.
            let block = with_lists(|lists| unsafe { lists.pop(class) });
            if block.is_null() {
                with_heap(|heap, lists| heap.alloc_miss_zero(lists, class))
                    .unwrap_or((ptr::null_mut(), false))
            } else {
                (block, false)
            }
        }
        None => with_heap(|heap, lists| heap.alloc_large(lists, bytes, align, false))
            .unwrap_or((ptr::null_mut(), false)),
    };
    if !block.is_null() {
        // The first word of a block that was never used may hold a link.
        let dirty = if zero { bytes.min(size_of::<usize>()) } else { bytes };
        // SAFETY: the block has `bytes` bytes.
        unsafe { block.write_bytes(0, dirty) };
    }
    block
}

/// Frees a block whose length and alignment are known: no metadata is read but the slab's home.
///
/// With constant arguments, the slab at home and room in the list, this is thirteen instructions, as `terrane-golden` counts them.
///
/// # Safety
/// The block came from this allocator with the same `bytes` and `align`, and is not used any more.
#[inline(always)]
pub unsafe fn free_sized(block: *mut u8, bytes: usize, align: usize) {
    match small_size(bytes, align) {
        Some(rounded) => {
            let class = size_class::class_of_dynamic(rounded);
            if cfg!(debug_assertions) {
                // SAFETY: the caller's promise, as far as it goes: the look is for the case that it is broken.
                unsafe { check_class(block, class) };
            }
            // SAFETY: the caller's promise.
            unsafe {
                if !with_lists(|lists| lists.push(block, class, segment::home(block))) {
                    free_miss(block, class);
                }
            }
        }
        // SAFETY: the caller's promise.
        None => unsafe { free_large_sized(block, bytes) },
    }
}

#[inline(never)]
unsafe fn free_large_sized(block: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise.
    if !with_lists(|lists| unsafe { lists.push_large(block, bytes) }) {
        // SAFETY: the same.
        unsafe { free_large(block) };
    }
}

/// Aborts if `block` is not one of `class`.
unsafe fn check_class(block: *mut u8, class: usize) {
    if segment_map::place(block.addr()) != Place::Head {
        abort_on_misuse(Misuse::NotABlock, block.addr());
    }
    // SAFETY: the map says that the address lies in a live segment; a small block lies behind its header.
    match unsafe { segment::entry(block) }.class() {
        Some(found) if found == class => {}
        Some(_) => abort_on_misuse(Misuse::SizeMismatch, block.addr()),
        None => abort_on_misuse(Misuse::DoubleFree, block.addr()),
    }
}

#[cold]
#[inline(never)]
unsafe fn free_miss(block: *mut u8, class: usize) {
    // SAFETY: the caller's promise. Without memory for a heap there is no block to free.
    with_heap(|heap, lists| unsafe { heap.free_miss(lists, block, class) });
}

#[cold]
#[inline(never)]
unsafe fn free_large(block: *mut u8) {
    // SAFETY: the caller's promise.
    with_heap(|heap, lists| unsafe { heap.free_large(lists, block) });
}

/// What the map and the metadata say of the block at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockKind {
    /// A small block of this class.
    Small(usize),
    /// A large or huge block.
    Large,
}

/// What lies at `block`: a small block of some class, or the start of a large or huge one. Whether the address is the start of the
/// small block that it lies in is not looked at, nor whether that block is free.
///
/// # Errors
/// [`Misuse::NotABlock`] if the address is foreign or inside a huge block, [`Misuse::DoubleFree`] if no slab and no start of a large
/// block is there.
///
/// # Safety
/// Any address will do, but if it lies in memory of a private heap, that heap is not dropped meanwhile: the map tells whether the
/// metadata of an address can be read, and not for how long.
#[inline]
pub unsafe fn look_up(block: *mut u8) -> Result<BlockKind, Misuse> {
    let address = block.addr();
    if segment_map::place(address) == Place::Head
        && address % SEGMENT_BYTES >= segment::HEADER_SLICES * SLICE_BYTES
    {
        // SAFETY: the map says that the address lies in a live segment, and it lies behind the header.
        let entry = unsafe { segment::entry(block) };
        match entry.class() {
            Some(class) => return Ok(BlockKind::Small(class)),
            None if entry.is_large_at(address) => return Ok(BlockKind::Large),
            None => {}
        }
    }
    // SAFETY: the caller's promise.
    unsafe { look_up_rare(block) }
}

#[cold]
unsafe fn look_up_rare(block: *mut u8) -> Result<BlockKind, Misuse> {
    // A block whose alignment is a segment or more starts where the first segment of its span ends.
    let header = segment_map::header_of(block.addr().wrapping_sub(1)).ok_or(Misuse::NotABlock)?;
    let header = block.map_addr(|_| header).cast::<Segment>();
    // SAFETY: the map says that a live segment starts there.
    let header = unsafe { &*header };
    match header.kind() {
        Kind::Huge if header.is_live_huge(block) => Ok(BlockKind::Large),
        Kind::Huge => Err(Misuse::NotABlock),
        Kind::Slices => Err(Misuse::DoubleFree),
    }
}

/// Frees a block of unknown length. Null is ignored. An address that is foreign, or no start of a large or huge block that is live,
/// aborts with one line, and so does a small block that was the last one freed. An address inside a small block does so in debug
/// builds, and otherwise if the thread's list does not take it.
///
/// # Safety
/// The block is null, or came from this allocator and is not used any more.
#[inline]
pub unsafe fn free(block: *mut u8) {
    if segment_map::place(block.addr()) == Place::Head && !block.addr().is_multiple_of(SEGMENT_BYTES) {
        // SAFETY: the map says that the address lies in a live segment. An address inside the header, which no block has,
        // reads an entry that no small block has.
        let entry = unsafe { segment::entry(block) };
        if let Some(class) = entry.class() {
            // SAFETY: the caller's promise.
            unsafe {
                if cfg!(debug_assertions) && block_start(block, class) != block {
                    abort_on_misuse(Misuse::NotABlock, block.addr());
                }
                let kept = with_lists(|lists| {
                    !lists.is_last_freed(block, class) && lists.push(block, class, entry.home())
                });
                if !kept {
                    free_miss_checked(block, class);
                }
            }
            return;
        }
    }
    // SAFETY: the caller's promise.
    unsafe { free_unknown(block) };
}

/// Frees on the miss path, after a look whether the address is the start of a block at all.
#[cold]
#[inline(never)]
unsafe fn free_miss_checked(block: *mut u8, class: usize) {
    // SAFETY: the entry named a class, so a slab is there.
    if unsafe { block_start(block, class) } != block {
        abort_on_misuse(Misuse::NotABlock, block.addr());
    }
    // SAFETY: the class is a class.
    if with_lists(|lists| unsafe { lists.is_last_freed(block, class) }) {
        abort_on_misuse(Misuse::DoubleFree, block.addr());
    }
    // SAFETY: the caller's promise.
    unsafe { free_miss(block, class) };
}

#[cold]
#[inline(never)]
unsafe fn free_unknown(block: *mut u8) {
    if block.is_null() {
        return;
    }
    // SAFETY: a block that is not freed yet keeps its heap.
    match unsafe { look_up(block) } {
        // SAFETY: the caller's promise.
        Ok(BlockKind::Small(class)) => unsafe { free_miss_checked(block, class) },
        // SAFETY: the caller's promise.
        Ok(BlockKind::Large) => unsafe { free_large(block) },
        Err(misuse) => abort_on_misuse(misuse, block.addr()),
    }
}

/// The start of the small block of `class` that `address` lies in.
unsafe fn block_start(address: *mut u8, class: usize) -> *mut u8 {
    // SAFETY: the caller says that a slab of `class` is there.
    unsafe {
        let head = segment::entry(address).head();
        let slab: *mut Slab = (*Segment::containing(address)).slab(head);
        let start = (*slab).start();
        let offset = address.addr() - start.addr();
        let bytes = size_class::class(class).block_bytes as usize;
        start.add(offset / bytes * bytes)
    }
}

/// Bytes that the program may use of a block: at least what it asked for. 0 for null; misuse that [`look_up`] notices aborts with one
/// line.
///
/// # Safety
/// The block is live and came from this allocator, or is null.
pub unsafe fn usable_size(block: *mut u8) -> usize {
    if block.is_null() {
        return 0;
    }
    // SAFETY: a live block keeps its heap.
    match unsafe { look_up(block) } {
        Ok(BlockKind::Small(class)) => size_class::class(class).block_bytes as usize,
        // SAFETY: the caller's promise.
        Ok(BlockKind::Large) => with_heap(|heap, _| unsafe { heap.usable_large(block) }).unwrap_or(0),
        Err(misuse) => abort_on_misuse(misuse, block.addr()),
    }
}

/// Changes the length of a block, moving it if it must; null when memory is out, and then the block is as before.
///
/// A block that stays in its class stays where it is. Large blocks grow in place or by moving their pages.
///
/// # Safety
/// As for [`free_sized`], with `old_bytes` and `align`.
#[inline]
pub unsafe fn realloc_sized(block: *mut u8, old_bytes: usize, align: usize, bytes: usize) -> *mut u8 {
    match (small_size(old_bytes, align), small_size(bytes, align)) {
        (Some(old), Some(new)) if size_class::class_of_dynamic(old) == size_class::class_of_dynamic(new) => {
            block
        }
        (None, None) => {
            // SAFETY: the caller's promise.
            unsafe { realloc_large(block, old_bytes, align, bytes) }
        }
        // SAFETY: the caller's promise.
        _ => unsafe { realloc_by_copy(block, old_bytes, align, bytes) },
    }
}

#[inline(never)]
unsafe fn realloc_large(block: *mut u8, old_bytes: usize, align: usize, bytes: usize) -> *mut u8 {
    if bytes > isize::MAX as usize {
        return ptr::null_mut();
    }
    // SAFETY: the caller's promise.
    let usable = with_heap(|heap, _| unsafe { heap.usable_large(block) }).unwrap_or(0);
    if bytes <= usable && bytes >= usable / 2 {
        return block;
    }
    if bytes > usable {
        // SAFETY: the caller's promise.
        let grown = with_heap(|heap, lists| unsafe { heap.grow_large(lists, block, bytes, align) });
        if let Some(Some(grown)) = grown {
            return grown;
        }
    } else {
        // SAFETY: the caller's promise.
        with_heap(|heap, _| unsafe { heap.shrink_large(block, bytes) });
        // SAFETY: the caller's promise.
        if with_heap(|heap, _| unsafe { heap.usable_large(block) }).unwrap_or(0) < bytes.saturating_mul(2) {
            return block;
        }
    }
    // SAFETY: the caller's promise; the new block does not overlap the old, which is live. The old block is large whatever its
    // length and `align` say: a block of few bytes whose alignment was great is large too.
    unsafe {
        let moved = alloc(bytes, align);
        if !moved.is_null() {
            moved.copy_from_nonoverlapping(block, old_bytes.min(bytes));
            free_large(block);
        }
        moved
    }
}

unsafe fn realloc_by_copy(block: *mut u8, old_bytes: usize, align: usize, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the new block does not overlap the old, which is live.
    unsafe {
        let moved = alloc(bytes, align);
        if !moved.is_null() {
            moved.copy_from_nonoverlapping(block, old_bytes.min(bytes));
            free_sized(block, old_bytes, align);
        }
        moved
    }
}

/// Changes the length of a block of unknown length, as C's `realloc` does for a block that is not null and a length that is not
/// 0. The new block is aligned to `align`. Null when memory is out, and then the block is as before; misuse that [`look_up`] notices
/// aborts with one line.
///
/// # Safety
/// The block is live and came from this allocator; `align` is a power of two.
#[inline]
pub unsafe fn realloc(block: *mut u8, bytes: usize, align: usize) -> *mut u8 {
    // SAFETY: a live block keeps its heap.
    match unsafe { look_up(block) } {
        Ok(BlockKind::Small(class)) => {
            let have = size_class::class(class).block_bytes as usize;
            if bytes <= have && bytes > have / 2 && block.addr().is_multiple_of(align) {
                return block;
            }
            // SAFETY: the caller's promise; the new block does not overlap the old, which is live.
            unsafe {
                let moved = alloc(bytes, align);
                if !moved.is_null() {
                    moved.copy_from_nonoverlapping(block, have.min(bytes));
                    free(block);
                }
                moved
            }
        }
        Ok(BlockKind::Large) => {
            // SAFETY: the caller's promise.
            unsafe {
                let have = usable_size(block);
                if small_size(bytes, align).is_none() {
                    return realloc_large(block, have, align, bytes);
                }
                let moved = alloc(bytes, align);
                if !moved.is_null() {
                    moved.copy_from_nonoverlapping(block, have.min(bytes));
                    free_large(block);
                }
                moved
            }
        }
        Err(misuse) => abort_on_misuse(misuse, block.addr()),
    }
}

/// Returns the blocks that wait in the calling thread's lists to their slabs, and gives up slabs that are empty.
pub fn collect() {
    with_heap(|heap, lists| heap.collect(lists));
}

/// Gives back all memory that is free, as far as the calling thread can see: its own lists and caches, and the free memory
/// of the process's domain. What waits in other threads' lists and caches stays. Bytes given back to the system meanwhile, by other
/// threads too.
pub fn purge() -> usize {
    let before = domain().counters.purged.get();
    with_heap(|heap, lists| heap.release_caches(lists));
    (domain().counters.purged.get() - before) as usize
}

/// Gives back what has not been needed for a while. For idle loops of programs that want their memory to fall while they wait.
pub fn tick() {
    let now = crate::process::milliseconds();
    with_heap(|heap, lists| heap.tick(lists, now));
}
