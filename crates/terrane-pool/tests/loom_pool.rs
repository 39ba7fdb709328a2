//! Models of the protocols of a pool. The arguments are in `docs/src/protocols/`: pool-stealing.md, pool-seizure.md and
//! pool-keys.md. Each model has twins with weakened orderings, which must fail. All that acts is a thread of its own: loom sees
//! more of threads that it has started.
#![cfg(loom)]

use loom::sync::{Arc, Mutex};
use loom::thread;
use std::sync::atomic::{AtomicU64, Ordering as StdOrdering};
use terrane_core::sync::atomic::{Ordering, fence};
use terrane_core::sync::cell::UnsafeCell;
use terrane_pool::depot::Depot;
use terrane_pool::fences::Fences;
use terrane_pool::key::{Key, Keys};
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

/// A claim leaves the generation as it was.
struct NoGenerations;
impl Fences for NoGenerations {
    const STEP: u32 = 0;
    fn light() {}
    fn heavy() {}
}

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
        let consuming = {
            let (consumer, links) = (consumer.clone(), links.map(Ptr));
            thread::spawn(move || {
                for Ptr(link) in links {
                    touch(link);
                    // SAFETY: this thread is the owner of the shard, and holds the object.
                    unsafe { consumer.enter().unwrap().push(link) };
                }
            })
        };
        consuming.join().unwrap();
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
        let leaving = {
            let (depot, second) = (depot.clone(), Ptr(object()));
            thread::spawn(move || {
                let Ptr(second) = { second };
                touch(second);
                depot.push(one(second));
            })
        };
        leaving.join().unwrap();
        let mut got: Vec<Ptr> = thieves.into_iter().flat_map(|thief| thief.join().unwrap()).collect();
        for mut list in depot.take() {
            got.extend(std::iter::from_fn(|| list.pop()).map(Ptr));
        }
        assert_eq!(got.len(), 2);
        got.into_iter().for_each(|Ptr(link)| free(link));
    });
}

/// One thread leaves two lists, another passes both on as one, and a third takes them there.
fn passing_on<F: Fences>(iterations: &'static AtomicU64) {
    explore(iterations, 2, || {
        let (source, passed) = (Arc::new(Depot::<Sound>::new()), Arc::new(Depot::<F>::new()));
        let leaving = {
            let (source, links) = (source.clone(), [object(), object()].map(Ptr));
            thread::spawn(move || {
                for Ptr(link) in links {
                    touch(link);
                    source.push(one(link));
                }
            })
        };
        let passing = {
            let (source, passed) = (source.clone(), passed.clone());
            thread::spawn(move || passed.push_all(source.take()))
        };
        let taking = {
            let passed = passed.clone();
            thread::spawn(move || {
                let mut got = Vec::new();
                for mut list in passed.take() {
                    assert_eq!(list.len(), 1);
                    got.extend(std::iter::from_fn(|| list.pop()).map(Ptr));
                }
                got.iter().for_each(|got| touch(got.0));
                got
            })
        };
        leaving.join().unwrap();
        passing.join().unwrap();
        let mut got = taking.join().unwrap();
        for mut list in source.take().chain(passed.take()) {
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
        let owner = {
            let shard = shard.clone();
            thread::spawn(move || {
                // SAFETY: this thread is the owner.
                let taken = unsafe { shard.enter() }.and_then(|mut visit| visit.pop())?;
                touch(taken);
                // SAFETY: this thread is the owner, and has taken the object.
                match unsafe { shard.enter() } {
                    Some(mut visit) => {
                        // SAFETY: as above.
                        unsafe { visit.push(taken) };
                        None
                    }
                    None => Some(Ptr(taken)),
                }
            })
        };
        let refused = owner.join().unwrap();
        let mut got: Vec<*mut Link> = seizer.join().unwrap().into_iter().map(|got| got.0).collect();
        got.extend(refused.map(|refused| refused.0));
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
        let owner = {
            let shard = shard.clone();
            thread::spawn(move || {
                // SAFETY: this thread is the owner.
                let held = unsafe { shard.enter() }.and_then(|mut visit| visit.pop());
                held.into_iter().for_each(touch);
                held.map(Ptr)
            })
        };
        let held = owner.join().unwrap().map(|held| held.0);
        let mut got: Vec<*mut Link> = thief.join().unwrap().into_iter().map(|got| got.0).collect();
        resizer.join().unwrap();
        got.extend(held);
        got.extend(empty(&[&shard]));
        assert_eq!(got.len(), 2);
        got.into_iter().for_each(free);
    });
}

/// An object is put under a key that two threads know; whoever claims it puts another in its place. The key is claimed once, and
/// never leads to the other object.
fn keys<F: Fences>(iterations: &'static AtomicU64) {
    explore(iterations, 3, || {
        let keys = Arc::new(Keys::<F>::new());
        // The table is made before the threads are, under a lock of its own that loom does not see.
        let links = [object(), object()];
        let early = keys.put(links[0]);
        assert_eq!(keys.take(early), Ok(links[0]));
        // The place is used anew from here on: the next key is known before the object is put.
        let key = Key::from_bits(early.to_bits() + (u64::from(F::STEP) << 32)).unwrap();
        let putter = {
            let (keys, first) = (keys.clone(), Ptr(links[0]));
            thread::spawn(move || {
                let Ptr(first) = { first };
                touch(first);
                assert_eq!(keys.put(first), key);
            })
        };
        let claimers: Vec<_> = (0..2)
            .map(|_| {
                let (keys, second, first) = (keys.clone(), Ptr(links[1]), Ptr(links[0]));
                thread::spawn(move || {
                    let (Ptr(second), Ptr(first)) = { (second, first) };
                    let Ok(claimed) = keys.take(key) else { return None };
                    assert_eq!(claimed, first, "an old key leads to another object");
                    touch(claimed);
                    touch(second);
                    Some(keys.put(second))
                })
            })
            .collect();
        putter.join().unwrap();
        let next: Vec<Key> = claimers.into_iter().filter_map(|claimer| claimer.join().unwrap()).collect();
        match next[..] {
            [] => assert_eq!(keys.take(key), Ok(links[0]), "nobody has claimed it"),
            [next] => {
                assert!(keys.take(key).is_err());
                assert_eq!(keys.take(next), Ok(links[1]));
            }
            _ => panic!("a key was claimed twice"),
        }
        links.into_iter().for_each(free);
    });
}

macro_rules! models {
    ($($model:ident: $run:ident, threads $threads:literal, faults [$($fault:ident: $bad:ident),*];)*) => {$(
        #[test]
        fn $model() {
            static ITERATIONS: AtomicU64 = AtomicU64::new(0);
            $run::<Sound>(&ITERATIONS);
            let name = stringify!($run);
            println!("model {name} threads={} iterations={}", $threads, ITERATIONS.load(StdOrdering::Relaxed));
        }

        $(
            #[test]
            fn $fault() {
                static ITERATIONS: AtomicU64 = AtomicU64::new(0);
                let outcome = std::panic::catch_unwind(|| $run::<$bad>(&ITERATIONS));
                assert!(outcome.is_err(), "loom did not find the fault {}", stringify!($bad));
            }
        )*
    )*};
}

models! {
    model_cross_thread_return: cross_thread_return, threads 2, faults [
        fault_cross_thread_return_unpublished: Unpublished, fault_cross_thread_return_unacquired: Unacquired
    ];
    model_stealing: stealing, threads 3, faults [
        fault_stealing_unacquired: Unacquired, fault_stealing_unpublished: Unpublished
    ];
    model_passing_on: passing_on, threads 3, faults [
        fault_passing_on_unacquired: Unacquired, fault_passing_on_unpublished: Unpublished
    ];
    model_seizure: seizure, threads 2, faults [
        fault_seizure_without_the_owners_fence: NoLight, fault_seizure_without_the_seizers_fence: NoHeavy
    ];
    model_resize: resize, threads 3, faults [
        fault_resize_without_the_seizers_fence: NoHeavy, fault_resize_without_the_owners_fence: NoLight
    ];
    model_keys: keys, threads 3, faults [
        fault_keys_unpublished: Unpublished, fault_keys_unacquired: Unacquired,
        fault_keys_without_generations: NoGenerations
    ];
}
