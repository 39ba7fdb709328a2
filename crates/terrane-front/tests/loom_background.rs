//! Models of how the background thread comes and goes, over the production code. The argument is in
//! `docs/src/protocols/background.md`. Each model has twins with a planted fault, which must fail.
//!
//! The thread is played by threads of the model: what the system would start is counted, and the part in which it ends is run.
#![cfg(loom)]

mod harness;

use harness::{check, front, models};
use loom::sync::Arc;
use loom::thread;
use std::sync::atomic::{AtomicU64, AtomicUsize as Plain, Ordering};
use terrane_core::sync::atomic::{AtomicBool, Ordering as ModelOrdering};
use terrane_front::fault::Fault;
use terrane_front::presence::{Background, Presence};

models! {
    model_background_chosen: chosen, threads 3, faults [
        fault_background_chosen_choice_unfenced: front(Fault::ChoiceUnfenced),
        fault_background_chosen_leave_unfenced: front(Fault::LeaveUnfenced),
        fault_background_chosen_leave_unchecked: front(Fault::LeaveUnchecked),
        fault_background_chosen_leave_unexchanged: front(Fault::LeaveUnexchanged),
        fault_background_chosen_start_unexchanged: front(Fault::StartUnexchanged)
    ];
    model_background_noticed: noticed, threads 3, faults [
        fault_background_noticed_unfenced: front(Fault::NoticeUnfenced),
        fault_background_noticed_read_early: front(Fault::NoticeReadEarly),
        fault_background_noticed_start_unfenced: front(Fault::StartUnfenced),
        fault_background_noticed_leave_unfenced: front(Fault::LeaveUnfenced),
        fault_background_noticed_leave_unchecked: front(Fault::LeaveUnchecked)
    ];
    model_background_released: released, threads 3, faults [
        fault_background_released_mode_read_early: front(Fault::ModeReadEarly),
        fault_background_released_leave_unfenced: front(Fault::LeaveUnfenced)
    ];
}

/// The process's name.
const ME: u32 = 7;

/// A process with the thread, and words that say whether freed memory waits.
struct Process {
    presence: Presence,
    waits: [AtomicBool; 2],
    /// Threads that stay.
    running: Plain,
}

impl Process {
    /// A process that has a thread, in `mode`.
    fn new(mode: Background) -> Arc<Self> {
        let presence = Presence::new();
        presence.choose(Background::On, ME, || true);
        presence.choose(mode, ME, || false);
        let waits = [AtomicBool::new(false), AtomicBool::new(false)];
        Arc::new(Self { presence, waits, running: Plain::new(1) })
    }

    fn start(&self) -> bool {
        self.running.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn choose(&self, mode: Background) -> bool {
        self.presence.choose(mode, ME, || self.start())
    }

    /// A thread frees memory in a slow path, and lets go of its heap.
    fn free(&self, which: usize) {
        self.waits[which].store(true, ModelOrdering::Relaxed);
        self.presence.notice(|| true, || ME, || true);
        if self.presence.is_noticed() {
            self.presence.start_noticed(ME, || self.start());
        }
    }

    /// The thread has found nothing to do for a while, and ends unless it is needed; whether it ends.
    fn end(&self) -> bool {
        let ends = self.presence.leave(ME, || self.memory_waits());
        if ends {
            self.running.fetch_sub(1, Ordering::Relaxed);
        }
        ends
    }

    /// The thread gives back what it sees.
    fn pass(&self) {
        for waits in self.waits.iter().filter(|waits| waits.load(ModelOrdering::Relaxed)) {
            waits.store(false, ModelOrdering::Relaxed);
        }
    }

    fn memory_waits(&self) -> bool {
        self.waits.iter().any(|waits| waits.load(ModelOrdering::Relaxed))
    }
}

/// Runs `actors` as threads; when they are done, how many threads give memory back.
fn play<const N: usize>(process: &Arc<Process>, actors: [fn(&Process); N]) -> usize {
    let threads = actors.map(|actor| {
        let process = process.clone();
        thread::spawn(move || actor(&process))
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    process.running.load(Ordering::Relaxed)
}

/// Two threads choose that the thread always runs, while it is about to end: it runs, and once.
fn chosen(iterations: &'static AtomicU64) {
    check(3, iterations, || {
        let process = Process::new(Background::Auto);
        let on: fn(&Process) = |process| assert!(process.choose(Background::On));
        let end: fn(&Process) = |process| {
            process.end();
        };
        let running = play(&process, [on, on, end]);
        assert_eq!(running, 1, "threads of a process that was told that it has one");
    });
}

/// Two threads free memory while the thread is about to end, and again after it has given back what it saw: what waits is not
/// forgotten, and there are not two threads.
fn noticed(iterations: &'static AtomicU64) {
    check(3, iterations, || {
        let process = Process::new(Background::Auto);
        let running = play(
            &process,
            [
                |process| process.free(0),
                |process| process.free(1),
                |process| {
                    if !process.end() {
                        process.pass();
                        process.end();
                    }
                },
            ],
        );
        assert!(running <= 1, "{running} threads give memory back");
        assert!(running == 1 || !process.memory_waits(), "memory waits, and nobody comes");
    });
}

/// The thread, wanted always until now, is wanted no longer than it has work; it is about to end for that while memory is freed.
fn released(iterations: &'static AtomicU64) {
    check(3, iterations, || {
        let process = Process::new(Background::On);
        let running = play(
            &process,
            [
                |process| process.free(0),
                |process| assert!(process.choose(Background::Auto)),
                |process| {
                    if process.presence.is(Background::Auto) {
                        process.end();
                    }
                },
            ],
        );
        assert_eq!(running, 1, "threads of a process whose memory waits");
    });
}
