//! Blocks of any length: [`VariablePool`], over any placement engine and any backing.
//!
//! Invariant: a span of the pool's space is a hole of the engine, or in exactly one stream's `Bins`, or handed out. A
//! span in the bins of stream `S` is safe for `S`; a hole is safe for whoever waits for its stamps.
//!
//! ```text
//!   allocate(len, stream)
//!     hit    the stream's bins: rounded length, one uncontended lock, no driver call, nothing shared
//!     miss   the engine: a hole; the stream waits (on the device) for the hole's stamps, if any
//!     merge  all streams' bins go back to the engine with their stamps; holes join; try again
//!     grow   the backing finds more space: a chunk from a Source, or remapped physical memory
//!     fail   with what was free, the longest hole, and which kind of shortage it was
//! ```
//!
//! Merging before growing is what keeps two streams from fragmenting the pool between them.

use crate::arena::{Arena, Books};
use crate::bins::Bins;
use crate::capture::{Captures, PRIVATE};
use crate::device::{Stream, Streams};
use crate::error::{DriverError, PoolError, Shortage};
use crate::gate::Gate;
use crate::lanes::LaneTable;
use crate::pool::{Block, DevicePool, PoolStats};
use crate::regions::{Closed, Regions};
use crate::size_class::{GRANULE, MAX_LEN, round_up};
use crate::stream_order::{Stamp, StreamOrder};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use terrane_core::{Placement, Span};

/// Events asked for completion on a miss.
const POLL: u32 = 4;
/// Blocks that wait in a stream's bins, freed in its open epoch, before that epoch is closed: later waits of other
/// streams are then for no more than these.
const FREES_PER_EPOCH: u64 = 256;

/// A placement engine that a pool can hold.
pub trait Engine: Placement + Send + 'static {}
impl<P: Placement + Send + 'static> Engine for P {}

/// Where a pool's space comes from.
///
/// Methods get the pool's arena locked up in a mutex, and must not hold that while they call a driver.
pub trait Backing<S: Streams + ?Sized>: Send + Sync + Sized + 'static {
    /// What this backing keeps about live spans.
    type Books: Books;

    /// Empty books.
    fn books(&self) -> Self::Books;

    /// Adds space to the arena in which `len` bytes at a multiple of `align` can be placed; if `shared`, in which as many
    /// bytes of shorter blocks can be. Only one thread at a time.
    ///
    /// # Errors
    /// Why there is no more space; the pool fills in what is free.
    fn grow<P: Placement>(
        &self,
        len: u64,
        align: u64,
        shared: bool,
        arena: &Mutex<Arena<P, Self::Books>>,
        order: &StreamOrder<S>,
    ) -> Result<(), PoolError>;

    /// Gives space that nobody uses back to where it came from; returns the bytes. With `wait`, the host waits for work
    /// on that space if it must.
    fn shrink<P: Placement>(
        &self,
        arena: &Mutex<Arena<P, Self::Books>>,
        order: &StreamOrder<S>,
        wait: bool,
    ) -> u64;

    /// The address that an offset of the space stands for.
    fn address(&self, offset: u64) -> u64;

    /// Largest alignment that can be asked for, in bytes.
    fn max_align(&self) -> u64;

    /// Requests of this many bytes or more get a chunk of their own, which [`grow`](Self::grow) adds.
    fn whole_from(&self) -> u64 {
        u64::MAX
    }

    /// The parts of the space, each of which can go on its own, that `span` touches; the lowest first.
    fn regions_of(&self, span: Span) -> Vec<Span>;

    /// Most bytes to take at once for blocks that shall lie side by side.
    fn room_at_once(&self) -> u64;

    /// Physical pieces that were moved to other addresses.
    fn remaps(&self) -> u64 {
        0
    }

    /// A backing of the same kind for a private pool.
    ///
    /// # Errors
    /// As for making the first.
    fn sibling(&self) -> Result<Self, PoolError>;

    /// The pool is dropped: everything goes back.
    fn close<P: Placement>(&mut self, arena: &mut Arena<P, Self::Books>, order: &StreamOrder<S>);
}

#[repr(align(128))]
struct Lane<P: Engine, B: Backing<S>, S: Streams + ?Sized + 'static> {
    state: Mutex<LaneState<P, B, S>>,
}

/// A private pool and its number.
type Private<P, B, S> = (u64, Arc<VariablePool<P, B, S>>);

struct LaneState<P: Engine, B: Backing<S>, S: Streams + ?Sized + 'static> {
    bins: Bins,
    /// Set while the stream is being captured.
    private: Option<Private<P, B, S>>,
    figures: StreamFigures,
    unclosed: u64,
}

/// What one stream did with a pool.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize))]
pub struct StreamFigures {
    /// [`Stream::key`].
    pub stream: u32,
    /// Blocks handed out for it.
    pub taken: u64,
    /// Bytes of those blocks.
    pub taken_bytes: u64,
    /// Bytes that were asked for.
    pub asked_bytes: u64,
    /// Blocks given back in its order.
    pub given: u64,
    /// Bytes of those blocks.
    pub given_bytes: u64,
    /// Bytes that had been asked for.
    pub given_asked_bytes: u64,
    /// Requests that its own list could not serve.
    pub misses: u64,
    /// Of those, served with what another stream had freed and not known to be past.
    pub steals: u64,
    /// Times it was made to wait for another stream.
    pub waits: u64,
    /// Bytes in its list now.
    pub held_bytes: u64,
    /// Spans in its list now.
    pub held: u64,
}

/// A pool of blocks of any length. See the [module](self) for how it works, and [`DevicePool`] for its use.
///
/// [`PoolStats::peak_live`] counts spans in streams' lists as live: an upper bound.
pub struct VariablePool<P: Engine, B: Backing<S>, S: Streams + ?Sized + 'static> {
    lanes: LaneTable<Lane<P, B, S>>,
    arena: Mutex<Arena<P, B::Books>>,
    growing: Gate,
    watch: bool,
    grows: AtomicU64,
    pub(crate) captures: Captures<Arc<VariablePool<P, B, S>>>,
    engine: fn() -> P,
    pub(crate) backing: B,
    order: StreamOrder<S>,
}

impl<P: Engine, B: Backing<S>, S: Streams + ?Sized + 'static> core::fmt::Debug for VariablePool<P, B, S> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("VariablePool").field("order", &self.order).finish_non_exhaustive()
    }
}

impl<P: Engine, B: Backing<S>, S: Streams + ?Sized + 'static> VariablePool<P, B, S> {
    /// A pool over `backing`, divided by an engine that `engine` makes. Takes no memory yet.
    pub fn over(streams: Arc<S>, backing: B, engine: fn() -> P) -> Self {
        Self {
            lanes: LaneTable::new(),
            arena: Mutex::new(Arena::new(engine(), backing.books(), backing.whole_from())),
            growing: Gate::default(),
            watch: streams.watches_blocks(),
            grows: AtomicU64::new(0),
            captures: Captures::default(),
            engine,
            backing,
            order: StreamOrder::new(streams),
        }
    }

    /// A new, empty pool like this one.
    ///
    /// # Errors
    /// As for making this one's backing.
    pub fn sibling(&self) -> Result<Self, PoolError> {
        Ok(Self::over(self.order.device().clone(), self.backing.sibling()?, self.engine))
    }

    /// The order between its streams.
    pub fn order(&self) -> &StreamOrder<S> {
        &self.order
    }

    /// The device, or whatever else the streams belong to.
    pub fn device(&self) -> &Arc<S> {
        self.order.device()
    }

    /// The figures of every stream that used the pool.
    pub fn stream_figures(&self) -> Vec<StreamFigures> {
        let figures = |key, lane: &Lane<P, B, S>| {
            let state = lane.state.lock();
            StreamFigures {
                stream: key,
                waits: self.order.waits_of(key),
                held_bytes: state.bins.bytes(),
                held: state.bins.count(),
                ..state.figures
            }
        };
        self.lanes.iter().map(|(key, lane)| figures(key, lane)).collect()
    }

    /// Makes room so that `len` bytes can be placed without growing.
    ///
    /// # Errors
    /// A [`PoolError`].
    pub fn reserve(&self, len: u64) -> Result<(), PoolError> {
        let (_, len) = round_up(len.max(1));
        let version = self.arena.lock().version;
        if self.arena.lock().engine.largest_shared() >= len {
            return Ok(());
        }
        self.grow(len, GRANULE, true, version)
    }

    #[inline]
    fn lane(&self, stream: Stream) -> &Lane<P, B, S> {
        self.lanes.get_or(stream.key(), || {
            let figures = StreamFigures { stream: stream.key(), ..StreamFigures::default() };
            let state = LaneState { bins: Bins::new(), private: None, figures, unclosed: 0 };
            Lane { state: Mutex::new(state) }
        })
    }

    fn block(&self, span: Span, asked: u64, stream: Stream) -> Block {
        let address = self.backing.address(span.offset);
        if self.watch {
            self.order.device().note_taken(address, span.len, stream);
        }
        Block { address, len: span.len, asked, key: span.offset }
    }

    /// A block from the engine, after a miss.
    #[cold]
    fn miss(&self, asked: u64, len: u64, align: u64, stream: Stream) -> Result<Span, PoolError> {
        if let Ok(span) = self.place(asked, len, align, stream)? {
            return Ok(span);
        }
        self.order.poll(POLL);
        self.merge();
        // Others may take what was merged or grown; each round somebody has got something.
        for _ in 0..64 {
            let version = match self.place(asked, len, align, stream)? {
                Ok(span) => return Ok(span),
                Err(version) => version,
            };
            self.learn();
            if let Err(error) = self.grow(len, align, false, version) {
                self.merge();
                let exact = asked.next_multiple_of(GRANULE);
                return match self.place(asked, len, align, stream)? {
                    Ok(span) => Ok(span),
                    // Without what lengths are rounded up by, there may be room.
                    Err(_) if exact < len => self.miss(asked, exact, align, stream),
                    Err(_) => Err(self.explain(asked, len, error)),
                };
            }
        }
        Err(self.explain(
            asked,
            len,
            PoolError { shortage: Shortage::Exhaustion, ..PoolError::bad_request(asked) },
        ))
    }

    /// Asks the engine; the inner error is the arena's version, for [`grow`](Self::grow).
    #[allow(
        clippy::type_complexity,
        reason = "two ways to have no span: none free, or the driver refused the order"
    )]
    fn place(
        &self,
        asked: u64,
        len: u64,
        align: u64,
        stream: Stream,
    ) -> Result<Result<Span, u64>, PoolError> {
        let (span, stamps) = {
            let mut arena = self.arena.lock();
            match arena.place(len, align) {
                Ok(placed) => placed,
                Err(_) => return Ok(Err(arena.version)),
            }
        };
        let waits = stamps.iter().filter(|&&stamp| !self.order.is_free_for(stream, stamp)).count();
        if waits > 0 {
            if let Err(error) = self.order.order_after(stream, stamps.iter().copied()) {
                self.arena.lock().vacate(span, stamps);
                return Err(PoolError::driver(asked, error));
            }
            self.lane(stream).state.lock().figures.steals += 1;
        }
        Ok(Ok(span))
    }

    /// All streams' lists go back to the engine, with their stamps.
    fn merge(&self) {
        for (lane, entry) in self.lanes.iter() {
            let freed = entry.state.lock().bins.drain();
            if freed.is_empty() {
                continue;
            }
            let mut arena = self.arena.lock();
            for (span, epoch) in freed {
                let stamp = Stamp { lane, epoch };
                let stamps = if self.order.is_done(stamp) { Vec::new() } else { vec![stamp] };
                arena.vacate(span, stamps);
            }
        }
        self.arena.lock().stamps.prune(|stamp| self.order.is_done(stamp));
    }

    /// Sees to it that the holes' stamps are covered by events, and asks those: what is past now, and what the next look
    /// will find past.
    fn learn(&self) {
        let latest = self.arena.lock().stamps.latest();
        for stamp in latest {
            // A refusal leaves the holes of that stream waiting.
            let _ = self.order.cover(stamp);
        }
        self.order.poll(u32::MAX);
    }

    fn grow(&self, len: u64, align: u64, shared: bool, version: u64) -> Result<(), PoolError> {
        let _inside = self.growing.enter();
        if self.arena.lock().version != version {
            return Ok(());
        }
        self.backing.grow(len, align, shared, &self.arena, &self.order)?;
        self.grows.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn explain(&self, asked: u64, len: u64, error: PoolError) -> PoolError {
        let arena = self.arena.lock();
        let (free, largest) = (arena.engine.free_bytes(), arena.engine.largest_free());
        let mut error = PoolError { requested: asked, ..error }.with_room(free, largest);
        if free >= len && matches!(error.shortage, Shortage::Exhaustion | Shortage::Limit) {
            error.shortage = Shortage::Fragmentation;
        }
        error
    }

    /// From now on, and until the guard is [ended](crate::capture::Capture::end), allocations for `stream` come from a
    /// private pool: to be called just before the stream's capture into a graph begins.
    ///
    /// # Errors
    /// [`Shortage::Driver`] with [`DriverError::CAPTURE_UNSUPPORTED`] if the stream is declared as captured already, and
    /// what making the private pool's backing meets.
    pub fn begin_capture(&self, stream: Stream) -> Result<crate::capture::Capture<'_, P, B, S>, PoolError> {
        let private = Arc::new(self.sibling()?);
        {
            let mut state = self.lane(stream).state.lock();
            if state.private.is_some() {
                let code = DriverError::CAPTURE_UNSUPPORTED;
                return Err(PoolError::driver(0, DriverError { call: "begin_capture", code }));
            }
            let id = self.captures.add(private.clone());
            state.private = Some((id, private.clone()));
        }
        self.order.set_captured(stream, true);
        private.order.set_captured(stream, true);
        Ok(crate::capture::Capture::new(self, private, stream))
    }

    /// Calls `f` with nobody growing the pool.
    pub(crate) fn with_arena<R>(&self, f: impl FnOnce(&Mutex<Arena<P, B::Books>>, &B) -> R) -> R {
        let _inside = self.growing.enter();
        f(&self.arena, &self.backing)
    }

    /// Gives back what nobody uses; the host waits for work on it.
    pub(crate) fn shrink_now(&self) -> u64 {
        let _inside = self.growing.enter();
        self.merge();
        self.backing.shrink(&self.arena, &self.order, true)
    }

    pub(crate) fn end_capture(&self, stream: Stream) {
        if let Some((_, private)) = self.lane(stream).state.lock().private.take() {
            self.order.set_captured(stream, false);
            private.order.set_captured(stream, false);
        }
    }
}

// SAFETY: a span is a hole, in one list, or handed out (the module's invariant), so blocks never overlap; the engine keeps
// lengths and alignments; what other streams freed is ordered in `place` before it is handed out.
unsafe impl<P: Engine, B: Backing<S>, S: Streams + ?Sized + 'static> DevicePool for VariablePool<P, B, S> {
    #[inline]
    fn allocate(&self, asked: u64, align: u64, stream: Stream) -> Result<Block, PoolError> {
        if asked == 0 || asked > MAX_LEN || !align.is_power_of_two() || align > self.backing.max_align() {
            return Err(PoolError::bad_request(asked));
        }
        let (class, len) = round_up(asked);
        let align = align.max(GRANULE);
        let lane = self.lane(stream);
        let mut state = lane.state.lock();
        if let Some((id, private)) = &state.private {
            let (id, private) = (*id, private.clone());
            drop(state);
            let mut block = private.allocate(asked, align, stream)?;
            block.key = PRIVATE | id << 8 | block.key >> 56;
            return Ok(block);
        }
        let hit = state.bins.pop(class, align);
        let span = match hit {
            Some(span) => span,
            None => {
                state.figures.misses += 1;
                drop(state);
                let span = self.miss(asked, len, align, stream)?;
                state = lane.state.lock();
                span
            }
        };
        state.figures.taken += 1;
        state.figures.taken_bytes += span.len;
        state.figures.asked_bytes += asked;
        drop(state);
        Ok(self.block(span, asked, stream))
    }

    #[inline]
    unsafe fn deallocate(&self, mut block: Block, stream: Stream, also_used_on: &[Stream]) {
        if block.key & PRIVATE != 0 {
            let id = (block.key & !PRIVATE) >> 8;
            block.key = block.address | (block.key & 0xFF) << 56;
            let give = |private: &Arc<Self>| {
                // SAFETY: the private pool with this number handed the block out; passed on by the caller.
                unsafe { private.deallocate(block, stream, also_used_on) };
            };
            self.captures.with(id, give, |private| private.stats().live_blocks == 0);
            return;
        }
        let shared = also_used_on.iter().any(|&other| other != stream);
        if self.watch && !shared {
            self.order.device().note_freed(block.address, block.len, stream);
        }
        let span = Span::new(block.key, block.len);
        let stamp = self.order.stamp(stream);
        let mut close = false;
        {
            let mut state = self.lane(stream).state.lock();
            state.figures.given += 1;
            state.figures.given_bytes += span.len;
            state.figures.given_asked_bytes += block.asked;
            if !shared {
                state.bins.push(span, stamp.epoch);
                state.unclosed += 1;
                if state.unclosed >= FREES_PER_EPOCH {
                    // Only if the blocks stayed: in a loop of pairs there is nothing to wait for.
                    close = state.bins.count() >= FREES_PER_EPOCH && state.private.is_none();
                    state.unclosed = 0;
                }
            }
        }
        if shared {
            let others = also_used_on.iter().map(|&s| self.order.stamp(s));
            let stamps = core::iter::once(stamp).chain(others).collect();
            self.arena.lock().vacate(span, stamps);
        }
        if close && !self.order.device().capturing() {
            // A refusal leaves the epoch open, which is as correct.
            let _ = self.order.close(stream);
        }
    }

    fn retire_stream(&self, stream: Stream) {
        // A refusal leaves the epoch open; its spans then cannot be given to other streams until a close succeeds.
        let _ = self.order.retire(stream);
        let freed = self.lane(stream).state.lock().bins.drain();
        let mut arena = self.arena.lock();
        for (span, epoch) in freed {
            arena.vacate(span, vec![Stamp { lane: stream.key(), epoch }]);
        }
    }

    fn trim(&self) -> u64 {
        let _inside = self.growing.enter();
        self.merge();
        self.learn();
        self.backing.shrink(&self.arena, &self.order, false)
    }

    fn stats(&self) -> PoolStats {
        let mut stats = PoolStats::default();
        let (mut taken, mut given, mut asked, mut unasked) = (0, 0, 0, 0);
        let (mut count, mut uncount, mut steals) = (0, 0, 0);
        for lane in self.stream_figures() {
            taken += lane.taken_bytes;
            given += lane.given_bytes;
            asked += lane.asked_bytes;
            unasked += lane.given_asked_bytes;
            count += lane.taken;
            uncount += lane.given;
            steals += lane.steals;
        }
        let arena = self.arena.lock();
        let order = self.order.stats();
        stats.reserved = arena.reserved;
        stats.peak_reserved = arena.peak_reserved;
        stats.live = taken.saturating_sub(given);
        stats.peak_live = arena.peak_placed;
        stats.requested = asked.saturating_sub(unasked);
        stats.live_blocks = count.saturating_sub(uncount);
        stats.largest_free = arena.engine.largest_free();
        stats.steals = steals;
        stats.waits = order.waits;
        stats.events_recorded = order.records;
        stats.grows = self.grows.load(Ordering::Relaxed);
        stats.remaps = self.backing.remaps();
        stats
    }
}

impl<P: Engine, B: Backing<S>, S: Streams + ?Sized + 'static> Regions for VariablePool<P, B, S> {
    fn regions_of(&self, block: &Block) -> Vec<Span> {
        if block.key & PRIVATE != 0 {
            return Vec::new();
        }
        self.backing.regions_of(Span::new(block.key, block.len))
    }

    fn close(&self, region: Span, live: &[Span]) -> Option<Closed> {
        self.arena.lock().close(region, live).map(Closed)
    }

    unsafe fn open(&self, closed: Closed) {
        self.arena.lock().open(closed.0);
    }

    fn trim_waiting(&self) -> u64 {
        self.shrink_now()
    }

    fn make_room(&self, len: u64) -> Result<(), PoolError> {
        self.reserve(len.min(self.backing.room_at_once()))
    }
}

impl<P: Engine, B: Backing<S>, S: Streams + ?Sized + 'static> Drop for VariablePool<P, B, S> {
    fn drop(&mut self) {
        self.merge();
        self.backing.close(self.arena.get_mut(), &self.order);
    }
}
