//! macOS and its relatives.

pub(crate) use super::unix::{close, open, page_size, release, reserve_aligned};

use super::TransparentHugePages;
use super::unix::{advise, refusal};
use crate::sys::Access;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use terrane_core::SourceError;

/// Whether `move_pages` can succeed.
pub(crate) const MOVES_PAGES: bool = false;

pub(crate) fn huge_page_size() -> Option<usize> {
    None
}

pub(crate) fn transparent_huge_pages() -> TransparentHugePages {
    TransparentHugePages::Never
}

/// The system pages and compresses as it likes, and charges what is touched.
pub(crate) fn charges_reservations() -> bool {
    false
}

pub(crate) fn reserve_hugetlb(_len: usize, _align: usize) -> Result<NonNull<u8>, SourceError> {
    Err(SourceError::Unsupported)
}

/// `MADV_DONTNEED` keeps contents here, so a fresh mapping takes the place of the old one.
///
/// # Safety
/// The range lies in a mapping of ours, and nothing relies on its contents.
pub(crate) unsafe fn discard(start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
    // SAFETY: passed on by the caller.
    unsafe { super::unix::map_over(start, len, Access::Open) }.map_err(|code| refusal(code, len))
}

/// # Safety
/// As for [`discard`].
pub(crate) unsafe fn discard_lazily(start: NonNull<u8>, len: usize) -> Result<bool, SourceError> {
    // SAFETY: the caller allows the contents to go.
    unsafe { advise(start, len, libc::MADV_FREE) }.map(|()| false).map_err(|code| refusal(code, len))
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

/// The system's own waiting on a word is not public, so the thread lets others run.
pub(crate) fn sleep_while(word: &AtomicU32, value: u32) {
    if word.load(Relaxed) == value {
        // SAFETY: no preconditions.
        unsafe { libc::sched_yield() };
    }
}

pub(crate) fn wake_one(_word: &AtomicU32) {}

/// `sbrk` is an imitation over 4 MiB here that cannot go down.
pub(crate) fn break_now() -> Result<usize, SourceError> {
    Err(SourceError::Unsupported)
}

/// # Safety
/// None: nothing is done.
pub(crate) unsafe fn break_move(_delta: isize) -> Result<usize, SourceError> {
    Err(SourceError::Unsupported)
}
