//! One reply from one task to another, in a slot of a pool: [`Replies`].
//!
//! Invariant: a slot that is out has two sides. The sender's alone may touch the value until `SENT`, the receiver's alone from
//! then on. The waker is the receiver's unless `WAITING`, and then whoever's exchange clears or passes that bit. The
//! side that leaves last (of `FINISHED` and `LEFT`, the second) has all of the slot, and gives it back.
//!
//! | bit | name | set by | meaning |
//! |---|---|---|---|
//! | 0 | `SENT` | sender | the value is here, and the receiver's |
//! | 1 | `GONE` | sender | there will be no value |
//! | 2 | `WAITING` | receiver | a waker is here, for the sender to take with its `SENT` or `GONE` |
//! | 3 | `FINISHED` | sender | it touches the slot no more |
//! | 4 | `LEFT` | receiver | it touches the slot no more |
//!
//! ```text
//!   sender    value := v                       receiver   SENT? take the value.  GONE? nobody will answer
//!             SENT (and FINISHED, unless                  waker := w
//!                   WAITING: take the waker,              WAITING, or again if the sender was faster
//!                   FINISHED, wake)            at its end LEFT
//! ```
//!
//! Model: `model_reply` in `tests/loom_reply.rs`. The argument: `docs/src/protocols/pool-reply.md`.

use crate::error::Exhausted;
use crate::fences::{Asymmetric, Fences};
use crate::lease::OwnedLease;
use crate::pool::{Builder, Pool, PoolStats};
use crate::recycle::{Recycle, Verdict};
use core::fmt;
use core::future::Future;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::pin::Pin;
use core::ptr::NonNull;
use core::task::{Context, Poll, Waker};
use terrane_core::sync::atomic::{AtomicU8, Ordering};
use terrane_core::sync::cell::UnsafeCell;

const SENT: u8 = 1;
const GONE: u8 = 1 << 1;
const WAITING: u8 = 1 << 2;
const FINISHED: u8 = 1 << 3;
const LEFT: u8 = 1 << 4;

/// The sender and the receiver are both gone after this: the slot is the caller's alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Last(pub bool);

/// What both sides share. See the [module](self); [`ReplySender`] and [`Reply`] are the way to use it.
#[derive(Debug)]
pub struct Slot<T, F = Asymmetric> {
    state: AtomicU8,
    value: UnsafeCell<Option<T>>,
    waker: UnsafeCell<Option<Waker>>,
    fences: PhantomData<fn() -> F>,
}

// SAFETY: value and waker may change threads, and each is touched by one side at a time (module invariant).
unsafe impl<T: Send, F> Send for Slot<T, F> {}
// SAFETY: as above.
unsafe impl<T: Send, F> Sync for Slot<T, F> {}

impl<T, F: Fences> Slot<T, F> {
    /// A slot with both sides present, and nothing in it.
    pub fn new() -> Self {
        Self {
            state: AtomicU8::new(0),
            value: UnsafeCell::new(None),
            waker: UnsafeCell::new(None),
            fences: PhantomData,
        }
    }

    /// Makes the slot as new.
    ///
    /// # Safety
    /// It is the caller's alone.
    pub unsafe fn clear(&self) {
        // SAFETY: the caller's promise.
        let (value, waker) = unsafe {
            (self.value.with_mut(|value| (*value).take()), self.waker.with_mut(|waker| (*waker).take()))
        };
        self.state.store(0, Ordering::Relaxed);
        drop((value, waker));
    }

    /// The sender's last act: `Some` sends, `None` says that there will be no value. What was sent comes back if the receiver
    /// had left.
    ///
    /// # Safety
    /// Called once, by the sender's side, which touches the slot afterwards only if it was the last.
    pub unsafe fn finish(&self, value: Option<T>) -> (Option<T>, Last) {
        let done = if value.is_some() { SENT } else { GONE };
        // SAFETY: before `SENT` the value is the sender's.
        self.value.with_mut(|place| unsafe { *place = value });
        let mut before = self.state.load(Ordering::Relaxed);
        loop {
            let early = before & WAITING == 0 || F::EARLY;
            let after = before | done | if early { FINISHED } else { 0 };
            match self.state.compare_exchange_weak(before, after, F::BOTH, Ordering::Relaxed) {
                Ok(_) => break,
                Err(found) => before = found,
            }
        }
        if before & LEFT != 0 {
            // SAFETY: the receiver has left, so the slot is this side's alone.
            return (self.value.with_mut(|place| unsafe { (*place).take() }), Last(true));
        }
        if before & WAITING == 0 {
            return (None, Last(false));
        }
        // SAFETY: the exchange passed `WAITING`: the waker is the sender's.
        let waker = self.waker.with_mut(|waker| unsafe { (*waker).take() });
        let before = self.state.fetch_or(FINISHED, F::BOTH);
        if let Some(waker) = waker {
            waker.wake();
        }
        (None, Last(before & LEFT != 0))
    }

    /// Whether the receiver has left.
    pub fn abandoned(&self) -> bool {
        self.state.load(Ordering::Relaxed) & LEFT != 0
    }

    /// The value, `None` if there will be none, or the waker of `context` is called later.
    ///
    /// # Safety
    /// Called by the receiver's side, which has not left, and has no answer yet.
    pub unsafe fn poll(&self, context: &mut Context<'_>) -> Poll<Option<T>> {
        loop {
            let state = self.state.load(F::TAKE);
            if state & SENT != 0 {
                // SAFETY: after `SENT` the value is the receiver's.
                return Poll::Ready(self.value.with_mut(|value| unsafe { (*value).take() }));
            }
            if state & GONE != 0 {
                return Poll::Ready(None);
            }
            if state == WAITING {
                // The waker that lies here is the sender's to take until it is called back.
                let back = self.state.compare_exchange(WAITING, 0, Ordering::Relaxed, Ordering::Relaxed);
                if back.is_err() {
                    continue;
                }
            }
            let new = context.waker();
            // SAFETY: without `WAITING` the waker is the receiver's.
            self.waker.with_mut(|waker| unsafe {
                if !(*waker).as_ref().is_some_and(|old| old.will_wake(new)) {
                    *waker = Some(new.clone());
                }
            });
            if self.state.compare_exchange(0, WAITING, F::PUBLISH, Ordering::Relaxed).is_ok() {
                return Poll::Pending;
            }
        }
    }

    /// The receiver's last act.
    ///
    /// # Safety
    /// Called once, by the receiver's side, which touches the slot afterwards only if it was the last.
    pub unsafe fn leave(&self) -> Last {
        Last(self.state.fetch_or(LEFT, F::BOTH) & FINISHED != 0)
    }
}

impl<T, F: Fences> Default for Slot<T, F> {
    fn default() -> Self {
        Self::new()
    }
}

/// How slots are made, and made as new.
#[derive(Clone, Copy, Debug)]
struct Fresh;

impl<T: Send + 'static> Recycle<Slot<T>> for Fresh {
    fn create(&self) -> Slot<T> {
        Slot::new()
    }

    #[inline]
    fn reset(&self, slot: &mut Slot<T>) -> Verdict {
        // SAFETY: the slot is borrowed alone.
        unsafe { slot.clear() };
        Verdict::Keep
    }
}

/// A pool of slots, each for one reply: what an actor or a task answers with, without an allocation per request.
///
/// ```
/// use terrane_pool::Replies;
///
/// let replies = Replies::<String>::new(100);
/// let (sender, reply) = replies.channel().unwrap();
/// let answering = std::thread::spawn(move || sender.send("forty-two".into()));
/// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// assert_eq!(runtime.block_on(reply).unwrap(), "forty-two");
/// answering.join().unwrap().unwrap();
/// ```
#[derive(Debug)]
pub struct Replies<T: Send + 'static> {
    pool: Pool<Slot<T>, Fresh>,
}

impl<T: Send + 'static> Replies<T> {
    /// Slots for at most `max` replies that are waited for at a time.
    pub fn new(max: usize) -> Self {
        Self { pool: Builder::new(Fresh).max(max).build() }
    }

    /// Two ends of a fresh slot. They may outlive this pool.
    ///
    /// # Errors
    /// [`Exhausted`] if as many replies are waited for as may be.
    pub fn channel(&self) -> Result<(ReplySender<T>, Reply<T>), Exhausted> {
        let slot = self.pool.acquire_owned()?.into_raw();
        Ok((ReplySender { slot }, Reply { slot, answered: false }))
    }

    /// As [`Pool::stats`]; a slot is out until both of its ends are gone.
    pub fn stats(&self) -> PoolStats {
        self.pool.stats()
    }
}

/// Gives a slot back.
///
/// # Safety
/// The slot came from [`Replies::channel`], and is the caller's alone.
unsafe fn give_back<T: Send + 'static>(slot: NonNull<Slot<T>>) {
    // SAFETY: it was made from a lease of these types; both ends are gone.
    drop(unsafe { OwnedLease::<Slot<T>, Fresh>::from_raw(slot) });
}

/// The end that answers. Dropped without an answer, it tells the other end so.
#[derive(Debug)]
pub struct ReplySender<T: Send + 'static> {
    slot: NonNull<Slot<T>>,
}

// SAFETY: an end is one side of a slot, whose state says what that side may touch; the value is `Send`.
unsafe impl<T: Send> Send for ReplySender<T> {}
// SAFETY: shared references only load the state.
unsafe impl<T: Send> Sync for ReplySender<T> {}

impl<T: Send + 'static> ReplySender<T> {
    /// Answers. The other end may still drop the answer unread.
    ///
    /// # Errors
    /// The answer, if the other end is gone.
    pub fn send(self, value: T) -> Result<(), T> {
        let end = ManuallyDrop::new(self);
        // SAFETY: this is the sender's side, which ends here.
        match unsafe { end.finish(Some(value)) } {
            Some(value) => Err(value),
            None => Ok(()),
        }
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_abandoned(&self) -> bool {
        // SAFETY: the slot is out until both ends are gone.
        unsafe { self.slot.as_ref() }.abandoned()
    }

    /// # Safety
    /// The end is not used afterwards.
    unsafe fn finish(&self, value: Option<T>) -> Option<T> {
        // SAFETY: the slot is out until both ends are gone; this is the sender's side, once.
        let (back, last) = unsafe { self.slot.as_ref().finish(value) };
        if last == Last(true) {
            // SAFETY: this end was the last.
            unsafe { give_back(self.slot) };
        }
        back
    }
}

impl<T: Send + 'static> Drop for ReplySender<T> {
    fn drop(&mut self) {
        // SAFETY: this end is gone afterwards.
        unsafe { self.finish(None) };
    }
}

/// Nobody will answer: the sender was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unanswered;

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the sender was dropped without an answer")
    }
}

impl core::error::Error for Unanswered {}

/// The end that waits for the answer: a future of it.
#[derive(Debug)]
#[must_use = "a reply does nothing unless it is awaited"]
pub struct Reply<T: Send + 'static> {
    slot: NonNull<Slot<T>>,
    answered: bool,
}

// SAFETY: as for the other end.
unsafe impl<T: Send> Send for Reply<T> {}
// SAFETY: shared references touch nothing.
unsafe impl<T: Send> Sync for Reply<T> {}

impl<T: Send + 'static> Future for Reply<T> {
    type Output = Result<T, Unanswered>;

    /// # Panics
    /// If it was ready before.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(!self.answered, "a reply was polled after it was ready");
        // SAFETY: the slot is out until both ends are gone; this is the receiver's side, without an answer yet.
        let poll = unsafe { self.slot.as_ref().poll(context) };
        self.answered = poll.is_ready();
        poll.map(|value| value.ok_or(Unanswered))
    }
}

impl<T: Send + 'static> Drop for Reply<T> {
    fn drop(&mut self) {
        // SAFETY: the slot is out until both ends are gone; this is the receiver's side, once.
        if unsafe { self.slot.as_ref().leave() } == Last(true) {
            // SAFETY: this end was the last.
            unsafe { give_back(self.slot) };
        }
    }
}
