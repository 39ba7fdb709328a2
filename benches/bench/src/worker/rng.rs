//! A small deterministic generator, so that every allocator is asked for the same blocks in the same order.
//!
//! Invariant: the sequence depends on the seed alone.

/// Steele, Lea and Flood's SplitMix64 (OOPSLA 2014): one addition, two multiplications, no state but a counter.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    /// A generator whose sequence is fixed by `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    /// The next 64 random bits.
    #[inline(always)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be zero (Lemire's multiplication, 2019; the bias is below 2⁻³²).
    #[inline(always)]
    pub fn below(&mut self, bound: usize) -> usize {
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }

    /// A number in `low..=high`.
    #[inline(always)]
    pub fn within(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// A number in `low..=high`, the lower half about three times as likely: the product of two uniform draws.
    #[inline(always)]
    pub fn skewed(&mut self, low: usize, high: usize) -> usize {
        let bits = self.next();
        let span = (high - low + 1) as u64;
        let product = ((bits >> 32) * (bits & 0xFFFF_FFFF)) >> 32;
        low + ((product * span) >> 32) as usize
    }

    /// A number in `low..high`, spread evenly over the logarithm.
    #[inline(always)]
    pub fn log_uniform(&mut self, low: usize, high: usize) -> usize {
        let doublings = (high / low).ilog2() as usize;
        let base = low << self.below(doublings);
        base + self.below(base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_within_their_bounds_and_reach_both_ends() {
        let mut rng = Rng::new(1);
        let mut seen = [0u32; 10];
        for _ in 0..10_000 {
            seen[rng.within(3, 12) - 3] += 1;
            let skewed = rng.skewed(16, 512);
            assert!((16..=512).contains(&skewed), "{skewed}");
            let log = rng.log_uniform(64 << 10, 32 << 20);
            assert!((64 << 10..32 << 20).contains(&log), "{log}");
        }
        assert!(seen.iter().all(|&n| n > 800), "{seen:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_sequence() {
        let (mut a, mut b) = (Rng::new(7), Rng::new(7));
        assert!((0..100).all(|_| a.next() == b.next()));
    }
}
