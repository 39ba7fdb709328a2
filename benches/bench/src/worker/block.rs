//! One block of memory under test, marked at both ends.
//!
//! Invariant: from [`Block::new`] to [`Block::free`] the first and last bytes hold the block's tag; a block that was
//! handed out twice, moved, cleared or cut short is found at the next check, and the process ends with exit code
//! [`CORRUPT`], so a wrong allocator has no timings.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::probe::Probe;

/// The exit code of a worker that found a block with foreign content.
pub const CORRUPT: i32 = 86;

/// Every block under test is aligned like most Rust data: to eight bytes.
const ALIGN: usize = 8;

/// Blocks below this size cannot carry a whole tag at each end.
const WHOLE_TAGS: usize = 8;

/// A live block of `size` bytes.
pub struct Block {
    ptr: NonNull<u8>,
    size: u32,
    tag: u32,
}

// SAFETY: a block is plain memory with one owner; the allocators under test allow frees from any thread.
unsafe impl Send for Block {}

/// Hides from the compiler what `ptr` is and that memory has not changed, without a detour through the stack.
#[inline(always)]
pub fn opaque(ptr: *mut u8) -> *mut u8 {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        let mut ptr = ptr;
        // SAFETY: the template is empty: no instruction runs. Not marked `nomem`, so memory counts as clobbered.
        unsafe { std::arch::asm!("/* {0} */", inout(reg) ptr, options(nostack, preserves_flags)) };
        ptr
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    std::hint::black_box(ptr)
}

impl Block {
    /// Allocates `size` bytes (at least 1, below 4 GiB) and marks both ends.
    #[inline(always)]
    pub fn new<P: Probe>(probe: &mut P, size: usize, tag: u32) -> Self {
        debug_assert!(size > 0 && u32::try_from(size).is_ok());
        // SAFETY: `ALIGN` is a power of two and `size` is below 4 GiB.
        let layout = unsafe { Layout::from_size_align_unchecked(size, ALIGN) };
        // SAFETY: the layout has a size above zero.
        let ptr = opaque(probe.alloc(|| unsafe { alloc(layout) }));
        let Some(ptr) = NonNull::new(ptr) else { handle_alloc_error(layout) };
        let block = Self { ptr, size: size as u32, tag };
        // SAFETY: `first` and `last` are inside the block, which is ours; unaligned writes are allowed here.
        unsafe {
            if size >= WHOLE_TAGS {
                ptr.cast::<u32>().write(tag);
                ptr.add(size - 4).cast::<u32>().write_unaligned(tag);
            } else {
                ptr.write(tag as u8);
                ptr.add(size - 1).write(tag as u8);
            }
        }
        block
    }

    /// Bytes asked for.
    #[inline(always)]
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// Ends the process if either end no longer holds the tag.
    #[inline(always)]
    pub fn check(&self) {
        let size = self.size();
        // SAFETY: both places are inside the live block and were written by `new`.
        let intact = unsafe {
            if size >= WHOLE_TAGS {
                self.ptr.cast::<u32>().read() == self.tag
                    && self.ptr.add(size - 4).cast::<u32>().read_unaligned() == self.tag
            } else {
                self.ptr.read() == self.tag as u8 && self.ptr.add(size - 1).read() == self.tag as u8
            }
        };
        if !intact {
            corrupt(self);
        }
    }

    /// Writes the tag to each 4 KiB page between the ends, as a program that uses its memory would.
    pub fn touch_pages(&self) {
        for offset in (4096..self.size().saturating_sub(8)).step_by(4096) {
            // SAFETY: `offset + 4` is inside the block, and 4096-steps from an 8-aligned start are 4-aligned.
            unsafe { self.ptr.add(offset).cast::<u32>().write(self.tag) };
        }
    }

    /// Checks the ends and every page that [`Block::touch_pages`] wrote.
    pub fn check_pages(&self) {
        self.check();
        for offset in (4096..self.size().saturating_sub(8)).step_by(4096) {
            // SAFETY: as in `touch_pages`.
            if unsafe { self.ptr.add(offset).cast::<u32>().read() } != self.tag {
                corrupt(self);
            }
        }
    }

    /// Checks both ends and frees the block.
    #[inline(always)]
    pub fn free<P: Probe>(self, probe: &mut P) {
        self.check();
        // SAFETY: the layout is the one the block was allocated with.
        let layout = unsafe { Layout::from_size_align_unchecked(self.size(), ALIGN) };
        let ptr = opaque(self.ptr.as_ptr());
        // SAFETY: the block is live and owned, and this consumes it.
        probe.free(|| unsafe { dealloc(ptr, layout) });
    }

    /// Turns the block into a bare pointer that [`Block::from_raw`] understands; the size moves into the block.
    pub fn into_raw(self) -> *mut u8 {
        assert!(self.size() >= 16, "a block of {} bytes has no room for its own size", self.size);
        // SAFETY: bytes 4..8 are inside the block and belong to neither tag, since the block has 16 bytes.
        unsafe { self.ptr.add(4).cast::<u32>().write(self.size) };
        self.ptr.as_ptr()
    }

    /// Takes back a pointer made by [`Block::into_raw`].
    ///
    /// # Safety
    ///
    /// `ptr` comes from `into_raw` and is taken back once.
    pub unsafe fn from_raw(ptr: *mut u8) -> Option<Self> {
        let ptr = NonNull::new(ptr)?;
        // SAFETY: the caller says that `into_raw` made this pointer, so tag and size stand at its start.
        let (tag, size) = unsafe { (ptr.cast::<u32>().read(), ptr.add(4).cast::<u32>().read()) };
        Some(Self { ptr, size, tag })
    }
}

#[cold]
#[inline(never)]
fn corrupt(block: &Block) -> ! {
    // Nothing may be allocated any more: the heap is not to be trusted.
    let message = b"a block under test no longer holds what was written to it\n";
    // SAFETY: the buffer is valid for its length; `_exit` never returns.
    unsafe {
        libc::write(2, message.as_ptr().cast(), message.len());
        if !cfg!(test) {
            libc::_exit(CORRUPT);
        }
    }
    panic!("block of {} bytes at {:p} was overwritten", block.size, block.ptr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Quiet;

    fn damaged(size: usize, at: usize) -> std::thread::Result<()> {
        std::panic::catch_unwind(|| {
            let block = Block::new(&mut Quiet, size, 0xA5A5_5A5A);
            // SAFETY: `at` is inside the block.
            unsafe { *block.ptr.as_ptr().add(at) ^= 0xFF };
            block.check_pages();
        })
    }

    #[test]
    fn damage_at_either_end_or_on_a_touched_page_is_found() {
        for size in [1, 2, 7, 8, 9, 64, 1000, 70_000] {
            assert!(damaged(size, 0).is_err(), "first byte of {size}");
            assert!(damaged(size, size - 1).is_err(), "last byte of {size}");
        }
        let block = Block::new(&mut Quiet, 70_000, 1);
        block.touch_pages();
        block.check_pages();
        // SAFETY: the page at 8192 is inside the block.
        unsafe { *block.ptr.as_ptr().add(8192) ^= 0xFF };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| block.check_pages())).is_err());
    }

    #[test]
    fn an_intact_block_passes_through_a_raw_pointer() {
        let raw = Block::new(&mut Quiet, 48, 7).into_raw();
        // SAFETY: made by `into_raw` just above and taken back once.
        let block = unsafe { Block::from_raw(raw) }.expect("not null");
        assert_eq!((block.size(), block.tag), (48, 7));
        block.free(&mut Quiet);
    }
}
