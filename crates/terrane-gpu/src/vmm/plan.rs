//! Where a hole of a given length costs the fewest moved pieces.
//!
//! Invariant: a plan names only slots that no live span touches, and as donors only slots whose work is past.

use super::{SlotUsers, Vmm};
use crate::arena::Arena;
use crate::device::Device;
use terrane_core::{Placement, Span};

/// Where a new hole is to be, and where its pieces come from. All slots.
pub(super) struct Plan {
    /// Unmapped slots that the hole needs: a run, perhaps with mapped free slots before, between and after.
    pub(super) targets: Vec<usize>,
    /// Free slots elsewhere whose pieces are moved there.
    pub(super) donors: Vec<usize>,
}

impl<D: Device + ?Sized> Vmm<D> {
    /// Chooses the run of slots for a hole of `need` slots that takes the fewest pieces, and the donors.
    pub(super) fn plan<P: Placement>(
        &self,
        need: usize,
        arena: &Arena<P, SlotUsers>,
        past: impl Fn(Span) -> bool,
    ) -> Option<Plan> {
        let mapped = &self.slots.lock().mapped;
        let is_mapped = |slot: usize| mapped.get(slot).is_some_and(Option::is_some);
        let users = |slot: usize| arena.books.users.get(slot).copied().unwrap_or(0);
        let free = |slot: usize| !is_mapped(slot) || users(slot) == 0;
        // Runs of slots without live spans; the last one is open to the end of the range.
        let end = mapped.len();
        let mut best: Option<(usize, usize)> = None;
        let mut slot = 0;
        let mut runs = Vec::new();
        while slot <= end {
            let start = slot;
            while slot < end && free(slot) {
                slot += 1;
            }
            let run_end = if slot == end { self.slots_in_range } else { slot };
            if run_end > start {
                runs.push((start, run_end));
            }
            slot += 1;
        }
        for &(start, run_end) in &runs {
            if run_end - start < need {
                continue;
            }
            // Slide over the run: count unmapped slots in each window. Beyond `end` nothing is mapped.
            let last = (run_end - need).min(end.max(start));
            let mut missing = (start..start + need).filter(|&s| !is_mapped(s)).count();
            for window in start..=last {
                if best.is_none_or(|(fewest, _)| missing < fewest) {
                    best = Some((missing, window));
                }
                missing += usize::from(!is_mapped(window + need));
                missing -= usize::from(!is_mapped(window));
            }
        }
        let (missing, at) = best?;
        let window = at..at + need;
        let targets: Vec<usize> = window.clone().filter(|&s| !is_mapped(s)).collect();
        // Donors from the shortest runs first: long holes stay long.
        let mut candidates: Vec<(usize, usize)> = runs
            .iter()
            .flat_map(|&(start, run_end)| {
                let slots: Vec<usize> =
                    (start..run_end.min(end)).filter(|s| !window.contains(s) && is_mapped(*s)).collect();
                let len = slots.len();
                slots.into_iter().map(move |s| (len, s))
            })
            .filter(|&(_, s)| past(self.span_of(s)))
            .collect();
        candidates.sort_unstable();
        let donors = candidates.into_iter().map(|(_, s)| s).take(missing).collect();
        Some(Plan { targets, donors })
    }
}
