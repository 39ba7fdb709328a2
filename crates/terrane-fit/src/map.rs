//! Pictures of a space: as a line of text, as an SVG of now, and as an SVG of a whole trace.
//!
//! Protocol: text and maps are made from a [`Survey`]; a [`film`] plays a trace and draws each span as a rectangle from the
//! request that placed it to the one that vacated it, offsets upward.

use crate::survey::{Survey, Use};
use crate::trace::{Request, Trace};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use terrane_core::{Placement, Span};

/// A line of `width` characters for each space: ` ` is free, `#` is live, `.`, `:` and `+` are live to a third, two thirds
/// and nearly all.
pub fn text(engine: &(impl Survey + ?Sized), width: usize) -> String {
    let mut lines: Vec<(Span, Vec<u64>)> = Vec::new();
    let width = width.max(1);
    let edge = |space: Span, cell: usize| (u128::from(space.len) * cell as u128 / width as u128) as u64;
    engine.survey(&mut |plot| match plot.used {
        Use::Space => lines.push((plot.span, alloc::vec![0; width])),
        Use::Hole => {}
        Use::Live { .. } => {
            let Some((space, cells)) = lines.last_mut() else { return };
            let (begin, end) =
                (plot.span.offset - space.offset, plot.span.offset - space.offset + plot.span.len);
            let first = (u128::from(begin) * width as u128 / u128::from(space.len)) as usize;
            for (cell, units) in cells.iter_mut().enumerate().skip(first.saturating_sub(1)) {
                let (low, high) = (edge(*space, cell).max(begin), edge(*space, cell + 1).min(end));
                if edge(*space, cell) >= end {
                    break;
                }
                *units += high.saturating_sub(low);
            }
        }
    });
    let mut out = String::new();
    for (space, cells) in &lines {
        for (cell, &units) in cells.iter().enumerate() {
            let all = edge(*space, cell + 1) - edge(*space, cell);
            out.push(match units {
                0 => ' ',
                _ if units == all => '#',
                _ => ['.', ':', '+'][(u128::from(units) * 3 / u128::from(all.max(1))).min(2) as usize],
            });
        }
        out.push('\n');
    }
    out
}

/// An SVG document with a bar for each space: holes light, live spans dark, what rounding has added to them darker at
/// their upper end. `width` is in pixels.
pub fn svg(engine: &(impl Survey + ?Sized), width: u32) -> String {
    const BAR: u32 = 24;
    let (mut body, mut space, mut top) = (String::new(), Span::new(0, 1), 0);
    let x = |space: Span, units: u64| units as f64 * f64::from(width) / space.len as f64;
    // Writing to a string cannot fail.
    engine.survey(&mut |plot| {
        let _ = match plot.used {
            Use::Space => {
                if !body.is_empty() {
                    top += BAR + 6;
                }
                space = plot.span;
                writeln!(body, r##"<rect x="0" y="{top}" width="{width}" height="{BAR}" fill="#e8eef4"/>"##)
            }
            Use::Hole => Ok(()),
            Use::Live { slack } => {
                let (at, len) = (x(space, plot.span.offset - space.offset), x(space, plot.span.len));
                let _ = writeln!(
                    body,
                    r##"<rect x="{at:.2}" y="{top}" width="{len:.2}" height="{BAR}" fill="#2f6f9f" stroke="#fff" stroke-width="0.3"/>"##
                );
                let lost = x(space, slack);
                if slack == 0 {
                    Ok(())
                } else {
                    let at = at + len - lost;
                    writeln!(
                        body,
                        r##"<rect x="{at:.2}" y="{top}" width="{lost:.2}" height="{BAR}" fill="#b5523b"/>"##
                    )
                }
            }
        };
    });
    document(width, top + BAR, &body)
}

fn document(width: u32, height: u32, body: &str) -> String {
    let mut out = String::with_capacity(body.len() + 200);
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">"#
    );
    out.push_str(body);
    out.push_str("</svg>\n");
    out
}

/// Plays `trace` on `engine`, which has the space `[0, space)` and nothing live, and draws it as an SVG document of `width`
/// by `height` pixels: time to the right, offset upward, colour by the length of the span. A request that found no room is
/// a red mark at the top.
pub fn film(
    trace: &Trace,
    engine: &mut (impl Placement + ?Sized),
    space: u64,
    width: u32,
    height: u32,
) -> String {
    const COLOURS: [&str; 6] = ["#d98032", "#d9b232", "#7fae4d", "#3f9c8f", "#2f6f9f", "#6b4f94"];
    let requests = trace.requests();
    let mut body = String::new();
    let _ = writeln!(body, r##"<rect x="0" y="0" width="{width}" height="{height}" fill="#f4f6f8"/>"##);
    let x = |at: usize| at as f64 * f64::from(width) / requests.len().max(1) as f64;
    let y = |units: u64| units as f64 * f64::from(height) / space.max(1) as f64;
    let longest = requests.iter().filter_map(|request| match request {
        Request::Place { len, .. } => Some(*len),
        Request::Vacate { .. } => None,
    });
    let longest = longest.max().unwrap_or(1);
    let mut begun: Vec<usize> = alloc::vec![0; trace.ids()];
    let draw = |body: &mut String, span: Span, from: usize, to: usize| {
        // One colour for each halving of the longest length.
        let colour = COLOURS[(longest / span.len.min(longest)).ilog2().min(5) as usize];
        let (left, low) = (x(from), f64::from(height) - y(span.offset + span.len));
        let (wide, tall) = (x(to) - left, y(span.len));
        let _ = writeln!(
            body,
            r##"<rect x="{left:.1}" y="{low:.1}" width="{wide:.1}" height="{tall:.1}" fill="{colour}"/>"##
        );
    };
    let mut live: Vec<Option<Span>> = alloc::vec![None; trace.ids()];
    trace.play_with(engine, |at, span| match (requests[at], span) {
        (Request::Place { id, .. }, Some(span)) => {
            begun[id as usize] = at;
            live[id as usize] = Some(span);
        }
        (Request::Place { .. }, None) => {
            let at = x(at);
            let _ = writeln!(body, r##"<rect x="{at:.1}" y="0" width="1" height="6" fill="#d00000"/>"##);
        }
        (Request::Vacate { id }, Some(span)) => {
            live[id as usize] = None;
            draw(&mut body, span, begun[id as usize], at);
        }
        (Request::Vacate { .. }, None) => {}
    });
    for (id, span) in live.iter().enumerate() {
        if let Some(span) = span {
            draw(&mut body, *span, begun[id], requests.len());
        }
    }
    document(width, height, &body)
}

#[cfg(test)]
mod tests {
    use super::{film, svg, text};
    use crate::{BestFit, Buddy, FirstFit};
    use terrane_core::{Placement, Span};

    #[test]
    fn the_text_shows_what_is_live_and_how_much_of_it() {
        let mut engine = FirstFit::new();
        engine.add(Span::new(100, 80)).unwrap();
        engine.add(Span::new(300, 4)).unwrap();
        let spans = [16, 8, 16].map(|len| engine.place(len, 1).unwrap());
        engine.place(1, 1).unwrap();
        engine.vacate(spans[1]);
        assert_eq!(text(&engine, 10), "## ##.    \n          \n");
        assert_eq!(text(&engine, 1), ":\n \n");
    }

    #[test]
    fn a_map_has_a_bar_for_each_space_and_a_box_for_each_span_and_its_waste() {
        let mut engine = Buddy::new();
        engine.add(Span::new(0, 64)).unwrap();
        engine.add(Span::new(128, 64)).unwrap();
        engine.place(64, 1).unwrap();
        engine.place(24, 1).unwrap();
        let map = svg(&engine, 640);
        assert_eq!(map.matches("#e8eef4").count(), 2);
        assert_eq!(map.matches("#2f6f9f").count(), 2);
        assert!(
            map.contains(r##"x="240.00" y="0" width="80.00" height="24" fill="#b5523b""##)
                || map.contains(r##"x="240.00" y="30" width="80.00" height="24" fill="#b5523b""##),
            "{map}"
        );
        assert!(
            map.starts_with("<svg ") && map.ends_with("</svg>\n") && map.contains(r#"viewBox="0 0 640 54""#)
        );
    }

    #[test]
    fn a_film_draws_each_span_from_its_placing_to_its_vacating_and_marks_failures() {
        let trace = "p 0 50\np 1 100\nv 0\np 0 25\n".parse().unwrap();
        let mut engine = BestFit::new();
        engine.add(Span::new(0, 100)).unwrap();
        let film = film(&trace, &mut engine, 100, 400, 100);
        assert!(film.contains(r#"x="0.0" y="50.0" width="200.0" height="50.0""#), "{film}");
        assert!(film.contains(r#"x="300.0" y="75.0" width="100.0" height="25.0""#), "{film}");
        assert_eq!(film.matches("#d00000").count(), 1);
    }
}
