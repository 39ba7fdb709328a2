//! Counting what the global allocator does, and printing it in rows.
//!
//! Invariant: the counters change only between [`Meter::begin_at`] of the chosen request and [`Meter::end`], but for the live bytes,
//! which are always right.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

static LIVE: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static COUNTED: AtomicBool = AtomicBool::new(false);
/// Live bytes when the row began, and when it ended with everything still held.
static AT_END: AtomicI64 = AtomicI64::new(0);

/// The system's allocator, counted.
pub struct Counting;

fn grown(bytes: i64) {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(live, Relaxed);
    if COUNTED.load(Relaxed) {
        ALLOCATIONS.fetch_add(1, Relaxed);
    }
}

// SAFETY: everything is the system allocator's; the counters touch no memory of others.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size() as i64);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size() as i64);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        grown(bytes as i64 - layout.size() as i64);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(block, layout, bytes) }
    }
}

/// Tells the counters when a row's warm-up is over, and when its last request is.
#[derive(Clone, Copy)]
pub struct Meter;

impl Meter {
    /// Begins to count if `number` is the `first` request after the warm-up.
    pub fn begin_at(self, number: usize, first: usize) {
        if number == first {
            COUNTED.store(true, Relaxed);
        }
    }

    /// Ends counting, with what the requests left still held.
    pub fn end(self) {
        COUNTED.store(false, Relaxed);
        AT_END.store(LIVE.load(Relaxed), Relaxed);
    }
}

/// The first line of the table.
pub fn heading() {
    println!(
        "{:<44}{:>9}{:>9}{:>16}{:>12}{:>12}{:>11}",
        "", "", "requests", "allocs/request", "most KiB", "held KiB", "µs/request"
    );
}

/// Runs `work` (pooled or not, requests, meter → bytes that the pool holds beside the global allocator) with and without a pool.
pub fn row(name: &str, requests: usize, work: impl Fn(bool, usize, Meter) -> u64) {
    for pooled in [false, true] {
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        ALLOCATIONS.store(0, Relaxed);
        let start = Instant::now();
        let beside = work(pooled, requests, Meter) as i64;
        let each = start.elapsed().as_secs_f64() * 1e6 / (requests + requests / 10) as f64;
        println!(
            "{:<44}{:>9}{requests:>9}{:>16.3}{:>12.1}{:>12.1}{each:>11.2}",
            if pooled { "" } else { name },
            if pooled { "after" } else { "before" },
            ALLOCATIONS.load(Relaxed) as f64 / requests as f64,
            (PEAK.load(Relaxed) - before + beside) as f64 / 1024.0,
            (AT_END.load(Relaxed) - before + beside) as f64 / 1024.0,
        );
    }
}
