//! Spans that can be moved: handles, pins, and compaction within a budget.
//!
//! Invariants: a slot that is in use has a live span of the engine, and each of these has one slot; the slots that are not in
//! use form a list from `unused`. A handle is good exactly while its generation is its slot's; vacating raises that, so no
//! handle comes back to life before 2³² spans have used its slot.
//!
//! Protocol: compaction goes up the space and slides every span that is not pinned down over the hole below it, which the
//! hole thereby passes and gathers up the next. No span passes another, so their order is found once, at the beginning. The bytes are moved by a callback before anything is entered; if it fails,
//! the span is where it was. Between two spans everything is consistent, so it can stop there when a budget is used up and
//! go on later.

use crate::engine::{Engine, Policy};
use crate::survey::{Plot, Survey};
use crate::tlsf::Bins;
use alloc::vec::Vec;
use core::fmt;
use terrane_core::{PlaceError, Placement, PlacementError, Span};

/// Names a span wherever it has been moved to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Handle {
    slot: u32,
    generation: u32,
}

/// The handle's span was vacated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StaleHandle {
    /// The handle.
    pub handle: Handle,
}

impl fmt::Display for StaleHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "handle {}.{} was vacated", self.handle.slot, self.handle.generation)
    }
}

impl core::error::Error for StaleHandle {}

/// One span on its way down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// Whose it is.
    pub handle: Handle,
    /// Where its contents lie.
    pub from: Span,
    /// Where they shall lie; lower.
    pub to: Span,
}

impl Move {
    /// Whether the two places overlap, so that the copy must go from the low end up.
    pub const fn overlaps(&self) -> bool {
        self.from.overlaps(&self.to)
    }
}

/// How much a compaction may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Units that may be moved; a span that would pass it is not moved.
    pub units: u64,
    /// Spans that may be moved.
    pub moves: u64,
    /// Whether a span may be moved to a place that overlaps its own. Many devices cannot copy so.
    pub overlapping: bool,
    /// When to stop; a move that has begun is finished.
    #[cfg(feature = "std")]
    pub deadline: Option<std::time::Instant>,
}

impl Budget {
    /// Without bounds.
    pub const fn unlimited() -> Self {
        Self {
            units: u64::MAX,
            moves: u64::MAX,
            overlapping: true,
            #[cfg(feature = "std")]
            deadline: None,
        }
    }

    /// At most `units` units.
    pub const fn units(units: u64) -> Self {
        Self { units, ..Self::unlimited() }
    }

    /// As long as `time`, from now.
    #[cfg(feature = "std")]
    pub fn time(time: std::time::Duration) -> Self {
        Self { deadline: std::time::Instant::now().checked_add(time), ..Self::unlimited() }
    }

    fn has_time(&self) -> bool {
        #[cfg(feature = "std")]
        return self.deadline.is_none_or(|deadline| std::time::Instant::now() < deadline);
        #[cfg(not(feature = "std"))]
        true
    }
}

/// What a compaction has done.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Compaction {
    /// Spans moved.
    pub moves: u64,
    /// Units moved.
    pub units: u64,
    /// Whether it went through the whole space, and did not stop at its budget.
    pub finished: bool,
}

/// A compaction that stopped since the mover failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CompactError<E> {
    /// What was done before.
    pub done: Compaction,
    /// What the mover said.
    pub cause: E,
}

impl<E: fmt::Display> fmt::Display for CompactError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "compaction stopped after {} moves: {}", self.done.moves, self.cause)
    }
}

impl<E: core::error::Error + 'static> core::error::Error for CompactError<E> {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        Some(&self.cause)
    }
}

#[derive(Clone, Copy)]
struct Slot {
    /// Length zero if the slot is not in use; its offset is then the next such slot.
    span: Span,
    align: u64,
    generation: u32,
    pins: u32,
}

/// No slot.
const NONE: u32 = u32::MAX;

const _: () = assert!(size_of::<Slot>() == 32, "as `Movable` says");

/// An engine whose spans have handles and can be moved.
///
/// A handle adds constant time to placing and vacating. Metadata comes from the global allocator: 32 bytes for each handle
/// beside what the engine takes. Vacating takes none.
pub struct Movable<P: Policy = Bins> {
    engine: Engine<P>,
    slots: Vec<Slot>,
    /// The first slot that is not in use.
    unused: u32,
}

impl<P: Policy> Movable<P> {
    /// With nothing live. Spaces are added to it, not to an engine before.
    ///
    /// # Panics
    /// If `granule` is not a power of two.
    pub fn with_granule(granule: u64) -> Self {
        let engine = Engine::with_granule(granule);
        Self { engine, slots: Vec::new(), unused: NONE }
    }

    /// As [`Placement::add`].
    ///
    /// # Errors
    /// As there.
    pub fn add(&mut self, space: Span) -> Result<(), PlacementError> {
        self.engine.add(space)
    }

    /// As [`Placement::remove`].
    ///
    /// # Errors
    /// As there.
    pub fn remove(&mut self, space: Span) -> Result<(), PlacementError> {
        self.engine.remove(space)
    }

    /// As [`Placement::place`].
    ///
    /// # Errors
    /// As there.
    pub fn place(&mut self, len: u64, align: u64) -> Result<Handle, PlaceError> {
        if self.unused == NONE {
            let full = self.slots.len() >= NONE as usize;
            if full || self.slots.try_reserve(1).is_err() {
                return Err(PlaceError::NoMetadata);
            }
        }
        let span = self.engine.place(len, align)?;
        let mut slot = self.unused;
        if let Some(entry) = self.slots.get_mut(slot as usize) {
            self.unused = entry.span.offset as u32;
            *entry = Slot { span, align, pins: 0, ..*entry };
        } else {
            slot = self.slots.len() as u32;
            self.slots.push(Slot { span, align, generation: 0, pins: 0 });
        }
        Ok(Handle { slot, generation: self.slots[slot as usize].generation })
    }

    /// Vacates the span of `handle`, pinned or not.
    ///
    /// # Errors
    /// [`StaleHandle`] if it was vacated before; nothing has changed then.
    pub fn vacate(&mut self, handle: Handle) -> Result<(), StaleHandle> {
        let next = Span::new(u64::from(self.unused), 0);
        let slot = self.slot(handle)?;
        let span = core::mem::replace(&mut slot.span, next);
        slot.generation = slot.generation.wrapping_add(1);
        self.unused = handle.slot;
        self.engine.vacate(span);
        Ok(())
    }

    /// Where the span of `handle` lies now, until the next compaction unless it is pinned.
    pub fn span(&self, handle: Handle) -> Option<Span> {
        let slot = self.slots.get(handle.slot as usize)?;
        (slot.generation == handle.generation && slot.span.len != 0).then_some(slot.span)
    }

    /// Keeps the span of `handle` where it is until it has been unpinned as often.
    ///
    /// # Errors
    /// [`StaleHandle`].
    pub fn pin(&mut self, handle: Handle) -> Result<Span, StaleHandle> {
        let slot = self.slot(handle)?;
        slot.pins = slot.pins.saturating_add(1);
        Ok(slot.span)
    }

    /// Takes one pin back. Without a pin it does nothing.
    ///
    /// # Errors
    /// [`StaleHandle`].
    pub fn unpin(&mut self, handle: Handle) -> Result<(), StaleHandle> {
        let slot = self.slot(handle)?;
        slot.pins = slot.pins.saturating_sub(1);
        Ok(())
    }

    fn slot(&mut self, handle: Handle) -> Result<&mut Slot, StaleHandle> {
        self.slots
            .get_mut(handle.slot as usize)
            .filter(|slot| slot.generation == handle.generation && slot.span.len != 0)
            .ok_or(StaleHandle { handle })
    }

    /// Slides spans down until all holes that pins allow are gathered at the upper ends of their spaces, or `budget` is used
    /// up. `mover` moves the contents of one span; when it is called, the place they go to holds nothing else.
    ///
    /// Takes O(n log n) time for n spans beside the moves, and 4 n bytes for the order of the spans until it returns; if there
    /// is no memory for them it does nothing, as if out of budget.
    ///
    /// # Errors
    /// [`CompactError`] with what `mover` said; all moves before that one are done, that one is not.
    pub fn compact<E>(
        &mut self,
        budget: Budget,
        mut mover: impl FnMut(Move) -> Result<(), E>,
    ) -> Result<Compaction, CompactError<E>> {
        self.engine.merge_waiting();
        let mut done = Compaction::default();
        let mut order: Vec<u32> = Vec::new();
        if order.try_reserve_exact(self.engine.live()).is_err() {
            return Ok(done);
        }
        let movable = |&slot: &u32| {
            let Slot { span, pins, .. } = self.slots[slot as usize];
            span.len != 0 && pins == 0
        };
        order.extend((0..self.slots.len() as u32).filter(movable));
        order.sort_unstable_by_key(|&slot| self.slots[slot as usize].span.offset);
        for slot in order {
            let Slot { span, align, generation, .. } = self.slots[slot as usize];
            let Some(to) = self.engine.lower_place(span, align) else { continue };
            let step = Move { handle: Handle { slot, generation }, from: span, to };
            if step.overlaps() && !budget.overlapping {
                continue;
            }
            let within = done.moves < budget.moves && span.len <= budget.units - done.units;
            if !within || !budget.has_time() || !self.engine.can_slide() {
                return Ok(done);
            }
            if let Err(cause) = mover(step) {
                return Err(CompactError { done, cause });
            }
            self.engine.slide(span, to);
            self.slots[slot as usize].span = to;
            done.moves += 1;
            done.units += span.len;
        }
        done.finished = true;
        Ok(done)
    }

    /// As [`Placement::free_bytes`].
    pub fn free_bytes(&self) -> u64 {
        self.engine.free_bytes()
    }

    /// As [`Placement::largest_free`].
    pub fn largest_free(&self) -> u64 {
        self.engine.largest_free()
    }

    /// The figures of now, as [`Survey::metrics`].
    pub fn metrics(&self) -> crate::Metrics {
        self.engine.metrics()
    }

    /// As [`Survey::survey`].
    pub fn survey(&self, see: &mut dyn FnMut(Plot)) {
        self.engine.survey(see);
    }
}

/// A heap over host memory that compacts itself when it finds no room, and hands out handles.
///
/// Alignments hold for offsets in its memory, whose own address is a multiple of 1 only.
///
/// ```
/// use terrane_fit::CompactingHeap;
///
/// let mut heap = CompactingHeap::new(1024);
/// let a = heap.allocate(400, 1)?;
/// let b = heap.allocate(400, 1)?;
/// heap.bytes_mut(b).unwrap().fill(7);
/// heap.free(a)?;
/// // No hole has 600 bytes until `b` has moved down.
/// let c = heap.allocate(600, 1)?;
/// assert!(heap.bytes(b).unwrap().iter().all(|&byte| byte == 7));
/// assert!(heap.bytes(a).is_none());
/// # let _ = c;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CompactingHeap {
    memory: Vec<u8>,
    spans: Movable,
}

impl CompactingHeap {
    /// Over `len` bytes.
    ///
    /// # Panics
    /// If `len` is zero.
    pub fn new(len: usize) -> Self {
        let mut spans = Movable::with_granule(1);
        spans.add(Span::new(0, len as u64)).expect("an empty engine takes any space but an empty one");
        Self { memory: alloc::vec![0; len], spans }
    }

    /// Allocates `len` bytes; compacts if no hole, but all of them together, might have room.
    ///
    /// # Errors
    /// A [`PlaceError`].
    pub fn allocate(&mut self, len: u64, align: u64) -> Result<Handle, PlaceError> {
        match self.spans.place(len, align) {
            Err(PlaceError::NoRoom { free, .. }) if free >= len => {
                self.compact(Budget::unlimited());
                self.spans.place(len, align)
            }
            placed => placed,
        }
    }

    /// Frees.
    ///
    /// # Errors
    /// [`StaleHandle`] if it was freed before.
    pub fn free(&mut self, handle: Handle) -> Result<(), StaleHandle> {
        self.spans.vacate(handle)
    }

    /// The bytes of `handle`; `None` if it was freed.
    pub fn bytes(&self, handle: Handle) -> Option<&[u8]> {
        let span = self.spans.span(handle)?;
        self.memory.get(span.offset as usize..(span.offset + span.len) as usize)
    }

    /// The bytes of `handle`; `None` if it was freed.
    pub fn bytes_mut(&mut self, handle: Handle) -> Option<&mut [u8]> {
        let span = self.spans.span(handle)?;
        self.memory.get_mut(span.offset as usize..(span.offset + span.len) as usize)
    }

    /// Moves what it may.
    pub fn compact(&mut self, budget: Budget) -> Compaction {
        let memory = &mut self.memory;
        let moved = self.spans.compact(budget, |step| {
            let (from, len) = (step.from.offset as usize, step.from.len as usize);
            memory.copy_within(from..from + len, step.to.offset as usize);
            Ok::<(), core::convert::Infallible>(())
        });
        match moved {
            Ok(done) => done,
            Err(never) => match never.cause {},
        }
    }

    /// Handles, pins and figures.
    pub fn spans(&mut self) -> &mut Movable {
        &mut self.spans
    }
}
