//! Small plots as SVG text: bars against the best, curves over two axes.
//!
//! Invariant: every plot has a title, axes with units, and marks only inside its frame; text never shares a place with
//! other text, because every label has a row or a tick of its own.

use std::fmt::Write;

/// Text made safe for HTML and SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The colour of an allocator: fixed for those that are known, from a reserve for others.
pub fn colour(name: &str) -> &'static str {
    match name {
        "system" => "#8a8f98",
        "mimalloc2" => "#7cb5e8",
        "mimalloc3" => "#2f6fb7",
        "jemalloc" => "#e08a1e",
        "snmalloc" => "#2e9e5b",
        "rpmalloc" => "#9ac63c",
        "rusty_alloc" => "#8a63c9",
        "tcmalloc" => "#9ac63c",
        "tbbmalloc" => "#2e9e5b",
        crate::peers::OURS => "#d6284b",
        other => ["#b0598c", "#4aa8a0", "#a0764a"][other.len() % 3],
    }
}

/// One bar: a name, its median, the range of its rounds, and the text beside it. Without a median the text says why.
pub struct Bar {
    /// The allocator.
    pub name: String,
    /// `(median, smallest, largest)`.
    pub value: Option<(f64, f64, f64)>,
    /// The median with its unit.
    pub text: String,
}

/// Where bars end that are longer than the plot: this many times the best.
const CLIP: f64 = 5.0;

/// Bars as multiples of the best median, with whiskers from the smallest to the largest round.
pub fn bars(title: &str, about: &str, unit: &str, bars: &[Bar]) -> String {
    const WIDTH: f64 = 360.0;
    const NAMES: f64 = 84.0;
    const VALUES: f64 = 96.0;
    const ROW: f64 = 19.0;
    const TOP: f64 = 28.0;
    let best = bars.iter().filter_map(|bar| bar.value).map(|v| v.0).min_by(f64::total_cmp).unwrap_or(1.0);
    let longest = bars.iter().filter_map(|bar| bar.value).map(|v| v.2 / best).fold(1.0, f64::max);
    let end = longest.clamp(1.25, CLIP) * 1.02;
    let span = WIDTH - NAMES - VALUES;
    let x = |ratio: f64| NAMES + span * (ratio / end).min(1.0);
    let bottom = TOP + ROW * bars.len() as f64;
    let mut svg = open(title, about, WIDTH, bottom + 34.0);
    let step = [0.25, 0.5, 1.0].into_iter().find(|step| end / step <= 6.0).unwrap_or(1.0);
    let mut tick = 0.0;
    while tick <= end {
        let at = x(tick);
        let _ = write!(
            svg,
            "<line class='grid' x1='{at:.1}' x2='{at:.1}' y1='{TOP}' y2='{bottom}'/>\
             <text class='tick' x='{at:.1}' y='{:.1}' text-anchor='middle'>{tick}</text>",
            bottom + 13.0
        );
        tick += step;
    }
    for (row, bar) in bars.iter().enumerate() {
        let (top, middle) = (TOP + ROW * row as f64, TOP + ROW * (row as f64 + 0.5));
        let ours = if bar.name == crate::peers::OURS { " ours" } else { "" };
        let name = escape(&bar.name);
        let _ = write!(
            svg,
            "<text class='name{ours}' x='{}' y='{:.1}' text-anchor='end'>{name}</text>",
            NAMES - 6.0,
            middle + 4.0
        );
        let mut text_at = NAMES + 4.0;
        if let Some((median, low, high)) = bar.value {
            let (ratio, fill) = (median / best, colour(&bar.name));
            let _ = write!(
                svg,
                "<rect x='{NAMES}' y='{:.1}' width='{:.1}' height='{:.1}' rx='1.5' fill='{fill}'/>",
                top + 3.0,
                (x(ratio) - NAMES).max(1.0),
                ROW - 6.0
            );
            let (left, right) = (x(low / best), x(high / best));
            if right - left > 1.0 {
                let _ = write!(
                    svg,
                    "<line class='whisker' x1='{left:.1}' x2='{right:.1}' y1='{middle:.1}' y2='{middle:.1}'/>"
                );
            }
            text_at = x(ratio.max(high / best)) + 5.0;
            if ratio > end {
                // The bar goes on beyond the plot: a gap near its end says so.
                let gap = x(end) - 12.0;
                let _ = write!(
                    svg,
                    "<path class='gap' d='M{gap:.1} {:.1}l4 {:.1}'/>",
                    top + ROW - 2.0,
                    4.0 - ROW
                );
            }
        }
        let _ = write!(
            svg,
            "<text class='value{ours}' x='{text_at:.1}' y='{:.1}'>{}</text>",
            middle + 4.0,
            escape(&bar.text)
        );
    }
    let _ = write!(
        svg,
        "<text class='axis' x='{:.1}' y='{:.1}' text-anchor='middle'>{} (1 = best)</text></svg>",
        NAMES + span / 2.0,
        bottom + 29.0,
        escape(unit)
    );
    svg
}

/// One curve.
pub struct Curve {
    /// The allocator.
    pub name: String,
    /// Points in the units of the axes, in order of x.
    pub points: Vec<(f64, f64)>,
}

/// An axis: its label with the unit, its ticks, and its ends.
pub struct Axis {
    /// What it shows, with the unit.
    pub label: String,
    /// Position and text of each tick.
    pub ticks: Vec<(f64, String)>,
    /// The two ends.
    pub range: (f64, f64),
}

impl Axis {
    /// From 0 to `end` in round steps.
    pub fn linear(label: &str, end: f64) -> Self {
        let end = if end > 0.0 { end } else { 1.0 };
        let rough = end / 4.0;
        let power = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
        let count = (end / step).ceil() as usize;
        // Rounded to the step's own digits, so that 0.1 + 0.2 reads 0.3.
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let ticks =
            (0..=count).map(|i| (i as f64 * step, format!("{:.decimals$}", i as f64 * step))).collect();
        Self { label: label.to_owned(), ticks, range: (0.0, count as f64 * step) }
    }

    /// Powers of ten of nanoseconds around `low..=high`, as logarithms.
    pub fn decades(label: &str, low: f64, high: f64) -> Self {
        let (first, last) = (low.max(1.0).log10().floor(), high.max(10.0).log10().ceil());
        let text = |power: i32| match power {
            0..3 => format!("{} ns", 10i64.pow(power as u32)),
            3..6 => format!("{} µs", 10i64.pow(power as u32 - 3)),
            _ => format!("{} ms", 10i64.pow(power as u32 - 6)),
        };
        let ticks = (first as i32..=last as i32).map(|power| (f64::from(power), text(power))).collect();
        Self { label: label.to_owned(), ticks, range: (first, last) }
    }
}

/// Curves over two axes.
pub fn curves(title: &str, about: &str, x: &Axis, y: &Axis, curves: &[Curve]) -> String {
    const WIDTH: f64 = 360.0;
    const HEIGHT: f64 = 250.0;
    const LEFT: f64 = 56.0;
    const RIGHT: f64 = 14.0;
    const TOP: f64 = 44.0;
    const BOTTOM: f64 = 40.0;
    let at_x = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * (value - x.range.0) / (x.range.1 - x.range.0);
    let at_y = |value: f64| {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - y.range.0) / (y.range.1 - y.range.0)
    };
    let mut svg = open(title, about, WIDTH, HEIGHT);
    for (value, text) in &x.ticks {
        let at = at_x(*value);
        let _ = write!(
            svg,
            "<line class='grid' x1='{at:.1}' x2='{at:.1}' y1='{TOP}' y2='{}'/>\
             <text class='tick' x='{at:.1}' y='{}' text-anchor='middle'>{text}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 14.0
        );
    }
    for (value, text) in &y.ticks {
        let at = at_y(*value);
        let _ = write!(
            svg,
            "<line class='grid' x1='{LEFT}' x2='{}' y1='{at:.1}' y2='{at:.1}'/>\
             <text class='tick' x='{}' y='{:.1}' text-anchor='end'>{text}</text>",
            WIDTH - RIGHT,
            LEFT - 5.0,
            at + 3.5
        );
    }
    for curve in curves {
        let mut path = String::new();
        for (x, y) in &curve.points {
            let _ = write!(path, "{:.1},{:.1} ", at_x(*x), at_y(*y));
        }
        let width = if curve.name == crate::peers::OURS { 2.4 } else { 1.5 };
        let _ = write!(
            svg,
            "<polyline fill='none' stroke='{}' stroke-width='{width}' stroke-linejoin='round' points='{}'>\
             <title>{}</title></polyline>",
            colour(&curve.name),
            path.trim_end(),
            escape(&curve.name)
        );
    }
    let _ = write!(
        svg,
        "<text class='axis' x='4' y='{:.1}'>{}</text><text class='axis' x='{:.1}' y='{:.1}' text-anchor='middle'>{}</text></svg>",
        TOP - 11.0,
        escape(&y.label),
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 7.0,
        escape(&x.label)
    );
    svg
}

fn open(title: &str, about: &str, width: f64, height: f64) -> String {
    format!(
        "<svg viewBox='0 0 {width} {height}' role='img' aria-label='{0}'><title>{1}</title>\
         <text class='title' x='4' y='16'>{0}</text>",
        escape(title),
        escape(about)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_scaled_by_the_best_and_long_ones_are_cut() {
        let bar = |name: &str, value: f64| Bar {
            name: name.into(),
            value: Some((value, value, value)),
            text: format!("{value} ns"),
        };
        let failed = Bar { name: "gone".into(), value: None, text: "crashed".into() };
        let svg = bars("pair <8>", "what it does", "time", &[bar("a", 10.0), bar("b", 500.0), failed]);
        assert!(svg.contains("pair &lt;8&gt;") && !svg.contains("<8>"));
        assert_eq!(svg.matches("class='gap'").count(), 1, "only the bar that is fifty times the best is cut");
        assert!(svg.contains("crashed") && svg.contains("500 ns"));
        assert!(svg.contains("(1 = best)"));
    }

    #[test]
    fn axes_have_round_ticks_that_cover_the_data() {
        let axis = Axis::linear("MiB", 273.0);
        assert!(axis.range.1 >= 273.0 && axis.ticks.len() <= 6, "{:?}", axis.ticks);
        assert_eq!(axis.ticks[1].1, "100");
        let axis = Axis::decades("latency", 7.0, 3_000_000.0);
        assert_eq!(axis.ticks.first().map(|t| t.1.as_str()), Some("1 ns"));
        assert_eq!(axis.ticks.last().map(|t| t.1.as_str()), Some("10 ms"));
    }

    #[test]
    fn a_curve_stays_inside_its_frame() {
        let curve = Curve { name: "system".into(), points: vec![(0.0, 0.0), (1.0, 50.0), (2.0, 100.0)] };
        let svg = curves("t", "a", &Axis::linear("s", 2.0), &Axis::linear("MiB", 100.0), &[curve]);
        let points =
            svg.split("points='").nth(1).and_then(|rest| rest.split('\'').next()).expect("a polyline");
        for point in points.split(' ') {
            let (x, y) = point.split_once(',').expect("x,y");
            let (x, y): (f64, f64) = (x.parse().expect("number"), y.parse().expect("number"));
            assert!((50.0..=350.0).contains(&x) && (40.0..=215.0).contains(&y), "{point}");
        }
    }
}
