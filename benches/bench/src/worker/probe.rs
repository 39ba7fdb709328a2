//! Timing of single operations, sampled, and compiled to nothing where only the total counts.
//!
//! Invariant: [`Quiet`] adds no instruction to a workload; [`Sampled`] times about one operation in 64, at random
//! distances so that no pattern of the workload hides from it or lines up with it. Samples go to a fixed table:
//! recording never allocates.

use std::time::Instant;

/// Watches the allocations and frees of one thread.
pub trait Probe: Send + 'static {
    /// A probe for one more thread.
    fn fresh() -> Self;
    /// Runs one allocation.
    fn alloc<R>(&mut self, operation: impl FnOnce() -> R) -> R;
    /// Runs one free.
    fn free<R>(&mut self, operation: impl FnOnce() -> R) -> R;
    /// The samples, where this probe takes any.
    fn samples(self) -> Option<Samples>;
}

/// No timing.
pub struct Quiet;

impl Probe for Quiet {
    fn fresh() -> Self {
        Self
    }

    #[inline(always)]
    fn alloc<R>(&mut self, operation: impl FnOnce() -> R) -> R {
        operation()
    }

    #[inline(always)]
    fn free<R>(&mut self, operation: impl FnOnce() -> R) -> R {
        operation()
    }

    fn samples(self) -> Option<Samples> {
        None
    }
}

/// Latencies of one thread: allocations and frees.
pub struct Samples {
    /// Ticks of single allocations.
    pub alloc: Histogram,
    /// Ticks of single frees.
    pub free: Histogram,
}

/// Times one operation in about 64.
pub struct Sampled {
    samples: Box<Samples>,
    until_next: u32,
    random: u32,
}

impl Sampled {
    #[inline(always)]
    fn time<R>(&mut self, pick: fn(&mut Samples) -> &mut Histogram, operation: impl FnOnce() -> R) -> R {
        if self.until_next > 0 {
            self.until_next -= 1;
            return operation();
        }
        // Marsaglia's xorshift (2003): the gap to the next sample is 1 to 127 operations.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.until_next = self.random & 127;
        let start = ticks();
        let result = operation();
        let end = ticks();
        pick(&mut self.samples).add(end.wrapping_sub(start));
        result
    }
}

impl Probe for Sampled {
    fn fresh() -> Self {
        let samples = Samples { alloc: Histogram::new(), free: Histogram::new() };
        Self { samples: Box::new(samples), until_next: 64, random: 0x9E37_79B9 }
    }

    #[inline(always)]
    fn alloc<R>(&mut self, operation: impl FnOnce() -> R) -> R {
        self.time(|s| &mut s.alloc, operation)
    }

    #[inline(always)]
    fn free<R>(&mut self, operation: impl FnOnce() -> R) -> R {
        self.time(|s| &mut s.free, operation)
    }

    fn samples(self) -> Option<Samples> {
        Some(*self.samples)
    }
}

/// Sub-buckets per doubling: a bucket is at most 1/16 wide of its value.
const SUB: usize = 16;
const BUCKETS: usize = 64 * SUB;

/// A table of counts over log-linear buckets of ticks.
pub struct Histogram(Box<[u32; BUCKETS]>);

impl Histogram {
    fn new() -> Self {
        Self(Box::new([0; BUCKETS]))
    }

    fn bucket(ticks: u64) -> usize {
        if ticks < SUB as u64 {
            return ticks as usize;
        }
        let shift = ticks.ilog2() - SUB.ilog2();
        (shift as usize + 1) * SUB + ((ticks >> shift) as usize - SUB)
    }

    /// The smallest value beyond the bucket.
    fn upper(bucket: usize) -> u64 {
        if bucket < SUB {
            return bucket as u64 + 1;
        }
        let shift = bucket / SUB - 1;
        ((SUB + bucket % SUB) as u64 + 1) << shift
    }

    fn add(&mut self, ticks: u64) {
        self.0[Self::bucket(ticks).min(BUCKETS - 1)] += 1;
    }

    /// Adds the counts of another thread.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0.iter()) {
            *mine += theirs;
        }
    }

    /// `(upper bound in nanoseconds, samples)` of each bucket that is not empty, less the clock's own cost.
    pub fn in_nanoseconds(&self, clock: &Clock) -> Vec<(u64, u64)> {
        let mut out: Vec<(u64, u64)> = Vec::new();
        for (bucket, &count) in self.0.iter().enumerate().filter(|(_, count)| **count > 0) {
            let ticks = Self::upper(bucket).saturating_sub(clock.overhead);
            let ns = (ticks as f64 / clock.ticks_per_ns).round() as u64;
            match out.last_mut() {
                Some(last) if last.0 == ns => last.1 += u64::from(count),
                _ => out.push((ns, u64::from(count))),
            }
        }
        out
    }
}

/// The tick counter, ordered against the instructions around it.
#[inline(always)]
fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: both instructions are part of every x86-64 processor.
    unsafe {
        std::arch::x86_64::_mm_lfence();
        let now = std::arch::x86_64::_rdtsc();
        std::arch::x86_64::_mm_lfence();
        now
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

/// How ticks become nanoseconds.
pub struct Clock {
    ticks_per_ns: f64,
    overhead: u64,
}

impl Clock {
    /// Measures the tick rate over 20 ms and the least distance of two readings.
    pub fn calibrate() -> Self {
        let (start, first) = (Instant::now(), ticks());
        while start.elapsed().as_millis() < 20 {
            std::hint::spin_loop();
        }
        let ticks_per_ns = (ticks() - first) as f64 / start.elapsed().as_nanos() as f64;
        let overhead = (0..1000).map(|_| ticks().wrapping_neg().wrapping_add(ticks())).min().unwrap_or(0);
        Self { ticks_per_ns, overhead }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_below_the_bound_of_its_bucket_and_close_to_it() {
        for value in (0..2000).chain([12_345, 1 << 20, (1 << 40) + 17]) {
            let upper = Histogram::upper(Histogram::bucket(value));
            assert!(
                value < upper && upper <= value + value / SUB as u64 + 1,
                "{value} in a bucket up to {upper}"
            );
        }
    }

    #[test]
    fn a_sampled_sleep_is_seen_as_long_and_the_rest_as_short() {
        let clock = Clock::calibrate();
        let mut probe = Sampled::fresh();
        for _ in 0..10_000 {
            probe.alloc(|| std::hint::black_box(1));
        }
        for _ in 0..128 {
            probe.free(|| std::thread::sleep(std::time::Duration::from_micros(200)));
        }
        let samples = probe.samples().expect("this probe samples");
        let (alloc, free) = (samples.alloc.in_nanoseconds(&clock), samples.free.in_nanoseconds(&clock));
        let taken: u64 = alloc.iter().map(|b| b.1).sum();
        assert!((100..300).contains(&taken), "{taken} samples of 10 000 operations");
        let shorter: u64 = alloc.iter().filter(|b| b.0 < 20_000).map(|b| b.1).sum();
        assert!(shorter * 2 > taken, "{alloc:?}");
        assert!(!free.is_empty() && free.iter().all(|b| b.0 >= 200_000), "{free:?}");
    }
}
