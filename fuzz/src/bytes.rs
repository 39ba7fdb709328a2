//! Numbers from the fuzzer's bytes; when those are used up, zeros and the end.

use std::alloc::Layout;

/// A reader over the fuzzer's bytes.
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// A reader from the first byte.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether all bytes have been read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte, 0 at the end.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number of `count` bytes, at most 8, the first the highest.
    pub fn number(&mut self, count: usize) -> u64 {
        (0..count.min(8)).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let number = if bound <= 256 { self.number(1) } else { self.number(3) };
        usize::try_from(number).unwrap_or(0).checked_rem(bound).unwrap_or(0)
    }

    /// A size in bytes: most are small, some lie beside a power of two, few go up to `isize::MAX`.
    pub fn size(&mut self) -> usize {
        let shape = self.byte();
        let number = usize::try_from(self.number(2)).unwrap_or(0);
        match shape {
            0..=127 => number % 1100,
            128..=191 => number,
            192..=223 => (1_usize << (number % 24)).wrapping_add(number >> 8).wrapping_sub(128).min(1 << 24),
            224..=245 => number << 8,
            246..=251 => (1_usize << (24 + number % 38)).saturating_add(number >> 6).saturating_sub(512),
            252..=255 => (isize::MAX as usize) - number,
        }
    }

    /// An alignment: most are small, few go up to 1 GiB.
    pub fn align(&mut self) -> usize {
        match self.byte() {
            byte @ 0..=159 => 1 << (byte % 5),
            byte @ 160..=239 => 1 << (byte % 14),
            byte => 1 << (byte % 31),
        }
    }

    /// A layout; sizes that the alignment does not allow are lowered to the largest that it does.
    pub fn layout(&mut self) -> Layout {
        let (size, align) = (self.size(), self.align());
        let largest = (isize::MAX as usize) - (align - 1);
        Layout::from_size_align(size.min(largest), align).expect("a power of two, and a size that fits it")
    }
}
