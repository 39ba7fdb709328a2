//! [`CudaBuf`]: a pool's buffer wherever `cudarc` takes a device pointer.
//!
//! Invariant: work that `cudarc` submits with the buffer on a stream other than its own is ordered after the buffer's
//! stream and after every other such use (by the event of the last one), and the pool is told of the stream.

use super::Cuda;
use crate::buf::DeviceBuf;
use crate::error::PoolError;
use crate::pool::DevicePool;
use cudarc::driver::{CudaEvent, CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop, sys};
use std::sync::{Arc, OnceLock};

/// A [`DeviceBuf`] on a stream of `cudarc`.
pub struct CudaBuf<T, P: DevicePool> {
    buf: DeviceBuf<T, P>,
    address: u64,
    stream: Arc<CudaStream>,
    device: Arc<Cuda>,
    /// Recorded after each use on another stream.
    elsewhere: OnceLock<Option<CudaEvent>>,
}

impl<T, P: DevicePool> core::fmt::Debug for CudaBuf<T, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.buf.fmt(f)
    }
}

impl<T, P: DevicePool> CudaBuf<T, P> {
    /// Room for `len` values, not initialised, from `pool`, which is a pool on `device`, for use on `stream`.
    ///
    /// # Errors
    /// A [`PoolError`].
    pub fn new_in(
        device: &Arc<Cuda>,
        pool: P,
        len: usize,
        stream: &Arc<CudaStream>,
    ) -> Result<Self, PoolError> {
        let raw = stream.cu_stream().cast();
        // SAFETY: `stream` keeps the driver's stream alive.
        let adopted = unsafe { device.adopt(raw) }.map_err(|error| PoolError::driver(len as u64, error))?;
        let buf = DeviceBuf::new_in(pool, len, adopted)?;
        let (address, stream, device) = (buf.address(), stream.clone(), device.clone());
        Ok(Self { buf, address, stream, device, elsewhere: OnceLock::new() })
    }

    /// The buffer itself.
    pub fn as_buf(&self) -> &DeviceBuf<T, P> {
        &self.buf
    }

    /// The address by reference, as an argument for `cudarc`'s launch builder (a kernel's pointer parameter).
    pub fn arg(&self) -> &u64 {
        &self.address
    }

    fn pointer<'a>(&'a self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        let own = stream.cu_stream() == self.stream.cu_stream();
        let context = self.stream.context();
        if let Some(Some(last)) = self.elsewhere.get() {
            context.record_err(stream.wait(last));
        }
        if own {
            return (self.address, SyncOnDrop::Sync(None));
        }
        context.record_err(stream.join(&self.stream));
        // SAFETY: the caller holds the stream.
        if let Ok(other) = unsafe { self.device.adopt(stream.cu_stream().cast()) } {
            self.buf.used_on(other);
        }
        let event = self.elsewhere.get_or_init(|| context.new_event(None).ok());
        (self.address, SyncOnDrop::record_event(event, stream))
    }
}

impl<T, P: DevicePool> DeviceSlice<T> for CudaBuf<T, P> {
    fn len(&self) -> usize {
        self.buf.len()
    }

    fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

impl<T, P: DevicePool> DevicePtr<T> for CudaBuf<T, P> {
    fn device_ptr<'a>(&'a self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        self.pointer(stream)
    }
}

impl<T, P: DevicePool> DevicePtrMut<T> for CudaBuf<T, P> {
    fn device_ptr_mut<'a>(&'a mut self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
        self.pointer(stream)
    }
}
