//! The goals, as data, and what a run says about each.
//!
//! Invariant: a verdict needs figures. A goal none of whose cases was measured, or whose peers were not, is neither
//! met nor missed; one of which a part was measured says how many cases it judged.

use crate::catalogue::{self, Family};
use crate::peers::{self, Language, OURS};
use crate::results::{Case, Metric, Results};
use crate::stats;

/// Which peers a goal compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// The best of all, case by case.
    Best,
    /// The best of those written in C or C++.
    BestC,
    /// The best of those written in Rust.
    BestRust,
    /// One by name.
    One(&'static str),
    /// Whichever of these has the smallest geometric mean over the cases.
    MostFrugal(&'static [&'static str]),
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Time per operation.
    Time,
    /// Peak resident memory.
    Peak,
    /// 99.99th percentile of the latency of allocations and of frees, the worse ratio of the two.
    TailLatency,
    /// Anonymous memory of an idle program against 1.2 × live bytes + 4 MiB.
    Idle,
    /// Time of whole programs under preloaded libraries.
    Programs,
    /// Judged by another command, named in the text.
    Elsewhere,
}

/// How the ratios of the cases become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// Each has to hold; the worst is shown.
    Each,
    /// Their geometric mean has to hold.
    Mean,
}

/// One goal.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// What is wanted, in words.
    pub what: &'static str,
    /// Which cases it is about.
    pub cases: fn(&Case) -> bool,
    /// What is compared.
    pub quantity: Quantity,
    /// With whom.
    pub against: Against,
    /// Each case, or their mean.
    pub fold: Fold,
    /// The ratio that must not be exceeded.
    pub limit: f64,
}

fn family(case: &Case) -> Option<Family> {
    catalogue::find(&case.workload).map(|workload| workload.family)
}

fn small_pairs(case: &Case) -> bool {
    case.threads == 1 && ["pair-8", "pair-64", "pair-256", "pair-1k"].contains(&case.workload.as_str())
}

/// Whole processes are timed from outside and spend their time elsewhere: they have no part in time goals.
fn single_thread(case: &Case) -> bool {
    case.threads == 1 && family(case) != Some(Family::Process)
}

fn servers(case: &Case) -> bool {
    case.threads > 1
        && ["larson", "xmalloc", "mstress", "cache-scratch", "cache-thrash"].contains(&case.workload.as_str())
}

const BASE: Goal = Goal {
    what: "",
    cases: |_| true,
    quantity: Quantity::Time,
    against: Against::Best,
    fold: Fold::Each,
    limit: 1.0,
};

/// All goals.
pub const GOALS: &[Goal] = &[
    Goal {
        what: "small pair of constant layout, one thread, against the best C peer",
        cases: small_pairs,
        against: Against::BestC,
        limit: 0.5,
        ..BASE
    },
    Goal {
        what: "small pair of constant layout, one thread, against the best Rust peer",
        cases: small_pairs,
        against: Against::BestRust,
        limit: 0.85,
        ..BASE
    },
    Goal {
        what: "hit path: allocation in 8, free in 12 instructions, 2 branches each (cargo xtask golden)",
        quantity: Quantity::Elsewhere,
        ..BASE
    },
    Goal {
        what: "throughput as threads grow: nothing shared is written on the hit path (cargo xtask golden: no locked instruction)",
        quantity: Quantity::Elsewhere,
        ..BASE
    },
    Goal { what: "every single-thread workload", cases: single_thread, ..BASE },
    Goal {
        what: "single-thread workloads, geometric mean",
        cases: single_thread,
        fold: Fold::Mean,
        limit: 0.8,
        ..BASE
    },
    Goal { what: "larson, xmalloc, mstress, cache-* on 2 and 8 threads, each", cases: servers, ..BASE },
    Goal {
        what: "larson, xmalloc, mstress, cache-* on 2 and 8 threads, geometric mean",
        cases: servers,
        fold: Fold::Mean,
        limit: 0.85,
        ..BASE
    },
    Goal { what: "realloc-grow", cases: |case| case.workload == "realloc-grow", limit: 0.5, ..BASE },
    Goal {
        what: "64 B pair against the system",
        cases: |case| case.workload == "pair-64" && case.threads == 1,
        against: Against::One("system"),
        limit: 0.33,
        ..BASE
    },
    Goal {
        what: "4 KiB pair against the system",
        cases: |case| case.workload == "pair-4k" && case.threads == 1,
        against: Against::One("system"),
        limit: 0.4,
        ..BASE
    },
    Goal {
        what: "1 MiB pair against the system",
        cases: |case| case.workload == "pair-1m" && case.threads == 1,
        against: Against::One("system"),
        ..BASE
    },
    Goal {
        what: "mixed sizes against the system",
        cases: |case| case.workload == "mixed" && case.threads == 1,
        against: Against::One("system"),
        limit: 0.5,
        ..BASE
    },
    Goal {
        what: "preloaded programs, geometric mean of time",
        quantity: Quantity::Programs,
        fold: Fold::Mean,
        limit: 0.97,
        ..BASE
    },
    Goal { what: "preloaded programs, each", quantity: Quantity::Programs, limit: 1.03, ..BASE },
    Goal {
        what: "peak memory over all workloads, geometric mean, against the more frugal of mimalloc and jemalloc",
        quantity: Quantity::Peak,
        against: Against::MostFrugal(&["mimalloc2", "mimalloc3", "jemalloc"]),
        fold: Fold::Mean,
        ..BASE
    },
    Goal { what: "peak memory of every workload", quantity: Quantity::Peak, limit: 1.25, ..BASE },
    Goal {
        what: "memory one second after a burst, against 1.2 × live bytes + 4 MiB",
        quantity: Quantity::Idle,
        ..BASE
    },
    Goal {
        what: "p99.99 latency of allocation and of free on 2 threads",
        cases: |case| case.threads == 2,
        quantity: Quantity::TailLatency,
        ..BASE
    },
];

/// What a run says about a goal.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It holds.
    Met(Figure),
    /// It does not.
    Missed(Figure),
    /// Too little was measured to say; the reason.
    Unknown(&'static str),
}

/// The figure behind a verdict.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The ratio compared with the limit: the worst, or the mean.
    pub ratio: f64,
    /// The case with the largest ratio, and that ratio.
    pub worst: (String, f64),
    /// Cases judged.
    pub cases: usize,
    /// Cases that alone exceed the limit.
    pub over: usize,
}

fn rivals(results: &Results, against: Against) -> Vec<&str> {
    let all = results.peers().into_iter().filter(|name| *name != OURS);
    let language = |name: &str| peers::find(name).map(|peer| peer.language);
    match against {
        Against::Best => all.collect(),
        Against::BestC => all.filter(|name| language(name) == Some(Language::C)).collect(),
        Against::BestRust => all.filter(|name| language(name) == Some(Language::Rust)).collect(),
        Against::One(one) => all.filter(|name| *name == one).collect(),
        Against::MostFrugal(some) => all.filter(|name| some.contains(name)).collect(),
    }
}

fn tail_ratio(case: &Case, rivals: &[&str]) -> Option<f64> {
    let tail = |name: &str, pick: fn(&crate::results::Runs) -> &Vec<(u64, u64)>| {
        case.by.get(name).and_then(|runs| stats::percentile(pick(runs), 0.9999)).map(|ns| ns.max(1) as f64)
    };
    let ratio = |pick: fn(&crate::results::Runs) -> &Vec<(u64, u64)>| {
        let best = rivals.iter().filter_map(|name| tail(name, pick)).min_by(f64::total_cmp)?;
        Some(tail(OURS, pick)? / best)
    };
    Some(ratio(|runs| &runs.alloc_latency)?.max(ratio(|runs| &runs.free_latency)?))
}

fn idle_ratio(case: &Case) -> Option<f64> {
    let runs = &case.by.get(OURS)?.rounds;
    let ratio = |record: &crate::record::Record| {
        let idle = record.idle?;
        Some(idle.anon_bytes as f64 / (1.2 * idle.live_bytes as f64 + (4 << 20) as f64))
    };
    stats::median(&runs.iter().filter_map(ratio).collect::<Vec<_>>())
}

fn program_ratios(results: &Results) -> Vec<(String, f64)> {
    let seconds =
        |rounds: &[(f64, u64)]| stats::median(&rounds.iter().map(|round| round.0).collect::<Vec<_>>());
    let ratio = |program: &crate::results::Program| {
        let ours = seconds(program.by.get(OURS)?)?;
        let others = program.by.iter().filter(|(name, _)| *name != OURS);
        let best = others.filter_map(|(_, rounds)| seconds(rounds)).min_by(f64::total_cmp)?;
        Some((program.name.clone(), ours / best))
    };
    results.programs.iter().filter_map(ratio).collect()
}

fn ratios(results: &Results, goal: &Goal) -> Vec<(String, f64)> {
    let rivals = rivals(results, goal.against);
    let cases = || results.cases.iter().filter(|case| (goal.cases)(case));
    let collect = |of: &dyn Fn(&Case) -> Option<f64>| -> Vec<(String, f64)> {
        cases().filter_map(|case| Some((case.label(), of(case)?))).collect()
    };
    match goal.quantity {
        Quantity::Elsewhere => Vec::new(),
        Quantity::Programs => program_ratios(results),
        Quantity::Idle => collect(&idle_ratio),
        Quantity::TailLatency => collect(&|case| tail_ratio(case, &rivals)),
        Quantity::Time | Quantity::Peak => {
            let metric = if goal.quantity == Quantity::Time { Metric::Time } else { Metric::Peak };
            let against = |some: &[&str]| collect(&|case| case.ratio(OURS, some, metric).map(|r| r.value));
            match goal.against {
                // One peer over all cases: the one that is hardest to beat.
                Against::MostFrugal(_) => {
                    let mean = |list: &Vec<(String, f64)>| {
                        stats::geometric_mean(list.iter().map(|(_, ratio)| *ratio)).unwrap_or(0.0)
                    };
                    let each = rivals.iter().map(|rival| against(&[rival]));
                    each.max_by(|a, b| mean(a).total_cmp(&mean(b))).unwrap_or_default()
                }
                _ => against(&rivals),
            }
        }
    }
}

/// Judges one goal.
pub fn judge(results: &Results, goal: &Goal) -> Verdict {
    if goal.quantity == Quantity::Elsewhere {
        return Verdict::Unknown("judged by the command named");
    }
    let ratios = ratios(results, goal);
    let Some((case, worst)) = ratios.iter().max_by(|a, b| a.1.total_cmp(&b.1)).cloned() else {
        return Verdict::Unknown("not measured in this run");
    };
    let ratio = match goal.fold {
        Fold::Each => worst,
        Fold::Mean => stats::geometric_mean(ratios.iter().map(|(_, ratio)| *ratio)).unwrap_or(worst),
    };
    let over = ratios.iter().filter(|(_, ratio)| *ratio > goal.limit).count();
    let figure = Figure { ratio, worst: (case, worst), cases: ratios.len(), over };
    if ratio <= goal.limit { Verdict::Met(figure) } else { Verdict::Missed(figure) }
}

impl Verdict {
    /// One word.
    pub fn word(&self) -> &'static str {
        match self {
            Verdict::Met(_) => "met",
            Verdict::Missed(_) => "missed",
            Verdict::Unknown(_) => "open",
        }
    }

    /// What stands behind the word.
    pub fn detail(&self, goal: &Goal) -> String {
        match self {
            Verdict::Unknown(why) => (*why).to_owned(),
            Verdict::Met(figure) | Verdict::Missed(figure) => {
                let of = match (goal.fold, figure.over) {
                    (Fold::Mean, _) => format!("mean of {}", figure.cases),
                    (Fold::Each, 0) => format!("worst of {}", figure.cases),
                    (Fold::Each, over) => format!("{over} of {} above", figure.cases),
                };
                format!("{of}; {} at {:.2}", figure.worst.0, figure.worst.1)
            }
        }
    }
}

/// Whether the run measured Terrane at all.
pub fn can_judge(results: &Results) -> bool {
    results.allocators.iter().any(|name| name == OURS)
        || results.programs.iter().any(|p| p.by.contains_key(OURS))
}

/// The verdicts as rows: goal, limit, ratio, verdict, what stands behind it.
pub fn rows(results: &Results) -> Vec<Vec<String>> {
    let row = |goal: &Goal| {
        let verdict = judge(results, goal);
        let ratio = match &verdict {
            Verdict::Met(figure) | Verdict::Missed(figure) => format!("{:.2}", figure.ratio),
            Verdict::Unknown(_) => "–".into(),
        };
        let limit = format!("{:.2}", goal.limit);
        vec![goal.what.to_owned(), limit, ratio, verdict.word().to_owned(), verdict.detail(goal)]
    };
    let head = ["goal", "limit", "ratio", "verdict", crate::table::WORDS].map(str::to_owned).into();
    std::iter::once(head).chain(GOALS.iter().map(row)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Idle, Record};
    use crate::results::{Program, Runs};

    /// A workload, its threads, and nanoseconds by allocator.
    type Row<'a> = (&'a str, usize, &'a [(&'a str, u64)]);

    fn results(cases: &[Row<'_>]) -> Results {
        let mut results = Results::default();
        for (workload, threads, by) in cases {
            let mut case = Case { workload: (*workload).into(), threads: *threads, ..Case::default() };
            for (name, ns) in *by {
                let record = Record { ops: 1, elapsed_ns: *ns, peak_bytes: *ns << 20, ..Record::default() };
                case.by.insert((*name).into(), Runs { rounds: vec![record], ..Runs::default() });
                if !results.allocators.iter().any(|known| known == name) {
                    results.allocators.push((*name).into());
                }
            }
            results.cases.push(case);
        }
        results
    }

    fn goal(part: &str) -> &'static Goal {
        GOALS.iter().find(|goal| goal.what.contains(part)).expect("a goal with these words")
    }

    #[test]
    fn a_goal_is_met_at_its_limit_and_missed_above() {
        let at = results(&[("realloc-grow", 1, &[("system", 20), ("jemalloc", 30), (OURS, 10)])]);
        assert!(matches!(judge(&at, goal("realloc-grow")), Verdict::Met(figure) if figure.ratio == 0.5));
        let above = results(&[("realloc-grow", 1, &[("system", 20), (OURS, 11)])]);
        assert!(matches!(judge(&above, goal("realloc-grow")), Verdict::Missed(_)));
    }

    #[test]
    fn what_was_not_measured_is_neither_met_nor_missed() {
        let alone = results(&[("realloc-grow", 1, &[(OURS, 10)])]);
        for goal in GOALS {
            assert!(matches!(judge(&alone, goal), Verdict::Unknown(_)), "{}", goal.what);
        }
        let without_rust = results(&[("pair-64", 1, &[("system", 10), (OURS, 1)])]);
        assert!(matches!(judge(&without_rust, goal("best Rust peer")), Verdict::Unknown(_)));
        assert!(matches!(judge(&without_rust, goal("best C peer")), Verdict::Met(_)));
    }

    #[test]
    fn each_names_the_worst_case_and_a_mean_forgives_it() {
        let both = results(&[
            ("pair-64", 1, &[("system", 100), (OURS, 20)]),
            ("lifo", 1, &[("system", 100), (OURS, 120)]),
            ("lifo", 8, &[("system", 100), (OURS, 900)]),
        ]);
        let Verdict::Missed(each) = judge(&both, goal("every single-thread")) else {
            panic!("one is slower")
        };
        assert_eq!((each.worst, each.cases, each.over), (("lifo".to_owned(), 1.2), 2, 1));
        assert!(matches!(judge(&both, goal("single-thread workloads, geometric")), Verdict::Met(_)));
    }

    #[test]
    fn a_failed_rival_does_not_count_and_a_variant_is_no_rival() {
        let mut run =
            results(&[("realloc-grow", 1, &[("system", 40), ("jemalloc", 1), ("before", 1), (OURS, 10)])]);
        run.cases[0].by.get_mut("jemalloc").expect("present").failure = Some("crashed".into());
        assert!(matches!(judge(&run, goal("realloc-grow")), Verdict::Met(figure) if figure.ratio == 0.25));
    }

    #[test]
    fn memory_is_compared_with_the_most_frugal_of_the_named() {
        let run = results(&[("json", 1, &[("system", 1), ("mimalloc3", 30), ("jemalloc", 20), (OURS, 19)])]);
        let Verdict::Met(figure) = judge(&run, goal("geometric mean, against the more frugal")) else {
            panic!("19 MiB is less than 20")
        };
        assert!((figure.ratio - 0.95).abs() < 1e-9);
        assert!(matches!(judge(&run, goal("peak memory of every")), Verdict::Missed(_)));
    }

    #[test]
    fn idle_memory_tails_and_programs_have_their_own_ratios() {
        let mut run = results(&[("burst-and-idle", 2, &[("system", 1), (OURS, 1)])]);
        let ours = run.cases[0].by.get_mut(OURS).expect("present");
        ours.rounds[0].idle = Some(Idle { live_bytes: 10 << 20, anon_bytes: 32 << 20, lazy_bytes: 0 });
        ours.alloc_latency = vec![(10, 9999), (500, 2)];
        ours.free_latency = vec![(10, 100)];
        let system = run.cases[0].by.get_mut("system").expect("present");
        (system.alloc_latency, system.free_latency) = (vec![(1000, 10)], vec![(5, 100)]);
        assert!(matches!(judge(&run, goal("after a burst")), Verdict::Missed(figure) if figure.ratio == 2.0));
        // Twice as fast in allocations, half as fast in frees: the worse counts.
        assert!(matches!(judge(&run, goal("p99.99")), Verdict::Missed(figure) if figure.ratio == 2.0));
        run.cases[0].by.get_mut(OURS).expect("present").free_latency = vec![(2, 100)];
        assert!(matches!(judge(&run, goal("p99.99")), Verdict::Met(figure) if figure.ratio == 0.5));
        let by = [("system".to_owned(), vec![(2.0, 1)]), (OURS.to_owned(), vec![(1.9, 1)])];
        run.programs.push(Program { name: "python".into(), by: by.into(), ..Program::default() });
        assert!(matches!(judge(&run, goal("programs, geometric")), Verdict::Met(_)));
    }
}
