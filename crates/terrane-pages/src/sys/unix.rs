//! What the Unix systems have in common: `mmap`, `munmap`, `mprotect`, aligned reservations, small files, `errno`.

use super::Access;
use core::ptr::{self, NonNull};
use terrane_core::SourceError;

/// The address of this thread's `errno`.
fn errno() -> *mut i32 {
    #[cfg(target_os = "linux")]
    // SAFETY: no preconditions.
    return unsafe { libc::__errno_location() };
    #[cfg(target_os = "android")]
    // SAFETY: no preconditions.
    return unsafe { libc::__errno() };
    #[cfg(target_vendor = "apple")]
    // SAFETY: no preconditions.
    return unsafe { libc::__error() };
}

/// Runs `call`; gives its value, and the error number if `failed` says that it failed. `errno` is as before, because
/// an allocator may be called between a failed call of the program and its look at `errno`.
pub(super) fn quiet<T: Copy>(call: impl FnOnce() -> T, failed: impl FnOnce(T) -> bool) -> Result<T, i32> {
    // SAFETY: `errno` of this thread is a valid place for as long as the thread runs.
    unsafe {
        let before = errno().read();
        let value = call();
        if failed(value) {
            let code = errno().read();
            errno().write(before);
            return Err(code);
        }
        Ok(value)
    }
}

/// As [`quiet`] for calls that answer 0 or -1.
pub(super) fn quiet_int(call: impl FnOnce() -> i32) -> Result<(), i32> {
    quiet(call, |value| value == -1).map(|_| ())
}

/// The error for a refused call that was about `len` bytes.
pub(super) fn refusal(code: i32, len: usize) -> SourceError {
    match code {
        libc::ENOMEM => SourceError::OutOfMemory { requested: len as u64 },
        libc::ENOSYS | libc::EOPNOTSUPP => SourceError::Unsupported,
        code => SourceError::Os { code },
    }
}

pub(crate) fn page_size() -> usize {
    // SAFETY: no preconditions.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // A system without an answer does not exist; 4 KiB is then the only size that was ever left unsaid.
    usize::try_from(bytes).ok().filter(|bytes| bytes.is_power_of_two()).unwrap_or(4096)
}

const fn protection(access: Access) -> i32 {
    match access {
        Access::Open => libc::PROT_READ | libc::PROT_WRITE,
        Access::Closed => libc::PROT_NONE,
    }
}

/// A private anonymous mapping somewhere, never at address 0.
pub(super) fn map(len: usize, access: Access, flags: i32) -> Result<NonNull<u8>, i32> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
    let once = || {
        quiet(
            // SAFETY: without MAP_FIXED a mapping replaces nothing.
            || unsafe { libc::mmap(ptr::null_mut(), len, protection(access), flags, -1, 0) },
            |address| address == libc::MAP_FAILED,
        )
    };
    let first = once()?;
    if let Some(start) = NonNull::new(first.cast()) {
        return Ok(start);
    }
    // A system whose lowest mappable address is 0 may answer 0. While that mapping stands the next cannot be there.
    let second = once();
    // SAFETY: the mapping at 0 is ours and nothing uses it.
    let _ = quiet_int(|| unsafe { libc::munmap(first, len) });
    NonNull::new(second?.cast()).ok_or(libc::ENOMEM)
}

/// A private anonymous mapping over pages that are ours already.
///
/// # Safety
/// The range lies in a mapping of ours, and nothing relies on its contents.
pub(super) unsafe fn map_over(start: NonNull<u8>, len: usize, access: Access) -> Result<(), i32> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE | libc::MAP_FIXED;
    quiet(
        // SAFETY: the caller owns the range.
        || unsafe { libc::mmap(start.as_ptr().cast(), len, protection(access), flags, -1, 0) },
        |address| address == libc::MAP_FAILED,
    )
    .map(|_| ())
}

/// # Safety
/// The range is a mapping of ours, or a part of one, and nothing uses it.
pub(super) unsafe fn unmap(start: NonNull<u8>, len: usize) -> Result<(), i32> {
    // SAFETY: the caller owns the range.
    quiet_int(|| unsafe { libc::munmap(start.as_ptr().cast(), len) })
}

/// `len` bytes at a multiple of `align`. First the plain way: systems place mappings side by side, so a run of equal
/// requests is aligned more often than not. Otherwise more than needed is taken, and both ends are given back.
pub(crate) fn reserve_aligned(len: usize, align: usize, access: Access) -> Result<NonNull<u8>, SourceError> {
    let refused = |code| refusal(code, len);
    let plain = map(len, access, 0).map_err(refused)?;
    if plain.addr().get() & (align - 1) == 0 {
        return Ok(plain);
    }
    // SAFETY: mapped above, used by nobody.
    unsafe { unmap(plain, len) }.map_err(refused)?;

    let slack = align - page_size();
    let wide = len.checked_add(slack).ok_or(SourceError::OutOfMemory { requested: len as u64 })?;
    let start = map(wide, access, 0).map_err(refused)?;
    let head = start.addr().get().wrapping_neg() & (align - 1);
    let tail = slack - head;
    // SAFETY: the three parts lie in the mapping made above, which nobody uses yet.
    unsafe {
        let found = start.add(head);
        let trimmed = trim(start, head).and_then(|()| trim(found.add(len), tail));
        if let Err(code) = trimmed {
            // A part that cannot be unmapped stays reserved: address space is lost, nothing else.
            let _ = unmap(start, wide);
            return Err(refused(code));
        }
        Ok(found)
    }
}

/// # Safety
/// As for [`unmap`].
unsafe fn trim(start: NonNull<u8>, len: usize) -> Result<(), i32> {
    // SAFETY: passed on by the caller.
    if len == 0 { Ok(()) } else { unsafe { unmap(start, len) } }
}

/// # Safety
/// As for [`unmap`].
pub(crate) unsafe fn release(start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
    // SAFETY: passed on by the caller.
    unsafe { unmap(start, len) }.map_err(|code| refusal(code, len))
}

/// # Safety
/// The range lies in a mapping of ours.
pub(crate) unsafe fn open(start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
    // SAFETY: more access to our own pages takes nothing from anyone.
    quiet_int(|| unsafe { libc::mprotect(start.as_ptr().cast(), len, protection(Access::Open)) })
        .map_err(|code| refusal(code, len))
}

/// A mapping over the range gives back contents, access and the charge against the system's commit limit, which
/// `mprotect` would not.
///
/// # Safety
/// As for [`map_over`].
pub(crate) unsafe fn close(start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
    // SAFETY: passed on by the caller.
    unsafe { map_over(start, len, Access::Closed) }.map_err(|code| refusal(code, len))
}

/// # Safety
/// The range lies in a mapping of ours; what the advice does to its contents is the caller's to allow.
pub(super) unsafe fn advise(start: NonNull<u8>, len: usize, advice: i32) -> Result<(), i32> {
    // SAFETY: passed on by the caller.
    quiet_int(|| unsafe { libc::madvise(start.as_ptr().cast(), len, advice) })
}
