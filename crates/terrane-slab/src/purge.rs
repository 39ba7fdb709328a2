//! Giving memory back: when, how much, and how.
//!
//! Invariant: only free slices are purged, and while they are being purged they are claimed, so nobody is handed memory
//! that is about to vanish.
//!
//! Protocol: slices age by passes. A pass over a segment marks its free, dirty slices *idle*; the next pass, at least one
//! delay later, gives back those that are still idle. A slice that is handed out between two passes loses its mark, so
//! memory that is in steady use is never purged, however often it is freed. Passes run on slow paths, on an explicit tick,
//! or from a background thread: a pass is a plain call that takes the time as an argument.

use crate::fault::{Fault, planted};
use crate::segment::{SLICE_BYTES, Segment};
use crate::sharing::Sharing;
use core::ptr::NonNull;
use terrane_core::sync::atomic::Ordering;
use terrane_core::{Contents, Decommit, PageSource};

/// When and how memory goes back to the system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PurgePolicy {
    /// Milliseconds that free memory is kept for reuse; [`NEVER`](Self::NEVER) keeps it for good.
    pub delay_ms: u64,
    /// Lazily or at once.
    pub how: Decommit,
    /// Bytes of freed huge blocks that are kept for reuse, in 16 spans at most.
    pub huge_cache_bytes: usize,
    /// Bytes of freed large blocks that one heap keeps for reuse.
    pub large_cache_bytes: usize,
}

impl PurgePolicy {
    /// A delay that never ends.
    pub const NEVER: u64 = u64::MAX;

    /// A quarter of a second, at once, 256 MiB of huge blocks, 4 MiB of large blocks a heap.
    pub const DEFAULT: Self =
        Self { delay_ms: 250, how: Decommit::Now, huge_cache_bytes: 256 << 20, large_cache_bytes: 4 << 20 };
}

impl Default for PurgePolicy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What a pass did.
pub(crate) struct Passed {
    /// Bytes given back.
    pub(crate) bytes: usize,
    /// Whether slices were claimed for a while.
    pub(crate) held: bool,
    /// Whether memory is left that goes on to age.
    pub(crate) left: bool,
}

/// One pass over `segment` at time `now`. With `all`, every free slice that holds memory is given back, however young.
/// The caller lets searches find the slices again that the pass held.
pub(crate) fn pass<S: PageSource, K: Sharing>(
    source: &S,
    policy: &PurgePolicy,
    segment: &Segment,
    now: u64,
    all: bool,
) -> Passed {
    let due = segment.purge_at.load(Ordering::Relaxed);
    if due == 0 || (!all && (due > now || policy.delay_ms == PurgePolicy::NEVER)) {
        return Passed { bytes: 0, held: false, left: false };
    }
    segment.purge_at.store(0, Ordering::Relaxed);
    if !planted(Fault::DueUnfenced) {
        // Who gives slices back sets their bits, passes a fence, and looks whether a time is set: either it sees none and sets
        // one, or its bits are seen below.
        K::fence();
    }
    let (mut purged, mut held, mut left) = (0, false, false);
    for word in 0..segment.free.len() {
        let mut seen = segment.free[word].load(Ordering::Relaxed);
        let old = loop {
            let dirty = seen & segment.dirty[word].load(Ordering::Relaxed);
            let old = if all { dirty } else { dirty & segment.idle[word].load(Ordering::Relaxed) };
            if old == 0 {
                break 0;
            }
            if planted(Fault::PurgeUnclaimed) {
                break old;
            }
            match K::compare_exchange(
                &segment.free[word],
                seen,
                seen & !old,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => break old,
                Err(now) => seen = now,
            }
        };
        let mut rest = old;
        while rest != 0 {
            let first = rest.trailing_zeros();
            let len = (rest >> first).trailing_ones();
            let run = (u64::MAX >> (64 - len)) << first;
            rest &= !run;
            let start = segment.slice(word * 64 + first as usize);
            // Pages can be longer than slices; then only whole pages within the run can go.
            let page = source.page_size();
            let skip = start.addr().next_multiple_of(page) - start.addr();
            let bytes = (len as usize * SLICE_BYTES).saturating_sub(skip) & !(page - 1);
            if bytes == 0 {
                continue;
            }
            let start = NonNull::new(start.wrapping_add(skip)).expect("a slice has an address");
            // SAFETY: the slices are committed, and claimed by this pass, so nobody relies on their contents.
            match unsafe { source.decommit(start, bytes, policy.how) } {
                Ok(contents) => {
                    purged += bytes;
                    // The slices that are given back whole.
                    let (from, to) = (skip.div_ceil(SLICE_BYTES), (skip + bytes) / SLICE_BYTES);
                    let gone = if to > from {
                        (u64::MAX >> (64 - (to - from))) << (first as usize + from)
                    } else {
                        0
                    };
                    if contents == Contents::Zero {
                        K::fetch_and(&segment.dirty[word], !gone, Ordering::Relaxed);
                    }
                    K::fetch_and(&segment.idle[word], !run, Ordering::Relaxed);
                }
                // The memory stays; it is as good as before for whoever takes it next.
                Err(_) => left = true,
            }
        }
        if old != 0 {
            K::fetch_or(&segment.free[word], old, Ordering::Release);
            held = true;
        }
        let young =
            segment.free[word].load(Ordering::Relaxed) & segment.dirty[word].load(Ordering::Relaxed) & !old;
        if young != 0 {
            // A slice that is handed out between the two loads and this store is marked idle while in use; the mark
            // is cleared again when it is next handed out, and purging looks at free slices only.
            K::fetch_or(&segment.idle[word], young, Ordering::Relaxed);
            left = true;
        }
    }
    if left {
        schedule(policy.delay_ms, segment, now);
    }
    Passed { bytes: purged, held, left }
}

/// Notes that `segment` has free slices that hold memory: after their bits were set and a fence was passed. Whether that is new.
#[inline]
pub(crate) fn schedule(delay_ms: u64, segment: &Segment, now: u64) -> bool {
    let new = segment.purge_at.load(Ordering::Relaxed) == 0;
    if new {
        // Two threads may both store here; either time will do. 0 means "nothing to do", so time 0 is 1.
        segment.purge_at.store(now.saturating_add(delay_ms).max(1), Ordering::Relaxed);
    }
    new
}
