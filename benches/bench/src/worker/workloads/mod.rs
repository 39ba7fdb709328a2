//! The workloads, by the names of the catalogue.
//!
//! Invariant: every workload does a fixed amount of work decided by its plan alone, checks what its blocks hold, and
//! frees all it allocated before it returns.

mod echo;
mod grow;
mod memory;
mod pair;
mod patterns;
mod real;
mod shared;

use crate::gang::{Measured, Plan};
use crate::probe::Probe;

/// Runs the workload called `name`; `None` if there is none.
pub fn run<P: Probe>(name: &str, plan: Plan) -> Option<Measured> {
    Some(match name {
        "pair-8" => pair::pair::<8, P>(plan),
        "pair-64" => pair::pair::<64, P>(plan),
        "pair-256" => pair::pair::<256, P>(plan),
        "pair-1k" => pair::pair::<1024, P>(plan),
        "pair-4k" => pair::pair::<4096, P>(plan),
        "pair-16k" => pair::pair::<{ 16 << 10 }, P>(plan),
        "pair-64k" => pair::pair::<{ 64 << 10 }, P>(plan),
        "pair-256k" => pair::pair::<{ 256 << 10 }, P>(plan),
        "pair-1m" => pair::pair::<{ 1 << 20 }, P>(plan),
        "pair-4m" => pair::pair::<{ 4 << 20 }, P>(plan),
        "lifo" => patterns::lifo::<P>(plan),
        "fifo" => patterns::fifo::<P>(plan),
        "random-live-10k" => patterns::random_live::<P>(plan, 10_000, 6_000_000),
        "random-live-1m" => patterns::random_live::<P>(plan, 1_000_000, 1_500_000),
        "mixed" => patterns::mixed::<P>(plan),
        "calloc" => patterns::calloc::<P>(plan),
        "large" => patterns::large::<P>(plan),
        "remote-free" => shared::remote_free::<P>(plan),
        "larson" => shared::larson::<P>(plan),
        "xmalloc" => shared::xmalloc::<P>(plan),
        "cache-scratch" => shared::cache_scratch::<P>(plan),
        "cache-thrash" => shared::cache_thrash::<P>(plan),
        "shbench" => patterns::shbench::<P>(plan),
        "alloc-test" => patterns::alloc_test::<P>(plan),
        "mstress" => shared::mstress::<P>(plan),
        "thread-churn" => shared::thread_churn::<P>(plan),
        "realloc-grow" => grow::vec_to_256_mib(plan),
        "realloc-small" => grow::many_small(plan),
        "fragmentation" => memory::fragmentation::<P>(plan),
        "burst-and-idle" => memory::burst_and_idle::<P>(plan),
        "startup" => memory::startup(plan),
        "json" => real::json(plan),
        "btree" => real::btree(plan),
        "hashmap" => real::hashmap(plan),
        "intern" => real::intern(plan),
        "columns" => real::columns(plan),
        "syn" => real::syn(plan),
        "echo" => echo::echo(plan),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Quiet, Sampled};
    use terrane_bench::catalogue::WORKLOADS;

    #[test]
    fn every_workload_of_the_catalogue_runs_and_counts_its_operations() {
        for workload in WORKLOADS {
            for &threads in workload.threads.iter().take(2) {
                let plan = Plan { threads, scale: 0.002 };
                let measured = run::<Quiet>(workload.name, plan).expect(workload.name);
                assert!(measured.ops > 0 && measured.elapsed_ns > 0, "{} × {threads}", workload.name);
                assert!(measured.samples.is_none());
                if workload.latency {
                    let sampled = run::<Sampled>(workload.name, plan).expect(workload.name);
                    assert_eq!(sampled.ops, measured.ops, "{}: sampling changed the work", workload.name);
                    assert!(sampled.samples.is_some());
                }
            }
        }
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert!(run::<Quiet>("no-such-workload", Plan { threads: 1, scale: 1.0 }).is_none());
    }
}
