//! Real devices: [`Cuda`], over NVIDIA's driver, which is loaded when first asked for.
//!
//! Nothing of CUDA is needed to build. Where there is no driver, or one without what is needed, or no device,
//! [`Cuda::open`] says which it was; it never panics.
//!
//! The device uses the primary context, as the `cudarc` crate and the CUDA runtime do, so memory and streams are shared
//! with them: [`Cuda::adopt`] takes a stream of theirs, and [`CudaBuf`] is accepted where `cudarc` wants a device pointer.

mod driver;
mod interop;
mod memory;

pub use interop::CudaBuf;

use crate::device::{
    Device, DeviceInfo, DeviceMemoryInfo, DriverResult, Event, OrderedMemory, Stream, Streams, Uuid,
    VirtualMemory,
};
use crate::error::{DriverError, GpuAbsence};
use crate::host_call;
use core::ffi::c_void;
use driver::{Driver, Handle, attribute, check, driver};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// `CU_STREAM_NON_BLOCKING`.
const STREAM_NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const EVENT_DISABLE_TIMING: u32 = 2;
/// `CU_MEMHOSTALLOC_PORTABLE`: page-locked for every context. Not write-combined: the host may read it.
const HOST_PORTABLE: u32 = 1;
/// `CUDA_ERROR_NOT_READY`.
const NOT_READY: i32 = 600;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
const CAPTURE_RELAXED: i32 = 2;

/// A CUDA device.
pub struct Cuda {
    driver: &'static Driver,
    /// The primary context; a number, because raw pointers would keep it from other threads.
    context: usize,
    device: i32,
    info: DeviceInfo,
    granularity: Option<u64>,
    pool: Option<usize>,
    captures: AtomicU32,
    next_key: AtomicU32,
    /// Keys by the driver's stream ids, which are never used again.
    keys: Mutex<HashMap<u64, u32>>,
}

impl core::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Cuda").field("info", &self.info).finish_non_exhaustive()
    }
}

/// By UUID: the context, the driver's number of the device, and how often it is open.
type Contexts = Mutex<HashMap<Uuid, (usize, i32, u32)>>;

/// The contexts of devices that are open, for copies between them.
fn contexts() -> &'static Contexts {
    static CONTEXTS: OnceLock<Contexts> = OnceLock::new();
    CONTEXTS.get_or_init(Mutex::default)
}

/// The context is current on this thread until this is dropped.
struct Current<'a> {
    cuda: &'a Cuda,
    pushed: bool,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped = core::ptr::null_mut();
            // SAFETY: this thread pushed the context.
            let _ = unsafe { (self.cuda.driver.cuCtxPopCurrent)(&mut popped) };
        }
    }
}

impl Cuda {
    /// How many devices there are.
    ///
    /// # Errors
    /// Why there is no driver.
    pub fn count() -> Result<u32, GpuAbsence> {
        let driver = driver()?;
        let mut count = 0;
        // SAFETY: the driver is started, and the result has its type.
        check("cuDeviceGetCount", unsafe { (driver.cuDeviceGetCount)(&mut count) })?;
        Ok(count.max(0) as u32)
    }

    /// Opens device number `ordinal`.
    ///
    /// # Errors
    /// Why there is no such device. Never panics, whatever the machine lacks.
    pub fn open(ordinal: u32) -> Result<Arc<Self>, GpuAbsence> {
        let driver = driver()?;
        let count = Self::count()?;
        if ordinal >= count {
            return Err(GpuAbsence::NoDevice { ordinal, count });
        }
        let (mut device, mut total, mut uuid, mut name) = (0, 0, [0; 16], [0; 256]);
        let mut context = core::ptr::null_mut();
        // SAFETY: the driver is started; every pointer is to a value of the type that the call writes.
        unsafe {
            check("cuDeviceGet", (driver.cuDeviceGet)(&mut device, ordinal as i32))?;
            check("cuDeviceTotalMem", (driver.cuDeviceTotalMem)(&mut total, device))?;
            check("cuDeviceGetUuid", (driver.cuDeviceGetUuid)(&mut uuid, device))?;
            check("cuDeviceGetName", (driver.cuDeviceGetName)(name.as_mut_ptr(), 255, device))?;
            check("cuDevicePrimaryCtxRetain", (driver.cuDevicePrimaryCtxRetain)(&mut context, device))?;
        }
        let bytes: Vec<u8> = name.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect();
        let ask = |which| {
            let mut value = 0;
            // SAFETY: as above.
            let code = unsafe { (driver.cuDeviceGetAttribute)(&mut value, which, device) };
            (code == 0).then_some(value)
        };
        let info = DeviceInfo {
            ordinal,
            name: String::from_utf8_lossy(&bytes).into_owned(),
            uuid: Uuid(uuid),
            total_bytes: total as u64,
            // Negative where the driver does not know.
            numa_node: ask(attribute::HOST_NUMA_NODE).and_then(|node| u32::try_from(node).ok()),
            simulated: false,
        };
        let mut cuda = Self {
            driver,
            context: context.expose_provenance(),
            device,
            info,
            granularity: None,
            pool: None,
            captures: AtomicU32::new(0),
            next_key: AtomicU32::new(0),
            keys: Mutex::default(),
        };
        if ask(attribute::VIRTUAL_MEMORY) == Some(1) {
            cuda.granularity = cuda.ask_granularity();
        }
        if ask(attribute::MEMORY_POOLS) == Some(1) {
            cuda.pool = cuda.ask_pool();
        }
        let mut contexts = contexts().lock();
        contexts.entry(cuda.info.uuid).or_insert((cuda.context, device, 0)).2 += 1;
        Ok(Arc::new(cuda))
    }

    /// A stream that someone else made in this device's primary context (`cudarc`, the CUDA runtime), by its handle. The
    /// same stream gets the same key every time.
    ///
    /// # Errors
    /// The driver's refusal.
    ///
    /// # Safety
    /// `raw` is a live stream of this device.
    pub unsafe fn adopt(&self, raw: *mut c_void) -> DriverResult<Stream> {
        let _current = self.current()?;
        let fresh = || self.next_key.fetch_add(1, Ordering::Relaxed);
        let key = match self.driver.cuStreamGetId {
            Some(get_id) => {
                let mut id = 0;
                // SAFETY: the caller says that the stream is alive.
                check("cuStreamGetId", unsafe { get_id(raw, &mut id) })?;
                *self.keys.lock().entry(id).or_insert_with(fresh)
            }
            // Without ids a handle may come to stand for another stream: a new key is always right.
            None => fresh(),
        };
        Ok(Stream::new(raw.expose_provenance() as u64, key))
    }

    fn current(&self) -> DriverResult<Current<'_>> {
        let mut now = core::ptr::null_mut();
        // SAFETY: the driver is started, and the result has its type.
        check("cuCtxGetCurrent", unsafe { (self.driver.cuCtxGetCurrent)(&mut now) })?;
        let pushed = now.addr() != self.context;
        if pushed {
            // SAFETY: the primary context is retained until this device is dropped.
            check("cuCtxPushCurrent", unsafe { (self.driver.cuCtxPushCurrent)(handle(self.context)) })?;
        }
        Ok(Current { cuda: self, pushed })
    }

    /// Calls `f` so that it is allowed while streams are being captured.
    fn relaxed<R>(&self, f: impl FnOnce() -> R) -> R {
        if !self.capturing() {
            return f();
        }
        let mut mode = CAPTURE_RELAXED;
        // SAFETY: swaps this thread's mode with `mode`; undone below.
        let swapped = unsafe { (self.driver.cuThreadExchangeStreamCaptureMode)(&mut mode) } == 0;
        let result = f();
        if swapped {
            // SAFETY: as above.
            let _ = unsafe { (self.driver.cuThreadExchangeStreamCaptureMode)(&mut mode) };
        }
        result
    }
}

fn handle(number: usize) -> Handle {
    core::ptr::with_exposed_provenance_mut(number)
}

fn stream_handle(stream: Stream) -> Handle {
    handle(stream.raw() as usize)
}

fn event_handle(event: Event) -> Handle {
    handle(event.0 as usize)
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let mut contexts = contexts().lock();
        if let Some(entry) = contexts.get_mut(&self.info.uuid) {
            entry.2 -= 1;
            if entry.2 == 0 {
                contexts.remove(&self.info.uuid);
            }
        }
        // SAFETY: retained once by `open`.
        let _ = unsafe { (self.driver.cuDevicePrimaryCtxRelease)(self.device) };
    }
}

// SAFETY: these are the driver's own events and waits, which keep the contract.
unsafe impl Streams for Cuda {
    fn event_create(&self) -> DriverResult<Event> {
        let _current = self.current()?;
        let mut event = core::ptr::null_mut();
        // SAFETY: the context is current.
        check("cuEventCreate", unsafe { (self.driver.cuEventCreate)(&mut event, EVENT_DISABLE_TIMING) })?;
        Ok(Event(event.expose_provenance() as u64))
    }

    fn event_destroy(&self, event: Event) {
        if let Ok(_current) = self.current() {
            // SAFETY: the event is alive; the driver keeps it until its record is complete.
            let _ = unsafe { (self.driver.cuEventDestroy)(event_handle(event)) };
        }
    }

    fn event_record(&self, event: Event, stream: Stream) -> DriverResult<()> {
        let _current = self.current()?;
        // SAFETY: both are alive.
        check("cuEventRecord", unsafe {
            (self.driver.cuEventRecord)(event_handle(event), stream_handle(stream))
        })
    }

    fn event_query(&self, event: Event) -> DriverResult<bool> {
        let _current = self.current()?;
        // SAFETY: the event is alive.
        match unsafe { (self.driver.cuEventQuery)(event_handle(event)) } {
            NOT_READY => Ok(false),
            code => check("cuEventQuery", code).map(|()| true),
        }
    }

    fn event_synchronize(&self, event: Event) -> DriverResult<()> {
        let _current = self.current()?;
        // SAFETY: the event is alive.
        check("cuEventSynchronize", unsafe { (self.driver.cuEventSynchronize)(event_handle(event)) })
    }

    fn stream_wait(&self, stream: Stream, event: Event) -> DriverResult<()> {
        let _current = self.current()?;
        // SAFETY: both are alive.
        check("cuStreamWaitEvent", unsafe {
            (self.driver.cuStreamWaitEvent)(stream_handle(stream), event_handle(event), 0)
        })
    }

    fn declare_capture(&self, entered: bool) {
        if entered {
            self.captures.fetch_add(1, Ordering::SeqCst);
        } else {
            self.captures.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn capturing(&self) -> bool {
        self.captures.load(Ordering::SeqCst) != 0
    }
}

unsafe extern "C" fn call_back(data: *mut c_void) {
    // SAFETY: `when_done` gave this to the driver, which calls once.
    unsafe { host_call::call(data) }
}

// SAFETY: these are the driver's own allocations, which do not overlap and live until freed.
unsafe impl Device for Cuda {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> DriverResult<DeviceMemoryInfo> {
        let _current = self.current()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current, and the results have their types.
        check("cuMemGetInfo", unsafe { (self.driver.cuMemGetInfo)(&mut free, &mut total) })?;
        Ok(DeviceMemoryInfo { free: free as u64, total: total as u64 })
    }

    fn alloc(&self, len: u64) -> DriverResult<u64> {
        let _current = self.current()?;
        let mut address = 0;
        // SAFETY: the context is current, and the result has its type.
        let code = self.relaxed(|| unsafe { (self.driver.cuMemAlloc)(&mut address, len as usize) });
        check("cuMemAlloc", code).map(|()| address)
    }

    unsafe fn free(&self, address: u64) -> DriverResult<()> {
        let _current = self.current()?;
        // SAFETY: passed on by the caller.
        check("cuMemFree", self.relaxed(|| unsafe { (self.driver.cuMemFree)(address) }))
    }

    fn stream_create(&self) -> DriverResult<Stream> {
        let _current = self.current()?;
        let mut stream = core::ptr::null_mut();
        // SAFETY: the context is current, and the result has its type.
        check("cuStreamCreate", unsafe { (self.driver.cuStreamCreate)(&mut stream, STREAM_NON_BLOCKING) })?;
        // SAFETY: just made.
        unsafe { self.adopt(stream) }.inspect_err(|_| {
            // SAFETY: as above, and nobody else knows of it. A refusal leaks it: there is no use for it.
            let _ = unsafe { (self.driver.cuStreamDestroy)(stream) };
        })
    }

    fn stream_destroy(&self, stream: Stream) -> DriverResult<()> {
        let _current = self.current()?;
        self.keys.lock().retain(|_, key| *key != stream.key());
        // SAFETY: the stream is alive; its work still runs.
        check("cuStreamDestroy", unsafe { (self.driver.cuStreamDestroy)(stream_handle(stream)) })
    }

    fn stream_synchronize(&self, stream: Stream) -> DriverResult<()> {
        let _current = self.current()?;
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe { (self.driver.cuStreamSynchronize)(stream_handle(stream)) })
    }

    fn synchronize(&self) -> DriverResult<()> {
        let _current = self.current()?;
        // SAFETY: the context is current.
        check("cuCtxSynchronize", unsafe { (self.driver.cuCtxSynchronize)() })
    }

    unsafe fn upload(&self, to: u64, from: *const u8, len: u64, stream: Stream) -> DriverResult<()> {
        let _current = self.current()?;
        // SAFETY: passed on by the caller.
        check("cuMemcpyHtoDAsync", unsafe {
            (self.driver.cuMemcpyHtoDAsync)(to, from.cast(), len as usize, stream_handle(stream))
        })
    }

    unsafe fn download(&self, to: *mut u8, from: u64, len: u64, stream: Stream) -> DriverResult<()> {
        let _current = self.current()?;
        // SAFETY: passed on by the caller.
        check("cuMemcpyDtoHAsync", unsafe {
            (self.driver.cuMemcpyDtoHAsync)(to.cast(), from, len as usize, stream_handle(stream))
        })
    }

    unsafe fn copy(&self, to: u64, from: u64, len: u64, stream: Stream) -> DriverResult<()> {
        let _current = self.current()?;
        // SAFETY: passed on by the caller.
        check("cuMemcpyDtoDAsync", unsafe {
            (self.driver.cuMemcpyDtoDAsync)(to, from, len as usize, stream_handle(stream))
        })
    }

    unsafe fn fill(&self, to: u64, byte: u8, len: u64, stream: Stream) -> DriverResult<()> {
        let _current = self.current()?;
        // SAFETY: passed on by the caller.
        check("cuMemsetD8Async", unsafe {
            (self.driver.cuMemsetD8Async)(to, byte, len as usize, stream_handle(stream))
        })
    }

    fn host_alloc(&self, len: usize) -> DriverResult<*mut u8> {
        let _current = self.current()?;
        let mut ptr = core::ptr::null_mut();
        let code = self.relaxed(|| {
            // SAFETY: the context is current, and the result has its type.
            unsafe { (self.driver.cuMemHostAlloc)(&mut ptr, len, HOST_PORTABLE) }
        });
        check("cuMemHostAlloc", code)?;
        // SAFETY: the driver gave `len` writable bytes; after this they are initialised.
        unsafe { core::ptr::write_bytes(ptr.cast::<u8>(), 0, len) };
        Ok(ptr.cast())
    }

    unsafe fn host_free(&self, ptr: *mut u8) -> DriverResult<()> {
        let _current = self.current()?;
        // SAFETY: passed on by the caller.
        check("cuMemFreeHost", self.relaxed(|| unsafe { (self.driver.cuMemFreeHost)(ptr.cast()) }))
    }

    unsafe fn host_register(&self, ptr: *mut u8, len: usize) -> DriverResult<()> {
        let _current = self.current()?;
        let register = self.driver.cuMemHostRegister;
        // SAFETY: passed on by the caller.
        check("cuMemHostRegister", self.relaxed(|| unsafe { register(ptr.cast(), len, HOST_PORTABLE) }))
    }

    unsafe fn host_unregister(&self, ptr: *mut u8) -> DriverResult<()> {
        let _current = self.current()?;
        let unregister = self.driver.cuMemHostUnregister;
        // SAFETY: passed on by the caller.
        check("cuMemHostUnregister", self.relaxed(|| unsafe { unregister(ptr.cast()) }))
    }

    fn when_done(&self, stream: Stream, then: Box<dyn FnOnce() + Send>) -> DriverResult<()> {
        let _current = self.current()?;
        host_call::give(then, |data| {
            // SAFETY: the stream is alive; `call_back` takes what `give` gives.
            let code = unsafe { (self.driver.cuLaunchHostFunc)(stream_handle(stream), call_back, data) };
            check("cuLaunchHostFunc", code)
        })
    }

    fn reaches(&self, other: Uuid) -> bool {
        let Some((_, device, _)) = contexts().lock().get(&other).copied() else { return false };
        let mut can = 0;
        // SAFETY: both devices are open, and the result has its type.
        let code = unsafe { (self.driver.cuDeviceCanAccessPeer)(&mut can, self.device, device) };
        device == self.device || (code == 0 && can != 0)
    }

    unsafe fn copy_peer(
        &self,
        to: u64,
        other: Uuid,
        from: u64,
        len: u64,
        stream: Stream,
    ) -> DriverResult<()> {
        let Some((context, ..)) = contexts().lock().get(&other).copied() else {
            return Err(DriverError { call: "cuMemcpyPeerAsync", code: DriverError::PEER_UNSUPPORTED });
        };
        let _current = self.current()?;
        let (there, here) = (handle(context), handle(self.context));
        // SAFETY: passed on by the caller; both contexts are retained.
        check("cuMemcpyPeerAsync", unsafe {
            (self.driver.cuMemcpyPeerAsync)(to, there, from, here, len as usize, stream_handle(stream))
        })
    }

    fn virtual_memory(&self) -> Option<&dyn VirtualMemory> {
        self.granularity.map(|_| self as &dyn VirtualMemory)
    }

    fn ordered_memory(&self) -> Option<&dyn OrderedMemory> {
        self.pool.map(|_| self as &dyn OrderedMemory)
    }
}
