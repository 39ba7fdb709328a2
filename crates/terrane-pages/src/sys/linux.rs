//! Linux and Android.

pub(crate) use super::unix::{close, open, page_size, release, reserve_aligned};

use super::TransparentHugePages;
use super::unix::{advise, quiet, quiet_int, refusal, unmap};
use core::ffi::CStr;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;
use terrane_core::SourceError;

/// Since Linux 5.18: `MADV_DONTNEED` that also works on locked pages.
const MADV_DONTNEED_LOCKED: i32 = 24;
/// Since Linux 5.14.
const MADV_POPULATE_WRITE: i32 = 23;
/// Since Linux 5.7.
const MREMAP_DONTUNMAP: i32 = 4;
const MPOL_PREFERRED: i32 = 1;

/// Reads the beginning of a small file into `buffer`.
fn read_file<'a>(path: &CStr, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: the path ends in a zero byte; the buffer is as long as said; the descriptor is ours until closed.
    unsafe {
        let file = quiet(|| libc::open(path.as_ptr(), flags), |file| file < 0).ok()?;
        let read = quiet(|| libc::read(file, buffer.as_mut_ptr().cast(), buffer.len()), |n| n < 0);
        let _ = quiet_int(|| libc::close(file));
        buffer.get(..usize::try_from(read.ok()?).ok()?)
    }
}

/// The first number in a small file of the system.
fn read_number(path: &CStr) -> Option<usize> {
    let mut buffer = [0; 32];
    let text = read_file(path, &mut buffer)?;
    let digits = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    core::str::from_utf8(&text[..digits]).ok()?.parse().ok()
}

/// Whether `move_pages` can succeed.
pub(crate) const MOVES_PAGES: bool = true;

/// The size that both kinds share: `Hugepagesize` of explicit pages is by default the size of a transparent one.
pub(crate) fn huge_page_size() -> Option<usize> {
    read_number(c"/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
}

pub(crate) fn transparent_huge_pages() -> TransparentHugePages {
    let mut buffer = [0; 64];
    let text = read_file(c"/sys/kernel/mm/transparent_hugepage/enabled", &mut buffer).unwrap_or(b"");
    let has = |word: &[u8]| text.windows(word.len()).any(|part| part == word);
    if has(b"[always]") {
        TransparentHugePages::Always
    } else if has(b"[madvise]") {
        TransparentHugePages::OnRequest
    } else {
        TransparentHugePages::Never
    }
}

/// Under strict accounting (`vm.overcommit_memory` is 2) `MAP_NORESERVE` is ignored. A system that does not say is
/// taken to be strict, which is right, if slower, under both.
pub(crate) fn charges_reservations() -> bool {
    !matches!(read_number(c"/proc/sys/vm/overcommit_memory"), Some(0 | 1))
}

/// Address space backed by huge pages that an administrator has set aside, of the size that the system calls default.
pub(crate) fn reserve_hugetlb(len: usize, align: usize) -> Result<NonNull<u8>, SourceError> {
    // Without MAP_NORESERVE the pages are claimed at once: a later touch could otherwise end the program.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_HUGETLB;
    let address = quiet(
        // SAFETY: without MAP_FIXED a mapping replaces nothing.
        || unsafe {
            libc::mmap(core::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        },
        |address| address == libc::MAP_FAILED,
    )
    .map_err(|code| refusal(code, len))?;
    match NonNull::new(address.cast::<u8>()) {
        Some(start) if start.addr().get() & (align - 1) == 0 => Ok(start),
        _ => {
            // SAFETY: mapped above, used by nobody.
            let _ = quiet_int(|| unsafe { libc::munmap(address, len) });
            Err(SourceError::BadAlign { requested: align as u64, max: crate::huge_page_size() as u64 })
        }
    }
}

/// # Safety
/// The range lies in a mapping of ours, and nothing relies on its contents.
pub(crate) unsafe fn discard(start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
    // SAFETY: the caller allows the contents to go.
    let refused = match unsafe { advise(start, len, libc::MADV_DONTNEED) } {
        // Pages locked by `mlockall` refuse the plain call.
        // SAFETY: as above.
        Err(libc::EINVAL) => unsafe { advise(start, len, MADV_DONTNEED_LOCKED) },
        other => other,
    };
    refused.map_err(|code| refusal(code, len))
}

/// Answers whether the contents are dropped already.
///
/// # Safety
/// As for [`discard`].
pub(crate) unsafe fn discard_lazily(start: NonNull<u8>, len: usize) -> Result<bool, SourceError> {
    // SAFETY: the caller allows the contents to go.
    match unsafe { advise(start, len, libc::MADV_FREE) } {
        Ok(()) => Ok(false),
        // Explicit huge pages, locked pages, and kernels before 4.5.
        // SAFETY: as above.
        Err(libc::EINVAL) => unsafe { discard(start, len) }.map(|()| true),
        Err(code) => Err(refusal(code, len)),
    }
}

/// Moves pages so that no moment exists at which one of the ranges is unmapped and could be taken by another thread's
/// mapping. A move straight to `to` has such a moment on kernels before 6.17: they unmap `to` first and look at `from`
/// afterwards. So pages go to a fresh place, which either fails with nothing changed or leaves them in one mapping of
/// their own, and from there to `to`, which cannot be refused for the reasons that are looked at late. Measured on
/// Linux 6.18, the detour costs 3 us per call.
///
/// One system call moves pages of one kernel mapping only, and a range that looks whole may be made of several (after
/// an earlier move, or where advice differs). A refused length is halved until it fits.
///
/// Afterwards `from` is accessible and reads as zero.
///
/// # Safety
/// Both ranges lie in accessible private mappings of ours and do not overlap; nothing relies on the contents of `to`.
pub(crate) unsafe fn move_pages(from: NonNull<u8>, to: NonNull<u8>, len: usize) -> Result<(), SourceError> {
    let page = crate::page_size();
    let mut done = 0;
    let mut piece = len;
    while done < len {
        piece = piece.min(len - done);
        // SAFETY: `done + piece` is at most `len`.
        match unsafe { move_piece(from.add(done), to.add(done), piece) } {
            Ok(()) => {
                done += piece;
                piece = len - done;
            }
            Err(libc::EFAULT) if piece > page => piece = (piece / 2).next_multiple_of(page).min(piece - page),
            Err(code) => {
                // What has moved goes back by copying: that needs nothing from the system but the memory that `from`
                // has just given up.
                // SAFETY: both ranges are ours, accessible and apart.
                unsafe { core::ptr::copy_nonoverlapping(to.as_ptr(), from.as_ptr(), done) };
                return Err(match code {
                    // A kernel without MREMAP_DONTUNMAP, or pages that are not private and anonymous.
                    libc::EINVAL | libc::EFAULT => SourceError::Unsupported,
                    code => refusal(code, len),
                });
            }
        }
    }
    Ok(())
}

/// Moves the pages of one kernel mapping, or fails with nothing changed.
///
/// # Safety
/// As for [`move_pages`].
unsafe fn move_piece(from: NonNull<u8>, to: NonNull<u8>, len: usize) -> Result<(), i32> {
    let remap = |from: NonNull<u8>, to: *mut u8, flags: i32| {
        quiet(
            // SAFETY: the caller owns both ranges.
            || unsafe { libc::mremap(from.as_ptr().cast(), len, len, flags, to) },
            |address| address == libc::MAP_FAILED,
        )
    };
    let between = remap(from, core::ptr::null_mut(), libc::MREMAP_MAYMOVE | MREMAP_DONTUNMAP)?;
    let between = NonNull::new(between.cast::<u8>()).ok_or(libc::ENOMEM)?;
    remap(between, to.as_ptr(), libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED).map(|_| ()).inspect_err(|_| {
        // Too many mappings.
        // SAFETY: both ranges are ours, accessible and apart; nobody else knows `between`.
        unsafe {
            core::ptr::copy_nonoverlapping(between.as_ptr(), from.as_ptr(), len);
            let _ = unmap(between, len);
        }
    })
}

/// # Safety
/// The range lies in an accessible mapping of ours.
pub(crate) unsafe fn populate(start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
    // Batches let other threads' page faults and mappings in between.
    const BATCH_BYTES: usize = 16 << 20;
    let mut done = 0;
    while done < len {
        let now = BATCH_BYTES.min(len - done);
        // SAFETY: `done` stays below `len`; presence changes no contents.
        match unsafe { advise(start.add(done), now, MADV_POPULATE_WRITE) } {
            Ok(()) => done += now,
            Err(libc::EINVAL) => return Err(SourceError::Unsupported),
            Err(code) => return Err(refusal(code, len)),
        }
    }
    Ok(())
}

/// # Safety
/// The range lies in a mapping of ours.
pub(crate) unsafe fn advise_huge(start: NonNull<u8>, len: usize, huge: bool) -> Result<(), SourceError> {
    let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
    // SAFETY: the advice changes no contents.
    match unsafe { advise(start, len, advice) } {
        Err(libc::EINVAL) => Err(SourceError::Unsupported),
        other => other.map_err(|code| refusal(code, len)),
    }
}

/// # Safety
/// The range lies in a mapping of ours.
pub(crate) unsafe fn bind(start: NonNull<u8>, len: usize, node: u32) -> Result<(), SourceError> {
    const BITS: usize = usize::BITS as usize;
    const WORDS: usize = 1024 / BITS;
    let mut mask = [0usize; WORDS];
    let Some(word) = mask.get_mut(node as usize / BITS) else {
        return Err(SourceError::Os { code: libc::EINVAL });
    };
    *word = 1 << (node as usize % BITS);
    quiet_int(|| {
        // SAFETY: the mask is as long as said (the kernel reads one bit less than the number given), and the policy
        // changes no contents.
        unsafe {
            libc::syscall(
                libc::SYS_mbind,
                start.as_ptr(),
                len,
                MPOL_PREFERRED,
                mask.as_ptr(),
                1024usize + 1,
                0usize,
            ) as i32
        }
    })
    .map_err(|code| refusal(code, len))
}

pub(crate) fn current_cpu() -> Option<usize> {
    // SAFETY: no preconditions.
    let cpu = quiet(|| unsafe { libc::sched_getcpu() }, |cpu| cpu < 0);
    usize::try_from(cpu.ok()?).ok()
}

/// The processor on which the calling thread runs, and its memory node.
pub(crate) fn current_node() -> Option<(usize, u32)> {
    let (mut cpu, mut node) = (0u32, 0u32);
    let null = core::ptr::null_mut::<u8>();
    // SAFETY: both places are valid for writes; the third argument is unused since Linux 2.6.24.
    quiet_int(|| unsafe { libc::syscall(libc::SYS_getcpu, &raw mut cpu, &raw mut node, null) as i32 })
        .ok()?;
    Some((cpu as usize, node))
}

/// The memory nodes that are online, in the kernel's list notation.
pub(crate) fn online_nodes(buffer: &mut [u8]) -> Option<&[u8]> {
    read_file(c"/sys/devices/system/node/online", buffer)
}

/// Sleeps while `word` holds `value`. May return early.
pub(crate) fn sleep_while(word: &AtomicU32, value: u32) {
    let forever = core::ptr::null::<libc::timespec>();
    let flags = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word outlives the call.
    let _ =
        quiet_int(|| unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), flags, value, forever) as i32 });
}

/// Wakes one thread that sleeps on `word`.
pub(crate) fn wake_one(word: &AtomicU32) {
    let flags = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word is only a key to the kernel.
    let _ = quiet_int(|| unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), flags, 1) as i32 });
}

/// The program break.
pub(crate) fn break_now() -> Result<usize, SourceError> {
    break_call(0)
}

/// Moves the program break by `delta` bytes and answers where it was.
///
/// # Safety
/// For a negative `delta`: the memory above the new break is the caller's, and nothing uses it.
pub(crate) unsafe fn break_move(delta: isize) -> Result<usize, SourceError> {
    break_call(delta)
}

fn break_call(delta: isize) -> Result<usize, SourceError> {
    quiet(
        // SAFETY: the caller of `break_move` answers for what lies above the new break; 0 moves nothing.
        || unsafe { libc::sbrk(delta) },
        |old| old.addr() == usize::MAX,
    )
    .map(|old| old.expose_provenance())
    .map_err(|code| refusal(code, delta.unsigned_abs()))
}
