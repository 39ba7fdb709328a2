//! Space in chunks from any [`Source`]: the backing of [`VariablePool`] for plain device memory, and the place where
//! special hardware plugs in.
//!
//! Invariant: each chunk is one extent of the source, and spans never cross from one extent to another, even if the source
//! happens to hand out neighbours: the driver does not know of copies across its allocations. So an offset of the pool's
//! space is the address with a *colour* in its upper bits, and neighbouring chunks differ in colour.

use crate::arena::Arena;
use crate::device::{Device, Streams};
use crate::error::{PoolError, Shortage};
use crate::size_class::GRANULE;
use crate::sources::DeviceMemory;
use crate::stream_order::StreamOrder;
use crate::variable::{Backing, Engine, VariablePool};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use terrane_core::{Extent, Placement, Source, SourceError, Span};

/// Bits of an offset that are the address.
const ADDRESS_BITS: u32 = 58;
/// Largest alignment of a block.
const MAX_ALIGN: u64 = 2 << 20;

/// How a pool takes chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkConfig {
    /// Usual bytes of a chunk. A longer request gets a chunk of its own length; when the source has no room for a usual
    /// chunk, shorter ones are tried.
    pub chunk_len: u64,
    /// Most bytes that the pool may hold; `u64::MAX` for no limit.
    pub limit: u64,
}

impl Default for ChunkConfig {
    fn default() -> Self {
        Self { chunk_len: 64 << 20, limit: u64::MAX }
    }
}

/// Chunks of a source.
pub struct Chunks<M: Source> {
    source: M,
    config: ChunkConfig,
    /// By offset, colour included.
    chunks: Mutex<BTreeMap<u64, Extent>>,
}

impl<M: Source> core::fmt::Debug for Chunks<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Chunks").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A pool of blocks of any length in chunks of device memory.
pub type DevicePoolOf<P, D> = VariablePool<P, Chunks<DeviceMemory<D>>, D>;

impl<P: Engine, D: Device + ?Sized + 'static> DevicePoolOf<P, D> {
    /// A pool on `device`, divided by an engine that `engine` makes. Takes no memory yet.
    pub fn on(device: Arc<D>, config: ChunkConfig, engine: fn() -> P) -> Self {
        Self::over(device.clone(), Chunks::new(DeviceMemory(device), config), engine)
    }
}

/// The part of a chunk that is made of whole granules: a source may align to less.
fn usable(offset: u64, len: u64) -> Span {
    let start = offset.next_multiple_of(GRANULE);
    let end = (offset + len) / GRANULE * GRANULE;
    Span::new(start, end.saturating_sub(start))
}

impl<M: Source> Chunks<M> {
    /// Chunks of `source`.
    pub fn new(source: M, config: ChunkConfig) -> Self {
        Self { source, config, chunks: Mutex::new(BTreeMap::new()) }
    }

    /// The source.
    pub fn source(&self) -> &M {
        &self.source
    }

    fn offset_of(&self, extent: &Extent) -> u64 {
        let (start, end) = (extent.address(), extent.address() + extent.len());
        let chunks = self.chunks.lock();
        let mut taken = [false; 3];
        for (offset, other) in chunks.iter() {
            if other.address() == end || other.address() + other.len() == start {
                taken[(offset >> ADDRESS_BITS) as usize] = true;
            }
        }
        // At most two neighbours, so one of three colours is left.
        let colour = taken.iter().position(|taken| !taken).unwrap_or(0) as u64;
        start | colour << ADDRESS_BITS
    }

    fn acquire(&self, need: u64, held: u64) -> Result<Extent, PoolError> {
        let geometry = self.source.geometry();
        let room = self.config.limit.saturating_sub(held) / geometry.granule * geometry.granule;
        let need = need.next_multiple_of(geometry.granule);
        if need > room {
            let error = PoolError { shortage: Shortage::Limit, ..PoolError::bad_request(need) };
            return Err(error.with_limit(Some(self.config.limit)));
        }
        let usual = self.config.chunk_len.next_multiple_of(geometry.granule);
        let mut len = need.max(usual).min(room).min(geometry.max_len.max(need));
        loop {
            match self.source.acquire(len, geometry.max_align.min(256)) {
                Ok(extent) => return Ok(extent),
                Err(SourceError::OutOfMemory { .. } | SourceError::Limit { .. }) if len > need => {
                    len = (len / 2).max(need).next_multiple_of(geometry.granule);
                }
                Err(error) => return Err(PoolError::from_source(need, error)),
            }
        }
    }
}

impl<M, S> Backing<S> for Chunks<M>
where
    M: Source + Clone + Send + Sync + 'static,
    S: Streams + ?Sized,
{
    type Books = ();

    fn books(&self) {}

    fn grow<P: Placement>(
        &self,
        len: u64,
        align: u64,
        arena: &Mutex<Arena<P, ()>>,
        order: &StreamOrder<S>,
    ) -> Result<(), PoolError> {
        let granules = if self.source.geometry().max_align < GRANULE { GRANULE } else { 0 };
        let slack = granules + if align > 256 { align } else { 0 };
        if len > self.config.chunk_len {
            // Such a request gets a chunk of its own. Idle chunks would only add to what is held, so they go first.
            Backing::<S>::shrink(self, arena, order, false);
        }
        let held = arena.lock().reserved;
        let extent = match self.acquire(len + slack, held) {
            Ok(extent) => extent,
            Err(error) => {
                // Chunks that nobody uses may be too short, and stand in the way of one that is not.
                if Backing::<S>::shrink(self, arena, order, true) == 0 {
                    return Err(error);
                }
                let held = arena.lock().reserved;
                self.acquire(len + slack, held)?
            }
        };
        let offset = self.offset_of(&extent);
        let (len, span) = (extent.len(), usable(offset, extent.len()));
        self.chunks.lock().insert(offset, extent);
        if arena.lock().add(span).is_err() {
            if let Some(extent) = self.chunks.lock().remove(&offset) {
                // SAFETY: the chunk was never part of the space. If the source refuses, there is nobody left to tell.
                let _ = unsafe { self.source.release(extent) };
            }
            return Err(PoolError { shortage: Shortage::Exhaustion, ..PoolError::bad_request(len) });
        }
        Ok(())
    }

    fn shrink<P: Placement>(&self, arena: &Mutex<Arena<P, ()>>, order: &StreamOrder<S>, wait: bool) -> u64 {
        let all: Vec<(u64, u64)> = self.chunks.lock().iter().map(|(&o, e)| (o, e.len())).collect();
        let mut given_back = 0;
        for (offset, len) in all {
            let span = usable(offset, len);
            if wait {
                // Only if the chunk is one hole does anybody wait.
                let stamps: Vec<_> = {
                    let mut arena = arena.lock();
                    if arena.engine.remove(span).is_err() {
                        continue;
                    }
                    let back = arena.engine.add(span);
                    debug_assert!(back.is_ok(), "a span that was just taken out can be put back");
                    arena.stamps.stamps_in(span).collect()
                };
                if stamps.into_iter().any(|stamp| order.synchronize(stamp).is_err()) {
                    continue;
                }
            }
            if !arena.lock().remove_past(span, order) {
                continue;
            }
            let Some(extent) = self.chunks.lock().remove(&offset) else { continue };
            // SAFETY: the chunk was one hole, is no longer part of the space, and all work on it is past.
            match unsafe { self.source.release(extent) } {
                Ok(()) => given_back += span.len,
                Err(error) => {
                    self.chunks.lock().insert(offset, error.extent);
                    let back = arena.lock().add(span);
                    debug_assert!(back.is_ok(), "a span that was just taken out can be put back");
                }
            }
        }
        given_back
    }

    fn address(&self, offset: u64) -> u64 {
        offset & ((1 << ADDRESS_BITS) - 1)
    }

    fn max_align(&self) -> u64 {
        MAX_ALIGN
    }

    fn sibling(&self) -> Result<Self, PoolError> {
        Ok(Self::new(self.source.clone(), self.config))
    }

    fn close<P: Placement>(&mut self, arena: &mut Arena<P, ()>, order: &StreamOrder<S>) {
        arena.stamps.prune(|stamp| order.synchronize(stamp).is_ok());
        for (_, extent) in core::mem::take(self.chunks.get_mut()) {
            // SAFETY: the pool is gone, and with it every right to use its blocks; what they freed was waited for. If
            // the source refuses, there is nobody left to tell.
            let _ = unsafe { self.source.release(extent) };
        }
    }
}
