//! The results of a run: raw records by case and allocator, and the figures derived from them.
//!
//! Invariant: only raw figures are stored; medians, ratios and verdicts are computed from them each time, so a report
//! made later from the file says the same as the one made at once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::record::Record;
use crate::stats::{self, Ratio};

/// Everything one run of the driver learned.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// Where it ran, as label and value.
    pub machine: Vec<(String, String)>,
    /// Rounds asked for.
    pub rounds: usize,
    /// Whether this was the quick selection.
    pub quick: bool,
    /// Allocators measured, in the order of the alternation.
    pub allocators: Vec<String>,
    /// Allocators left out, with the reason.
    pub skipped: Vec<(String, String)>,
    /// Measured cases, in the order of the catalogue.
    pub cases: Vec<Case>,
    /// Programs run under preloaded libraries.
    #[serde(default)]
    pub programs: Vec<Program>,
}

/// One workload at one number of threads.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Case {
    /// The workload's name.
    pub workload: String,
    /// Threads that worked at the same time.
    pub threads: usize,
    /// By allocator.
    pub by: BTreeMap<String, Runs>,
}

/// What one allocator did in one case.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Runs {
    /// One record per round.
    pub rounds: Vec<Record>,
    /// Latencies of allocations over all sampled runs, as `(upper bound in ns, samples)`.
    #[serde(default)]
    pub alloc_latency: Vec<(u64, u64)>,
    /// Latencies of frees.
    #[serde(default)]
    pub free_latency: Vec<(u64, u64)>,
    /// Resident memory over time, as `(milliseconds, bytes)`.
    #[serde(default)]
    pub timeline: Vec<(u64, u64)>,
    /// Instructions per operation under callgrind.
    #[serde(default)]
    pub instructions: Option<f64>,
    /// Why there are no further rounds, when one failed.
    #[serde(default)]
    pub failure: Option<String>,
}

/// One external program, by the library preloaded under it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Program {
    /// What was run.
    pub name: String,
    /// By library: one `(seconds, peak resident bytes)` per round.
    pub by: BTreeMap<String, Vec<(f64, u64)>>,
    /// By library: why it could not be run or differed from the run without it.
    #[serde(default)]
    pub failures: BTreeMap<String, String>,
}

/// A figure that a round yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Nanoseconds per operation.
    Time,
    /// Peak resident bytes.
    Peak,
    /// Minor page faults.
    Faults,
}

impl Results {
    /// A caution for the reader where something else was running when the run began.
    pub fn caution(&self) -> Option<String> {
        let load =
            self.machine.iter().find(|(label, _)| label == crate::machine::LOAD)?.1.parse::<f64>().ok()?;
        (load >= 1.0).then(|| {
            format!(
                "The machine was busy with other work when this run began (load {load}): narrow differences in time mean \
                 nothing here; memory, page faults and ratios far from 1 do."
            )
        })
    }

    /// The known allocators among those measured: the field that Terrane is compared with. Workers added by hand are
    /// shown but are nobody's best.
    pub fn peers(&self) -> Vec<&str> {
        self.allocators.iter().map(String::as_str).filter(|name| crate::peers::find(name).is_some()).collect()
    }
}

impl Case {
    /// `workload` or `workload ×threads`.
    pub fn label(&self) -> String {
        match self.threads {
            1 => self.workload.clone(),
            n => format!("{} ×{n}", self.workload),
        }
    }

    /// The metric of each round of `allocator`; nothing for one that failed.
    pub fn values(&self, allocator: &str, metric: Metric) -> Vec<f64> {
        let Some(runs) = self.by.get(allocator).filter(|runs| runs.failure.is_none()) else {
            return Vec::new();
        };
        let value = |record: &Record| match metric {
            Metric::Time => record.elapsed_ns as f64 / record.ops.max(1) as f64,
            Metric::Peak => record.peak_bytes as f64,
            Metric::Faults => record.minor_faults as f64,
        };
        runs.rounds.iter().map(value).collect()
    }

    /// The median of the metric.
    pub fn median(&self, allocator: &str, metric: Metric) -> Option<f64> {
        stats::median(&self.values(allocator, metric))
    }

    /// `subject` against the best of `others` other than itself.
    pub fn ratio(&self, subject: &str, others: &[&str], metric: Metric) -> Option<Ratio> {
        let others: Vec<Vec<f64>> =
            others.iter().filter(|o| **o != subject).map(|o| self.values(o, metric)).collect();
        let others: Vec<&[f64]> = others.iter().map(Vec::as_slice).filter(|v| !v.is_empty()).collect();
        stats::ratio_to_best(&self.values(subject, metric), &others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(ns: &[u64]) -> Runs {
        let record = |ns: &u64| Record { ops: 10, elapsed_ns: *ns, ..Record::default() };
        Runs { rounds: ns.iter().map(record).collect(), ..Runs::default() }
    }

    #[test]
    fn a_busy_machine_is_owned_up_to() {
        let with = |load: &str| Results {
            machine: vec![(crate::machine::LOAD.into(), load.into())],
            ..Results::default()
        };
        assert!(with("3.04").caution().is_some_and(|text| text.contains("3.04")));
        assert_eq!(with("0.20").caution(), None);
        assert_eq!(Results::default().caution(), None);
    }

    #[test]
    fn a_failed_allocator_has_no_figures_and_is_nobodys_best() {
        let mut case = Case { workload: "w".into(), threads: 2, ..Case::default() };
        case.by.insert("a".into(), runs(&[100, 120, 110]));
        case.by.insert("b".into(), runs(&[220, 220, 220]));
        case.by.insert("c".into(), Runs { failure: Some("corrupt".into()), ..runs(&[1]) });
        assert_eq!(case.label(), "w ×2");
        assert_eq!(case.median("a", Metric::Time), Some(11.0));
        assert_eq!(case.ratio("a", &["a", "b", "c"], Metric::Time).map(|r| r.value), Some(0.5));
        assert_eq!(case.ratio("c", &["a"], Metric::Time), None);
    }
}
