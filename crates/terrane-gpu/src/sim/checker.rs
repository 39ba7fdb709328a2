//! The happens-before checker: vector clocks over streams, and for every stretch of memory who touched it last.
//!
//! Invariant: two accesses to the same byte, one of them a write, are ordered by the program: by one stream, by an event
//! that one stream recorded and the other waits for, or by the host having waited. Otherwise a [`Violation`] is kept.
//!
//! Clocks are taken when work is submitted. What an order of execution might hide is therefore found in every run,
//! whatever the scheduler does.

use std::collections::BTreeMap;

/// A clock: for every stream, the last piece of its work that is known to come before.
#[derive(Clone, Default, Debug)]
pub(super) struct Clock(Vec<u64>);

impl Clock {
    pub(super) fn get(&self, stream: usize) -> u64 {
        self.0.get(stream).copied().unwrap_or(0)
    }

    pub(super) fn join(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }

    pub(super) fn tick(&mut self, stream: usize) -> u64 {
        if self.0.len() <= stream {
            self.0.resize(stream + 1, 0);
        }
        self.0[stream] += 1;
        self.0[stream]
    }
}

/// What was done against the rules. Streams are given by their handle ([`Stream::raw`](crate::Stream::raw)).
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Violation {
    /// Two streams touch the same bytes, at least one of them writing, and nothing orders them.
    Race {
        /// First address of the later access.
        address: u64,
        /// Its length in bytes.
        len: u64,
        /// The stream of the later access.
        stream: u64,
        /// The stream of the earlier access.
        earlier: u64,
        /// Whether the later access writes.
        write: bool,
        /// What the later access was.
        what: &'static str,
    },
    /// Work uses addresses that are not mapped (any more).
    Unmapped {
        /// First address of the access.
        address: u64,
        /// Its length in bytes.
        len: u64,
        /// The stream.
        stream: u64,
        /// What the access was.
        what: &'static str,
    },
    /// Memory was unmapped or given back while work that uses it was not known to be complete.
    GivenBackInUse {
        /// First address.
        address: u64,
        /// Length in bytes.
        len: u64,
        /// The stream of that work.
        stream: u64,
    },
    /// A kernel touched bytes that its launch did not declare.
    Undeclared {
        /// First address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A call that is not allowed while a stream is being captured; the capture is spoilt.
    InCapture {
        /// The driver's name of the call.
        call: &'static str,
    },
    /// Streams wait for each other.
    Deadlock,
}

#[derive(Clone, Default, Debug)]
struct Record {
    end: u64,
    write: Option<(usize, u64)>,
    reads: Vec<(usize, u64)>,
}

/// Last accesses to one piece of memory, by stretch.
#[derive(Default, Debug)]
pub(super) struct Shadow {
    records: BTreeMap<u64, Record>,
}

impl Shadow {
    fn split_at(&mut self, at: u64) {
        let Some((_, record)) = self.records.range_mut(..at).next_back() else { return };
        if record.end > at {
            let right = record.clone();
            record.end = at;
            self.records.insert(at, right);
        }
    }

    /// Notes an access by `stream` at its `tick`, under `clock`, and returns a stream it is not ordered after.
    pub(super) fn access(
        &mut self,
        offset: u64,
        len: u64,
        write: bool,
        clock: &Clock,
        stream: usize,
        tick: u64,
    ) -> Option<usize> {
        let end = offset + len;
        let unordered = self.unordered(offset, len, write, clock);
        self.split_at(offset);
        self.split_at(end);
        if write {
            let inside: Vec<u64> = self.records.range(offset..end).map(|(&s, _)| s).collect();
            for start in inside {
                self.records.remove(&start);
            }
            self.records.insert(offset, Record { end, write: Some((stream, tick)), reads: Vec::new() });
            return unordered;
        }
        let mut at = offset;
        while at < end {
            let next = self.records.range(at..end).next().map_or(end, |(&s, _)| s);
            if next > at {
                self.records.insert(at, Record { end: next, write: None, reads: vec![(stream, tick)] });
            } else if let Some(record) = self.records.get_mut(&at) {
                record.reads.retain(|&(s, t)| clock.get(s) < t);
                record.reads.push((stream, tick));
            }
            at = self.records.get(&at).map_or(end, |r| r.end);
        }
        unordered
    }

    /// A stream with an access to the range that `clock` does not know of (writes only, if the asker only reads).
    pub(super) fn unordered(&self, offset: u64, len: u64, write: bool, clock: &Clock) -> Option<usize> {
        let end = offset + len;
        let first = self.records.range(..=offset).next_back().map_or(offset, |(&s, _)| s);
        for (_, record) in self.records.range(first..end).filter(|(_, r)| r.end > offset) {
            if let Some((s, t)) = record.write
                && clock.get(s) < t
            {
                return Some(s);
            }
            if write && let Some(&(s, _)) = record.reads.iter().find(|&&(s, t)| clock.get(s) < t) {
                return Some(s);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(ticks: &[u64]) -> Clock {
        Clock(ticks.to_vec())
    }

    #[test]
    fn a_write_after_an_unordered_read_is_found_only_where_they_overlap() {
        let mut shadow = Shadow::default();
        assert_eq!(shadow.access(100, 50, false, &clock(&[1]), 0, 1), None);
        assert_eq!(shadow.access(0, 100, true, &clock(&[0, 1]), 1, 1), None, "touches, does not overlap");
        assert_eq!(shadow.access(149, 10, true, &clock(&[0, 2]), 1, 2), Some(0));
        assert_eq!(shadow.access(100, 49, true, &clock(&[1, 3]), 1, 3), None, "ordered by the clock");
    }

    #[test]
    fn two_reads_never_conflict_and_both_are_remembered() {
        let mut shadow = Shadow::default();
        assert_eq!(shadow.access(0, 64, false, &clock(&[1]), 0, 1), None);
        assert_eq!(shadow.access(32, 64, false, &clock(&[0, 1]), 1, 1), None);
        assert_eq!(shadow.unordered(0, 32, true, &clock(&[0, 1])), Some(0));
        assert_eq!(shadow.unordered(64, 8, true, &clock(&[1, 0])), Some(1));
        assert_eq!(shadow.unordered(40, 8, true, &clock(&[1, 1])), None);
    }
}
