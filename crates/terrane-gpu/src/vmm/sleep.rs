//! Sleep and wake: all physical memory goes back, every address stays.
//!
//! Invariant: while the pool sleeps nothing is mapped, and the list of slots that belong to its space is kept; awake again,
//! exactly those are mapped, at the same addresses.

use super::{SlotUsers, Vmm, VmmPool};
use crate::arena::Arena;
use crate::device::{Device, DriverResult};
use crate::error::{DriverError, PoolError};
use crate::variable::Engine;
use parking_lot::Mutex;
use terrane_core::Placement;

impl<P: Engine, D: Device + ?Sized + 'static> VmmPool<P, D> {
    /// Gives all physical memory back and keeps every address; live blocks lose their contents unless `save` asks for a
    /// copy in host memory. Waits for the device. Until [`wake`](Self::wake) the pool does not grow. Returns the bytes given
    /// back.
    ///
    /// # Errors
    /// The driver's refusal; the pool is then awake, with the memory of its live blocks.
    ///
    /// # Safety
    /// No work that uses the pool's blocks is submitted until the pool is awake.
    pub unsafe fn sleep(&self, save: bool) -> Result<u64, PoolError> {
        let trimmed = self.shrink_now();
        self.with_arena(|arena, backing| backing.sleep(arena, save)).map(|bytes| bytes + trimmed)
    }

    /// Takes physical memory again and maps it where live blocks are.
    ///
    /// # Errors
    /// The driver's refusal; the pool is then still asleep.
    pub fn wake(&self) -> Result<(), PoolError> {
        self.with_arena(|arena, backing| backing.wake(arena))
    }
}

impl<D: Device + ?Sized> Vmm<D> {
    fn sleep<P: Placement>(&self, arena: &Mutex<Arena<P, SlotUsers>>, save: bool) -> Result<u64, PoolError> {
        self.device.synchronize().map_err(|error| PoolError::driver(0, error))?;
        let mapped: Vec<usize> = {
            let slots = self.slots.lock();
            if slots.asleep.is_some() {
                return Ok(0);
            }
            (0..slots.mapped.len()).filter(|&s| slots.mapped[s].is_some()).collect()
        };
        if save {
            let saved = self.save(&mapped).map_err(|error| PoolError::driver(0, error))?;
            self.slots.lock().saved = saved;
        }
        let (pieces, refused) = self.unmap_all(&mapped);
        if !refused.is_empty() {
            let unmapped: Vec<usize> = mapped.into_iter().filter(|s| !refused.contains(s)).collect();
            let (_, result) = self.map_all(&unmapped, pieces);
            let result = result.and_then(|()| self.restore());
            let code = DriverError::INVALID_VALUE;
            let error = result.err().unwrap_or(DriverError { call: "cuMemUnmap", code });
            return Err(PoolError::driver(0, error));
        }
        let bytes = pieces.len() as u64 * self.piece;
        let spare = {
            let mut slots = self.slots.lock();
            slots.asleep = Some(mapped);
            core::mem::take(&mut slots.spare)
        };
        self.discard(pieces.into_iter().chain(spare));
        arena.lock().reserved -= bytes;
        Ok(bytes)
    }

    fn save(&self, mapped: &[usize]) -> DriverResult<Vec<(u64, Vec<u8>)>> {
        let stream = self.device.stream_create()?;
        let result = mapped
            .iter()
            .map(|&slot| {
                let at = self.span_of(slot).offset;
                let mut bytes = vec![0; self.piece as usize];
                // SAFETY: the slot is mapped, the device is idle, and memory that is not page-locked is written at once.
                unsafe { self.device.download(bytes.as_mut_ptr(), at, self.piece, stream)? };
                self.device.stream_synchronize(stream)?;
                Ok((at, bytes))
            })
            .collect();
        // A stream that the driver keeps is in nobody's way.
        let _ = self.device.stream_destroy(stream);
        result
    }

    fn wake<P: Placement>(&self, arena: &Mutex<Arena<P, SlotUsers>>) -> Result<(), PoolError> {
        let Some(needed) = self.slots.lock().asleep.clone() else { return Ok(()) };
        let bytes = needed.len() as u64 * self.piece;
        let pieces = match self.create_all(needed.len()) {
            Ok(pieces) => pieces,
            Err(error) => return Err(PoolError::driver(bytes, error)),
        };
        let (done, result) = self.map_all(&needed, pieces);
        if let Err(error) = result.and_then(|()| self.restore()) {
            let (pieces, _) = self.unmap_all(&needed[..done]);
            let spare = core::mem::take(&mut self.slots.lock().spare);
            self.discard(pieces.into_iter().chain(spare));
            return Err(PoolError::driver(bytes, error));
        }
        arena.lock().reserved += bytes;
        let mut slots = self.slots.lock();
        (slots.asleep, slots.saved) = (None, Vec::new());
        Ok(())
    }

    fn restore(&self) -> DriverResult<()> {
        if self.slots.lock().saved.is_empty() {
            return Ok(());
        }
        let stream = self.device.stream_create()?;
        let saved = core::mem::take(&mut self.slots.lock().saved);
        let result = saved.iter().try_for_each(|(at, bytes)| {
            // SAFETY: the slot is mapped again, and `bytes` is not page-locked, so it is read at once.
            unsafe { self.device.upload(*at, bytes.as_ptr(), self.piece, stream) }
        });
        // Also after a refusal: who called may unmap what the copies before it still write.
        let past = self.device.stream_synchronize(stream).or_else(|_| self.device.synchronize());
        let result = result.and(past);
        // As in `save`; above all it is no reason to take the memory away again, whose only copy is gone by then.
        let _ = self.device.stream_destroy(stream);
        if result.is_err() {
            self.slots.lock().saved = saved;
        }
        result
    }
}
