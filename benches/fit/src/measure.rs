//! What is measured: time of a pair, least space, failures.

use crate::peers::{BuddySystem, Contender, LinearBestFit, OffsetAllocator, Ours, RangeAlloc, Rlsf};
use std::time::Instant;
use terrane_fit::trace::{Request, Trace};
use terrane_fit::{Adaptive, BestFit, Buddy, FirstFit, NextFit, Placement, Span, Tlsf};

/// The names, ours first; `fresh` makes a contender by its name.
pub const NAMES: [&str; 11] = [
    "Tlsf",
    "BestFit",
    "FirstFit",
    "NextFit",
    "Buddy",
    "Adaptive",
    "offset-allocator",
    "rlsf",
    "buddy_system_allocator",
    "range-alloc",
    "linear best fit",
];

fn with<E: Placement>(mut engine: E, space: u64) -> Ours<E> {
    engine.add(Span::new(0, space)).expect("an empty engine takes any space");
    Ours(engine)
}

/// Calls `$run` with a fresh contender of its own type, so that no call goes through a table of functions.
macro_rules! fresh {
    ($which:expr, $space:expr, $spans:expr, $run:expr) => {{
        let (space, spans): (u64, usize) = ($space, $spans);
        match NAMES[$which] {
            "Tlsf" => $run(with(Tlsf::new(), space)),
            "BestFit" => $run(with(BestFit::new(), space)),
            "FirstFit" => $run(with(FirstFit::new(), space)),
            "NextFit" => $run(with(NextFit::new(), space)),
            "Buddy" => $run(with(Buddy::new(), space)),
            "Adaptive" => $run(with(Adaptive::new(), space)),
            "offset-allocator" => {
                let most = (spans * 2 + 16) as u32;
                $run(OffsetAllocator(offset_allocator::Allocator::with_max_allocs(space as u32, most)))
            }
            "rlsf" => $run(Rlsf::new(space)),
            "buddy_system_allocator" => {
                let mut frames = buddy_system_allocator::FrameAllocator::new();
                frames.add_frame(0, space as usize);
                $run(BuddySystem(frames))
            }
            "range-alloc" => $run(RangeAlloc(range_alloc::RangeAllocator::new(0..space))),
            "linear best fit" => $run(LinearBestFit::new(space)),
            name => unreachable!("nothing makes {name}"),
        }
    }};
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// 16 bytes to 16 KiB, as likely in each power of two, in multiples of 16.
    fn len(&mut self) -> u64 {
        let power = 4 + self.next() % 10;
        ((1 << power) + self.next() % (1 << power)) & !15
    }
}

/// Nanoseconds for one vacate and one place with `spans` spans live, the choice of victim and length included. With `COUNTED`
/// the requests are in a function of their own, so that [`count`](crate::count) finds them; without it the compiler may keep
/// what it likes of a contender in registers.
pub fn pair<const COUNTED: bool>(which: usize, spans: usize, pairs: usize) -> f64 {
    #[inline(always)]
    fn requests<C: Contender>(
        contender: &mut C,
        live: &mut Vec<C::Token>,
        random: &mut Random,
        pairs: usize,
    ) {
        for _ in 0..pairs {
            let at = (random.next() % live.len() as u64) as usize;
            contender.vacate(live[at]);
            let len = random.len();
            match contender.place(len) {
                Some(token) => live[at] = token,
                None => {
                    live.swap_remove(at);
                }
            }
        }
    }
    #[inline(never)]
    fn counted_requests<C: Contender>(
        contender: &mut C,
        live: &mut Vec<C::Token>,
        random: &mut Random,
        pairs: usize,
    ) {
        requests(contender, live, random, pairs);
    }
    fn run<C: Contender, const COUNTED: bool>(mut contender: C, spans: usize, pairs: usize) -> f64 {
        contender.warm();
        let mut random = Random(0x2545_F491_4F6C_DD1D);
        let mut live: Vec<C::Token> = (0..spans)
            .filter_map(|_| {
                let len = random.len();
                contender.place(len)
            })
            .collect();
        let mut time = f64::INFINITY;
        // The first round makes the holes that there will be. Of the others the shortest counts, since others use the
        // machine too.
        for round in 0..6 {
            let begin = Instant::now();
            let count = if round == 0 { 2 * spans } else { pairs / 5 };
            if COUNTED {
                counted_requests(&mut contender, &mut live, &mut random, count);
            } else {
                requests(&mut contender, &mut live, &mut random, count);
            }
            if round != 0 {
                time = time.min(begin.elapsed().as_secs_f64() / count as f64);
            }
        }
        time * 1e9
    }
    // The mean length is 2.4 KiB; twice that for each span, a power of two for the sake of the buddy systems.
    let space = (spans as u64 * 4096).next_power_of_two();
    fresh!(which, space, spans, |contender| run::<_, COUNTED>(contender, spans, pairs))
}

/// Plays `trace` in a space of `space` units; requests that failed and seconds. `COUNTED` is as in [`pair`].
pub fn play<const COUNTED: bool>(which: usize, trace: &Trace, space: u64) -> (u64, f64) {
    #[inline(always)]
    fn requests<C: Contender>(contender: &mut C, trace: &Trace, tokens: &mut [Option<C::Token>]) -> u64 {
        let mut failed = 0;
        for request in trace.requests() {
            match *request {
                Request::Place { id, len, .. } => {
                    tokens[id as usize] = contender.place(len);
                    failed += u64::from(tokens[id as usize].is_none());
                }
                Request::Vacate { id } => {
                    if let Some(token) = tokens[id as usize].take() {
                        contender.vacate(token);
                    }
                }
            }
        }
        failed
    }
    #[inline(never)]
    fn counted_requests<C: Contender>(
        contender: &mut C,
        trace: &Trace,
        tokens: &mut [Option<C::Token>],
    ) -> u64 {
        requests(contender, trace, tokens)
    }
    fn run<C: Contender, const COUNTED: bool>(mut contender: C, trace: &Trace) -> (u64, f64) {
        contender.warm();
        let mut tokens = vec![None; trace.ids()];
        let begin = Instant::now();
        let failed = if COUNTED {
            counted_requests(&mut contender, trace, &mut tokens)
        } else {
            requests(&mut contender, trace, &mut tokens)
        };
        (failed, begin.elapsed().as_secs_f64())
    }
    fresh!(which, space, trace.ids(), |contender| run::<_, COUNTED>(contender, trace))
}

/// The shortest space that serves all of `trace`, over the trace's peak of live units.
pub fn least_space(which: usize, trace: &Trace) -> f64 {
    let least = trace.shortest_space(500, |space| play::<false>(which, trace, space & !15).0 == 0);
    least.map_or(f64::INFINITY, |space| space as f64 / trace.peak_live() as f64)
}
