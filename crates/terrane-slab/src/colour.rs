//! Colours: how far behind the start of its slice a large or huge block begins.
//!
//! Invariant: a block with its colour is no longer than whole slices would have made it, and a block that asks for an alignment
//! above a cache line has colour 0.
//!
//! Slices begin at multiples of 64 KiB. If blocks did so too, the same element of every long array would lie in the same set of
//! each cache, and a program that walks more arrays in step than a set has ways (12 or 16 today) would miss on every access. So a
//! block begins at one of the 64 cache lines of its first page, which one a hash of the slice's number says. The colour is taken
//! from what rounding up to slices leaves: it costs no memory, and a block of whole slices has none.

use crate::segment::{SLICE_BYTES, SLICE_SHIFT};

/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes of the page whose lines are the colours: what one way of a first-level cache covers.
const PAGE: usize = 4096;

/// What a slice's number is multiplied by: found by search, so that blocks at equal distances lie in as many lines as can be.
/// The golden ratio, which one would take (Knuth, volume 3, 6.4), puts 7 of 16 blocks at a distance of 15 segments in one line.
const SPREAD: u32 = 0xA9B5_76D7;

/// The colour of a block of `bytes` at a multiple of `align` whose first slice starts at `start`.
#[inline(always)]
pub(crate) fn of(start: *mut u8, bytes: usize, align: usize) -> usize {
    if align > LINE {
        return 0;
    }
    let left = left_by(bytes);
    let lines = if left < PAGE { left / LINE } else { PAGE / LINE - 1 };
    let hash = ((start.addr() >> SLICE_SHIFT) as u32).wrapping_mul(SPREAD);
    ((hash as u64 * (lines as u64 + 1)) >> 32) as usize * LINE
}

/// Whether a block of `bytes` at a multiple of `align`, at most the slice length, may have this colour, which another block had.
#[inline(always)]
pub(crate) fn fits(colour: usize, bytes: usize, align: usize) -> bool {
    colour <= left_by(bytes) && colour & (align - 1) == 0
}

/// What rounding up to slices leaves of `bytes`.
#[inline(always)]
const fn left_by(bytes: usize) -> usize {
    bytes.wrapping_neg() % SLICE_BYTES
}

/// The slice that a large block begins in, or the place where a huge block would begin without its colour.
#[inline(always)]
pub(crate) fn strip(block: *mut u8) -> *mut u8 {
    block.map_addr(|address| address & !(SLICE_BYTES - 1))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::segment::SEGMENT_BYTES;
    use core::ptr;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_colour_is_a_line_of_the_first_page_and_costs_no_slice(
            slice in 0_usize..1 << 31, bytes in 1_usize..1 << 40, shift in 0_u32..=16,
        ) {
            let colour = of(ptr::without_provenance_mut(slice << SLICE_SHIFT), bytes, 1 << shift);
            prop_assert!(colour < PAGE);
            prop_assert!(colour.is_multiple_of(LINE));
            prop_assert!((bytes + colour).div_ceil(SLICE_BYTES) == bytes.div_ceil(SLICE_BYTES));
            prop_assert!(colour.is_multiple_of(1 << shift));
            prop_assert!(fits(colour, bytes, 1 << shift));
        }

        #[test]
        fn a_colour_that_fits_costs_no_slice(colour in 0_usize..PAGE, bytes in 1_usize..1 << 40, shift in 0_u32..=16) {
            let costs = (bytes + colour).div_ceil(SLICE_BYTES) > bytes.div_ceil(SLICE_BYTES);
            prop_assert_eq!(fits(colour, bytes, 1 << shift), !costs && colour.is_multiple_of(1 << shift));
        }
    }

    #[test]
    fn blocks_at_equal_distances_lie_in_many_sets() {
        let segment = SEGMENT_BYTES / SLICE_BYTES;
        for slices in (1..=64).chain((1..=16).map(|segments| segments * segment)) {
            let mut blocks_of = [0; PAGE / LINE];
            for i in 0..64 {
                let start = ptr::without_provenance_mut((1000 + i * slices) << SLICE_SHIFT);
                blocks_of[of(start, slices * SLICE_BYTES - PAGE, 8) / LINE] += 1;
            }
            let most = blocks_of.iter().max();
            assert!(most <= Some(&3), "64 blocks of {slices} slices, and {most:?} in one set of lines");
        }
    }
}
