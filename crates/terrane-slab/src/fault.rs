//! Faults that the models plant on purpose, to show that they would be found.
//!
//! In every build but loom's, and that of the random schedules, the functions below answer as if there were none, and compile
//! to nothing.

/// What is planted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Remote lists are collected without acquiring.
    CollectRelaxed,
    /// Blocks are pushed without releasing.
    PushRelaxed,
    /// A slab is parked without releasing.
    ParkRelaxed,
    /// A slab is claimed without acquiring.
    ClaimRelaxed,
    /// A slab is parked without a look at its remote list.
    ParkUnchecked,
    /// The top of a shelf does not count pops.
    ShelfUntagged,
    /// A run of bits that could not be claimed whole is not given back.
    RunKept,
    /// Bits are released without releasing memory.
    ReleaseRelaxed,
    /// A span is put into the cache without releasing.
    PutRelaxed,
    /// A span is taken out of the cache without acquiring.
    TakeRelaxed,
    /// An arena's base is stored without releasing.
    ArenaRelaxed,
    /// Bits that say where to look are set without releasing what is there.
    HintRelaxed,
    /// Slices come back, and are missed, without a fence before the look at the hint.
    OpenUnfenced,
    /// A claim that held part of a run gives it back without a look at the hint.
    PartUnopened,
    /// A purge pass gives its slices back without a look at the hint.
    PurgeUnopened,
    /// A purge pass does not claim what it purges.
    PurgeUnclaimed,
    /// A purge pass notes that nothing is due, and looks for slices, without a fence in between.
    DueUnfenced,
    /// Counting does not release.
    CountRelaxed,
    /// What began is added up before what ended.
    BegunFirst,
    /// Who brings the last block of a parked slab leaves it there.
    EmptiedIgnored,
}

#[cfg(loom)]
std::thread_local! {
    // All threads of a model run on one thread of the system.
    static PLANTED: core::cell::Cell<Option<Fault>> = const { core::cell::Cell::new(None) };
}

/// Plants a fault, or none, for the models that this thread runs from now on.
#[cfg(loom)]
pub fn plant(fault: Option<Fault>) {
    PLANTED.with(|planted| planted.set(fault));
}

/// Whether `fault` is planted.
#[cfg(loom)]
pub(crate) fn planted(fault: Fault) -> bool {
    PLANTED.with(|planted| planted.get()) == Some(fault)
}

/// The fault that is planted, plus 1; 0 for none.
#[cfg(all(schedules, not(loom)))]
static PLANTED: core::sync::atomic::AtomicU8 = core::sync::atomic::AtomicU8::new(0);

/// Plants a fault, or none, for all threads.
#[cfg(all(schedules, not(loom)))]
pub fn plant(fault: Option<Fault>) {
    PLANTED.store(fault.map_or(0, |fault| fault as u8 + 1), core::sync::atomic::Ordering::Relaxed);
}

/// Whether `fault` is planted.
#[cfg(all(schedules, not(loom)))]
pub(crate) fn planted(fault: Fault) -> bool {
    PLANTED.load(core::sync::atomic::Ordering::Relaxed) == fault as u8 + 1
}

/// Whether `fault` is planted.
#[cfg(not(any(loom, schedules)))]
#[inline(always)]
pub(crate) const fn planted(_: Fault) -> bool {
    false
}

/// `order`, or relaxed if `fault` is planted.
#[inline(always)]
pub(crate) fn order(
    fault: Fault,
    order: terrane_core::sync::atomic::Ordering,
) -> terrane_core::sync::atomic::Ordering {
    if planted(fault) { terrane_core::sync::atomic::Ordering::Relaxed } else { order }
}

#[cfg(loom)]
std::thread_local! {
    static PAUSES: core::cell::Cell<u32> = const { core::cell::Cell::new(0) };
}

/// Makes the next `count` calls of `pause` let all other threads of the model run as far as they can.
#[cfg(loom)]
pub fn plant_pauses(count: u32) {
    PAUSES.with(|pauses| pauses.set(count));
}

/// A place between a read and the exchange that relies on it, where a model may want other threads to run.
#[inline(always)]
pub(crate) fn pause() {
    #[cfg(loom)]
    if PAUSES.with(|pauses| pauses.replace(pauses.get().saturating_sub(1))) > 0 {
        terrane_core::sync::hint::spin_loop();
    }
}
