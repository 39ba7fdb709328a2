//! The driver's functions, looked up one by one.
//!
//! Invariant: a table exists only if every function that all pools need was found, and its pointers stay valid, because
//! the library is never unloaded. Results are plain integers: the driver may return codes that no list knows of.

use crate::device::DriverResult;
use crate::error::{DriverError, GpuAbsence};
use core::ffi::{c_char, c_void};
use std::sync::OnceLock;

/// `CUdeviceptr`.
pub(super) type Address = u64;
/// Handles: contexts, streams, events, pools.
pub(super) type Handle = *mut c_void;

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Location {
    pub(super) kind: i32,
    pub(super) id: i32,
}

/// `CUmemAllocationProp`.
#[repr(C)]
pub(super) struct AllocationProp {
    pub(super) kind: i32,
    pub(super) handle_types: i32,
    pub(super) location: Location,
    pub(super) win32: *mut c_void,
    pub(super) flags: [u8; 8],
}

/// `CUmemAccessDesc`.
#[repr(C)]
pub(super) struct AccessDesc {
    pub(super) location: Location,
    pub(super) flags: i32,
}

const _: () = assert!(size_of::<AllocationProp>() == 32 && size_of::<AccessDesc>() == 12);

/// `CUdevice_attribute`: what a device may be asked.
pub(super) mod attribute {
    /// `CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED`.
    pub(in super::super) const VIRTUAL_MEMORY: i32 = 102;
    /// `CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED`.
    pub(in super::super) const MEMORY_POOLS: i32 = 115;
    /// `CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID`.
    pub(in super::super) const HOST_NUMA_NODE: i32 = 134;
}

macro_rules! functions {
    (needed { $($need:ident($($np:ty),*);)* } optional { $($opt:ident($($op:ty),*);)* }) => {
        /// Pointers to the driver's functions, by the driver's names without version.
        #[allow(non_snake_case, reason = "the driver's names")]
        pub(super) struct Driver {
            $(pub(super) $need: unsafe extern "C" fn($($np),*) -> i32,)*
            $(pub(super) $opt: Option<unsafe extern "C" fn($($op),*) -> i32>,)*
        }

        impl Driver {
            fn load() -> Result<Self, GpuAbsence> {
                // SAFETY: loading the driver's library runs its initialisers, which is what everyone who uses a GPU does.
                if !unsafe { cudarc::driver::sys::is_culib_present() } {
                    return Err(GpuAbsence::NoLibrary { tried: "libcuda, nvcuda" });
                }
                // SAFETY: as above; it was found just now, so this does not panic.
                let library = unsafe { cudarc::driver::sys::culib() };
                Ok(Self {
                    $($need: {
                        let name = exported(stringify!($need));
                        // SAFETY: the type is that of the function in the driver's header.
                        match unsafe { library.get::<unsafe extern "C" fn($($np),*) -> i32>(name.as_bytes()) } {
                            Ok(function) => *function,
                            Err(_) => return Err(GpuAbsence::MissingSymbol { symbol: name }),
                        }
                    },)*
                    $($opt: {
                        let name = exported(stringify!($opt));
                        // SAFETY: the type is that of the function in the driver's header.
                        unsafe { library.get::<unsafe extern "C" fn($($op),*) -> i32>(name.as_bytes()) }
                            .ok()
                            .map(|function| *function)
                    },)*
                })
            }
        }
    };
}

/// The exported name of a function: some have a version.
fn exported(name: &'static str) -> &'static str {
    match name {
        "cuDeviceTotalMem" => "cuDeviceTotalMem_v2",
        "cuDevicePrimaryCtxRelease" => "cuDevicePrimaryCtxRelease_v2",
        "cuCtxPushCurrent" => "cuCtxPushCurrent_v2",
        "cuCtxPopCurrent" => "cuCtxPopCurrent_v2",
        "cuMemGetInfo" => "cuMemGetInfo_v2",
        "cuMemAlloc" => "cuMemAlloc_v2",
        "cuMemFree" => "cuMemFree_v2",
        "cuMemHostRegister" => "cuMemHostRegister_v2",
        "cuMemcpyHtoDAsync" => "cuMemcpyHtoDAsync_v2",
        "cuMemcpyDtoHAsync" => "cuMemcpyDtoHAsync_v2",
        "cuMemcpyDtoDAsync" => "cuMemcpyDtoDAsync_v2",
        "cuStreamDestroy" => "cuStreamDestroy_v2",
        "cuEventDestroy" => "cuEventDestroy_v2",
        name => name,
    }
}

functions! {
    needed {
        cuInit(u32);
        cuDeviceGetCount(*mut i32);
        cuDeviceGet(*mut i32, i32);
        cuDeviceGetName(*mut c_char, i32, i32);
        cuDeviceGetUuid(*mut [u8; 16], i32);
        cuDeviceTotalMem(*mut usize, i32);
        cuDeviceGetAttribute(*mut i32, i32, i32);
        cuDevicePrimaryCtxRetain(*mut Handle, i32);
        cuDevicePrimaryCtxRelease(i32);
        cuCtxGetCurrent(*mut Handle);
        cuCtxPushCurrent(Handle);
        cuCtxPopCurrent(*mut Handle);
        cuCtxSynchronize();
        cuMemGetInfo(*mut usize, *mut usize);
        cuMemAlloc(*mut Address, usize);
        cuMemFree(Address);
        cuMemHostAlloc(*mut *mut c_void, usize, u32);
        cuMemFreeHost(*mut c_void);
        cuMemHostRegister(*mut c_void, usize, u32);
        cuMemHostUnregister(*mut c_void);
        cuMemcpyHtoDAsync(Address, *const c_void, usize, Handle);
        cuMemcpyDtoHAsync(*mut c_void, Address, usize, Handle);
        cuMemcpyDtoDAsync(Address, Address, usize, Handle);
        cuMemcpyPeerAsync(Address, Handle, Address, Handle, usize, Handle);
        cuMemsetD8Async(Address, u8, usize, Handle);
        cuStreamCreate(*mut Handle, u32);
        cuStreamDestroy(Handle);
        cuStreamSynchronize(Handle);
        cuStreamWaitEvent(Handle, Handle, u32);
        cuEventCreate(*mut Handle, u32);
        cuEventDestroy(Handle);
        cuEventRecord(Handle, Handle);
        cuEventQuery(Handle);
        cuEventSynchronize(Handle);
        cuLaunchHostFunc(Handle, unsafe extern "C" fn(*mut c_void), *mut c_void);
        cuThreadExchangeStreamCaptureMode(*mut i32);
        cuDeviceCanAccessPeer(*mut i32, i32, i32);
    }
    optional {
        cuStreamGetId(Handle, *mut u64);
        cuMemGetAllocationGranularity(*mut usize, *const AllocationProp, i32);
        cuMemAddressReserve(*mut Address, usize, usize, Address, u64);
        cuMemAddressFree(Address, usize);
        cuMemCreate(*mut u64, usize, *const AllocationProp, u64);
        cuMemRelease(u64);
        cuMemMap(Address, usize, usize, u64, u64);
        cuMemUnmap(Address, usize);
        cuMemSetAccess(Address, usize, *const AccessDesc, usize);
        cuMemAllocAsync(*mut Address, usize, Handle);
        cuMemFreeAsync(Address, Handle);
        cuDeviceGetDefaultMemPool(*mut Handle, i32);
        cuMemPoolSetAttribute(Handle, i32, *mut c_void);
        cuMemPoolGetAttribute(Handle, i32, *mut c_void);
        cuMemPoolTrimTo(Handle, usize);
    }
}

/// The table, with the driver started; looked up once.
pub(super) fn driver() -> Result<&'static Driver, GpuAbsence> {
    static DRIVER: OnceLock<Result<Driver, GpuAbsence>> = OnceLock::new();
    let loaded = DRIVER.get_or_init(|| {
        let driver = Driver::load()?;
        // SAFETY: zero is the only flag word.
        check("cuInit", unsafe { (driver.cuInit)(0) })?;
        Ok(driver)
    });
    loaded.as_ref().map_err(Clone::clone)
}

/// A driver's code as a result.
#[inline]
pub(super) fn check(call: &'static str, code: i32) -> DriverResult<()> {
    if code == 0 { Ok(()) } else { Err(DriverError { call, code }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::{
        CAPTURE_RELAXED, EVENT_DISABLE_TIMING, HOST_PORTABLE, NOT_READY, STREAM_NON_BLOCKING, memory,
    };
    use crate::error::DriverError;
    use core::mem::offset_of;
    use cudarc::driver::sys;

    #[test]
    fn numbers_are_those_of_the_driver_s_header() {
        use sys::CUdevice_attribute as Attribute;
        use sys::CUmemPool_attribute as Pool;
        use sys::cudaError_enum as Code;
        assert_eq!(
            attribute::VIRTUAL_MEMORY,
            Attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED as i32
        );
        assert_eq!(attribute::MEMORY_POOLS, Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED as i32);
        assert_eq!(attribute::HOST_NUMA_NODE, Attribute::CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID as i32);
        assert_eq!(memory::RELEASE_THRESHOLD, Pool::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD as i32);
        assert_eq!(memory::RESERVED_NOW, Pool::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT as i32);
        assert_eq!(memory::RESERVED_MOST, Pool::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH as i32);
        assert_eq!(memory::USED_NOW, Pool::CU_MEMPOOL_ATTR_USED_MEM_CURRENT as i32);
        assert_eq!(memory::PINNED, sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED as i32);
        assert_eq!(memory::ON_DEVICE, sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE as i32);
        assert_eq!(memory::READ_WRITE, sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE as i32);
        assert_eq!(STREAM_NON_BLOCKING, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32);
        assert_eq!(EVENT_DISABLE_TIMING, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32);
        assert_eq!(HOST_PORTABLE, sys::CU_MEMHOSTALLOC_PORTABLE);
        assert_eq!(HOST_PORTABLE, sys::CU_MEMHOSTREGISTER_PORTABLE);
        assert_eq!(CAPTURE_RELAXED, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED as i32);
        assert_eq!(NOT_READY, Code::CUDA_ERROR_NOT_READY as i32);
        for (ours, theirs) in [
            (DriverError::INVALID_VALUE, Code::CUDA_ERROR_INVALID_VALUE),
            (DriverError::OUT_OF_MEMORY, Code::CUDA_ERROR_OUT_OF_MEMORY),
            (DriverError::PEER_UNSUPPORTED, Code::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED),
            (DriverError::INVALID_HANDLE, Code::CUDA_ERROR_INVALID_HANDLE),
            (DriverError::ILLEGAL_ADDRESS, Code::CUDA_ERROR_ILLEGAL_ADDRESS),
            (DriverError::NOT_SUPPORTED, Code::CUDA_ERROR_NOT_SUPPORTED),
            (DriverError::CAPTURE_UNSUPPORTED, Code::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
            (DriverError::CAPTURE_INVALIDATED, Code::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED),
            (DriverError::CAPTURE_ISOLATION, Code::CUDA_ERROR_STREAM_CAPTURE_ISOLATION),
        ] {
            assert_eq!(ours, theirs as i32);
        }
    }

    #[test]
    fn structures_are_laid_out_as_in_the_driver_s_header() {
        type Prop = sys::CUmemAllocationProp;
        type Access = sys::CUmemAccessDesc;
        assert_eq!(size_of::<AllocationProp>(), size_of::<Prop>());
        assert_eq!(
            [
                offset_of!(AllocationProp, kind),
                offset_of!(AllocationProp, handle_types),
                offset_of!(AllocationProp, location),
                offset_of!(AllocationProp, win32),
                offset_of!(AllocationProp, flags)
            ],
            [
                offset_of!(Prop, type_),
                offset_of!(Prop, requestedHandleTypes),
                offset_of!(Prop, location),
                offset_of!(Prop, win32HandleMetaData),
                offset_of!(Prop, allocFlags)
            ]
        );
        assert_eq!(size_of::<Location>(), size_of::<sys::CUmemLocation>());
        assert_eq!(offset_of!(Location, kind), offset_of!(sys::CUmemLocation, type_));
        assert_eq!(
            (size_of::<AccessDesc>(), size_of::<Address>()),
            (size_of::<Access>(), size_of::<sys::CUdeviceptr>())
        );
        assert_eq!(
            [offset_of!(AccessDesc, location), offset_of!(AccessDesc, flags)],
            [offset_of!(Access, location), offset_of!(Access, flags)]
        );
    }
}
