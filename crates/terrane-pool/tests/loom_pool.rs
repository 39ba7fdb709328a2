//! Models of the protocols of a pool. The arguments are in `docs/src/protocols/`: pool-stealing.md, pool-seizure.md and
//! pool-keys.md. Each model has twins with weakened orderings, which must fail. All that acts is a thread of its own: loom sees
//! more of threads that it has started.
#![cfg(loom)]

use loom::sync::{Arc, Mutex};
use loom::thread;
use std::sync::atomic::{AtomicU64, Ordering as StdOrdering};
use terrane_core::sync::atomic::{Ordering, fence};
use terrane_core::sync::cell::UnsafeCell;
use terrane_pool::depot::{Depot, Groups};
use terrane_pool::fences::Fences;
use terrane_pool::group::{Object, Shape};
use terrane_pool::key::{Key, Keys};
use terrane_pool::shard::Shard;
use terrane_pool::slots::Slots;

/// An object: its holder writes without any lock, so loom fails the model if two hold it at once, or if the one does not see
/// what the other did.
type Uses = UnsafeCell<u32>;

const SHAPE: Shape = Slots::<Uses>::SHAPE;

/// Where a model's objects lie. Those of one of these are in one group: there are only a few.
fn slots() -> Arc<Slots<Uses>> {
    Arc::new(Slots::new())
}

fn object(slots: &Slots<Uses>) -> Object {
    slots.make(UnsafeCell::new(0), Object::dangling()).cast()
}

/// Uses an object that the caller holds.
fn touch(object: Object) {
    // SAFETY: objects live until `free`; exclusive use is what loom checks.
    unsafe { object.cast::<Uses>().as_ref().with_mut(|uses| *uses += 1) };
}

/// Ends an object of these, whichever they are.
fn free(slots: &Slots<Uses>, object: Object) {
    touch(object);
    // SAFETY: the object is of these slots, and the caller's.
    drop(unsafe { slots.end(object.cast()) });
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

#[derive(Clone, Copy)]
struct Ptr(Object);
// SAFETY: the models hand objects from thread to thread; exclusive use is what loom checks.
unsafe impl Send for Ptr {}

/// A taker that looks below a group only when it has given the group up.
struct Late;
impl Fences for Late {
    const LATE: bool = true;
    fn light() {
        fence(Ordering::SeqCst);
    }
    fn heavy() {
        fence(Ordering::SeqCst);
    }
}

fn put<F: Fences>(depot: &Depot<F>, objects: &[Object]) {
    // SAFETY: the objects are the caller's.
    unsafe { depot.put(&SHAPE, objects) };
}

/// All objects of groups that were taken.
fn drawn<F: Fences>(mut groups: Groups) -> Vec<Ptr> {
    let mut all = Vec::new();
    // SAFETY: all objects are of that shape.
    unsafe { groups.draw::<F>(&SHAPE, usize::MAX, &mut all) };
    all.into_iter().map(Ptr).collect()
}

/// Objects that a shard of the calling thread takes over, used.
fn taken_over<F: Fences>(own: &Shard<F>, depot: &Depot<F>) -> Vec<Ptr> {
    // SAFETY: the shard is this thread's own, and all objects are of that shape.
    let taken = unsafe { own.enter().unwrap().take_over(depot, &SHAPE) };
    taken.into_iter().for_each(touch);
    let mut got: Vec<Ptr> = taken.into_iter().map(Ptr).collect();
    got.extend(empty(&[own]));
    got
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
        let slots = slots();
        let consumer = Arc::new(Shard::<F>::new(2));
        let objects = [(); 3].map(|()| Ptr(object(&slots)));
        let producing = {
            let consumer = consumer.clone();
            thread::spawn(move || taken_over(&Shard::<F>::new(2), consumer.depot()))
        };
        let consuming = {
            let consumer = consumer.clone();
            thread::spawn(move || {
                for Ptr(object) in objects {
                    touch(object);
                    // SAFETY: this thread is the owner of the shard, and holds the object.
                    unsafe { consumer.enter().unwrap().push(object, &SHAPE) };
                }
            })
        };
        consuming.join().unwrap();
        let mut got = producing.join().unwrap();
        // Whatever is where: three objects, each once.
        got.extend(empty(&[&consumer]));
        assert_eq!(got.len(), 3);
        got.into_iter().for_each(|Ptr(object)| free(&slots, object));
    });
}

/// All objects of shards that nobody uses any more.
fn empty<F: Fences>(shards: &[&Shard<F>]) -> Vec<Ptr> {
    let mut all = Vec::new();
    for shard in shards {
        shard.seize();
        F::heavy();
        // SAFETY: the other threads have ended.
        unsafe {
            shard.wait(|private| private.drain(|objects| all.extend(objects.iter().copied().map(Ptr))))
        };
        all.extend(drawn::<F>(shard.depot().take()));
    }
    all
}

/// Two thieves, and a thread that leaves an object whose group may be idle already: every object is taken once.
fn stealing<F: Fences>(iterations: &'static AtomicU64) {
    explore(iterations, 2, || {
        let slots = slots();
        let depot = Arc::new(Depot::<F>::new());
        put(&depot, &[object(&slots)]);
        let thieves: Vec<_> = (0..2)
            .map(|_| {
                let depot = depot.clone();
                thread::spawn(move || taken_over(&Shard::<F>::new(4), &depot))
            })
            .collect();
        let leaving = {
            let (depot, second) = (depot.clone(), Ptr(object(&slots)));
            thread::spawn(move || {
                let Ptr(second) = { second };
                touch(second);
                put(&depot, &[second]);
            })
        };
        leaving.join().unwrap();
        let mut got: Vec<Ptr> = thieves.into_iter().flat_map(|thief| thief.join().unwrap()).collect();
        got.extend(drawn::<F>(depot.take()));
        assert_eq!(got.len(), 2);
        got.into_iter().for_each(|Ptr(object)| free(&slots, object));
    });
}

/// A thief takes one of two objects of a group and leaves the group with the other, while a third object of it returns.
fn sharing<F: Fences>(iterations: &'static AtomicU64) {
    explore(iterations, 2, || {
        let slots = slots();
        let (depot, elsewhere) = (Arc::new(Depot::<F>::new()), Arc::new(Depot::<F>::new()));
        put(&depot, &[object(&slots), object(&slots)]);
        let thief = {
            let depot = depot.clone();
            thread::spawn(move || {
                let mut groups = depot.take();
                let mut one = Vec::new();
                // SAFETY: all objects are of that shape.
                unsafe { groups.draw::<F>(&SHAPE, 1, &mut one) };
                depot.push_all(groups);
                one.iter().for_each(|one| touch(*one));
                one.pop().map(Ptr)
            })
        };
        let returning = {
            let (elsewhere, third) = (elsewhere.clone(), Ptr(object(&slots)));
            thread::spawn(move || {
                let Ptr(third) = { third };
                touch(third);
                put(&elsewhere, &[third]);
            })
        };
        let taking = {
            let depot = depot.clone();
            thread::spawn(move || {
                let got = drawn::<F>(depot.take());
                got.iter().for_each(|got| touch(got.0));
                got
            })
        };
        let mut got = taking.join().unwrap();
        got.extend(thief.join().unwrap());
        returning.join().unwrap();
        for depot in [&depot, &elsewhere] {
            got.extend(drawn::<F>(depot.take()));
        }
        assert_eq!(got.len(), 3);
        got.into_iter().for_each(|Ptr(object)| free(&slots, object));
    });
}

/// One thread leaves objects of two groups, another passes both on as one, and a third takes them there.
fn passing_on<F: Fences>(iterations: &'static AtomicU64) {
    explore(iterations, 2, || {
        let both = [slots(), slots()];
        let (source, passed) = (Arc::new(Depot::<Sound>::new()), Arc::new(Depot::<F>::new()));
        let leaving = {
            let (source, objects) = (source.clone(), [0, 1].map(|slots| Ptr(object(&both[slots]))));
            thread::spawn(move || {
                for Ptr(object) in objects {
                    touch(object);
                    put(&source, &[object]);
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
                let got = drawn::<F>(passed.take());
                got.iter().for_each(|got| touch(got.0));
                got
            })
        };
        leaving.join().unwrap();
        passing.join().unwrap();
        let mut got = taking.join().unwrap();
        got.extend(drawn::<Sound>(source.take()));
        got.extend(drawn::<Sound>(passed.take()));
        assert_eq!(got.len(), 2);
        got.into_iter().for_each(|Ptr(object)| touch(object));
    });
}

/// The owner takes and gives while another thread seizes its magazines and takes what is there.
fn seizure<F: Fences>(iterations: &'static AtomicU64) {
    explore(iterations, 3, || {
        let slots = slots();
        let shard = Arc::new(Shard::<F>::new(4));
        // SAFETY: nobody else has the shard yet.
        unsafe { shard.enter().unwrap().push(object(&slots), &SHAPE) };
        let seizer = {
            let shard = shard.clone();
            thread::spawn(move || {
                let mut got = Vec::new();
                shard.seize();
                F::heavy();
                // SAFETY: there is no other seizer, and a heavy fence was passed (or is the fault).
                unsafe {
                    shard
                        .wait(|private| private.drain(|objects| got.extend(objects.iter().copied().map(Ptr))))
                };
                shard.release();
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
                        unsafe { visit.push(taken, &SHAPE) };
                        None
                    }
                    None => Some(Ptr(taken)),
                }
            })
        };
        let refused = owner.join().unwrap();
        let mut got = seizer.join().unwrap();
        got.extend(refused);
        got.extend(empty(&[&shard]));
        assert_eq!(got.len(), 1);
        got.into_iter().for_each(|Ptr(object)| free(&slots, object));
    });
}

/// A policy lowers the owner's capacity, and moves the surplus to where a third thread takes it.
fn resize<F: Fences>(iterations: &'static AtomicU64) {
    explore(iterations, 2, || {
        let slots = slots();
        let shard = Arc::new(Shard::<F>::new(8));
        for _ in 0..2 {
            // SAFETY: nobody else has the shard yet.
            unsafe { shard.enter().unwrap().push(object(&slots), &SHAPE) };
        }
        let control = Arc::new(Mutex::new(()));
        let resizer = {
            let (shard, control) = (shard.clone(), control.clone());
            thread::spawn(move || {
                let _held = control.lock().unwrap();
                shard.seize();
                F::heavy();
                // SAFETY: the lock excludes other seizers, and a heavy fence was passed (or is the fault).
                unsafe {
                    shard.wait(|private| {
                        private.set_capacity(2);
                        private.cut(1, |surplus| put(shard.depot(), surplus));
                    })
                };
                shard.release();
            })
        };
        let thief = {
            let shard = shard.clone();
            thread::spawn(move || {
                let got = drawn::<F>(shard.depot().take());
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
        let held = owner.join().unwrap();
        let mut got = thief.join().unwrap();
        resizer.join().unwrap();
        got.extend(held);
        got.extend(empty(&[&shard]));
        assert_eq!(got.len(), 2);
        got.into_iter().for_each(|Ptr(object)| free(&slots, object));
    });
}

/// An object is put under a key that two threads know; whoever claims it puts another in its place. The key is claimed once, and
/// never leads to the other object.
fn keys<F: Fences>(iterations: &'static AtomicU64) {
    explore(iterations, 3, || {
        let keys = Arc::new(Keys::<F>::new());
        // The table is made before the threads are, under a lock of its own that loom does not see.
        let slots = slots();
        let objects = [object(&slots), object(&slots)];
        let early = keys.put(objects[0]);
        assert_eq!(keys.take(early), Ok(objects[0]));
        // The place is used anew from here on: the next key is known before the object is put.
        let key = Key::from_bits(early.to_bits() + (u64::from(F::STEP) << 32)).unwrap();
        let putter = {
            let (keys, first) = (keys.clone(), Ptr(objects[0]));
            thread::spawn(move || {
                let Ptr(first) = { first };
                touch(first);
                assert_eq!(keys.put(first), key);
            })
        };
        let claimers: Vec<_> = (0..2)
            .map(|_| {
                let (keys, second, first) = (keys.clone(), Ptr(objects[1]), Ptr(objects[0]));
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
            [] => assert_eq!(keys.take(key), Ok(objects[0]), "nobody has claimed it"),
            [next] => {
                assert!(keys.take(key).is_err());
                assert_eq!(keys.take(next), Ok(objects[1]));
            }
            _ => panic!("a key was claimed twice"),
        }
        objects.into_iter().for_each(|object| free(&slots, object));
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
        fault_stealing_unacquired: Unacquired, fault_stealing_unpublished: Unpublished,
        fault_stealing_that_looks_below_too_late: Late
    ];
    model_sharing: sharing, threads 3, faults [
        fault_sharing_unacquired: Unacquired, fault_sharing_unpublished: Unpublished,
        fault_sharing_that_looks_below_too_late: Late
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
