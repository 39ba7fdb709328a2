//! Devices under OpenCL: [`OpenCl`], over the loader that the system has, which is loaded when first asked for.
//!
//! Nothing of OpenCL is needed to build. Where there is no loader, or no device, [`OpenCl::open`] says which it was; it never
//! panics. Only devices with shared virtual memory are taken (coarse-grained buffers are enough): their allocations have
//! addresses, which is what pools deal in.
//!
//! | here | in OpenCL |
//! |---|---|
//! | stream | an in-order command queue |
//! | event | the event of the marker that was enqueued last |
//! | wait of a stream | a barrier with that event in its list |
//! | memory | `clSVMAlloc`; copies and fills are `clEnqueueSVMMemcpy` and `clEnqueueSVMMemFill` |
//! | page-locked memory | plain host memory that the device keeps a list of: copies with it are asynchronous, others block |
//!
//! Invariant: a queue is flushed after every marker, so whoever waits for an event waits for work that will run.
//!
//! OpenCL does not say how much memory is free: [`memory`](Device::memory) counts what was taken through this device. There
//! is no mapping of physical memory, no pool of the driver's and no peer copy, and a free waits for all work, as CUDA's does.

mod driver;

use crate::device::{Device, DeviceInfo, DeviceMemoryInfo, DriverResult, Event, Stream, Streams, Uuid};
use crate::error::{DriverError, GpuAbsence};
use crate::host_call;
use core::ffi::c_void;
use core::ptr::{null, null_mut};
use driver::{Driver, Handle, check, driver};
use parking_lot::Mutex;
use std::alloc::Layout;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Alignment of device memory; drivers promise less.
const ALIGN: u64 = 256;
/// Alignment of host memory.
const PAGE: usize = 4096;
const DEVICE_TYPE_ALL: u64 = 0xFFFF_FFFF;
const DEVICE_GLOBAL_MEM_SIZE: u32 = 0x101F;
const DEVICE_NAME: u32 = 0x102B;
const DEVICE_SVM_CAPABILITIES: u32 = 0x1053;
const DEVICE_UUID: u32 = 0x106A;
const SVM_COARSE_GRAIN_BUFFER: u64 = 1;
const MEM_READ_WRITE: u64 = 1;
const EVENT_STATUS: u32 = 0x11D3;
const COMPLETE: i32 = 0;
/// There is no device of the kind asked for.
const DEVICE_NOT_FOUND: i32 = -1;
/// There is no platform.
const PLATFORM_NOT_FOUND: i32 = -1001;

/// A device under OpenCL.
pub struct OpenCl {
    driver: &'static Driver,
    /// Handles are kept as numbers, because raw pointers would keep the device from other threads.
    context: usize,
    device: usize,
    info: DeviceInfo,
    next_key: AtomicU32,
    next_event: AtomicU64,
    queues: Mutex<Vec<usize>>,
    /// The marker that each event was recorded as last.
    events: Mutex<HashMap<u64, Option<usize>>>,
    /// Device memory by its aligned address: what OpenCL returned, and the bytes.
    memory: Mutex<HashMap<u64, (usize, u64)>>,
    /// Host memory that counts as page-locked: first address and bytes.
    locked: Mutex<BTreeMap<usize, usize>>,
}

impl core::fmt::Debug for OpenCl {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("OpenCl").field("info", &self.info).finish_non_exhaustive()
    }
}

fn handle(number: usize) -> Handle {
    core::ptr::with_exposed_provenance_mut(number)
}

fn queue_of(stream: Stream) -> Handle {
    handle(stream.raw() as usize)
}

fn memory_at(address: u64) -> *mut c_void {
    core::ptr::with_exposed_provenance_mut(address as usize)
}

/// What a call that lists handles has to say; `nothing` is its code for an empty list.
fn list(
    call: &'static str,
    nothing: i32,
    ask: impl Fn(u32, *mut Handle, *mut u32) -> i32,
) -> DriverResult<Vec<Handle>> {
    let mut count = 0;
    match ask(0, null_mut(), &mut count) {
        code if code == nothing => return Ok(Vec::new()),
        code => check(call, code)?,
    }
    let mut handles = vec![null_mut(); count as usize];
    if count > 0 {
        check(call, ask(count, handles.as_mut_ptr(), null_mut()))?;
    }
    Ok(handles)
}

/// A device's property as bytes, if the device knows it.
fn property(driver: &Driver, device: Handle, which: u32) -> Option<Vec<u8>> {
    let mut len = 0;
    // SAFETY: asks for the length alone.
    if unsafe { (driver.clGetDeviceInfo)(device, which, 0, null_mut(), &mut len) } != 0 {
        return None;
    }
    let mut bytes = vec![0u8; len];
    // SAFETY: `bytes` has the length that is passed.
    let code = unsafe { (driver.clGetDeviceInfo)(device, which, len, bytes.as_mut_ptr().cast(), null_mut()) };
    (code == 0).then_some(bytes)
}

fn number(driver: &Driver, device: Handle, which: u32) -> u64 {
    let bytes = property(driver, device, which).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_ne_bytes)
}

/// All devices with shared virtual memory, platform by platform.
fn devices(driver: &Driver) -> DriverResult<Vec<Handle>> {
    // The first to ask starts the platforms, and some tell others meanwhile that they have no device.
    static ASKING: Mutex<()> = Mutex::new(());
    let _alone = ASKING.lock();
    let platforms = list("clGetPlatformIDs", PLATFORM_NOT_FOUND, |room, to, count| {
        // SAFETY: `to` has `room` places.
        unsafe { (driver.clGetPlatformIDs)(room, to, count) }
    })?;
    let mut all = Vec::new();
    for platform in platforms {
        all.extend(list("clGetDeviceIDs", DEVICE_NOT_FOUND, |room, to, count| {
            // SAFETY: as above.
            unsafe { (driver.clGetDeviceIDs)(platform, DEVICE_TYPE_ALL, room, to, count) }
        })?);
    }
    all.retain(|&device| number(driver, device, DEVICE_SVM_CAPABILITIES) & SVM_COARSE_GRAIN_BUFFER != 0);
    Ok(all)
}

impl OpenCl {
    /// How many devices with shared virtual memory there are.
    ///
    /// # Errors
    /// Why there is no OpenCL.
    pub fn count() -> Result<u32, GpuAbsence> {
        Ok(devices(driver()?)?.len() as u32)
    }

    /// Opens device number `ordinal`, of those that have shared virtual memory.
    ///
    /// # Errors
    /// Why there is no such device. Never panics, whatever the machine lacks.
    pub fn open(ordinal: u32) -> Result<Arc<Self>, GpuAbsence> {
        let driver = driver()?;
        let all = devices(driver)?;
        let Some(&device) = all.get(ordinal as usize) else {
            return Err(GpuAbsence::NoDevice { ordinal, count: all.len() as u32 });
        };
        let name = property(driver, device, DEVICE_NAME).unwrap_or_default();
        let name = String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned();
        // Without a lasting name of the device's own: its product and its number.
        let uuid = property(driver, device, DEVICE_UUID).and_then(|bytes| bytes.try_into().ok());
        let uuid = uuid.unwrap_or_else(|| {
            let mut made = [0; 16];
            name.bytes().enumerate().for_each(|(i, byte)| made[i % 12] ^= byte.rotate_left(i as u32 / 12));
            made[12..].copy_from_slice(&ordinal.to_be_bytes());
            made
        });
        let mut code = 0;
        // SAFETY: one device, no properties, no call-back.
        let context = unsafe { (driver.clCreateContext)(null(), 1, &device, null(), null_mut(), &mut code) };
        check("clCreateContext", code)?;
        let info = DeviceInfo {
            ordinal,
            name,
            uuid: Uuid(uuid),
            total_bytes: number(driver, device, DEVICE_GLOBAL_MEM_SIZE),
            numa_node: None,
            simulated: false,
        };
        Ok(Arc::new(Self {
            driver,
            context: context.expose_provenance(),
            device: device.expose_provenance(),
            info,
            next_key: AtomicU32::new(0),
            next_event: AtomicU64::new(1),
            queues: Mutex::default(),
            events: Mutex::default(),
            memory: Mutex::default(),
            locked: Mutex::default(),
        }))
    }

    /// The marker of `event`, kept alive by one more reference; `None` if the event was never recorded.
    fn marker(&self, event: Event) -> DriverResult<Option<Marker<'_>>> {
        let events = self.events.lock();
        let unknown = DriverError { call: "clRetainEvent", code: DriverError::INVALID_HANDLE };
        let Some(marker) = *events.get(&event.0).ok_or(unknown)? else { return Ok(None) };
        // SAFETY: the event is alive while it is in the list.
        check("clRetainEvent", unsafe { (self.driver.clRetainEvent)(handle(marker)) })?;
        Ok(Some(Marker { driver: self.driver, event: handle(marker) }))
    }

    /// Puts a marker behind all work of `stream`, and sees to it that the work runs.
    fn mark(&self, stream: Stream) -> DriverResult<Marker<'_>> {
        let mut event = null_mut();
        // SAFETY: the queue is alive, and the result has its type.
        check("clEnqueueMarkerWithWaitList", unsafe {
            (self.driver.clEnqueueMarkerWithWaitList)(queue_of(stream), 0, null(), &mut event)
        })?;
        let marker = Marker { driver: self.driver, event };
        // SAFETY: the queue is alive.
        check("clFlush", unsafe { (self.driver.clFlush)(queue_of(stream)) })?;
        Ok(marker)
    }

    fn is_locked(&self, ptr: *const u8, len: u64) -> bool {
        let start = ptr.addr();
        let locked = self.locked.lock();
        let before = locked.range(..=start).next_back();
        before.is_some_and(|(&from, &bytes)| start + len as usize <= from + bytes)
    }

    /// # Safety
    /// As for the copies of [`Device`]: both ends are readable and writable for `len` bytes until the copy is complete.
    unsafe fn copy_any(
        &self,
        to: *mut c_void,
        from: *const c_void,
        len: u64,
        stream: Stream,
        blocking: bool,
    ) -> DriverResult<()> {
        if len == 0 {
            return Ok(());
        }
        let (queue, blocking) = (queue_of(stream), u32::from(blocking));
        // SAFETY: the queue is alive; the rest is passed on by the caller.
        check("clEnqueueSVMMemcpy", unsafe {
            (self.driver.clEnqueueSVMMemcpy)(queue, blocking, to, from, len as usize, 0, null(), null_mut())
        })
    }
}

/// An event of OpenCL, released when dropped.
struct Marker<'a> {
    driver: &'a Driver,
    event: Handle,
}

impl Marker<'_> {
    /// The event, and with it the duty to release it.
    fn keep(self) -> usize {
        core::mem::ManuallyDrop::new(self).event.expose_provenance()
    }
}

impl Drop for Marker<'_> {
    fn drop(&mut self) {
        // SAFETY: this reference is ours.
        let _ = unsafe { (self.driver.clReleaseEvent)(self.event) };
    }
}

impl Drop for OpenCl {
    fn drop(&mut self) {
        let _ = self.synchronize();
        for (_, marker) in self.events.get_mut().drain() {
            marker.map(|event| Marker { driver: self.driver, event: handle(event) });
        }
        for queue in self.queues.get_mut().drain(..) {
            // SAFETY: the queue is ours, and nobody can use it any more.
            let _ = unsafe { (self.driver.clReleaseCommandQueue)(handle(queue)) };
        }
        // SAFETY: the context is ours. Memory that is still taken keeps it from going.
        let _ = unsafe { (self.driver.clReleaseContext)(handle(self.context)) };
    }
}

// SAFETY: a marker completes when all work before it in its in-order queue is complete, and a barrier holds back all that
// comes after it in its queue until its list is complete.
unsafe impl Streams for OpenCl {
    fn event_create(&self) -> DriverResult<Event> {
        let number = self.next_event.fetch_add(1, Ordering::Relaxed);
        self.events.lock().insert(number, None);
        Ok(Event(number))
    }

    fn event_destroy(&self, event: Event) {
        let marker = self.events.lock().remove(&event.0).flatten();
        drop(marker.map(|event| Marker { driver: self.driver, event: handle(event) }));
    }

    fn event_record(&self, event: Event, stream: Stream) -> DriverResult<()> {
        let marker = self.mark(stream)?.keep();
        let old = match self.events.lock().get_mut(&event.0) {
            Some(place) => place.replace(marker),
            None => Some(marker),
        };
        drop(old.map(|event| Marker { driver: self.driver, event: handle(event) }));
        Ok(())
    }

    fn event_query(&self, event: Event) -> DriverResult<bool> {
        let Some(marker) = self.marker(event)? else { return Ok(true) };
        let mut status = COMPLETE;
        // SAFETY: the event is alive, and the result has its type.
        check("clGetEventInfo", unsafe {
            let to: *mut i32 = &mut status;
            (self.driver.clGetEventInfo)(marker.event, EVENT_STATUS, size_of::<i32>(), to.cast(), null_mut())
        })?;
        // Negative: the work failed.
        if status < COMPLETE {
            check("clEnqueueMarkerWithWaitList", status)?
        }
        Ok(status == COMPLETE)
    }

    fn event_synchronize(&self, event: Event) -> DriverResult<()> {
        let Some(marker) = self.marker(event)? else { return Ok(()) };
        // SAFETY: the event is alive.
        check("clWaitForEvents", unsafe { (self.driver.clWaitForEvents)(1, &marker.event) })
    }

    fn stream_wait(&self, stream: Stream, event: Event) -> DriverResult<()> {
        let Some(marker) = self.marker(event)? else { return Ok(()) };
        // SAFETY: the queue and the event are alive.
        check("clEnqueueBarrierWithWaitList", unsafe {
            (self.driver.clEnqueueBarrierWithWaitList)(queue_of(stream), 1, &marker.event, null_mut())
        })
    }
}

unsafe extern "system" fn call_back(_: Handle, _: i32, data: *mut c_void) {
    // SAFETY: `when_done` gave this to OpenCL, which calls once.
    unsafe { host_call::call(data) }
}

// SAFETY: these are OpenCL's own allocations, which do not overlap and live until freed, moved up to a multiple of 256 bytes
// within what was asked for.
unsafe impl Device for OpenCl {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> DriverResult<DeviceMemoryInfo> {
        let taken: u64 = self.memory.lock().values().map(|(_, len)| len).sum();
        let total = self.info.total_bytes;
        Ok(DeviceMemoryInfo { free: total.saturating_sub(taken), total })
    }

    fn alloc(&self, len: u64) -> DriverResult<u64> {
        let refused = DriverError { call: "clSVMAlloc", code: DriverError::OUT_OF_MEMORY };
        let bytes = len.checked_add(ALIGN - 1).and_then(|len| usize::try_from(len).ok()).ok_or(refused)?;
        // SAFETY: the context is alive; an alignment of 0 is the driver's choice.
        let raw = unsafe { (self.driver.clSVMAlloc)(handle(self.context), MEM_READ_WRITE, bytes, 0) };
        if raw.is_null() {
            return Err(refused);
        }
        let address = (raw.expose_provenance() as u64).next_multiple_of(ALIGN);
        self.memory.lock().insert(address, (raw.addr(), len));
        Ok(address)
    }

    unsafe fn free(&self, address: u64) -> DriverResult<()> {
        self.synchronize()?;
        let unknown = DriverError { call: "clSVMFree", code: DriverError::INVALID_VALUE };
        let (raw, _) = self.memory.lock().remove(&address).ok_or(unknown)?;
        // SAFETY: `alloc` took it, it was in the list until now, and all work is complete.
        unsafe { (self.driver.clSVMFree)(handle(self.context), handle(raw)) };
        Ok(())
    }

    fn stream_create(&self) -> DriverResult<Stream> {
        let mut code = 0;
        // SAFETY: context and device are alive; without properties the queue is in order.
        let queue = unsafe {
            let (context, device) = (handle(self.context), handle(self.device));
            (self.driver.clCreateCommandQueueWithProperties)(context, device, null(), &mut code)
        };
        check("clCreateCommandQueueWithProperties", code)?;
        self.queues.lock().push(queue.expose_provenance());
        Ok(Stream::new(queue.addr() as u64, self.next_key.fetch_add(1, Ordering::Relaxed)))
    }

    fn stream_destroy(&self, stream: Stream) -> DriverResult<()> {
        // SAFETY: the queue is alive; what was enqueued still runs.
        check("clFlush", unsafe { (self.driver.clFlush)(queue_of(stream)) })?;
        self.queues.lock().retain(|&queue| queue as u64 != stream.raw());
        // SAFETY: as above; this reference is ours.
        check("clReleaseCommandQueue", unsafe { (self.driver.clReleaseCommandQueue)(queue_of(stream)) })
    }

    fn stream_synchronize(&self, stream: Stream) -> DriverResult<()> {
        // SAFETY: the queue is alive.
        check("clFinish", unsafe { (self.driver.clFinish)(queue_of(stream)) })
    }

    fn synchronize(&self) -> DriverResult<()> {
        let retained: Vec<usize> = {
            let queues = self.queues.lock();
            // SAFETY: queues in the list are alive.
            queues
                .iter()
                .copied()
                .filter(|&q| unsafe { (self.driver.clRetainCommandQueue)(handle(q)) } == 0)
                .collect()
        };
        let mut result = Ok(());
        for queue in retained {
            // SAFETY: retained above, and released once.
            let (finished, _) = unsafe {
                ((self.driver.clFinish)(handle(queue)), (self.driver.clReleaseCommandQueue)(handle(queue)))
            };
            result = result.and(check("clFinish", finished));
        }
        result
    }

    unsafe fn upload(&self, to: u64, from: *const u8, len: u64, stream: Stream) -> DriverResult<()> {
        let blocking = !self.is_locked(from, len);
        // SAFETY: passed on by the caller.
        unsafe { self.copy_any(memory_at(to), from.cast(), len, stream, blocking) }
    }

    unsafe fn download(&self, to: *mut u8, from: u64, len: u64, stream: Stream) -> DriverResult<()> {
        let blocking = !self.is_locked(to, len);
        // SAFETY: passed on by the caller.
        unsafe { self.copy_any(to.cast(), memory_at(from), len, stream, blocking) }
    }

    unsafe fn copy(&self, to: u64, from: u64, len: u64, stream: Stream) -> DriverResult<()> {
        // SAFETY: passed on by the caller.
        unsafe { self.copy_any(memory_at(to), memory_at(from), len, stream, false) }
    }

    unsafe fn fill(&self, to: u64, byte: u8, len: u64, stream: Stream) -> DriverResult<()> {
        if len == 0 {
            return Ok(());
        }
        let (queue, pattern) = (queue_of(stream), (&raw const byte).cast());
        // SAFETY: the queue is alive, the pattern is copied by the call, and the range is passed on by the caller.
        check("clEnqueueSVMMemFill", unsafe {
            let fill = self.driver.clEnqueueSVMMemFill;
            fill(queue, memory_at(to), pattern, 1, len as usize, 0, null(), null_mut())
        })
    }

    fn host_alloc(&self, len: usize) -> DriverResult<*mut u8> {
        let refused = DriverError { call: "host_alloc", code: DriverError::OUT_OF_MEMORY };
        let layout = Layout::from_size_align(len.max(1), PAGE).map_err(|_| refused)?;
        // SAFETY: the layout is not empty.
        let ptr = unsafe { std::alloc::alloc_zeroed(layout) };
        if ptr.is_null() {
            return Err(refused);
        }
        self.locked.lock().insert(ptr.expose_provenance(), layout.size());
        Ok(ptr)
    }

    unsafe fn host_free(&self, ptr: *mut u8) -> DriverResult<()> {
        let unknown = DriverError { call: "host_free", code: DriverError::INVALID_VALUE };
        let len = self.locked.lock().remove(&ptr.addr()).ok_or(unknown)?;
        let layout = Layout::from_size_align(len, PAGE).map_err(|_| unknown)?;
        // SAFETY: `host_alloc` took it with this layout, and it was in the list until now.
        unsafe { std::alloc::dealloc(ptr, layout) };
        Ok(())
    }

    unsafe fn host_register(&self, ptr: *mut u8, len: usize) -> DriverResult<()> {
        self.locked.lock().insert(ptr.addr(), len);
        Ok(())
    }

    unsafe fn host_unregister(&self, ptr: *mut u8) -> DriverResult<()> {
        let unknown = DriverError { call: "host_unregister", code: DriverError::INVALID_VALUE };
        self.locked.lock().remove(&ptr.addr()).map(|_| ()).ok_or(unknown)
    }

    fn when_done(&self, stream: Stream, then: Box<dyn FnOnce() + Send>) -> DriverResult<()> {
        let marker = self.mark(stream)?;
        host_call::give(then, |data| {
            // SAFETY: the event is alive; `call_back` takes what `give` gives.
            let code = unsafe { (self.driver.clSetEventCallback)(marker.event, COMPLETE, call_back, data) };
            check("clSetEventCallback", code)
        })
    }

    fn reaches(&self, other: Uuid) -> bool {
        other == self.info.uuid
    }

    unsafe fn copy_peer(
        &self,
        to: u64,
        other: Uuid,
        from: u64,
        len: u64,
        stream: Stream,
    ) -> DriverResult<()> {
        if !self.reaches(other) {
            let code = DriverError::PEER_UNSUPPORTED;
            return Err(DriverError { call: "copy between devices", code });
        }
        // SAFETY: passed on by the caller.
        unsafe { self.copy(to, from, len, stream) }
    }
}
