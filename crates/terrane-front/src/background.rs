//! A thread that gives memory back while the program does nothing.
//!
//! Purging is otherwise driven by activity: a program that frees much and then sleeps keeps it until it allocates again or
//! calls [`tick`](crate::tick). The background thread makes the passes of the process's domain on time. It owns no heap,
//! allocates nothing, takes no signal, and does nothing but sleep and pass. What waits in the lists and caches of idle threads
//! is theirs, bounded, and stays.
//!
//! By default ([`Background::Auto`]) it starts by itself when there is something to give back that matters: the program has held
//! [`WORTHWHILE`] bytes at one time, has two threads or more anyway, and has freed memory. It ends when no freed memory is left.
//! A program of one thread, or a small one, never gets another.
//!
//! Invariant: freed memory that was noticed while the thread ends is not forgotten: the thread takes its name out of `RUNS_IN`
//! first and looks once more afterwards, and whoever frees schedules first and looks for the name afterwards.
//!
//! A child process after a fork has no such thread; it gets its own when it needs one.

use crate::process::{RECORDS, domain, milliseconds};
use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering, fence};
use terrane_slab::PurgePolicy;

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

/// Bytes that a program must have held at one time before a thread is started for it.
pub const WORTHWHILE: u64 = 32 << 20;

/// A [`Background`].
static MODE: AtomicU8 = AtomicU8::new(Background::Auto as u8);

/// Whether a thread should be started as soon as the heap is let go of.
static NOTICED: AtomicBool = AtomicBool::new(false);

/// The process that has the thread, 0 if none.
static RUNS_IN: AtomicU32 = AtomicU32::new(0);

/// Longest and shortest sleep between two looks, in milliseconds.
const SLEEP: core::ops::RangeInclusive<u64> = 10..=1000;

/// Looks that find no freed memory before a thread that started by itself ends.
const IDLE_LOOKS: u32 = 8;

fn process() -> u32 {
    // SAFETY: asks for a number.
    unsafe { libc::getpid() as u32 }
}

/// Chooses whether a thread gives memory back while the program is idle, from now on; with [`Background::On`] it is started, and
/// the answer is whether it runs. A thread that runs already ends at one of its next looks when it is not wanted any more.
pub fn set_background(mode: Background) -> bool {
    MODE.store(mode as u8, Ordering::Relaxed);
    mode != Background::On || start()
}

/// Starts the thread for good, unless this process has it already; whether it runs.
pub fn start_background_purge() -> bool {
    set_background(Background::On)
}

fn is(mode: Background) -> bool {
    MODE.load(Ordering::Relaxed) == mode as u8
}

/// The domain's sign that freed memory begins to age. The calling thread is in the middle of a slow path.
pub(crate) fn notice() {
    if !is(Background::Auto)
        || NOTICED.load(Ordering::Relaxed)
        || domain().counters.peak_in_use.get() < WORTHWHILE
    {
        return;
    }
    // The memory was scheduled before this, and the name is looked for after it.
    fence(Ordering::SeqCst);
    let threads = RECORDS.all().filter(|record| record.is_used());
    if RUNS_IN.load(Ordering::Relaxed) != process() && threads.count() > 1 {
        NOTICED.store(true, Ordering::Relaxed);
    }
}

/// Starts the thread if that was noticed to be of use. The calling thread holds no heap.
#[inline(always)]
pub(crate) fn start_if_noticed() {
    if NOTICED.load(Ordering::Relaxed) {
        start_noticed();
    }
}

#[cold]
#[inline(never)]
fn start_noticed() {
    if NOTICED.swap(false, Ordering::Relaxed) {
        // A thread that cannot be started leaves memory to be given back by activity.
        let _ = start();
    }
}

/// Starts the thread, unless this process has it already; whether it runs.
fn start() -> bool {
    let (me, seen) = (process(), RUNS_IN.load(Ordering::Acquire));
    if seen == me {
        return true;
    }
    if RUNS_IN.compare_exchange(seen, me, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return true;
    }
    // SAFETY: the attributes, the signal sets and the thread's name for itself are this function's; `run` never returns and
    // touches nothing of the caller's.
    let started = unsafe {
        let mut attributes: libc::pthread_attr_t = core::mem::zeroed();
        let mut thread: libc::pthread_t = core::mem::zeroed();
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) =
            (core::mem::zeroed(), core::mem::zeroed());
        libc::sigfillset(&mut all);
        libc::pthread_attr_init(&mut attributes);
        libc::pthread_attr_setdetachstate(&mut attributes, libc::PTHREAD_CREATE_DETACHED);
        // The thread inherits the mask, so that the program's signals go to the program's threads.
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let failed = libc::pthread_create(&mut thread, &attributes, run, ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
        libc::pthread_attr_destroy(&mut attributes);
        failed == 0
    };
    if !started {
        RUNS_IN.store(0, Ordering::Release);
    }
    started
}

extern "C" fn run(_: *mut c_void) -> *mut c_void {
    let mut idle_looks = 0;
    loop {
        let delay = domain().policy().purge.delay_ms;
        if delay != PurgePolicy::NEVER {
            domain().purge(milliseconds(), false);
        }
        idle_looks = if domain().has_idle_memory() { 0 } else { idle_looks + 1 };
        let unneeded = is(Background::Off) || (is(Background::Auto) && idle_looks >= IDLE_LOOKS);
        if unneeded && end() {
            return ptr::null_mut();
        }
        let sleep = (delay / 4).clamp(*SLEEP.start(), *SLEEP.end());
        let time = libc::timespec { tv_sec: (sleep / 1000) as _, tv_nsec: (sleep % 1000 * 1_000_000) as _ };
        // SAFETY: the time is valid; a sleep that ends early leads to an early look.
        unsafe { libc::nanosleep(&time, ptr::null_mut()) };
    }
}

/// Takes this thread's name out, and looks once more; whether the thread is to end.
fn end() -> bool {
    let me = process();
    RUNS_IN.store(0, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    let needed = is(Background::On) || (is(Background::Auto) && domain().has_idle_memory());
    // If the name is another's by now, that thread sees to it.
    !needed || RUNS_IN.compare_exchange(0, me, Ordering::AcqRel, Ordering::Relaxed).is_err()
}
