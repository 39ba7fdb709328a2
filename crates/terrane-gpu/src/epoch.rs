//! One counter per stream that says which frees an event covers.
//!
//! Invariant: every free that was stamped with epoch `e` or less, and all work submitted to the stream before it, lies
//! before the event that closed epoch `e`.
//!
//! Protocol. A free reads the open epoch ([`stamp`](Epochs::stamp)) after the last work of the block was submitted. A
//! close first moves the counter on ([`advance`](Epochs::advance)) and records the event after that. The driver puts
//! submissions and records of one stream in one order, under a lock of its own. If the work came first there, the event
//! covers it. If the record came first, then the move of the counter happened before it, the driver's lock carries that
//! to the submitting thread, and so the free reads a later epoch. The other order of the two steps would be wrong, as the
//! model `fault_epoch_record_before_advance` shows. The argument in full: `docs/src/protocols/gpu-stream-order.md`.

use terrane_core::sync::atomic::{AtomicU64, Ordering};

/// The epochs of one stream.
#[derive(Debug)]
pub struct Epochs {
    open: AtomicU64,
    done: AtomicU64,
}

impl Default for Epochs {
    fn default() -> Self {
        Self::new()
    }
}

impl Epochs {
    /// Epoch 1 is open, nothing is complete.
    pub fn new() -> Self {
        Self { open: AtomicU64::new(1), done: AtomicU64::new(0) }
    }

    /// The open epoch. To be read after the work that the stamp is to cover was submitted.
    #[inline]
    pub fn stamp(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Opens the next epoch and returns the one before it, which an event recorded after this call covers.
    pub fn advance(&self) -> u64 {
        self.open.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether the host knows that all frees of epoch `epoch` and before are past.
    #[inline]
    pub fn is_done(&self, epoch: u64) -> bool {
        epoch <= self.done.load(Ordering::Acquire)
    }

    /// The host has learned that the event which closed `epoch` is complete.
    pub fn set_done(&self, epoch: u64) {
        self.done.fetch_max(epoch, Ordering::AcqRel);
    }
}
