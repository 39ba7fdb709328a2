//! Memory of a pool's nodes: [`Slots`], [`Node`].
//!
//! Invariant: a slot of a chunk is *untouched* (at or above `fresh`), *vacant* (in the chunk's list), or holds a live node. A chunk
//! is in the list of chunks with room exactly if it has a slot that is untouched or vacant. A chunk without live nodes is freed,
//! but for one that is kept while the pool has objects; so memory follows the objects down as well as up.
//!
//! ```text
//!   a multiple of ALIGN                                         ALIGN = 2ⁿ ≥ the longest chunk
//!   │ owner, list of vacant slots, counts │ link, object │ link, object │ …
//! ```
//!
//! Chunks are aligned to a power of two, so a node finds its pool in the head of its chunk instead of keeping the way back, and
//! no node pays for an allocation of its own. The first chunk has room for half a KiB of nodes, each further one for as many as all
//! before it together, up to `ALIGN`. Nodes that are longer than [`SHARED_MAX`] have chunks of their own.

use crate::link::Link;
use core::alloc::Layout;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use std::alloc::{alloc, dealloc, handle_alloc_error};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One object with its link. The link is first, so a link's address is its node's.
#[repr(C)]
pub(crate) struct Node<T> {
    link: Link,
    pub(crate) object: T,
}

/// Longest nodes, in bytes, that share chunks.
const SHARED_MAX: usize = 1536;
/// Nodes in the longest chunks, at least.
const NODES: usize = 32;
const PAGE: usize = 4096;
/// Bytes of nodes in a pool's first chunk.
const FIRST_BYTES: usize = 512;

/// Head of a chunk.
#[repr(C)]
struct Chunk {
    owner: NonNull<()>,
    /// The chunks with room before and behind this one.
    before: *mut Chunk,
    behind: *mut Chunk,
    vacant: *mut Link,
    /// Slots that the chunk has, that were ever used, and that hold live nodes.
    slots: u32,
    fresh: u32,
    live: u32,
}

impl Chunk {
    const fn has_room(&self) -> bool {
        !self.vacant.is_null() || self.fresh < self.slots
    }
}

struct Inner {
    /// Chunks with room; the first is used.
    roomy: *mut Chunk,
    /// Slots of all chunks.
    slots: usize,
    chunks: usize,
}

/// The nodes of one pool.
pub(crate) struct Slots<T> {
    inner: Mutex<Inner>,
    objects: PhantomData<fn() -> T>,
}

// SAFETY: chunks are touched under the lock only, but for their owner, which is constant.
unsafe impl<T> Send for Slots<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Slots<T> {}

impl<T> Slots<T> {
    const NODE: Layout = Layout::new::<Node<T>>();
    /// Where a chunk's first node begins.
    const HEAD: usize = size_of::<Chunk>().next_multiple_of(Self::NODE.align());
    const ALONE: bool = Self::NODE.size() > SHARED_MAX || Self::NODE.align() > PAGE;
    const ALIGN: usize = if Self::ALONE {
        if Self::NODE.align() > align_of::<Chunk>() { Self::NODE.align() } else { align_of::<Chunk>() }
    } else {
        let bytes = Self::HEAD + NODES * Self::NODE.size();
        if bytes <= PAGE { PAGE } else { bytes.next_power_of_two() }
    };
    /// Nodes in a chunk, at most.
    const MOST: usize = if Self::ALONE { 1 } else { (Self::ALIGN - Self::HEAD) / Self::NODE.size() };
    /// Nodes in a pool's first chunk.
    const LEAST: usize = if Self::ALONE { 1 } else { FIRST_BYTES.div_ceil(Self::NODE.size()) };

    pub(crate) const fn new() -> Self {
        let inner = Inner { roomy: ptr::null_mut(), slots: 0, chunks: 0 };
        Self { inner: Mutex::new(inner), objects: PhantomData }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // No code of others runs under this lock, so a poisoned one is as good as any.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn layout(slots: usize) -> Layout {
        Layout::from_size_align(Self::HEAD + slots * Self::NODE.size(), Self::ALIGN)
            .expect("a chunk is as long as one object, or as a few KiB")
    }

    /// The chunk of a node.
    ///
    /// # Safety
    /// The pointer came from [`make`](Self::make).
    #[inline(always)]
    unsafe fn chunk(node: NonNull<Node<T>>) -> *mut Chunk {
        if Self::ALONE {
            // SAFETY: the node lies that far behind the beginning of its chunk.
            unsafe { node.as_ptr().byte_sub(Self::HEAD).cast() }
        } else {
            node.as_ptr().map_addr(|address| address & !(Self::ALIGN - 1)).cast()
        }
    }

    /// Whose node it is: what [`make`](Self::make) was told.
    ///
    /// # Safety
    /// The node is live.
    #[inline(always)]
    pub(crate) unsafe fn owner(node: NonNull<Node<T>>) -> NonNull<()> {
        // SAFETY: a chunk with a live node is there, and its owner never changes.
        unsafe { (&raw const (*Self::chunk(node)).owner).read() }
    }

    /// A node for `object`.
    pub(crate) fn make(&self, object: T, owner: NonNull<()>) -> NonNull<Node<T>> {
        let node = {
            let mut inner = self.inner();
            if inner.roomy.is_null() {
                inner.grow::<T>(owner);
            }
            // SAFETY: the chunk is in the list, so it is there and has room; the lock is held.
            unsafe { inner.fill::<T>() }
        };
        // SAFETY: the slot is long and aligned enough for a node, and this call's.
        unsafe { node.write(Node { link: Link::new(), object }) };
        node
    }

    /// Takes the object out of a node and ends the node.
    ///
    /// # Safety
    /// The node came from [`make`](Self::make) of these slots, is live and the caller's, and is not used afterwards.
    pub(crate) unsafe fn end(&self, node: NonNull<Node<T>>) -> T {
        // SAFETY: the node is live and the caller's, who gives it up.
        let Node { object, .. } = unsafe { node.read() };
        let mut inner = self.inner();
        // SAFETY: the chunk has a live node, so it is there; the lock is held.
        unsafe { inner.vacate::<T>(Self::chunk(node), node.as_ptr().cast()) };
        object
    }
}

impl Inner {
    fn grow<T>(&mut self, owner: NonNull<()>) {
        let slots = self
            .slots
            .clamp(Slots::<T>::LEAST, Slots::<T>::MOST.max(Slots::<T>::LEAST))
            .min(Slots::<T>::MOST);
        let layout = Slots::<T>::layout(slots);
        // SAFETY: the layout is not empty: a chunk has a head.
        let chunk: *mut Chunk = unsafe { alloc(layout) }.cast();
        if chunk.is_null() {
            handle_alloc_error(layout);
        }
        let none = ptr::null_mut();
        let head = Chunk {
            owner,
            before: none,
            behind: none,
            vacant: ptr::null_mut(),
            slots: slots as u32,
            fresh: 0,
            live: 0,
        };
        // SAFETY: the memory is new, and long and aligned enough for a head.
        unsafe { chunk.write(head) };
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
            if let Some(behind) = self.roomy.as_mut() {
                behind.before = chunk;
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
            match before.as_mut() {
                Some(before) => before.behind = behind,
                None => self.roomy = behind,
            }
            if let Some(behind) = behind.as_mut() {
                behind.before = before;
            }
        }
    }

    /// A slot of the first chunk that has room.
    ///
    /// # Safety
    /// There is one.
    unsafe fn fill<T>(&mut self) -> NonNull<Node<T>> {
        let chunk = self.roomy;
        // SAFETY: chunks of the list are there; vacant slots are nobody's; an untouched one lies within the chunk.
        unsafe {
            let slot: *mut Node<T> = if (*chunk).vacant.is_null() {
                (*chunk).fresh += 1;
                chunk.byte_add(Slots::<T>::HEAD + ((*chunk).fresh as usize - 1) * size_of::<Node<T>>()).cast()
            } else {
                let slot = (*chunk).vacant;
                (*chunk).vacant = Link::next(slot);
                slot.cast()
            };
            (*chunk).live += 1;
            if !(*chunk).has_room() {
                self.delist(chunk);
            }
            NonNull::new_unchecked(slot)
        }
    }

    /// # Safety
    /// The slot is of that chunk, held a node that was live until now, and is the caller's.
    unsafe fn vacate<T>(&mut self, chunk: *mut Chunk, slot: *mut Link) {
        // SAFETY: the chunk had a live node, so it is there; the slot is the caller's.
        unsafe {
            if !(*chunk).has_room() {
                self.enlist(chunk);
            }
            slot.write(Link::new());
            Link::set_next(slot, (*chunk).vacant);
            (*chunk).vacant = slot;
            (*chunk).live -= 1;
            if (*chunk).live == 0 && self.chunks > 1 {
                self.delist(chunk);
                self.free::<T>(chunk);
            }
        }
    }

    /// # Safety
    /// The chunk is in no list, and has no live node.
    unsafe fn free<T>(&mut self, chunk: *mut Chunk) {
        // SAFETY: the chunk is there until the next line, which is its last use; it was made with this layout.
        unsafe {
            let slots = (*chunk).slots as usize;
            dealloc(chunk.cast(), Slots::<T>::layout(slots));
            self.slots -= slots;
            self.chunks -= 1;
        }
    }
}

impl<T> Drop for Slots<T> {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Chunks in the list may have live nodes only if those were forgotten, which keeps the pool's shared part, and this, forever.
        while !inner.roomy.is_null() {
            let chunk = inner.roomy;
            // SAFETY: the chunk is in the list; its nodes have ended.
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

    fn made<T>(slots: &Slots<T>, count: usize, object: impl Fn(usize) -> T) -> Vec<NonNull<Node<T>>> {
        (0..count).map(|number| slots.make(object(number), owner())).collect()
    }

    #[test]
    fn a_node_of_a_word_costs_its_link_and_little_else() {
        let slots = Slots::<u64>::new();
        let nodes = made(&slots, 2000, |number| number as u64);
        let (chunks, room) = chunks(&slots);
        let bytes = chunks * Slots::<u64>::HEAD + room * size_of::<Node<u64>>();
        assert!(bytes < 2000 * 18, "{bytes} bytes in {chunks} chunks");
        for (number, node) in nodes.into_iter().enumerate() {
            // SAFETY: the node is live and ours.
            assert_eq!(unsafe { slots.end(node) }, number as u64);
        }
    }

    #[test]
    fn memory_follows_the_objects_down() {
        let slots = Slots::<[u64; 4]>::new();
        let nodes = made(&slots, 1000, |number| [number as u64; 4]);
        let (many, _) = chunks(&slots);
        // SAFETY: the nodes are live and ours.
        nodes.into_iter().for_each(|node| assert!(unsafe { slots.end(node) }[3] < 1000));
        assert!(many > 5, "{many}");
        assert_eq!(chunks(&slots).0, 1);
    }

    #[test]
    fn a_vacant_slot_is_used_before_memory_is_taken() {
        let slots = Slots::<u32>::new();
        let mut nodes = made(&slots, 500, |number| number as u32);
        let before = chunks(&slots);
        for round in 0..if cfg!(miri) { 2 } else { 50 } {
            // Every third goes, from all chunks, and as many come.
            let gone: Vec<_> = (0..nodes.len()).rev().filter(|index| (index + round) % 3 == 0).collect();
            for index in &gone {
                // SAFETY: the node is live and ours.
                unsafe { slots.end(nodes.swap_remove(*index)) };
            }
            nodes.extend(made(&slots, gone.len(), |number| number as u32));
        }
        assert_eq!(chunks(&slots), before);
        let mut addresses: Vec<_> = nodes.iter().map(|node| node.addr()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 500);
        // SAFETY: the nodes are live and ours.
        nodes.into_iter().for_each(|node| _ = unsafe { slots.end(node) });
    }

    #[test]
    fn every_node_finds_its_owner_and_is_aligned() {
        fn check<T: Clone>(object: T, count: usize) {
            let slots = Slots::<T>::new();
            let mut owned = 0_u64;
            let owner: NonNull<()> = NonNull::from(&mut owned).cast();
            let nodes: Vec<_> = (0..count).map(|_| slots.make(object.clone(), owner)).collect();
            for node in nodes {
                assert!(node.is_aligned());
                // SAFETY: the node is live.
                assert_eq!(unsafe { Slots::owner(node) }, owner);
                // SAFETY: the node is live and ours.
                drop(unsafe { slots.end(node) });
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
