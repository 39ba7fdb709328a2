//! Threads that start together and are timed together.
//!
//! Invariant: the clock runs from the first thread that passes the gate, after all have prepared, to the last thread
//! that says it is done; what a workload does before [`Gate::start`] and after [`Gate::end`] is not timed. A gang of
//! one runs on the main thread, so that a single-threaded process stays single-threaded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::Instant;

use crate::probe::{Probe, Samples};

/// How a workload is run: threads and the amount of work.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Threads that work at the same time.
    pub threads: usize,
    /// 1.0 is the full amount of work.
    pub scale: f64,
}

impl Plan {
    /// `full` times the scale, at least 1.
    pub fn count(&self, full: usize) -> usize {
        ((full as f64 * self.scale) as usize).max(1)
    }

    /// `full` times the scale, divided among the threads, at least 1.
    pub fn share(&self, full: usize) -> usize {
        (self.count(full) / self.threads).max(1)
    }
}

/// What a workload measured.
pub struct Measured {
    /// Operations over all threads.
    pub ops: u64,
    /// Nanoseconds from first start to last end.
    pub elapsed_ns: u64,
    /// Latencies over all threads, when sampled.
    pub samples: Option<Samples>,
    /// Memory after an idle second, for the workload that waits for one.
    pub idle: Option<terrane_bench::record::Idle>,
}

/// The common start and end of a gang.
pub struct Gate {
    barrier: Barrier,
    epoch: Instant,
    first_start: AtomicU64,
    last_end: AtomicU64,
    ops: AtomicU64,
    samples: Mutex<Option<Samples>>,
}

impl Gate {
    /// A gate that `threads` threads pass together.
    pub fn new(threads: usize) -> Self {
        Self {
            barrier: Barrier::new(threads),
            epoch: Instant::now(),
            first_start: AtomicU64::new(u64::MAX),
            last_end: AtomicU64::new(0),
            ops: AtomicU64::new(0),
            samples: Mutex::new(None),
        }
    }

    /// Waits for the others, then starts the clock.
    pub fn start(&self) {
        self.barrier.wait();
        let now = self.epoch.elapsed().as_nanos() as u64;
        // Relaxed: read only after the threads have been joined.
        self.first_start.fetch_min(now, Ordering::Relaxed);
    }

    /// Notes that this thread has done `ops` operations.
    pub fn end(&self, ops: u64) {
        // Relaxed: read only after the threads have been joined.
        self.last_end.fetch_max(self.epoch.elapsed().as_nanos() as u64, Ordering::Relaxed);
        self.ops.fetch_add(ops, Ordering::Relaxed);
    }

    /// Collects a thread's samples.
    pub fn collect<P: Probe>(&self, probe: P) {
        let Some(theirs) = probe.samples() else { return };
        let mut all = self.samples.lock().expect("no thread panics while it holds the samples");
        match all.as_mut() {
            Some(all) => {
                all.alloc.merge(&theirs.alloc);
                all.free.merge(&theirs.free);
            }
            None => *all = Some(theirs),
        }
    }

    /// The figures, after all threads have ended.
    pub fn finish(self) -> Measured {
        let samples = self.samples.into_inner().expect("no thread panics while it holds the samples");
        let (start, end) = (self.first_start.into_inner(), self.last_end.into_inner());
        Measured { ops: self.ops.into_inner(), elapsed_ns: end.saturating_sub(start), samples, idle: None }
    }
}

/// Runs `body(index, probe, gate)` on each of the plan's threads.
pub fn gang<P: Probe>(plan: Plan, body: impl Fn(usize, &mut P, &Gate) + Sync) -> Measured {
    let gate = Gate::new(plan.threads);
    let run = |index: usize| {
        let mut probe = P::fresh();
        body(index, &mut probe, &gate);
        gate.collect(probe);
    };
    if plan.threads == 1 {
        run(0);
    } else {
        std::thread::scope(|scope| {
            for index in 0..plan.threads {
                let run = &run;
                scope.spawn(move || run(index));
            }
        });
    }
    gate.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Quiet, Sampled};
    use std::time::Duration;

    #[test]
    fn preparation_is_not_timed_and_operations_add_up() {
        let measured = gang::<Quiet>(Plan { threads: 3, scale: 1.0 }, |_, _, gate| {
            std::thread::sleep(Duration::from_millis(500));
            gate.start();
            gate.end(10);
        });
        assert_eq!(measured.ops, 30);
        assert!(measured.elapsed_ns < 400_000_000, "{} ns", measured.elapsed_ns);
        assert!(measured.samples.is_none());
    }

    #[test]
    fn samples_of_all_threads_are_merged() {
        let measured = gang::<Sampled>(Plan { threads: 2, scale: 1.0 }, |_, probe, gate| {
            gate.start();
            (0..6400).for_each(|_| probe.alloc(|| ()));
            gate.end(6400);
        });
        let clock = crate::probe::Clock::calibrate();
        let taken: u64 =
            measured.samples.expect("sampled").alloc.in_nanoseconds(&clock).iter().map(|b| b.1).sum();
        assert!((150..260).contains(&taken), "{taken} samples of 12 800 operations");
    }
}
