//! Device memory and page-locked host memory as [`Source`]s, and an order for memory that no stream uses.

use crate::device::{Device, DriverResult, Event, Stream, Streams};
use crate::error::DriverError;
use core::ptr::NonNull;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use terrane_core::{Extent, Geometry, HostMapped, ReleaseError, Source, SourceError};
use terrane_pages::{Mmap, NodeChoice, Numa};

/// Bytes that the driver's allocations are rounded up to here.
const DEVICE_GRANULE: u64 = 512;

fn refusal(error: DriverError, requested: u64) -> SourceError {
    if error.is_out_of_memory() {
        SourceError::OutOfMemory { requested }
    } else {
        SourceError::Os { code: error.code }
    }
}

/// The driver's plain allocator (`cuMemAlloc`) as a [`Source`].
#[derive(Debug)]
pub struct DeviceMemory<D: Device + ?Sized>(pub Arc<D>);

impl<D: Device + ?Sized> Clone for DeviceMemory<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

// SAFETY: the device keeps live allocations apart and aligned to 256 bytes.
unsafe impl<D: Device + ?Sized> Source for DeviceMemory<D> {
    fn geometry(&self) -> Geometry {
        Geometry { granule: DEVICE_GRANULE, max_align: 256, max_len: 1 << 55, zeroed: false }
    }

    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        self.geometry().check(len, align)?;
        let address = self.0.alloc(len).map_err(|error| refusal(error, len))?;
        // SAFETY: the driver has just given the range to us.
        Ok(unsafe { Extent::from_raw(address, len, 0) })
    }

    unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
        let len = extent.len();
        // SAFETY: the extent came from `acquire`, and the caller promises that nothing uses it any more.
        match unsafe { self.0.free(extent.address()) } {
            Ok(()) => {
                let _ = extent.into_raw();
                Ok(())
            }
            Err(error) => Err(ReleaseError { extent, cause: refusal(error, len) }),
        }
    }
}

/// Page-locked host memory as a [`Source`]; not write-combined, so the host may read it.
///
/// [`new`](Self::new) lets the driver allocate it. [`near`](Self::near) takes pages that prefer a NUMA node and has the
/// driver lock them: locking brings the pages in, and so they come from that node. Either is locked for all devices.
pub struct PinnedMemory<D: Device + ?Sized> {
    device: Arc<D>,
    near: Option<Arc<Near>>,
}

struct Near {
    node: u32,
    pages: Numa<Mmap>,
    /// Addresses that the driver allocated after all, because it would not lock pages of ours.
    by_driver: Mutex<HashSet<u64>>,
}

impl<D: Device + ?Sized> PinnedMemory<D> {
    /// Memory that the driver of `device` allocates, wherever it likes.
    pub fn new(device: Arc<D>) -> Self {
        Self { device, near: None }
    }

    /// Memory that prefers the NUMA node `node`: a hint, as [`Numa`] has it.
    pub fn near(device: Arc<D>, node: u32) -> Self {
        let pages = Numa::new(Mmap::new(), NodeChoice::Node(node));
        let near = Near { node, pages, by_driver: Mutex::default() };
        Self { device, near: Some(Arc::new(near)) }
    }

    /// The node that is preferred, if one is.
    pub fn node(&self) -> Option<u32> {
        self.near.as_ref().map(|near| near.node)
    }

    fn take_from_driver(&self, len: u64) -> Result<Extent, SourceError> {
        let ptr = self.device.host_alloc(len as usize).map_err(|error| refusal(error, len))?;
        // SAFETY: the driver has just given the range to us.
        Ok(unsafe { Extent::from_raw(ptr.expose_provenance() as u64, len, 0) })
    }
}

impl<D: Device + ?Sized> Clone for PinnedMemory<D> {
    fn clone(&self) -> Self {
        Self { device: self.device.clone(), near: self.near.clone() }
    }
}

impl<D: Device + ?Sized> core::fmt::Debug for PinnedMemory<D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PinnedMemory").field("node", &self.node()).finish_non_exhaustive()
    }
}

// SAFETY: the driver, or the system, keeps live allocations apart, and they start at a page.
unsafe impl<D: Device + ?Sized> Source for PinnedMemory<D> {
    fn geometry(&self) -> Geometry {
        let granule = self.near.as_ref().map_or(4096, |near| near.pages.geometry().granule.max(4096));
        Geometry { granule, max_align: 4096, max_len: 1 << 46, zeroed: false }
    }

    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        self.geometry().check(len, align)?;
        let Some(near) = &self.near else { return self.take_from_driver(len) };
        let extent = near.pages.acquire(len, align)?;
        // SAFETY: the pages are mapped, and stay so until they are unlocked in `release`.
        if unsafe { self.device.host_register(extent.as_ptr(), len as usize) }.is_ok() {
            return Ok(extent);
        }
        // SAFETY: nobody has seen the pages. If the system refuses, they are lost.
        let _ = unsafe { near.pages.release(extent) };
        let extent = self.take_from_driver(len)?;
        near.by_driver.lock().insert(extent.address());
        Ok(extent)
    }

    unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
        let len = extent.len();
        // Taken off the list before the driver has the address back: it may give it out again at once.
        let ours = self.near.as_ref().filter(|near| !near.by_driver.lock().remove(&extent.address()));
        let unlocked = match ours {
            // SAFETY: `acquire` had the pages locked, and the caller promises that nothing uses them any more.
            Some(_) => unsafe { self.device.host_unregister(extent.as_ptr()) },
            // SAFETY: the extent came from the driver, and the caller promises that nothing uses it any more.
            None => unsafe { self.device.host_free(extent.as_ptr()) },
        };
        if let Err(error) = unlocked {
            if let (None, Some(near)) = (ours, &self.near) {
                near.by_driver.lock().insert(extent.address());
            }
            return Err(ReleaseError { extent, cause: refusal(error, len) });
        }
        match ours {
            Some(near) => {
                // SAFETY: the pages came from there, and are no longer locked. If the system refuses they stay mapped,
                // and nobody knows of them: there is no way back once they are unlocked.
                let _ = unsafe { near.pages.release(extent) };
            }
            None => {
                let _ = extent.into_raw();
            }
        }
        Ok(())
    }

    fn host_mapped(&self) -> Option<&dyn HostMapped> {
        Some(self)
    }
}

impl<D: Device + ?Sized> HostMapped for PinnedMemory<D> {
    fn host_ptr(&self, extent: &Extent) -> NonNull<u8> {
        NonNull::new(extent.as_ptr()).unwrap_or(NonNull::dangling())
    }
}

/// The order of memory whose users are done when they give it back (host threads, or hardware whose completion was
/// awaited): every event is complete at once. There is one stream, [`Immediate::STREAM`].
#[derive(Clone, Copy, Default, Debug)]
pub struct Immediate;

impl Immediate {
    /// The only stream.
    pub const STREAM: Stream = Stream::new(0, 0);
}

// SAFETY: no work is ever submitted, so all of it is complete.
unsafe impl Streams for Immediate {
    fn event_create(&self) -> DriverResult<Event> {
        Ok(Event(0))
    }
    fn event_destroy(&self, _: Event) {}
    fn event_record(&self, _: Event, _: Stream) -> DriverResult<()> {
        Ok(())
    }
    fn event_query(&self, _: Event) -> DriverResult<bool> {
        Ok(true)
    }
    fn event_synchronize(&self, _: Event) -> DriverResult<()> {
        Ok(())
    }
    fn stream_wait(&self, _: Stream, _: Event) -> DriverResult<()> {
        Ok(())
    }
}
