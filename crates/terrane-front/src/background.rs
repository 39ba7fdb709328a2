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
//! How it comes and goes without freed memory being forgotten is the business of [`Presence`].
//!
//! A child process after a fork has no such thread. It gets its own when it needs one, or, with [`Background::On`], when it chooses
//! that mode again.

use crate::presence::{Background, Presence};
use crate::process::{RECORDS, domain, milliseconds};
use core::ffi::c_void;
use core::ptr;
use terrane_slab::PurgePolicy;

/// Bytes that a program must have held at one time before a thread is started for it.
pub const WORTHWHILE: u64 = 32 << 20;

static PRESENCE: Presence = Presence::new();

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
    PRESENCE.choose(mode, process(), start)
}

/// Starts the thread for good, unless this process has it already; whether it runs.
pub fn start_background_purge() -> bool {
    set_background(Background::On)
}

/// The domain's sign that freed memory begins to age. The calling thread is in the middle of a slow path.
pub(crate) fn notice() {
    PRESENCE.notice(
        || domain().counters.peak_in_use.get() >= WORTHWHILE,
        process,
        || RECORDS.all().filter(|record| record.is_used()).count() > 1,
    );
}

/// Starts the thread if that was noticed to be of use. The calling thread holds no heap.
#[inline(always)]
pub(crate) fn start_if_noticed() {
    if PRESENCE.is_noticed() {
        start_noticed();
    }
}

#[cold]
#[inline(never)]
fn start_noticed() {
    PRESENCE.start_noticed(process(), start);
}

/// Forgets the thread, in a child process.
pub(crate) fn forget() {
    PRESENCE.forget();
}

/// Starts the thread; whether the system did.
fn start() -> bool {
    // SAFETY: the attributes, the signal sets and the thread's name for itself are this function's; `run` never returns and
    // touches nothing of the caller's.
    unsafe {
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
    }
}

extern "C" fn run(_: *mut c_void) -> *mut c_void {
    let mut idle_looks = 0;
    loop {
        let delay = domain().policy().purge.delay_ms;
        if delay != PurgePolicy::NEVER {
            domain().purge(milliseconds(), false);
        }
        idle_looks = if domain().has_idle_memory() { 0 } else { idle_looks + 1 };
        let idle = PRESENCE.is(Background::Auto) && idle_looks >= IDLE_LOOKS;
        let unneeded = PRESENCE.is(Background::Off) || idle;
        if unneeded && PRESENCE.leave(process(), || domain().has_idle_memory()) {
            return ptr::null_mut();
        }
        let sleep = (delay / 4).clamp(*SLEEP.start(), *SLEEP.end());
        let time = libc::timespec { tv_sec: (sleep / 1000) as _, tv_nsec: (sleep % 1000 * 1_000_000) as _ };
        // SAFETY: the time is valid; a sleep that ends early leads to an early look.
        unsafe { libc::nanosleep(&time, ptr::null_mut()) };
    }
}
