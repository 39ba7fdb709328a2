//! How deep caches should be: policies of [`Sizing`] for the caches of the allocator and of pools alike.
//!
//! Invariant: no move passes the budget. Growth is granted from what the budget leaves; caches that are above it together are
//! cut in proportion, whatever the policy thinks. Policies hold their state in themselves, in arrays of `N`: they allocate
//! nothing, and leave caches numbered `N` or above as they are.
//!
//! Every policy has hysteresis (what makes a cache grow and what makes it shrink lie apart), a hold-off after each growth, and
//! moves that are bounded per tick. An idle cache is halved every few ticks, down to a floor. ([`Fixed`] does none of that.)
//!
//! | policy | a cache grows | a cache shrinks |
//! |---|---|---|
//! | [`Fixed`] | never | never |
//! | [`HitRate`] | its hit rate is below the target although it overflows | a quarter of it was not needed for some ticks |
//! | [`LowWater`] | it overflows about as often as it misses | by half of what was never needed |
//! | [`MarginalGain`] | it gains from what idle caches gave back, or more than another loses | it is that other |

use crate::sizing::{Move, Sample, Sizing};

/// Ticks without a request after which a cache is idle, and between two halvings of it.
pub const IDLE_TICKS: u8 = 4;

/// What the budget leaves, and the moves made so far.
struct Grants<'a> {
    left: u64,
    apply: &'a mut dyn FnMut(Move),
}

impl<'a> Grants<'a> {
    /// Cuts caches that are above the budget together, and says whether they were: then nothing else is decided.
    fn open(samples: &[Sample], budget: u64, apply: &'a mut dyn FnMut(Move)) -> Option<Self> {
        let bytes = |sample: &Sample| u64::from(sample.capacity) * u64::from(sample.object_bytes);
        let held = samples.iter().map(bytes).fold(0, u64::saturating_add);
        if held <= budget {
            return Some(Self { left: budget - held, apply });
        }
        for sample in samples {
            let share = u128::from(sample.capacity) * u128::from(budget) / u128::from(held);
            apply(Move { cache: sample.cache, capacity: share as u32 });
        }
        None
    }

    /// Sets the capacity of a cache as near to `wanted` as the budget allows.
    fn set(&mut self, sample: &Sample, wanted: u32) -> bool {
        let object = u64::from(sample.object_bytes).max(1);
        let most = u64::from(sample.capacity) + self.left / object;
        let capacity = u64::from(wanted).min(most) as u32;
        if capacity == sample.capacity {
            return false;
        }
        self.left = (self.left + u64::from(sample.capacity) * object) - u64::from(capacity) * object;
        (self.apply)(Move { cache: sample.cache, capacity });
        true
    }
}

/// What a policy remembers of one cache.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    /// Ticks until it may grow again.
    hold_off: u8,
    /// Ticks without a request.
    idle: u8,
    /// Ticks in a row in which it was larger than needed.
    ample: u8,
}

impl Memory {
    /// Halves an idle cache every [`IDLE_TICKS`]; whether it is idle.
    fn idle(&mut self, sample: &Sample, floor: u32, grants: &mut Grants<'_>) -> bool {
        if sample.hits + sample.misses + sample.overflows > 0 {
            self.idle = 0;
            return false;
        }
        self.idle += 1;
        if self.idle >= IDLE_TICKS {
            self.idle = 0;
            self.hold_off = 0;
            if sample.capacity > floor {
                grants.set(sample, (sample.capacity / 2).max(floor));
            }
        }
        true
    }
}

/// Every cache holds as much as it did, within the budget.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fixed;

impl Sizing for Fixed {
    fn decide(&mut self, samples: &[Sample], budget: u64, apply: &mut dyn FnMut(Move)) {
        let _ = Grants::open(samples, budget, apply);
    }
}

/// Caches grow until a share of the requests hits.
#[derive(Clone, Debug)]
pub struct HitRate<const N: usize = 256> {
    /// In thousandths.
    target: u64,
    floor: u32,
    memory: [Memory; N],
}

/// Ticks after a growth in which a cache does not grow again.
const HOLD_OFF: u8 = 1;
/// Ticks in a row after which a cache that is larger than needed shrinks.
const PATIENCE: u8 = 4;

impl<const N: usize> HitRate<N> {
    /// At least `permille` thousandths of the requests are to hit; no cache shrinks below `floor` objects.
    pub const fn new(permille: u32, floor: u32) -> Self {
        const FRESH: Memory = Memory { hold_off: 0, idle: 0, ample: 0 };
        Self { target: permille as u64, floor, memory: [FRESH; N] }
    }
}

impl<const N: usize> Sizing for HitRate<N> {
    fn decide(&mut self, samples: &[Sample], budget: u64, apply: &mut dyn FnMut(Move)) {
        let Some(mut grants) = Grants::open(samples, budget, apply) else { return };
        for sample in samples {
            let Some(memory) = self.memory.get_mut(sample.cache as usize) else { continue };
            if memory.idle(sample, self.floor, &mut grants) {
                continue;
            }
            let requests = sample.hits + sample.misses;
            // A miss that no overflow goes with is no lack of capacity: the objects were never here.
            if sample.hits * 1000 < requests * self.target && sample.overflows > 0 {
                memory.ample = 0;
                if memory.hold_off > 0 {
                    memory.hold_off -= 1;
                } else if grants.set(sample, sample.capacity.saturating_mul(2).max(self.floor).max(2)) {
                    memory.hold_off = HOLD_OFF;
                }
                continue;
            }
            memory.hold_off = 0;
            memory.ample =
                if u64::from(sample.low_water) * 4 >= u64::from(sample.capacity) && sample.low_water > 1 {
                    memory.ample + 1
                } else {
                    0
                };
            if memory.ample >= PATIENCE {
                memory.ample = 0;
                // Half of what was never needed: what is left is still more than was needed.
                grants.set(sample, sample.capacity.saturating_sub(sample.low_water / 2).max(self.floor));
            }
        }
    }
}

/// Caches follow their low-water mark, and the balance of overflows and misses.
#[derive(Clone, Debug)]
pub struct LowWater<const N: usize = 256> {
    floor: u32,
    memory: [Memory; N],
}

impl<const N: usize> LowWater<N> {
    /// No cache shrinks below `floor` objects.
    pub const fn new(floor: u32) -> Self {
        const FRESH: Memory = Memory { hold_off: 0, idle: 0, ample: 0 };
        Self { floor, memory: [FRESH; N] }
    }
}

impl<const N: usize> Sizing for LowWater<N> {
    fn decide(&mut self, samples: &[Sample], budget: u64, apply: &mut dyn FnMut(Move)) {
        let Some(mut grants) = Grants::open(samples, budget, apply) else { return };
        for sample in samples {
            let Some(memory) = self.memory.get_mut(sample.cache as usize) else { continue };
            if memory.idle(sample, self.floor, &mut grants) {
                continue;
            }
            // What overflowed would have served a miss: the two about balance where capacity is what lacks.
            let starved =
                sample.misses > 0 && sample.overflows * 10 >= sample.misses.min(sample.overflows * 20) * 9;
            if starved && sample.overflows > 0 {
                memory.ample = 0;
                if memory.hold_off > 0 {
                    memory.hold_off -= 1;
                } else if grants.set(sample, sample.capacity + (sample.capacity / 2).max(self.floor).max(2)) {
                    memory.hold_off = HOLD_OFF;
                }
            } else if sample.low_water > self.floor.max(1) && sample.overflows * 5 <= sample.misses * 2 {
                memory.ample += 1;
                if memory.ample >= PATIENCE {
                    memory.ample = 0;
                    grants.set(sample, sample.capacity.saturating_sub(sample.low_water / 2).max(self.floor));
                }
            } else {
                memory.ample = 0;
            }
        }
    }
}

/// Sums of one cache over a window of ticks.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    hits: u64,
    misses: u64,
    overflows: u64,
}

impl Sums {
    const NONE: Self = Self { hits: 0, misses: 0, overflows: 0 };

    fn add(&mut self, sample: &Sample) {
        self.hits = self.hits.saturating_add(sample.hits);
        self.misses = self.misses.saturating_add(sample.misses);
        self.overflows = self.overflows.saturating_add(sample.overflows);
    }

    /// Hits that `step` objects less would cost: those that were never needed cost none.
    fn loss(&self, sample: &Sample, low_water: u32, step: u32) -> u64 {
        let needed = u128::from(step.saturating_sub(low_water));
        (u128::from(self.hits) * needed / u128::from(sample.capacity.max(1))) as u64
    }

    /// Hits that `step` objects more would bring.
    fn gain(&self, sample: &Sample, step: u32) -> u64 {
        if self.overflows == 0 {
            return 0;
        }
        // As many as the objects in the cache bring now, each; but no more than miss.
        let each = self.hits.max(1).div_ceil(u64::from(sample.capacity.max(1)));
        self.misses.min(each.saturating_mul(u64::from(step)))
    }
}

/// One step of bytes at a time goes from the cache that loses least by it to the one that gains most.
///
/// The sum of all caches and of the [reserve](Self::reserve) never changes, unless the budget cuts it. The reserve is what idle
/// caches gave back; whoever would gain by it has it before others lose anything. Gains and losses are summed over a window of
/// ticks, after which one step is moved at most, so a load that changes within a window moves nothing back and forth.
/// (After the slab rebalancing of CacheLib, Berg et al., OSDI 2020.)
#[derive(Clone, Debug)]
pub struct MarginalGain<const N: usize = 256> {
    step_bytes: u64,
    floor: u32,
    reserve: u64,
    ticks: u64,
    sums: [Sums; N],
    /// Fewest objects in the window.
    low_water: [u32; N],
    memory: [Memory; N],
}

/// Hits per tick that a move must promise.
const LEAST_GAIN: u64 = 100;
/// Ticks in a window.
const WINDOW: u64 = 12;

impl<const N: usize> MarginalGain<N> {
    /// Moves `step_bytes` at a time; no cache shrinks below `floor` objects.
    pub const fn new(step_bytes: u64, floor: u32) -> Self {
        const FRESH: Memory = Memory { hold_off: 0, idle: 0, ample: 0 };
        Self {
            step_bytes,
            floor,
            reserve: 0,
            ticks: 0,
            sums: [Sums::NONE; N],
            low_water: [u32::MAX; N],
            memory: [FRESH; N],
        }
    }

    /// Bytes that idle caches gave back, and no cache has had since.
    pub const fn reserve(&self) -> u64 {
        self.reserve
    }

    fn step(&self, sample: &Sample) -> u32 {
        (self.step_bytes / u64::from(sample.object_bytes.max(1))).clamp(1, 1 << 30) as u32
    }

    /// Halves idle caches, and gives caches that would gain by it what lies in the reserve: as much as they have, at most.
    fn share_reserve(&mut self, samples: &[Sample], grants: &mut Grants<'_>) {
        let mut reserve = self.reserve;
        for sample in samples {
            let step = self.step(sample);
            let Some(memory) = self.memory.get_mut(sample.cache as usize) else { continue };
            let left = grants.left;
            if !memory.idle(sample, self.floor, grants) {
                let mut now = Sums::NONE;
                now.add(sample);
                if now.gain(sample, step) < LEAST_GAIN {
                    continue;
                }
                if memory.hold_off > 0 {
                    memory.hold_off -= 1;
                } else if reserve > 0 {
                    let room = (reserve / u64::from(sample.object_bytes.max(1))).min(1 << 30) as u32;
                    let wanted = sample.capacity.max(step).min(room);
                    if grants.set(sample, sample.capacity.saturating_add(wanted)) {
                        memory.hold_off = HOLD_OFF;
                    }
                }
            }
            reserve = reserve + grants.left - left;
            if grants.left != left {
                // What was seen before does not count for another size.
                self.sums[sample.cache as usize] = Sums::NONE;
            }
        }
    }

    /// Moves one step, if that brings more than it costs.
    fn rebalance(&self, samples: &[Sample], grants: &mut Grants<'_>) {
        let known = || samples.iter().filter(|sample| (sample.cache as usize) < N);
        let gain = |sample: &Sample| self.sums[sample.cache as usize].gain(sample, self.step(sample));
        let loss = |sample: &Sample| {
            let cache = sample.cache as usize;
            self.sums[cache].loss(sample, self.low_water[cache], self.step(sample))
        };
        let Some(receiver) = known().max_by_key(|sample| gain(sample)) else { return };
        let donor = known()
            .filter(|sample| sample.cache != receiver.cache)
            .filter(|sample| sample.capacity >= self.step(sample).saturating_add(self.floor))
            .min_by_key(|sample| loss(sample));
        let Some(donor) = donor else { return };
        if gain(receiver) < loss(donor) + (LEAST_GAIN * WINDOW).max(loss(donor) / 4) {
            return;
        }
        let gives = self.step(donor);
        let bytes = u64::from(gives) * u64::from(donor.object_bytes);
        let takes = (bytes / u64::from(receiver.object_bytes.max(1))) as u32;
        if takes > 0 {
            grants.set(donor, donor.capacity - gives);
            grants.set(receiver, receiver.capacity + takes);
        }
    }
}

impl<const N: usize> Sizing for MarginalGain<N> {
    fn decide(&mut self, samples: &[Sample], budget: u64, apply: &mut dyn FnMut(Move)) {
        let Some(mut grants) = Grants::open(samples, budget, apply) else { return };
        self.reserve = self.reserve.min(grants.left);
        let left = grants.left;
        for sample in samples {
            if let Some(sums) = self.sums.get_mut(sample.cache as usize) {
                sums.add(sample);
                let low_water = &mut self.low_water[sample.cache as usize];
                *low_water = sample.low_water.min(*low_water);
            }
        }
        self.share_reserve(samples, &mut grants);
        self.ticks += 1;
        if self.ticks.is_multiple_of(WINDOW) {
            // A cache has one size at a time: what moved now is looked at again after the next window.
            if grants.left == left {
                self.rebalance(samples, &mut grants);
            }
            self.sums = [Sums::NONE; N];
            self.low_water = [u32::MAX; N];
        }
        // What the caches together have less than before lies in the reserve.
        self.reserve = self.reserve + grants.left - left;
    }
}
