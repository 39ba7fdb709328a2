//! A heap of its own over a page source that faults where nothing is committed and refuses single calls: sequences of
//! allocations, frees, growth and release beside a reference model. After a refusal the heap is as usable as before, and
//! when it is dropped, everything has gone back to the source.

#![no_main]

#[path = "../../crates/terrane-slab/tests/support/mod.rs"]
mod support;

use libfuzzer_sys::fuzz_target;
use std::alloc::{GlobalAlloc, Layout};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::Relaxed;
use support::Strict;
use terrane_fuzz::bytes::Bytes;
use terrane_fuzz::model::Model;
use terrane_slab::PrivateHeap;

/// The heap, seen as the model wants it.
struct Subject<'a>(PrivateHeap<&'a Strict>);

/// The source does not say that its pages read as zero, and moves pages by copying: a block of many gigabytes that is
/// zeroed or grown would be touched whole. Sizes that no source has room for stay as they are.
fn touchable(size: usize) -> usize {
    if size < 1 << 46 { size % (1 << 28) } else { size }
}

fn pointer(block: Option<NonNull<u8>>) -> *mut u8 {
    block.map_or(std::ptr::null_mut(), NonNull::as_ptr)
}

// SAFETY: the heap's contract is that of `GlobalAlloc`; it is used from one thread only.
unsafe impl GlobalAlloc for Subject<'_> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        pointer(self.0.alloc(layout.size(), layout.align()))
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        pointer(self.0.alloc_zeroed(layout.size(), layout.align()))
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let block = NonNull::new(block).expect("the model frees what it was given");
        // SAFETY: the caller's promise.
        unsafe { self.0.free(block, layout.size(), layout.align()) };
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let block = NonNull::new(block).expect("the model resizes what it was given");
        // SAFETY: the caller's promise.
        pointer(unsafe { self.0.realloc(block, layout.size(), layout.align(), size) })
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes::new(data);
    let source = Strict::new();
    let subject = Subject(PrivateHeap::new_in(&source).expect("the source refuses nothing yet"));
    let mut model = Model::new(&subject);
    while !bytes.is_empty() {
        let operation = bytes.byte();
        match operation % 10 {
            0 | 1 => model.allocate(bytes.layout(), false, operation),
            2 => {
                let layout = bytes.layout();
                let layout = Layout::from_size_align(touchable(layout.size()), layout.align())
                    .expect("no larger than before");
                model.allocate(layout, true, operation);
            }
            3 => {
                // Many of one size: full slabs, then empty ones.
                let layout = bytes.layout();
                if layout.size() <= 40_000 && layout.align() <= 4096 {
                    (0..bytes.byte()).for_each(|seed| model.allocate(layout, operation >= 128, seed));
                }
            }
            4 | 5 if !model.is_empty() => model.free(bytes.below(model.len())),
            6 if !model.is_empty() => {
                let index = bytes.below(model.len());
                model.resize(index, touchable(bytes.size()));
            }
            7 => {
                for _ in 0..bytes.byte() {
                    if !model.is_empty() {
                        model.free(bytes.below(model.len()));
                    }
                }
            }
            8 => subject.0.release_free_memory(),
            _ => source.fail_at.store(source.calls.load(Relaxed) + i64::from(bytes.byte() % 8), Relaxed),
        }
        // A planned refusal that has happened is over: from now on there is memory again.
        let planned = source.fail_at.load(Relaxed);
        model.may_fail(planned >= source.calls.load(Relaxed));
    }
    source.fail_at.store(-1, Relaxed);
    model.may_fail(false);
    model.end();
    drop(subject);
    assert_eq!(source.reserved.load(Relaxed), 0, "bytes that did not go back to the source");
});
