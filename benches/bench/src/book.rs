//! The page of results in the book, in Markdown.
//!
//! Invariant: the page is made from the results alone; nobody edits it by hand.

use crate::catalogue::WORKLOADS;
use crate::goals;
use crate::results::{Metric, Results};
use crate::table;

const HEAD: &str = "# Results\n\nMade by `cargo xtask bench --report --page` from the results of one run; not edited by \
                    hand. [Measuring](measuring.md) explains the figures. Judge by ratios: absolute times belong to \
                    the machine.\n\n";

/// The whole page.
pub fn page(results: &Results) -> String {
    let mut out = HEAD.to_owned();
    let machine: Vec<Vec<String>> =
        results.machine.iter().map(|(label, value)| vec![label.clone(), value.clone()]).collect();
    let kind = if results.quick { "quick" } else { "full" };
    let selection = vec!["selection".to_owned(), format!("{kind}, {} rounds", results.rounds)];
    let head = vec!["machine".to_owned(), String::new()];
    out.push_str(&table::markdown(&[vec![head], machine, vec![selection]].concat()));
    if let Some(caution) = results.caution() {
        out.push_str(&format!("\n**{caution}**\n"));
    }
    for (name, why) in &results.skipped {
        out.push_str(&format!("\n{name} was left out: {why}\n"));
    }
    for case in &results.cases {
        for (name, runs) in &case.by {
            if let Some(why) = &runs.failure {
                out.push_str(&format!("\n{name} failed in {}: {why}\n", case.label()));
            }
        }
    }
    let mut section = |title: &str, text: &str, rows: &[Vec<String>]| {
        if rows.len() > 1 {
            out.push_str(&format!("\n## {title}\n\n{text}\n\n{}", table::markdown(rows)));
        }
    };
    if goals::can_judge(results) {
        let text =
            "A goal holds when its ratio is at most the limit; one that this run could not judge is open.";
        section("Goals", text, &goals::rows(results));
    }
    section(
        "Against each",
        "Terrane's time per operation and peak memory as multiples of another's, geometric means over all cases that both have \
         finished.",
        &table::against_each(results),
    );
    section(
        "Time per operation",
        "Median of the rounds with half the distance from the smallest to the largest; \\* marks the best of the row.",
        &table::of_metric(results, Metric::Time),
    );
    section(
        "Peak resident memory",
        "The whole process, program and libraries included.",
        &table::of_metric(results, Metric::Peak),
    );
    section("Latency", "Sampled single operations, in runs of their own.", &table::latencies(results));
    section(
        "Memory one second after a burst",
        "Anonymous memory of the idle process, beside the bytes it still holds on purpose.",
        &table::idle(results),
    );
    section("Instructions per operation", "Counted by callgrind.", &table::instructions(results));
    section(
        "Whole programs",
        "Time and peak memory under preloaded libraries; `system` preloads nothing.",
        &table::programs(results),
    );
    out.push_str("\n## The workloads\n");
    let measured = |name: &str| results.cases.iter().any(|case| case.workload == name);
    for workload in WORKLOADS.iter().filter(|workload| measured(workload.name)) {
        out.push_str(&format!("\n**{}** ({}): {}\n", workload.name, workload.op, workload.about));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::OURS;
    use crate::record::{Idle, Record};
    use crate::results::{Case, Runs};

    #[test]
    fn the_page_has_the_sections_that_were_measured_and_no_others() {
        let idle = Some(Idle { live_bytes: 1 << 20, anon_bytes: 2 << 20, lazy_bytes: 0 });
        let record = Record { ops: 1, elapsed_ns: 5, peak_bytes: 1 << 20, idle, ..Record::default() };
        let mut case = Case { workload: "burst-and-idle".into(), threads: 1, ..Case::default() };
        case.by.insert("system".into(), Runs { rounds: vec![record], ..Runs::default() });
        let mut results =
            Results { allocators: vec!["system".into()], cases: vec![case.clone()], ..Results::default() };
        let page = page(&results);
        for title in ["Time per operation", "Peak resident memory", "Memory one second", "The workloads"] {
            assert!(page.contains(&format!("## {title}")), "{title}");
        }
        for title in ["Goals", "Against each", "Latency", "Instructions", "Whole programs"] {
            assert!(!page.contains(&format!("## {title}")), "{title}");
        }
        assert!(page.contains("| burst-and-idle | 1.00 MiB | 2.00 MiB |"), "{page}");

        let ours = Record { ops: 1, elapsed_ns: 10, peak_bytes: 1 << 19, ..Record::default() };
        case.by.insert(OURS.into(), Runs { rounds: vec![ours], ..Runs::default() });
        results.allocators.push(OURS.into());
        results.cases = vec![case];
        let page = super::page(&results);
        assert!(page.contains("| system | 1 | 2.00 | 0.50 |"), "{page}");
    }
}
