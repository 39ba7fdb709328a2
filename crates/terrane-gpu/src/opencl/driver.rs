//! OpenCL's functions, looked up one by one in the loader that the system has.
//!
//! Invariant: a table exists only if every function in it was found, and its pointers stay valid, because the library is
//! never unloaded. Types and numbers are those of the OpenCL 3.0 specification.

use crate::device::DriverResult;
use crate::error::{DriverError, GpuAbsence};
use core::ffi::c_void;
use libloading::Library;
use std::sync::OnceLock;

/// Handles: platforms, devices, contexts, queues, events.
pub(super) type Handle = *mut c_void;
/// What is called when an event completes: the event, its status, and what was given along.
pub(super) type Callback = unsafe extern "system" fn(Handle, i32, *mut c_void);

/// File names of the loader, tried in turn.
const NAMES: [&str; 3] = ["libOpenCL.so.1", "libOpenCL.so", "OpenCL.dll"];

macro_rules! functions {
    ($($name:ident($($parameter:ty),*) -> $result:ty;)*) => {
        /// Pointers to OpenCL's functions, by their names.
        #[allow(non_snake_case, reason = "OpenCL's names")]
        pub(super) struct Driver {
            $(pub(super) $name: unsafe extern "system" fn($($parameter),*) -> $result,)*
            _library: Library,
        }

        impl Driver {
            fn load() -> Result<Self, GpuAbsence> {
                // SAFETY: loading the system's OpenCL loader runs its initialisers, which is what all who use OpenCL do.
                let library = NAMES.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
                let Some(library) = library else {
                    return Err(GpuAbsence::NoLibrary { tried: "libOpenCL.so.1, libOpenCL.so, OpenCL.dll" });
                };
                Ok(Self {
                    $($name: {
                        // SAFETY: the type is that of the function in OpenCL's header.
                        let found = unsafe {
                            library.get::<unsafe extern "system" fn($($parameter),*) -> $result>(stringify!($name))
                        };
                        match found {
                            Ok(function) => *function,
                            Err(_) => return Err(GpuAbsence::MissingSymbol { symbol: stringify!($name) }),
                        }
                    },)*
                    _library: library,
                })
            }
        }
    };
}

functions! {
    clGetPlatformIDs(u32, *mut Handle, *mut u32) -> i32;
    clGetDeviceIDs(Handle, u64, u32, *mut Handle, *mut u32) -> i32;
    clGetDeviceInfo(Handle, u32, usize, *mut c_void, *mut usize) -> i32;
    clCreateContext(*const isize, u32, *const Handle, *const c_void, *mut c_void, *mut i32) -> Handle;
    clReleaseContext(Handle) -> i32;
    clCreateCommandQueueWithProperties(Handle, Handle, *const u64, *mut i32) -> Handle;
    clRetainCommandQueue(Handle) -> i32;
    clReleaseCommandQueue(Handle) -> i32;
    clFlush(Handle) -> i32;
    clFinish(Handle) -> i32;
    clSVMAlloc(Handle, u64, usize, u32) -> *mut c_void;
    clSVMFree(Handle, *mut c_void) -> ();
    clEnqueueSVMMemcpy(Handle, u32, *mut c_void, *const c_void, usize, u32, *const Handle, *mut Handle) -> i32;
    clEnqueueSVMMemFill(Handle, *mut c_void, *const c_void, usize, usize, u32, *const Handle, *mut Handle) -> i32;
    clEnqueueMarkerWithWaitList(Handle, u32, *const Handle, *mut Handle) -> i32;
    clEnqueueBarrierWithWaitList(Handle, u32, *const Handle, *mut Handle) -> i32;
    clGetEventInfo(Handle, u32, usize, *mut c_void, *mut usize) -> i32;
    clWaitForEvents(u32, *const Handle) -> i32;
    clRetainEvent(Handle) -> i32;
    clReleaseEvent(Handle) -> i32;
    clSetEventCallback(Handle, i32, Callback, *mut c_void) -> i32;
}

/// The table; looked up once.
pub(super) fn driver() -> Result<&'static Driver, GpuAbsence> {
    static DRIVER: OnceLock<Result<Driver, GpuAbsence>> = OnceLock::new();
    DRIVER.get_or_init(Driver::load).as_ref().map_err(Clone::clone)
}

/// OpenCL's code as a result.
pub(super) fn check(call: &'static str, code: i32) -> DriverResult<()> {
    if code == 0 { Ok(()) } else { Err(DriverError { call, code }) }
}
