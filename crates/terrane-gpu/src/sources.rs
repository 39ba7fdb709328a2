//! Device memory and page-locked host memory as [`Source`]s, and an order for memory that no stream uses.

use crate::device::{Device, DriverResult, Event, Stream, Streams};
use crate::error::DriverError;
use core::ptr::NonNull;
use std::sync::Arc;
use terrane_core::{Extent, Geometry, HostMapped, ReleaseError, Source, SourceError};

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

/// Page-locked host memory of a device's driver as a [`Source`]; not write-combined, so the host may read it.
#[derive(Debug)]
pub struct PinnedMemory<D: Device + ?Sized>(pub Arc<D>);

impl<D: Device + ?Sized> Clone for PinnedMemory<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

// SAFETY: the driver keeps live allocations apart, and they start at a page.
unsafe impl<D: Device + ?Sized> Source for PinnedMemory<D> {
    fn geometry(&self) -> Geometry {
        Geometry { granule: 4096, max_align: 4096, max_len: 1 << 46, zeroed: false }
    }

    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        self.geometry().check(len, align)?;
        let ptr = self.0.host_alloc(len as usize).map_err(|error| refusal(error, len))?;
        // SAFETY: the driver has just given the range to us.
        Ok(unsafe { Extent::from_raw(ptr.expose_provenance() as u64, len, 0) })
    }

    unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
        let len = extent.len();
        // SAFETY: the extent came from `acquire`, and the caller promises that nothing uses it any more.
        match unsafe { self.0.host_free(extent.as_ptr()) } {
            Ok(()) => {
                let _ = extent.into_raw();
                Ok(())
            }
            Err(error) => Err(ReleaseError { extent, cause: refusal(error, len) }),
        }
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
