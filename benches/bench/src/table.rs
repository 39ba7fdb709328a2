//! The results as tables: for a terminal and for the book.
//!
//! Invariant: one row per case; the best allocator of a row is marked, a failed one says so instead of a figure. Both
//! renderings are made from the same rows.

use std::fmt::Write;

use crate::peers::OURS;
use crate::results::{Case, Metric, Results};
use crate::stats;

/// `ns` with a fitting unit, three digits.
pub fn time(ns: f64) -> String {
    match ns {
        n if n < 1e3 => format!("{} ns", digits(n)),
        n if n < 1e6 => format!("{} µs", digits(n / 1e3)),
        n if n < 1e9 => format!("{} ms", digits(n / 1e6)),
        n => format!("{} s", digits(n / 1e9)),
    }
}

/// Bytes as KiB, MiB or GiB, three digits.
pub fn bytes(bytes: f64) -> String {
    match bytes {
        n if n < (1 << 20) as f64 => format!("{} KiB", digits(n / 1024.0)),
        n if n < (1 << 30) as f64 => format!("{} MiB", digits(n / (1 << 20) as f64)),
        n => format!("{} GiB", digits(n / (1 << 30) as f64)),
    }
}

/// Three significant digits.
pub fn digits(n: f64) -> String {
    match n {
        n if n < 9.995 => format!("{n:.2}"),
        n if n < 99.95 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

fn cell(case: &Case, allocator: &str, metric: Metric, best: Option<f64>) -> String {
    if case.by.get(allocator).is_some_and(|runs| runs.failure.is_some()) {
        return "failed".into();
    }
    let Some(median) = case.median(allocator, metric) else { return "–".into() };
    let text = match metric {
        Metric::Time => time(median),
        Metric::Peak => bytes(median),
        Metric::Faults => digits(median),
    };
    let spread = stats::spread(&case.values(allocator, metric)).unwrap_or(0.0);
    let mark = if Some(median) == best { "*" } else { "" };
    match metric {
        Metric::Time => format!("{text}{mark} ±{:.0}%", spread * 50.0),
        Metric::Peak | Metric::Faults => format!("{text}{mark}"),
    }
}

/// The head of a column that holds words, not figures.
pub const WORDS: &str = "behind it";

/// Rows of cells; the first row is the head.
pub type Rows = Vec<Vec<String>>;

/// Medians of one metric.
pub fn of_metric(results: &Results, metric: Metric) -> Rows {
    let names: Vec<&str> = results.allocators.iter().map(String::as_str).collect();
    let ours = names.contains(&OURS);
    let mut rows: Vec<Vec<String>> = vec![vec!["workload".to_owned()]];
    rows[0].extend(results.allocators.iter().cloned());
    if ours {
        rows[0].push(format!("{OURS} / best other"));
    }
    for case in &results.cases {
        let best = names.iter().filter_map(|name| case.median(name, metric)).min_by(f64::total_cmp);
        let mut row = vec![case.label()];
        row.extend(names.iter().map(|name| cell(case, name, metric, best)));
        if ours {
            row.push(case.ratio(OURS, &results.peers(), metric).map_or("–".into(), |ratio| {
                format!("{:.2} ({:.2}–{:.2})", ratio.value, ratio.low, ratio.high)
            }));
        }
        rows.push(row);
    }
    rows
}

/// Geometric means of our ratios to each peer, over the cases that both have finished.
pub fn against_each(results: &Results) -> Rows {
    let words = ["against", "cases", "time", "peak memory"].map(str::to_owned);
    let mut rows: Rows = vec![words.into()];
    for peer in results.peers().into_iter().filter(|peer| *peer != OURS) {
        let ratios = |metric| -> Vec<f64> {
            let ratio = |case: &Case| Some(case.median(OURS, metric)? / case.median(peer, metric)?);
            results.cases.iter().filter_map(ratio).collect()
        };
        let (times, peaks) = (ratios(Metric::Time), ratios(Metric::Peak));
        if let (Some(time), Some(peak)) = (stats::geometric_mean(times.clone()), stats::geometric_mean(peaks))
        {
            rows.push(vec![
                peer.to_owned(),
                times.len().to_string(),
                format!("{time:.2}"),
                format!("{peak:.2}"),
            ]);
        }
    }
    rows
}

/// Instructions per operation.
pub fn instructions(results: &Results) -> Rows {
    let mut rows: Vec<Vec<String>> = vec![vec!["workload".to_owned()]];
    rows[0].extend(results.allocators.iter().cloned());
    for case in &results.cases {
        let count = |name: &String| case.by.get(name).and_then(|runs| runs.instructions);
        if results.allocators.iter().any(|name| count(name).is_some()) {
            let cells = results.allocators.iter().map(|name| count(name).map_or("–".into(), digits));
            rows.push(std::iter::once(case.label()).chain(cells).collect());
        }
    }
    rows
}

/// Percentiles of latency: the median, the 99th and the 99.99th, of allocations and of frees.
pub fn latencies(results: &Results) -> Rows {
    let mut rows: Rows = vec![vec!["p50 / p99 / p99.99".to_owned()]];
    rows[0].extend(results.allocators.iter().cloned());
    for case in &results.cases {
        for side in ["allocate", "free"] {
            let cell = |name: &String| {
                let runs = case.by.get(name)?;
                let histogram = if side == "free" { &runs.free_latency } else { &runs.alloc_latency };
                let at = |share| stats::percentile(histogram, share).map(|ns| time(ns as f64));
                Some(format!("{} / {} / {}", at(0.5)?, at(0.99)?, at(0.9999)?))
            };
            let cells: Vec<Option<String>> = results.allocators.iter().map(cell).collect();
            if cells.iter().any(Option::is_some) {
                let cells = cells.into_iter().map(|cell| cell.unwrap_or("–".into()));
                rows.push(std::iter::once(format!("{} {side}", case.label())).chain(cells).collect());
            }
        }
    }
    rows
}

/// Anonymous memory one second after a burst, beside the bytes still live.
pub fn idle(results: &Results) -> Rows {
    let mut rows: Rows = vec![vec!["workload".to_owned(), "live".to_owned()]];
    rows[0].extend(results.allocators.iter().cloned());
    for case in &results.cases {
        let figures = |name: &String, pick: fn(&crate::record::Idle) -> u64| {
            let rounds = &case.by.get(name)?.rounds;
            let values: Vec<f64> =
                rounds.iter().filter_map(|r| Some(pick(r.idle.as_ref()?) as f64)).collect();
            stats::median(&values)
        };
        let live = results.allocators.iter().find_map(|name| figures(name, |idle| idle.live_bytes));
        let Some(live) = live else { continue };
        let cells = results.allocators.iter().map(|name| figures(name, |idle| idle.anon_bytes));
        let cells = cells.map(|figure| figure.map_or("–".into(), bytes));
        rows.push([case.label(), bytes(live)].into_iter().chain(cells).collect());
    }
    rows
}

/// Seconds and peak memory of whole programs.
pub fn programs(results: &Results) -> Rows {
    let mut libraries: Vec<&String> = results
        .programs
        .iter()
        .flat_map(|program| program.by.keys().chain(program.failures.keys()))
        .collect();
    libraries.sort();
    libraries.dedup();
    let mut rows: Vec<Vec<String>> = vec![vec!["program".to_owned()]];
    rows[0].extend(libraries.iter().map(|name| (*name).clone()));
    for program in &results.programs {
        let cell = |name: &&String| {
            if program.failures.contains_key(*name) {
                return "failed".to_owned();
            }
            let Some(rounds) = program.by.get(*name) else { return "–".to_owned() };
            let seconds = stats::median(&rounds.iter().map(|round| round.0).collect::<Vec<_>>());
            let peak = stats::median(&rounds.iter().map(|round| round.1 as f64).collect::<Vec<_>>());
            format!("{:.3} s {}", seconds.unwrap_or(0.0), bytes(peak.unwrap_or(0.0)))
        };
        rows.push(std::iter::once(program.name.clone()).chain(libraries.iter().map(cell)).collect());
    }
    rows
}

/// For a terminal: the first column and columns of words to the left, figures to the right.
pub fn plain(rows: &[Vec<String>]) -> String {
    let columns = rows[0].len();
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (text, width)) in row.iter().zip(&widths).enumerate() {
            let gap = " ".repeat(width - text.chars().count());
            let words = column == 0 || rows[0][column] == WORDS;
            let _ = match (column, words) {
                (0, _) => write!(line, "{text}{gap}"),
                (_, true) => write!(line, "  {text}{gap}"),
                (_, false) => write!(line, "  {gap}{text}"),
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// For the book: a Markdown table.
pub fn markdown(rows: &[Vec<String>]) -> String {
    let mut out = String::new();
    for (at, row) in rows.iter().enumerate() {
        let cells: Vec<String> =
            row.iter().map(|cell| cell.replace('|', "\\|").replace('*', "\\*")).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
        if at == 0 {
            let _ = writeln!(out, "|---|{}", "---:|".repeat(row.len() - 1));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use crate::results::Runs;

    #[test]
    fn the_best_is_marked_and_a_failure_is_named() {
        let runs = |ns| Runs {
            rounds: vec![Record { ops: 1, elapsed_ns: ns, ..Record::default() }],
            ..Runs::default()
        };
        let mut case = Case { workload: "pair-64".into(), threads: 1, ..Case::default() };
        case.by.insert("system".into(), runs(20));
        case.by.insert(OURS.into(), runs(10));
        case.by.insert("broken".into(), Runs { failure: Some("crashed".into()), ..runs(1) });
        let results = Results {
            allocators: vec!["system".into(), "broken".into(), OURS.into()],
            cases: vec![case],
            ..Results::default()
        };
        let text = plain(&of_metric(&results, Metric::Time));
        let row = text.lines().nth(1).expect("one case");
        assert!(row.starts_with("pair-64"), "{row}");
        assert!(
            row.contains("20.0 ns ±0%") && row.contains("failed") && row.contains("10.0 ns* ±0%"),
            "{row}"
        );
        assert!(row.trim_end().ends_with("0.50 (0.50–0.50)"), "{row}");
    }

    #[test]
    fn markdown_has_a_rule_under_its_head_and_no_stray_marks() {
        let rows = vec![vec!["a".to_owned(), "b".to_owned()], vec!["x|y".to_owned(), "1*".to_owned()]];
        assert_eq!(markdown(&rows), "| a | b |\n|---|---:|\n| x\\|y | 1\\* |\n");
    }

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        assert_eq!(time(1.234), "1.23 ns");
        assert_eq!(time(45_678.0), "45.7 µs");
        assert_eq!(bytes(3.5 * 1048576.0), "3.50 MiB");
        assert_eq!(time(999_600.0), "1000 µs");
    }
}
