//! Who is told what happened: [`Observer`].
//!
//! The default observer is `()`: zero-sized, and every call on it compiles to nothing. Real observers should count in
//! thread-local memory and merge in batches: one shared atomic counter per operation costs several times the operation.

/// Something that happened on a slow path, or, where every call is watched, on any path. No allocator of Terrane watches every
/// call today: [`Alloc`](Self::Alloc) and [`Free`](Self::Free) are for those that do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A block was handed out. Only sent where every call is watched.
    Alloc {
        /// Address of the block.
        address: usize,
        /// Bytes asked for.
        bytes: usize,
    },
    /// A block was given back. Only sent where every call is watched, before the block can be reused.
    Free {
        /// Address of the block.
        address: usize,
    },
    /// A thread's list of one class was filled with `blocks` blocks.
    Refill {
        /// Size class.
        class: u16,
        /// Blocks moved.
        blocks: u32,
    },
    /// `blocks` blocks of one class went from a thread's list back to their slabs.
    Flush {
        /// Size class.
        class: u16,
        /// Blocks moved.
        blocks: u32,
    },
    /// A chain of `blocks` blocks was pushed to a slab of another heap in one exchange.
    RemoteFree {
        /// Size class.
        class: u16,
        /// Blocks in the chain.
        blocks: u32,
    },
    /// A parked slab was claimed by a thread that freed into it.
    Claim {
        /// Size class.
        class: u16,
    },
    /// A parked slab of another heap was taken from a shelf by a heap that needs the shelf's class; `class` is the slab's own, which
    /// may have changed since it was shelved.
    Steal {
        /// Size class.
        class: u16,
    },
    /// A slab was made from free slices of a segment.
    SlabMade {
        /// Size class.
        class: u16,
    },
    /// An empty slab was given back to its segment.
    SlabRetired {
        /// Size class.
        class: u16,
    },
    /// Address space was reserved.
    Map {
        /// Bytes.
        bytes: usize,
    },
    /// Address space was given back.
    Unmap {
        /// Bytes.
        bytes: usize,
    },
    /// Memory was given back to the system, its addresses kept.
    Purge {
        /// Bytes.
        bytes: usize,
    },
}

/// Is told of every [`Event`] on the paths it watches. An observer must not allocate from the heap that it watches.
pub trait Observer {
    /// Whether this observer wants events at all. When `false`, the calls to it are compiled away.
    const ACTIVE: bool = true;

    /// `event` has happened (or, for [`Event::Free`], is about to).
    fn observe(&self, event: &Event);
}

/// Watches nothing, costs nothing.
impl Observer for () {
    const ACTIVE: bool = false;

    #[inline(always)]
    fn observe(&self, _: &Event) {}
}

impl<O: Observer + ?Sized> Observer for &O {
    const ACTIVE: bool = O::ACTIVE;

    #[inline(always)]
    fn observe(&self, event: &Event) {
        (**self).observe(event);
    }
}

/// Two observers, both told, the first first.
impl<A: Observer, B: Observer> Observer for (A, B) {
    const ACTIVE: bool = A::ACTIVE || B::ACTIVE;

    #[inline(always)]
    fn observe(&self, event: &Event) {
        self.0.observe(event);
        self.1.observe(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    struct Count(Cell<u32>);
    impl Observer for Count {
        fn observe(&self, _: &Event) {
            self.0.set(self.0.get() + 1);
        }
    }

    #[test]
    fn the_default_observer_is_nothing_and_a_pair_tells_both() {
        assert_eq!(size_of::<()>(), 0);
        const { assert!(!<() as Observer>::ACTIVE) };
        let (a, b) = (Count(Cell::new(0)), Count(Cell::new(0)));
        (&a, &b).observe(&Event::Map { bytes: 1 });
        assert_eq!((a.0.get(), b.0.get()), (1, 1));
        const { assert!(<((), Count) as Observer>::ACTIVE) };
    }
}
