//! What the pools are to reach, what came of it, and whether that is enough.
//!
//! Invariant: of several figures for one goal the worst decides, and no goal is met by a figure of something else: what only a
//! device can show is open without one, what takes many cores is open on few, and a rehearsal meets nothing.

use std::cell::RefCell;

/// What a run's figures stand for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Worth {
    /// A device was measured.
    Device,
    /// There was no device: the pools' bookkeeping on this processor.
    Bookkeeping,
    /// Nothing: sizes were small, or the driver is a simulated one.
    Nothing,
}

enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

enum Needs {
    /// Only the processor that this runs on.
    Processor,
    /// This many cores.
    Cores(usize),
    /// A device.
    Device,
}

macro_rules! goals {
    ($($goal:ident = $what:literal, $bound:ident($value:literal) $unit:literal, $needs:expr;)*) => {
        /// A goal.
        #[derive(Clone, Copy)]
        pub enum Goal { $(#[doc = $what] $goal,)* }

        const ROWS: &[Row] = &[
            $(Row { what: $what, bound: Bound::$bound($value), unit: $unit, needs: $needs },)*
        ];
    };
}

struct Row {
    what: &'static str,
    bound: Bound,
    unit: &'static str,
    needs: Needs,
}

goals! {
    FixedPair = "fixed pool, a pair", AtMost(40.0) " ns", Needs::Processor;
    FixedOverAlloc = "fixed pool over cuMemAlloc, every size", AtLeast(200.0) "×", Needs::Device;
    FixedOverAllocLong = "fixed pool over cuMemAlloc, 2 MiB and more", AtLeast(1000.0) "×", Needs::Device;
    VariablePair = "variable pool, a pair", AtMost(100.0) " ns", Needs::Processor;
    VariableOverAsync = "variable pool over cuMemAllocAsync", AtLeast(10.0) "×", Needs::Device;
    OverTorch = "variable pool over PyTorch", AtLeast(4.0) "×", Needs::Device;
    OverRmm = "variable pool over RMM, nearly empty", AtLeast(5.0) "×", Needs::Device;
    OverRmmHoles = "variable pool over RMM, 2000 free blocks", AtLeast(20.0) "×", Needs::Device;
    ThreadsFixed = "fixed pool, 16 threads over one", AtLeast(8.0) "×", Needs::Cores(16);
    ThreadsVariable = "variable pool, 16 threads over one", AtLeast(8.0) "×", Needs::Cores(16);
    HeldMapped = "traces, held over live, mapped pieces", AtMost(1.05) "", Needs::Processor;
    HeldChunks = "traces, held over live, chunks", AtMost(1.15) "", Needs::Processor;
    LongestMapped = "traces, longest of free, mapped pieces", AtLeast(95.0) " %", Needs::Processor;
    CompactedMapped = "the same, compacted by copying", AtLeast(95.0) " %", Needs::Processor;
    LongestChunks = "traces, longest of free, chunks", AtLeast(95.0) " %", Needs::Processor;
    CompactedChunks = "the same, compacted by copying", AtLeast(95.0) " %", Needs::Processor;
    Remap2 = "remapping over copying, pieces of 2 MiB", AtLeast(10.0) "×", Needs::Device;
    Remap32 = "remapping over copying, pieces of 32 MiB", AtLeast(10.0) "×", Needs::Device;
    Pinned = "pooled page-locked copies, of the bare bandwidth", AtLeast(97.0) " %", Needs::Device;
    BothWays = "both directions over one", AtLeast(1.8) "×", Needs::Device;
    Statistics = "statistics, added to a pair", AtMost(5.0) " %", Needs::Processor;
}

/// The figures of a run.
pub struct Goals {
    worth: Worth,
    cores: usize,
    found: RefCell<Vec<Option<f64>>>,
}

impl Goals {
    /// No figures yet.
    pub fn new(worth: Worth, cores: usize) -> Self {
        Self { worth, cores, found: RefCell::new(vec![None; ROWS.len()]) }
    }

    /// Notes a figure; the worst is kept.
    pub fn found(&self, goal: Goal, figure: f64) {
        let slot = &mut self.found.borrow_mut()[goal as usize];
        let worse = match ROWS[goal as usize].bound {
            Bound::AtMost(_) => f64::max,
            Bound::AtLeast(_) => f64::min,
        };
        *slot = Some(slot.map_or(figure, |before| worse(before, figure)));
    }

    fn verdict(&self, row: &Row, figure: Option<f64>) -> String {
        match (self.worth, &row.needs, figure) {
            (Worth::Bookkeeping, Needs::Device, _) => "needs a device".into(),
            (_, _, None) => "not run".into(),
            (Worth::Nothing, ..) => "only rehearsed".into(),
            (_, Needs::Cores(cores), _) if self.cores < *cores => {
                format!("needs {cores} cores, here are {}", self.cores)
            }
            (_, _, Some(figure)) => {
                let met = match row.bound {
                    Bound::AtMost(most) => figure <= most,
                    Bound::AtLeast(least) => figure >= least,
                };
                if met { "met".into() } else { "NOT MET".into() }
            }
        }
    }

    /// The table.
    pub fn print(&self) {
        println!("goals: the worst figure of each");
        for (row, figure) in ROWS.iter().zip(self.found.borrow().iter().copied()) {
            let (sign, value) = match row.bound {
                Bound::AtMost(value) => ('≤', value),
                Bound::AtLeast(value) => ('≥', value),
            };
            let goal = format!("{sign} {value}{}", row.unit);
            let counts = self.worth != Worth::Nothing;
            let shown =
                figure.filter(|_| counts).map_or_else(|| "–".into(), |f| format!("{f:.2}{}", row.unit));
            println!("{:<50}{goal:>12}{shown:>14}  {}", row.what, self.verdict(row, figure));
        }
        if self.worth == Worth::Bookkeeping {
            println!("(what is met is met by the pools' bookkeeping on this processor, with no device)");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(goals: &Goals, goal: Goal) -> String {
        goals.verdict(&ROWS[goal as usize], goals.found.borrow()[goal as usize])
    }

    #[test]
    fn the_worst_figure_decides() {
        let goals = Goals::new(Worth::Device, 16);
        assert_eq!(verdict(&goals, Goal::FixedPair), "not run");
        [20.0, 39.0].into_iter().for_each(|nanos| goals.found(Goal::FixedPair, nanos));
        [9.0, 8.0, 10.0].into_iter().for_each(|ratio| goals.found(Goal::ThreadsFixed, ratio));
        assert_eq!(
            (verdict(&goals, Goal::FixedPair).as_str(), verdict(&goals, Goal::ThreadsFixed).as_str()),
            ("met", "met")
        );
        [41.0, 12.0].into_iter().for_each(|nanos| goals.found(Goal::FixedPair, nanos));
        [7.9, 99.0].into_iter().for_each(|ratio| goals.found(Goal::ThreadsFixed, ratio));
        assert_eq!(verdict(&goals, Goal::FixedPair), "NOT MET");
        assert_eq!(verdict(&goals, Goal::ThreadsFixed), "NOT MET");
    }

    #[test]
    fn nothing_but_a_device_meets_the_goals_of_a_device_and_a_rehearsal_meets_none() {
        for (worth, cores) in [(Worth::Bookkeeping, 16), (Worth::Nothing, 16), (Worth::Device, 2)] {
            let goals = Goals::new(worth, cores);
            goals.found(Goal::FixedPair, 1.0);
            goals.found(Goal::BothWays, 2.0);
            goals.found(Goal::ThreadsFixed, 16.0);
            let verdicts =
                [Goal::FixedPair, Goal::BothWays, Goal::ThreadsFixed].map(|goal| verdict(&goals, goal));
            let expected = match worth {
                Worth::Bookkeeping => ["met", "needs a device", "met"],
                Worth::Nothing => ["only rehearsed"; 3],
                Worth::Device => ["met", "met", "needs 16 cores, here are 2"],
            };
            assert_eq!(verdicts, expected);
        }
    }
}
