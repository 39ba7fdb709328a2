//! When may memory that one stream freed be used by another? Epochs, one event for each, and waits on the device.
//!
//! Invariant: a block with stamp `(stream S, epoch e)` is used by a stream `T` only if `T` is `S`, or the host knows that
//! `e` is past, or `T` was made to wait for an event that covers `e`.
//!
//! Protocol.
//! 1. A free stamps the block with the freeing stream's open epoch. No driver call.
//! 2. Reuse by the same stream needs nothing: the stream's own order is enough. No driver call.
//! 3. Reuse by another stream **closes** the epoch if it is open (one event record on `S`, for all frees of the epoch
//!    together) and makes `T` wait for that event. The host never waits. What `T` has waited for is remembered, so the
//!    next block of the same epoch costs nothing.
//! 4. Now and then events are asked whether they are complete; then their epochs need no wait at all, and the events go
//!    back to a shelf. While a capture is declared nothing is asked.
//!
//! No lock is held during a driver call. The events on the shelf are recorded again while some slow thread may still
//! be about to wait for their former record; that record is complete then, so the wait is at worst a wait too many.

use crate::device::{DriverResult, Event, Stream, Streams};
use crate::epoch::Epochs;
use crate::error::DriverError;
use crate::lanes::LaneTable;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Which stream freed, and in which of its epochs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Stamp {
    /// [`Stream::key`] of the freeing stream.
    pub lane: u32,
    /// The epoch that was open.
    pub epoch: u64,
}

/// What keeping the order has cost in driver calls.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct OrderStats {
    /// Events recorded: epochs closed.
    pub records: u64,
    /// Times a stream was made to wait for another.
    pub waits: u64,
    /// Waits that were not needed, because the same stream had waited for as much before.
    pub waits_spared: u64,
    /// Events asked.
    pub queries: u64,
    /// Events in use or on the shelf.
    pub events: u64,
}

#[repr(align(128))]
struct OrderLane {
    stream: Stream,
    epochs: Epochs,
    /// The stream is gone; its open epoch stays empty.
    retired: AtomicBool,
    /// Being captured: may not wait for anything outside.
    captured: AtomicBool,
    /// Times it was made to wait for another.
    waits: AtomicU64,
    state: Mutex<LaneState>,
}

#[derive(Default)]
struct LaneState {
    /// Closed epochs with their events, by epoch.
    closed: VecDeque<(u64, Event)>,
    /// For other streams by key: the epoch up to which this stream waits for them.
    seen: Vec<(u32, u64)>,
}

/// The order between the streams that share a pool.
pub struct StreamOrder<D: Streams + ?Sized> {
    lanes: LaneTable<OrderLane>,
    shelf: Mutex<Vec<Event>>,
    records: AtomicU64,
    spared: AtomicU64,
    queries: AtomicU64,
    events: AtomicU64,
    device: Arc<D>,
}

impl<D: Streams + ?Sized> core::fmt::Debug for StreamOrder<D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("StreamOrder").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl<D: Streams + ?Sized> StreamOrder<D> {
    /// An order over the streams of `device`.
    pub fn new(device: Arc<D>) -> Self {
        Self {
            lanes: LaneTable::new(),
            shelf: Mutex::new(Vec::new()),
            records: AtomicU64::new(0),
            spared: AtomicU64::new(0),
            queries: AtomicU64::new(0),
            events: AtomicU64::new(0),
            device,
        }
    }

    /// The device.
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// Driver calls so far.
    pub fn stats(&self) -> OrderStats {
        OrderStats {
            records: self.records.load(Ordering::Relaxed),
            waits: self.lanes.iter().map(|(_, lane)| lane.waits.load(Ordering::Relaxed)).sum(),
            waits_spared: self.spared.load(Ordering::Relaxed),
            queries: self.queries.load(Ordering::Relaxed),
            events: self.events.load(Ordering::Relaxed),
        }
    }

    /// Times the stream with this [key](Stream::key) was made to wait for another.
    pub fn waits_of(&self, key: u32) -> u64 {
        self.lanes.get(key).map_or(0, |lane| lane.waits.load(Ordering::Relaxed))
    }

    #[inline]
    fn lane(&self, stream: Stream) -> &OrderLane {
        self.lanes.get_or(stream.key(), || OrderLane {
            stream,
            epochs: Epochs::new(),
            retired: AtomicBool::new(false),
            captured: AtomicBool::new(false),
            waits: AtomicU64::new(0),
            state: Mutex::new(LaneState::default()),
        })
    }

    /// The stamp for a block that is freed now on `stream`, after all its work was submitted.
    #[inline]
    pub fn stamp(&self, stream: Stream) -> Stamp {
        let lane = self.lane(stream);
        let open = lane.epochs.stamp();
        // After retirement no work can have been submitted: the last closed epoch covers everything.
        let epoch = if lane.retired.load(Ordering::Relaxed) { open - 1 } else { open };
        Stamp { lane: stream.key(), epoch }
    }

    /// Whether a block with this stamp can be used by `stream` as it is. Makes no driver call.
    #[inline]
    pub fn is_free_for(&self, stream: Stream, stamp: Stamp) -> bool {
        stamp.lane == stream.key() || self.is_done(stamp)
    }

    /// Whether the host knows that a stamp is past. Makes no driver call.
    #[inline]
    pub fn is_done(&self, stamp: Stamp) -> bool {
        self.lanes.get(stamp.lane).is_none_or(|lane| lane.epochs.is_done(stamp.epoch))
    }

    /// Makes `stream` wait for everything that `stamps` stand for, with as few driver calls as that takes.
    ///
    /// # Errors
    /// The driver's refusal; the blocks must not be used by `stream` then.
    pub fn order_after(&self, stream: Stream, stamps: impl IntoIterator<Item = Stamp>) -> DriverResult<()> {
        for stamp in stamps {
            if self.is_free_for(stream, stamp) {
                continue;
            }
            let (Some(freed_by), consumer) = (self.lanes.get(stamp.lane), self.lane(stream)) else {
                continue;
            };
            let seen = consumer.state.lock().seen.iter().find(|(l, _)| *l == stamp.lane).map(|s| s.1);
            if seen.is_some_and(|epoch| stamp.epoch <= epoch) {
                self.spared.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            if consumer.captured.load(Ordering::Relaxed) || freed_by.captured.load(Ordering::Relaxed) {
                return Err(DriverError { call: "cuStreamWaitEvent", code: DriverError::CAPTURE_ISOLATION });
            }
            let Some((epoch, event)) = self.covering(freed_by, stamp.epoch)? else { continue };
            self.device.stream_wait(stream, event)?;
            consumer.waits.fetch_add(1, Ordering::Relaxed);
            let mut state = consumer.state.lock();
            match state.seen.iter_mut().find(|(l, _)| *l == stamp.lane) {
                Some(entry) => entry.1 = entry.1.max(epoch),
                None => state.seen.push((stamp.lane, epoch)),
            }
        }
        Ok(())
    }

    /// Blocks the host until `stamp` is past. For giving memory back, and before giving up; never for reuse.
    ///
    /// # Errors
    /// The driver's refusal.
    pub fn synchronize(&self, stamp: Stamp) -> DriverResult<()> {
        let Some(lane) = self.lanes.get(stamp.lane) else { return Ok(()) };
        if lane.epochs.is_done(stamp.epoch) {
            return Ok(());
        }
        let Some((epoch, event)) = self.covering(lane, stamp.epoch)? else { return Ok(()) };
        self.device.event_synchronize(event)?;
        self.past(lane, epoch);
        Ok(())
    }

    /// Closes the open epoch of `stream`, so that later waits for what it freed up to now wait for no more than that.
    ///
    /// # Errors
    /// The driver's refusal; the epoch is then covered by the next close.
    pub fn close(&self, stream: Stream) -> DriverResult<()> {
        let lane = self.lane(stream);
        if lane.retired.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.close_lane(lane).map(|_| ())
    }

    /// Sees to it that there is an event which covers `stamp`, so that [`poll`](Self::poll) can find it past.
    ///
    /// # Errors
    /// The driver's refusal.
    pub fn cover(&self, stamp: Stamp) -> DriverResult<()> {
        match self.lanes.get(stamp.lane) {
            Some(lane) if !lane.captured.load(Ordering::Relaxed) => {
                self.covering(lane, stamp.epoch).map(|_| ())
            }
            _ => Ok(()),
        }
    }

    /// To be called before `stream` is destroyed: closes its last epoch while an event can still be recorded.
    ///
    /// # Errors
    /// The driver's refusal; the stream is then not retired.
    pub fn retire(&self, stream: Stream) -> DriverResult<()> {
        let lane = self.lane(stream);
        if !lane.retired.load(Ordering::Relaxed) {
            self.close_lane(lane)?;
            lane.retired.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Asks up to `limit` events whether they are complete; asks nothing while a capture is declared. Refusals are taken
    /// for "not yet".
    pub fn poll(&self, limit: u32) {
        let mut left = limit;
        for (_, lane) in self.lanes.iter() {
            while left > 0 && !self.device.capturing() {
                let Some((epoch, event)) = lane.state.lock().closed.front().copied() else { break };
                left -= 1;
                self.queries.fetch_add(1, Ordering::Relaxed);
                match self.device.event_query(event) {
                    Ok(true) => self.past(lane, epoch),
                    Ok(false) | Err(_) => break,
                }
            }
        }
    }

    /// Notes that `stream` is being captured, or no longer is.
    pub fn set_captured(&self, stream: Stream, captured: bool) {
        let was = self.lane(stream).captured.swap(captured, Ordering::Relaxed);
        if was != captured {
            self.device.declare_capture(captured);
        }
    }

    /// Whether `stream` is being captured, as far as was declared.
    #[inline]
    pub fn is_captured(&self, stream: Stream) -> bool {
        self.lanes.get(stream.key()).is_some_and(|lane| lane.captured.load(Ordering::Relaxed))
    }

    /// An event that covers `epoch` of `lane`, with the last epoch that it covers; `None` if the epoch is past.
    fn covering(&self, lane: &OrderLane, epoch: u64) -> DriverResult<Option<(u64, Event)>> {
        let found = {
            let state = lane.state.lock();
            let at = state.closed.partition_point(|(e, _)| *e < epoch);
            state.closed.get(at).copied()
        };
        match found {
            Some(found) => Ok(Some(found)),
            // `past` sets an epoch done before it takes the event away.
            None if lane.epochs.is_done(epoch) => Ok(None),
            None => self.close_lane(lane).map(Some),
        }
    }

    fn close_lane(&self, lane: &OrderLane) -> DriverResult<(u64, Event)> {
        let spare = self.shelf.lock().pop();
        let event = match spare {
            Some(event) => event,
            None => {
                let event = self.device.event_create()?;
                self.events.fetch_add(1, Ordering::Relaxed);
                event
            }
        };
        // First the counter, then the record: see `epoch`.
        let epoch = lane.epochs.advance();
        if let Err(error) = self.device.event_record(event, lane.stream) {
            self.shelf.lock().push(event);
            return Err(error);
        }
        self.records.fetch_add(1, Ordering::Relaxed);
        let mut state = lane.state.lock();
        let at = state.closed.partition_point(|(e, _)| *e < epoch);
        state.closed.insert(at, (epoch, event));
        Ok((epoch, event))
    }

    /// The event of `epoch` is complete.
    fn past(&self, lane: &OrderLane, epoch: u64) {
        lane.epochs.set_done(epoch);
        let mut freed = Vec::new();
        {
            let mut state = lane.state.lock();
            while state.closed.front().is_some_and(|(e, _)| *e <= epoch) {
                freed.extend(state.closed.pop_front().map(|(_, event)| event));
            }
        }
        self.shelf.lock().append(&mut freed);
    }
}

impl<D: Streams + ?Sized> Drop for StreamOrder<D> {
    fn drop(&mut self) {
        for (_, lane) in self.lanes.iter() {
            for (_, event) in lane.state.lock().closed.drain(..) {
                self.device.event_destroy(event);
            }
            if lane.captured.load(Ordering::Relaxed) {
                self.device.declare_capture(false);
            }
        }
        for event in self.shelf.get_mut().drain(..) {
            self.device.event_destroy(event);
        }
    }
}
