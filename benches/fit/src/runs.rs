//! Runs of slices, as the slab heap takes them for slabs and large blocks: its bitmaps beside the engines, on a trace that
//! was recorded there.
//!
//! A segment is a space of its own; another one is added when a run finds no room. All contenders keep their records out of
//! the memory, so what counts is time, segments, and the slices that were ever used: each is 64 KiB that stays committed
//! until it is purged.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use terrane_fit::trace::{Request, Trace};
use terrane_fit::{Adaptive, BestFit, Buddy, FirstFit, Placement, Span, Tlsf};
use terrane_slab::segment::{HEADER_SLICES, SLICES};
use terrane_slab::{Shared, bitmap};

/// Runs up to this length are placed from the high end, as those of slabs; what the heap's module `domain` calls the same.
const SLAB_RUN: u64 = 16;
/// Open segments that are looked into before the one that was taken from last; as there.
const LOOKS: usize = 8;

/// A run: its first slice, counted over all segments, and its length.
type Run = (u64, u64);

/// Segments that runs are taken from.
trait Segments {
    fn new() -> Self;
    fn take(&mut self, len: u64, align: u64) -> Run;
    fn give(&mut self, run: Run);
    fn count(&self) -> usize;
}

/// What the slab heap does: two bitmaps for each segment, lock-free, and one of segments with free slices.
struct Bitmaps {
    segments: Vec<[Vec<AtomicU64>; 2]>,
    open: Vec<AtomicU64>,
    hint: usize,
}

impl Bitmaps {
    fn claim(&self, segment: usize, len: u64, align: u64) -> Option<Run> {
        let [free, dirty] = self.segments.get(segment)?;
        let (len, align) = (len as usize, align as usize);
        let first = if len as u64 <= SLAB_RUN && align == 1 {
            bitmap::claim_high::<Shared>(free, dirty, len)
        } else {
            bitmap::claim_among::<Shared>(free, dirty, len, align)
        };
        let first = first.or_else(|| bitmap::claim::<Shared>(free, len, align, 0))?;
        bitmap::set::<Shared>(dirty, first, len);
        Some(((segment * SLICES + first) as u64, len as u64))
    }

    /// From the lowest open segment that has a run, among the first `looks`.
    fn claim_open(&self, looks: usize, len: u64, align: u64) -> Option<Run> {
        let mut from = 0;
        for _ in 0..looks {
            let segment = bitmap::next_set(&self.open, from)?;
            let run = self.claim(segment, len, align);
            if run.is_some() {
                return run;
            }
            if bitmap::next_set(&self.segments[segment][0], 0).is_none() {
                bitmap::clear::<Shared>(&self.open, segment, 1);
            }
            from = segment + 1;
        }
        None
    }
}

impl Segments for Bitmaps {
    fn new() -> Self {
        Self { segments: Vec::new(), open: (0..64).map(|_| AtomicU64::new(0)).collect(), hint: 0 }
    }
    fn take(&mut self, len: u64, align: u64) -> Run {
        let run = self.claim_open(LOOKS, len, align);
        let run = run.or_else(|| self.claim(self.hint, len, align));
        let run = run.or_else(|| self.claim_open(usize::MAX, len, align));
        let run = run.unwrap_or_else(|| {
            let words = || (0..SLICES / 64).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
            let (free, dirty) = (words(), words());
            bitmap::set::<Shared>(&free, HEADER_SLICES, SLICES - HEADER_SLICES);
            bitmap::set::<Shared>(&self.open, self.segments.len(), 1);
            self.segments.push([free, dirty]);
            self.claim(self.segments.len() - 1, len, align).expect("a run fits into an empty segment")
        });
        self.hint = run.0 as usize / SLICES;
        run
    }
    fn give(&mut self, (first, len): Run) {
        let [free, _] = &self.segments[first as usize / SLICES];
        bitmap::release::<Shared>(free, first as usize % SLICES, len as usize);
        let segment = first as usize / SLICES;
        if !bitmap::all_set(&self.open, segment, 1) {
            bitmap::set::<Shared>(&self.open, segment, 1);
        }
    }
    fn count(&self) -> usize {
        self.segments.len()
    }
}

/// An engine behind a lock, since a domain has many threads. Segments lie apart, so that none is joined with another.
struct Locked<E> {
    engine: Mutex<E>,
    count: usize,
}

impl<E: Placement + Default> Segments for Locked<E> {
    fn new() -> Self {
        Self { engine: Mutex::default(), count: 0 }
    }
    fn take(&mut self, len: u64, align: u64) -> Run {
        let mut engine = self.engine.lock().expect("nobody panics under the lock");
        let span = engine.place(len, align).unwrap_or_else(|_| {
            let start = self.count * SLICES + HEADER_SLICES;
            let space = Span::new(start as u64, (SLICES - HEADER_SLICES) as u64);
            engine.add(space).expect("segments do not overlap");
            self.count += 1;
            engine.place(len, align).expect("a run fits into an empty segment")
        });
        (span.offset, span.len)
    }
    fn give(&mut self, (first, len): Run) {
        self.engine.lock().expect("nobody panics under the lock").vacate(Span::new(first, len));
    }
    fn count(&self) -> usize {
        self.count
    }
}

/// Nanoseconds per operation, segments, slices ever used over the peak of live ones.
type Figures = (f64, usize, f64);
type Replay = fn(&Trace) -> Figures;

fn replay<S: Segments>(trace: &Trace) -> Figures {
    let mut runs = vec![(0, 0); trace.ids()];
    let mut play = |see: &mut dyn FnMut(Run)| {
        let mut segments = S::new();
        let begin = Instant::now();
        for request in trace.requests() {
            match *request {
                Request::Place { id, len, align } => {
                    let run = segments.take(len, align);
                    runs[id as usize] = run;
                    see(run);
                }
                Request::Vacate { id } => segments.give(runs[id as usize]),
            }
        }
        (begin.elapsed().as_secs_f64(), segments.count())
    };
    let used: Vec<AtomicU64> = (0..trace.ids() * SLICES / 64 + 8).map(|_| AtomicU64::new(0)).collect();
    let (_, segments) = play(&mut |(first, len)| {
        bitmap::set::<Shared>(&used, first as usize, len as usize);
    });
    let slices: u32 = used.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum();
    let time = (0..40).map(|_| play(&mut |_| {}).0).fold(f64::INFINITY, f64::min);
    let nanoseconds = time * 1e9 / trace.requests().len() as f64;
    (nanoseconds, segments, f64::from(slices) / trace.peak_live() as f64)
}

/// Prints the table for a trace of runs of slices.
pub fn compare(trace: &Trace) {
    println!("{} runs of slices, {} live at most\n", trace.ids(), trace.peak_live());
    println!("| | ns per take or give | segments | slices used / peak live |");
    println!("|---|---:|---:|---:|");
    let contenders: [(&str, Replay); 6] = [
        ("bitmaps of the segments", replay::<Bitmaps>),
        ("Tlsf, locked", replay::<Locked<Tlsf>>),
        ("BestFit, locked", replay::<Locked<BestFit>>),
        ("FirstFit, locked", replay::<Locked<FirstFit>>),
        ("Adaptive, locked", replay::<Locked<Adaptive>>),
        ("Buddy, locked", replay::<Locked<Buddy>>),
    ];
    for (name, replay) in contenders {
        let (nanoseconds, segments, used) = replay(trace);
        println!("| {name} | {nanoseconds:.0} | {segments} | {used:.3} |");
    }
}
