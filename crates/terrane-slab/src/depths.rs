//! How deep the lists of a thread are: a depth per class, which a policy of [`Sizing`] sets on slow paths.
//!
//! Invariant: no depth is outside [`shallowest`]..=[`deepest`] of its class. The bytes of the depths of all classes that the heap
//! uses stay within [`LISTS_BYTES`], but for the shallowest depth of classes that come into use when that is spent; the next
//! decision then cuts.
//!
//! What a policy sees is counted where blocks move between lists and slabs. On the hit path nothing is counted: the frees that a
//! list took, which its room tells, stand for the allocations that it served.
//!
//! | sample | is |
//! |---|---|
//! | hits | frees that the list took |
//! | misses | blocks brought from slabs |
//! | overflows | blocks that a full list let go of |
//! | low water | blocks set aside, if the list never ran empty meanwhile |

use crate::lists;
use crate::size_class::{self, CLASSES};
use terrane_core::policies::{HitRate, LowWater};
use terrane_core::{Move, Sample, Sizing};

/// Bytes that the lists of one heap may hold together.
pub const LISTS_BYTES: u64 = 4 << 20;

/// Blocks that one list may hold at most, whatever their size.
pub const MOST_BLOCKS: u32 = 1024;

/// Bytes that one list may hold at most.
const MOST_BYTES: u32 = 128 * 1024;

/// Caches that a policy sees together: what a sample takes of the stack is bounded.
const TOGETHER: usize = 16;

/// Which policy sets the depth of a thread's lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ListSizing {
    /// None: every list holds its [bound](lists::bound).
    Fixed,
    /// [`LowWater`]: a list is deeper while as much overflows as misses, and less deep while part of it is not needed.
    #[default]
    LowWater,
    /// [`HitRate`] of 95 %.
    HitRate,
}

impl ListSizing {
    /// The policy as a number, for [`from_bits`](Self::from_bits).
    pub(crate) const fn to_bits(self) -> u8 {
        self as u8
    }

    pub(crate) const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Fixed,
            1 => Self::LowWater,
            _ => Self::HitRate,
        }
    }
}

/// The fewest blocks that a policy makes a list of `class` hold.
pub const fn shallowest(class: usize) -> u32 {
    let eighth = lists::bound(class) / 8;
    if eighth < 4 { 4 } else { eighth }
}

/// The most blocks that a policy makes a list of `class` hold.
pub const fn deepest(class: usize) -> u32 {
    let blocks = MOST_BYTES / size_class::TABLE[class].block_bytes;
    let bound = lists::bound(class);
    if blocks > MOST_BLOCKS {
        MOST_BLOCKS
    } else if blocks < bound {
        bound
    } else {
        blocks
    }
}

/// What was counted of one class since the last decision about it.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    overflows: u32,
    /// Whether the list, and what was aside for it, ran out.
    ran_out: bool,
    /// [`Seen`] at the last decision.
    last: Seen,
}

/// Totals of a class, as the heap counts them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Seen {
    /// Frees that the list took.
    pub(crate) listed: u64,
    /// Blocks brought from slabs.
    pub(crate) taken: u64,
}

#[derive(Debug)]
enum Policy {
    Fixed,
    LowWater(LowWater<CLASSES>),
    HitRate(HitRate<CLASSES>),
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Depths {
    /// 0: the class was not used yet, and counts as its bound.
    depths: [u16; CLASSES],
    windows: [Window; CLASSES],
    chosen: ListSizing,
    policy: Policy,
    bytes: u64,
}

impl Depths {
    pub(crate) const fn new() -> Self {
        const FRESH: Window = Window { overflows: 0, ran_out: false, last: Seen { listed: 0, taken: 0 } };
        Self {
            depths: [0; CLASSES],
            windows: [FRESH; CLASSES],
            chosen: ListSizing::Fixed,
            policy: Policy::Fixed,
            bytes: 0,
        }
    }

    /// Blocks that the list of `class` and what is aside for it should hold at most, together.
    #[inline]
    pub(crate) const fn depth(&self, class: usize) -> u32 {
        match self.depths[class] {
            0 => lists::bound(class),
            depth => depth as u32,
        }
    }

    /// Bytes of the depths of all classes in use.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Says that the list of `class` got blocks from its slabs, because it and what was aside for it had run out.
    pub(crate) fn ran_out(&mut self, class: usize) {
        self.windows[class].ran_out = true;
        if self.depths[class] == 0 {
            let bound = lists::bound(class);
            let bytes = u64::from(bound) * u64::from(size_class::TABLE[class].block_bytes);
            let fits = self.bytes + bytes <= LISTS_BYTES;
            self.set(class, if fits { bound } else { shallowest(class) });
        }
    }

    /// Says that the list of `class` let `blocks` go because it was full.
    pub(crate) fn overflowed(&mut self, class: usize, blocks: u32) {
        let overflows = &mut self.windows[class].overflows;
        *overflows = overflows.saturating_add(blocks);
    }

    fn set(&mut self, class: usize, depth: u32) {
        let bytes = u64::from(size_class::TABLE[class].block_bytes);
        self.bytes = self.bytes + u64::from(depth) * bytes - u64::from(self.depths[class]) * bytes;
        self.depths[class] = depth as u16;
    }

    fn choose(&mut self, chosen: ListSizing) {
        if self.chosen == chosen {
            return;
        }
        self.chosen = chosen;
        self.policy = match chosen {
            ListSizing::Fixed => Policy::Fixed,
            ListSizing::LowWater => Policy::LowWater(LowWater::new(4)),
            ListSizing::HitRate => Policy::HitRate(HitRate::new(950, 4)),
        };
    }

    /// Lets the policy decide about the classes in use; about those with misses or overflows only if `busy` says so, so that
    /// idle ticks are counted on the clock alone. `seen` answers the totals of a class, `aside` at most how many blocks are
    /// aside for it, and `cut` is told what a class is to let go of now.
    pub(crate) fn decide(
        &mut self,
        chosen: ListSizing,
        busy: bool,
        seen: impl Fn(usize) -> Seen,
        aside: impl Fn(usize) -> u32,
        mut cut: impl FnMut(usize, u32),
    ) {
        self.choose(chosen);
        if matches!(self.policy, Policy::Fixed) {
            return;
        }
        // Above the budget, all pay.
        let busy = busy && self.bytes <= LISTS_BYTES;
        let mut samples = [Sample::default(); TOGETHER];
        let mut count = 0;
        for class in 0..CLASSES {
            if self.depths[class] == 0 {
                continue;
            }
            let now = seen(class);
            let window = &mut self.windows[class];
            if busy && window.overflows == 0 && now.taken == window.last.taken {
                continue;
            }
            samples[count] = Sample {
                cache: class as u32,
                hits: now.listed - window.last.listed,
                misses: now.taken - window.last.taken,
                overflows: u64::from(window.overflows),
                low_water: if window.ran_out { 0 } else { aside(class) },
                capacity: u32::from(self.depths[class]),
                object_bytes: size_class::TABLE[class].block_bytes,
            };
            *window = Window { last: now, ..Window::default() };
            count += 1;
            if count == TOGETHER {
                self.apply(&samples, &mut cut);
                count = 0;
            }
        }
        if count > 0 {
            self.apply(&samples[..count], &mut cut);
        }
    }

    fn apply(&mut self, samples: &[Sample], cut: &mut impl FnMut(usize, u32)) {
        let bytes = |sample: &Sample| u64::from(sample.capacity) * u64::from(sample.object_bytes);
        let others = self.bytes - samples.iter().map(bytes).sum::<u64>();
        let mut moves = [Move { cache: 0, capacity: 0 }; TOGETHER];
        let mut count = 0;
        let mut note = |to: Move| {
            // A policy moves each cache once, some of them two: what is beyond is left for the next decision.
            if let Some(place) = moves.get_mut(count) {
                *place = to;
                count += 1;
            }
        };
        let budget = LISTS_BYTES.saturating_sub(others);
        match &mut self.policy {
            Policy::Fixed => {}
            Policy::LowWater(policy) => policy.decide(samples, budget, &mut note),
            Policy::HitRate(policy) => policy.decide(samples, budget, &mut note),
        }
        for to in &moves[..count] {
            let class = to.cache as usize;
            let before = self.depth(class);
            let after = to.capacity.clamp(shallowest(class), deepest(class));
            self.set(class, after);
            if after < before {
                cut(class, before - after);
            }
        }
    }
}
