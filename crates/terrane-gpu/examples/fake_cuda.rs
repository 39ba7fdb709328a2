//! A driver library made of the simulated device: it exports the C functions of NVIDIA's driver that the CUDA back-end
//! (and `cudarc`) uses, so that both can be tested, unmodified, on a machine with no GPU. Built as a shared library by
//! `cargo test`; never installed, and never to be mistaken for a driver.
//!
//! Environment: `FAKE_CUDA_DEVICES` (how many, 2 if absent), `FAKE_CUDA_INIT` (what `cuInit` returns), `FAKE_CUDA_SEED`,
//! `FAKE_CUDA_NUMA` (the host's memory node that devices are near to, none if absent).
#![allow(
    non_snake_case,
    missing_docs,
    clippy::missing_safety_doc,
    reason = "the driver's names and contracts"
)]

use core::ffi::{CStr, c_char, c_void};
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use terrane_gpu::sim::{Graph, Sim, SimConfig, SimDevice};
use terrane_gpu::{Device, DriverError, DriverResult, Event, OrderedUsage, Physical, Stream, Streams};

const INVALID_VALUE: i32 = 1;
const NOT_INITIALIZED: i32 = 3;
const INVALID_DEVICE: i32 = 101;
const INVALID_CONTEXT: i32 = 201;
const NOT_READY: i32 = 600;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn sim() -> &'static Sim {
    static SIM: OnceLock<Sim> = OnceLock::new();
    SIM.get_or_init(|| {
        let devices = number("FAKE_CUDA_DEVICES", 2) as u32;
        let seed = number("FAKE_CUDA_SEED", 1);
        Sim::with(SimConfig {
            devices,
            seed,
            links: vec![(0, 1)],
            watch_blocks: false,
            ..SimConfig::default()
        })
    })
}

thread_local! {
    /// The stack of current contexts. A context's handle is its device's number and 0x100.
    static CURRENT: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

fn done(result: DriverResult<()>) -> i32 {
    result.map_or_else(|error| error.code, |()| 0)
}

/// Writes a result through a pointer of the caller's.
///
/// # Safety
/// `to` is valid for writes, as the driver's contract says.
unsafe fn put<T>(to: *mut T, result: DriverResult<T>) -> i32 {
    match result {
        Ok(value) => {
            // SAFETY: passed on by the caller.
            unsafe { to.write(value) };
            0
        }
        Err(error) => error.code,
    }
}

fn current() -> DriverResult<Arc<SimDevice>> {
    let top = CURRENT.with(|stack| stack.borrow().last().copied());
    top.map(|context| sim().device(context - 0x100))
        .ok_or(DriverError { call: "current context", code: INVALID_CONTEXT })
}

fn stream_of(device: &SimDevice, raw: *mut c_void) -> Stream {
    if raw.is_null() { device.default_stream() } else { Stream::new(raw.addr() as u64, 0) }
}

fn on(f: impl FnOnce(&SimDevice) -> DriverResult<()>) -> i32 {
    done(current().and_then(|device| f(&device)))
}

fn vm(f: impl FnOnce(&dyn terrane_gpu::VirtualMemory) -> DriverResult<()>) -> i32 {
    on(|device| device.virtual_memory().map_or(Ok(()), f))
}

fn pool(f: impl FnOnce(&dyn terrane_gpu::OrderedMemory) -> DriverResult<()>) -> i32 {
    on(|device| device.ordered_memory().map_or(Ok(()), f))
}

/// Streams that are being captured, all of them in the strictest mode.
static CAPTURED: AtomicU32 = AtomicU32::new(0);
/// Graphs by handle, which is one more than the index.
static GRAPHS: Mutex<Vec<Graph>> = Mutex::new(Vec::new());

thread_local! {
    /// The thread's capture mode: 0 is the strictest, 2 the most relaxed.
    static MODE: Cell<i32> = const { Cell::new(0) };
}

/// Calls that may wait for other streams are refused during a capture, unless the thread has said that it knows.
fn unsafe_call(f: impl FnOnce() -> i32) -> i32 {
    if CAPTURED.load(Ordering::SeqCst) > 0 && MODE.get() != 2 {
        DriverError::CAPTURE_UNSUPPORTED
    } else {
        f()
    }
}

fn graph(handle: *mut c_void) -> DriverResult<Graph> {
    let graphs = GRAPHS.lock().unwrap_or_else(PoisonError::into_inner);
    let found = handle.addr().checked_sub(1).and_then(|index| graphs.get(index).copied());
    found.ok_or(DriverError { call: "graph", code: DriverError::INVALID_HANDLE })
}

macro_rules! exports {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> i32 $body
    )*};
}

/// How often a test may look whether the rules were broken.
#[unsafe(no_mangle)]
pub extern "C" fn fake_cuda_violations() -> u64 {
    let violations = sim().violations();
    violations.iter().for_each(|violation| eprintln!("violation: {violation:?}"));
    violations.len() as u64
}

// SAFETY (all of them): pointers are as the driver's contract says, which the caller keeps; ranges of memory are passed
// on with the caller's promises.
exports! {
    fn cuInit(_flags: u32) { number("FAKE_CUDA_INIT", 0) as i32 }
    fn cuDriverGetVersion(version: *mut i32) {
        // SAFETY: see above.
        unsafe { put(version, Ok(13000)) }
    }
    fn cuDeviceGetCount(count: *mut i32) {
        // SAFETY: see above.
        unsafe { put(count, Ok(sim().devices().len() as i32)) }
    }
    fn cuDeviceGet(device: *mut i32, ordinal: i32) {
        if ordinal as usize >= sim().devices().len() { return INVALID_DEVICE }
        // SAFETY: see above.
        unsafe { put(device, Ok(ordinal)) }
    }
    fn cuDeviceGetName(name: *mut c_char, len: i32, device: i32) {
        let text: &CStr = c"simulated device behind a fake driver";
        if text.count_bytes() >= len as usize || device < 0 { return INVALID_VALUE }
        // SAFETY: see above; the text fits with its end.
        unsafe { core::ptr::copy_nonoverlapping(text.as_ptr(), name, text.count_bytes() + 1) };
        0
    }
    fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: i32) {
        // SAFETY: see above.
        unsafe { put(uuid, Ok(sim().device(device as usize).info().uuid.0)) }
    }
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: i32) {
        // SAFETY: see above.
        unsafe { put(bytes, Ok(sim().device(device as usize).info().total_bytes as usize)) }
    }
    fn cuDeviceGetAttribute(value: *mut i32, which: i32, _device: i32) {
        // SAFETY: see above. 102: virtual memory; 115: memory pools; 134: the host's memory node, -1 if unknown.
        unsafe { put(value, Ok(match which { 102 | 115 => 1, 134 => number("FAKE_CUDA_NUMA", u64::MAX) as i32, _ => 0 })) }
    }
    fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, device: i32) {
        // SAFETY: see above.
        unsafe { put(context, Ok(core::ptr::without_provenance_mut(0x100 + device as usize))) }
    }
    fn cuDevicePrimaryCtxRelease_v2(_device: i32) { 0 }
    fn cuCtxGetCurrent(context: *mut *mut c_void) {
        let top = CURRENT.with(|stack| stack.borrow().last().copied().unwrap_or(0));
        // SAFETY: see above.
        unsafe { put(context, Ok(core::ptr::without_provenance_mut(top))) }
    }
    fn cuCtxSetCurrent(context: *mut c_void) {
        CURRENT.with(|stack| {
            let mut stack = stack.borrow_mut();
            stack.pop();
            if !context.is_null() { stack.push(context.addr()) }
        });
        0
    }
    fn cuCtxPushCurrent_v2(context: *mut c_void) {
        CURRENT.with(|stack| stack.borrow_mut().push(context.addr()));
        0
    }
    fn cuCtxPopCurrent_v2(context: *mut *mut c_void) {
        let top = CURRENT.with(|stack| stack.borrow_mut().pop());
        let top = top.ok_or(DriverError { call: "pop", code: INVALID_CONTEXT });
        // SAFETY: see above.
        unsafe { put(context, top.map(core::ptr::without_provenance_mut)) }
    }
    fn cuCtxSynchronize() { on(|device| device.synchronize()) }
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        on(|device| {
            let info = device.memory()?;
            // SAFETY: see above.
            unsafe {
                free.write(info.free as usize);
                total.write(info.total as usize);
            }
            Ok(())
        })
    }
    fn cuMemAlloc_v2(address: *mut u64, len: usize) {
        unsafe_call(|| {
        // SAFETY: see above.
        unsafe { put(address, current().and_then(|device| device.alloc(len as u64))) }
        })
    }
    fn cuMemFree_v2(address: u64) {
        unsafe_call(|| {
        // SAFETY: see above.
        on(|device| unsafe { device.free(address) })
        })
    }
    fn cuMemHostAlloc(ptr: *mut *mut c_void, len: usize, flags: u32) {
        unsafe_call(|| {
        // Write-combined memory (4) is not what a pool may ask for.
        if flags & 4 != 0 { return INVALID_VALUE }
        // SAFETY: see above.
        unsafe { put(ptr, current().and_then(|device| device.host_alloc(len)).map(|ptr| ptr.cast())) }
        })
    }
    fn cuMemFreeHost(ptr: *mut c_void) {
        unsafe_call(|| {
        // SAFETY: see above.
        on(|device| unsafe { device.host_free(ptr.cast()) })
        })
    }
    fn cuMemHostRegister_v2(ptr: *mut c_void, len: usize, _flags: u32) {
        unsafe_call(|| {
        // SAFETY: see above.
        on(|device| unsafe { device.host_register(ptr.cast(), len) })
        })
    }
    fn cuMemHostUnregister(ptr: *mut c_void) {
        unsafe_call(|| {
        // SAFETY: see above.
        on(|device| unsafe { device.host_unregister(ptr.cast()) })
        })
    }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, len: usize, stream: *mut c_void) {
        // SAFETY: see above.
        on(|device| unsafe { device.upload(to, from.cast(), len as u64, stream_of(device, stream)) })
    }
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, len: usize, stream: *mut c_void) {
        // SAFETY: see above.
        on(|device| unsafe { device.download(to.cast(), from, len as u64, stream_of(device, stream)) })
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: *mut c_void) {
        // SAFETY: see above.
        on(|device| unsafe { device.copy(to, from, len as u64, stream_of(device, stream)) })
    }
    fn cuMemcpyPeerAsync(to: u64, there: *mut c_void, from: u64, here: *mut c_void, len: usize, stream: *mut c_void) {
        let other = sim().device(there.addr() - 0x100).info().uuid;
        let device = sim().device(here.addr() - 0x100);
        // SAFETY: see above.
        done(unsafe { device.copy_peer(to, other, from, len as u64, stream_of(&device, stream)) })
    }
    fn cuMemsetD8Async(to: u64, byte: u8, len: usize, stream: *mut c_void) {
        // SAFETY: see above.
        on(|device| unsafe { device.fill(to, byte, len as u64, stream_of(device, stream)) })
    }
    fn cuStreamCreate(stream: *mut *mut c_void, _flags: u32) {
        let made = current().and_then(|device| device.stream_create());
        // SAFETY: see above.
        unsafe { put(stream, made.map(|s| core::ptr::without_provenance_mut(s.raw() as usize))) }
    }
    fn cuStreamDestroy_v2(stream: *mut c_void) {
        on(|device| device.stream_destroy(stream_of(device, stream)))
    }
    fn cuStreamSynchronize(stream: *mut c_void) {
        on(|device| device.stream_synchronize(stream_of(device, stream)))
    }
    fn cuStreamWaitEvent(stream: *mut c_void, event: *mut c_void, _flags: u32) {
        on(|device| device.stream_wait(stream_of(device, stream), Event(event.addr() as u64)))
    }
    fn cuStreamGetId(stream: *mut c_void, id: *mut u64) {
        // SAFETY: see above. Handles of the simulation are never used again.
        unsafe { put(id, current().map(|device| stream_of(&device, stream).raw())) }
    }
    fn cuStreamBeginCapture_v2(stream: *mut c_void, mode: i32) {
        if mode != 0 { return INVALID_VALUE }
        on(|device| {
            device.capture_begin(stream_of(device, stream))?;
            CAPTURED.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    }
    fn cuStreamEndCapture(stream: *mut c_void, to: *mut *mut c_void) {
        on(|device| {
            CAPTURED.fetch_sub(1, Ordering::SeqCst);
            let graph = device.capture_end(stream_of(device, stream))?;
            let mut graphs = GRAPHS.lock().unwrap_or_else(PoisonError::into_inner);
            graphs.push(graph);
            // SAFETY: see above.
            unsafe { to.write(core::ptr::without_provenance_mut(graphs.len())) };
            Ok(())
        })
    }
    fn cuGraphInstantiateWithFlags(executable: *mut *mut c_void, handle: *mut c_void, _flags: u64) {
        // SAFETY: see above.
        unsafe { put(executable, graph(handle).map(|_| handle)) }
    }
    fn cuGraphLaunch(executable: *mut c_void, stream: *mut c_void) {
        on(|device| device.graph_launch(graph(executable)?, stream_of(device, stream)))
    }
    fn cuGraphExecDestroy(executable: *mut c_void) { done(graph(executable).map(drop)) }
    fn cuGraphDestroy(handle: *mut c_void) { done(graph(handle).map(drop)) }
    fn cuEventCreate(event: *mut *mut c_void, _flags: u32) {
        let made = current().and_then(|device| device.event_create());
        // SAFETY: see above.
        unsafe { put(event, made.map(|e| core::ptr::without_provenance_mut(e.0 as usize))) }
    }
    fn cuEventDestroy_v2(event: *mut c_void) {
        on(|device| {
            device.event_destroy(Event(event.addr() as u64));
            Ok(())
        })
    }
    fn cuEventRecord(event: *mut c_void, stream: *mut c_void) {
        on(|device| device.event_record(Event(event.addr() as u64), stream_of(device, stream)))
    }
    fn cuEventQuery(event: *mut c_void) {
        match current().and_then(|device| device.event_query(Event(event.addr() as u64))) {
            Ok(true) => 0,
            Ok(false) => NOT_READY,
            Err(error) => error.code,
        }
    }
    fn cuEventSynchronize(event: *mut c_void) {
        on(|device| device.event_synchronize(Event(event.addr() as u64)))
    }
    fn cuLaunchHostFunc(stream: *mut c_void, f: unsafe extern "C" fn(*mut c_void), data: *mut c_void) {
        let data = data.expose_provenance();
        on(|device| {
            let call = move || {
                // SAFETY: see above; called once.
                unsafe { f(core::ptr::with_exposed_provenance_mut(data)) }
            };
            device.when_done(stream_of(device, stream), Box::new(call))
        })
    }
    fn cuThreadExchangeStreamCaptureMode(mode: *mut i32) {
        // SAFETY: see above.
        unsafe { mode.write(MODE.replace(mode.read())) };
        0
    }
    fn cuDeviceCanAccessPeer(can: *mut i32, device: i32, other: i32) {
        let there = sim().device(other as usize).info().uuid;
        // SAFETY: see above.
        unsafe { put(can, Ok(i32::from(sim().device(device as usize).reaches(there)))) }
    }
    fn cuMemGetAllocationGranularity(bytes: *mut usize, properties: *const [i32; 8], _option: i32) {
        // SAFETY: see above. The kind and the location's kind have one value each that a device knows.
        if unsafe { (*properties)[0] != 1 || (*properties)[2] != 1 } { return INVALID_VALUE }
        // SAFETY: see above.
        unsafe { put(bytes, Ok(2 << 20)) }
    }
    fn cuMemAddressReserve(address: *mut u64, len: usize, align: usize, _wish: u64, _flags: u64) {
        vm(|vm| {
            // SAFETY: see above.
            unsafe { address.write(vm.reserve(len as u64, align as u64)?) };
            Ok(())
        })
    }
    fn cuMemAddressFree(address: u64, len: usize) {
        // SAFETY: see above.
        vm(|vm| unsafe { vm.unreserve(address, len as u64) })
    }
    fn cuMemCreate(physical: *mut u64, len: usize, properties: *const [i32; 8], _flags: u64) {
        unsafe_call(|| {
        // SAFETY: see above.
        let device = unsafe { (*properties)[3] } as usize;
        if current().is_err() { return NOT_INITIALIZED }
        let made = sim().device(device).virtual_memory().map(|vm| vm.create(len as u64));
        // SAFETY: see above.
        unsafe { put(physical, made.unwrap_or(Ok(Physical(0))).map(|p| p.0)) }
        })
    }
    fn cuMemRelease(physical: u64) {
        unsafe_call(|| {
        // SAFETY: see above.
        vm(|vm| unsafe { vm.release(Physical(physical)) })
        })
    }
    fn cuMemMap(address: u64, len: usize, offset: usize, physical: u64, _flags: u64) {
        unsafe_call(|| {
        if offset != 0 { return INVALID_VALUE }
        // SAFETY: see above.
        vm(|vm| unsafe { vm.map(address, len as u64, Physical(physical)) })
        })
    }
    fn cuMemUnmap(address: u64, len: usize) {
        unsafe_call(|| {
        // SAFETY: see above.
        vm(|vm| unsafe { vm.unmap(address, len as u64) })
        })
    }
    fn cuMemSetAccess(address: u64, len: usize, access: *const [i32; 3], count: usize) {
        unsafe_call(|| {
        // SAFETY: see above. One entry: a device, to be read and written.
        if count != 1 || unsafe { (*access)[0] != 1 || (*access)[2] != 3 } { return INVALID_VALUE }
        // SAFETY: see above.
        vm(|vm| unsafe { vm.allow(address, len as u64) })
        })
    }
    fn cuMemAllocAsync(address: *mut u64, len: usize, stream: *mut c_void) {
        on(|device| {
            let stream = stream_of(device, stream);
            let made = device.ordered_memory().map(|pool| pool.alloc_ordered(len as u64, stream));
            // SAFETY: see above.
            unsafe { address.write(made.unwrap_or(Ok(0))?) };
            Ok(())
        })
    }
    fn cuMemFreeAsync(address: u64, stream: *mut c_void) {
        on(|device| {
            let stream = stream_of(device, stream);
            // SAFETY: see above.
            device.ordered_memory().map_or(Ok(()), |pool| unsafe { pool.free_ordered(address, stream) })
        })
    }
    fn cuDeviceGetDefaultMemPool(pool: *mut *mut c_void, device: i32) {
        // SAFETY: see above.
        unsafe { put(pool, Ok(core::ptr::without_provenance_mut(0x900 + device as usize))) }
    }
    fn cuMemPoolSetAttribute(_pool: *mut c_void, which: i32, value: *mut c_void) {
        // SAFETY: see above; 4 is the release threshold, a 64-bit number.
        if which == 4 { pool(|p| p.keep_unused(unsafe { value.cast::<u64>().read() })) } else { INVALID_VALUE }
    }
    fn cuMemPoolGetAttribute(handle: *mut c_void, which: i32, value: *mut c_void) {
        // No context is needed for this: the pool belongs to a device.
        let device = sim().device(handle.addr() - 0x900);
        let usage = device.ordered_memory().map_or(Ok(OrderedUsage::default()), |p| p.usage());
        let pick = |usage: OrderedUsage| match which {
            5 => Ok(usage.reserved),
            6 => Ok(usage.peak_reserved),
            7 => Ok(usage.used),
            _ => Err(DriverError { call: "cuMemPoolGetAttribute", code: INVALID_VALUE }),
        };
        // SAFETY: see above; these are 64-bit numbers.
        unsafe { put(value.cast::<u64>(), usage.and_then(pick)) }
    }
    fn cuMemPoolTrimTo(_pool: *mut c_void, keep: usize) { pool(|p| p.trim(keep as u64)) }
}
