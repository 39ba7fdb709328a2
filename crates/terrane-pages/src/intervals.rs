//! A set of addresses, kept as ranges: [`Intervals`].
//!
//! Invariant: the ranges are not empty, ascend, and neither overlap nor touch; `total` is the sum of their lengths.

use core::ops::Range;
use std::collections::BTreeMap;

/// A set of numbers that changes by whole ranges.
#[derive(Debug, Default)]
pub(crate) struct Intervals {
    /// The end of each range, by its start.
    ends: BTreeMap<u64, u64>,
    total: u64,
}

impl Intervals {
    /// The first range of at least `len` numbers.
    pub(crate) fn first_of(&self, len: u64) -> Option<Range<u64>> {
        self.ends.iter().map(|(&start, &end)| start..end).find(|range| range.end - range.start >= len)
    }

    /// The last range.
    pub(crate) fn last(&self) -> Option<Range<u64>> {
        self.ends.last_key_value().map(|(&start, &end)| start..end)
    }

    /// How many numbers are in the set.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// How many numbers of `range` are in the set.
    pub(crate) fn inside(&self, range: &Range<u64>) -> u64 {
        self.overlapping(range).map(|part| part.end.min(range.end) - part.start.max(range.start)).sum()
    }

    /// The ranges that share a number with `range`, last one first.
    fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = range.start;
        self.ends
            .range(..range.end)
            .rev()
            .map(|(&start, &end)| start..end)
            .take_while(move |part| part.end > first)
    }

    /// Takes every number of `range` out; how many there were.
    pub(crate) fn remove(&mut self, range: Range<u64>) -> u64 {
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
    pub(crate) fn insert(&mut self, range: Range<u64>) -> u64 {
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
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn ranges_behave_as_the_numbers_in_them(
            steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 1..80)
        ) {
            let mut set = Intervals::default();
            let mut model = BTreeSet::new();
            for (put, start, len) in steps {
                let range = start..start + len;
                let there = range.clone().filter(|n| model.contains(n)).count() as u64;
                prop_assert_eq!(set.inside(&range), there);
                if put {
                    prop_assert_eq!(set.insert(range.clone()), len - there);
                    model.extend(range);
                } else {
                    prop_assert_eq!(set.remove(range.clone()), there);
                    model.retain(|n| !range.contains(n));
                }
                prop_assert_eq!(set.total(), model.len() as u64);
                let runs: std::vec::Vec<_> = set.ends.iter().map(|(&start, &end)| start..end).collect();
                prop_assert_eq!(set.last(), runs.last().cloned());
                prop_assert_eq!(set.first_of(len), runs.into_iter().find(|run| run.end - run.start >= len));
                let mut last = None;
                for (&start, &end) in &set.ends {
                    prop_assert!(start < end && last.is_none_or(|last| last < start));
                    last = Some(end);
                }
            }
        }
    }
}
