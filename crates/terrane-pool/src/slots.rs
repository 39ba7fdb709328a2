//! Memory of a pool's objects: [`Slots`].
//!
//! Invariant: a slot of a chunk is *untouched* (at or above `fresh`), *vacant* (in the chunk's list), or holds a live object. A chunk
//! is in the list of chunks with room exactly if it has a slot that is untouched or vacant. A chunk without live objects is freed,
//! but for one that is kept while the pool has objects; so memory follows the objects down as well as up.
//!
//! ```text
//!   a multiple of ALIGN                                                           ALIGN = 2ⁿ ≥ the longest chunk
//!   │ owner, where objects begin │ list of vacant slots, counts │ group │ … │ object │ object │ …
//! ```
//!
//! Chunks are aligned to a power of two, so an object finds its pool in the head of its chunk instead of keeping the way back, and
//! none pays for an allocation of its own. The first chunk has room for half a KiB of objects, each further one for as many as all
//! before it together, up to `ALIGN`. Objects of more than 1.5 KiB have chunks of their own. A vacant slot holds the
//! number of the next.

use crate::group::{Constant, GROUPS, Group, LONGEST, Object, Shape, groups};
use core::alloc::Layout;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use std::alloc::{alloc, dealloc, handle_alloc_error};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Longest objects, in bytes, that share chunks.
const SHARED_MAX: usize = 1536;
/// Objects in the longest chunks, at least.
const OBJECTS: usize = 32;
/// Alignment of chunks, at least: between the heads, of which longer chunks have fewer, and the room that the last one is left with.
const LEAST_ALIGN: usize = 4096;
/// Objects of a greater alignment have chunks of their own.
const PAGE: usize = 4096;
/// Bytes of objects in a pool's first chunk.
const FIRST_BYTES: usize = 512;
/// What allocators may put before a block: chunks are so much shorter than `ALIGN` that one can follow another without a gap.
const BESIDE: usize = 16;
/// In place of a vacant slot's number: there is none.
const NONE: u16 = u16::MAX;

/// Head of a chunk.
#[repr(C)]
struct Chunk {
    constant: Constant,
    /// The chunks with room before and behind this one.
    before: *mut Chunk,
    behind: *mut Chunk,
    /// Slots that the chunk has, that were ever used, and that hold live objects.
    slots: u16,
    fresh: u16,
    live: u16,
    /// The vacant slot that is used next.
    vacant: u16,
}

const _: () = assert!(size_of::<Chunk>() <= GROUPS);

impl Chunk {
    const fn has_room(&self) -> bool {
        self.vacant != NONE || self.fresh < self.slots
    }
}

#[derive(Debug)]
struct Inner {
    /// Chunks with room; the first is used.
    roomy: *mut Chunk,
    /// Slots of all chunks.
    slots: usize,
    chunks: usize,
}

/// The objects of one pool, idle or not.
#[derive(Debug)]
pub struct Slots<T> {
    inner: Mutex<Inner>,
    objects: PhantomData<fn() -> T>,
}

// SAFETY: chunks are touched under the lock only, but for their constant part and their groups, which are shared.
unsafe impl<T> Send for Slots<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Slots<T> {}

const fn larger(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

impl<T> Slots<T> {
    /// From one object to the next: a vacant slot has room for a number, and objects without bytes lie apart.
    const STRIDE: usize = larger(size_of::<T>(), 2).next_multiple_of(align_of::<T>());
    const ALONE: bool = Self::STRIDE > SHARED_MAX || align_of::<T>() > PAGE;
    const ALIGN: usize = if Self::ALONE {
        larger(align_of::<T>(), larger(align_of::<Chunk>(), align_of::<Group>()))
    } else {
        larger((Self::bytes(OBJECTS) + BESIDE).next_power_of_two(), LEAST_ALIGN)
    };
    /// Slots of a chunk, at most.
    const MOST: usize = {
        let mut slots = 1;
        while !Self::ALONE && Self::bytes(slots + 1) + BESIDE <= Self::ALIGN {
            slots += 1;
        }
        slots
    };
    /// Slots of a pool's first chunk.
    const LEAST: usize = {
        let least = FIRST_BYTES.div_ceil(Self::STRIDE);
        if least < Self::MOST { least } else { Self::MOST }
    };
    /// How the objects lie in their chunks.
    pub const SHAPE: Shape = {
        assert!(Self::MOST < NONE as usize);
        if Self::ALONE {
            Shape::alone(Self::offset(1))
        } else {
            assert!(Self::ALIGN <= LONGEST);
            Shape::shared(Self::ALIGN, Self::STRIDE)
        }
    };

    /// Bytes from the beginning of a chunk of so many slots to its first object.
    const fn offset(slots: usize) -> usize {
        (GROUPS + slots.div_ceil(Group::SLOTS) * size_of::<Group>()).next_multiple_of(align_of::<T>())
    }

    /// Bytes of a chunk of so many slots.
    const fn bytes(slots: usize) -> usize {
        Self::offset(slots) + slots * Self::STRIDE
    }

    /// No objects.
    pub const fn new() -> Self {
        let inner = Inner { roomy: ptr::null_mut(), slots: 0, chunks: 0 };
        Self { inner: Mutex::new(inner), objects: PhantomData }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // No code of others runs under this lock, so a poisoned one is as good as any.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn layout(slots: usize) -> Layout {
        Layout::from_size_align(Self::bytes(slots), Self::ALIGN)
            .expect("a chunk is as long as one object, or as a few KiB")
    }

    /// Whose object it is: what [`make`](Self::make) was told.
    ///
    /// # Safety
    /// The object came from [`make`](Self::make) and has not ended.
    #[inline(always)]
    pub unsafe fn owner(object: NonNull<T>) -> NonNull<()> {
        // SAFETY: a chunk with a live object is there, and its owner never changes.
        unsafe { (&raw const (*Self::SHAPE.chunk(object.cast())).owner).read() }
    }

    /// A place for `object`, which belongs to `owner`.
    pub fn make(&self, object: T, owner: NonNull<()>) -> NonNull<T> {
        let place: NonNull<T> = {
            let mut inner = self.inner();
            if inner.roomy.is_null() {
                inner.grow::<T>(owner);
            }
            // SAFETY: the chunk is in the list, so it is there and has room; the lock is held.
            unsafe { inner.fill::<T>() }
        };
        // SAFETY: the slot is long and aligned enough for an object, and this call's.
        unsafe { place.write(object) };
        place
    }

    /// Takes the object out of its place, and ends the place.
    ///
    /// # Safety
    /// The object came from [`make`](Self::make) of these slots, has not ended, is the caller's, and is not used afterwards.
    pub unsafe fn end(&self, object: NonNull<T>) -> T {
        // SAFETY: the object is there and the caller's, who gives its place up.
        let taken = unsafe { object.read() };
        let mut inner = self.inner();
        // SAFETY: the chunk has a live object, so it is there; the lock is held.
        unsafe { inner.vacate::<T>(object.cast()) };
        taken
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Chunks are written field by field, without a mutable reference to the whole: others read the constant part meanwhile.
impl Inner {
    fn grow<T>(&mut self, owner: NonNull<()>) {
        let slots = self.slots.clamp(Slots::<T>::LEAST, Slots::<T>::MOST);
        let layout = Slots::<T>::layout(slots);
        // SAFETY: the layout is not empty: a chunk has a head.
        let chunk: *mut Chunk = unsafe { alloc(layout) }.cast();
        if chunk.is_null() {
            handle_alloc_error(layout);
        }
        let head = Chunk {
            constant: Constant { owner, objects: Slots::<T>::offset(slots) as u32 },
            before: ptr::null_mut(),
            behind: ptr::null_mut(),
            slots: slots as u16,
            fresh: 0,
            live: 0,
            vacant: NONE,
        };
        // SAFETY: the memory is new, and long and aligned enough for a head and its groups.
        unsafe {
            chunk.write(head);
            for group in 0..slots.div_ceil(Group::SLOTS) {
                groups(chunk.cast()).cast_mut().add(group).write(Group::new());
            }
        }
        self.slots += slots;
        self.chunks += 1;
        // SAFETY: the chunk is new and has room.
        unsafe { self.enlist(chunk) };
    }

    /// # Safety
    /// The chunk is there, has room, and is not in the list.
    unsafe fn enlist(&mut self, chunk: *mut Chunk) {
        // SAFETY: chunks of the list are there, and the lock is held by whoever has `self`.
        unsafe {
            (*chunk).before = ptr::null_mut();
            (*chunk).behind = self.roomy;
            if !self.roomy.is_null() {
                (*self.roomy).before = chunk;
            }
        }
        self.roomy = chunk;
    }

    /// # Safety
    /// The chunk is in the list.
    unsafe fn delist(&mut self, chunk: *mut Chunk) {
        // SAFETY: as in `enlist`.
        unsafe {
            let (before, behind) = ((*chunk).before, (*chunk).behind);
            if before.is_null() {
                self.roomy = behind;
            } else {
                (*before).behind = behind;
            }
            if !behind.is_null() {
                (*behind).before = before;
            }
        }
    }

    /// A slot of the first chunk that has room.
    ///
    /// # Safety
    /// There is one.
    unsafe fn fill<T>(&mut self) -> NonNull<T> {
        let chunk = self.roomy;
        // SAFETY: chunks of the list are there; vacant slots are nobody's and hold a number; an untouched one lies within the chunk.
        unsafe {
            let vacant = (*chunk).vacant != NONE;
            let slot = if vacant { (*chunk).vacant } else { (*chunk).fresh };
            let place =
                chunk.byte_add((*chunk).constant.objects as usize + slot as usize * Slots::<T>::STRIDE);
            if vacant {
                (*chunk).vacant = place.cast::<u16>().read_unaligned();
            } else {
                (*chunk).fresh += 1;
            }
            (*chunk).live += 1;
            if !(*chunk).has_room() {
                self.delist(chunk);
            }
            NonNull::new_unchecked(place.cast())
        }
    }

    /// # Safety
    /// The place is of these slots, held an object that was live until now, and is the caller's.
    unsafe fn vacate<T>(&mut self, place: Object) {
        // SAFETY: the chunk had a live object, so it is there; the slot is the caller's, and long enough for a number.
        unsafe {
            let constant = Slots::<T>::SHAPE.chunk(place);
            let slot = Slots::<T>::SHAPE.slot(constant, place) as u16;
            let chunk: *mut Chunk = constant.cast();
            if !(*chunk).has_room() {
                self.enlist(chunk);
            }
            place.cast::<u16>().write_unaligned((*chunk).vacant);
            (*chunk).vacant = slot;
            (*chunk).live -= 1;
            if (*chunk).live == 0 && self.chunks > 1 {
                self.delist(chunk);
                self.free::<T>(chunk);
            }
        }
    }

    /// # Safety
    /// The chunk is in no list, and has no live object.
    unsafe fn free<T>(&mut self, chunk: *mut Chunk) {
        // SAFETY: the chunk is there until its memory is given back, which was allocated with this layout; its groups were made
        // with it.
        unsafe {
            let slots = (*chunk).slots as usize;
            let groups = groups(chunk.cast()).cast_mut();
            ptr::slice_from_raw_parts_mut(groups, slots.div_ceil(Group::SLOTS)).drop_in_place();
            dealloc(chunk.cast(), Slots::<T>::layout(slots));
            self.slots -= slots;
            self.chunks -= 1;
        }
    }
}

impl<T> Drop for Slots<T> {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Chunks in the list may have live objects only if those were forgotten, which keeps the pool's shared part, and this, forever.
        while !inner.roomy.is_null() {
            let chunk = inner.roomy;
            // SAFETY: the chunk is in the list; its objects have ended.
            unsafe {
                inner.delist(chunk);
                inner.free::<T>(chunk);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> NonNull<()> {
        NonNull::dangling()
    }

    fn chunks<T>(slots: &Slots<T>) -> (usize, usize) {
        let inner = slots.inner();
        (inner.chunks, inner.slots)
    }

    #[cfg(not(loom))]
    fn made<T>(slots: &Slots<T>, count: usize, object: impl Fn(usize) -> T) -> Vec<NonNull<T>> {
        (0..count).map(|number| slots.make(object(number), owner())).collect()
    }

    #[test]
    fn a_word_costs_a_tenth_of_itself_and_the_room_in_the_last_chunk() {
        let slots = Slots::<u64>::new();
        let objects = made(&slots, 2000, |number| number as u64);
        let (chunks, room) = chunks(&slots);
        // A group per 64 and a head per chunk; no two chunks' allocations may make gaps.
        let bytes =
            chunks * (GROUPS + size_of::<Group>() + BESIDE) + room * 8 + room / 64 * size_of::<Group>();
        assert!(bytes < 2000 * 9 + LEAST_ALIGN, "{bytes} bytes in {chunks} chunks");
        for (number, object) in objects.into_iter().enumerate() {
            // SAFETY: the object is live and ours.
            assert_eq!(unsafe { slots.end(object) }, number as u64);
        }
    }

    #[test]
    fn memory_follows_the_objects_down() {
        let slots = Slots::<[u64; 4]>::new();
        let objects = made(&slots, 1000, |number| [number as u64; 4]);
        let (many, _) = chunks(&slots);
        // SAFETY: the objects are live and ours.
        objects.into_iter().for_each(|object| assert!(unsafe { slots.end(object) }[3] < 1000));
        assert!(many > 5, "{many}");
        assert_eq!(chunks(&slots).0, 1);
    }

    #[test]
    fn a_vacant_slot_is_used_before_memory_is_taken() {
        let slots = Slots::<u32>::new();
        let mut objects = made(&slots, 500, |number| number as u32);
        let before = chunks(&slots);
        for round in 0..if cfg!(miri) { 2 } else { 50 } {
            // Every third goes, from all chunks, and as many come.
            let gone: Vec<_> = (0..objects.len()).rev().filter(|index| (index + round) % 3 == 0).collect();
            for index in &gone {
                // SAFETY: the object is live and ours.
                unsafe { slots.end(objects.swap_remove(*index)) };
            }
            objects.extend(made(&slots, gone.len(), |number| number as u32));
        }
        assert_eq!(chunks(&slots), before);
        let mut addresses: Vec<_> = objects.iter().map(|object| object.addr()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 500);
        // SAFETY: the objects are live and ours.
        objects.into_iter().for_each(|object| _ = unsafe { slots.end(object) });
    }

    #[test]
    fn every_object_finds_its_owner_and_is_aligned() {
        fn check<T: Clone>(object: T, count: usize) {
            let slots = Slots::<T>::new();
            let mut owned = 0_u64;
            let owner: NonNull<()> = NonNull::from(&mut owned).cast();
            let objects: Vec<_> = (0..count).map(|_| slots.make(object.clone(), owner)).collect();
            for object in objects {
                assert!(object.is_aligned());
                // SAFETY: the object is live.
                assert_eq!(unsafe { Slots::owner(object) }, owner);
                // SAFETY: the object is live and ours.
                drop(unsafe { slots.end(object) });
            }
        }
        #[derive(Clone)]
        #[repr(align(256))]
        struct Wide(#[expect(dead_code, reason = "only its length matters")] u8);
        check((), 100);
        check(7_u8, 300);
        check(String::from("x"), 300);
        check([0_u64; 100], 70);
        check([0_u64; 300], 5);
        check(Wide(1), 40);
    }
}
