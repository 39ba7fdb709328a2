//! Bitmaps whose set bits are things to be had: segments of an arena, slices of a segment.
//!
//! Invariant: a bit is set while its thing is free. Whoever clears a bit, by [`claim`] or [`claim_run`], has the thing
//! alone until it sets the bit again by [`release`].
//!
//! Protocol: one word is claimed by one compare-exchange. A run that spans words is claimed word by word from low to
//! high; if a later word turns out to be short of a bit, the earlier words are released again and the search goes on.
//! Claims acquire and releases release, so what the last holder wrote to the thing's memory is visible to the next.

use crate::fault::{Fault, order, planted};
use crate::sharing::Sharing;
use terrane_core::sync::atomic::{AtomicU64, Ordering};

/// The bits of word `word` that belong to the run of `len` bits at `start`.
const fn mask(word: usize, start: usize, len: usize) -> u64 {
    let (low, high) = (word * 64, word * 64 + 64);
    let from = start.saturating_sub(low);
    let end = if start + len < high { start + len - low } else { 64 };
    let ones = u64::MAX >> (64 - (end - from));
    ones << from
}

/// Claims the run of `len ≥ 1` bits at `start` if all of them are set.
pub fn claim_run<K: Sharing>(words: &[AtomicU64], start: usize, len: usize) -> bool {
    let (first, last) = (start / 64, (start + len - 1) / 64);
    for word in first..=last {
        let bits = mask(word, start, len);
        let mut seen = words[word].load(Ordering::Relaxed);
        loop {
            if seen & bits != bits {
                if word > first && !planted(Fault::RunKept) {
                    release::<K>(words, start, word * 64 - start);
                }
                return false;
            }
            match K::compare_exchange(&words[word], seen, seen & !bits, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
    }
    true
}

/// Gives the run of `len ≥ 1` bits at `start` back.
pub fn release<K: Sharing>(words: &[AtomicU64], start: usize, len: usize) {
    for word in start / 64..=(start + len - 1) / 64 {
        let bits = mask(word, start, len);
        let before = K::fetch_or(&words[word], bits, order(Fault::ReleaseRelaxed, Ordering::Release));
        debug_assert_eq!(before & bits, 0, "released what was free already");
    }
}

/// Whether all bits of the run are set, as of some moment during the call.
pub fn all_set(words: &[AtomicU64], start: usize, len: usize) -> bool {
    (start / 64..=(start + len - 1) / 64).all(|word| {
        let bits = mask(word, start, len);
        words[word].load(Ordering::Relaxed) & bits == bits
    })
}

/// Clears the bits of the run, whatever they were.
pub fn clear<K: Sharing>(words: &[AtomicU64], start: usize, len: usize) {
    for word in start / 64..=(start + len - 1) / 64 {
        K::fetch_and(&words[word], !mask(word, start, len), Ordering::Relaxed);
    }
}

/// Sets the bits of the run, whatever they were; whether they were all clear.
pub fn set<K: Sharing>(words: &[AtomicU64], start: usize, len: usize) -> bool {
    let mut clear = true;
    for word in start / 64..=(start + len - 1) / 64 {
        let bits = mask(word, start, len);
        clear &= K::fetch_or(&words[word], bits, order(Fault::HintRelaxed, Ordering::Release)) & bits == 0;
    }
    clear
}

/// First set bit at or above `from`, as of some moment during the call.
pub fn next_set(words: &[AtomicU64], from: usize) -> Option<usize> {
    // Acquire: what was written before a bit was set is visible to who finds it set.
    next_set_of(&|word| words[word].load(Ordering::Acquire), words.len(), from)
}

fn next_set_of(bits: &impl Fn(usize) -> u64, words: usize, from: usize) -> Option<usize> {
    let mut word = from / 64;
    if word >= words {
        return None;
    }
    let mut seen = bits(word) & (u64::MAX << (from % 64));
    loop {
        if seen != 0 {
            return Some(word * 64 + seen.trailing_zeros() as usize);
        }
        word += 1;
        if word == words {
            return None;
        }
        seen = bits(word);
    }
}

/// Length of the run of set bits at `from`, counted up to `enough`.
fn run_len_of(bits: &impl Fn(usize) -> u64, words: usize, from: usize, enough: usize) -> usize {
    let mut len = 0;
    while len < enough && (from + len) / 64 < words {
        let (word, bit) = ((from + len) / 64, (from + len) % 64);
        let ones = (bits(word) >> bit).trailing_ones() as usize;
        len += ones;
        if ones < 64 - bit {
            break;
        }
    }
    len.min(enough)
}

/// Finds and claims the lowest run of `len ≥ 1` set bits whose first bit, plus `offset`, is a multiple of `align`; its
/// first bit. The search is linear in the words and sees the map as it changes.
pub fn claim<K: Sharing>(words: &[AtomicU64], len: usize, align: usize, offset: usize) -> Option<usize> {
    claim_low_of::<K>(words, &|word| words[word].load(Ordering::Acquire), len, align, offset)
}

/// The same among the bits that are set in `also` too.
pub fn claim_among<K: Sharing>(
    words: &[AtomicU64],
    also: &[AtomicU64],
    len: usize,
    align: usize,
) -> Option<usize> {
    let both = |word: usize| words[word].load(Ordering::Acquire) & also[word].load(Ordering::Relaxed);
    claim_low_of::<K>(words, &both, len, align, 0)
}

fn claim_low_of<K: Sharing>(
    words: &[AtomicU64],
    bits: &impl Fn(usize) -> u64,
    len: usize,
    align: usize,
    offset: usize,
) -> Option<usize> {
    let mut from = 0;
    while let Some(set) = next_set_of(bits, words.len(), from) {
        let start = (set + offset).next_multiple_of(align) - offset;
        let have = run_len_of(bits, words.len(), start, len);
        if have == len && claim_run::<K>(words, start, len) {
            return Some(start);
        }
        // The bit after the run is clear, or somebody was faster: go on behind it.
        from = start + have.max(1);
    }
    None
}

/// Finds and claims the highest run of `len` set bits within one word, `1 ≤ len ≤ 64`, first among those that are set in
/// `first` too; its first bit.
pub fn claim_high<K: Sharing>(words: &[AtomicU64], first: &[AtomicU64], len: usize) -> Option<usize> {
    for only_first in [true, false] {
        for word in (0..words.len()).rev() {
            loop {
                let mut starts = words[word].load(Ordering::Acquire);
                if only_first {
                    starts &= first[word].load(Ordering::Relaxed);
                }
                // Fold the word onto itself until a set bit means: this bit and the `len − 1` above it are set.
                let mut folded = 1;
                while folded < len && starts != 0 {
                    let step = folded.min(len - folded);
                    starts &= starts >> step;
                    folded += step;
                }
                if starts == 0 {
                    break;
                }
                let start = word * 64 + starts.ilog2() as usize;
                if claim_run::<K>(words, start, len) {
                    return Some(start);
                }
            }
        }
    }
    None
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sharing::{Local, Shared};
    use proptest::prelude::*;
    use std::vec::Vec;

    fn words(bits: &[bool]) -> Vec<AtomicU64> {
        bits.chunks(64)
            .map(|chunk| AtomicU64::new(chunk.iter().enumerate().map(|(i, &b)| (b as u64) << i).sum()))
            .collect()
    }

    fn bits(words: &[AtomicU64], n: usize) -> Vec<bool> {
        (0..n).map(|i| words[i / 64].load(Ordering::Relaxed) >> (i % 64) & 1 == 1).collect()
    }

    proptest! {
        #[test]
        fn a_claim_is_the_lowest_aligned_run_and_changes_nothing_else(
            start in proptest::collection::vec(proptest::bool::weighted(0.8), 256),
            len in 1_usize..150, shift in 0_u32..5, offset in 0_usize..8,
        ) {
            let align = 1 << shift;
            let map = words(&start);
            let want = (0..256 - len + 1).find(|&i| (i + offset) % align == 0 && start[i..i + len].iter().all(|&b| b));
            let got = claim::<Shared>(&map, len, align, offset);
            prop_assert_eq!(got, want);
            let mut after = start.clone();
            if let Some(i) = want {
                after[i..i + len].fill(false);
            }
            prop_assert_eq!(bits(&map, 256), after);
            if let Some(i) = want {
                release::<Local>(&map, i, len);
                prop_assert_eq!(bits(&map, 256), start);
            }
        }
    }

    proptest! {
        #[test]
        fn a_high_claim_is_the_highest_run_of_a_word_and_prefers_the_bits_of_the_other_map(
            free in proptest::collection::vec(proptest::bool::weighted(0.7), 192),
            dirty in proptest::collection::vec(proptest::bool::weighted(0.7), 192),
            len in 1_usize..=20,
        ) {
            let map = words(&free);
            let fits = |i: &usize, both: bool| {
                i / 64 == (i + len - 1) / 64 && (*i..i + len).all(|j| free[j] && (!both || dirty[j]))
            };
            let highest = |both| (0..=192 - len).rev().find(|i| fits(i, both));
            let want = highest(true).or_else(|| highest(false));
            prop_assert_eq!(claim_high::<Shared>(&map, &words(&dirty), len), want);
            let mut after = free.clone();
            if let Some(i) = want {
                after[i..i + len].fill(false);
            }
            prop_assert_eq!(bits(&map, 192), after);
        }
    }

    #[test]
    fn a_run_that_is_short_of_a_bit_in_its_last_word_leaves_the_first_words_alone() {
        let mut start = [true; 192];
        start[150] = false;
        let map = words(&start);
        assert!(!claim_run::<Shared>(&map, 10, 150));
        assert_eq!(bits(&map, 192), start);
        assert!(claim_run::<Shared>(&map, 10, 140));
        assert_eq!(run_len_of(&|word| map[word].load(Ordering::Relaxed), 3, 151, 100), 41);
    }
}
