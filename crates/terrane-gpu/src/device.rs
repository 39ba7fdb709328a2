//! The one trait that a device offers: streams, events, copies, fills and memory.
//!
//! Invariant: work submitted to one [`Stream`] runs in the order of submission. An [`Event`] that was recorded on a
//! stream is complete when all work submitted to that stream before the record is complete. Nothing else is assumed of
//! two streams, and that is what [`stream_order`](crate::stream_order) is built on.
//!
//! Every method may be called from every thread. Nothing here is on a pool's hit path: a pool that finds a block in
//! the list of the stream makes no call at all.

use crate::error::DriverError;

/// A device's or the driver's answer.
pub type DriverResult<T> = Result<T, DriverError>;

/// A stream of one device.
///
/// `raw` is the driver's handle. `key` is a small number that the device gave to this stream and gives to no other
/// one, so that pools find their per-stream state by index, and a handle that the driver uses again for another stream
/// is not mistaken for the first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Stream {
    raw: u64,
    key: u32,
}

impl Stream {
    /// A stream with the driver's handle `raw` under the device's number `key`.
    pub const fn new(raw: u64, key: u32) -> Self {
        Self { raw, key }
    }

    /// The driver's handle.
    pub const fn raw(self) -> u64 {
        self.raw
    }

    /// The device's number of this stream.
    pub const fn key(self) -> u32 {
        self.key
    }
}

/// An event of one device; the driver's handle.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Event(pub u64);

/// A physical allocation that can be mapped at addresses: the driver's handle.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Physical(pub u64);

/// The name that a device keeps across reboots and orders of enumeration.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uuid(pub [u8; 16]);

impl core::fmt::Debug for Uuid {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

impl core::fmt::Display for Uuid {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("GPU-")?;
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// What a device is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// The driver's number of the device.
    pub ordinal: u32,
    /// The product's name; a simulated device says that it is one.
    pub name: String,
    /// The lasting name.
    pub uuid: Uuid,
    /// Bytes of device memory.
    pub total_bytes: u64,
    /// The NUMA node of the host that the device hangs on, when that is known.
    pub numa_node: Option<u32>,
    /// Whether this is a simulated device, whose times mean nothing.
    pub simulated: bool,
}

/// Device memory as the driver sees it, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceMemoryInfo {
    /// Not taken by anyone.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

/// Streams and events: all that stream order needs of a device.
///
/// # Safety
/// `event_query` says `true`, and `event_synchronize` returns, only when all work that was submitted to the stream
/// before the latest record of the event is complete; `stream_wait` holds back all later work of the stream until then.
pub unsafe trait Streams: Send + Sync {
    /// Makes an event without timing.
    ///
    /// # Errors
    /// The driver's refusal.
    fn event_create(&self) -> DriverResult<Event>;

    /// Destroys an event. A refusal has no consequence and is not reported.
    fn event_destroy(&self, event: Event);

    /// Records `event` on `stream`.
    ///
    /// # Errors
    /// The driver's refusal; the event is then as before.
    fn event_record(&self, event: Event, stream: Stream) -> DriverResult<()>;

    /// Whether the latest record of `event` is complete. Not to be called while a capture is declared.
    ///
    /// # Errors
    /// The driver's refusal.
    fn event_query(&self, event: Event) -> DriverResult<bool>;

    /// Blocks the host until the latest record of `event` is complete.
    ///
    /// # Errors
    /// The driver's refusal.
    fn event_synchronize(&self, event: Event) -> DriverResult<()>;

    /// Makes later work of `stream` wait for the latest record of `event`.
    ///
    /// # Errors
    /// The driver's refusal; nothing has been ordered then.
    fn stream_wait(&self, stream: Stream, event: Event) -> DriverResult<()>;

    /// Says that a stream is being captured (`true`) or no longer is: while any is, pools make no queries.
    fn declare_capture(&self, _entered: bool) {}

    /// Whether any capture is declared. Makes no driver call.
    fn capturing(&self) -> bool {
        false
    }

    /// Whether the device wants to be told of every block that a pool hands out and takes back
    /// ([`note_taken`](Self::note_taken), [`note_freed`](Self::note_freed)). Constant over its life. Only a simulated
    /// device does: this is how its checker sees blocks inside a pool's memory.
    fn watches_blocks(&self) -> bool {
        false
    }

    /// `len` bytes at `address` were handed out for use on `stream`.
    fn note_taken(&self, _address: u64, _len: u64, _stream: Stream) {}

    /// `len` bytes at `address` were taken back in the order of `stream`. Not for blocks that other streams used as well: no
    /// single stream's order says when those are free.
    fn note_freed(&self, _address: u64, _len: u64, _stream: Stream) {}
}

/// A device: [`Streams`], memory, copies and fills. Object-safe; a pool holds it as `Arc<D>` with `D: ?Sized`.
///
/// # Safety
/// Addresses that are out never overlap and stay valid until freed, and the promises of [`Streams`] hold.
pub unsafe trait Device: Streams {
    /// What the device is.
    fn info(&self) -> &DeviceInfo;

    /// How much device memory is free.
    ///
    /// # Errors
    /// The driver's refusal.
    fn memory(&self) -> DriverResult<DeviceMemoryInfo>;

    /// Takes `len` bytes of device memory, aligned to 256 bytes at least. This is the slow way that pools spare.
    ///
    /// # Errors
    /// The driver's refusal; [`DriverError::OUT_OF_MEMORY`] when there is no room.
    fn alloc(&self, len: u64) -> DriverResult<u64>;

    /// Gives memory of [`alloc`](Self::alloc) back.
    ///
    /// # Errors
    /// The driver's refusal; the memory is then still taken.
    ///
    /// # Safety
    /// `address` came from `alloc` of this device, and no work uses it or will.
    unsafe fn free(&self, address: u64) -> DriverResult<()>;

    /// Makes a stream that is not ordered with the default stream.
    ///
    /// # Errors
    /// The driver's refusal.
    fn stream_create(&self) -> DriverResult<Stream>;

    /// Destroys a stream; work already submitted still runs. Tell the pools first (`retire_stream`).
    ///
    /// # Errors
    /// The driver's refusal.
    fn stream_destroy(&self, stream: Stream) -> DriverResult<()>;

    /// Blocks the host until all work of `stream` is complete.
    ///
    /// # Errors
    /// The driver's refusal, or the error of work that failed.
    fn stream_synchronize(&self, stream: Stream) -> DriverResult<()>;

    /// Blocks the host until all work of the device is complete.
    ///
    /// # Errors
    /// The driver's refusal, or the error of work that failed.
    fn synchronize(&self) -> DriverResult<()>;

    /// Copies `len` bytes of host memory to the device, in the order of `stream`.
    ///
    /// # Errors
    /// The driver's refusal; nothing was submitted then.
    ///
    /// # Safety
    /// `from` is readable and `to` is device memory for `len` bytes until the copy is complete, and nothing else
    /// writes `from` until then. Memory that is not page-locked is read before the call returns.
    unsafe fn upload(&self, to: u64, from: *const u8, len: u64, stream: Stream) -> DriverResult<()>;

    /// Copies `len` bytes of device memory to the host, in the order of `stream`.
    ///
    /// # Errors
    /// The driver's refusal; nothing was submitted then.
    ///
    /// # Safety
    /// `to` is writable and `from` is device memory for `len` bytes until the copy is complete, and nothing else
    /// touches `to` until then. Memory that is not page-locked is written before the call returns.
    unsafe fn download(&self, to: *mut u8, from: u64, len: u64, stream: Stream) -> DriverResult<()>;

    /// Copies `len` bytes within the device, in the order of `stream`.
    ///
    /// # Errors
    /// The driver's refusal; nothing was submitted then.
    ///
    /// # Safety
    /// Both ranges are device memory until the copy is complete, and do not overlap.
    unsafe fn copy(&self, to: u64, from: u64, len: u64, stream: Stream) -> DriverResult<()>;

    /// Sets `len` bytes to `byte`, in the order of `stream`.
    ///
    /// # Errors
    /// The driver's refusal; nothing was submitted then.
    ///
    /// # Safety
    /// The range is device memory until the fill is complete.
    unsafe fn fill(&self, to: u64, byte: u8, len: u64, stream: Stream) -> DriverResult<()>;

    /// Takes `len` bytes of page-locked host memory, not write-combined, aligned to 64 bytes at least. All its bytes
    /// are initialised.
    ///
    /// # Errors
    /// The driver's refusal.
    fn host_alloc(&self, len: usize) -> DriverResult<*mut u8>;

    /// Gives page-locked memory back.
    ///
    /// # Errors
    /// The driver's refusal; the memory is then still taken.
    ///
    /// # Safety
    /// `ptr` came from `host_alloc` of this device, and nothing uses it any more.
    unsafe fn host_free(&self, ptr: *mut u8) -> DriverResult<()>;

    /// Page-locks `len` bytes of host memory that someone else owns.
    ///
    /// # Errors
    /// The driver's refusal.
    ///
    /// # Safety
    /// The range is mapped, and stays so until [`host_unregister`](Self::host_unregister).
    unsafe fn host_register(&self, ptr: *mut u8, len: usize) -> DriverResult<()>;

    /// Undoes [`host_register`](Self::host_register).
    ///
    /// # Errors
    /// The driver's refusal.
    ///
    /// # Safety
    /// `ptr` was registered, and no copy uses the range any more.
    unsafe fn host_unregister(&self, ptr: *mut u8) -> DriverResult<()>;

    /// Calls `then` on a thread of the driver when all work submitted to `stream` so far is complete. `then` must not
    /// call the device.
    ///
    /// # Errors
    /// The driver's refusal; `then` is dropped uncalled.
    fn when_done(&self, stream: Stream, then: Box<dyn FnOnce() + Send>) -> DriverResult<()>;

    /// Whether this device reaches the memory of the device with this UUID without a detour through the host.
    fn reaches(&self, other: Uuid) -> bool;

    /// Copies `len` bytes from this device's memory to the device `other`, in the order of this device's `stream`.
    ///
    /// # Errors
    /// [`DriverError::PEER_UNSUPPORTED`], or the driver's refusal; nothing was submitted then.
    ///
    /// # Safety
    /// `from` is memory of this device, `to` is memory of `other`, for `len` bytes until the copy is complete.
    unsafe fn copy_peer(&self, to: u64, other: Uuid, from: u64, len: u64, stream: Stream)
    -> DriverResult<()>;

    /// The ability to map physical memory at chosen addresses, if this device has it.
    fn virtual_memory(&self) -> Option<&dyn VirtualMemory> {
        None
    }

    /// The driver's own stream-ordered allocator, if this device has one.
    fn ordered_memory(&self) -> Option<&dyn OrderedMemory> {
        None
    }
}

/// Addresses and physical memory taken apart: reserve a range once, map physical handles into it as needed.
pub trait VirtualMemory {
    /// Lengths and offsets of mappings are multiples of this, in bytes: a power of two, constant.
    fn granularity(&self) -> u64;

    /// Takes `len` bytes of address space at a multiple of `align`, without memory behind them.
    ///
    /// # Errors
    /// The driver's refusal.
    fn reserve(&self, len: u64, align: u64) -> DriverResult<u64>;

    /// Gives address space back.
    ///
    /// # Errors
    /// The driver's refusal.
    ///
    /// # Safety
    /// The range was reserved as a whole, and nothing is mapped in it.
    unsafe fn unreserve(&self, address: u64, len: u64) -> DriverResult<()>;

    /// Takes `len` bytes of physical memory.
    ///
    /// # Errors
    /// The driver's refusal; [`DriverError::OUT_OF_MEMORY`] when there is no room.
    fn create(&self, len: u64) -> DriverResult<Physical>;

    /// Gives physical memory back; where it is still mapped it goes with the last mapping.
    ///
    /// # Errors
    /// The driver's refusal.
    ///
    /// # Safety
    /// `physical` is alive, and is not used after this call.
    unsafe fn release(&self, physical: Physical) -> DriverResult<()>;

    /// Maps all `len` bytes of `physical` at `address`; not accessible yet.
    ///
    /// # Errors
    /// The driver's refusal.
    ///
    /// # Safety
    /// The range is reserved, nothing is mapped there, and `physical` has `len` bytes.
    unsafe fn map(&self, address: u64, len: u64, physical: Physical) -> DriverResult<()>;

    /// Makes a mapped range readable and writable for the device.
    ///
    /// # Errors
    /// The driver's refusal.
    ///
    /// # Safety
    /// The whole range is mapped.
    unsafe fn allow(&self, address: u64, len: u64) -> DriverResult<()>;

    /// Unmaps a range.
    ///
    /// # Errors
    /// The driver's refusal; the range is then still mapped.
    ///
    /// # Safety
    /// The range is made of whole mappings, and all work that used it is complete and known to be.
    unsafe fn unmap(&self, address: u64, len: u64) -> DriverResult<()>;
}

/// What the driver's own pool holds, in bytes, for all who use it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct OrderedUsage {
    /// Held from the device.
    pub reserved: u64,
    /// Most that was ever held.
    pub peak_reserved: u64,
    /// Handed out.
    pub used: u64,
}

/// The driver's own stream-ordered pool (`cuMemAllocAsync`).
pub trait OrderedMemory {
    /// Takes `len` bytes, usable in the order of `stream`.
    ///
    /// # Errors
    /// The driver's refusal.
    fn alloc_ordered(&self, len: u64, stream: Stream) -> DriverResult<u64>;

    /// Gives memory back in the order of `stream`.
    ///
    /// # Errors
    /// The driver's refusal; the memory is then still taken.
    ///
    /// # Safety
    /// `address` came from `alloc_ordered`, and later work does not use it.
    unsafe fn free_ordered(&self, address: u64, stream: Stream) -> DriverResult<()>;

    /// Keeps up to `bytes` of unused memory when the device is synchronised, instead of giving it back.
    ///
    /// # Errors
    /// The driver's refusal.
    fn keep_unused(&self, bytes: u64) -> DriverResult<()>;

    /// Gives unused memory above `keep` bytes back.
    ///
    /// # Errors
    /// The driver's refusal.
    fn trim(&self, keep: u64) -> DriverResult<()>;

    /// What the driver's pool holds.
    ///
    /// # Errors
    /// The driver's refusal.
    fn usage(&self) -> DriverResult<OrderedUsage>;
}
