//! Copies between host and device that own both ends: [`Transfers`] and [`Transfer`].
//!
//! Invariant: while a copy is in flight nobody can touch its buffers, because the [`Transfer`] owns them. They come out of it
//! only when the copy is known to be complete. A transfer that is dropped before that leaves its buffers in a park, and they
//! are freed when somebody finds, later, that the copy is done. So use before ready does not compile, and use after free
//! does not happen.
//!
//! ```
//! use std::sync::Arc;
//! use terrane_gpu::transfer::Transfers;
//! use terrane_gpu::{ChunkConfig, Device, DeviceBuf, PinnedPool, Sim, VariablePool};
//!
//! let sim = Sim::new();
//! let device = sim.device(0);
//! let stream = device.stream_create()?;
//! let engine = || terrane_fit::Tlsf::with_granule(256);
//! let pool = Arc::new(VariablePool::on(device.clone(), ChunkConfig::default(), engine));
//! let pinned = PinnedPool::new(device.clone(), ChunkConfig::default());
//! let transfers = Transfers::new(device.clone(), pinned.clone());
//!
//! let host = pinned.copied(&[1.0f32, 2.0, 3.0])?;
//! let there = DeviceBuf::new_in(pool.clone(), 3, stream)?;
//! let (host, there) = transfers.upload(host, there)?.wait()?; // both came back
//! let (back, _) = transfers.download(there, pinned.zeroed(3)?)?.wait()?;
//! assert_eq!(back[..], host[..]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::buf::{DeviceBuf, Plain};
use crate::device::{Device, DriverResult, Event, Stream};
use crate::error::{DriverError, PoolError};
use crate::pinned::{PinnedBuf, PinnedPool};
use crate::pool::DevicePool;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of a piece when a slice that is not page-locked is copied in pieces.
const PIECE: usize = 4 << 20;
/// Pieces in flight at once.
const IN_FLIGHT: usize = 3;

/// Why a transfer did not start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TransferError {
    /// The ends differ in length: values at the source and at the destination.
    Length {
        /// Values at the source.
        from: usize,
        /// Values at the destination.
        to: usize,
    },
    /// The driver refused.
    Driver(DriverError),
    /// There was no page-locked memory for a piece.
    Pool(PoolError),
}

impl core::fmt::Display for TransferError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Length { from, to } => write!(f, "{from} values do not fit {to} exactly"),
            Self::Driver(error) => error.fmt(f),
            Self::Pool(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for TransferError {}

impl From<DriverError> for TransferError {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

impl From<PoolError> for TransferError {
    fn from(error: PoolError) -> Self {
        Self::Pool(error)
    }
}

/// Both ends of a copy between host and device.
pub type HostAndDevice<T, P, D> = (PinnedBuf<T, D>, DeviceBuf<T, P>);
/// Both ends of a copy within the device.
pub type DeviceAndDevice<T, P, Q> = (DeviceBuf<T, P>, DeviceBuf<T, Q>);
/// A transfer with its buffers `B`, or why it did not start.
pub type Started<B, D> = Result<Transfer<B, D>, TransferError>;

struct Parked {
    event: Event,
    /// Only dropped.
    _buffers: Box<dyn Send>,
}

struct Shared<D: Device + ?Sized + 'static> {
    device: Arc<D>,
    park: Mutex<Vec<Parked>>,
}

impl<D: Device + ?Sized> Shared<D> {
    /// Frees the parked buffers whose copies are done.
    fn sweep(&self, wait: bool) {
        let parked = core::mem::take(&mut *self.park.lock());
        let mut left = Vec::new();
        for entry in parked {
            let done = if wait {
                self.device.event_synchronize(entry.event).is_ok()
            } else {
                !self.device.capturing() && self.device.event_query(entry.event).unwrap_or(false)
            };
            if done {
                self.device.event_destroy(entry.event);
            } else {
                left.push(entry);
            }
        }
        self.park.lock().append(&mut left);
    }
}

impl<D: Device + ?Sized + 'static> Drop for Shared<D> {
    fn drop(&mut self) {
        self.sweep(true);
        // What the driver will not say is done is never freed: better lost than handed out under a copy.
        self.park.get_mut().drain(..).for_each(core::mem::forget);
    }
}

/// Starts copies on one device.
pub struct Transfers<D: Device + ?Sized + 'static> {
    shared: Arc<Shared<D>>,
    pinned: PinnedPool<D>,
}

impl<D: Device + ?Sized + 'static> core::fmt::Debug for Transfers<D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Transfers").field("parked", &self.parked()).finish_non_exhaustive()
    }
}

/// A copy in flight, with its buffers `B`. Poll it, wait for it, or await it.
#[must_use = "a transfer that is dropped parks its buffers until the copy is done"]
pub struct Transfer<B: Send + 'static, D: Device + ?Sized + 'static> {
    shared: Arc<Shared<D>>,
    stream: Stream,
    state: Option<(Event, B)>,
    waker: Option<Arc<Wake>>,
}

/// The waker of whoever awaits a transfer; the driver calls it once.
struct Wake {
    called: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl<B: Send + 'static, D: Device + ?Sized + 'static> core::fmt::Debug for Transfer<B, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Transfer").field("pending", &self.state.is_some()).finish_non_exhaustive()
    }
}

fn same<T>(from: usize, to: usize, _: core::marker::PhantomData<T>) -> Result<(), TransferError> {
    if from == to { Ok(()) } else { Err(TransferError::Length { from, to }) }
}

impl<D: Device + ?Sized + 'static> Transfers<D> {
    /// Copies on `device`, with page-locked memory for the pieces of slices that are not from `pinned`.
    pub fn new(device: Arc<D>, pinned: PinnedPool<D>) -> Self {
        Self { shared: Arc::new(Shared { device, park: Mutex::new(Vec::new()) }), pinned }
    }

    /// Transfers that were dropped and are not known to be done.
    pub fn parked(&self) -> usize {
        self.shared.park.lock().len()
    }

    /// Frees the buffers of dropped transfers whose copies are done.
    pub fn sweep(&self) {
        self.shared.sweep(false);
    }

    fn start<B: Send + 'static>(
        &self,
        stream: Stream,
        buffers: B,
        copy: impl FnOnce(&D, &B) -> DriverResult<()>,
    ) -> Result<Transfer<B, D>, TransferError> {
        self.shared.sweep(false);
        let device = &self.shared.device;
        let event = device.event_create()?;
        if let Err(error) = copy(device, &buffers) {
            device.event_destroy(event);
            return Err(error.into());
        }
        let recorded = device.event_record(event, stream);
        let transfer =
            Transfer { shared: self.shared.clone(), stream, state: Some((event, buffers)), waker: None };
        if let Err(error) = recorded {
            // The copy was submitted and has no event: wait for the stream before the buffers are let go.
            if device.stream_synchronize(stream).is_err() {
                core::mem::forget(transfer);
            }
            return Err(error.into());
        }
        Ok(transfer)
    }

    /// Copies `from` to the device, in the order of `to`'s stream.
    ///
    /// # Errors
    /// Different lengths, or the driver's refusal; the buffers are then freed.
    pub fn upload<T: Plain, P: DevicePool + 'static>(
        &self,
        from: PinnedBuf<T, D>,
        to: DeviceBuf<T, P>,
    ) -> Started<HostAndDevice<T, P, D>, D> {
        same(from.len(), to.len(), core::marker::PhantomData::<T>)?;
        self.start(to.stream(), (from, to), |device, (from, to)| {
            // SAFETY: both ends have these bytes, and the transfer owns them until the copy is complete.
            unsafe { device.upload(to.address(), from.address(), from.bytes(), to.stream()) }
        })
    }

    /// Copies `from` to the host, in the order of `from`'s stream; the host's buffer comes out first.
    ///
    /// # Errors
    /// Different lengths, or the driver's refusal; the buffers are then freed.
    pub fn download<T: Plain, P: DevicePool + 'static>(
        &self,
        from: DeviceBuf<T, P>,
        to: PinnedBuf<T, D>,
    ) -> Started<HostAndDevice<T, P, D>, D> {
        same(from.len(), to.len(), core::marker::PhantomData::<T>)?;
        self.start(from.stream(), (to, from), |device, (to, from)| {
            // SAFETY: as in `upload`.
            unsafe { device.download(to.address(), from.address(), from.bytes(), from.stream()) }
        })
    }

    /// Copies within the device, in the order of `to`'s stream, which waits for `from`'s.
    ///
    /// # Errors
    /// Different lengths, or the driver's refusal; the buffers are then freed.
    pub fn copy<T: Plain, P: DevicePool + 'static, Q: DevicePool + 'static>(
        &self,
        from: DeviceBuf<T, P>,
        to: DeviceBuf<T, Q>,
    ) -> Started<DeviceAndDevice<T, P, Q>, D> {
        same(from.len(), to.len(), core::marker::PhantomData::<T>)?;
        from.used_on(to.stream());
        self.start(to.stream(), (from, to), |device, (from, to)| {
            if from.stream() != to.stream() {
                let event = device.event_create()?;
                let ordered = device
                    .event_record(event, from.stream())
                    .and_then(|()| device.stream_wait(to.stream(), event));
                device.event_destroy(event);
                ordered?;
            }
            // SAFETY: as in `upload`; two buffers do not overlap.
            unsafe { device.copy(to.address(), from.address(), from.bytes(), to.stream()) }
        })
    }

    /// Copies a slice that is not page-locked to the device, in pieces through page-locked memory, so that the host fills
    /// one piece while others are under way. Returns when the slice has been read.
    ///
    /// # Errors
    /// Different lengths, no memory for a piece, or the driver's refusal; pieces that are under way are parked, and `to`
    /// is given back in the order of its stream.
    pub fn upload_slice<T: Plain, P: DevicePool + 'static>(
        &self,
        from: &[T],
        to: DeviceBuf<T, P>,
    ) -> Result<Transfer<DeviceBuf<T, P>, D>, TransferError> {
        same(from.len(), to.len(), core::marker::PhantomData::<T>)?;
        let stream = to.stream();
        let mut pieces: VecDeque<Transfer<PinnedBuf<T, D>, D>> = VecDeque::new();
        let mut at = to.address();
        for values in from.chunks((PIECE / size_of::<T>().max(1)).max(1)) {
            if pieces.len() == IN_FLIGHT
                && let Some(oldest) = pieces.pop_front()
            {
                drop(oldest.wait()?);
            }
            let piece = self.pinned.copied(values)?;
            let here = at;
            pieces.push_back(self.start(stream, piece, |device, piece| {
                // SAFETY: the piece is owned until it is copied, and `to` outlives the stream's work on it: it is given
                // back in the order of this stream.
                unsafe { device.upload(here, piece.address(), piece.bytes(), stream) }
            })?);
            at += size_of_val(values) as u64;
        }
        // The pieces still in flight are parked: their transfers are dropped here.
        drop(pieces);
        self.start(stream, to, |_, _| Ok(()))
    }

    /// Copies from the device into a slice that is not page-locked, in pieces through page-locked memory, so that one piece
    /// is emptied while others are under way. Blocks until the slice is written.
    ///
    /// # Errors
    /// Different lengths, no memory for a piece, or the driver's refusal; the slice is then partly written.
    pub fn download_slice<T: Plain, P: DevicePool + 'static>(
        &self,
        from: &DeviceBuf<T, P>,
        to: &mut [T],
    ) -> Result<(), TransferError> {
        same(from.len(), to.len(), core::marker::PhantomData::<T>)?;
        let (stream, per_piece) = (from.stream(), (PIECE / size_of::<T>().max(1)).max(1));
        let mut flying = VecDeque::new();
        let land = |(values, transfer): (&mut [T], Transfer<PinnedBuf<T, D>, D>)| {
            values.copy_from_slice(&transfer.wait()?);
            Ok::<(), TransferError>(())
        };
        let mut at = from.address();
        for values in to.chunks_mut(per_piece) {
            if flying.len() == IN_FLIGHT
                && let Some(oldest) = flying.pop_front()
            {
                land(oldest)?;
            }
            let piece = self.pinned.zeroed(values.len())?;
            let here = at;
            let transfer = self.start(stream, piece, |device, piece| {
                // SAFETY: the piece is owned until it is written; `from` is borrowed, and is given back in the order of
                // this stream.
                unsafe { device.download(piece.address(), here, piece.bytes(), stream) }
            })?;
            at += size_of_val(values) as u64;
            flying.push_back((values, transfer));
        }
        flying.into_iter().try_for_each(land)
    }
}

impl<B: Send + 'static, D: Device + ?Sized + 'static> Transfer<B, D> {
    /// The buffers, if the copy is done; otherwise the transfer again.
    ///
    /// # Errors
    /// The driver's refusal; the buffers are then parked.
    pub fn poll_done(mut self) -> Result<Result<B, Self>, DriverError> {
        let Some((event, _)) = self.state.as_ref() else { return Ok(Err(self)) };
        if self.shared.device.capturing() || !self.shared.device.event_query(*event)? {
            return Ok(Err(self));
        }
        Ok(self.finish().ok_or(self))
    }

    /// Blocks until the copy is done, and returns the buffers.
    ///
    /// # Errors
    /// The driver's refusal; the buffers are then parked.
    pub fn wait(mut self) -> Result<B, DriverError> {
        let gone = DriverError { call: "wait", code: DriverError::INVALID_VALUE };
        let Some((event, _)) = self.state.as_ref() else { return Err(gone) };
        self.shared.device.event_synchronize(*event)?;
        self.finish().ok_or(gone)
    }

    /// The copy is known to be done.
    fn finish(&mut self) -> Option<B> {
        let (event, buffers) = self.state.take()?;
        self.shared.device.event_destroy(event);
        Some(buffers)
    }
}

// The buffers are never pinned by their address inside the transfer.
impl<B: Send + 'static, D: Device + ?Sized + 'static> Unpin for Transfer<B, D> {}

impl<B: Send + 'static, D: Device + ?Sized + 'static> Future for Transfer<B, D> {
    type Output = Result<B, DriverError>;

    /// # Panics
    /// If it is polled after it was ready.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some((event, _)) = self.state.as_ref() else { panic!("polled after it was ready") };
        let event = *event;
        let wake = match &self.waker {
            Some(wake) => wake.clone(),
            None => {
                let wake = Arc::new(Wake { called: AtomicBool::new(false), waker: Mutex::new(None) });
                let there = wake.clone();
                // The driver's thread wakes the task once everything before this is done.
                let call = move || {
                    there.called.store(true, Ordering::Release);
                    if let Some(waker) = there.waker.lock().take() {
                        waker.wake();
                    }
                };
                if let Err(error) = self.shared.device.when_done(self.stream, Box::new(call)) {
                    return Poll::Ready(Err(error));
                }
                self.waker = Some(wake.clone());
                wake
            }
        };
        *wake.waker.lock() = Some(context.waker().clone());
        // Looked at after the waker was left there: a call in between is not missed. The call comes when all work before it
        // is complete, the copy too; so while a capture is declared, when nothing may be asked, the call alone decides.
        let mut done = wake.called.load(Ordering::Acquire);
        if !done && !self.shared.device.capturing() {
            done = match self.shared.device.event_query(event) {
                Ok(done) => done,
                Err(error) => return Poll::Ready(Err(error)),
            };
        }
        if !done {
            return Poll::Pending;
        }
        match self.finish() {
            Some(buffers) => Poll::Ready(Ok(buffers)),
            None => Poll::Pending,
        }
    }
}

impl<B: Send + 'static, D: Device + ?Sized + 'static> Drop for Transfer<B, D> {
    fn drop(&mut self) {
        if let Some((event, buffers)) = self.state.take() {
            self.shared.park.lock().push(Parked { event, _buffers: Box::new(buffers) });
        }
    }
}
