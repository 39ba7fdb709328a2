//! The report: one HTML page with everything in it, readable without a network.
//!
//! Invariant: the page is made from the results alone, and the same results always make the same page.

mod plot;

use std::fmt::Write;

use plot::{Axis, Bar, Curve, bars, colour, curves, escape};

use crate::catalogue;
use crate::goals;
use crate::results::{Case, Metric, Results, Runs};
use crate::{stats, table};

/// The whole page.
pub fn html(results: &Results) -> String {
    let mut out = String::from("<!doctype html><html lang=en><meta charset=utf-8>");
    out.push_str(
        "<meta name=viewport content='width=device-width'><title>Allocators compared</title><style>",
    );
    out.push_str(include_str!("page.css"));
    out.push_str("</style><h1>Allocators compared</h1>");
    head(&mut out, results);
    verdicts(&mut out, results);
    overview(&mut out, results);
    metric_bars(&mut out, results, Metric::Time);
    metric_bars(&mut out, results, Metric::Peak);
    idle(&mut out, results);
    latencies(&mut out, results);
    timelines(&mut out, results);
    instructions(&mut out, results);
    programs(&mut out, results);
    full_table(&mut out, results);
    out.push_str("</html>\n");
    out
}

fn section(out: &mut String, title: &str, text: &str) {
    let _ = write!(out, "<h2>{}</h2><p class=soft>{}</p>", escape(title), escape(text));
}

fn grid(out: &mut String, plots: &[String]) {
    let _ = write!(out, "<div class=grid-of>{}</div>", plots.concat());
}

fn legend(out: &mut String, results: &Results) {
    out.push_str("<p class=legend>");
    for name in &results.allocators {
        let _ = write!(out, "<span><i style='background:{}'></i>{}</span>", colour(name), escape(name));
    }
    out.push_str("</p>");
}

fn head(out: &mut String, results: &Results) {
    let about: Vec<String> = results
        .machine
        .iter()
        .map(|(label, value)| format!("{}: {}", escape(label), escape(value)))
        .collect();
    let kind = if results.quick { "Quick selection" } else { "Full selection" };
    let _ = write!(
        out,
        "<p>{kind}, {} cases, {} rounds in alternation. Judge by ratios: absolute times belong to this machine.</p>\
         <p class=soft>{}</p>",
        results.cases.len(),
        results.rounds,
        about.join(" · ")
    );
    if let Some(caution) = results.caution() {
        let _ = write!(out, "<p class=missed>{}</p>", escape(&caution));
    }
    for (name, why) in &results.skipped {
        let _ = write!(out, "<p class=missed>{} was left out: {}</p>", escape(name), escape(why));
    }
    for case in &results.cases {
        for (name, runs) in &case.by {
            if let Some(why) = &runs.failure {
                let (name, label, why) = (escape(name), escape(&case.label()), escape(why));
                let _ = write!(out, "<p class=missed>{name} failed in {label}: {why}</p>");
            }
        }
    }
}

fn verdicts(out: &mut String, results: &Results) {
    if !goals::can_judge(results) {
        return;
    }
    section(
        out,
        "Goals",
        "Ratios of Terrane to its rivals in this run; a goal holds when its ratio is at most the limit.",
    );
    out.push_str("<table><thead><tr><th>goal<th>limit<th>ratio<th><th></thead>");
    for row in goals::rows(results).iter().skip(1) {
        let [what, limit, ratio, word, detail] = row.as_slice() else { continue };
        let (what, detail) = (escape(what), escape(detail));
        let _ = write!(
            out,
            "<tr><td class=words>{what}<td>{limit}<td>{ratio}<td class={word}>{word}<td class='words soft'>{detail}"
        );
    }
    out.push_str("</table>");
}

/// The geometric mean of each allocator's ratios to the best of the case, over cases in which all have figures.
fn mean_ratios(results: &Results, metric: Metric) -> (Vec<Bar>, usize) {
    let complete = |case: &&Case| results.allocators.iter().all(|name| case.median(name, metric).is_some());
    let cases: Vec<&Case> = results.cases.iter().filter(complete).collect();
    let best = |case: &Case| {
        results.allocators.iter().filter_map(|name| case.median(name, metric)).min_by(f64::total_cmp)
    };
    let bar = |name: &String| {
        let ratios = cases.iter().filter_map(|case| Some(case.median(name, metric)? / best(case)?));
        let mean = stats::geometric_mean(ratios);
        let text = mean.map_or("–".into(), |mean| format!("{mean:.2} × best"));
        Bar { name: name.clone(), value: mean.map(|mean| (mean, mean, mean)), text }
    };
    (results.allocators.iter().map(bar).collect(), cases.len())
}

fn overview(out: &mut String, results: &Results) {
    section(
        out,
        "Overview",
        "Geometric mean, over all cases, of each allocator's ratio to the best of the case.",
    );
    let plots: Vec<String> = [(Metric::Time, "Time"), (Metric::Peak, "Peak memory")]
        .map(|(metric, title)| {
            let (list, cases) = mean_ratios(results, metric);
            bars(&format!("{title}, {cases} cases"), title, "times the smallest mean", &list)
        })
        .into();
    grid(out, &plots);
}

fn bar(case: &Case, name: &str, metric: Metric) -> Bar {
    let values = case.values(name, metric);
    let value = stats::median(&values).map(|median| {
        let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        (median, low, high)
    });
    let text = match (value, metric) {
        (None, _) => case.by.get(name).map_or("not run", |_| "failed").to_owned(),
        (Some((median, ..)), Metric::Time) => table::time(median),
        (Some((median, ..)), Metric::Peak) => table::bytes(median),
        (Some((median, ..)), Metric::Faults) => table::digits(median),
    };
    Bar { name: name.to_owned(), value, text }
}

fn metric_bars(out: &mut String, results: &Results, metric: Metric) {
    let (title, text, unit) = match metric {
        Metric::Time => (
            "Time per operation",
            "Medians as multiples of the best; the line over a bar runs from the smallest to the largest round. A cut \
             bar is more than five times the best.",
            "time, times the best",
        ),
        Metric::Peak => (
            "Peak resident memory",
            "The largest resident set of the whole process, program and libraries included.",
            "memory, times the best",
        ),
        Metric::Faults => ("Page faults", "Minor faults while the workload ran.", "faults, times the best"),
    };
    section(out, title, text);
    let plot = |case: &Case| {
        let list: Vec<Bar> = results.allocators.iter().map(|name| bar(case, name, metric)).collect();
        let workload = catalogue::find(&case.workload);
        let op = workload.map_or("", |w| w.op);
        let title = match metric {
            Metric::Time => format!("{} ({op})", case.label()),
            Metric::Peak | Metric::Faults => case.label(),
        };
        bars(&title, workload.map_or("", |w| w.about), unit, &list)
    };
    grid(out, &results.cases.iter().map(plot).collect::<Vec<_>>());
}

fn idle(out: &mut String, results: &Results) {
    let mut plots = Vec::new();
    for case in &results.cases {
        let seen = |runs: &Runs| -> Vec<(f64, f64)> {
            let pair = |record: &crate::record::Record| {
                let idle = record.idle?;
                Some((idle.anon_bytes as f64, idle.live_bytes as f64))
            };
            runs.rounds.iter().filter_map(pair).collect()
        };
        let live = case.by.values().flat_map(seen).map(|pair| pair.1).fold(0.0, f64::max);
        let bar = |name: &String| {
            let anon: Vec<f64> = seen(case.by.get(name)?).into_iter().map(|pair| pair.0).collect();
            let (median, low) = (stats::median(&anon)?, anon.iter().copied().fold(f64::MAX, f64::min));
            let high = anon.iter().copied().fold(f64::MIN, f64::max);
            Some(Bar { name: name.clone(), value: Some((median, low, high)), text: table::bytes(median) })
        };
        let list: Vec<Bar> = results.allocators.iter().filter_map(bar).collect();
        if !list.is_empty() {
            let title = format!("{}, {} live", case.label(), table::bytes(live));
            plots.push(bars(&title, "anonymous memory of the idle process", "memory, times the best", &list));
        }
    }
    if !plots.is_empty() {
        section(
            out,
            "Memory one second after a burst",
            "Anonymous memory of a process that has freed a burst and sleeps.",
        );
        grid(out, &plots);
    }
}

/// Latency at evenly spaced places between the median and the 99.99th percentile; x is the number of nines.
fn latency_curve(name: &str, histogram: &[(u64, u64)]) -> Option<Curve> {
    let points = (0..=80).filter_map(|i| {
        let nines = 0.3 + f64::from(i) * (4.0 - 0.3) / 80.0;
        let ns = stats::percentile(histogram, 1.0 - 10f64.powf(-nines))?;
        Some((nines, (ns.max(1) as f64).log10()))
    });
    let points: Vec<(f64, f64)> = points.collect();
    (!points.is_empty()).then(|| Curve { name: name.to_owned(), points })
}

type PickLatency = fn(&Runs) -> &Vec<(u64, u64)>;

fn latencies(out: &mut String, results: &Results) {
    let sides: [(&str, PickLatency); 2] = [("allocate", |r| &r.alloc_latency), ("free", |r| &r.free_latency)];
    let mut plots = Vec::new();
    for case in &results.cases {
        for (side, pick) in sides {
            let curve = |name: &String| latency_curve(name, pick(case.by.get(name)?));
            let list: Vec<Curve> = results.allocators.iter().filter_map(curve).collect();
            let top = list.iter().flat_map(|c| &c.points).map(|p| p.1).fold(f64::MIN, f64::max);
            let low = list.iter().flat_map(|c| &c.points).map(|p| p.1).fold(f64::MAX, f64::min);
            if list.is_empty() {
                continue;
            }
            let ticks = [(0.301, "50"), (1.0, "90"), (2.0, "99"), (3.0, "99.9"), (4.0, "99.99")];
            let x = Axis {
                label: "percentile of sampled operations".into(),
                ticks: ticks.map(|(at, text)| (at, text.to_owned())).into(),
                range: (0.3, 4.0),
            };
            let y = Axis::decades("latency (logarithmic)", 10f64.powf(low), 10f64.powf(top));
            plots.push(curves(&format!("{}: {side}", case.label()), "sampled latency", &x, &y, &list));
        }
    }
    if !plots.is_empty() {
        section(
            out,
            "Latency of single operations",
            "One operation in about 64 is timed, in runs of their own.",
        );
        legend(out, results);
        grid(out, &plots);
    }
}

fn timelines(out: &mut String, results: &Results) {
    let mut plots = Vec::new();
    for case in &results.cases {
        let curve = |name: &String| {
            let line = &case.by.get(name)?.timeline;
            let points: Vec<(f64, f64)> =
                line.iter().map(|(ms, bytes)| (*ms as f64 / 1e3, *bytes as f64 / (1 << 20) as f64)).collect();
            (points.len() > 1).then(|| Curve { name: name.clone(), points })
        };
        let list: Vec<Curve> = results.allocators.iter().filter_map(curve).collect();
        if list.is_empty() {
            continue;
        }
        let end = |pick: fn(&(f64, f64)) -> f64| {
            list.iter().flat_map(|curve| &curve.points).map(pick).fold(0.0, f64::max)
        };
        let (x, y) = (Axis::linear("seconds", end(|p| p.0)), Axis::linear("resident MiB", end(|p| p.1)));
        plots.push(curves(&case.label(), "resident memory over time", &x, &y, &list));
    }
    if !plots.is_empty() {
        section(
            out,
            "Memory over time",
            "Resident set of the process, read from outside in a run of its own.",
        );
        legend(out, results);
        grid(out, &plots);
    }
}

fn instructions(out: &mut String, results: &Results) {
    let mut plots = Vec::new();
    for case in &results.cases {
        let bar = |name: &String| {
            let count = case.by.get(name)?.instructions?;
            let text = table::digits(count);
            Some(Bar { name: name.clone(), value: Some((count, count, count)), text })
        };
        let list: Vec<Bar> = results.allocators.iter().filter_map(bar).collect();
        if !list.is_empty() {
            let title = format!("{}: instructions per operation", case.label());
            plots.push(bars(&title, "counted by callgrind", "instructions, times the best", &list));
        }
    }
    if !plots.is_empty() {
        let text = "Counted by callgrind as the difference of two runs, so that start-up does not count; the \
                    workload's own instructions are included.";
        section(out, "Instructions", text);
        grid(out, &plots);
    }
}

fn programs(out: &mut String, results: &Results) {
    let mut plots = Vec::new();
    for program in &results.programs {
        let libraries = program.by.keys().chain(program.failures.keys());
        let bar = |name: &String| {
            if program.failures.contains_key(name) {
                return Bar { name: name.clone(), value: None, text: "failed".into() };
            }
            let seconds: Vec<f64> = program.by[name].iter().map(|round| round.0).collect();
            let peaks: Vec<f64> = program.by[name].iter().map(|round| round.1 as f64).collect();
            let (low, high) = seconds.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
            let value = stats::median(&seconds).map(|median| (median, low, high));
            let peak = stats::median(&peaks).map_or("–".into(), table::bytes);
            let text = value.map_or("–".into(), |v| format!("{} {peak}", table::time(v.0 * 1e9)));
            Bar { name: name.clone(), value, text }
        };
        let mut list: Vec<Bar> = libraries.map(bar).collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        plots.push(bars(&program.name, "time of the whole program", "time, times the best", &list));
    }
    if !plots.is_empty() {
        let text = "Programs that know nothing of the allocator, run with its library preloaded: time and peak memory.";
        section(out, "Whole programs", text);
        grid(out, &plots);
        for program in &results.programs {
            for (library, why) in &program.failures {
                let (library, name, why) = (escape(library), escape(&program.name), escape(why));
                let _ = write!(out, "<p class=missed>{library} failed under {name}: {why}</p>");
            }
        }
    }
}

fn full_table(out: &mut String, results: &Results) {
    section(
        out,
        "All figures",
        "Median time per operation with half the spread, peak memory, and page faults.",
    );
    out.push_str("<div class=wide><table><thead><tr><th>workload");
    for name in &results.allocators {
        let _ = write!(out, "<th>{}", escape(name));
    }
    out.push_str("</thead>");
    for case in &results.cases {
        let best =
            results.allocators.iter().filter_map(|n| case.median(n, Metric::Time)).min_by(f64::total_cmp);
        let _ = write!(out, "<tr><td>{}", escape(&case.label()));
        for name in &results.allocators {
            let Some(time) = case.median(name, Metric::Time) else {
                out.push_str("<td>–");
                continue;
            };
            let class = if Some(time) == best { "best" } else { "other" };
            let spread = stats::spread(&case.values(name, Metric::Time)).unwrap_or(0.0) * 50.0;
            let peak = case.median(name, Metric::Peak).map_or("–".into(), table::bytes);
            let faults = case.median(name, Metric::Faults).unwrap_or(0.0);
            let _ = write!(
                out,
                "<td><span class={class}>{}</span> ±{spread:.0} %<br><span class=soft>{peak}, {faults:.0} faults</span>",
                table::time(time)
            );
        }
    }
    out.push_str("</table></div>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::OURS;
    use crate::record::Record;

    fn sample() -> Results {
        let mut case = Case { workload: "pair-64".into(), threads: 1, ..Case::default() };
        let record = |ns| Record { ops: 10, elapsed_ns: ns, peak_bytes: 3 << 20, ..Record::default() };
        for (name, ns) in [("system", 60), (OURS, 20)] {
            let runs = Runs {
                rounds: vec![record(ns), record(ns + 1)],
                alloc_latency: vec![(10, 99_999), (5000, 20)],
                free_latency: vec![(8, 100_000)],
                timeline: vec![(0, 1 << 20), (10, 4 << 20)],
                instructions: Some(12.5),
                ..Runs::default()
            };
            case.by.insert(name.into(), runs);
        }
        case.by.insert("jemalloc".into(), Runs { failure: Some("a <bad> end".into()), ..Runs::default() });
        Results {
            allocators: vec!["system".into(), "jemalloc".into(), OURS.into()],
            cases: vec![case],
            rounds: 2,
            skipped: vec![("snmalloc".into(), "no compiler".into())],
            ..Results::default()
        }
    }

    #[test]
    fn the_page_holds_every_section_that_has_figures_and_names_what_failed() {
        let page = html(&sample());
        for part in ["Goals", "Overview", "Time per operation", "Latency", "Memory over time", "Instructions"]
        {
            assert!(page.contains(&format!("<h2>{part}")), "{part} is missing");
        }
        assert!(!page.contains("<h2>Whole programs"), "nothing was preloaded");
        assert!(page.contains("snmalloc was left out: no compiler"));
        assert!(page.contains("a &lt;bad&gt; end") && !page.contains("<bad>"));
        assert!(page.contains("class=met>met") && page.contains("class=open>open"));
    }

    #[test]
    fn the_page_needs_nothing_from_outside() {
        let page = html(&sample());
        assert!(!page.contains("http") && !page.contains("src=") && !page.contains("@import"));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }
}
