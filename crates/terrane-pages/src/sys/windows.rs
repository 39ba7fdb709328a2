//! Windows.

use super::{Access, TransparentHugePages};
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::AtomicU32;
use terrane_core::SourceError;
use windows_sys::Win32::Foundation::{
    ERROR_COMMITMENT_LIMIT, ERROR_NOT_ENOUGH_MEMORY, ERROR_OUTOFMEMORY, GetLastError, SetLastError,
};
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_DECOMMIT, MEM_RELEASE, MEM_RESERVE, MEM_RESET, PAGE_NOACCESS, PAGE_READWRITE,
    VirtualAlloc, VirtualFree,
};
use windows_sys::Win32::System::SystemInformation::{GetSystemInfo, SYSTEM_INFO};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcessorNumber, INFINITE, WaitOnAddress, WakeByAddressSingle,
};

/// Another thread may take an aligned place between the moment at which it was found and the moment at which it is
/// reserved; so often it is looked for anew.
const ATTEMPTS: usize = 32;

/// Runs `call`, which answers null or 0 on failure; the thread's last error is as before, as `errno` is elsewhere.
fn quiet<T: Copy>(
    len: usize,
    call: impl FnOnce() -> T,
    failed: impl FnOnce(T) -> bool,
) -> Result<T, SourceError> {
    // SAFETY: no preconditions.
    unsafe {
        let before = GetLastError();
        let value = call();
        if !failed(value) {
            return Ok(value);
        }
        let code = GetLastError();
        SetLastError(before);
        Err(match code {
            ERROR_NOT_ENOUGH_MEMORY | ERROR_OUTOFMEMORY | ERROR_COMMITMENT_LIMIT => {
                SourceError::OutOfMemory { requested: len as u64 }
            }
            code => SourceError::Os { code: code as i32 },
        })
    }
}

fn system() -> SYSTEM_INFO {
    let mut info = MaybeUninit::<SYSTEM_INFO>::zeroed();
    // SAFETY: the call fills the whole structure, of which all zeros are a value as well.
    unsafe {
        GetSystemInfo(info.as_mut_ptr());
        info.assume_init()
    }
}

pub(crate) fn page_size() -> usize {
    system().dwPageSize as usize
}

/// Whether `move_pages` can succeed.
pub(crate) const MOVES_PAGES: bool = false;

pub(crate) fn huge_page_size() -> Option<usize> {
    None
}

pub(crate) fn transparent_huge_pages() -> TransparentHugePages {
    TransparentHugePages::Never
}

/// The system charges committed pages whether touched or not.
pub(crate) fn charges_reservations() -> bool {
    true
}

fn map(at: *mut u8, len: usize, access: Access) -> Result<NonNull<u8>, SourceError> {
    let (kind, protection) = match access {
        Access::Open => (MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE),
        Access::Closed => (MEM_RESERVE, PAGE_NOACCESS),
    };
    // SAFETY: a reservation replaces nothing.
    let start =
        quiet(len, || unsafe { VirtualAlloc(at.cast(), len, kind, protection) }, |start| start.is_null())?;
    NonNull::new(start.cast()).ok_or(SourceError::OutOfMemory { requested: len as u64 })
}

/// A reservation cannot be trimmed here, so an aligned place is found by reserving more, which is then given back whole,
/// and the place is reserved alone.
pub(crate) fn reserve_aligned(len: usize, align: usize, access: Access) -> Result<NonNull<u8>, SourceError> {
    let refused = SourceError::OutOfMemory { requested: len as u64 };
    if align <= system().dwAllocationGranularity as usize {
        return map(ptr::null_mut(), len, access);
    }
    for _ in 0..ATTEMPTS {
        let wide = map(ptr::null_mut(), len.checked_add(align).ok_or(refused)?, Access::Closed)?;
        let place = wide.addr().get().next_multiple_of(align);
        // SAFETY: reserved above, used by nobody.
        unsafe { release(wide, len + align) }?;
        if let Ok(start) = map(ptr::with_exposed_provenance_mut(place), len, access) {
            return Ok(start);
        }
    }
    Err(refused)
}

pub(crate) fn reserve_hugetlb(_len: usize, _align: usize) -> Result<NonNull<u8>, SourceError> {
    // Large pages need a privilege that programs rarely have.
    Err(SourceError::Unsupported)
}

/// # Safety
/// The range is a reservation of ours, and nothing uses it.
pub(crate) unsafe fn release(start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
    // SAFETY: passed on by the caller. The system knows the length, and wants to be told 0.
    quiet(len, || unsafe { VirtualFree(start.as_ptr().cast(), 0, MEM_RELEASE) }, |done| done == 0).map(|_| ())
}

/// # Safety
/// The range lies in a reservation of ours.
pub(crate) unsafe fn open(start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
    // SAFETY: committing pages that are committed already keeps their contents.
    let done = || unsafe { VirtualAlloc(start.as_ptr().cast(), len, MEM_COMMIT, PAGE_READWRITE) };
    quiet(len, done, |done| done.is_null()).map(|_| ())
}

/// # Safety
/// The range lies in a reservation of ours, and nothing relies on its contents.
pub(crate) unsafe fn close(start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
    // SAFETY: passed on by the caller.
    quiet(len, || unsafe { VirtualFree(start.as_ptr().cast(), len, MEM_DECOMMIT) }, |done| done == 0)
        .map(|_| ())
}

/// # Safety
/// As for [`close`].
pub(crate) unsafe fn discard(start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
    // SAFETY: passed on by the caller. Pages come back as zero.
    unsafe { close(start, len).and_then(|()| open(start, len)) }
}

/// # Safety
/// As for [`close`].
pub(crate) unsafe fn discard_lazily(start: NonNull<u8>, len: usize) -> Result<bool, SourceError> {
    // SAFETY: passed on by the caller. The protection is ignored, but has to be a valid one.
    let done = || unsafe { VirtualAlloc(start.as_ptr().cast(), len, MEM_RESET, PAGE_READWRITE) };
    quiet(len, done, |done| done.is_null()).map(|_| false)
}

/// # Safety
/// None: nothing is done.
pub(crate) unsafe fn move_pages(
    _from: NonNull<u8>,
    _to: NonNull<u8>,
    _len: usize,
) -> Result<(), SourceError> {
    Err(SourceError::Unsupported)
}

/// # Safety
/// None: nothing is done.
pub(crate) unsafe fn populate(_start: NonNull<u8>, _len: usize) -> Result<(), SourceError> {
    Err(SourceError::Unsupported)
}

/// # Safety
/// None: nothing is done.
pub(crate) unsafe fn advise_huge(_start: NonNull<u8>, _len: usize, _huge: bool) -> Result<(), SourceError> {
    Err(SourceError::Unsupported)
}

/// # Safety
/// None: nothing is done.
pub(crate) unsafe fn bind(_start: NonNull<u8>, _len: usize, _node: u32) -> Result<(), SourceError> {
    // A node is chosen when pages are reserved or committed here, not afterwards.
    Err(SourceError::Unsupported)
}

pub(crate) fn current_cpu() -> Option<usize> {
    // SAFETY: no preconditions.
    Some(unsafe { GetCurrentProcessorNumber() } as usize)
}

pub(crate) fn current_node() -> Option<(usize, u32)> {
    None
}

pub(crate) fn online_nodes(_buffer: &mut [u8]) -> Option<&[u8]> {
    None
}

/// Sleeps while `word` holds `value`. May return early.
pub(crate) fn sleep_while(word: &AtomicU32, value: u32) {
    // SAFETY: both places are valid for reads of four bytes.
    unsafe { WaitOnAddress(word.as_ptr().cast(), (&raw const value).cast(), 4, INFINITE) };
}

/// Wakes one thread that sleeps on `word`.
pub(crate) fn wake_one(word: &AtomicU32) {
    // SAFETY: the address is only a key.
    unsafe { WakeByAddressSingle(word.as_ptr().cast()) };
}

pub(crate) fn break_now() -> Result<usize, SourceError> {
    Err(SourceError::Unsupported)
}

/// # Safety
/// None: nothing is done.
pub(crate) unsafe fn break_move(_delta: isize) -> Result<usize, SourceError> {
    Err(SourceError::Unsupported)
}
