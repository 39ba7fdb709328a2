//! Space made of physical pieces mapped into one reserved range: [`Vmm`], the backing of [`VmmPool`].
//!
//! Invariant: a piece of the range (one *slot*, [`VmmConfig::piece_len`] bytes) is mapped exactly if it is part of the
//! pool's space, except while the one thread that grows, shrinks or sleeps is at work on it. A slot is unmapped only when
//! no live span touches it and all work on it is known to be past.
//!
//! A pool of addresses need not be a pool of memory. When there is no hole long enough, but enough free slots here and
//! there, those slots are unmapped where they lie and mapped side by side where a long hole is wanted. Nothing is copied
//! and no live block moves. Only what is missing after that is taken from the device, so what is reserved stays near what
//! is live.

mod plan;
mod sleep;

use crate::arena::{Arena, Books};
use crate::device::{Device, DriverResult, Physical, Streams, VirtualMemory};
use crate::error::{DriverError, PoolError, Shortage};
use crate::stream_order::StreamOrder;
use crate::variable::{Backing, Engine, VariablePool};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use terrane_core::{Placement, Span};

/// How a [`VmmPool`] is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmmConfig {
    /// Bytes of one physical piece, rounded up to the device's granularity. Larger pieces take fewer driver calls to
    /// move; smaller ones close smaller holes.
    pub piece_len: u64,
    /// Bytes of address space to reserve; 0 for four times the device's memory.
    pub range_len: u64,
    /// Most bytes that the pool may hold; `u64::MAX` for no limit.
    pub limit: u64,
}

impl Default for VmmConfig {
    fn default() -> Self {
        Self { piece_len: 2 << 20, range_len: 0, limit: u64::MAX }
    }
}

/// A pool of blocks of any length that defragments itself by remapping.
pub type VmmPool<P, D> = VariablePool<P, Vmm<D>, D>;

/// How many live spans touch each slot.
#[derive(Default)]
pub struct SlotUsers {
    base: u64,
    piece: u64,
    users: Vec<u32>,
}

impl SlotUsers {
    fn slots(&self, span: Span) -> core::ops::Range<usize> {
        let first = (span.offset - self.base) / self.piece;
        let end = (span.offset - self.base + span.len).div_ceil(self.piece);
        first as usize..end as usize
    }
}

impl Books for SlotUsers {
    fn placed(&mut self, span: Span) {
        let slots = self.slots(span);
        if self.users.len() < slots.end {
            self.users.resize(slots.end, 0);
        }
        self.users[slots].iter_mut().for_each(|users| *users += 1);
    }

    fn vacated(&mut self, span: Span) {
        let slots = self.slots(span);
        self.users[slots].iter_mut().for_each(|users| *users -= 1);
    }
}

#[derive(Default)]
struct Slots {
    /// What is mapped at each slot, up to the last that ever was.
    mapped: Vec<Option<Physical>>,
    /// Pieces that are mapped nowhere: left over from a step that failed.
    spare: Vec<Physical>,
    /// While asleep: the slots that belong to the space.
    asleep: Option<Vec<usize>>,
    saved: Vec<(u64, Vec<u8>)>,
}

/// Physical pieces in a reserved range.
pub struct Vmm<D: Device + ?Sized> {
    base: u64,
    piece: u64,
    slots_in_range: usize,
    config: VmmConfig,
    slots: Mutex<Slots>,
    remaps: AtomicU64,
    device: Arc<D>,
}

impl<D: Device + ?Sized> core::fmt::Debug for Vmm<D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Vmm").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<P: Engine, D: Device + ?Sized + 'static> VmmPool<P, D> {
    /// A pool on `device`, divided by an engine that `engine` makes. Reserves addresses and takes no memory yet.
    ///
    /// # Errors
    /// [`DriverError::NOT_SUPPORTED`] if the device cannot map, otherwise the driver's refusal.
    pub fn mapped_on(device: Arc<D>, config: VmmConfig, engine: fn() -> P) -> Result<Self, PoolError> {
        Ok(Self::over(device.clone(), Vmm::new(device, config)?, engine))
    }
}

impl<D: Device + ?Sized> Vmm<D> {
    /// Reserves the range.
    ///
    /// # Errors
    /// [`DriverError::NOT_SUPPORTED`] if the device cannot map, otherwise the driver's refusal.
    pub fn new(device: Arc<D>, config: VmmConfig) -> Result<Self, PoolError> {
        let vm = device.virtual_memory().ok_or(PoolError::driver(
            0,
            DriverError { call: "cuMemAddressReserve", code: DriverError::NOT_SUPPORTED },
        ))?;
        let piece = config.piece_len.max(1).next_multiple_of(vm.granularity()).next_power_of_two();
        let wanted = if config.range_len == 0 { device.info().total_bytes * 4 } else { config.range_len };
        let range = wanted.next_multiple_of(piece);
        let base = vm.reserve(range, piece).map_err(|error| PoolError::driver(range, error))?;
        Ok(Self {
            base,
            piece,
            slots_in_range: (range / piece) as usize,
            config,
            slots: Mutex::new(Slots::default()),
            remaps: AtomicU64::new(0),
            device,
        })
    }

    fn vm(&self) -> &dyn VirtualMemory {
        match self.device.virtual_memory() {
            Some(vm) => vm,
            None => unreachable!("asked when the backing was made"),
        }
    }

    fn span_of(&self, slot: usize) -> Span {
        Span::new(self.base + slot as u64 * self.piece, self.piece)
    }

    /// Maps `pieces` at the first of `targets`; pieces that could not be mapped go to the spare ones. Returns how many
    /// slots are mapped and accessible.
    fn map_all(&self, targets: &[usize], pieces: Vec<Physical>) -> (usize, DriverResult<()>) {
        let vm = self.vm();
        let (mut done, mut result) = (0, Ok(()));
        let mut pieces = pieces.into_iter();
        for &slot in targets {
            let Some(piece) = pieces.next() else { break };
            // SAFETY: the slot is in the range and unmapped, the piece has this length and is mapped nowhere.
            let mapped = unsafe { vm.map(self.span_of(slot).offset, self.piece, piece) };
            if let Err(error) = mapped {
                self.slots.lock().spare.push(piece);
                result = Err(error);
                break;
            }
            let mut slots = self.slots.lock();
            if slots.mapped.len() <= slot {
                slots.mapped.resize(slot + 1, None);
            }
            slots.mapped[slot] = Some(piece);
            done += 1;
        }
        self.slots.lock().spare.extend(pieces);
        // One call for each run of neighbours.
        let mut start = 0;
        while start < done {
            let mut end = start + 1;
            while end < done && targets[end] == targets[end - 1] + 1 {
                end += 1;
            }
            let at = self.span_of(targets[start]).offset;
            // SAFETY: these slots were just mapped.
            if let Err(error) = unsafe { vm.allow(at, (end - start) as u64 * self.piece) } {
                for &slot in &targets[start..done] {
                    let piece = self.slots.lock().mapped[slot].take();
                    // SAFETY: just mapped, and nobody knows of it.
                    let unmapped = unsafe { vm.unmap(self.span_of(slot).offset, self.piece) };
                    let mut slots = self.slots.lock();
                    match unmapped {
                        Ok(()) => slots.spare.extend(piece),
                        // It stays mapped, out of the pool's space, until the pool is closed.
                        Err(_) => slots.mapped[slot] = piece,
                    }
                }
                return (start, Err(error));
            }
            start = end;
        }
        (done, result)
    }

    /// Unmaps slots that are no longer part of the space, neighbours in one call; returns their pieces, and the slots that
    /// refused.
    fn unmap_all(&self, slots: &[usize]) -> (Vec<Physical>, Vec<usize>) {
        let (mut pieces, mut refused) = (Vec::new(), Vec::new());
        let mut sorted: Vec<usize> = slots.to_vec();
        sorted.sort_unstable();
        for run in sorted.chunk_by(|a, b| a + 1 == *b) {
            let (at, len) = (self.span_of(run[0]).offset, run.len() as u64 * self.piece);
            // SAFETY: the slots were holes, all their work is past, and they were taken out of the space.
            match unsafe { self.vm().unmap(at, len) } {
                Ok(()) => {
                    let mut slots = self.slots.lock();
                    pieces.extend(run.iter().filter_map(|&slot| slots.mapped[slot].take()));
                }
                Err(_) => refused.extend_from_slice(run),
            }
        }
        (pieces, refused)
    }

    fn put_back<P: Placement>(&self, arena: &Mutex<Arena<P, SlotUsers>>, slots: &[usize]) {
        let mut arena = arena.lock();
        for &slot in slots {
            let back = arena.add(self.span_of(slot));
            debug_assert!(back.is_ok(), "a slot that was just taken out can be put back");
        }
    }

    /// Gives pieces that are mapped nowhere back to the device.
    fn discard(&self, pieces: impl IntoIterator<Item = Physical>) {
        for piece in pieces {
            // SAFETY: mapped nowhere, and known to nobody. A refusal leaks the piece: there is no use for it.
            let _ = unsafe { self.vm().release(piece) };
        }
    }

    /// Takes `count` pieces from the device, or none.
    fn create_all(&self, count: usize) -> DriverResult<Vec<Physical>> {
        let mut pieces = Vec::with_capacity(count);
        for _ in 0..count {
            match self.vm().create(self.piece) {
                Ok(piece) => pieces.push(piece),
                Err(error) => {
                    self.discard(pieces);
                    return Err(error);
                }
            }
        }
        Ok(pieces)
    }

    /// One attempt at a hole of `len` bytes. `Ok(false)`: the plan found nothing to do.
    fn make_hole<P: Placement, S: Streams + ?Sized>(
        &self,
        len: u64,
        need: usize,
        arena: &Mutex<Arena<P, SlotUsers>>,
        order: &StreamOrder<S>,
    ) -> Result<bool, PoolError> {
        let limit_error = || {
            let error = PoolError { shortage: Shortage::Limit, ..PoolError::bad_request(len) };
            error.with_limit(Some(self.config.limit))
        };
        let (targets, donors) = {
            let mut arena = arena.lock();
            let past = |span| arena.stamps.stamps_in(span).all(|stamp| order.is_done(stamp));
            let plan = self.plan(need, &arena, past);
            let Some(plan) = plan else { return Err(limit_error()) };
            let removed = plan.donors.into_iter().filter(|&s| arena.remove_past(self.span_of(s), order));
            (plan.targets, removed.collect::<Vec<_>>())
        };
        if targets.is_empty() {
            return Ok(false);
        }
        let missing = {
            let slots = self.slots.lock();
            targets.len().saturating_sub(donors.len() + slots.spare.len())
        };
        let held = (self.slots.lock().mapped.iter().flatten().count() + missing) as u64 * self.piece;
        let fresh = if missing > 0 && held > self.config.limit {
            Err(limit_error())
        } else {
            self.create_all(missing).map_err(|error| PoolError::driver(len, error))
        };
        let fresh = match fresh {
            Ok(fresh) => fresh,
            Err(error) => {
                self.put_back(arena, &donors);
                return Err(error);
            }
        };
        let (moved, refused) = self.unmap_all(&donors);
        self.put_back(arena, &refused);
        self.remaps.fetch_add(moved.len() as u64, Ordering::Relaxed);
        let mut pieces = moved;
        pieces.extend(fresh);
        pieces.append(&mut self.slots.lock().spare);
        let (done, result) = self.map_all(&targets, pieces);
        self.put_back(arena, &targets[..done]);
        result.map_err(|error| PoolError::driver(len, error))?;
        Ok(true)
    }
}

impl<D: Device + ?Sized + 'static> Backing<D> for Vmm<D> {
    type Books = SlotUsers;

    fn books(&self) -> SlotUsers {
        SlotUsers { base: self.base, piece: self.piece, users: Vec::new() }
    }

    fn grow<P: Placement>(
        &self,
        len: u64,
        _: u64,
        _: bool,
        arena: &Mutex<Arena<P, SlotUsers>>,
        order: &StreamOrder<D>,
    ) -> Result<(), PoolError> {
        if self.slots.lock().asleep.is_some() {
            return Err(PoolError { shortage: Shortage::Asleep, ..PoolError::bad_request(len) });
        }
        let mut need = len.div_ceil(self.piece) as usize;
        let mut waited = false;
        loop {
            match self.make_hole(len, need, arena, order) {
                Ok(true) => return Ok(()),
                // There is such a hole, and the engine does not find it: some engines round up.
                Ok(false) => need += need / 8 + 1,
                Err(error) if waited || matches!(error.shortage, Shortage::Driver(_)) => return Err(error),
                Err(_) => {
                    // Before giving up the host waits, so that more free slots can be moved.
                    waited = true;
                    self.wait_for_free_slots(arena, order);
                }
            }
        }
    }

    fn shrink<P: Placement>(
        &self,
        arena: &Mutex<Arena<P, SlotUsers>>,
        order: &StreamOrder<D>,
        wait: bool,
    ) -> u64 {
        if wait {
            self.wait_for_free_slots(arena, order);
        }
        let removed = self.free_slots(arena, |arena, slot| arena.remove_past(self.span_of(slot), order));
        let (pieces, refused) = self.unmap_all(&removed);
        self.put_back(arena, &refused);
        let spare = core::mem::take(&mut self.slots.lock().spare);
        let bytes = pieces.len() as u64 * self.piece;
        self.discard(pieces.into_iter().chain(spare));
        bytes
    }

    fn address(&self, offset: u64) -> u64 {
        offset
    }

    fn max_align(&self) -> u64 {
        self.piece
    }

    fn regions_of(&self, span: Span) -> Vec<Span> {
        Backing::<D>::books(self).slots(span).map(|slot| self.span_of(slot)).collect()
    }

    fn room_at_once(&self) -> u64 {
        u64::MAX
    }

    fn remaps(&self) -> u64 {
        self.remaps.load(Ordering::Relaxed)
    }

    fn sibling(&self) -> Result<Self, PoolError> {
        Self::new(self.device.clone(), self.config)
    }

    fn close<P: Placement>(&mut self, _: &mut Arena<P, SlotUsers>, _: &StreamOrder<D>) {
        // What is in flight may use the pool's memory; if the device cannot say that it is done, the memory is leaked.
        if self.device.synchronize().is_err() {
            return;
        }
        let mapped: Vec<usize> = {
            let slots = self.slots.get_mut();
            (0..slots.mapped.len()).filter(|&s| slots.mapped[s].is_some()).collect()
        };
        let (pieces, refused) = self.unmap_all(&mapped);
        let spare = core::mem::take(&mut self.slots.get_mut().spare);
        self.discard(pieces.into_iter().chain(spare));
        if refused.is_empty() {
            // SAFETY: reserved as a whole in `new`, and nothing is mapped in it any more. A refusal leaks addresses.
            let _ = unsafe { self.vm().unreserve(self.base, self.slots_in_range as u64 * self.piece) };
        }
    }
}

impl<D: Device + ?Sized + 'static> Vmm<D> {
    /// The slots of the space that no live span touches and that `keep` wants.
    fn free_slots<P: Placement>(
        &self,
        arena: &Mutex<Arena<P, SlotUsers>>,
        mut keep: impl FnMut(&mut Arena<P, SlotUsers>, usize) -> bool,
    ) -> Vec<usize> {
        let mut arena = arena.lock();
        let mapped: Vec<usize> = {
            let slots = self.slots.lock();
            (0..slots.mapped.len()).filter(|&s| slots.mapped[s].is_some()).collect()
        };
        let unused = |arena: &Arena<P, SlotUsers>, slot: usize| {
            arena.books.users.get(slot).is_none_or(|&users| users == 0)
        };
        mapped.into_iter().filter(|&slot| unused(&arena, slot) && keep(&mut arena, slot)).collect()
    }

    fn wait_for_free_slots<P: Placement>(&self, arena: &Mutex<Arena<P, SlotUsers>>, order: &StreamOrder<D>) {
        let mut stamps = Vec::new();
        self.free_slots(arena, |arena, slot| {
            stamps.extend(arena.stamps.stamps_in(self.span_of(slot)));
            false
        });
        stamps.sort_unstable();
        stamps.dedup();
        for stamp in stamps {
            // A refusal leaves the slots where they are.
            let _ = order.synchronize(stamp);
        }
    }
}
