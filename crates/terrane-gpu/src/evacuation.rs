//! Which regions a compaction clears, and in which order.
//!
//! Invariant: a plan clears only regions all of whose known blocks may be moved, and only if that makes at least one region
//! more free than the moved blocks will fill.
//!
//! A region is worth clearing if more than a sixteenth of it is holes. A block may touch two regions, so moving it out of one
//! leaves a hole in the other, which may be worth clearing then. Regions that share blocks are cleared together, from one end
//! to the other; those that hold least go first, so that each step needs little room and makes much.

use std::collections::BTreeMap;
use terrane_core::Span;

/// A block, as a plan sees it.
pub(crate) struct Resident {
    pub(crate) span: Span,
    /// The regions that it touches, the lowest first.
    pub(crate) regions: Vec<Span>,
    pub(crate) movable: bool,
}

/// A region to be cleared.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Clearing {
    pub(crate) region: Span,
    /// The blocks in it by number, the lowest first.
    pub(crate) blocks: Vec<usize>,
}

struct Region {
    len: u64,
    blocks: Vec<usize>,
    /// Bytes of blocks that stay, as far as the plan has come.
    used: u64,
    fixed: bool,
    cleared: bool,
}

impl Region {
    fn is_worth_clearing(&self) -> bool {
        !self.fixed && !self.cleared && (self.len - self.used) * 16 > self.len
    }
}

fn overlap(a: Span, b: Span) -> u64 {
    (a.offset + a.len).min(b.offset + b.len).saturating_sub(a.offset.max(b.offset))
}

/// The regions to clear, at most `most`, in the order in which they should be.
///
/// Complexity: O(n log n) for n blocks.
pub(crate) fn plan(residents: &[Resident], most: usize) -> Vec<Clearing> {
    let mut order: Vec<usize> = (0..residents.len()).collect();
    order.sort_unstable_by_key(|&i| residents[i].span);
    let mut regions: BTreeMap<u64, Region> = BTreeMap::new();
    for &i in &order {
        let resident = &residents[i];
        for &span in &resident.regions {
            let region = regions.entry(span.offset).or_insert(Region {
                len: span.len,
                blocks: Vec::new(),
                used: 0,
                fixed: false,
                cleared: false,
            });
            region.blocks.push(i);
            region.used += overlap(span, resident.span);
            region.fixed |= !resident.movable;
        }
    }
    let mut moving = vec![false; residents.len()];
    let mut next: Vec<u64> =
        regions.iter().filter(|(_, r)| r.is_worth_clearing()).map(|(&at, _)| at).collect();
    while let Some(at) = next.pop() {
        let Some(region) = regions.get_mut(&at).filter(|region| region.is_worth_clearing()) else { continue };
        region.cleared = true;
        for i in region.blocks.clone() {
            if core::mem::replace(&mut moving[i], true) {
                continue;
            }
            for span in &residents[i].regions {
                let Some(other) = regions.get_mut(&span.offset) else { continue };
                other.used -= overlap(*span, residents[i].span);
                if other.is_worth_clearing() {
                    next.push(span.offset);
                }
            }
        }
    }
    // Neighbours that share a block, and what each such group holds.
    let mut groups: Vec<(f64, Vec<Clearing>)> = Vec::new();
    let mut last_block = None;
    for (offset, region) in regions {
        if !region.cleared {
            last_block = None;
            continue;
        }
        let shares = region.blocks.first().copied() == last_block && last_block.is_some();
        last_block = region.blocks.last().copied();
        let clearing = Clearing { region: Span::new(offset, region.len), blocks: region.blocks };
        match groups.last_mut().filter(|_| shares) {
            Some((_, group)) => group.push(clearing),
            None => groups.push((0.0, vec![clearing])),
        }
    }
    for (share, group) in &mut groups {
        *share = bytes_to_move(residents, group) as f64 / bytes(group) as f64;
    }
    groups.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let mut plan: Vec<Clearing> = groups.into_iter().flat_map(|(_, group)| group).take(most).collect();
    let longest = plan.iter().map(|clearing| clearing.region.len).max().unwrap_or(0);
    if bytes(&plan) < bytes_to_move(residents, &plan) + longest {
        plan.clear();
    }
    plan
}

/// Bytes of all regions that these blocks touch.
pub(crate) fn bytes_touched(residents: &[Resident]) -> u64 {
    let regions: BTreeMap<u64, u64> = residents
        .iter()
        .flat_map(|resident| &resident.regions)
        .map(|region| (region.offset, region.len))
        .collect();
    regions.values().sum()
}

fn bytes(clearings: &[Clearing]) -> u64 {
    clearings.iter().map(|clearing| clearing.region.len).sum()
}

/// The blocks of these regions, each once, in the order of the regions.
pub(crate) fn blocks_of(residents: &[Resident], clearings: &[Clearing]) -> Vec<usize> {
    let mut seen = vec![false; residents.len()];
    let blocks = clearings.iter().flat_map(|clearing| clearing.blocks.iter().copied());
    blocks.filter(|&i| !core::mem::replace(&mut seen[i], true)).collect()
}

fn bytes_to_move(residents: &[Resident], clearings: &[Clearing]) -> u64 {
    blocks_of(residents, clearings).into_iter().map(|i| residents[i].span.len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u64 = 160;

    /// Blocks in regions of [`LEN`] bytes.
    fn residents(spans: &[(u64, u64, bool)]) -> Vec<Resident> {
        let resident = |&(offset, len, movable): &(u64, u64, bool)| {
            let regions = (offset / LEN..(offset + len).div_ceil(LEN)).map(|n| Span::new(n * LEN, LEN));
            Resident { span: Span::new(offset, len), regions: regions.collect(), movable }
        };
        spans.iter().map(resident).collect()
    }

    fn cleared(spans: &[(u64, u64, bool)], most: usize) -> Vec<u64> {
        plan(&residents(spans), most).iter().map(|clearing| clearing.region.offset / LEN).collect()
    }

    #[test]
    fn sparse_regions_are_cleared_the_sparsest_first_and_full_ones_are_left() {
        let spans = [(0, 40, true), (160, 155, true), (320, 10, true), (480, 80, true)];
        assert_eq!(cleared(&spans, 9), [2, 0, 3]);
        assert_eq!(cleared(&spans, 2), [2, 0]);
    }

    #[test]
    fn a_region_with_a_block_that_stays_is_left() {
        assert_eq!(cleared(&[(0, 10, true), (20, 10, false), (160, 10, true), (320, 10, true)], 9), [1, 2]);
    }

    #[test]
    fn nothing_is_moved_where_no_region_would_be_gained() {
        assert!(cleared(&[(0, 90, true)], 9).is_empty(), "it would fill another");
        assert!(cleared(&[(0, 90, true), (160, 90, true)], 9).is_empty(), "they do not go into one");
        assert_eq!(cleared(&[(0, 80, true), (160, 80, true)], 9), [0, 1]);
    }

    #[test]
    fn a_region_that_a_moved_block_leaves_half_empty_is_cleared_with_its_neighbour() {
        // Region 1 is full, until the block that it shares with region 0 goes.
        let spans = [(100, 120, true), (220, 100, true), (320, 160, true), (480, 10, true)];
        let plan = plan(&residents(&spans), 9);
        assert_eq!(plan.iter().map(|c| c.region.offset / LEN).collect::<Vec<_>>(), [3, 0, 1]);
        assert_eq!(blocks_of(&residents(&spans), &plan), [3, 0, 1], "each block once");
    }
}
