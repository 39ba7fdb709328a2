//! Space in chunks from any [`Source`]: the backing of [`VariablePool`] for plain device memory, and the place where
//! special hardware plugs in.
//!
//! Invariant: each chunk is one extent of the source, and spans never cross from one extent to another, even if the source
//! happens to hand out neighbours: the driver does not know of copies across its allocations. So an offset of the pool's
//! space is the address with a *colour* in its upper bits, and neighbouring chunks differ in colour.
//!
//! Short blocks share chunks; a long block gets a chunk of its own length, handed out whole. Chunks cannot be joined, so a
//! long chunk in which one short block had settled would be lost to long requests; and one that nobody shares can go back
//! the moment more is held than [`ChunkConfig::idle_percent`] allows.

use crate::arena::Arena;
use crate::device::{Device, Streams};
use crate::error::{PoolError, Shortage};
use crate::size_class::GRANULE;
use crate::sources::DeviceMemory;
use crate::space::{DRIVER_PAGE, WHOLE, WHOLE_ALIGN, suits};
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
    /// Requests of this many bytes or more get a chunk of their own, rounded up to 2 MiB if it is as long as that:
    /// drivers do not take less. An idle one serves requests that are shorter by a sixteenth at most.
    pub whole_from: u64,
    /// Chunks that nobody uses are kept until the pool has to grow, and then as long as all that is held is no more than
    /// this much above what is in use, in percent. More of it spares driver calls, less of it memory.
    pub idle_percent: u32,
    /// Most bytes that the pool may hold; `u64::MAX` for no limit.
    pub limit: u64,
}

impl Default for ChunkConfig {
    fn default() -> Self {
        Self { chunk_len: 32 << 20, whole_from: 8 << 20, idle_percent: 10, limit: u64::MAX }
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
                taken[((offset & !WHOLE) >> ADDRESS_BITS) as usize] = true;
            }
        }
        // At most two neighbours, so one of three colours is left.
        let colour = taken.iter().position(|taken| !taken).unwrap_or(0) as u64;
        start | colour << ADDRESS_BITS
    }

    /// Bytes of a chunk that is handed out whole to `len` bytes.
    fn whole_len(&self, len: u64) -> u64 {
        let page = if len < DRIVER_PAGE { 1 } else { DRIVER_PAGE };
        len.next_multiple_of(page).next_multiple_of(self.source.geometry().granule)
    }

    fn acquire(&self, need: u64, whole: bool, held: u64) -> Result<Extent, PoolError> {
        let geometry = self.source.geometry();
        let room = self.config.limit.saturating_sub(held) / geometry.granule * geometry.granule;
        let need = need.next_multiple_of(geometry.granule);
        if need > room {
            let error = PoolError { shortage: Shortage::Limit, ..PoolError::bad_request(need) };
            return Err(error.with_limit(Some(self.config.limit)));
        }
        let usual = if whole { self.whole_len(need) } else { self.config.chunk_len };
        let usual = usual.next_multiple_of(geometry.granule);
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

    /// Gives chunks that nobody uses back until that makes `wanted` bytes, those that are handed out whole first. With
    /// `wait`, the host waits for work on them if it must.
    fn release_idle<P: Placement, S: Streams + ?Sized>(
        &self,
        arena: &Mutex<Arena<P, ()>>,
        order: &StreamOrder<S>,
        wait: bool,
        wanted: u64,
    ) -> u64 {
        // The bit of whole chunks is above all addresses and colours.
        let all: Vec<(u64, u64)> = self.chunks.lock().iter().rev().map(|(&o, e)| (o, e.len())).collect();
        let mut given_back = 0;
        for (offset, len) in all {
            if given_back >= wanted {
                break;
            }
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
        shared: bool,
        arena: &Mutex<Arena<P, ()>>,
        order: &StreamOrder<S>,
    ) -> Result<(), PoolError> {
        let granules = if self.source.geometry().max_align < GRANULE { GRANULE } else { 0 };
        let slack = granules + if align > 256 { align } else { 0 };
        let whole = !shared
            && len >= self.config.whole_from
            && align <= WHOLE_ALIGN
            && slack == 0
            && suits(self.whole_len(len), len);
        let usual = if whole { self.whole_len(len) } else { len.max(self.config.chunk_len) };
        let (held, placed) = {
            let arena = arena.lock();
            (arena.reserved, arena.placed)
        };
        // What will be in use, and the share of it that may lie idle.
        let most = (placed + usual).saturating_add(placed / 100 * u64::from(self.config.idle_percent));
        if held + usual > most {
            self.release_idle(arena, order, false, held + usual - most);
        }
        let held = arena.lock().reserved;
        let extent = match self.acquire(len + slack, whole, held) {
            Ok(extent) => extent,
            Err(error) => {
                // Chunks that nobody uses may be too short, and stand in the way of one that is not.
                if Backing::<S>::shrink(self, arena, order, true) == 0 {
                    return Err(error);
                }
                let held = arena.lock().reserved;
                self.acquire(len + slack, whole, held)?
            }
        };
        let offset = self.offset_of(&extent) | if whole { WHOLE } else { 0 };
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
        self.release_idle(arena, order, wait, u64::MAX)
    }

    fn whole_from(&self) -> u64 {
        self.config.whole_from
    }

    fn address(&self, offset: u64) -> u64 {
        offset & ((1 << ADDRESS_BITS) - 1)
    }

    fn regions_of(&self, span: Span) -> Vec<Span> {
        let chunks = self.chunks.lock();
        chunks
            .range(..=span.offset)
            .next_back()
            .map(|(&at, chunk)| usable(at, chunk.len()))
            .into_iter()
            .collect()
    }

    fn room_at_once(&self) -> u64 {
        self.config.chunk_len
    }

    fn max_align(&self) -> u64 {
        MAX_ALIGN
    }

    fn sibling(&self) -> Result<Self, PoolError> {
        Ok(Self::new(self.source.clone(), self.config))
    }

    fn close<P: Placement>(&mut self, arena: &mut Arena<P, ()>, order: &StreamOrder<S>) {
        // Twice: what was refused for want of an event may not be the next time.
        (0..2).for_each(|_| arena.stamps.prune(|stamp| order.synchronize(stamp).is_ok()));
        for (offset, extent) in core::mem::take(self.chunks.get_mut()) {
            // What cannot be told to be past may still use the chunk, which is leaked then.
            if arena.stamps.stamps_in(usable(offset, extent.len())).next().is_some() {
                continue;
            }
            // SAFETY: the pool is gone, and with it every right to use its blocks; what they freed was waited for. If
            // the source refuses, there is nobody left to tell.
            let _ = unsafe { self.source.release(extent) };
        }
    }
}
