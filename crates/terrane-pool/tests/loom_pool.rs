//! Models of the protocols of a pool. The arguments: `docs/src/protocols/pool-stealing.md` and
//! `docs/src/protocols/pool-seizure.md`.
#![cfg(loom)]

use loom::sync::{Arc, Mutex};
use loom::thread;
use std::sync::atomic::{AtomicU64, Ordering as StdOrdering};
use terrane_core::sync::atomic::{Ordering, fence};
use terrane_core::sync::cell::UnsafeCell;
use terrane_pool::depot::Depot;
use terrane_pool::fences::Fences;
use terrane_pool::link::{Link, List};
use terrane_pool::shard::Shard;

/// An object: its holder writes without any lock, so loom fails the model if two hold it at once, or if the one does not see
/// what the other did.
#[repr(C)]
struct Object {
    link: Link,
    uses: UnsafeCell<u32>,
}

fn object() -> *mut Link {
    Box::into_raw(Box::new(Object { link: Link::new(), uses: UnsafeCell::new(0) })).cast()
}

/// Uses an object that the caller holds.
fn touch(link: *mut Link) {
    // SAFETY: links are those of objects that live until `free`; exclusive use is what loom checks.
    unsafe { (*link.cast::<Object>()).uses.with_mut(|uses| *uses += 1) };
}

fn free(link: *mut Link) {
    touch(link);
    // SAFETY: made by a box, and the caller's.
    drop(unsafe { Box::from_raw(link.cast::<Object>()) });
}

/// How many of an exploration's orderings are sound.
macro_rules! fences {
    ($name:ident, $publish:ident, $take:ident, light: $light:expr, heavy: $heavy:expr) => {
        struct $name;
        impl Fences for $name {
            const PUBLISH: Ordering = Ordering::$publish;
            const TAKE: Ordering = Ordering::$take;
            fn light() {
                if $light {
                    fence(Ordering::SeqCst);
                }
            }
            fn heavy() {
                if $heavy {
                    fence(Ordering::SeqCst);
                }
            }
        }
    };
}

// Under the model both sides are real fences: what the production pair amounts to.
fences!(Sound, Release, Acquire, light: true, heavy: true);
fences!(Unpublished, Relaxed, Acquire, light: true, heavy: true);
fences!(Unacquired, Release, Relaxed, light: true, heavy: true);
fences!(NoLight, Release, Acquire, light: false, heavy: true);
fences!(NoHeavy, Release, Acquire, light: true, heavy: false);

struct Ptr(*mut Link);
// SAFETY: the models hand objects from thread to thread; exclusive use is what loom checks.
unsafe impl Send for Ptr {}

fn one(link: *mut Link) -> List {
    let mut list = List::empty();
    // SAFETY: the link is in no list.
    unsafe { list.push(link) };
    list
}

fn explore(iterations: &'static AtomicU64, preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || {
        iterations.fetch_add(1, StdOrdering::Relaxed);
        f();
    });
}

/// A consumer returns what it got from elsewhere into its shard, which spills; the producer takes the spill over.
fn cross_thread_return<F: Fences>(iterations: &'static AtomicU64) {
    explore(iterations, 3, || {
        let consumer = Arc::new(Shard::<F>::new(2));
        let links = [object(), object(), object()];
        let producing = {
            let consumer = consumer.clone();
            thread::spawn(move || {
                let producer = Shard::<F>::new(2);
                // SAFETY: this thread is the owner of the shard.
                let taken = unsafe { producer.enter() }.unwrap().take_over(consumer.depot());
                taken.into_iter().for_each(touch);
                let mut got: Vec<Ptr> = taken.into_iter().map(Ptr).collect();
                got.extend(empty(&[&producer]).into_iter().map(Ptr));
                got
            })
        };
        for link in links {
            touch(link);
            // SAFETY: this thread is the owner of the shard, and holds the object.
            unsafe { consumer.enter().unwrap().push(link) };
        }
        let mut got: Vec<*mut Link> = producing.join().unwrap().into_iter().map(|got| got.0).collect();
        // Whatever is where: three objects, each once.
        got.extend(empty(&[&consumer]));
        assert_eq!(got.len(), 3);
        got.into_iter().for_each(free);
    });
}

/// All objects of shards that nobody uses any more.
fn empty<F: Fences>(shards: &[&Shard<F>]) -> Vec<*mut Link> {
    let mut all = Vec::new();
    for shard in shards {
        shard.seize();
        F::heavy();
        // SAFETY: the other threads have ended.
        let lists = unsafe { shard.wait(|private| private.drain()) };
        for mut list in lists.into_iter().chain(shard.depot().take()) {
            all.extend(std::iter::from_fn(|| list.pop()));
        }
    }
    all
}

/// Two thieves and the thread that leaves its surplus: every object is taken once.
fn stealing<F: Fences>(iterations: &'static AtomicU64) {
    explore(iterations, 2, || {
        let depot = Arc::new(Depot::<F>::new());
        let first = Ptr(object());
        depot.push(one(first.0));
        let thieves: Vec<_> = (0..2)
            .map(|_| {
                let depot = depot.clone();
                thread::spawn(move || {
                    let own = Shard::<F>::new(4);
                    // SAFETY: the shard is this thread's own.
                    let taken = unsafe { own.enter() }.unwrap().take_over(&depot);
                    taken.into_iter().for_each(touch);
                    let mut got: Vec<Ptr> = taken.into_iter().map(Ptr).collect();
                    got.extend(empty(&[&own]).into_iter().map(Ptr));
                    got
                })
            })
            .collect();
        let second = object();
        touch(second);
        depot.push(one(second));
        let mut got: Vec<Ptr> = thieves.into_iter().flat_map(|thief| thief.join().unwrap()).collect();
        for mut list in depot.take() {
            got.extend(std::iter::from_fn(|| list.pop()).map(Ptr));
        }
        assert_eq!(got.len(), 2);
        got.into_iter().for_each(|Ptr(link)| free(link));
    });
}

/// The owner takes and gives while another thread seizes its lists and takes what is there.
fn seizure<F: Fences>(iterations: &'static AtomicU64) {
    explore(iterations, 3, || {
        let shard = Arc::new(Shard::<F>::new(4));
        // SAFETY: nobody else has the shard yet.
        unsafe { shard.enter().unwrap().push(object()) };
        let seizer = {
            let shard = shard.clone();
            thread::spawn(move || {
                shard.seize();
                F::heavy();
                // SAFETY: there is no other seizer, and a heavy fence was passed (or is the fault).
                let lists = unsafe { shard.wait(|private| private.drain()) };
                shard.release();
                let mut got = Vec::new();
                for mut list in lists {
                    got.extend(std::iter::from_fn(|| list.pop()).map(Ptr));
                }
                got.iter().for_each(|got| touch(got.0));
                got
            })
        };
        let mut refused = Vec::new();
        // SAFETY: this thread is the owner.
        let taken = unsafe { shard.enter() }.and_then(|mut visit| visit.pop());
        if let Some(link) = taken {
            touch(link);
            // SAFETY: this thread is the owner, and has taken the object.
            match unsafe { shard.enter() } {
                // SAFETY: as above.
                Some(mut visit) => unsafe { visit.push(link) },
                None => refused.push(link),
            }
        }
        let mut got: Vec<*mut Link> = seizer.join().unwrap().into_iter().map(|got| got.0).collect();
        got.extend(refused);
        got.extend(empty(&[&shard]));
        assert_eq!(got.len(), 1);
        got.into_iter().for_each(free);
    });
}

/// A policy lowers the owner's capacity, and moves the surplus to where a third thread takes it.
fn resize<F: Fences>(iterations: &'static AtomicU64) {
    explore(iterations, 2, || {
        let shard = Arc::new(Shard::<F>::new(8));
        for _ in 0..2 {
            // SAFETY: nobody else has the shard yet.
            unsafe { shard.enter().unwrap().push(object()) };
        }
        let control = Arc::new(Mutex::new(()));
        let resizer = {
            let (shard, control) = (shard.clone(), control.clone());
            thread::spawn(move || {
                let _held = control.lock().unwrap();
                shard.seize();
                F::heavy();
                // SAFETY: the lock excludes other seizers, and a heavy fence was passed (or is the fault).
                let surplus = unsafe {
                    shard.wait(|private| {
                        private.set_capacity(2);
                        private.cut(1)
                    })
                };
                shard.depot().push(surplus);
                shard.release();
            })
        };
        let thief = {
            let shard = shard.clone();
            thread::spawn(move || {
                let mut got = Vec::new();
                for mut list in shard.depot().take() {
                    got.extend(std::iter::from_fn(|| list.pop()).map(Ptr));
                }
                got.iter().for_each(|got| touch(got.0));
                got
            })
        };
        // SAFETY: this thread is the owner.
        let held = unsafe { shard.enter() }.and_then(|mut visit| visit.pop());
        held.into_iter().for_each(touch);
        let mut got: Vec<*mut Link> = thief.join().unwrap().into_iter().map(|got| got.0).collect();
        resizer.join().unwrap();
        got.extend(held);
        got.extend(empty(&[&shard]));
        assert_eq!(got.len(), 2);
        got.into_iter().for_each(free);
    });
}

macro_rules! models {
    ($($model:ident, $fault:ident, $run:ident, $threads:literal, $bad:ident;)*) => {$(
        #[test]
        fn $model() {
            static ITERATIONS: AtomicU64 = AtomicU64::new(0);
            $run::<Sound>(&ITERATIONS);
            let name = stringify!($run);
            println!("model {name} threads={} iterations={}", $threads, ITERATIONS.load(StdOrdering::Relaxed));
        }

        #[test]
        fn $fault() {
            static ITERATIONS: AtomicU64 = AtomicU64::new(0);
            let outcome = std::panic::catch_unwind(|| $run::<$bad>(&ITERATIONS));
            assert!(outcome.is_err(), "loom did not find the fault {}", stringify!($bad));
        }
    )*};
}

models! {
    model_cross_thread_return, fault_cross_thread_return_unpublished, cross_thread_return, 2, Unpublished;
    model_stealing, fault_stealing_unacquired, stealing, 3, Unacquired;
    model_seizure, fault_seizure_without_the_owners_fence, seizure, 2, NoLight;
    model_resize, fault_resize_without_the_seizers_fence, resize, 3, NoHeavy;
}
