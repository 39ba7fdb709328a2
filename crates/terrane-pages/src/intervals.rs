//! A set of addresses, kept as ranges: [`Intervals`].
//!
//! Invariant: the ranges are not empty, ascend, and neither overlap nor touch; `total` is the sum of their lengths.

use core::ops::Range;
use std::collections::BTreeMap;

/// A set of numbers that changes by whole ranges.
#[derive(Debug, Default)]
pub(crate) struct Intervals {
    /// The end of each range, by its start.
    ends: BTreeMap<usize, usize>,
    total: usize,
}

impl Intervals {
    /// How many numbers are in the set.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// How many numbers of `range` are in the set.
    pub(crate) fn inside(&self, range: &Range<usize>) -> usize {
        self.overlapping(range).map(|part| part.end.min(range.end) - part.start.max(range.start)).sum()
    }

    /// The ranges that share a number with `range`, last one first.
    fn overlapping(&self, range: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let first = range.start;
        self.ends
            .range(..range.end)
            .rev()
            .map(|(&start, &end)| start..end)
            .take_while(move |part| part.end > first)
    }

    /// Takes every number of `range` out; how many there were.
    pub(crate) fn remove(&mut self, range: Range<usize>) -> usize {
        if range.is_empty() {
            return 0;
        }
        let parts: std::vec::Vec<_> = self.overlapping(&range).collect();
        let mut removed = 0;
        for part in parts {
            self.ends.remove(&part.start);
            if part.start < range.start {
                self.ends.insert(part.start, range.start);
            }
            if part.end > range.end {
                self.ends.insert(range.end, part.end);
            }
            removed += part.end.min(range.end) - part.start.max(range.start);
        }
        self.total -= removed;
        removed
    }

    /// Puts every number of `range` in; how many are new.
    pub(crate) fn insert(&mut self, range: Range<usize>) -> usize {
        if range.is_empty() {
            return 0;
        }
        let len = range.end - range.start;
        let new = len - self.remove(range.clone());
        let Range { mut start, mut end } = range;
        if let Some((&before, _)) = self.ends.range(..start).next_back().filter(|&(_, &e)| e == start) {
            start = before;
        }
        if let Some(after) = self.ends.remove(&end) {
            end = after;
        }
        self.ends.insert(start, end);
        self.total += len;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_behave_as_the_numbers_in_them(
            steps in prop::collection::vec((any::<bool>(), 0usize..60, 0usize..20), 1..80)
        ) {
            let mut set = Intervals::default();
            let mut model = BTreeSet::new();
            for (put, start, len) in steps {
                let range = start..start + len;
                let there = range.clone().filter(|n| model.contains(n)).count();
                prop_assert_eq!(set.inside(&range), there);
                if put {
                    prop_assert_eq!(set.insert(range.clone()), len - there);
                    model.extend(range);
                } else {
                    prop_assert_eq!(set.remove(range.clone()), there);
                    model.retain(|n| !range.contains(n));
                }
                prop_assert_eq!(set.total(), model.len());
                let mut last = None;
                for (&start, &end) in &set.ends {
                    prop_assert!(start < end && last.is_none_or(|last| last < start));
                    last = Some(end);
                }
            }
        }
    }
}
