//! TLSF: two-level segregated fit (Masmano, Ripoll, Crespo, Real: "TLSF: a new dynamic memory allocator for real-time
//! systems", 2004).
//!
//! Invariants: a hole is in the list of its bin; bit `s` of `seconds[f]` is set exactly if bin `(f, s)` has a hole, bit `f`
//! of `firsts` exactly if `seconds[f]` is not zero. The first level of a length is its power of two, the second divides
//! that power into [`SECONDS`] equal parts; lengths below [`SECONDS`] have a bin each.
//!
//! Protocol: the head of the request's own bin is tried first, which is the hole vacated last of about this length. Then
//! the first bin that holds nothing shorter than the request is found by two bit scans. Only if that fails too, the few
//! bins between are searched hole by hole, so that a request fails only if no hole could take it. That last step has no
//! bound but the number of holes in those bins; neither the paper nor most implementations take it, and so they refuse
//! requests for which there is room. It is met only by requests that would fail otherwise.

use crate::engine::{Engine, Policy};
use crate::node::{NIL, Node};

/// Binary logarithm of the number of bins in a power of two.
const SECOND_BITS: u32 = 5;
const SECONDS: usize = 1 << SECOND_BITS;
/// Level 0 for the lengths below [`SECONDS`], then one level for each power of two up to 2⁶³.
const FIRSTS: usize = 64 - SECOND_BITS as usize + 1;

/// Two-level segregated fit: constant time for placing and vacating, whatever the number of spans.
///
/// A hole is chosen from the bin of lengths just above the request (32 bins to a power of two), so a span comes from a
/// hole that is at most about 6 % longer than the best one, unless only longer ones are left.
pub type Tlsf<A = allocator_api2::alloc::Global> = Engine<Bins, A>;

/// The index of [`Tlsf`]: lists of holes by length, under two levels of bitmaps.
#[derive(Clone)]
pub struct Bins {
    shift: u32,
    firsts: u64,
    seconds: [u32; FIRSTS],
    heads: [u32; FIRSTS * SECONDS],
}

/// The bin of lengths that `len` belongs to.
#[inline(always)]
const fn bin_of(len: u64) -> usize {
    // Zero for the short lengths, without a branch, since whether a length is short is not to be predicted.
    let shift = (len | SECONDS as u64).ilog2() - SECOND_BITS;
    // What is left of a longer one has its top bit set, which adds the level that the short lengths take.
    shift as usize * SECONDS + (len >> shift) as usize
}

/// The first bin whose lengths are all at least `len`, which is not zero; one past the last if there is none.
#[inline(always)]
const fn bin_above(len: u64) -> usize {
    // The bin after the one of the next shorter length: the own bin if `len` is its shortest.
    bin_of(len - 1) + 1
}

impl Bins {
    /// Binary logarithm of the unit that all lengths are multiples of.
    #[inline(always)]
    pub(crate) const fn shift(&self) -> u32 {
        self.shift
    }

    #[inline(always)]
    fn bin(&self, len: u64) -> usize {
        bin_of(len >> self.shift)
    }

    /// The first bin at or above `from` that has a hole.
    #[inline(always)]
    fn occupied(&self, from: usize) -> Option<usize> {
        let (first, second) = (from / SECONDS, from % SECONDS);
        let here = self.seconds.get(first)? & (u32::MAX << second);
        if here != 0 {
            return Some(first * SECONDS + here.trailing_zeros() as usize);
        }
        let above = self.firsts & (u64::MAX << first << 1);
        if above == 0 {
            return None;
        }
        let first = above.trailing_zeros() as usize;
        Some(first * SECONDS + self.seconds[first].trailing_zeros() as usize)
    }

    /// Whether there is a hole in the bins from that of `from` up to, not including, that of `to`, which are lengths of one
    /// power of two.
    #[inline(always)]
    pub(crate) fn any_between(&self, from: u64, to: u64) -> bool {
        let (low, high) = (self.bin(from), self.bin(to));
        let below = |bin: usize| (1u32 << (bin % SECONDS)) - 1;
        self.seconds[high / SECONDS] & below(high) & !below(low) != 0
    }

    #[inline(always)]
    fn link(&mut self, nodes: &mut [Node<()>], hole: u32, bin: usize) {
        let head = core::mem::replace(&mut self.heads[bin], hole);
        self.seconds[bin / SECONDS] |= 1 << (bin % SECONDS);
        self.firsts |= 1 << (bin / SECONDS);
        // No branch on whether the list was empty, which is not to be predicted: without a next hole, this one writes into its
        // own record what is overwritten right away.
        nodes[if head == NIL { hole } else { head } as usize].state = hole;
        let record = &mut nodes[hole as usize];
        (record.link, record.state) = (head, NIL);
    }

    #[inline(always)]
    fn unlink(&mut self, nodes: &mut [Node<()>], hole: u32, bin: usize) {
        let record = &nodes[hole as usize];
        let (after, before) = (record.link, record.state);
        // As in `link`: without a next hole, into its own record, which has that already.
        nodes[if after == NIL { hole } else { after } as usize].state = before;
        if before != NIL {
            nodes[before as usize].link = after;
            return;
        }
        self.heads[bin] = after;
        if after == NIL {
            let seconds = &mut self.seconds[bin / SECONDS];
            *seconds &= !(1 << (bin % SECONDS));
            if *seconds == 0 {
                self.firsts &= !(1 << (bin / SECONDS));
            }
        }
    }

    /// Looks at every hole of the bins from `from` up to, not including, `to`.
    #[cold]
    fn search(&self, nodes: &[Node<()>], from: usize, to: usize, len: u64, align: u64) -> Option<(u32, u64)> {
        let mut bin = self.occupied(from);
        while let Some(at) = bin.filter(|&at| at < to) {
            let mut hole = self.heads[at];
            while hole != NIL {
                let record = &nodes[hole as usize];
                if let Some(offset) = record.fit(len, align) {
                    return Some((hole, offset));
                }
                hole = record.link;
            }
            bin = self.occupied(at + 1);
        }
        None
    }
}

impl Policy for Bins {
    type Extra = ();

    fn new(shift: u32) -> Self {
        Self { shift, firsts: 0, seconds: [0; FIRSTS], heads: [NIL; FIRSTS * SECONDS] }
    }

    #[inline(always)]
    fn insert(&mut self, nodes: &mut [Node<()>], hole: u32) {
        let bin = self.bin(nodes[hole as usize].len);
        self.link(nodes, hole, bin);
    }

    #[inline(always)]
    fn remove(&mut self, nodes: &mut [Node<()>], hole: u32, len: u64) {
        let bin = self.bin(len);
        self.unlink(nodes, hole, bin);
    }

    #[inline(always)]
    fn resize(&mut self, nodes: &mut [Node<()>], hole: u32, len: u64) {
        let (old, new) = (self.bin(len), self.bin(nodes[hole as usize].len));
        if old != new {
            self.unlink(nodes, hole, old);
            self.link(nodes, hole, new);
        }
    }

    #[inline(always)]
    fn find(&mut self, nodes: &[Node<()>], len: u64, align: u64) -> Option<(u32, u64)> {
        let own = self.bin(len);
        let head = self.heads[own];
        if head != NIL
            && let Some(offset) = nodes[head as usize].fit(len, align)
        {
            return Some((head, offset));
        }
        let granule = 1 << self.shift;
        // At this length any hole has room for the padding too. One that long cannot exist if the sum is too large.
        let ample = len.checked_add(align - granule);
        let above = ample.map_or(FIRSTS * SECONDS, |ample| bin_above(ample >> self.shift));
        if let Some(bin) = self.occupied(above) {
            let hole = self.heads[bin];
            let offset = nodes[hole as usize].fit(len, align)?;
            return Some((hole, offset));
        }
        self.search(nodes, own, above, len, align)
    }

    fn largest(&self, nodes: &[Node<()>]) -> u64 {
        if self.firsts == 0 {
            return 0;
        }
        let first = 63 - self.firsts.leading_zeros() as usize;
        let second = 31 - self.seconds[first].leading_zeros() as usize;
        let (mut hole, mut largest) = (self.heads[first * SECONDS + second], 0);
        while hole != NIL {
            let record = &nodes[hole as usize];
            largest = largest.max(record.len);
            hole = record.link;
        }
        largest
    }
}

#[cfg(test)]
mod tests {
    use super::{FIRSTS, SECONDS, bin_above, bin_of};

    fn edges() -> impl Iterator<Item = u64> {
        (0..64).flat_map(|power| {
            let base = 1u64 << power;
            let step = base / SECONDS as u64;
            [
                base - 1,
                base,
                base + 1,
                base + step,
                base + step.saturating_sub(1),
                base + step * 31 + step / 2,
            ]
        })
    }

    #[test]
    fn bins_are_ordered_by_length_and_lie_in_the_table() {
        let mut lengths: Vec<u64> =
            (1..5000).chain(edges()).chain([u64::MAX]).filter(|&len| len != 0).collect();
        lengths.sort_unstable();
        let bins: Vec<usize> = lengths.iter().map(|&len| bin_of(len)).collect();
        assert!(bins.is_sorted(), "a longer hole is never in a lower bin");
        assert_eq!(*bins.last().unwrap(), FIRSTS * SECONDS - 1);
    }

    #[test]
    fn the_bin_above_holds_no_length_below_the_request_and_is_the_first_such() {
        for len in (1..5000).chain(edges()).filter(|&len| len != 0) {
            let bin = bin_above(len);
            assert!(bin >= bin_of(len) && bin <= bin_of(len) + 1, "{len}");
            let shortest_is_enough = len == 1 || bin_of(len - 1) != bin_of(len);
            assert_eq!(bin == bin_of(len), shortest_is_enough, "{len}");
        }
    }
}
