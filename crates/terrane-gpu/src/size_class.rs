//! Length classes of a stream's list of free spans.
//!
//! Invariant: a span in class `c` is at least as long as every request that is rounded up to `c`. Lengths keep six
//! significant bits above 64 granules, so rounding a request up costs at most 1/32 of it, 1/64 on average.

/// Bytes that every length and offset is a multiple of.
pub(crate) const GRANULE: u64 = 256;
/// Granules up to which every length is a class of its own.
const EXACT: u64 = 64;
/// Classes per doubling above.
const STEPS: u64 = 32;
/// Longest length with a class: 2⁴⁸ granules.
const MAX_SHIFT: u64 = 42;
/// Number of classes.
pub(crate) const CLASSES: usize = (EXACT + (MAX_SHIFT + 1) * STEPS) as usize;
/// Longest length that can be asked for, in bytes.
pub(crate) const MAX_LEN: u64 = 1 << 55;

/// The class and the length, in bytes, that a request of `len` bytes is rounded up to.
#[inline]
pub(crate) const fn round_up(len: u64) -> (usize, u64) {
    let granules = len.div_ceil(GRANULE);
    if granules < EXACT {
        return (granules as usize, granules * GRANULE);
    }
    let shift = granules.ilog2() as u64 - STEPS.ilog2() as u64;
    let rounded = granules.next_multiple_of(1 << shift);
    (class_of(rounded), rounded * GRANULE)
}

/// The longest class that a span of `len` bytes can serve.
#[inline]
pub(crate) const fn round_down(len: u64) -> usize {
    class_of(len / GRANULE)
}

#[inline]
const fn class_of(granules: u64) -> usize {
    if granules < EXACT {
        return granules as usize;
    }
    let shift = granules.ilog2() as u64 - STEPS.ilog2() as u64;
    (EXACT + (shift - 1) * STEPS + ((granules >> shift) - STEPS)) as usize
}

const _: () = assert!(round_up(MAX_LEN).0 < CLASSES, "every length that can be asked for has a class");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_of_the_rounded_length_serves_every_request_of_its_class() {
        let mut lens: Vec<u64> = (1..40_000).map(|i| i * 97).collect();
        lens.extend((8..55).flat_map(|bit| (-3i64..=3).map(move |d| ((1i64 << bit) + d) as u64)));
        for len in lens {
            let (class, rounded) = round_up(len);
            assert!(rounded >= len && rounded.is_multiple_of(GRANULE));
            assert!(rounded - len < GRANULE || (rounded - len) * 32 <= len, "{len} became {rounded}");
            assert_eq!(round_down(rounded), class, "{len}");
            assert!(round_down(rounded - GRANULE) < class, "a shorter span is in a lower class");
        }
    }
}
