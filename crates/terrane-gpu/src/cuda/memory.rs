//! The driver's virtual memory and its own stream-ordered pool.

use super::driver::{AccessDesc, AllocationProp, Location, check};
use super::{Cuda, handle, stream_handle};
use crate::device::{DriverResult, OrderedMemory, OrderedUsage, Physical, Stream, VirtualMemory};
use crate::error::DriverError;
use core::ffi::c_void;

/// `CU_MEM_ALLOCATION_TYPE_PINNED`.
pub(super) const PINNED: i32 = 1;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
pub(super) const ON_DEVICE: i32 = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
pub(super) const READ_WRITE: i32 = 3;
/// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
pub(super) const RELEASE_THRESHOLD: i32 = 4;
/// `CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT`.
pub(super) const RESERVED_NOW: i32 = 5;
/// `CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH`.
pub(super) const RESERVED_MOST: i32 = 6;
/// `CU_MEMPOOL_ATTR_USED_MEM_CURRENT`.
pub(super) const USED_NOW: i32 = 7;

/// The function, or the error for a driver that lacks it.
macro_rules! have {
    ($cuda:expr, $name:ident) => {
        $cuda.driver.$name.ok_or(DriverError { call: stringify!($name), code: DriverError::NOT_SUPPORTED })
    };
}

impl Cuda {
    fn location(&self) -> Location {
        Location { kind: ON_DEVICE, id: self.device }
    }

    fn properties(&self) -> AllocationProp {
        AllocationProp {
            kind: PINNED,
            handle_types: 0,
            location: self.location(),
            win32: core::ptr::null_mut(),
            flags: [0; 8],
        }
    }

    pub(super) fn ask_granularity(&self) -> Option<u64> {
        let mut bytes = 0;
        let ask = self.driver.cuMemGetAllocationGranularity?;
        // SAFETY: the structure is as in the driver's header; 0 asks for the minimum.
        let code = unsafe { ask(&mut bytes, &self.properties(), 0) };
        let complete = self.driver.cuMemAddressReserve.is_some()
            && self.driver.cuMemAddressFree.is_some()
            && self.driver.cuMemCreate.is_some()
            && self.driver.cuMemRelease.is_some()
            && self.driver.cuMemMap.is_some()
            && self.driver.cuMemUnmap.is_some()
            && self.driver.cuMemSetAccess.is_some();
        (code == 0 && complete && bytes.is_power_of_two()).then_some(bytes as u64)
    }

    pub(super) fn ask_pool(&self) -> Option<usize> {
        let mut pool = core::ptr::null_mut();
        let ask = self.driver.cuDeviceGetDefaultMemPool?;
        // SAFETY: the result has its type.
        let code = unsafe { ask(&mut pool, self.device) };
        (code == 0).then(|| pool.expose_provenance())
    }

    fn pool_attribute(&self, which: i32) -> DriverResult<u64> {
        let get = have!(self, cuMemPoolGetAttribute)?;
        let _current = self.current()?;
        let mut value = 0u64;
        let pool = handle(self.pool.unwrap_or(0));
        // SAFETY: these attributes are 64-bit numbers.
        let code = unsafe { get(pool, which, (&raw mut value).cast::<c_void>()) };
        check("cuMemPoolGetAttribute", code).map(|()| value)
    }
}

impl VirtualMemory for Cuda {
    fn granularity(&self) -> u64 {
        self.granularity.unwrap_or(2 << 20)
    }

    fn reserve(&self, len: u64, align: u64) -> DriverResult<u64> {
        let reserve = have!(self, cuMemAddressReserve)?;
        let _current = self.current()?;
        let mut address = 0;
        // SAFETY: the result has its type; no address is wished for.
        let code = unsafe { reserve(&mut address, len as usize, align as usize, 0, 0) };
        check("cuMemAddressReserve", code).map(|()| address)
    }

    unsafe fn unreserve(&self, address: u64, len: u64) -> DriverResult<()> {
        let unreserve = have!(self, cuMemAddressFree)?;
        let _current = self.current()?;
        // SAFETY: passed on by the caller.
        check("cuMemAddressFree", unsafe { unreserve(address, len as usize) })
    }

    fn create(&self, len: u64) -> DriverResult<Physical> {
        let create = have!(self, cuMemCreate)?;
        let _current = self.current()?;
        let mut physical = 0;
        // SAFETY: the structure is as in the driver's header.
        let code = self.relaxed(|| unsafe { create(&mut physical, len as usize, &self.properties(), 0) });
        check("cuMemCreate", code).map(|()| Physical(physical))
    }

    unsafe fn release(&self, physical: Physical) -> DriverResult<()> {
        let release = have!(self, cuMemRelease)?;
        let _current = self.current()?;
        // SAFETY: passed on by the caller.
        check("cuMemRelease", self.relaxed(|| unsafe { release(physical.0) }))
    }

    unsafe fn map(&self, address: u64, len: u64, physical: Physical) -> DriverResult<()> {
        let map = have!(self, cuMemMap)?;
        let _current = self.current()?;
        // SAFETY: passed on by the caller.
        check("cuMemMap", self.relaxed(|| unsafe { map(address, len as usize, 0, physical.0, 0) }))
    }

    unsafe fn allow(&self, address: u64, len: u64) -> DriverResult<()> {
        let allow = have!(self, cuMemSetAccess)?;
        let _current = self.current()?;
        let access = AccessDesc { location: self.location(), flags: READ_WRITE };
        // SAFETY: passed on by the caller; one structure as in the driver's header.
        check("cuMemSetAccess", self.relaxed(|| unsafe { allow(address, len as usize, &access, 1) }))
    }

    unsafe fn unmap(&self, address: u64, len: u64) -> DriverResult<()> {
        let unmap = have!(self, cuMemUnmap)?;
        let _current = self.current()?;
        // SAFETY: passed on by the caller.
        check("cuMemUnmap", self.relaxed(|| unsafe { unmap(address, len as usize) }))
    }
}

impl OrderedMemory for Cuda {
    fn alloc_ordered(&self, len: u64, stream: Stream) -> DriverResult<u64> {
        let alloc = have!(self, cuMemAllocAsync)?;
        let _current = self.current()?;
        let mut address = 0;
        // SAFETY: the stream is alive, and the result has its type.
        let code = unsafe { alloc(&mut address, len as usize, stream_handle(stream)) };
        check("cuMemAllocAsync", code).map(|()| address)
    }

    unsafe fn free_ordered(&self, address: u64, stream: Stream) -> DriverResult<()> {
        let free = have!(self, cuMemFreeAsync)?;
        let _current = self.current()?;
        // SAFETY: passed on by the caller.
        check("cuMemFreeAsync", unsafe { free(address, stream_handle(stream)) })
    }

    fn keep_unused(&self, bytes: u64) -> DriverResult<()> {
        let set = have!(self, cuMemPoolSetAttribute)?;
        let _current = self.current()?;
        let mut value = bytes;
        let pool = handle(self.pool.unwrap_or(0));
        // SAFETY: this attribute is a 64-bit number.
        let code = unsafe { set(pool, RELEASE_THRESHOLD, (&raw mut value).cast::<c_void>()) };
        check("cuMemPoolSetAttribute", code)
    }

    fn trim(&self, keep: u64) -> DriverResult<()> {
        let trim = have!(self, cuMemPoolTrimTo)?;
        let _current = self.current()?;
        let pool = handle(self.pool.unwrap_or(0));
        // SAFETY: the pool is the device's own.
        check("cuMemPoolTrimTo", unsafe { trim(pool, keep as usize) })
    }

    fn usage(&self) -> DriverResult<OrderedUsage> {
        let ask = |which| self.pool_attribute(which);
        Ok(OrderedUsage {
            reserved: ask(RESERVED_NOW)?,
            peak_reserved: ask(RESERVED_MOST)?,
            used: ask(USED_NOW)?,
        })
    }
}
