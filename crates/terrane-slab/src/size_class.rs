//! Size classes: a `const` table from request to block length, and from block length to slab length.
//!
//! Invariant (checked by `const` assertions below): block lengths grow strictly; every block length is a multiple of
//! the step of its doubling, so that a request rounded up to a multiple of its alignment gets a block length that is a
//! multiple of that alignment too; above 128 bytes at most 12.5 % of a block is lost to rounding; at least 98 % of every
//! slab is blocks, and 99.5 % on average.
//!
//! ```text
//!   request   1..=64     steps of 8      classes 0..=7
//!            65..=128    steps of 16     classes 8..=11
//!           129..=32768  8 per doubling  classes 12..=75
//! ```
//!
//! Eight classes per doubling bound the internal waste at one part in nine; four would lose up to one in five.

use crate::segment::SLICE_BYTES;

/// Number of size classes.
pub const CLASSES: usize = 12 + 8 * 8;

/// Largest request that a size class serves, in bytes. Longer blocks are runs of slices or spans of segments.
pub const MAX_SMALL: usize = 32 * 1024;

/// Most slices that one slab may span.
const MAX_SLAB_SLICES: usize = 16;

/// Fewest blocks that a slab should hold.
const MIN_BLOCKS: usize = 4;

/// The class that serves `size` bytes; `size` must not exceed [`MAX_SMALL`]. Folds to a constant when `size` is one.
#[inline(always)]
pub const fn class_of(size: usize) -> usize {
    debug_assert!(size <= MAX_SMALL);
    if size <= 64 {
        size.saturating_sub(1) / 8
    } else if size <= 128 {
        (size - 1) / 16 + 4
    } else {
        let last = size - 1;
        let doubling = last.ilog2() as usize;
        12 + (doubling - 7) * 8 + ((last >> (doubling - 3)) & 7)
    }
}

/// Block lengths are looked up through this table for sizes that are only known at run time, up to its end.
const LOOKUP_MAX: usize = 1024;

const LOOKUP: [u8; LOOKUP_MAX / 8 + 1] = {
    let mut table = [0; LOOKUP_MAX / 8 + 1];
    let mut i = 1;
    while i < table.len() {
        table[i] = class_of(i * 8) as u8;
        i += 1;
    }
    table
};

/// The same as [`class_of`], by table up to 1 KiB: for sizes that the compiler does not know.
#[inline(always)]
pub fn class_of_dynamic(size: usize) -> usize {
    if size <= LOOKUP_MAX { LOOKUP[size.div_ceil(8)] as usize } else { class_of(size) }
}

const fn block_bytes_of(class: usize) -> usize {
    if class < 8 {
        (class + 1) * 8
    } else if class < 12 {
        (class - 3) * 16
    } else {
        let (doubling, step) = ((class - 12) / 8, (class - 12) % 8);
        (128 + (step + 1) * 16) << doubling
    }
}

const fn waste_permille(block: usize, slices: usize) -> usize {
    let bytes = slices * SLICE_BYTES;
    if bytes / block < MIN_BLOCKS { usize::MAX } else { (bytes % block) * 1000 / bytes }
}

/// The shortest slab that wastes little, a short one first; if there is none, the one that wastes least.
const fn slices_of(block: usize) -> usize {
    let mut slices = 1;
    while slices <= SHORT_SLICES {
        if waste_permille(block, slices) <= SHORT_WASTE_PERMILLE {
            return slices;
        }
        slices += 1;
    }
    let (mut best, mut least) = (0, usize::MAX);
    slices = 1;
    while slices <= MAX_SLAB_SLICES {
        let waste = waste_permille(block, slices);
        if waste < least {
            (best, least) = (slices, waste);
            if waste <= WASTE_PERMILLE {
                break;
            }
        }
        slices += 1;
    }
    best
}

/// Slabs of so few slices should waste [`SHORT_WASTE_PERMILLE`] at most.
const SHORT_SLICES: usize = 3;

/// Tail waste, in thousandths of a slab, that is small enough not to look at longer slabs, for short ones and for all. Long slabs
/// are seldom empty and need long runs, so they must save more.
const SHORT_WASTE_PERMILLE: usize = 14;
const WASTE_PERMILLE: usize = 19;

/// What the table says of one class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class {
    /// Bytes of one block.
    pub block_bytes: u32,
    /// Blocks in one slab.
    pub blocks: u32,
    /// Slices that a slab spans.
    pub slices: u16,
}

impl Class {
    /// Bytes of one slab.
    pub const fn slab_bytes(&self) -> usize {
        self.slices as usize * SLICE_BYTES
    }

    /// Bytes at the end of a slab that no block uses.
    pub const fn tail_waste(&self) -> usize {
        self.slab_bytes() - self.blocks as usize * self.block_bytes as usize
    }
}

/// The table: one entry a class, by ascending block length.
pub const TABLE: [Class; CLASSES] = {
    let mut table = [Class { block_bytes: 0, blocks: 0, slices: 0 }; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        let block = block_bytes_of(class);
        let slices = slices_of(block);
        table[class] = Class {
            block_bytes: block as u32,
            blocks: (slices * SLICE_BYTES / block) as u32,
            slices: slices as u16,
        };
        class += 1;
    }
    table
};

static TABLE_STATIC: [Class; CLASSES] = TABLE;

/// The table entry of `class`.
#[inline(always)]
pub fn class(class: usize) -> &'static Class {
    &TABLE_STATIC[class]
}

/// Worst and average slab utilisation over all classes, in hundredths of a percent.
pub const fn utilisation() -> (u32, u32) {
    let (mut worst, mut sum, mut class) = (10_000, 0, 0);
    while class < CLASSES {
        let entry = &TABLE[class];
        let used = entry.blocks as usize * entry.block_bytes as usize;
        let percent = (used * 10_000 / entry.slab_bytes()) as u32;
        if percent < worst {
            worst = percent;
        }
        sum += percent;
        class += 1;
    }
    (worst, sum / CLASSES as u32)
}

const _: () = {
    let (worst, average) = utilisation();
    assert!(worst >= 9_800, "every slab is at least 98 % blocks");
    assert!(average >= 9_950, "slabs are at least 99.5 % blocks on average");
    let mut class = 0;
    while class < CLASSES {
        let block = TABLE[class].block_bytes as usize;
        assert!(class_of(block) == class, "a block length is served by its own class");
        assert!(TABLE[class].slices >= 1 && TABLE[class].blocks >= MIN_BLOCKS as u32);
        if class > 0 {
            let below = TABLE[class - 1].block_bytes as usize;
            assert!(below < block, "block lengths grow");
            assert!(class_of(below + 1) == class, "no gap between classes");
            if block > 128 {
                assert!((block - below - 1) * 8 <= block, "at most 12.5 % internal waste above 128 bytes");
            }
        }
        class += 1;
    }
    assert!(TABLE[CLASSES - 1].block_bytes as usize == MAX_SMALL);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_gets_the_smallest_block_that_holds_it() {
        for size in 0..=MAX_SMALL {
            let class = class_of(size);
            assert_eq!(class, class_of_dynamic(size), "size {size}");
            assert!(TABLE[class].block_bytes as usize >= size);
            if class > 0 {
                assert!((TABLE[class - 1].block_bytes as usize) < size.max(1), "size {size}");
            }
        }
    }

    #[test]
    fn a_request_rounded_up_to_its_alignment_gets_an_aligned_block() {
        for shift in 0..=15 {
            let align = 1_usize << shift;
            let mut size = align;
            while size <= MAX_SMALL {
                let block = TABLE[class_of(size)].block_bytes as usize;
                assert_eq!(block % align, 0, "size {size} align {align} block {block}");
                size += align;
            }
        }
    }
}
