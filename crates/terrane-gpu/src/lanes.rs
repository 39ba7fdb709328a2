//! Per-stream state, found by the stream's key without a lock.
//!
//! Invariant: an entry, once made, stays at its place until the table is dropped, so references to it can be kept while
//! other threads add entries. Keys are small and dense (see [`Stream`](crate::Stream)), so the table is a few arrays of
//! doubling length, each made when its first entry is.

use std::sync::OnceLock;

/// Entries in the first array.
const FIRST: u32 = 32;
/// Arrays: 32, 64, 128, … entries; together they hold every key below 2³² − 32.
const ARRAYS: usize = 27;

/// A table from stream keys to per-stream state.
pub(crate) struct LaneTable<T> {
    arrays: [OnceLock<Box<[OnceLock<T>]>>; ARRAYS],
}

const fn place(key: u32) -> (usize, usize) {
    let n = key as u64 + FIRST as u64;
    let array = n.ilog2() - FIRST.ilog2();
    (array as usize, (n - ((FIRST as u64) << array)) as usize)
}

impl<T> LaneTable<T> {
    pub(crate) const fn new() -> Self {
        Self { arrays: [const { OnceLock::new() }; ARRAYS] }
    }

    /// The entry of `key`, made by `make` if it is not there yet.
    #[inline]
    pub(crate) fn get_or(&self, key: u32, make: impl FnOnce() -> T) -> &T {
        let (array, index) = place(key);
        if let Some(entry) = self.arrays[array].get().and_then(|entries| entries[index].get()) {
            return entry;
        }
        self.arrays[array].get_or_init(|| (0..(FIRST as usize) << array).map(|_| OnceLock::new()).collect())
            [index]
            .get_or_init(make)
    }

    /// The entry of `key`, if there is one.
    pub(crate) fn get(&self, key: u32) -> Option<&T> {
        let (array, index) = place(key);
        self.arrays[array].get()?[index].get()
    }

    /// All entries with their keys, in the order of the keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.arrays.iter().enumerate().flat_map(|(array, entries)| {
            let first = (FIRST << array) - FIRST;
            entries
                .get()
                .into_iter()
                .flat_map(|entries| entries.iter().enumerate())
                .filter_map(move |(index, entry)| Some((first + index as u32, entry.get()?)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_place_of_its_own_and_the_order_is_kept() {
        let mut last = (0, usize::MAX);
        for key in 0..100_000 {
            let next = place(key);
            assert!(next == (last.0, last.1.wrapping_add(1)) || next == (last.0 + 1, 0), "{last:?} {next:?}");
            last = next;
        }
        assert_eq!(place(u32::MAX - FIRST).0, ARRAYS - 1);
    }

    #[test]
    fn entries_are_made_once_and_listed_by_key() {
        let table = LaneTable::new();
        for key in [70, 3, 31, 32, 70, 3] {
            assert_eq!(*table.get_or(key, || key * 10), key * 10);
        }
        assert_eq!(*table.get_or(70, || 0), 700);
        assert!(table.get(4).is_none());
        let listed: Vec<(u32, u32)> = table.iter().map(|(k, v)| (k, *v)).collect();
        assert_eq!(listed, [(3, 30), (31, 310), (32, 320), (70, 700)]);
    }
}
