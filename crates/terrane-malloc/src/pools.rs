//! Pools for C: objects of one size, and buffers of any.
//!
//! Each is a pool of `terrane-pool`, with a cache for every thread. What is taken may be given back on any thread, and after the
//! pool was destroyed: then it is freed.
//!
//! Invariant: in front of what C sees lies a [`Prefix`] with the lease that it is held by, which is null while nobody holds it.
//!
//! ```text
//!   │ lease │ length │ the object …
//!                    ▲ what C sees
//! ```

use crate::malloc::ALIGN;
use core::ffi::c_void;
use core::ptr::{self, NonNull};
use std::boxed::Box;
use terrane_front::process::Line;
use terrane_pool::{AtEnd, BufPool, BufPoolConfig, Builder, OwnedLease, Pool, PooledBuf, Recycle, Verdict};

/// What lies in front of an object or a buffer.
#[repr(C)]
struct Prefix {
    lease: *mut u8,
    /// Bytes that follow.
    bytes: usize,
}

const PREFIX: usize = size_of::<Prefix>();
const _: () = assert!(PREFIX == ALIGN);

/// Takes the lease out of the prefix of `object`. Ends the process if it was given back before.
///
/// # Safety
/// The object came from a pool of this module.
unsafe fn lease_of(object: NonNull<c_void>) -> NonNull<u8> {
    // SAFETY: a prefix lies in front of it (module invariant).
    let lease =
        unsafe { ptr::replace(&raw mut (*object.cast::<Prefix>().as_ptr().sub(1)).lease, ptr::null_mut()) };
    NonNull::new(lease).unwrap_or_else(|| {
        Line::new()
            .text("terrane: released twice to its pool: ")
            .hex(object.addr().get())
            .write(libc::STDERR_FILENO);
        std::process::abort()
    })
}

/// `void (*)(void *object, size_t bytes)`.
pub type Reset = unsafe extern "C" fn(object: *mut c_void, bytes: usize);

/// An object's memory; null if there was none to be had.
struct Object {
    start: *mut Prefix,
    bytes: usize,
}

// SAFETY: an object is memory that is owned, and nothing else.
unsafe impl Send for Object {}

impl Object {
    const fn seen(&self) -> *mut c_void {
        // SAFETY: the object lies behind its prefix.
        unsafe { self.start.add(1).cast() }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if !self.start.is_null() {
            // SAFETY: the memory came from `alloc_zeroed` with this length and alignment.
            unsafe { terrane_front::free_sized(self.start.cast(), self.bytes + PREFIX, ALIGN) };
        }
    }
}

struct Objects {
    bytes: usize,
    reset: Option<Reset>,
}

impl Recycle<Object> for Objects {
    fn create(&self) -> Object {
        // SAFETY: the alignment is a power of two; `terrane_pool_new` has checked the sum.
        let start = unsafe { terrane_front::alloc_zeroed(self.bytes + PREFIX, ALIGN) };
        Object { start: start.cast(), bytes: self.bytes }
    }

    #[inline]
    fn reset(&self, object: &mut Object) -> Verdict {
        if object.start.is_null() {
            return Verdict::Discard;
        }
        match self.reset {
            // SAFETY: whoever made the pool promised that the function may be called with an object of it on any thread.
            Some(reset) => unsafe { reset(object.seen(), self.bytes) },
            // SAFETY: the object has that many bytes.
            None => unsafe { object.seen().write_bytes(0, self.bytes) },
        }
        Verdict::Keep
    }
}

/// `terrane_pool_t`.
pub struct TerranePool(Pool<Object, Objects>);

/// `terrane_pool_stats_t`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TerranePoolStats {
    /// Taken from the caller's own cache.
    pub hits: u64,
    /// Not found there.
    pub misses: u64,
    /// Made.
    pub created: u64,
    /// Waiting to be taken.
    pub idle: u64,
    /// Taken and not given back.
    pub out: u64,
    /// Bytes of both.
    pub bytes: u64,
}

impl TerranePoolStats {
    fn add(&mut self, stats: &terrane_pool::PoolStats, bytes: usize) {
        self.hits += stats.hits;
        self.misses += stats.misses;
        self.created += stats.created;
        self.idle += stats.idle;
        self.out += stats.out();
        self.bytes += stats.objects * bytes as u64;
    }
}

/// Makes a pool of objects of `object_bytes` bytes, of which at most `max` exist at a time. Every object that comes back is reset:
/// by `reset`, or made zero if that is null. Null if a number is 0 or too large.
///
/// # Safety
/// `reset` is null, or may be called on any thread with an object of this pool and its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_pool_new(
    object_bytes: usize,
    max: usize,
    reset: Option<Reset>,
) -> *mut TerranePool {
    if object_bytes == 0
        || max == 0
        || object_bytes > isize::MAX as usize - PREFIX
        || max > isize::MAX as usize
    {
        return ptr::null_mut();
    }
    let objects = Objects { bytes: object_bytes, reset };
    Box::into_raw(Box::new(TerranePool(Builder::new(objects).max(max).at_end(AtEnd::Ignore).build())))
}

/// Destroys a pool; how many objects are still out. Those stay valid until they are released. Null is ignored.
///
/// # Safety
/// The pool is live, and not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_pool_destroy(pool: *mut TerranePool) -> usize {
    if pool.is_null() {
        return 0;
    }
    // SAFETY: the pool came from `terrane_pool_new`, by the caller's promise.
    let pool = unsafe { Box::from_raw(pool) };
    pool.0.close().map_or_else(|leaked| leaked.objects, |()| 0)
}

/// An object, zero when it is new and as reset when it is not; null if as many as may exist are out, or memory is.
///
/// # Safety
/// The pool is live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_pool_acquire(pool: *mut TerranePool) -> *mut c_void {
    // SAFETY: the caller's promise.
    let Ok(lease) = (unsafe { &(*pool).0 }).acquire_owned() else { return ptr::null_mut() };
    if lease.start.is_null() {
        drop(lease.detach());
        return ptr::null_mut();
    }
    let (start, bytes, seen) = (lease.start, lease.bytes, lease.seen());
    // SAFETY: the object is the lease's, and has a prefix.
    unsafe { start.write(Prefix { lease: lease.into_raw().as_ptr().cast(), bytes }) };
    seen
}

/// Gives an object back to its pool, on any thread; null is ignored. Ends the process if it is in its pool already.
///
/// # Safety
/// The object is null, or came from `terrane_pool_acquire` and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_pool_release(object: *mut c_void) {
    if let Some(object) = NonNull::new(object) {
        // SAFETY: the lease in the prefix is that of `acquire`, and used once.
        unsafe { drop(OwnedLease::<Object, Objects>::from_raw(lease_of(object).cast())) };
    }
}

/// Frees the idle objects that are in no thread's own cache.
///
/// # Safety
/// The pool is live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_pool_trim(pool: *mut TerranePool) {
    // SAFETY: the caller's promise.
    unsafe { &(*pool).0 }.trim(0);
}

/// Writes what the pool did and holds.
///
/// # Safety
/// The pool is live, and `stats` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_pool_stats(pool: *const TerranePool, stats: *mut TerranePoolStats) {
    // SAFETY: the caller's promise.
    let pool = unsafe { &(*pool).0 };
    let mut found = TerranePoolStats::default();
    found.add(&pool.stats(), pool.recycle().bytes);
    // SAFETY: the caller's promise.
    unsafe { stats.write(found) };
}

/// `terrane_buffers_t`.
pub struct TerraneBuffers(BufPool);

/// Makes a pool of buffers: at most `max_per_class` of each class of lengths exist at a time, and those longer than `keep_up_to`
/// bytes are freed when they come back. Null if `max_per_class` is 0.
#[unsafe(no_mangle)]
pub extern "C" fn terrane_buffers_new(max_per_class: usize, keep_up_to: usize) -> *mut TerraneBuffers {
    if max_per_class == 0 || max_per_class > isize::MAX as usize {
        return ptr::null_mut();
    }
    let config = BufPoolConfig {
        max_per_class,
        clamp: keep_up_to.saturating_add(PREFIX),
        at_end: AtEnd::Ignore,
        ..BufPoolConfig::default()
    };
    Box::into_raw(Box::new(TerraneBuffers(BufPool::new(config))))
}

/// Destroys a pool of buffers; how many are still out. Those stay valid until they are given back. Null is ignored.
///
/// # Safety
/// The pool is live, and not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_buffers_destroy(pool: *mut TerraneBuffers) -> usize {
    if pool.is_null() {
        return 0;
    }
    // SAFETY: the pool came from `terrane_buffers_new`, by the caller's promise.
    let pool = unsafe { Box::from_raw(pool) };
    let out: u64 = pool.0.stats().iter().map(|(_, stats)| stats.out()).sum();
    out as usize
}

/// A buffer of at least `bytes` bytes, whose contents are whatever they were; null if as many of that length as may exist are
/// out, or memory is.
///
/// # Safety
/// The pool is live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_buffers_take(pool: *mut TerraneBuffers, bytes: usize) -> *mut c_void {
    let Some(whole) = bytes.checked_add(PREFIX) else { return ptr::null_mut() };
    // SAFETY: the caller's promise.
    let Some(buffer) = (unsafe { &(*pool).0 }).try_take(whole) else { return ptr::null_mut() };
    let (start, bytes) = (buffer.as_ptr().cast_mut().cast::<Prefix>(), buffer.capacity() - PREFIX);
    // SAFETY: the buffer has room for its prefix, and is aligned to more.
    unsafe {
        start.write(Prefix { lease: buffer.into_raw().as_ptr(), bytes });
        start.add(1).cast()
    }
}

/// Bytes of a buffer, which may be more than were asked for.
///
/// # Safety
/// The buffer came from `terrane_buffers_take` and was not given back.
#[unsafe(no_mangle)]
pub const unsafe extern "C" fn terrane_buffers_capacity(buffer: *const c_void) -> usize {
    // SAFETY: a prefix lies in front of it (module invariant).
    unsafe { (*buffer.cast::<Prefix>().sub(1)).bytes }
}

/// Gives a buffer back to its pool, on any thread; null is ignored. Ends the process if it is in its pool already.
///
/// # Safety
/// The buffer is null, or came from `terrane_buffers_take` and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_buffers_give(buffer: *mut c_void) {
    if let Some(buffer) = NonNull::new(buffer) {
        // SAFETY: the lease in the prefix is that of `take`, and used once.
        unsafe { drop(PooledBuf::from_raw(lease_of(buffer))) };
    }
}

/// Frees the idle buffers that are in no thread's own cache.
///
/// # Safety
/// The pool is live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_buffers_trim(pool: *mut TerraneBuffers) {
    // SAFETY: the caller's promise.
    unsafe { &(*pool).0 }.trim(0);
}

/// Writes what the pool did and holds, over all lengths.
///
/// # Safety
/// The pool is live, and `stats` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_buffers_stats(pool: *const TerraneBuffers, stats: *mut TerranePoolStats) {
    let mut found = TerranePoolStats::default();
    // SAFETY: the caller's promise.
    unsafe { &(*pool).0 }.stats().iter().for_each(|(bytes, class)| found.add(class, *bytes));
    // SAFETY: the caller's promise.
    unsafe { stats.write(found) };
}
