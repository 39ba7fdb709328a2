//! Heaps of one's own for C: independent of the process's allocator, destroyed at once with everything in them.
//!
//! Each is a `PrivateHeap` behind a lock, so that any thread may use it. A block of such a heap must be freed through its
//! heap: [`free`](crate::malloc::free) aborts on it.

use crate::malloc::ALIGN;
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, Ordering};
use terrane_core::Source;
use terrane_front::process;
use terrane_pages::Mmap;
use terrane_slab::domain::Policy;
use terrane_slab::{Growth, PrivateHeap};

/// A lock that never allocates: a futex word.
///
/// | value | meaning |
/// |---|---|
/// | 0 | free |
/// | 1 | held |
/// | 2 | held, and somebody may be waiting |
#[derive(Debug)]
struct Lock(AtomicU32);

impl Lock {
    fn with<R>(&self, f: impl FnOnce() -> R) -> R {
        if self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while self.0.swap(2, Ordering::Acquire) != 0 {
                // SAFETY: waits on a word of ours; any return leads to another look.
                unsafe {
                    let nowhere = ptr::null::<libc::timespec>();
                    libc::syscall(
                        libc::SYS_futex,
                        self.0.as_ptr(),
                        libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                        2,
                        nowhere,
                    );
                }
            }
        }
        let result = f();
        if self.0.swap(0, Ordering::Release) == 2 {
            // SAFETY: wakes whoever waits on a word of ours.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.0.as_ptr(),
                    libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                    1,
                )
            };
        }
        result
    }
}

/// `terrane_heap_t`.
#[derive(Debug)]
pub struct TerraneHeap {
    lock: Lock,
    heap: UnsafeCell<PrivateHeap<Mmap>>,
    /// Address and length of the pages that this lies in.
    pages: (u64, u64, u64),
}

static PAGES: Mmap = Mmap::new();

impl TerraneHeap {
    fn with<R>(&self, f: impl FnOnce(&PrivateHeap<Mmap>) -> R) -> R {
        // SAFETY: the lock is held.
        self.lock.with(|| f(unsafe { &*self.heap.get() }))
    }
}

/// Makes a heap; null when memory is out.
#[unsafe(no_mangle)]
pub extern "C" fn terrane_heap_new() -> *mut TerraneHeap {
    let policy = Policy {
        growth: Growth::SMALL,
        clock: process::milliseconds,
        on_misuse: process::abort_on_misuse,
        ..Policy::DEFAULT
    };
    let page = terrane_pages::page_size();
    let bytes = size_of::<TerraneHeap>().next_multiple_of(page) as u64;
    let Ok(pages) = PAGES.acquire(bytes, page as u64) else { return ptr::null_mut() };
    let place: *mut TerraneHeap = pages.as_ptr().cast();
    match PrivateHeap::with_policy(Mmap::new(), policy, ()) {
        Ok(heap) => {
            let pages = pages.into_raw();
            let lock = Lock(AtomicU32::new(0));
            // SAFETY: the pages are ours, and large enough.
            unsafe { place.write(TerraneHeap { lock, heap: UnsafeCell::new(heap), pages }) };
            place
        }
        Err(_) => {
            // SAFETY: nobody uses the pages. What cannot be released stays reserved.
            let _ = unsafe { PAGES.release(pages) };
            ptr::null_mut()
        }
    }
}

/// Destroys a heap and frees everything in it. Null is ignored.
///
/// # Safety
/// The heap is live, and neither it nor any of its blocks is used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_heap_destroy(heap: *mut TerraneHeap) {
    if !heap.is_null() {
        // SAFETY: the caller's promise; the pages came from `PAGES`.
        unsafe {
            let TerraneHeap { heap, pages, .. } = heap.read();
            drop(heap);
            // What cannot be released stays reserved.
            let _ = PAGES.release(terrane_core::Extent::from_raw(pages.0, pages.1, pages.2));
        }
    }
}

/// The length that blocks carry in front of them, in a unit of `ALIGN`: C's free does not say it.
const PREFIX: usize = ALIGN;

fn allocate(heap: &TerraneHeap, size: usize, zeroed: bool) -> *mut c_void {
    let Some(bytes) = size.checked_add(PREFIX).filter(|&bytes| bytes <= isize::MAX as usize) else {
        return ptr::null_mut();
    };
    let block =
        heap.with(|heap| if zeroed { heap.alloc_zeroed(bytes, ALIGN) } else { heap.alloc(bytes, ALIGN) });
    block.map_or(ptr::null_mut(), |block| {
        // SAFETY: the block has the prefix and `size` bytes behind it.
        unsafe {
            block.cast::<usize>().write(bytes);
            block.add(PREFIX).as_ptr().cast()
        }
    })
}

/// The whole block and its length.
unsafe fn whole(block: NonNull<c_void>) -> (NonNull<u8>, usize) {
    // SAFETY: the caller says that the block came from `allocate`, which put its length there.
    unsafe {
        let whole = block.cast::<u8>().sub(PREFIX);
        (whole, whole.cast::<usize>().read())
    }
}

/// A block of `size` bytes in `heap`; null when memory is out.
///
/// # Safety
/// The heap is live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_heap_malloc(heap: *mut TerraneHeap, size: usize) -> *mut c_void {
    // SAFETY: the caller's promise.
    allocate(unsafe { &*heap }, size, false)
}

/// A block of `count × size` zero bytes in `heap`; null when memory is out or the product too large.
///
/// # Safety
/// The heap is live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_heap_calloc(
    heap: *mut TerraneHeap,
    count: usize,
    size: usize,
) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller's promise.
        Some(bytes) => allocate(unsafe { &*heap }, bytes, true),
        None => ptr::null_mut(),
    }
}

/// Changes the length of a block of `heap`; null when memory is out, and then the block is as before. A null block is a new
/// block.
///
/// # Safety
/// The heap is live; the block is null, or a live one of this heap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_heap_realloc(
    heap: *mut TerraneHeap,
    block: *mut c_void,
    size: usize,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    let heap = unsafe { &*heap };
    let Some(block) = NonNull::new(block) else { return allocate(heap, size, false) };
    let Some(bytes) = size.checked_add(PREFIX).filter(|&bytes| bytes <= isize::MAX as usize) else {
        return ptr::null_mut();
    };
    // SAFETY: the caller's promise.
    unsafe {
        let (old, old_bytes) = whole(block);
        let moved = heap.with(|heap| heap.realloc(old, old_bytes, ALIGN, bytes));
        moved.map_or(ptr::null_mut(), |moved| {
            moved.cast::<usize>().write(bytes);
            moved.add(PREFIX).as_ptr().cast()
        })
    }
}

/// Frees a block of `heap`; null is ignored.
///
/// # Safety
/// The heap is live; the block is null, or a live one of this heap that is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_heap_free(heap: *mut TerraneHeap, block: *mut c_void) {
    if let Some(block) = NonNull::new(block) {
        // SAFETY: the caller's promise.
        unsafe {
            let (whole, bytes) = whole(block);
            (*heap).with(|heap| heap.free(whole, bytes, ALIGN));
        }
    }
}

/// Gives the free memory of `heap` back to the system.
///
/// # Safety
/// The heap is live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn terrane_heap_purge(heap: *mut TerraneHeap) {
    // SAFETY: the caller's promise.
    unsafe { (*heap).with(PrivateHeap::release_free_memory) };
}
