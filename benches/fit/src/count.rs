//! Instructions per request, counted by valgrind's callgrind: unlike times they come out the same on any machine, busy or
//! not, so a change of a few percent shows.
//!
//! Protocol: this program runs itself under callgrind, once for each contender and row, with `--serve`; callgrind collects
//! only inside the functions whose names hold [`MARK`], so that making engines and traces does not count.

use crate::measure::{pair, play};
use std::io;
use std::process::Command;
use terrane_fit::Workload;

/// Part of the name of every function in which instructions count.
const MARK: &str = "counted_requests";
/// Pairs of one vacate and one place that the first row counts beside those of its first round.
const PAIRS: usize = 20_000;
/// Live spans of the first row.
const LIVE: usize = 10_000;

/// Does what is to be counted: row 0 are pairs, the others the workloads, for traces of `spans` spans. Gives the number of
/// requests, a pair as one.
pub fn serve(which: usize, row: usize, spans: usize) -> usize {
    let Some(workload) = row.checked_sub(1).and_then(|at| Workload::ALL.get(at)) else {
        pair::<true>(which, LIVE, PAIRS);
        // Its first round replaces each span twice.
        return 2 * LIVE + PAIRS;
    };
    let trace = workload.trace(spans, 1);
    play::<true>(which, &trace, (trace.peak_live() * 3 / 2) & !15);
    trace.requests().len()
}

fn count(which: usize, row: usize, spans: usize) -> io::Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg(format!("--toggle-collect=*{MARK}*"))
        .arg(std::env::current_exe()?)
        .args([format!("--serve={which}"), format!("--row={row}"), format!("--spans={spans}")])
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("valgrind cannot be run: {error}")))?;
    let (said, requests) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    // The line is `==1== Collected : 12345`.
    let collected = said.lines().find(|line| line.contains("Collected :"));
    let collected = collected.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    match (collected, requests.trim().parse::<u64>()) {
        (Some(collected), Ok(requests)) if collected != 0 => Ok(collected as f64 / requests as f64),
        _ => Err(io::Error::other(format!("callgrind counted nothing: {said}"))),
    }
}

/// Prints the table for the contenders `chosen`.
pub fn table(chosen: &[usize], spans: usize) -> io::Result<()> {
    println!("Instructions per pair with {LIVE} live spans, and per request in 1.5 × peak live\n");
    crate::head("", chosen);
    for row in 0..=Workload::ALL.len() {
        let name = row.checked_sub(1).map_or("pair", |at| Workload::ALL[at].name());
        let counts = chosen.iter().map(|&which| count(which, row, spans));
        let cells: Vec<_> =
            counts.map(|count| count.map(|count| format!("{count:.1}"))).collect::<Result<_, _>>()?;
        println!("| {name} | {} |", cells.join(" | "));
    }
    Ok(())
}
