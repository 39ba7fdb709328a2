//! Model of the slot of a reply, over the production code. The argument is in `docs/src/protocols/pool-reply.md`. The twins
//! have weakened orderings, or a step out of place, and must fail.
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;
use std::sync::Arc as StdArc;
use std::sync::atomic::{AtomicU64, Ordering as StdOrdering};
use std::task::{Context, Poll, Wake, Waker};
use terrane_core::sync::atomic::{AtomicBool, Ordering, fence};
use terrane_core::sync::cell::UnsafeCell;
use terrane_pool::fences::Fences;
use terrane_pool::reply::{Last, Slot};

macro_rules! fences {
    ($($name:ident: $publish:ident, $take:ident, $early:literal;)*) => {$(
        #[derive(Debug)]
        struct $name;
        impl Fences for $name {
            const PUBLISH: Ordering = Ordering::$publish;
            const TAKE: Ordering = Ordering::$take;
            const EARLY: bool = $early;
            fn light() {
                fence(Ordering::SeqCst);
            }
            fn heavy() {
                fence(Ordering::SeqCst);
            }
        }
    )*};
}

fences! {
    Sound: Release, Acquire, false;
    Unpublished: Relaxed, Acquire, false;
    Unacquired: Release, Relaxed, false;
    // The sender says that it is done with the slot before it has taken the waker.
    Early: Release, Acquire, true;
}

/// What is sent: loom sees whether the receiver sees what the sender did to it.
struct Value(UnsafeCell<u32>);

impl Value {
    fn touch(&self) {
        // SAFETY: exclusive use is what loom checks.
        self.0.with_mut(|uses| unsafe { *uses += 1 });
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.touch();
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: StdArc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// One side answers, or goes without; the other looks `polls` times, each with a waker of its own, waits if they are three, and
/// leaves.
fn reply<F: Fences>(iterations: &'static AtomicU64, answers: bool, polls: usize) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        iterations.fetch_add(1, StdOrdering::Relaxed);
        let slot = Arc::new(Slot::<Value, F>::new());
        let sender = {
            let slot = slot.clone();
            thread::spawn(move || {
                let value = answers.then(|| Value(UnsafeCell::new(0)));
                value.iter().for_each(Value::touch);
                // SAFETY: this is the sender's side, once.
                let (back, last) = unsafe { slot.finish(value) };
                assert!(
                    back.is_none() || last == Last(true),
                    "an answer came back from a receiver that may read it"
                );
                if last == Last(true) {
                    // SAFETY: it was the last.
                    unsafe { slot.clear() };
                }
                (back.is_some(), last)
            })
        };
        let receiver = {
            let slot = slot.clone();
            thread::spawn(move || {
                let mut got = None;
                for turn in 0..polls {
                    let flag = StdArc::new(Flag(AtomicBool::new(false)));
                    let waker = Waker::from(flag.clone());
                    // SAFETY: this is the receiver's side, without an answer yet.
                    match unsafe { slot.poll(&mut Context::from_waker(&waker)) } {
                        Poll::Ready(value) => {
                            value.iter().for_each(Value::touch);
                            assert_eq!(value.is_some(), answers);
                            got = Some(value.is_some());
                            break;
                        }
                        // Who looks for the third time waits: a waker that is never called would be a model without end.
                        Poll::Pending if turn == 2 || flag.0.load(Ordering::Acquire) => {
                            while !flag.0.load(Ordering::Acquire) {
                                thread::yield_now();
                            }

                            // SAFETY: as above.
                            let again = unsafe { slot.poll(&mut Context::from_waker(&waker)) };
                            let Poll::Ready(value) = again else { panic!("woken for nothing") };
                            value.iter().for_each(Value::touch);
                            got = Some(value.is_some());
                            break;
                        }
                        Poll::Pending => {}
                    }
                }
                // SAFETY: this is the receiver's side, once.
                let last = unsafe { slot.leave() };
                if last == Last(true) {
                    // SAFETY: it was the last.
                    unsafe { slot.clear() };
                }
                (got, last)
            })
        };
        let (back, sent_last) = sender.join().unwrap();
        let (got, left_last) = receiver.join().unwrap();
        assert_ne!(sent_last, left_last, "both sides, or none, gave the slot back");
        assert!(!(back && got.is_some()), "an answer went both ways");
    });
}

fn explored(name: &str, run: impl Fn(&'static AtomicU64)) {
    static ITERATIONS: AtomicU64 = AtomicU64::new(0);
    run(&ITERATIONS);
    println!("model {name} threads=2 iterations={}", ITERATIONS.load(StdOrdering::Relaxed));
}

#[test]
fn model_reply() {
    explored("reply", |iterations| {
        for answers in [true, false] {
            (0..4).for_each(|polls| reply::<Sound>(iterations, answers, polls));
        }
    });
}

/// Whether loom finds a fault when the receiver looks `polls` times.
fn found<F: Fences>(polls: usize) -> bool {
    static ITERATIONS: AtomicU64 = AtomicU64::new(0);
    std::panic::catch_unwind(|| reply::<F>(&ITERATIONS, true, polls)).is_err()
}

#[test]
fn fault_reply_unpublished() {
    assert!(found::<Unpublished>(1), "loom did not find the fault");
}

#[test]
fn fault_reply_unacquired() {
    assert!(found::<Unacquired>(1), "loom did not find the fault");
}

#[test]
fn fault_reply_finished_before_the_waker_is_taken() {
    assert!(found::<Early>(1), "loom did not find the fault");
}
