//! Faults that the models plant on purpose, to show that they would be found.
//!
//! In every build but loom's the functions below answer as if there were none, and compile to nothing.

use terrane_core::sync::atomic::Ordering;

/// What is planted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A record is given back without releasing.
    RecordRelaxed,
    /// A record that looks free is taken without an exchange.
    RecordUnexchanged,
    /// A record is listed without releasing.
    ListRelaxed,
    /// A mode is chosen, and the thread looked for, without a fence in between.
    ChoiceUnfenced,
    /// Memory is scheduled, and the thread looked for, without a fence in between.
    NoticeUnfenced,
    /// Whether a thread is to be started already is read before the fence.
    NoticeReadEarly,
    /// The mode is read before the fence.
    ModeReadEarly,
    /// A notice is taken down, and the thread looked for, without a fence in between.
    StartUnfenced,
    /// A thread is started without an exchange.
    StartUnexchanged,
    /// The thread takes its name out, and looks once more, without a fence in between.
    LeaveUnfenced,
    /// The thread ends without a second look.
    LeaveUnchecked,
    /// The thread puts its name back without an exchange.
    LeaveUnexchanged,
    /// A reader does not pass the fence between its slot and its second look.
    #[cfg(any(feature = "reclaim", loom))]
    ProtectUnfenced,
    /// A reader does not look a second time.
    #[cfg(any(feature = "reclaim", loom))]
    ProtectUnchecked,
    /// Slots are read without a fence.
    #[cfg(any(feature = "reclaim", loom))]
    ScanUnfenced,
    /// A slot is cleared without releasing.
    #[cfg(any(feature = "reclaim", loom))]
    ClearRelaxed,
    /// Garbage is counted in two steps.
    #[cfg(any(feature = "reclaim", loom))]
    BudgetTorn,
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

/// Whether `fault` is planted.
#[cfg(not(loom))]
#[inline(always)]
pub(crate) const fn planted(_: Fault) -> bool {
    false
}

/// `order`, or relaxed if `fault` is planted.
#[inline(always)]
pub(crate) fn order(fault: Fault, order: Ordering) -> Ordering {
    if planted(fault) { Ordering::Relaxed } else { order }
}
