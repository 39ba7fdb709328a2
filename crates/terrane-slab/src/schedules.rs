//! Random schedules: threads that run one at a time, and take turns where a number that looks random says so. Only with
//! `--cfg schedules`.
//!
//! Invariant: of the threads of a [`run`] at most one runs, and it gives its turn away only at a step on a word that threads
//! share. Which thread is next depends on the seed alone, so that what a seed found it finds again.
//!
//! Unlike a model checker this neither visits all schedules nor sees weak memory; it runs whole heaps for thousands of steps.

use std::boxed::Box;
use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

struct Turns {
    random: u64,
    current: usize,
    live: Vec<usize>,
    switches: u64,
}

static TURNS: Mutex<Turns> =
    Mutex::new(Turns { random: 1, current: usize::MAX, live: Vec::new(), switches: 0 });
static CHANGED: Condvar = Condvar::new();

std::thread_local! {
    /// The thread's number in the run, if it is in one.
    static ME: Cell<Option<usize>> = const { Cell::new(None) };
}

fn turns() -> MutexGuard<'static, Turns> {
    TURNS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turns {
    fn below(&mut self, bound: usize) -> usize {
        // Marsaglia's xorshift (2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as usize % bound
    }

    fn choose(&mut self) {
        if !self.live.is_empty() {
            let at = self.below(self.live.len());
            self.switches += u64::from(self.current != self.live[at]);
            self.current = self.live[at];
            CHANGED.notify_all();
        }
    }
}

fn wait(mut turns: MutexGuard<'_, Turns>, me: usize) {
    while turns.current != me {
        turns = CHANGED.wait(turns).unwrap_or_else(PoisonError::into_inner);
    }
}

/// A step on a shared word is next: the turn may go to another thread.
pub(crate) fn turn() {
    let Some(me) = ME.get() else { return };
    let mut turns = turns();
    if turns.below(3) == 0 {
        turns.choose();
        wait(turns, me);
    }
}

/// Leaves the run when the thread ends, also by a panic.
struct Leave(usize);

impl Drop for Leave {
    fn drop(&mut self) {
        ME.set(None);
        let mut turns = turns();
        turns.live.retain(|&thread| thread != self.0);
        turns.choose();
    }
}

/// Runs the threads to their ends in the schedule of `seed`; how often the turn changed. One run at a time.
///
/// # Panics
/// If a thread does.
pub fn run<'a>(seed: u64, threads: Vec<Box<dyn FnOnce() + Send + 'a>>) -> u64 {
    {
        let mut turns = turns();
        *turns =
            Turns { random: seed | 1 << 40, current: 0, live: (0..threads.len()).collect(), switches: 0 };
    }
    std::thread::scope(|scope| {
        for (me, thread) in threads.into_iter().enumerate() {
            scope.spawn(move || {
                ME.set(Some(me));
                let _leave = Leave(me);
                wait(turns(), me);
                thread();
            });
        }
    });
    turns().switches
}
