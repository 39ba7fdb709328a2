//! One block, again and again, with a layout known at compile time.
//!
//! Invariant: the loop holds at most one block, writes and reads one word of it, and does nothing else.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};

use crate::block::{CORRUPT, opaque};
use crate::gang::{Measured, Plan, gang};
use crate::probe::Probe;

/// Pairs of allocation and free of `SIZE` bytes.
pub fn pair<const SIZE: usize, P: Probe>(plan: Plan) -> Measured {
    // Large blocks can cost a system call each: fewer of them, for about the same time.
    let full = match SIZE {
        0..=1024 => 40_000_000,
        1025..=16_384 => 12_000_000,
        16_385..=65_536 => 1_000_000,
        _ => 400_000,
    };
    let count = plan.share(full) as u64;
    gang::<P>(plan, |_, probe, gate| {
        let layout = const {
            match Layout::from_size_align(SIZE, 8) {
                Ok(layout) => layout,
                Err(_) => panic!("sizes of pairs are valid"),
            }
        };
        let mut sum = 0u64;
        gate.start();
        for i in 0..count {
            // SAFETY: the layout has a size above zero.
            let ptr = probe.alloc(|| unsafe { alloc(layout) });
            if ptr.is_null() {
                handle_alloc_error(layout);
            }
            let ptr = opaque(ptr);
            // SAFETY: the block holds at least eight bytes, is 8-aligned and ours; the opaque step in between
            // only hides the pointer.
            unsafe {
                ptr.cast::<u64>().write(i);
                sum = sum.wrapping_add(opaque(ptr).cast::<u64>().read());
            }
            // SAFETY: allocated above with this layout and not yet freed.
            probe.free(|| unsafe { dealloc(ptr, layout) });
        }
        gate.end(count);
        if sum != count * (count - 1) / 2 {
            eprintln!("a block of {SIZE} bytes did not hold what was written to it");
            std::process::exit(CORRUPT);
        }
    })
}
