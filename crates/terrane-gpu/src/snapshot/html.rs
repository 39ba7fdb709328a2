//! The page: figures, bytes over time, and the map of memory over time. No scripts, nothing from elsewhere.
//!
//! Across the map runs time, upwards the addresses that were ever in use: stretches that never were take no room. A block is a
//! rectangle in its stream's colour, and says what it is when pointed at.

use super::Snapshot;
use std::fmt::Write;

/// Width and heights of the drawings, in pixels.
const WIDTH: f64 = 1000.0;
const MAP_HEIGHT: f64 = 460.0;
const CURVE_HEIGHT: f64 = 120.0;
const MARGIN: f64 = 112.0;
/// Height of a line of text in a drawing.
const LINE: f64 = 13.0;
/// Rectangles drawn at most; the newest win.
const MOST: usize = 20_000;

const COLOURS: [&str; 8] =
    ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bb7722", "#777777"];

/// Bytes as a person says them.
fn bytes(value: u64) -> String {
    let (mut scaled, mut unit) = (value as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if scaled < 1024.0 {
            break;
        }
        (scaled, unit) = (scaled / 1024.0, next);
    }
    if unit == "B" { format!("{value} B") } else { format!("{scaled:.1} {unit}") }
}

fn millis(nanos: u64) -> String {
    format!("{:.3} ms", nanos as f64 / 1e6)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Addresses that were in use, without the stretches that never were.
struct Addresses {
    /// Start, end, and how many bytes of use lie below.
    stretches: Vec<(u64, u64, u64)>,
    total: u64,
}

impl Addresses {
    fn of(snapshot: &Snapshot) -> Self {
        let mut ranges: Vec<(u64, u64)> =
            snapshot.blocks.iter().map(|b| (b.address, b.address + b.len)).collect();
        ranges.sort_unstable();
        let mut stretches: Vec<(u64, u64, u64)> = Vec::new();
        let mut total = 0;
        for (start, end) in ranges {
            match stretches.last_mut() {
                Some(last) if start <= last.1 => {
                    total += end.saturating_sub(last.1);
                    last.1 = last.1.max(end);
                }
                _ => {
                    stretches.push((start, end, total));
                    total += end - start;
                }
            }
        }
        Self { stretches, total: total.max(1) }
    }

    /// Height of an address, 0 to 1.
    fn height(&self, address: u64) -> f64 {
        let at = self.stretches.partition_point(|s| s.0 <= address).saturating_sub(1);
        self.stretches.get(at).map_or(0.0, |&(start, end, below)| {
            (below + address.min(end) - start.min(address)) as f64 / self.total as f64
        })
    }
}

pub(super) fn page(snapshot: &Snapshot) -> String {
    let mut out = String::new();
    let title = format!("Device memory of {}", escape(&snapshot.device));
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><style>\
         body{{font:14px system-ui,sans-serif;margin:2em;max-width:1100px;color:#222}}\
         table{{border-collapse:collapse;margin:.5em 0}}td,th{{padding:.15em .8em;text-align:right;\
         border-bottom:1px solid #ddd}}th:first-child,td:first-child{{text-align:left}}\
         svg{{background:#fafafa}}.note{{color:#a40}}text{{font-size:11px;fill:#444}}</style>\
         <h1>{title}</h1><p>{} · {} blocks known, {} forgotten, over {}</p>",
        escape(&snapshot.uuid),
        snapshot.blocks.len(),
        snapshot.forgotten,
        millis(snapshot.nanos)
    );
    if snapshot.simulated {
        out.push_str(
            "<p class=\"note\">This is a simulated device: its times say nothing about a real one.</p>",
        );
    }
    figures(&mut out, snapshot);
    out.push_str("<h2>Bytes handed out over time</h2>");
    curve(&mut out, snapshot);
    out.push_str(
        "<h2>Map of memory over time</h2><p>Each rectangle is a block: its time across, its \
                  addresses upwards (stretches never in use are left out), its stream by colour.</p>",
    );
    legend(&mut out, snapshot);
    map(&mut out, snapshot);
    if !snapshot.refusals.is_empty() {
        out.push_str("<h2>Refused requests</h2><table><tr><th>what<th>when</tr>");
        for refusal in &snapshot.refusals {
            let _ = write!(out, "<tr><td>{}<td>{}</tr>", escape(&refusal.message), millis(refusal.nanos));
        }
        out.push_str("</table>");
    }
    out.push_str("</html>\n");
    out
}

fn figures(out: &mut String, snapshot: &Snapshot) {
    let s = &snapshot.stats;
    let rows = [
        ("reserved", bytes(s.reserved)),
        ("peak reserved", bytes(s.peak_reserved)),
        ("handed out", bytes(s.live)),
        ("peak handed out", bytes(s.peak_live)),
        ("asked for", bytes(s.requested)),
        ("blocks", s.live_blocks.to_string()),
        ("longest hole", bytes(s.largest_free)),
        ("internal fragmentation", format!("{:.1} %", snapshot.internal_fragmentation * 100.0)),
        ("external fragmentation", format!("{:.1} %", snapshot.external_fragmentation * 100.0)),
        ("taken from other streams", s.steals.to_string()),
        ("waits between streams", s.waits.to_string()),
        ("events recorded", s.events_recorded.to_string()),
        ("times grown", s.grows.to_string()),
        ("pieces remapped", s.remaps.to_string()),
    ];
    out.push_str("<table>");
    for (name, value) in rows {
        let _ = write!(out, "<tr><td>{name}<td>{value}</tr>");
    }
    out.push_str("</table>");
    if snapshot.streams.is_empty() {
        return;
    }
    out.push_str(
        "<table><tr><th>stream<th>handed out<th>given back<th>missed<th>taken from others<th>waits<th>in its list\
         <th>bytes in its list</tr>",
    );
    for stream in &snapshot.streams {
        let _ = write!(
            out,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
            stream.stream,
            stream.taken,
            stream.given,
            stream.misses,
            stream.steals,
            stream.waits,
            stream.held,
            bytes(stream.held_bytes)
        );
    }
    out.push_str("</table>");
}

fn frame(out: &mut String, height: f64, label: &str) {
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {} {}\" width=\"100%\" role=\"img\" aria-label=\"{label}\">",
        WIDTH + MARGIN + 10.0,
        height + 24.0
    );
}

fn time_axis(out: &mut String, height: f64, from: u64, to: u64) {
    for tick in 0..=4 {
        let x = MARGIN + WIDTH * f64::from(tick) / 4.0;
        let nanos = from + (to - from) / 4 * u64::from(tick as u8);
        let anchor = if tick == 4 { "end" } else { "start" };
        let _ = write!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{height}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            height + 16.0,
            millis(nanos)
        );
    }
}

fn times(snapshot: &Snapshot) -> (u64, u64) {
    let from = snapshot.blocks.iter().map(|b| b.born_nanos).min().unwrap_or(0);
    (from, snapshot.nanos.max(from + 1))
}

fn curve(out: &mut String, snapshot: &Snapshot) {
    let mut steps: Vec<(u64, i64)> = Vec::new();
    for block in &snapshot.blocks {
        steps.push((block.born_nanos, block.len as i64));
        steps.extend(block.died_nanos.map(|died| (died, -(block.len as i64))));
    }
    steps.sort_unstable();
    let (from, to) = times(snapshot);
    let mut now = 0i64;
    let levels: Vec<(u64, i64)> = steps
        .into_iter()
        .map(|(at, change)| {
            now += change;
            (at, now)
        })
        .collect();
    let most = levels.iter().map(|l| l.1).max().unwrap_or(0).max(1);
    frame(out, CURVE_HEIGHT, "bytes handed out over time");
    time_axis(out, CURVE_HEIGHT, from, to);
    let x = |at: u64| MARGIN + WIDTH * (at - from) as f64 / (to - from) as f64;
    let y = |level: i64| CURVE_HEIGHT * (1.0 - level as f64 / most as f64);
    for (level, below) in [(most, 11.0), (most / 2, 4.0), (0, -2.0)] {
        let at = y(level);
        let _ = write!(
            out,
            "<line x1=\"{MARGIN}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            MARGIN + WIDTH,
            MARGIN - 6.0,
            at + below,
            bytes(level as u64)
        );
    }
    let _ = write!(out, "<path fill=\"none\" stroke=\"#4477aa\" d=\"M{MARGIN} {CURVE_HEIGHT}");
    // At most a few points per pixel: of each few the first, the highest and the last, so that no peak is lost.
    for few in levels.chunks(levels.len().div_ceil(2000).max(1)) {
        let highest = few.iter().max_by_key(|(_, level)| *level);
        for (at, level) in few.first().into_iter().chain(highest).chain(few.last()) {
            let _ = write!(out, "H{:.1}V{:.1}", x(*at), y(*level));
        }
    }
    let _ = write!(out, "H{:.1}\"/></svg>", MARGIN + WIDTH);
}

/// Which colour is which stream, and what an edge means.
fn legend(out: &mut String, snapshot: &Snapshot) {
    let mut streams: Vec<u32> = snapshot.blocks.iter().map(|block| block.stream).collect();
    streams.sort_unstable();
    streams.dedup();
    out.push_str("<p>");
    for stream in streams.iter().take(COLOURS.len()) {
        let colour = COLOURS[*stream as usize % COLOURS.len()];
        let _ = write!(
            out,
            "<span style=\"background:{colour};padding:0 .6em;opacity:.75\"></span> stream {stream} &emsp; "
        );
    }
    if streams.len() > COLOURS.len() {
        let _ = write!(out, "and so on, colours again for {} more &emsp; ", streams.len() - COLOURS.len());
    }
    out.push_str("<span style=\"border:1px solid #000;padding:0 .6em\"></span> still handed out &emsp; ");
    let total = Addresses::of(snapshot).total;
    let _ = write!(out, "full height: {} of addresses</p>", bytes(total));
}

fn map(out: &mut String, snapshot: &Snapshot) {
    let addresses = Addresses::of(snapshot);
    let (from, to) = times(snapshot);
    frame(out, MAP_HEIGHT, "map of memory over time");
    time_axis(out, MAP_HEIGHT, from, to);
    let mut labelled = f64::INFINITY;
    for &(start, _, below) in &addresses.stretches {
        let y = MAP_HEIGHT * (1.0 - below as f64 / addresses.total as f64);
        // From the bottom upwards, as many as there is room for.
        if labelled - y >= LINE && y >= LINE {
            labelled = y;
            let _ = write!(out, "<text x=\"0\" y=\"{:.1}\">{start:#x}</text>", y - 2.0);
        }
        let _ = write!(
            out,
            "<line x1=\"{MARGIN}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#bbb\"/>",
            MARGIN + WIDTH
        );
    }
    let skipped = snapshot.blocks.len().saturating_sub(MOST);
    for block in &snapshot.blocks[skipped..] {
        let died = block.died_nanos.unwrap_or(to);
        let x = |at: u64| WIDTH * (at - from) as f64 / (to - from) as f64;
        let (low, high) = (addresses.height(block.address), addresses.height(block.address + block.len));
        let (left, width) = (MARGIN + x(block.born_nanos), (x(died.min(to)) - x(block.born_nanos)).max(0.4));
        let (top, height) = (MAP_HEIGHT * (1.0 - high), (MAP_HEIGHT * (high - low)).max(0.4));
        let colour = COLOURS[block.stream as usize % COLOURS.len()];
        let edge = if block.died_nanos.is_none() { " stroke=\"#000\" stroke-width=\".5\"" } else { "" };
        let _ = write!(
            out,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
             fill=\"{colour}\" fill-opacity=\".75\"{edge}><title>{} at {:#x}, {} asked, stream {}, {} to {}\
             </title></rect>",
            bytes(block.len),
            block.address,
            bytes(block.asked),
            block.stream,
            millis(block.born_nanos),
            block.died_nanos.map_or("now".to_string(), millis)
        );
    }
    out.push_str("</svg>");
    if skipped > 0 {
        let _ = write!(out, "<p>{skipped} older blocks are not drawn.</p>");
    }
}
