//! Generators of traces that look like what engines meet.
//!
//! Protocol: a generator keeps a list of what is live and draws from one seeded stream of numbers, so that the same
//! workload, number of spans and seed give the same trace anywhere.

use crate::trace::{Request, Trace};
use alloc::vec::Vec;

/// A kind of trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workload {
    /// Lengths spread evenly, lives of random length.
    Uniform,
    /// A server: log-normal lengths, most lives short, some long.
    Server,
    /// Lengths shift from phase to phase while survivors of the last phase stay.
    Phases,
    /// Serving language models: the key-value cache of each sequence grows by half until the sequence ends.
    KvCache,
    /// Training: activations placed forward and vacated backward at a batch size that changes, with long-lived slivers
    /// between them.
    Training,
    /// Combs: short and long spans in turn; every long one goes and a slightly longer one comes.
    Comb,
    /// All of these one after the other, at lengths that give each about the same peak of live units, and each leaving some
    /// spans behind for the next.
    Mixed,
}

impl Workload {
    /// Every workload.
    pub const ALL: [Self; 7] =
        [Self::Uniform, Self::Server, Self::Phases, Self::KvCache, Self::Training, Self::Comb, Self::Mixed];

    /// A short name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Server => "server",
            Self::Phases => "phases",
            Self::KvCache => "kv-cache",
            Self::Training => "training",
            Self::Comb => "comb",
            Self::Mixed => "mixed",
        }
    }

    /// A trace in which about `spans` spans, at least 24, are live at a time; everything is vacated in the end. Lengths are bytes in
    /// multiples of 16.
    pub fn trace(self, spans: usize, seed: u64) -> Trace {
        let mut writer =
            Writer { trace: Trace::new(), live: Vec::new(), ids: Vec::new(), scale: 1, state: seed };
        self.write(&mut writer, spans.max(24));
        writer.trace.drain();
        writer.trace
    }

    fn write(self, writer: &mut Writer, spans: usize) {
        match self {
            Self::Uniform => uniform(writer, spans),
            Self::Server => server(writer, spans),
            Self::Phases => phases(writer, spans),
            Self::KvCache => kv_cache(writer, spans),
            Self::Training => training(writer, spans),
            Self::Comb => comb(writer, spans),
            Self::Mixed => {
                let parts =
                    [Self::Comb, Self::Server, Self::Training, Self::KvCache, Self::Uniform, Self::Phases];
                let peaks = parts.map(|part| part.trace(spans, writer.state).peak_live());
                let highest = peaks.into_iter().fold(1, u64::max);
                for (part, peak) in parts.into_iter().zip(peaks) {
                    writer.scale = (highest / peak.max(1)).max(1);
                    part.write(writer, spans);
                    // One in sixteen stays.
                    writer.thin(writer.live.len() / 16);
                }
                writer.scale = 1;
            }
        }
    }
}

struct Writer {
    trace: Trace,
    live: Vec<u32>,
    /// Ids that were vacated.
    ids: Vec<u32>,
    /// What lengths are multiplied by.
    scale: u64,
    state: u64,
}

impl Writer {
    /// The next number of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// A number below `bound`, which is not zero.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// About 2 to the power of a normal number, by the sum of twelve even ones; `scale` is the median, and one in three is
    /// more than `2^spread` times above or below it.
    fn log_normal(&mut self, scale: u64, spread: u64) -> u64 {
        let sum: u64 = (0..12).map(|_| self.below(1 << 16)).sum();
        // In 65536ths of a power of two, around zero.
        let power = (sum as i64 - 6 * (1 << 16)) * spread as i64 + (20 << 16);
        let (whole, part) = ((power >> 16).clamp(0, 40) as u32, (power & 0xFFFF) as u64);
        // Linear between powers.
        let factor = (1u64 << whole) + (((1u64 << whole) * part) >> 16);
        ((u128::from(scale) * u128::from(factor)) >> 20) as u64
    }

    fn place(&mut self, len: u64) -> u32 {
        let id = self.ids.pop().unwrap_or(self.trace.ids() as u32);
        let len = len.max(16).next_multiple_of(16) * self.scale;
        // The id is fresh or was vacated, and the length is not zero.
        let _ = self.trace.push(Request::Place { id, len, align: 16 });
        id
    }

    fn vacate(&mut self, id: u32) {
        let _ = self.trace.push(Request::Vacate { id });
        self.ids.push(id);
    }

    fn enter(&mut self, len: u64) {
        let id = self.place(len);
        self.live.push(id);
    }

    /// Vacates a random one of those entered.
    fn leave(&mut self) {
        if !self.live.is_empty() {
            let at = self.below(self.live.len() as u64) as usize;
            let id = self.live.swap_remove(at);
            self.vacate(id);
        }
    }

    fn thin(&mut self, keep: usize) {
        while self.live.len() > keep {
            self.leave();
        }
    }
}

fn uniform(writer: &mut Writer, spans: usize) {
    for _ in 0..spans * 5 {
        if writer.live.len() >= spans {
            writer.leave();
        }
        let len = 16 + writer.below(16 << 10);
        writer.enter(len);
    }
}

fn server(writer: &mut Writer, spans: usize) {
    // Short lives are a queue of an eighth of all spans; one in ten goes among the long lives.
    let mut short = alloc::collections::VecDeque::new();
    for _ in 0..spans * 6 {
        let len = writer.log_normal(256, 2);
        if writer.below(10) == 0 {
            if writer.live.len() >= spans * 7 / 8 {
                writer.leave();
            }
            writer.enter(len);
        } else {
            if short.len() >= spans / 8 {
                // Not quite in order.
                let at = writer.below(8.min(short.len() as u64)) as usize;
                if let Some(id) = short.remove(at) {
                    writer.vacate(id);
                }
            }
            short.push_back(writer.place(len));
        }
    }
    short.into_iter().for_each(|id| writer.vacate(id));
}

fn phases(writer: &mut Writer, spans: usize) {
    for scale in [64u64, 1024, 192, 4096, 512] {
        for _ in 0..spans * 2 {
            if writer.live.len() >= spans {
                writer.leave();
            }
            let len = scale / 2 + writer.below(scale);
            writer.enter(len);
        }
        writer.thin(spans / 4);
    }
}

fn kv_cache(writer: &mut Writer, spans: usize) {
    const PER_TOKEN: u64 = 512;
    let mut sequences: Vec<(u32, u64, u64)> = Vec::new();
    for _ in 0..spans * 6 {
        if sequences.len() < spans && (sequences.len() < spans / 2 || writer.below(3) == 0) {
            let prompt = writer.log_normal(64, 1).max(1);
            let end = prompt + writer.log_normal(256, 1);
            sequences.push((writer.place(prompt * PER_TOKEN), prompt, end));
            continue;
        }
        let at = writer.below(sequences.len() as u64) as usize;
        let (id, tokens, end) = sequences[at];
        if tokens >= end {
            writer.vacate(id);
            sequences.swap_remove(at);
        } else {
            let tokens = (tokens + tokens / 2 + 1).next_multiple_of(16);
            // The old cache is live until it has been copied.
            let grown = writer.place(tokens * PER_TOKEN);
            writer.vacate(id);
            sequences[at] = (grown, tokens, end);
        }
    }
    sequences.into_iter().for_each(|(id, ..)| writer.vacate(id));
}

fn training(writer: &mut Writer, spans: usize) {
    let layers: Vec<u64> = (0..spans).map(|_| writer.log_normal(4096, 1)).collect();
    let mut step = Vec::with_capacity(spans);
    for _ in 0..5 {
        let batch = 8 + writer.below(9);
        for &layer in &layers {
            step.push(writer.place(layer * batch / 8));
            // Buffers for communication and statistics, which outlive the step.
            if writer.below(64) == 0 {
                if writer.live.len() >= spans / 16 {
                    writer.leave();
                }
                let len = 64 + writer.below(512);
                writer.enter(len);
            }
            // What a layer needs only while it is computed.
            let scratch = writer.place(layer / 2);
            writer.vacate(scratch);
        }
        while let Some(id) = step.pop() {
            writer.vacate(id);
        }
    }
}

fn comb(writer: &mut Writer, spans: usize) {
    let mut long = 256;
    let mut teeth: Vec<u32> = Vec::new();
    for _ in 0..6 {
        for _ in 0..spans / 12 {
            let len = 16 + writer.below(3) * 16;
            writer.enter(len);
            teeth.push(writer.place(long));
        }
        // Every other long one first, then the rest.
        for odd in [true, false] {
            for at in (usize::from(odd)..teeth.len()).step_by(2) {
                writer.vacate(teeth[at]);
                if odd {
                    teeth[at] = writer.place(long + 16);
                }
            }
            if !odd {
                teeth = teeth.iter().copied().skip(1).step_by(2).collect();
            }
        }
        long += 32;
    }
    teeth.into_iter().for_each(|id| writer.vacate(id));
}
