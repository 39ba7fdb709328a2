//! The order of runs: A B C A B C, case by case.
//!
//! Invariant: within a case every round runs every allocator once before any runs again, so that slow drifts of the
//! machine meet all of them alike; an allocator that fails in a case is not run again in that case.

use std::path::PathBuf;

use crate::catalogue::{WORKLOADS, Workload};
use crate::results::{Case, Runs};
use crate::runner::{self, Watch};
use crate::stats;

/// An allocator to measure: its name and its worker.
#[derive(Clone, Debug)]
pub struct Contender {
    /// The name in results.
    pub name: String,
    /// The worker built with it.
    pub worker: PathBuf,
}

/// What to run and how often.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Allocators, in the order of the alternation.
    pub contenders: Vec<Contender>,
    /// Rounds per case.
    pub rounds: usize,
    /// Share of the full amount of work.
    pub scale: f64,
    /// The quick selection of workloads and thread counts.
    pub quick: bool,
    /// Only workloads whose names contain one of these; all if empty.
    pub only: Vec<String>,
    /// Only these numbers of threads; all if empty.
    pub threads: Vec<usize>,
}

impl Schedule {
    /// The cases in the order of the catalogue. Workloads asked for by name run also where a quick run omits them.
    pub fn cases(&self) -> Vec<(&'static Workload, usize)> {
        let wanted = |w: &&Workload| {
            self.only.is_empty() || self.only.iter().any(|part| w.name.contains(part.as_str()))
        };
        let threads = |w: &'static Workload| {
            let quick = self.quick && (self.only.is_empty() || !w.quick.is_empty());
            let list = if quick { w.quick } else { w.threads };
            list.iter().filter(|n| self.threads.is_empty() || self.threads.contains(n)).map(move |n| (w, *n))
        };
        WORKLOADS.iter().filter(wanted).flat_map(threads).collect()
    }

    /// Runs one case; `tell` hears of each run that is about to start.
    pub fn run(&self, workload: &Workload, threads: usize, mut tell: impl FnMut(&str)) -> Case {
        let mut case = Case { workload: workload.name.to_owned(), threads, ..Case::default() };
        let mut watches = vec![Watch::Nothing; self.rounds];
        if workload.latency {
            // The quick run samples once, the full run in every round.
            watches.extend(vec![Watch::Latency; if self.quick { 1 } else { self.rounds }]);
        }
        if workload.timeline {
            watches.push(Watch::Memory);
        }
        for watch in watches {
            for contender in &self.contenders {
                let runs: &mut Runs = case.by.entry(contender.name.clone()).or_default();
                if runs.failure.is_some() {
                    continue;
                }
                tell(&contender.name);
                match runner::run(&contender.worker, workload.name, threads, self.scale, watch) {
                    Ok(run) => match watch {
                        Watch::Nothing => runs.rounds.push(run.record),
                        Watch::Latency => {
                            stats::merge_histogram(&mut runs.alloc_latency, &run.record.alloc_latency);
                            stats::merge_histogram(&mut runs.free_latency, &run.record.free_latency);
                        }
                        Watch::Memory => runs.timeline = run.timeline,
                    },
                    Err(reason) => runs.failure = Some(reason),
                }
            }
        }
        case
    }

    /// How many times a worker will be started for that workload.
    pub fn runs_of(&self, workload: &Workload) -> u64 {
        let latency = if !workload.latency {
            0
        } else if self.quick {
            1
        } else {
            self.rounds
        };
        ((self.rounds + latency + usize::from(workload.timeline)) * self.contenders.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(quick: bool, only: &[&str]) -> Schedule {
        let only = only.iter().map(|s| (*s).to_owned()).collect();
        Schedule { contenders: Vec::new(), rounds: 3, scale: 1.0, quick, only, threads: Vec::new() }
    }

    #[test]
    fn a_quick_run_is_a_part_of_the_full_one() {
        let (quick, full) = (schedule(true, &[]).cases(), schedule(false, &[]).cases());
        assert!(!quick.is_empty() && quick.len() * 3 < full.len(), "{} of {}", quick.len(), full.len());
        assert!(quick.iter().all(|(w, n)| full.iter().any(|(v, m)| v.name == w.name && m == n)));
    }

    #[test]
    fn a_workload_named_on_the_command_line_runs_even_when_quick() {
        let cases = schedule(true, &["fragmentation"]).cases();
        assert_eq!(cases.iter().map(|(w, n)| (w.name, *n)).collect::<Vec<_>>(), [("fragmentation", 1)]);
        assert!(schedule(true, &["nothing-like-this"]).cases().is_empty());
    }

    #[test]
    fn a_contender_that_cannot_run_is_marked_and_not_run_again() {
        let mut schedule = schedule(true, &["pair-64"]);
        schedule.contenders.push(Contender { name: "ghost".into(), worker: "/no/such/worker".into() });
        let (workload, threads) = schedule.cases()[0];
        let mut told = 0;
        let case = schedule.run(workload, threads, |_| told += 1);
        assert_eq!(told, 1);
        assert!(case.by["ghost"].failure.as_deref().is_some_and(|why| why.contains("cannot be started")));
    }
}
