//! The pair of fences between a thread that uses its own shard and one that seizes it: [`Fences`], [`Asymmetric`].
//!
//! The owner passes a *light* fence at every operation, a seizer a *heavy* one at every seizure. Together they order as if both
//! were sequentially consistent fences: of "the owner says that it is busy, then looks whether it is seized" and "the seizer
//! says that it seizes, then looks whether the owner is busy", at least one sees the other.
//!
//! On Linux the heavy fence is `membarrier(2)`, which runs a full fence on every thread of the process, and the light one only
//! keeps the compiler from moving accesses. Where that call is missing, both are ordinary fences. (The idea: "asymmetric
//! Dekker synchronization", Dice, Huang and Yang, 2001.)

use terrane_core::sync::atomic::{Ordering, fence};

/// Orderings of a pool's protocols. Only the models choose others than [`Asymmetric`]'s.
pub trait Fences: Send + Sync + 'static {
    /// With which objects are published.
    const PUBLISH: Ordering = Ordering::Release;
    /// With which published objects are taken.
    const TAKE: Ordering = Ordering::Acquire;
    /// With which one publishes and takes at once.
    const BOTH: Ordering = match (Self::PUBLISH, Self::TAKE) {
        (Ordering::Release, Ordering::Acquire) => Ordering::AcqRel,
        (Ordering::Release, _) => Ordering::Release,
        (_, Ordering::Acquire) => Ordering::Acquire,
        _ => Ordering::Relaxed,
    };
    /// How far a place's generation moves when its object is claimed.
    const STEP: u32 = 1;
    /// Whether a reply's sender gives its slot up before it has taken the waker out: a fault.
    const EARLY: bool = false;
    /// Whether who takes objects of a group looks below it only when the group is given up: a fault.
    const LATE: bool = false;

    /// The owner's side.
    fn light();
    /// The seizer's side.
    fn heavy();
}

/// The fences in use: light on the owner, heavy on the seizer.
#[derive(Clone, Copy, Debug)]
pub struct Asymmetric;

#[cfg(all(target_os = "linux", not(loom), not(miri)))]
mod membarrier {
    use core::sync::atomic::{AtomicU8, Ordering};

    const REGISTER: libc::c_int = libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED;
    const FENCE: libc::c_int = libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED;

    const UNKNOWN: u8 = 0;
    const PRESENT: u8 = 1;
    const ABSENT: u8 = 2;

    /// Written before the first shard of the process is made, and constant from then on.
    static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);

    fn call(command: libc::c_int) -> bool {
        // SAFETY: membarrier takes numbers only and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
    }

    pub(super) fn prepare() {
        if STATE.load(Ordering::Acquire) == UNKNOWN {
            let found = if call(REGISTER) && call(FENCE) { PRESENT } else { ABSENT };
            // Whoever asked first decides, so that all threads agree.
            let _ = STATE.compare_exchange(UNKNOWN, found, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    #[inline(always)]
    pub(super) fn present() -> bool {
        STATE.load(Ordering::Relaxed) == PRESENT
    }

    /// Whether all threads of the process have passed a full fence.
    pub(super) fn fence_all() -> bool {
        present() && call(FENCE)
    }
}

/// Finds out which fences this machine has. Called before a shard is made.
pub(crate) fn prepare() {
    #[cfg(all(target_os = "linux", not(loom), not(miri)))]
    membarrier::prepare();
}

impl Fences for Asymmetric {
    #[inline(always)]
    fn light() {
        #[cfg(all(target_os = "linux", not(loom), not(miri)))]
        if membarrier::present() {
            core::sync::atomic::compiler_fence(Ordering::SeqCst);
            return;
        }
        fence(Ordering::SeqCst);
    }

    #[cold]
    fn heavy() {
        fence(Ordering::SeqCst);
        #[cfg(all(target_os = "linux", not(loom), not(miri)))]
        if membarrier::present() {
            // The call was tried out before; it cannot fail once the process is registered. A child of `fork` inherits that.
            assert!(membarrier::fence_all(), "membarrier worked before and does not now");
        }
    }
}
