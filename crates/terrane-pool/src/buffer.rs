//! Buffers of any length: [`BufPool`], [`PooledBuf`], [`ReceiveSize`].
//!
//! Invariant: a buffer's memory is a block of the allocator's front end of exactly the length that its class says, and the
//! first `len` bytes of it are initialised. Every class of lengths has a [`Pool`] of its own, made when it is first used.
//!
//! ```text
//!   up to 32 KiB       the allocator's size classes, eight per doubling
//!   up to the clamp    powers of two
//!   above the clamp    served, and freed at return instead of kept
//! ```

use crate::error::Exhausted;
use crate::lease::OwnedLease;
use crate::pool::{AtEnd, Builder, Pool, PoolStats};
use crate::recycle::{Recycle, Verdict};
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use std::sync::OnceLock;
use terrane_front::{alloc, free_sized};
use terrane_slab::size_class::{CLASSES, MAX_SMALL, TABLE, class_of_dynamic};

/// Buffers begin at a cache line, so that no two share one.
const ALIGN: usize = 64;
/// Classes above the allocator's: powers of two from 64 KiB up to 2⁴⁶ bytes.
const LARGE: usize = 32;
const FIRST_DOUBLING: usize = MAX_SMALL.ilog2() as usize + 1;

/// Memory of one buffer.
struct Block {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: a block is memory that is owned, and nothing else.
unsafe impl Send for Block {}
// SAFETY: as above; shared references only read it.
unsafe impl Sync for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        if self.capacity == 0 {
            return;
        }
        // SAFETY: the block came from `alloc` with this length and alignment (module invariant).
        unsafe { free_sized(self.start.as_ptr(), self.capacity, ALIGN) };
    }
}

/// Makes blocks of one length.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    capacity: usize,
    keep: bool,
}

impl Recycle<Block> for Blocks {
    fn create(&self) -> Block {
        // SAFETY: the alignment is a power of two.
        let start = unsafe { alloc(self.capacity, ALIGN) };
        // Without memory it is a buffer of no bytes, which `try_take` throws away.
        match NonNull::new(start) {
            Some(start) => Block { start, capacity: self.capacity },
            None => Block { start: NonNull::dangling(), capacity: 0 },
        }
    }

    /// A buffer's contents are behind its length, which its next user begins at zero.
    #[inline]
    fn reset(&self, _: &mut Block) -> Verdict {
        if self.keep { Verdict::Keep } else { Verdict::Discard }
    }
}

/// Length of the buffers of the class that serves `bytes`, and the number of the class.
#[inline]
fn class(bytes: usize) -> (usize, usize) {
    let rounded = bytes.max(1).next_multiple_of(ALIGN);
    if rounded <= MAX_SMALL {
        let class = class_of_dynamic(rounded);
        (class, TABLE[class].block_bytes as usize)
    } else {
        let doubling = rounded.next_power_of_two().ilog2() as usize;
        (CLASSES + doubling - FIRST_DOUBLING, 1 << doubling)
    }
}

/// Sets a [`BufPool`] up.
#[derive(Clone, Copy, Debug)]
pub struct BufPoolConfig {
    /// Buffers of one class that may exist at a time.
    pub max_per_class: usize,
    /// Idle buffers of one class that a thread keeps for itself.
    pub cache: u32,
    /// Buffers longer than this are freed when they come back.
    pub clamp: usize,
    /// What happens at the end about buffers that are still out.
    pub at_end: AtEnd,
}

impl Default for BufPoolConfig {
    /// Up to 65 536 buffers a class, 16 idle ones a thread and class, none kept above 1 MiB, leaks reported.
    fn default() -> Self {
        Self { max_per_class: 1 << 16, cache: 16, clamp: 1 << 20, at_end: AtEnd::Report }
    }
}

type Class = Pool<Block, Blocks>;

/// A pool of buffers of any length.
///
/// ```
/// use terrane_pool::BufPool;
///
/// let pool = BufPool::default();
/// let mut buffer = pool.take(1000).unwrap();
/// buffer.extend_from_slice(b"hello ");
/// buffer.extend_from_slice(b"world");
/// assert_eq!(&buffer[..], b"hello world");
/// assert!(buffer.capacity() >= 1000);
/// drop(buffer);
/// assert_eq!(pool.take(1000).unwrap().len(), 0);
/// ```
pub struct BufPool {
    classes: Box<[OnceLock<Class>]>,
    config: BufPoolConfig,
}

impl fmt::Debug for BufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufPool").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Default for BufPool {
    fn default() -> Self {
        Self::new(BufPoolConfig::default())
    }
}

impl BufPool {
    /// A pool with this configuration.
    pub fn new(config: BufPoolConfig) -> Self {
        Self { classes: (0..CLASSES + LARGE).map(|_| OnceLock::new()).collect(), config }
    }

    /// An empty buffer with room for at least `capacity` bytes.
    ///
    /// # Errors
    /// [`Exhausted`] if as many of that class as may exist are out, or no buffer can be that long.
    #[inline]
    pub fn take(&self, capacity: usize) -> Result<PooledBuf, Exhausted> {
        self.acquire(capacity).map(|buffer| {
            buffer.unwrap_or_else(|| {
                let layout = core::alloc::Layout::from_size_align(capacity, ALIGN);
                std::alloc::handle_alloc_error(layout.unwrap_or(core::alloc::Layout::new::<u8>()))
            })
        })
    }

    /// The same; `None` also if memory is out, where [`take`](Self::take) ends the process.
    pub fn try_take(&self, capacity: usize) -> Option<PooledBuf> {
        self.acquire(capacity).ok()?
    }

    /// A buffer, or `None` without memory.
    #[inline]
    fn acquire(&self, capacity: usize) -> Result<Option<PooledBuf>, Exhausted> {
        if capacity > 1 << 46 {
            return Err(Exhausted { max: 0 });
        }
        let (number, bytes) = class(capacity);
        let class = self.classes[number].get_or_init(|| {
            Builder::new(Blocks { capacity: bytes, keep: bytes <= self.config.clamp })
                .max(self.config.max_per_class)
                .cache(self.config.cache)
                .at_end(self.config.at_end)
                .build()
        });
        let block = class.acquire_owned()?;
        if block.capacity < bytes {
            drop(block.detach());
            return Ok(None);
        }
        Ok(Some(PooledBuf { block, len: 0 }))
    }

    /// What the classes that were used did, with the length of their buffers in bytes.
    pub fn stats(&self) -> Vec<(usize, PoolStats)> {
        self.classes
            .iter()
            .enumerate()
            .filter_map(|(number, class)| {
                let bytes = match TABLE.get(number) {
                    Some(class) => class.block_bytes as usize,
                    None => 1 << (number - CLASSES + FIRST_DOUBLING),
                };
                class.get().map(|class| (bytes, class.stats()))
            })
            .collect()
    }

    /// Bytes of all buffers that exist, idle or out.
    pub fn bytes(&self) -> u64 {
        self.stats().iter().map(|(bytes, stats)| *bytes as u64 * stats.objects).sum()
    }

    /// Frees idle buffers that are in no thread's own cache, but for `keep` of each class.
    pub fn trim(&self, keep: u32) {
        self.classes.iter().filter_map(OnceLock::get).for_each(|class| class.trim(keep));
    }
}

/// A buffer on loan: bytes that were written, and room for more. Back in its pool when dropped, on any thread.
pub struct PooledBuf {
    block: OwnedLease<Block, Blocks>,
    len: usize,
}

impl fmt::Debug for PooledBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledBuf").field("len", &self.len).field("capacity", &self.capacity()).finish()
    }
}

impl PooledBuf {
    /// The buffer as one pointer, for [`from_raw`](Self::from_raw); what was written stays, but its length is forgotten.
    pub fn into_raw(self) -> NonNull<u8> {
        self.block.into_raw().cast()
    }

    /// The buffer that became `raw`, empty.
    ///
    /// # Safety
    /// The pointer came from [`into_raw`](Self::into_raw), and is used up by this.
    pub const unsafe fn from_raw(raw: NonNull<u8>) -> Self {
        // SAFETY: the caller's promise.
        Self { block: unsafe { OwnedLease::from_raw(raw.cast()) }, len: 0 }
    }

    /// Bytes that the buffer can hold. It never grows: take a longer one.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.block.capacity
    }

    /// Bytes that were written.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets what was written.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Forgets all but the first `len` bytes; nothing if there are no more.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The room after what was written.
    #[inline]
    pub fn spare(&mut self) -> &mut [core::mem::MaybeUninit<u8>] {
        let room = self.capacity() - self.len;
        // SAFETY: the block has `capacity` bytes, and is borrowed alone.
        unsafe { core::slice::from_raw_parts_mut(self.block.start.as_ptr().add(self.len).cast(), room) }
    }

    /// Says that `written` more bytes of the [room](Self::spare) were written.
    ///
    /// # Safety
    /// They were, and fit.
    #[inline]
    pub unsafe fn advance(&mut self, written: usize) {
        debug_assert!(written <= self.capacity() - self.len);
        self.len += written;
    }

    /// Appends `bytes`.
    ///
    /// # Panics
    /// If there is no room for them.
    #[inline]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let room = self.capacity() - self.len;
        assert!(bytes.len() <= room, "{} bytes do not fit into the {room} left", bytes.len());
        // SAFETY: there is room; what is borrowed elsewhere does not overlap a block that is borrowed alone.
        unsafe {
            self.block.start.as_ptr().add(self.len).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        self.len += bytes.len();
    }

    /// The bytes for sharing, cheap to clone and slice; the buffer returns to its pool when the last of them is dropped.
    /// Costs one small allocation, of `bytes`' own.
    #[cfg(feature = "bytes")]
    pub fn freeze(self) -> bytes::Bytes {
        bytes::Bytes::from_owner(self)
    }
}

impl Deref for PooledBuf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the first `len` bytes are initialised (module invariant).
        unsafe { core::slice::from_raw_parts(self.block.start.as_ptr(), self.len) }
    }
}

impl DerefMut for PooledBuf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the block is borrowed alone.
        unsafe { core::slice::from_raw_parts_mut(self.block.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for PooledBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for PooledBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

// SAFETY: `chunk_mut` is the room after `len`, and `advance_mut` says that it was written, within its bounds.
#[cfg(feature = "bytes")]
unsafe impl bytes::BufMut for PooledBuf {
    fn remaining_mut(&self) -> usize {
        self.capacity() - self.len
    }

    unsafe fn advance_mut(&mut self, written: usize) {
        assert!(written <= self.remaining_mut(), "advanced by {written}, {} left", self.remaining_mut());
        // SAFETY: the caller's promise.
        unsafe { self.advance(written) };
    }

    fn chunk_mut(&mut self) -> &mut bytes::buf::UninitSlice {
        bytes::buf::UninitSlice::uninit(self.spare())
    }
}

/// How long the next buffer for receiving should be: doubles as soon as one is filled, halves only after a run of reads that
/// needed less than half.
///
/// ```
/// use terrane_pool::ReceiveSize;
///
/// let mut size = ReceiveSize::new(1024, 64 * 1024);
/// size.received(1024);
/// assert_eq!(size.next(), 2048);
/// (0..7).for_each(|_| size.received(10));
/// assert_eq!(size.next(), 2048);
/// size.received(10);
/// assert_eq!(size.next(), 1024);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ReceiveSize {
    least: usize,
    most: usize,
    now: usize,
    small: u8,
}

/// Short reads in a row after which the next buffer is shorter.
const SHORT_READS: u8 = 8;

impl ReceiveSize {
    /// Begins with `least` bytes, one at least, and never asks for more than `most`, unless that is less.
    pub const fn new(least: usize, most: usize) -> Self {
        let least = if least == 0 { 1 } else { least };
        Self { least, most: if most < least { least } else { most }, now: least, small: 0 }
    }

    /// Bytes to make room for.
    pub const fn next(&self) -> usize {
        self.now
    }

    /// Tells how much a read into such a buffer brought.
    pub fn received(&mut self, bytes: usize) {
        if bytes >= self.now {
            (self.now, self.small) = (self.now.saturating_mul(2).min(self.most), 0);
        } else if bytes < self.now / 2 {
            self.small += 1;
            if self.small >= SHORT_READS {
                (self.now, self.small) = ((self.now / 2).max(self.least), 0);
            }
        } else {
            self.small = 0;
        }
    }
}
