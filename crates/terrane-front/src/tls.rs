//! The only module that knows thread-locals.
//!
//! Invariant: a thread's state is reachable from its first instruction to its last; before the thread has a heap, and after
//! it has given its heap up, every call of the hit path misses.
//!
//! In a program the state, lists and all, is a thread-local of a `const`, non-`Drop` type, so an access is one instruction
//! relative to the thread pointer. In a shared library that would be a call to the dynamic loader; with the feature
//! `initial-exec` the thread-local is one pointer of static storage, read by two instructions, that leads to the lists in the
//! thread's heap record, and at first to [`NONE`], whose lists miss.

use crate::process::ThreadRecord as Record;
use core::cell::Cell;
use core::ptr;
use terrane_slab::Lists;

/// Where a thread is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Phase {
    /// It has not needed memory yet.
    New,
    /// It has a heap.
    Live,
    /// Its heap is given up: destructors that run later get a heap for each call.
    Late,
}

/// A thread's state.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct State {
    /// The thread's lists: the hit path.
    #[cfg(not(all(feature = "initial-exec", target_arch = "x86_64", target_os = "linux")))]
    lists: Lists,
    pub(crate) record: Cell<*const Record>,
    pub(crate) phase: Cell<Phase>,
}

#[cfg(not(all(feature = "initial-exec", target_arch = "x86_64", target_os = "linux")))]
mod place {
    use super::*;

    std::thread_local! {
        static STATE: State = const {
            State { lists: Lists::new(), record: Cell::new(ptr::null()), phase: Cell::new(Phase::New) }
        };
    }

    /// Calls `f` with the thread's lists.
    #[inline(always)]
    pub(crate) fn with_lists<R>(f: impl FnOnce(&Lists) -> R) -> R {
        STATE.with(|state| f(&state.lists))
    }

    /// Calls `f` with the thread's lists and state.
    #[inline(always)]
    pub(crate) fn with_state<R>(f: impl FnOnce(&Lists, &State) -> R) -> R {
        STATE.with(|state| f(&state.lists, state))
    }

    /// Makes `record` the thread's, or none.
    pub(crate) fn set_record(record: Option<&'static Record>, phase: Phase) {
        STATE.with(|state| {
            state.record.set(record.map_or(ptr::null(), ptr::from_ref));
            state.phase.set(phase);
        });
    }
}

#[cfg(all(feature = "initial-exec", target_arch = "x86_64", target_os = "linux"))]
mod place {
    use super::*;
    use core::arch::{asm, global_asm};

    /// The lists of a thread without a heap. Never written: it is nobody's home, and its lists are empty.
    #[repr(transparent)]
    struct None(Lists);
    // SAFETY: nothing writes to it.
    unsafe impl Sync for None {}
    static NONE: None = None(Lists::new());

    // Two words of static thread-local storage: the lists, at first NONE, and the phase (0 new, 1 live, 2 late). The names
    // carry a version, so that two copies of this crate in one program do not meet.
    global_asm!(
        ".pushsection .tdata.terrane_0_1,\"awT\",@progbits",
        ".p2align 3",
        ".hidden terrane_front_0_1_lists",
        ".globl terrane_front_0_1_lists",
        ".type terrane_front_0_1_lists, @object",
        ".size terrane_front_0_1_lists, 8",
        "terrane_front_0_1_lists:",
        ".quad {none}",
        ".hidden terrane_front_0_1_phase",
        ".globl terrane_front_0_1_phase",
        ".type terrane_front_0_1_phase, @object",
        ".size terrane_front_0_1_phase, 8",
        "terrane_front_0_1_phase:",
        ".quad 0",
        ".popsection",
        none = sym NONE,
    );

    #[inline(always)]
    fn lists() -> *const Lists {
        let lists: *const Lists;
        // SAFETY: reads the thread's own word, which is static thread-local storage.
        unsafe {
            asm!(
                "mov {o}, qword ptr [rip + terrane_front_0_1_lists@GOTTPOFF]",
                "mov {o}, qword ptr fs:[{o}]",
                o = out(reg) lists,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        lists
    }

    fn phase() -> Phase {
        let phase: u64;
        // SAFETY: reads the thread's own word, which is static thread-local storage.
        unsafe {
            asm!(
                "mov {o}, qword ptr [rip + terrane_front_0_1_phase@GOTTPOFF]",
                "mov {o}, qword ptr fs:[{o}]",
                o = out(reg) phase,
                options(readonly, nostack, preserves_flags),
            );
        }
        match phase {
            0 => Phase::New,
            1 => Phase::Live,
            _ => Phase::Late,
        }
    }

    /// Calls `f` with the thread's lists.
    #[inline(always)]
    pub(crate) fn with_lists<R>(f: impl FnOnce(&Lists) -> R) -> R {
        // SAFETY: the word leads to NONE or to the thread's record, both of which live for good.
        f(unsafe { &*lists() })
    }

    /// Calls `f` with the thread's lists and state.
    #[inline(always)]
    pub(crate) fn with_state<R>(f: impl FnOnce(&Lists, &State) -> R) -> R {
        let (lists, phase) = (lists(), phase());
        // The lists are the first field of the record.
        let record = if phase == Phase::Live { lists.cast::<Record>() } else { ptr::null() };
        // SAFETY: as above.
        f(unsafe { &*lists }, &State { record: Cell::new(record), phase: Cell::new(phase) })
    }

    /// Makes `record` the thread's, or none.
    pub(crate) fn set_record(record: Option<&'static Record>, phase: Phase) {
        let lists =
            record.map_or(ptr::from_ref(&NONE).cast::<Lists>(), |record| ptr::from_ref(&record.lists));
        // SAFETY: writes the thread's own words, which are static thread-local storage.
        unsafe {
            asm!(
                "mov {o}, qword ptr [rip + terrane_front_0_1_lists@GOTTPOFF]",
                "mov qword ptr fs:[{o}], {lists}",
                "mov {o}, qword ptr [rip + terrane_front_0_1_phase@GOTTPOFF]",
                "mov qword ptr fs:[{o}], {phase}",
                o = out(reg) _,
                lists = in(reg) lists,
                phase = in(reg) phase as u64,
                options(nostack, preserves_flags),
            );
        }
    }
}

pub(crate) use place::{set_record, with_lists, with_state};
