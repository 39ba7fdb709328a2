//! `Terrane` as `GlobalAlloc`, on one thread: sequences of alloc, alloc_zeroed, realloc and dealloc, sizes from 1 to
//! `isize::MAX`, alignments to 1 GiB, beside a reference model.

use crate::bytes::Bytes;
use crate::model::Model;

static TERRANE: terrane::Terrane = terrane::Terrane;

/// Carries out what the bytes say.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mut model = Model::new(&TERRANE);
    while !bytes.is_empty() {
        let operation = bytes.byte();
        match operation % 8 {
            0..=2 => model.allocate(bytes.layout(), operation & 128 != 0, operation),
            3 => {
                // Many of one size: full slabs, then empty ones.
                let layout = bytes.layout();
                if layout.size() <= 4096 {
                    (0..bytes.byte()).for_each(|seed| model.allocate(layout, false, seed));
                }
            }
            4 | 5 if !model.is_empty() => {
                let index = bytes.below(model.len());
                model.free(index);
            }
            6 if !model.is_empty() => {
                let index = bytes.below(model.len());
                model.resize(index, bytes.size());
            }
            7 => (0..bytes.byte()).for_each(|_| {
                if !model.is_empty() {
                    model.free(bytes.below(model.len()));
                }
            }),
            _ => {}
        }
    }
    model.end();
}
