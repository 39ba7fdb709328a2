//! Streams of requests, as text and in memory, and how an engine fares with one.
//!
//! Invariant of a [`Trace`]: every id is vacated only while it is placed, and placed only while it is not.
//!
//! The text has one request a line; what follows a `#` is a comment:
//!
//! ```text
//! p ID LEN [ALIGN]     place LEN units at a multiple of ALIGN (1 if it is left out) and call the span ID
//! v ID                 vacate the span ID; the id may be placed again
//! ```
//!
//! Ids are small numbers, since a player keeps a table of them. A lifetime is the distance between a `p` and its `v`.

use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;
use terrane_core::{PlaceError, Placement, Span};

/// A request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Place a span.
    Place {
        /// Its name.
        id: u32,
        /// Units.
        len: u64,
        /// Alignment, a power of two.
        align: u64,
    },
    /// Vacate a span.
    Vacate {
        /// Its name.
        id: u32,
    },
}

/// A stream of requests.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Trace {
    requests: Vec<Request>,
    /// Length of each id while it is placed, 0 while it is not.
    placed: Vec<u64>,
    live: u64,
    peak_live: u64,
}

/// A line that is not a request, or one that makes no sense where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceError {
    /// Number of the line, from 1; 0 for a request that was pushed.
    pub line: usize,
    /// What is wrong with it.
    pub why: &'static str,
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.why)
    }
}

impl core::error::Error for TraceError {}

/// The largest id, so that a short text cannot ask for a long table.
pub const MAX_ID: u32 = (1 << 24) - 1;

impl Trace {
    /// With no request.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a request.
    ///
    /// # Errors
    /// A [`TraceError`] if its length or alignment is malformed, if its id is too large, or is placed twice or vacated
    /// without being placed; nothing has changed then.
    pub fn push(&mut self, request: Request) -> Result<(), TraceError> {
        let error = |why| Err(TraceError { line: 0, why });
        let (Request::Place { id, .. } | Request::Vacate { id }) = request;
        if id > MAX_ID {
            return error("the id is too large");
        }
        let at = id as usize;
        let now = self.placed.get(at).copied().unwrap_or(0);
        match request {
            Request::Place { .. } if now != 0 => return error("the id is placed already"),
            Request::Place { len: 0, .. } => return error("the length is zero"),
            Request::Place { align, .. } if !align.is_power_of_two() => {
                return error("the alignment is not a power of two");
            }
            Request::Vacate { .. } if now == 0 => return error("the id is not placed"),
            Request::Place { len, .. } => {
                let Some(live) = self.live.checked_add(len) else { return error("too many units are live") };
                if self.placed.len() <= at {
                    self.placed.resize(at + 1, 0);
                }
                self.placed[at] = len;
                self.live = live;
                self.peak_live = self.peak_live.max(live);
            }
            Request::Vacate { .. } => {
                self.live -= now;
                self.placed[at] = 0;
            }
        }
        self.requests.push(request);
        Ok(())
    }

    /// Vacates everything that is placed, from the lowest id to the highest.
    pub fn drain(&mut self) {
        for id in 0..self.placed.len() as u32 {
            if self.placed[id as usize] != 0 {
                // Placed, so it cannot fail.
                let _ = self.push(Request::Vacate { id });
            }
        }
    }

    /// The requests in order.
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// One more than the largest id.
    pub fn ids(&self) -> usize {
        self.placed.len()
    }

    /// The most units that are live at one time: no space shorter than this can serve the trace.
    pub const fn peak_live(&self) -> u64 {
        self.peak_live
    }

    /// Plays the trace on `engine`; a request that finds no room is left out, with its vacating. Spans that are live in the
    /// end stay live.
    pub fn play(&self, engine: &mut (impl Placement + ?Sized)) -> Outcome {
        self.play_with(engine, |_, _| {})
    }

    /// As [`play`](Self::play), and shows every request to `see` after it, with its span: `None` if it found no room.
    pub fn play_with(
        &self,
        engine: &mut (impl Placement + ?Sized),
        mut see: impl FnMut(usize, Option<Span>),
    ) -> Outcome {
        let mut spans: Vec<Option<Span>> = alloc::vec![None; self.ids()];
        let mut outcome = Outcome::default();
        for (at, request) in self.requests.iter().enumerate() {
            match *request {
                Request::Place { id, len, align } => {
                    let placed = engine.place(len, align);
                    match placed {
                        Ok(span) => {
                            outcome.placed += 1;
                            outcome.reach = outcome.reach.max(span.offset + span.len);
                        }
                        Err(error) => {
                            outcome.failed += 1;
                            outcome.first_failure.get_or_insert((at, error));
                        }
                    }
                    spans[id as usize] = placed.ok();
                    see(at, spans[id as usize]);
                }
                Request::Vacate { id } => {
                    let span = spans[id as usize].take();
                    if let Some(span) = span {
                        engine.vacate(span);
                    }
                    see(at, span);
                }
            }
        }
        outcome
    }

    /// The shortest space in which `make`'s engines serve the whole trace, as
    /// [`shortest_space`](Self::shortest_space) finds it.
    pub fn least_space<E: Placement>(&self, precision: u64, mut make: impl FnMut() -> E) -> Option<u64> {
        self.shortest_space(precision, |len| {
            let mut engine = make();
            engine.add(Span::new(0, len)).is_ok() && self.play(&mut engine).failed == 0
        })
    }

    /// The shortest length of which `serves` says that a space that long serves the whole trace, within one part in
    /// `precision`, by bisection from the peak of live units up to about ten times that; `None` if that is too short. Asks
    /// about log₂ `precision` times.
    pub fn shortest_space(&self, precision: u64, mut serves: impl FnMut(u64) -> bool) -> Option<u64> {
        let unit = 1 << (self.peak_live / precision.max(1)).max(1).ilog2();
        let round = |len: u64| len.next_multiple_of(unit);
        let (mut low, mut high) = (self.peak_live.saturating_sub(1) / unit * unit, round(self.peak_live));
        while !serves(high) {
            if high / 8 >= self.peak_live {
                return None;
            }
            (low, high) = (high, round(high + high / 4));
        }
        while high - low > unit {
            let middle = round(low + (high - low) / 2);
            if middle >= high {
                break;
            }
            if serves(middle) { high = middle } else { low = middle }
        }
        Some(high)
    }
}

/// How an engine fared with a trace.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Outcome {
    /// Requests that were served.
    pub placed: u64,
    /// Requests that found no room.
    pub failed: u64,
    /// The first request that failed, by its number, and why.
    pub first_failure: Option<(usize, PlaceError)>,
    /// The highest end of any span.
    pub reach: u64,
}

/// The text form; what [`FromStr`] reads.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for request in &self.requests {
            match *request {
                Request::Place { id, len, align: 1 } => writeln!(f, "p {id} {len}")?,
                Request::Place { id, len, align } => writeln!(f, "p {id} {len} {align}")?,
                Request::Vacate { id } => writeln!(f, "v {id}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Trace {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        let mut trace = Self::new();
        for (line, content) in text.lines().enumerate() {
            let here = |error: TraceError| TraceError { line: line + 1, ..error };
            let error = |why| here(TraceError { line: 0, why });
            let content = content.split('#').next().unwrap_or("");
            let mut words = content.split_whitespace();
            let Some(verb) = words.next() else { continue };
            let mut number = |what| -> Result<Option<u64>, TraceError> {
                words.next().map(|word| word.parse().map_err(|_| error(what))).transpose()
            };
            let id = number("the id is not a number")?.ok_or_else(|| error("the id is missing"))?;
            let id = u32::try_from(id).map_err(|_| error("the id is too large"))?;
            let request = match verb {
                "p" => Request::Place {
                    id,
                    len: number("the length is not a number")?
                        .ok_or_else(|| error("the length is missing"))?,
                    align: number("the alignment is not a number")?.unwrap_or(1),
                },
                "v" => Request::Vacate { id },
                _ => return Err(error("neither p nor v")),
            };
            if words.next().is_some() {
                return Err(error("more words than a request has"));
            }
            trace.push(request).map_err(here)?;
        }
        Ok(trace)
    }
}
