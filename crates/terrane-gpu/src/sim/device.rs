//! One simulated device: every call is checked, counted, charged and queued.
//!
//! Invariant: a call that returns an error has changed nothing, except that the clock went on and the call was counted.

use super::faults::Call;
use super::memory::{Bytes, Mapping, POISON};
use super::world::{Capture, Engine, EventState, Kernel, KernelMemory, State, Submission, Work};
use super::{Access, SimConfig, Violation, World};
use crate::device::{
    Device, DeviceInfo, DeviceMemoryInfo, DriverResult, Event, OrderedMemory, Stream, Streams, Uuid,
    VirtualMemory,
};
use crate::error::DriverError;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A device of a [`Sim`](super::Sim).
pub struct SimDevice {
    world: Arc<World>,
    pub(super) index: usize,
    info: DeviceInfo,
    default_stream: Stream,
    pub(super) granularity: u64,
    watches: bool,
}

impl core::fmt::Debug for SimDevice {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SimDevice").field("info", &self.info).finish_non_exhaustive()
    }
}

/// Bytes of a page of page-locked memory.
const PAGE: usize = 4096;

/// Page-locked memory starts at a page, as a driver's does.
#[derive(Clone)]
#[repr(align(4096))]
struct Page {
    _bytes: [u8; PAGE],
}

/// Work that was captured once and can be launched many times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Graph(usize);

pub(super) const fn refused(call: Call, code: i32) -> DriverError {
    DriverError { call: call.driver_name(), code }
}

impl SimDevice {
    pub(super) fn new(world: Arc<World>, index: usize) -> Self {
        let (info, default_stream, granularity, watches) = world.with(|s| {
            let SimConfig { capacity, granularity, watch_blocks, .. } = s.config;
            let mut uuid = [0x51; 16];
            uuid[15] = index as u8;
            let info = DeviceInfo {
                ordinal: index as u32,
                name: format!("simulated device {index}"),
                uuid: Uuid(uuid),
                total_bytes: capacity,
                numa_node: s.config.numa_nodes.get(index).copied(),
                simulated: true,
            };
            let (raw, key) = s.add_stream(index);
            (info, Stream::new(raw, key), granularity, watch_blocks)
        });
        Self { world, index, info, default_stream, granularity, watches }
    }

    /// A stream that exists from the start.
    pub fn default_stream(&self) -> Stream {
        self.default_stream
    }

    /// Submits a kernel that touches what `accesses` declare; `body` runs when the scheduler says so.
    ///
    /// # Errors
    /// [`DriverError::ILLEGAL_ADDRESS`] if a range is not mapped, or the refusal that was injected.
    pub fn launch(
        &self,
        stream: Stream,
        accesses: &[Access],
        body: impl Fn(&mut KernelMemory<'_>) + Send + Sync + 'static,
    ) -> DriverResult<()> {
        let body: Kernel = Arc::new(body);
        let work = Work::Kernel { body, declared: accesses.into() };
        self.submit(Call::Launch, stream, accesses, work, Engine::Compute)
    }

    /// Starts capturing `stream`: its work is kept for a graph instead of being run.
    ///
    /// # Errors
    /// The refusal that was injected, or an invalid stream.
    pub fn capture_begin(&self, stream: Stream) -> DriverResult<()> {
        self.call(Call::CaptureBegin, |s| {
            let index = s.stream_index(stream.raw(), Call::CaptureBegin)?;
            s.streams[index].capture = Some(Capture::default());
            Ok(())
        })
    }

    /// Ends the capture of `stream`.
    ///
    /// # Errors
    /// [`DriverError::CAPTURE_INVALIDATED`] if a forbidden call was made meanwhile.
    pub fn capture_end(&self, stream: Stream) -> DriverResult<Graph> {
        self.call(Call::CaptureEnd, |s| {
            let index = s.stream_index(stream.raw(), Call::CaptureEnd)?;
            let capture = s.streams[index]
                .capture
                .take()
                .ok_or(refused(Call::CaptureEnd, DriverError::INVALID_VALUE))?;
            if capture.spoilt {
                return Err(refused(Call::CaptureEnd, DriverError::CAPTURE_INVALIDATED));
            }
            s.graphs.push(capture.work);
            Ok(Graph(s.graphs.len() - 1))
        })
    }

    /// Submits the captured work of `graph` to `stream`.
    ///
    /// # Errors
    /// As for the work itself.
    pub fn graph_launch(&self, graph: Graph, stream: Stream) -> DriverResult<()> {
        self.call(Call::GraphLaunch, |s| {
            let index = s.stream_index(stream.raw(), Call::GraphLaunch)?;
            for submission in s.graphs[graph.0].clone() {
                s.submit(index, submission)?;
            }
            Ok(())
        })
    }

    pub(super) fn call<R>(
        &self,
        call: Call,
        f: impl FnOnce(&mut State) -> DriverResult<R>,
    ) -> DriverResult<R> {
        if let Some(watcher) = self.world.watcher.get() {
            watcher(call);
        }
        self.world.with(|s| {
            s.enter(call)?;
            f(s)
        })
    }

    fn submit(
        &self,
        call: Call,
        stream: Stream,
        accesses: &[Access],
        work: Work,
        engine: Engine,
    ) -> DriverResult<()> {
        self.call(call, |s| {
            let index = s.stream_index(stream.raw(), call)?;
            let bytes = accesses.iter().map(|a| a.len).max().unwrap_or(0);
            let what = call.driver_name();
            s.submit(index, Submission { work, accesses: accesses.to_vec(), what, engine, bytes })
        })
    }

    /// Whether `len` bytes at `host` are page-locked memory that the simulation knows.
    fn is_pinned(&self, host: u64, len: u64) -> bool {
        self.world.with(|s| s.space.resolve(host, len).is_some())
    }

    fn note(&self, address: u64, len: u64, stream: Stream, freed: bool) {
        self.world.with(|s| {
            let Ok(index) = s.stream_index(stream.raw(), Call::Launch) else { return };
            let (work, what) = if freed {
                (Work::Fill { to: address, byte: POISON, len }, "free to a pool")
            } else {
                (Work::Note, "allocation from a pool")
            };
            let accesses = vec![Access::write(address, len)];
            // An unmapped block is kept as a violation by `submit` itself.
            let _ = s.submit(index, Submission { work, accesses, what, engine: Engine::None, bytes: 0 });
        });
    }

    pub(super) fn take_piece(&self, s: &mut State, call: Call, len: u64) -> DriverResult<u64> {
        if len == 0 {
            return Err(refused(call, DriverError::INVALID_VALUE));
        }
        if s.devices[self.index].used + len > s.config.capacity {
            return Err(refused(call, DriverError::OUT_OF_MEMORY));
        }
        s.devices[self.index].used += len;
        Ok(s.space.add_piece(len, Some(self.index), Bytes::sparse()))
    }

    pub(super) fn alloc_in(&self, s: &mut State, call: Call, len: u64) -> DriverResult<u64> {
        let len = len.next_multiple_of(512);
        let piece = self.take_piece(s, call, len)?;
        let device = &mut s.devices[self.index];
        let address = device.spare.get_mut(&len).and_then(Vec::pop).unwrap_or_else(|| {
            let address = device.next_address;
            device.next_address += len;
            address
        });
        s.space.maps.insert(address, Mapping { len, piece, allowed: true, whole: true });
        if let Some(piece) = s.space.pieces.get_mut(&piece) {
            piece.mappings = 1;
        }
        Ok(address)
    }

    fn give_back_host(&self, call: Call, address: u64) -> DriverResult<()> {
        self.call(call, |s| {
            let map = *s.space.maps.get(&address).ok_or(refused(call, DriverError::INVALID_VALUE))?;
            report_use(s, address, map.len);
            s.space.maps.remove(&address);
            s.space.pieces.remove(&map.piece);
            Ok(())
        })
    }

    fn lock_host(&self, s: &mut State, address: u64, len: u64) {
        let piece = s.space.add_piece(len, None, Bytes::Host(address));
        s.space.maps.insert(address, Mapping { len, piece, allowed: true, whole: false });
    }
}

/// Keeps a violation if work that is not known to be complete uses the range.
pub(super) fn report_use(s: &mut State, address: u64, len: u64) {
    let Some(stretches) = s.space.resolve(address, len) else { return };
    let found = stretches.iter().find_map(|stretch| {
        let piece = s.space.pieces.get(&stretch.piece)?;
        piece.shadow.unordered(stretch.offset, stretch.len, true, &s.host)
    });
    if let Some(stream) = found {
        let stream = State::stream_raw(stream);
        s.violations.push(Violation::GivenBackInUse { address, len, stream });
    }
}

// SAFETY: a record completes in the simulation when the scheduler has run all work before it, a query and a host wait
// report exactly that, and a wait holds back its stream until then (`world::State::runnable`).
unsafe impl Streams for SimDevice {
    fn event_create(&self) -> DriverResult<Event> {
        self.call(Call::EventCreate, |s| {
            let event = s.next_event;
            s.next_event += 1;
            s.events.insert(event, EventState::default());
            Ok(Event(event))
        })
    }

    fn event_destroy(&self, event: Event) {
        self.world.with(|s| s.destroy_event(event.0));
    }

    fn event_record(&self, event: Event, stream: Stream) -> DriverResult<()> {
        self.call(Call::EventRecord, |s| {
            let index = s.stream_index(stream.raw(), Call::EventRecord)?;
            s.record(event.0, index)
        })
    }

    fn event_query(&self, event: Event) -> DriverResult<bool> {
        self.call(Call::EventQuery, |s| {
            s.forbid_in_capture(Call::EventQuery)?;
            s.query(event.0)
        })
    }

    fn event_synchronize(&self, event: Event) -> DriverResult<()> {
        self.call(Call::EventSynchronize, |s| {
            s.forbid_in_capture(Call::EventSynchronize)?;
            s.synchronize_event(event.0)
        })
    }

    fn stream_wait(&self, stream: Stream, event: Event) -> DriverResult<()> {
        self.call(Call::StreamWait, |s| {
            let index = s.stream_index(stream.raw(), Call::StreamWait)?;
            s.wait(index, event.0)
        })
    }

    fn declare_capture(&self, entered: bool) {
        if entered {
            self.world.captures.fetch_add(1, Ordering::SeqCst);
        } else {
            self.world.captures.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn capturing(&self) -> bool {
        self.world.captures.load(Ordering::SeqCst) != 0
    }

    fn watches_blocks(&self) -> bool {
        self.watches
    }

    fn note_taken(&self, address: u64, len: u64, stream: Stream) {
        self.note(address, len, stream, false);
    }

    fn note_freed(&self, address: u64, len: u64, stream: Stream) {
        self.note(address, len, stream, true);
    }
}

// SAFETY: addresses of live mappings come from a bump pointer or from unmapped ranges of the same length, so they never
// overlap; a mapping lives until it is freed or unmapped.
unsafe impl Device for SimDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> DriverResult<DeviceMemoryInfo> {
        self.call(Call::MemoryInfo, |s| {
            let total = s.config.capacity;
            Ok(DeviceMemoryInfo { free: total - s.devices[self.index].used, total })
        })
    }

    fn alloc(&self, len: u64) -> DriverResult<u64> {
        self.call(Call::Alloc, |s| self.alloc_in(s, Call::Alloc, len))
    }

    unsafe fn free(&self, address: u64) -> DriverResult<()> {
        self.call(Call::Free, |s| {
            if !s.space.maps.get(&address).is_some_and(|m| m.whole) {
                return Err(refused(Call::Free, DriverError::INVALID_VALUE));
            }
            // The driver's free waits for the device.
            let device = self.index;
            s.synchronize(|_, stream| stream.device == device);
            s.unmap_whole(address);
            Ok(())
        })
    }

    fn stream_create(&self) -> DriverResult<Stream> {
        self.call(Call::StreamCreate, |s| {
            let (raw, key) = s.add_stream(self.index);
            Ok(Stream::new(raw, key))
        })
    }

    fn stream_destroy(&self, stream: Stream) -> DriverResult<()> {
        self.call(Call::StreamDestroy, |s| {
            let index = s.stream_index(stream.raw(), Call::StreamDestroy)?;
            s.streams[index].alive = false;
            Ok(())
        })
    }

    fn stream_synchronize(&self, stream: Stream) -> DriverResult<()> {
        self.call(Call::StreamSynchronize, |s| {
            s.forbid_in_capture(Call::StreamSynchronize)?;
            let index = s.stream_index(stream.raw(), Call::StreamSynchronize)?;
            s.synchronize(|i, _| i == index);
            Ok(())
        })
    }

    fn synchronize(&self) -> DriverResult<()> {
        self.call(Call::Synchronize, |s| {
            s.forbid_in_capture(Call::Synchronize)?;
            let device = self.index;
            s.synchronize(|_, stream| stream.device == device);
            Ok(())
        })
    }

    unsafe fn upload(&self, to: u64, from: *const u8, len: u64, stream: Stream) -> DriverResult<()> {
        let host = from.expose_provenance() as u64;
        if len > 0 && self.is_pinned(host, len) {
            let accesses = [Access::read(host, len), Access::write(to, len)];
            let work = Work::Copy { to, from: host, len };
            return self.submit(Call::Upload, stream, &accesses, work, Engine::Upload);
        }
        // SAFETY: the caller promises `len` readable bytes; memory that is not page-locked is read now.
        let bytes: Arc<[u8]> = unsafe { core::slice::from_raw_parts(from, len as usize) }.into();
        let work = Work::Write { to, bytes };
        self.submit(Call::Upload, stream, &[Access::write(to, len)], work, Engine::Upload)
    }

    unsafe fn download(&self, to: *mut u8, from: u64, len: u64, stream: Stream) -> DriverResult<()> {
        let host = to.expose_provenance() as u64;
        if len > 0 && self.is_pinned(host, len) {
            let accesses = [Access::read(from, len), Access::write(host, len)];
            let work = Work::Copy { to: host, from, len };
            return self.submit(Call::Download, stream, &accesses, work, Engine::Download);
        }
        self.submit(Call::Download, stream, &[Access::read(from, len)], Work::Note, Engine::Download)?;
        // The same call: the driver waits in it.
        self.world.with(|s| {
            s.forbid_in_capture(Call::Download)?;
            let index = s.stream_index(stream.raw(), Call::Download)?;
            s.synchronize(|i, _| i == index);
            // SAFETY: the caller promises `len` writable bytes that nobody else touches.
            let into = unsafe { core::slice::from_raw_parts_mut(to, len as usize) };
            if s.space.read(from, into) {
                Ok(())
            } else {
                Err(refused(Call::Download, DriverError::ILLEGAL_ADDRESS))
            }
        })
    }

    unsafe fn copy(&self, to: u64, from: u64, len: u64, stream: Stream) -> DriverResult<()> {
        let accesses = [Access::read(from, len), Access::write(to, len)];
        self.submit(Call::Copy, stream, &accesses, Work::Copy { to, from, len }, Engine::Compute)
    }

    unsafe fn fill(&self, to: u64, byte: u8, len: u64, stream: Stream) -> DriverResult<()> {
        let work = Work::Fill { to, byte, len };
        self.submit(Call::Fill, stream, &[Access::write(to, len)], work, Engine::Compute)
    }

    fn host_alloc(&self, len: usize) -> DriverResult<*mut u8> {
        self.call(Call::HostAlloc, |s| {
            let pages = len.div_ceil(PAGE).max(1);
            let ptr = Box::into_raw(vec![Page { _bytes: [0; PAGE] }; pages].into_boxed_slice()).cast::<u8>();
            let address = ptr.expose_provenance() as u64;
            s.host_blocks.insert(address, pages);
            self.lock_host(s, address, (pages * PAGE) as u64);
            Ok(ptr)
        })
    }

    unsafe fn host_free(&self, ptr: *mut u8) -> DriverResult<()> {
        let address = ptr.expose_provenance() as u64;
        let known = self.world.with(|s| s.host_blocks.get(&address).copied());
        let Some(pages) = known else {
            return Err(refused(Call::HostFree, DriverError::INVALID_VALUE));
        };
        self.give_back_host(Call::HostFree, address)?;
        self.world.with(|s| s.host_blocks.remove(&address));
        let block = core::ptr::slice_from_raw_parts_mut(ptr.cast::<Page>(), pages);
        // SAFETY: `host_alloc` made this box with `pages` elements, the table says it was not freed yet, and the
        // caller gives it up.
        drop(unsafe { Box::from_raw(block) });
        Ok(())
    }

    unsafe fn host_register(&self, ptr: *mut u8, len: usize) -> DriverResult<()> {
        self.call(Call::HostRegister, |s| {
            let address = ptr.expose_provenance() as u64;
            if s.space.any_mapped(address, len as u64) {
                return Err(refused(Call::HostRegister, DriverError::INVALID_VALUE));
            }
            self.lock_host(s, address, len as u64);
            Ok(())
        })
    }

    unsafe fn host_unregister(&self, ptr: *mut u8) -> DriverResult<()> {
        self.give_back_host(Call::HostUnregister, ptr.expose_provenance() as u64)
    }

    fn when_done(&self, stream: Stream, then: Box<dyn FnOnce() + Send>) -> DriverResult<()> {
        let work = Work::Call(Arc::new(Mutex::new(Some(then))));
        self.submit(Call::HostFunction, stream, &[], work, Engine::None)
    }

    fn reaches(&self, other: Uuid) -> bool {
        let (me, other) = (self.index as u32, u32::from(other.0[15]));
        other == me
            || self
                .world
                .with(|s| s.config.links.iter().any(|&(a, b)| (a, b) == (me, other) || (b, a) == (me, other)))
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
            return Err(refused(Call::CopyPeer, DriverError::PEER_UNSUPPORTED));
        }
        let accesses = [Access::read(from, len), Access::write(to, len)];
        self.submit(Call::CopyPeer, stream, &accesses, Work::Copy { to, from, len }, Engine::Download)
    }

    fn virtual_memory(&self) -> Option<&dyn VirtualMemory> {
        Some(self)
    }

    fn ordered_memory(&self) -> Option<&dyn OrderedMemory> {
        Some(self)
    }
}
