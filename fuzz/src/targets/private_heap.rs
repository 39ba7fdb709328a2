//! A heap of its own over a page source that faults where nothing is committed and refuses single calls: sequences of
//! allocations, frees, growth and release beside a reference model. After a refusal the heap is as usable as before, and
//! when it is dropped, everything has gone back to the source.

#[path = "../../../crates/terrane-slab/tests/support/mod.rs"]
mod support;

use crate::bytes::Bytes;
use crate::heap::OneHeap;
use crate::model::Model;
use std::alloc::Layout;
use std::sync::atomic::Ordering::Relaxed;
use support::Strict;
use terrane_slab::PrivateHeap;

/// The source does not say that its pages read as zero, and moves pages by copying: a block of many gigabytes that is
/// zeroed or grown would be touched whole. Sizes that no source has room for stay as they are.
fn touchable(size: usize) -> usize {
    if size < 1 << 46 { size % (1 << 28) } else { size }
}

/// Carries out what the bytes say.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let source = Strict::new();
    let subject = OneHeap(PrivateHeap::new_in(&source).expect("the source refuses nothing yet"));
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
}
