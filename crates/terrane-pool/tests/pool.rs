//! The contract of pools, for both stores.
#![cfg(not(loom))]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use terrane_core::{Move, Sample, Sizing};
use terrane_pool::{
    AtEnd, Builder, Exhausted, Key, KeyError, LockFree, Mutexed, OwnedLease, Pool, Recycle, Store, Verdict,
    by,
};

/// Counts what exists, and knows who used it.
#[derive(Debug)]
struct Counted {
    alive: Arc<AtomicUsize>,
    user: u64,
    uses: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Default)]
struct Counter {
    alive: Arc<AtomicUsize>,
}

impl Recycle<Counted> for Counter {
    fn create(&self) -> Counted {
        self.alive.fetch_add(1, Ordering::Relaxed);
        Counted { alive: self.alive.clone(), user: 0, uses: 0 }
    }

    fn reset(&self, object: &mut Counted) -> Verdict {
        object.user = 0;
        object.uses += 1;
        Verdict::Keep
    }
}

fn pool<M: Store>(max: usize, cache: u32) -> (Pool<Counted, Counter, M>, Arc<AtomicUsize>) {
    let counter = Counter::default();
    let alive = counter.alive.clone();
    (Builder::new(counter).max(max).cache(cache).at_end(AtEnd::Panic).build_in(), alive)
}

macro_rules! for_both_stores {
    ($($name:ident: $run:ident;)*) => {
        mod lock_free { $(#[test] fn $name() { super::$run::<super::LockFree>(); })* }
        mod mutexed { $(#[test] fn $name() { super::$run::<super::Mutexed>(); })* }
    };
}

for_both_stores! {
    a_returned_object_is_reset_and_used_again: reused;
    a_pool_makes_no_more_than_its_bound: bounded;
    an_object_returned_elsewhere_comes_back: returned_elsewhere;
    an_idle_object_is_found_in_the_cache_of_an_idle_thread: found_in_idle_caches;
    threads_never_share_an_object_and_none_is_lost: storm;
    a_lease_outlives_its_pool: outlives;
    a_pool_reports_what_is_still_out: leaks;
    a_key_is_claimed_once: keys;
    a_discarded_object_makes_room: discarded;
    an_object_whose_reset_panics_is_dropped: reset_panics;
    an_object_whose_making_panics_counts_for_nothing: create_panics;
    detached_objects_leave_and_attached_ones_come: detached;
    a_lease_survives_as_a_pointer: raw;
    trim_drops_what_nobody_keeps: trimmed;
    warm_objects_are_there_before_they_are_asked_for: warmed;
}

fn reused<M: Store>() {
    let (pool, alive) = pool::<M>(10, 8);
    let mut lease = pool.acquire().unwrap();
    lease.user = 7;
    drop(lease);
    let lease = pool.acquire().unwrap();
    assert_eq!((lease.user, lease.uses, alive.load(Ordering::Relaxed)), (0, 1, 1));
}

fn bounded<M: Store>() {
    let (pool, alive) = pool::<M>(3, 8);
    let leases: Vec<_> = (0..3).map(|_| pool.acquire().unwrap()).collect();
    assert_eq!(pool.acquire().unwrap_err(), Exhausted { max: 3 });
    drop(leases);
    assert!(pool.acquire().is_ok());
    assert_eq!(alive.load(Ordering::Relaxed), 3);
}

fn returned_elsewhere<M: Store>() {
    let (pool, alive) = pool::<M>(1, 8);
    for round in 0..100 {
        let lease = pool.acquire_owned().unwrap();
        assert_eq!(lease.uses, round);
        thread::spawn(move || drop(lease)).join().unwrap();
    }
    assert_eq!(alive.load(Ordering::Relaxed), 1);
}

fn found_in_idle_caches<M: Store>() {
    let (pool, alive) = pool::<M>(8, 1000);
    let pool = &pool;
    thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let (done, end) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            let leases: Vec<_> = (0..8).map(|_| pool.acquire().unwrap()).collect();
            drop(leases);
            tell.send(()).unwrap();
            end.recv().unwrap(); // alive, and idle, with all eight in its cache
        });
        told.recv().unwrap();
        let leases: Vec<_> = (0..8).map(|_| pool.acquire().unwrap()).collect();
        assert_eq!(leases.len(), 8);
        assert_eq!(alive.load(Ordering::Relaxed), 8);
        done.send(()).unwrap();
    });
}

fn storm<M: Store>() {
    const THREADS: u64 = 6;
    const MAX: usize = 24;
    let (pool, alive) = pool::<M>(MAX, 4);
    let pool = Arc::new(pool);
    let (send, receive) = std::sync::mpsc::sync_channel::<OwnedLease<Counted, Counter, M>>(8);
    let receive = Arc::new(std::sync::Mutex::new(receive));
    let threads: Vec<_> = (1..=THREADS)
        .map(|me| {
            let (pool, send, receive) = (pool.clone(), send.clone(), receive.clone());
            thread::spawn(move || {
                let mut served = 0_u64;
                for step in 0..3000_u64 {
                    match pool.acquire_owned() {
                        Ok(mut lease) => {
                            assert_eq!(lease.user, 0, "someone else has it, or it was not reset");
                            lease.user = me;
                            served += 1;
                            if step.is_multiple_of(3) {
                                if let Err(refused) = send.try_send(lease) {
                                    drop(refused);
                                }
                            } else {
                                assert_eq!(lease.user, me);
                            }
                        }
                        Err(cause) => assert_eq!(cause, Exhausted { max: MAX }),
                    }
                    if step % 4 == me % 4 {
                        drop(receive.lock().unwrap().try_recv());
                    }
                    if step == 1500 && me == 1 {
                        pool.tick();
                        pool.trim(0);
                    }
                }
                served
            })
        })
        .collect();
    let served: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    drop((send, receive));
    let stats = pool.stats();
    assert_eq!(stats.out(), 0, "{stats:?}");
    assert!(alive.load(Ordering::Relaxed) <= MAX);
    assert!(served > 3000 && stats.hits + stats.steals + stats.gathers > 0, "{served} {stats:?}");
    Arc::into_inner(pool).unwrap().close().unwrap();
    assert_eq!(alive.load(Ordering::Relaxed), 0);
}

fn outlives<M: Store>() {
    let counter = Counter::default();
    let alive = counter.alive.clone();
    let pool = Builder::new(counter).at_end(AtEnd::Ignore).build_in::<Counted, M>();
    let (here, there) = (pool.acquire_owned().unwrap(), pool.acquire_owned().unwrap());
    drop(pool.acquire().unwrap());
    drop(pool);
    assert_eq!(alive.load(Ordering::Relaxed), 2);
    assert_eq!(here.uses, 0);
    drop(here);
    thread::spawn(move || drop(there)).join().unwrap();
    assert_eq!(alive.load(Ordering::Relaxed), 0);
}

fn leaks<M: Store>() {
    let (pool, _) = pool::<M>(10, 8);
    let (lease, forgotten) = (pool.acquire_owned().unwrap(), pool.acquire().unwrap());
    std::mem::forget(forgotten);
    assert_eq!(pool.close().unwrap_err().objects, 2);
    drop(lease);

    let (pool, _) = self::pool::<M>(10, 8);
    std::mem::forget(pool.acquire().unwrap());
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(pool)));
    let message = *outcome.unwrap_err().downcast::<String>().unwrap();
    assert_eq!(message, "pool closed while 1 of its objects were out");
}

fn keys<M: Store>() {
    let (pool, alive) = pool::<M>(1000, 8);
    let mut lease = pool.acquire_owned().unwrap();
    lease.user = 5;
    let key = lease.into_key();
    assert_eq!(pool.stats().out(), 1);
    let key = Key::from_bits(key.to_bits()).unwrap();
    assert_eq!(pool.claim(key).unwrap().user, 5);
    assert_eq!(pool.claim(key).unwrap_err(), KeyError::Stale { generation: 0, current: 1 });

    // The same place again, and many others over several chunks of the table.
    let again = pool.acquire_owned().unwrap().into_key();
    assert_ne!(again, key);
    assert!(matches!(pool.claim(key), Err(KeyError::Stale { .. })));
    let keys: Vec<Key> = (1..500)
        .map(|user| {
            let mut lease = pool.acquire_owned().unwrap();
            lease.user = user;
            lease.into_key()
        })
        .collect();
    assert_eq!(alive.load(Ordering::Relaxed), 500);
    for (user, key) in (1..500).zip(keys) {
        assert_eq!(pool.claim(key).unwrap().user, user);
    }
    let unknown = Key::from_bits(70_000).unwrap();
    assert_eq!(pool.claim(unknown).unwrap_err(), KeyError::Unknown { index: 69_999 });
    assert_eq!(Key::from_bits(0), None);
    drop(pool.claim(again).unwrap());
}

fn discarded<M: Store>() {
    let pool = Builder::new(by(Vec::<u8>::new, |buffer: &mut Vec<u8>| {
        if buffer.capacity() > 100 { Verdict::Discard } else { Verdict::Keep }
    }))
    .max(1)
    .at_end(AtEnd::Panic)
    .build_in::<_, M>();
    pool.acquire().unwrap().reserve(1000);
    assert_eq!(pool.acquire().unwrap().capacity(), 0);
    assert_eq!((pool.stats().created, pool.stats().discarded), (2, 1));
}

fn reset_panics<M: Store>() {
    let pool = Builder::new(by(
        || 0_u32,
        |value: &mut u32| if *value == 9 { panic!("nine") } else { Verdict::Keep },
    ))
    .max(1)
    .at_end(AtEnd::Panic)
    .build_in::<_, M>();
    let mut lease = pool.acquire().unwrap();
    *lease = 9;
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(lease)));
    assert!(outcome.is_err());
    assert_eq!(*pool.acquire().unwrap(), 0);
}

fn create_panics<M: Store>() {
    let first = std::sync::atomic::AtomicBool::new(true);
    let create = move || if first.swap(false, Ordering::Relaxed) { panic!("first") } else { 1_u32 };
    let pool =
        Builder::new(by(create, |_: &mut u32| Verdict::Keep)).max(1).at_end(AtEnd::Panic).build_in::<_, M>();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(pool.acquire())));
    assert!(outcome.is_err());
    assert_eq!(*pool.acquire().unwrap(), 1);
}

fn detached<M: Store>() {
    let (pool, alive) = pool::<M>(1, 8);
    let object = pool.acquire().unwrap().detach();
    assert_eq!(pool.stats().objects, 0);
    drop(pool.acquire().unwrap());
    let rejected = pool.attach(object).unwrap_err();
    assert_eq!(rejected.cause, Exhausted { max: 1 });
    drop(pool.acquire().unwrap().detach());
    drop(pool.attach(rejected.object).unwrap());
    assert_eq!(pool.acquire().unwrap().uses, 1);
    assert_eq!(alive.load(Ordering::Relaxed), 1);
}

fn raw<M: Store>() {
    let (pool, _) = pool::<M>(1, 8);
    let mut lease = pool.acquire_owned().unwrap();
    lease.user = 3;
    let object = lease.into_raw();
    // SAFETY: the pointer is a lease's, and is used up here.
    let lease = unsafe { OwnedLease::<Counted, Counter, M>::from_raw(object) };
    assert_eq!(lease.user, 3);
}

fn trimmed<M: Store>() {
    let (pool, alive) = pool::<M>(100, 4);
    let leases: Vec<_> = (0..50).map(|_| pool.acquire().unwrap()).collect();
    drop(leases);
    assert_eq!(alive.load(Ordering::Relaxed), 50);
    pool.trim(10);
    // What a thread keeps for itself is not trimmed.
    assert!(alive.load(Ordering::Relaxed) <= 14, "{}", alive.load(Ordering::Relaxed));
}

fn warmed<M: Store>() {
    let (pool, alive) = pool::<M>(100, 8);
    assert_eq!(pool.warm(40), 40);
    assert_eq!(pool.warm(1000), 100);
    let leases: Vec<_> = (0..100).map(|_| pool.acquire().unwrap()).collect();
    assert_eq!((leases.len(), alive.load(Ordering::Relaxed)), (100, 100));
    assert_eq!(pool.stats().created, 100);
}

#[test]
fn an_exhausted_thread_steals_before_it_makes_more() {
    let (pool, alive) = pool::<LockFree>(1000, 4);
    let pool = &pool;
    thread::scope(|scope| {
        scope
            .spawn(move || drop((0..64).map(|_| pool.acquire().unwrap()).collect::<Vec<_>>()))
            .join()
            .unwrap();
        let before = alive.load(Ordering::Relaxed);
        let leases: Vec<_> = (0..32).map(|_| pool.acquire().unwrap()).collect();
        assert_eq!(leases.len(), 32);
        assert_eq!(alive.load(Ordering::Relaxed), before, "made some although others had plenty");
    });
}

#[test]
fn a_stream_of_objects_to_another_thread_comes_back_by_magazines_without_a_search_of_all_caches() {
    // An interpreter needs minutes for more.
    const OBJECTS: usize = if cfg!(miri) { 500 } else { 50_000 };
    const QUEUE: usize = 256;
    const CACHE: u32 = 64;
    let (pool, _) = pool::<LockFree>(4096, CACHE);
    let (send, receive) = std::sync::mpsc::sync_channel(QUEUE);
    thread::scope(|scope| {
        scope.spawn(|| (0..OBJECTS).for_each(|_| send.send(pool.acquire_owned().unwrap()).unwrap()));
        scope.spawn(move || receive.iter().take(OBJECTS).for_each(drop));
    });
    let stats = pool.stats();
    assert_eq!((stats.gathers, stats.out()), (0, 0), "{stats:?}");
    // In the queue, in the two caches, in a magazine on its way, and in both hands.
    assert!(stats.created <= (QUEUE as u64) + 3 * u64::from(CACHE) + 2, "{stats:?}");
    // A miss brings a magazine, which is half of a cache; or the part of one that lay nearer, and the next brings the rest.
    assert!(stats.misses <= stats.created + 2 * OBJECTS as u64 / u64::from(CACHE / 2), "{stats:?}");
}

#[test]
fn a_policy_sets_the_depth_of_each_cache_and_surplus_is_dropped() {
    struct Halve;
    impl Sizing for Halve {
        fn decide(&mut self, samples: &[Sample], budget: u64, apply: &mut dyn FnMut(Move)) {
            assert_eq!(budget, 1 << 20);
            for sample in samples {
                assert_eq!(sample.object_bytes, 100);
                apply(Move { cache: sample.cache, capacity: sample.capacity / 2 });
            }
        }
    }
    let alive = Arc::new(AtomicUsize::new(0));
    let pool = Builder::new(Counter { alive: alive.clone() })
        .cache(32)
        .sizing(Halve, 1 << 20, 100)
        .at_end(AtEnd::Panic)
        .build();
    let burst = |objects: usize| drop((0..objects).map(|_| pool.acquire().unwrap()).collect::<Vec<_>>());
    burst(200);
    assert_eq!(alive.load(Ordering::Relaxed), 200);
    let mut left = Vec::new();
    for _ in 0..60 {
        pool.tick();
        left.push(alive.load(Ordering::Relaxed));
    }
    assert!(left.is_sorted_by(|a, b| a >= b) && left[2] == 200 && left[59] <= 4, "{left:?}");
}

#[test]
fn chunks_come_and_go_while_their_objects_change_threads() {
    const THREADS: usize = 4;
    const ROUNDS: usize = if cfg!(miri) { 20 } else { 2000 };
    let alive = Arc::new(AtomicUsize::new(0));
    let uses = Arc::new(AtomicUsize::new(0));
    struct Short(Counter, Arc<AtomicUsize>);
    impl Recycle<Counted> for Short {
        fn create(&self) -> Counted {
            self.0.create()
        }
        // Runs of objects end now and then, and whole chunks with them.
        fn reset(&self, object: &mut Counted) -> Verdict {
            object.user = 0;
            if (self.1.fetch_add(1, Ordering::Relaxed) / 256).is_multiple_of(3) {
                Verdict::Discard
            } else {
                Verdict::Keep
            }
        }
    }
    let pool =
        Builder::new(Short(Counter { alive: alive.clone() }, uses)).cache(4).at_end(AtEnd::Panic).build();
    let queues: [std::sync::Mutex<Vec<OwnedLease<Counted, Short>>>; THREADS] = Default::default();
    thread::scope(|scope| {
        for me in 0..THREADS {
            let (pool, queues) = (&pool, &queues);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let mut batch: Vec<_> = (0..40).map(|_| pool.acquire_owned().unwrap()).collect();
                    for lease in &mut batch {
                        assert_eq!(lease.user, 0, "someone else has it, or it was not reset");
                        lease.user = me as u64 + 1;
                    }
                    // Half goes back here, half to whoever looks next.
                    queues[(me + round) % THREADS].lock().unwrap().extend(batch.drain(20..));
                    drop(batch);
                    drop(std::mem::take(&mut *queues[me].lock().unwrap()));
                    if round % 100 == 99 {
                        pool.trim(8);
                    }
                }
            });
        }
    });
    drop(queues);
    let stats = pool.stats();
    assert_eq!((stats.out(), stats.objects), (0, alive.load(Ordering::Relaxed) as u64), "{stats:?}");
    assert!(stats.discarded > stats.objects && stats.steals > 0, "{stats:?}");
    pool.close().unwrap();
    assert_eq!(alive.load(Ordering::Relaxed), 0);
}

#[test]
fn a_destructor_of_a_thread_that_ends_may_return_objects() {
    thread_local! {
        static KEPT: std::cell::RefCell<Vec<OwnedLease<Counted, Counter>>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    let (pool, alive) = pool::<LockFree>(64, 8);
    for _ in 0..8 {
        thread::scope(|scope| {
            scope.spawn(|| {
                KEPT.with_borrow_mut(|kept| kept.extend((0..8).map(|_| pool.acquire_owned().unwrap())))
            });
        });
    }
    // A scope ends before the destructors of its threads have; they are given time by what can only end after them.
    while pool.stats().out() > 0 {
        thread::yield_now();
    }
    assert!(alive.load(Ordering::Relaxed) <= 64);
}

#[test]
fn a_hit_rate_policy_deepens_the_cache_under_load_and_empties_it_when_idle() {
    let counter = Counter::default();
    let alive = counter.alive.clone();
    let pool = Builder::new(counter)
        .cache(4)
        .sizing(terrane_pool::sizing::HitRate::<16>::new(950, 4), 1 << 20, 64)
        .at_end(AtEnd::Panic)
        .build();
    let burst = |objects: usize| drop((0..objects).map(|_| pool.acquire().unwrap()).collect::<Vec<_>>());
    let rate = |ticks: usize| {
        let before = pool.stats();
        for _ in 0..ticks {
            (0..20).for_each(|_| burst(200));
            pool.tick();
        }
        let after = pool.stats();
        let (hits, misses) = (after.hits - before.hits, after.misses - before.misses);
        hits as f64 / (hits + misses) as f64
    };
    let shallow = rate(1);
    rate(20);
    let deep = rate(1);
    // A miss takes a whole magazine over, so even the shallow cache hits now and then.
    assert!(deep > 0.95 && shallow < 0.9, "{shallow} before, {deep} after");
    assert!(pool.stats().idle >= 100, "{:?}", pool.stats());
    let made = pool.stats().created;
    rate(20);
    assert!(pool.stats().created <= made + 10, "objects are dropped and made again under a steady load");
    for _ in 0..100 {
        pool.tick();
    }
    assert!(alive.load(Ordering::Relaxed) <= 8, "{} objects kept when idle", alive.load(Ordering::Relaxed));
}
