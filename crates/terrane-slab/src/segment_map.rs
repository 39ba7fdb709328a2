//! Is this address ours? One map for the whole process, with two bits for every segment of the address space.
//!
//! Invariant: a segment's *head* bit is set from before the first block in it is handed out until its domain is destroyed;
//! the *body* bits are set for the further segments of a huge span while the span exists. The map is as large as the
//! address space demands (1 MiB of zeros for 47 bits) and present only where a bit was ever set.

use crate::segment::{SEGMENT_BYTES, SEGMENT_SHIFT};
use core::sync::atomic::{AtomicU64, Ordering};

const ADDRESS_BITS: u32 = if cfg!(target_pointer_width = "64") { 47 } else { 32 };
const SEGMENTS: usize = 1 << (ADDRESS_BITS - SEGMENT_SHIFT);
const WORDS: usize = SEGMENTS / 32;

// The map outlives every loom execution and is not part of any protocol, so it is made of the machine's atomics always.
static MAP: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];

/// What the map says of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Not in any segment.
    Foreign,
    /// In a segment with a header of its own.
    Head,
    /// In a further segment of a huge span.
    Body,
}

const HEAD: u64 = 1;
const BODY: u64 = 2;

fn set(address: usize, segments: usize, bits: u64) {
    for index in address >> SEGMENT_SHIFT..(address >> SEGMENT_SHIFT) + segments {
        if index < SEGMENTS {
            let shift = index % 32 * 2;
            // Two steps where one would do: a reader between them sees a foreign address, which no live block is.
            MAP[index / 32].fetch_and(!(3 << shift), Ordering::Relaxed);
            MAP[index / 32].fetch_or(bits << shift, Ordering::Relaxed);
        }
    }
}

/// A segment with a header starts at `address`.
pub(crate) fn insert_head(address: usize) {
    set(address, 1, HEAD);
}

/// The `segments` segments from `address` on continue a huge span.
pub(crate) fn insert_body(address: usize, segments: usize) {
    set(address, segments, BODY);
}

/// The `segments` segments from `address` on are nobody's.
pub(crate) fn remove(address: usize, segments: usize) {
    set(address, segments, 0);
}

/// Looks `address` up: one load.
#[inline]
pub fn place(address: usize) -> Place {
    let index = address >> SEGMENT_SHIFT;
    if index >= SEGMENTS {
        return Place::Foreign;
    }
    match MAP[index / 32].load(Ordering::Relaxed) >> (index % 32 * 2) & 3 {
        HEAD => Place::Head,
        BODY => Place::Body,
        _ => Place::Foreign,
    }
}

/// The start of the segment whose header describes `address`: its own, or the first of its huge span. A block never
/// starts at the start of a segment that has a header, so an address there belongs to the span before it, if any. Linear in the
/// segments between the two.
pub fn header_of(address: usize) -> Option<usize> {
    let mut segment = address & !(SEGMENT_BYTES - 1);
    loop {
        match place(segment) {
            Place::Head => return Some(segment),
            Place::Body => segment -= SEGMENT_BYTES,
            Place::Foreign => return None,
        }
    }
}
