//! Whether the background thread is there: how it comes and goes.
//!
//! Invariant: while freed memory waits that somebody noticed, or while the thread is wanted always, the process has the thread, or
//! somebody is about to start it. There is never more than one that stays.
//!
//! | `runs_in` | meaning |
//! |---|---|
//! | 0 | there is no thread, or it is looking once more before it ends |
//! | this process | the thread runs, or is being started |
//! | another process | this one was forked from it, and has no thread |
//!
//! Protocol: the thread that ends takes the name out of `runs_in`, passes a fence, and looks once more. Everybody else does their part
//! (schedules memory, chooses a mode, takes the notice down), passes a fence, and looks for the name. Of two fences one is first.
//!
//! No word here guards other memory, so all accesses are relaxed; what matters is the order of fences. The argument is in the book,
//! chapter "The background thread".

use crate::fault::{Fault, planted};
use terrane_core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering, fence};

/// Whether a thread gives memory back while the program is idle.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Background {
    /// While there is enough to give back, in programs of several threads.
    #[default]
    Auto = 0,
    /// Never.
    Off = 1,
    /// Always.
    On = 2,
}

/// What decides whether the thread comes, stays and goes.
#[derive(Debug)]
pub struct Presence {
    /// A [`Background`].
    mode: AtomicU8,
    /// Whether a thread should be started as soon as somebody who noticed lets go of the heap.
    noticed: AtomicBool,
    /// The process that has the thread, 0 if none.
    runs_in: AtomicU32,
}

impl Presence {
    terrane_core::const_unless_loom! {
        /// No thread, [`Background::Auto`].
        pub fn new() -> Self {
            Self {
                mode: AtomicU8::new(Background::Auto as u8),
                noticed: AtomicBool::new(false),
                runs_in: AtomicU32::new(0),
            }
        }
    }

    /// Whether `mode` is chosen.
    #[inline]
    pub fn is(&self, mode: Background) -> bool {
        self.mode.load(Ordering::Relaxed) == mode as u8
    }

    /// Chooses `mode`. With [`Background::On`] the thread is started by `start`, which says whether it was, unless process `me` has
    /// it already; the answer is whether it runs.
    pub fn choose(&self, mode: Background, me: u32, start: impl FnOnce() -> bool) -> bool {
        self.mode.store(mode as u8, Ordering::Relaxed);
        if mode != Background::On {
            return true;
        }
        if !planted(Fault::ChoiceUnfenced) {
            // A thread that is ending sees the choice, or its name is seen to be gone.
            fence(Ordering::SeqCst);
        }
        self.start_once(me, start)
    }

    /// Notes that a thread is to be started, after memory was freed: if memory `matters`, process `me` has no thread, and it has
    /// `several` threads of its own. Passes no fence where no thread is wanted.
    #[inline]
    pub fn notice(
        &self,
        matters: impl FnOnce() -> bool,
        me: impl FnOnce() -> u32,
        several: impl FnOnce() -> bool,
    ) {
        if self.is(Background::Off)
            || !matters()
            || (planted(Fault::ModeReadEarly) && !self.is(Background::Auto))
            || (planted(Fault::NoticeReadEarly) && self.noticed.load(Ordering::Relaxed))
        {
            return;
        }
        if !planted(Fault::NoticeUnfenced) {
            // The memory was scheduled before this. All that says "somebody else sees to it" is read after it.
            fence(Ordering::SeqCst);
        }
        if self.is(Background::Auto)
            && !self.noticed.load(Ordering::Relaxed)
            && self.runs_in.load(Ordering::Relaxed) != me()
            && several()
        {
            self.noticed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a thread is to be started.
    #[inline(always)]
    pub fn is_noticed(&self) -> bool {
        self.noticed.load(Ordering::Relaxed)
    }

    /// Starts the thread by `start` if that was noticed to be of use and process `me` does not have it.
    pub fn start_noticed(&self, me: u32, start: impl FnOnce() -> bool) {
        if !self.noticed.swap(false, Ordering::Relaxed) {
            return;
        }
        if !planted(Fault::StartUnfenced) {
            // Whoever found the notice and relied on it had scheduled before; so has who sees it gone from now on.
            fence(Ordering::SeqCst);
        }
        // A thread that cannot be started leaves memory to be given back by activity.
        let _ = self.start_once(me, start);
    }

    fn start_once(&self, me: u32, start: impl FnOnce() -> bool) -> bool {
        let seen = self.runs_in.load(Ordering::Relaxed);
        if seen == me {
            return true;
        }
        if planted(Fault::StartUnexchanged) {
            self.runs_in.store(me, Ordering::Relaxed);
        } else if self.runs_in.compare_exchange(seen, me, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            // Another was faster.
            return true;
        }
        let started = start();
        if !started {
            self.runs_in.store(0, Ordering::Relaxed);
        }
        started
    }

    /// Takes the thread's name out, and looks once more, also whether memory `waits`; whether the thread is to end.
    pub fn leave(&self, me: u32, waits: impl FnOnce() -> bool) -> bool {
        self.runs_in.store(0, Ordering::Relaxed);
        if planted(Fault::LeaveUnchecked) {
            return true;
        }
        if !planted(Fault::LeaveUnfenced) {
            fence(Ordering::SeqCst);
        }
        let needed = self.is(Background::On) || (self.is(Background::Auto) && waits());
        if !needed {
            return true;
        }
        if planted(Fault::LeaveUnexchanged) {
            self.runs_in.store(me, Ordering::Relaxed);
            return false;
        }
        // If the name is another's by now, that thread sees to it.
        self.runs_in.compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed).is_err()
    }

    /// Forgets the thread, in a child process, which has none. Without this call a child knows it by the name, unless the system has
    /// given it that name again.
    pub fn forget(&self) {
        self.runs_in.store(0, Ordering::Relaxed);
    }
}

impl Default for Presence {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Background, Presence};
    use core::cell::Cell;

    const ME: u32 = 7;
    const CHILD: u32 = 8;

    /// What a thread does that frees much and then lets go of its heap; whether it started a thread.
    fn free_much(presence: &Presence, me: u32) -> bool {
        let started = Cell::new(false);
        presence.notice(|| true, || me, || true);
        if presence.is_noticed() {
            presence.start_noticed(me, || {
                started.set(true);
                true
            });
        }
        started.get()
    }

    #[test]
    fn freed_memory_starts_one_thread() {
        let presence = Presence::new();
        assert!(free_much(&presence, ME));
        assert!(!free_much(&presence, ME), "there is one already");
        assert!(presence.leave(ME, || false));
        assert!(free_much(&presence, ME), "the first has ended");
    }

    #[test]
    fn a_thread_with_work_left_stays() {
        let presence = Presence::new();
        assert!(free_much(&presence, ME));
        assert!(!presence.leave(ME, || true));
        assert!(!free_much(&presence, ME), "it has its name back");
        presence.choose(Background::On, ME, || panic!("it runs"));
        assert!(!presence.leave(ME, || false), "it is wanted always");
        presence.choose(Background::Off, ME, || panic!("it is not wanted"));
        assert!(presence.leave(ME, || true));
    }

    #[test]
    fn little_memory_a_single_thread_and_a_program_that_wants_none_start_none() {
        let presence = Presence::new();
        presence.notice(|| false, || ME, || true);
        presence.notice(|| true, || ME, || false);
        assert!(!presence.is_noticed());
        presence.choose(Background::Off, ME, || panic!("none is wanted"));
        assert!(!free_much(&presence, ME));
    }

    #[test]
    fn a_thread_that_cannot_be_started_is_tried_again() {
        let presence = Presence::new();
        assert!(!presence.choose(Background::On, ME, || false));
        assert!(presence.choose(Background::On, ME, || true));
    }

    #[test]
    fn a_child_process_has_no_thread_of_its_parents() {
        let presence = Presence::new();
        assert!(free_much(&presence, ME));
        assert!(free_much(&presence, CHILD), "the name is the parent's");
        presence.forget();
        assert!(free_much(&presence, CHILD), "the name is its own, from before the fork");
    }
}
