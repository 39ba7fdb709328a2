//! Metadata in a buffer that the caller gives.
//!
//! Invariant: `used` bytes from the start of the buffer are handed out, to blocks that do not overlap; nothing handed out
//! is handed out again.
//!
//! Protocol: an engine over a buffer asks for its two tables once, when it is made, and never again; a growth that it may
//! try later is refused here, which the engine reports as [`PlaceError::NoMetadata`](terrane_core::PlaceError).

use allocator_api2::alloc::{AllocError, Allocator, Layout};
use core::cell::Cell;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

/// A fixed buffer as an allocator for metadata: hands out each byte once, and takes nothing back.
///
/// It is what `in_buffer` of every engine uses.
#[derive(Debug)]
pub struct Fixed<'b> {
    start: NonNull<u8>,
    len: usize,
    used: Cell<usize>,
    buffer: PhantomData<&'b mut [MaybeUninit<u8>]>,
}

// SAFETY: the buffer is borrowed exclusively for 'b and `MaybeUninit<u8>` may be used from any thread.
unsafe impl Send for Fixed<'_> {}

impl<'b> Fixed<'b> {
    /// Over the whole of `buffer`.
    pub fn new(buffer: &'b mut [MaybeUninit<u8>]) -> Self {
        let len = buffer.len();
        Self { start: NonNull::from(buffer).cast(), len, used: Cell::new(0), buffer: PhantomData }
    }

    /// Bytes not handed out yet.
    pub fn remaining(&self) -> usize {
        self.len - self.used.get()
    }
}

// SAFETY: blocks lie inside the buffer, which outlives 'b, and `used` only grows, so no two blocks overlap; a block stays
// valid when the allocator is moved since it lies in the buffer and not in `self`.
unsafe impl Allocator for Fixed<'_> {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let used = self.used.get();
        let address = self.start.as_ptr() as usize + used;
        let pad = address.next_multiple_of(layout.align()) - address;
        if self.remaining() < pad || self.remaining() - pad < layout.size() {
            return Err(AllocError);
        }
        self.used.set(used + pad + layout.size());
        // SAFETY: `used + pad` is at most the length of the buffer.
        let block = unsafe { self.start.add(used + pad) };
        Ok(NonNull::slice_from_raw_parts(block, layout.size()))
    }

    unsafe fn deallocate(&self, _block: NonNull<u8>, _layout: Layout) {}
}
