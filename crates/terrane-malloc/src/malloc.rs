//! The malloc family, as programs written for glibc expect it.

use crate::report;
use core::ffi::{c_int, c_void};
use core::ptr;
use terrane_front as front;
use terrane_front::process::Line;

/// Alignment of every block: that of the largest basic C type.
pub(crate) const ALIGN: usize = 16;

fn set_errno(code: c_int) {
    // SAFETY: the location is the calling thread's own.
    unsafe { *libc::__errno_location() = code };
}

#[inline(always)]
fn or_enomem(block: *mut u8) -> *mut c_void {
    if block.is_null() {
        set_errno(libc::ENOMEM);
    }
    block.cast()
}

/// A block of `size` bytes; null with `ENOMEM` when memory is out.
#[unsafe(no_mangle)]
pub extern "C" fn malloc(size: usize) -> *mut c_void {
    // SAFETY: the alignment is a power of two.
    or_enomem(unsafe { front::alloc(size, ALIGN) })
}

/// A block of `count × size` zero bytes; null with `ENOMEM` when memory is out or the product too large.
#[unsafe(no_mangle)]
pub extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the alignment is a power of two.
        Some(bytes) => or_enomem(unsafe { front::alloc_zeroed(bytes, ALIGN) }),
        None => or_enomem(ptr::null_mut()),
    }
}

/// Changes the length of a block. A null block is a new block; a length of 0 frees, and the answer is null.
///
/// # Safety
/// The block is null or live, and came from this library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    if block.is_null() {
        return malloc(size);
    }
    // SAFETY: the caller's promise.
    unsafe {
        if size == 0 {
            front::free(block.cast());
            return ptr::null_mut();
        }
        or_enomem(front::realloc(block.cast(), size, ALIGN))
    }
}

/// [`realloc`] to `count × size` bytes; null with `ENOMEM` if the product is too large.
///
/// # Safety
/// As for [`realloc`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller's promise.
        Some(bytes) => unsafe { realloc(block, bytes) },
        None => or_enomem(ptr::null_mut()),
    }
}

/// Frees a block; null is ignored.
///
/// # Safety
/// The block is null or live, and came from this library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(block: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { front::free(block.cast()) };
}

/// C23: frees a block that was allocated with this length.
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_sized(block: *mut c_void, _size: usize) {
    // SAFETY: the caller's promise.
    unsafe { front::free(block.cast()) };
}

/// C23: frees a block that was allocated with this alignment and length.
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_aligned_sized(block: *mut c_void, _align: usize, _size: usize) {
    // SAFETY: the caller's promise.
    unsafe { front::free(block.cast()) };
}

/// The old name of [`free`].
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cfree(block: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { front::free(block.cast()) };
}

#[inline(always)]
fn aligned(align: usize, size: usize) -> *mut u8 {
    // SAFETY: callers pass powers of two.
    unsafe { front::alloc(size, align.max(ALIGN)) }
}

/// A block at a multiple of `align`; an alignment that is no power of two is rounded up to one.
#[unsafe(no_mangle)]
pub extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    match align.checked_next_power_of_two() {
        Some(align) => or_enomem(aligned(align, size)),
        None => {
            set_errno(libc::EINVAL);
            ptr::null_mut()
        }
    }
}

/// A block at a multiple of `align`; null with `EINVAL` if that is no power of two.
#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    if !align.is_power_of_two() {
        set_errno(libc::EINVAL);
        return ptr::null_mut();
    }
    or_enomem(aligned(align, size))
}

/// Stores a block at a multiple of `align` in `*out`; the answer is 0, `EINVAL` if `align` is no power of two or not a multiple
/// of the size of a pointer, or `ENOMEM`. `errno` is left alone.
///
/// # Safety
/// `out` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> c_int {
    if !align.is_power_of_two() || !align.is_multiple_of(size_of::<*mut c_void>()) {
        return libc::EINVAL;
    }
    let block = aligned(align, size);
    if block.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller's promise.
    unsafe { *out = block.cast() };
    0
}

/// A block at a multiple of the page size.
#[unsafe(no_mangle)]
pub extern "C" fn valloc(size: usize) -> *mut c_void {
    or_enomem(aligned(terrane_pages::page_size(), size))
}

/// A block of whole pages.
#[unsafe(no_mangle)]
pub extern "C" fn pvalloc(size: usize) -> *mut c_void {
    let page = terrane_pages::page_size();
    match size.max(1).checked_next_multiple_of(page) {
        Some(size) => or_enomem(aligned(page, size)),
        None => or_enomem(ptr::null_mut()),
    }
}

/// Bytes that the program may use of a block; 0 for null.
///
/// # Safety
/// The block is null or live, and came from this library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    // SAFETY: the caller's promise.
    unsafe { front::usable_size(block.cast()) }
}

/// Gives free memory back to the system, all of it whatever `pad` is; 1 if there was some.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_trim(_pad: usize) -> c_int {
    (front::purge() > 0) as c_int
}

/// Settings of glibc's allocator have no counterpart here: every call succeeds and does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn mallopt(_parameter: c_int, _value: c_int) -> c_int {
    1
}

/// glibc's `struct mallinfo2`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Mallinfo2 {
    /// Bytes in use by slabs and large blocks.
    pub arena: usize,
    /// Free blocks: not counted, 0.
    pub ordblks: usize,
    /// 0.
    pub smblks: usize,
    /// Huge blocks that are live.
    pub hblks: usize,
    /// Bytes of huge blocks that are live.
    pub hblkhd: usize,
    /// 0.
    pub usmblks: usize,
    /// 0.
    pub fsmblks: usize,
    /// Bytes that the program holds, huge blocks aside.
    pub uordblks: usize,
    /// Bytes in use by slabs that the program does not hold.
    pub fordblks: usize,
    /// The same: what [`malloc_trim`] could give back at most.
    pub keepcost: usize,
}

/// What the allocator holds, in glibc's terms.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo2() -> Mallinfo2 {
    let s = front::snapshot();
    let held = (s.live_bytes() - s.huge_live_bytes) as usize;
    let arena = (s.committed_bytes as usize).saturating_sub(s.huge_live_bytes as usize);
    Mallinfo2 {
        arena,
        hblks: s.huge_allocated.saturating_sub(s.huge_freed) as usize,
        hblkhd: s.huge_live_bytes as usize,
        uordblks: held,
        fordblks: arena.saturating_sub(held),
        keepcost: arena.saturating_sub(held),
        ..Mallinfo2::default()
    }
}

/// glibc's old `struct mallinfo`, whose fields wrap around at 2 GiB.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Mallinfo {
    /// As [`Mallinfo2`], in its order.
    pub fields: [c_int; 10],
}

/// [`mallinfo2`] in 32 bits.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo() -> Mallinfo {
    let m = mallinfo2();
    let all = [
        m.arena, m.ordblks, m.smblks, m.hblks, m.hblkhd, m.usmblks, m.fsmblks, m.uordblks, m.fordblks,
        m.keepcost,
    ];
    Mallinfo { fields: all.map(|field| field as c_int) }
}

/// Writes the counters as XML to `stream`; `EINVAL` if `options` is not 0.
///
/// # Safety
/// The stream is open for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_info(options: c_int, stream: *mut libc::FILE) -> c_int {
    if options != 0 {
        set_errno(libc::EINVAL);
        return -1;
    }
    // SAFETY: the caller's promise.
    if unsafe { report::write_xml(stream) } { 0 } else { -1 }
}

/// Writes the report to standard error.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_stats() {
    report::write_text(libc::STDERR_FILENO);
}

/// Gives back what has not been needed for a while.
#[unsafe(no_mangle)]
pub extern "C" fn terrane_tick() {
    front::tick();
}

/// Returns the free blocks that the calling thread holds back to their slabs.
#[unsafe(no_mangle)]
pub extern "C" fn terrane_collect() {
    front::collect();
}

/// Checks what the calling thread owns, and what of the shared structures holds at any moment: 0, or -1 after one line on
/// standard error that says what is broken.
#[unsafe(no_mangle)]
pub extern "C" fn terrane_verify() -> c_int {
    match front::verify() {
        Ok(_) => 0,
        Err(error) => {
            Line::new()
                .text("terrane: ")
                .text(error.what.message())
                .text(" at ")
                .hex(error.address)
                .text(": expected ")
                .hex(error.expected as usize)
                .text(", found ")
                .hex(error.found as usize)
                .write(libc::STDERR_FILENO);
            -1
        }
    }
}

/// Gives all free memory back to the system but for what waits in the lists of other threads; bytes given back.
#[unsafe(no_mangle)]
pub extern "C" fn terrane_purge() -> usize {
    front::purge()
}
