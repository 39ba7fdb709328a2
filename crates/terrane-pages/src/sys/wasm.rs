//! WebAssembly: one linear memory that grows and never shrinks, so the break is its end, and nothing can be reserved
//! without being committed.

use super::{Access, TransparentHugePages};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use terrane_core::SourceError;

const PAGE_BYTES: usize = 64 << 10;

#[cfg(target_arch = "wasm32")]
use core::arch::wasm32 as arch;
#[cfg(target_arch = "wasm64")]
use core::arch::wasm64 as arch;

pub(crate) fn page_size() -> usize {
    PAGE_BYTES
}

/// Whether `move_pages` can succeed.
pub(crate) const MOVES_PAGES: bool = false;

pub(crate) fn huge_page_size() -> Option<usize> {
    None
}

pub(crate) fn transparent_huge_pages() -> TransparentHugePages {
    TransparentHugePages::Never
}

pub(crate) fn charges_reservations() -> bool {
    false
}

/// Address space is memory here: see [`Sbrk`](crate::Sbrk), which keeps what is released.
pub(crate) fn reserve_aligned(
    _len: usize,
    _align: usize,
    _access: Access,
) -> Result<NonNull<u8>, SourceError> {
    Err(SourceError::Unsupported)
}

pub(crate) fn reserve_hugetlb(_len: usize, _align: usize) -> Result<NonNull<u8>, SourceError> {
    Err(SourceError::Unsupported)
}

/// # Safety
/// None: nothing is done.
pub(crate) unsafe fn release(_start: NonNull<u8>, _len: usize) -> Result<(), SourceError> {
    Err(SourceError::Unsupported)
}

/// # Safety
/// None: nothing is done.
pub(crate) unsafe fn open(_start: NonNull<u8>, _len: usize) -> Result<(), SourceError> {
    Ok(())
}

/// # Safety
/// As for [`discard`].
pub(crate) unsafe fn close(start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
    // SAFETY: passed on by the caller.
    unsafe { discard(start, len) }
}

/// Clears the pages; no memory is given back.
///
/// # Safety
/// The range is ours, and nothing relies on its contents.
pub(crate) unsafe fn discard(start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
    // SAFETY: passed on by the caller.
    unsafe { start.write_bytes(0, len) };
    Ok(())
}

/// # Safety
/// None: nothing is done.
pub(crate) unsafe fn discard_lazily(_start: NonNull<u8>, _len: usize) -> Result<bool, SourceError> {
    Ok(false)
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
    Err(SourceError::Unsupported)
}

pub(crate) fn current_cpu() -> Option<usize> {
    None
}

pub(crate) fn current_node() -> Option<(usize, u32)> {
    None
}

pub(crate) fn online_nodes(_buffer: &mut [u8]) -> Option<&[u8]> {
    None
}

/// Waiting on a word needs a proposal that most builds leave off; the thread looks again instead.
pub(crate) fn sleep_while(word: &AtomicU32, value: u32) {
    if word.load(Relaxed) == value {
        core::hint::spin_loop();
    }
}

pub(crate) fn wake_one(_word: &AtomicU32) {}

pub(crate) fn break_now() -> Result<usize, SourceError> {
    Ok(arch::memory_size(0) * PAGE_BYTES)
}

/// # Safety
/// None: the memory only grows.
pub(crate) unsafe fn break_move(delta: isize) -> Result<usize, SourceError> {
    let Ok(bytes) = usize::try_from(delta) else { return Err(SourceError::Unsupported) };
    match arch::memory_grow(0, bytes.div_ceil(PAGE_BYTES)) {
        usize::MAX => Err(SourceError::OutOfMemory { requested: bytes as u64 }),
        old => Ok(old * PAGE_BYTES),
    }
}
