//! A thread that gives memory back while the program does nothing.
//!
//! Purging is otherwise driven by activity: a program that frees much and then sleeps keeps it until it allocates again or
//! calls [`tick`](crate::tick). The background thread makes the passes of the process's domain on time. It owns no heap,
//! allocates nothing, takes no signal, and does nothing but sleep and pass. What waits in the lists and caches of idle threads
//! is theirs, bounded, and stays.
//!
//! A child process after a fork has no such thread; it may start its own.

use crate::process::{domain, milliseconds};
use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};
use terrane_slab::PurgePolicy;

/// The process that has the thread, 0 if none.
static RUNS_IN: AtomicU32 = AtomicU32::new(0);

/// Longest and shortest sleep between two looks, in milliseconds.
const SLEEP: core::ops::RangeInclusive<u64> = 10..=1000;

fn process() -> u32 {
    // SAFETY: asks for a number.
    unsafe { libc::getpid() as u32 }
}

/// Starts the thread, unless this process has it already; whether it runs.
pub fn start_background_purge() -> bool {
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
    loop {
        let delay = domain().policy().purge.delay_ms;
        if delay != PurgePolicy::NEVER {
            domain().purge(milliseconds(), false);
        }
        let sleep = (delay / 4).clamp(*SLEEP.start(), *SLEEP.end());
        let time = libc::timespec { tv_sec: (sleep / 1000) as _, tv_nsec: (sleep % 1000 * 1_000_000) as _ };
        // SAFETY: the time is valid; a sleep that ends early leads to an early look.
        unsafe { libc::nanosleep(&time, ptr::null_mut()) };
    }
}
