//! The one domain that all threads of the process share: its memory, its clock, what happens on misuse.

use crate::records::{Record, Records};
use core::ffi::c_int;
use terrane_pages::Mmap;
use terrane_slab::stats::HeapCounters;
use terrane_slab::{Domain, Misuse, Policy, Shared};

/// The domain of the process's threads.
pub type ProcessDomain = Domain<Mmap, Shared>;

/// The heap of one thread.
pub type ThreadHeap = terrane_slab::Heap<Mmap, Shared>;

/// The record of one thread's heap.
pub(crate) type ThreadRecord = Record<ThreadHeap, HeapCounters>;

/// The records of all threads that ever had a heap.
pub(crate) static RECORDS: Records<ThreadHeap, HeapCounters> = Records::new();

/// A record for the calling thread; `None` when memory or names are out.
pub(crate) fn acquire_record() -> Option<&'static ThreadRecord> {
    RECORDS.acquire(|| {
        let name = domain().name_heap()?;
        let memory = domain().take_record(size_of::<ThreadRecord>()).ok()?;
        // SAFETY: the memory is ours, for good, large enough and aligned to a slice. A heap is where its counters are looked for,
        // and the process's domain lives for good.
        Some(unsafe {
            let heap = ThreadHeap::new(domain(), name, 0);
            Record::emplace(memory.as_ptr().cast(), heap, |heap| ThreadHeap::counters_of(heap))
        })
    })
}

static DOMAIN: ProcessDomain = Domain::new(
    Mmap::new(),
    Policy {
        clock: milliseconds,
        node,
        on_idle_memory: crate::background::notice,
        on_misuse: abort_on_misuse,
        ..Policy::DEFAULT
    },
    (),
);

/// The domain of the process's threads.
#[inline(always)]
pub fn domain() -> &'static ProcessDomain {
    &DOMAIN
}

/// Milliseconds since some fixed moment: the system's coarse monotonic clock, which costs no system call.
pub fn milliseconds() -> u64 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC_COARSE;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists, and `now` is a timespec. A clock that cannot be read leaves time at zero: nothing is
    // purged by age then.
    unsafe { libc::clock_gettime(CLOCK, &mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// The NUMA node that the calling thread runs on, 0 if the system does not say.
fn node() -> u32 {
    terrane_pages::numa::current_node().unwrap_or(0)
}

/// Keeps the memory of the machine's NUMA nodes apart, or no longer, from now on.
pub fn set_numa(on: bool) {
    DOMAIN.set_nodes(if on { terrane_pages::numa::node_count() } else { 1 });
}

/// A line of text put together without allocating.
pub struct Line {
    bytes: [u8; 240],
    len: usize,
}

impl Line {
    /// An empty line.
    pub const fn new() -> Self {
        Self { bytes: [0; 240], len: 0 }
    }

    /// Appends `text`; what does not fit is cut off.
    pub fn text(mut self, text: &str) -> Self {
        for &byte in text.as_bytes() {
            if self.len < self.bytes.len() - 1 {
                self.bytes[self.len] = byte;
                self.len += 1;
            }
        }
        self
    }

    /// Appends `value` in hexadecimal.
    pub fn hex(mut self, value: usize) -> Self {
        self = self.text("0x");
        let digits = (usize::BITS - value.leading_zeros()).div_ceil(4).max(1);
        for digit in (0..digits).rev() {
            let nibble = (value >> (digit * 4) & 15) as u32;
            let mut buffer = [0; 4];
            self = self.text(char::from_digit(nibble, 16).unwrap_or('?').encode_utf8(&mut buffer));
        }
        self
    }

    /// Writes the line to `descriptor`, ended by a newline. What cannot be written is lost.
    pub fn write(mut self, descriptor: c_int) {
        self.bytes[self.len] = b'\n';
        let mut rest = &self.bytes[..self.len + 1];
        while !rest.is_empty() {
            // SAFETY: the bytes are readable.
            let written = unsafe { libc::write(descriptor, rest.as_ptr().cast(), rest.len()) };
            if written <= 0 {
                return;
            }
            rest = &rest[written as usize..];
        }
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

/// Says in one line what was misused and where, and aborts.
pub fn abort_on_misuse(misuse: Misuse, address: usize) -> ! {
    Line::new().text("terrane: ").text(misuse.message()).text(" at ").hex(address).write(libc::STDERR_FILENO);
    // SAFETY: ends the process.
    unsafe { libc::abort() }
}
