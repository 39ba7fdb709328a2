//! Which objects of a chunk wait for whoever needs them: [`Group`], [`Shape`].
//!
//! Invariant: a set bit of a group stands for an idle object that is nobody's. A group without set bits is in no
//! [depot](crate::depot). Whoever sets its first bit *holds* the group, and puts it into a depot; whoever takes it out of there
//! holds it, and clears bits; whoever clears the last bit holds it no more. Only the holder touches `below`.
//!
//! | bits of `idle` | the group | who may set bits | who may clear bits |
//! |---|---|---|---|
//! | none | nobody's | whoever has an object of it, and so comes to hold it | |
//! | some | in one depot, or held by one thread | whoever has an object of it | the thread that holds it |
//!
//! While a bit is set, or somebody has an object of the group, the object keeps the group's chunk in memory. So a group may be gone
//! as soon as whoever touched it has neither: after the bits are set by one who does not come to hold it, and after the last is
//! cleared.
//!
//! Model: `model_stealing` in `tests/loom_pool.rs`. The argument: `docs/src/protocols/pool-stealing.md`.

use crate::fences::Fences;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;
use terrane_core::sync::atomic::AtomicU64;
use terrane_core::sync::cell::UnsafeCell;

/// An object of a pool, whatever its type: where it lies.
pub type Object = NonNull<()>;

/// The idle objects among up to 64 neighbours, all that these cost beside themselves. See the [module](self).
#[derive(Debug)]
#[repr(C)]
pub struct Group {
    /// Bit `n`: the object in slot `n` of the group is idle, and in no thread's own cache.
    idle: AtomicU64,
    /// The group below this one in the depot.
    below: UnsafeCell<*const Group>,
}

impl Group {
    /// Slots of a group.
    pub(crate) const SLOTS: usize = u64::BITS as usize;

    /// A group without idle objects.
    pub(crate) fn new() -> Self {
        Self { idle: AtomicU64::new(0), below: UnsafeCell::new(ptr::null()) }
    }

    /// Makes objects idle; whether the caller holds the group now. Otherwise the group may be gone.
    ///
    /// # Safety
    /// The objects of these bits are the caller's, who gives them up.
    pub(crate) unsafe fn add<F: Fences>(&self, bits: u64) -> bool {
        // Release: whoever clears the bits sees the objects. Acquire: the last holder has looked at `below` for the last time.
        self.idle.fetch_or(bits, F::BOTH) == 0
    }

    /// Takes up to `most` of the idle objects: their bits, and whether the caller still holds the group. Otherwise it may be gone as
    /// soon as the objects are.
    ///
    /// # Safety
    /// The caller holds the group.
    pub(crate) unsafe fn claim<F: Fences>(&self, most: u32) -> (u64, bool) {
        // Bits that others set meanwhile stay.
        let bits = lowest(self.idle.load(Ordering::Relaxed), most);
        // Acquire and release: as in `add`.
        let before = self.idle.fetch_and(!bits, F::BOTH);
        (bits, before & !bits != 0)
    }

    /// Idle objects, as of some moment during the call.
    pub(crate) fn count(&self) -> u32 {
        self.idle.load(Ordering::Relaxed).count_ones()
    }

    /// # Safety
    /// The caller holds the group.
    pub(crate) unsafe fn below(&self) -> *const Self {
        // SAFETY: only the holder touches it (module invariant).
        self.below.with(|below| unsafe { *below })
    }

    /// # Safety
    /// The caller holds the group.
    pub(crate) unsafe fn set_below(&self, to: *const Self) {
        // SAFETY: only the holder touches it (module invariant).
        self.below.with_mut(|below| unsafe { *below = to });
    }
}

/// The `most` lowest of the set bits.
const fn lowest(bits: u64, most: u32) -> u64 {
    if bits.count_ones() <= most {
        return bits;
    }
    let (mut rest, mut left) = (bits, most);
    while left > 0 {
        rest &= rest - 1;
        left -= 1;
    }
    bits ^ rest
}

/// Head of a chunk: what is known of it without its lock is constant.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Constant {
    /// Whose objects lie here.
    pub(crate) owner: NonNull<()>,
    /// Bytes from the beginning of the chunk to its first object.
    pub(crate) objects: u32,
}

/// How a pool's objects lie in their chunks: enough to find an object's group, and a group's objects.
///
/// ```text
///   a multiple of the mask, or so far before the only object
///   │ Constant, … │ groups │ object │ object │ …
///                 GROUPS   objects  + stride
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Address bits of the beginning of a chunk; 0 if every object has a chunk of its own.
    mask: usize,
    /// Bytes from the beginning of a chunk to the object, if that has it alone.
    alone: usize,
    /// Bytes from one object to the next.
    stride: u32,
    /// 2³² over the stride, rounded up: offsets below 2¹⁶ and strides below 2¹⁶ are divided exactly by multiplying with it.
    reciprocal: u64,
}

/// Longest chunks of several objects, in bytes: what [`Shape::reciprocal`] is exact for.
pub(crate) const LONGEST: usize = 1 << 16;

impl Shape {
    /// Chunks that are aligned to `align` bytes.
    pub(crate) const fn shared(align: usize, stride: usize) -> Self {
        assert!(align.is_power_of_two() && align <= LONGEST && stride < LONGEST);
        Self {
            mask: !(align - 1),
            alone: 0,
            stride: stride as u32,
            reciprocal: (1_u64 << 32).div_ceil(stride as u64),
        }
    }

    /// Chunks of one object each, `offset` bytes behind their beginning.
    pub(crate) const fn alone(offset: usize) -> Self {
        Self { mask: 0, alone: offset, stride: 0, reciprocal: 0 }
    }

    /// The head of an object's chunk.
    ///
    /// # Safety
    /// The object lies in a chunk of this shape.
    #[inline(always)]
    pub(crate) unsafe fn chunk(&self, object: Object) -> *mut Constant {
        if self.mask == 0 {
            // SAFETY: the object lies that far behind the beginning of its chunk.
            unsafe { object.as_ptr().byte_sub(self.alone).cast() }
        } else {
            object.as_ptr().map_addr(|address| address & self.mask).cast()
        }
    }

    /// An object's slot in its chunk.
    ///
    /// # Safety
    /// The object lies in that chunk, which is there.
    pub(crate) unsafe fn slot(&self, chunk: *const Constant, object: Object) -> usize {
        // SAFETY: the chunk is there, and this part of it is constant.
        self.divided(object.addr().get() - chunk.addr() - unsafe { (*chunk).objects } as usize)
    }

    /// How many strides an offset within a chunk is.
    const fn divided(&self, offset: usize) -> usize {
        ((offset as u64 * self.reciprocal) >> 32) as usize
    }

    /// The object in a group's first slot.
    ///
    /// # Safety
    /// The group is of a chunk of this shape, and held by the caller.
    unsafe fn first(&self, group: *const Group) -> Object {
        // SAFETY: a held group has an idle object, so its chunk is there.
        unsafe {
            let chunk: *const Constant = if self.mask == 0 {
                group.byte_sub(GROUPS).cast()
            } else {
                group.map_addr(|address| address & self.mask).cast()
            };
            let before = group.offset_from_unsigned(groups(chunk)) * Group::SLOTS * self.stride as usize;
            NonNull::new_unchecked(chunk.byte_add((*chunk).objects as usize + before).cast_mut().cast())
        }
    }

    /// Makes `objects` idle, and calls `hold` with each group that the caller comes to hold by that.
    ///
    /// # Safety
    /// The objects are of this shape and the caller's, who gives them up.
    pub(crate) unsafe fn give<F: Fences>(&self, objects: &[Object], mut hold: impl FnMut(*const Group)) {
        let mut add = |group: *const Group, bits: u64| {
            // SAFETY: the objects are the caller's, and keep their group there until this.
            if bits != 0 && unsafe { (*group).add::<F>(bits) } {
                hold(group);
            }
        };
        // Neighbours often come one after the other. What is known of a chunk stays true while the next object is in it.
        let (mut chunk, mut first) = (ptr::null_mut::<Constant>(), 0);
        let (mut group, mut bits) = (ptr::null(), 0);
        for object in objects {
            // SAFETY: the object is the caller's, so its chunk is there, and has a group for each 64 slots.
            let its = unsafe {
                let its = self.chunk(*object);
                if its != chunk {
                    (chunk, first) = (its, its.addr() + (*its).objects as usize);
                }
                let slot = self.divided(object.addr().get() - first);
                bits_of(groups(chunk), slot)
            };
            if its.0 != group {
                add(group, bits);
                (group, bits) = (its.0, 0);
            }
            bits |= its.1;
        }
        add(group, bits);
    }

    /// Takes up to `most` idle objects of a group; whether the caller still holds it.
    ///
    /// # Safety
    /// The group is of a chunk of this shape, and held by the caller.
    pub(crate) unsafe fn claim<F: Fences>(
        &self,
        group: *const Group,
        most: u32,
        to: &mut Vec<Object>,
    ) -> bool {
        // SAFETY: the group is held.
        let (first, (bits, held)) = unsafe { (self.first(group), (*group).claim::<F>(most)) };
        to.reserve(bits.count_ones() as usize);
        let mut left = bits;
        while left != 0 {
            let (len, slot) = (to.len(), left.trailing_zeros() as usize);
            // SAFETY: a set bit stands for an object of the group, which lies so many strides behind the first slot. There is room
            // for as many as there are bits.
            unsafe {
                to.as_mut_ptr().add(len).write(first.byte_add(slot * self.stride as usize));
                to.set_len(len + 1);
            }
            left &= left - 1;
        }
        held
    }
}

/// A slot's group, and its bit there.
///
/// # Safety
/// The groups are those of a chunk that is there and has the slot.
unsafe fn bits_of(groups: *const Group, slot: usize) -> (*const Group, u64) {
    // SAFETY: a chunk has a group for each 64 slots.
    (unsafe { groups.add(slot / Group::SLOTS) }, 1 << (slot % Group::SLOTS))
}

/// Bytes from the beginning of a chunk to its groups: behind [`Constant`] and what the chunk's memory is managed by.
pub(crate) const GROUPS: usize = (size_of::<Constant>() + 24).next_multiple_of(align_of::<Group>());

/// The groups of a chunk.
pub(crate) fn groups(chunk: *const Constant) -> *const Group {
    chunk.wrapping_byte_add(GROUPS).cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_bits_are_taken_and_no_more() {
        assert_eq!(lowest(0b1011_0100, 0), 0);
        assert_eq!(lowest(0b1011_0100, 2), 0b0001_0100);
        assert_eq!(lowest(0b1011_0100, 4), 0b1011_0100);
        assert_eq!(lowest(u64::MAX, 63), u64::MAX >> 1);
        assert_eq!(lowest(u64::MAX, u32::MAX), u64::MAX);
    }

    #[test]
    fn every_offset_of_a_chunk_is_divided_exactly() {
        // An interpreter needs minutes for all.
        for stride in (1..LONGEST).step_by(if cfg!(miri) { 2531 } else { 1 }) {
            let shape = Shape::shared(LONGEST, stride);
            let last = (LONGEST - 1) / stride;
            for slot in [0, 1, 2, last / 2, last.saturating_sub(1), last] {
                let slot = slot.min(last);
                assert_eq!(
                    (((slot * stride) as u64 * shape.reciprocal) >> 32) as usize,
                    slot,
                    "{slot} × {stride}"
                );
            }
        }
    }
}
