//! What the functions of a `Recycle`, the drop of an object and a policy may do to the pool that calls them, for both stores.
#![cfg(not(loom))]

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::thread;
use std::time::Duration;
use terrane_core::{Move, Sample, Sizing};
use terrane_pool::{AtEnd, Builder, Exhausted, LockFree, Mutexed, OwnedLease, Pool, Recycle, Store, Verdict};

type Call = Box<dyn FnOnce() + Send>;

/// What is called at the next creation, reset, or drop of an object, once.
#[derive(Clone, Default)]
struct Hooks {
    create: Arc<Mutex<Option<Call>>>,
    reset: Arc<Mutex<Option<Call>>>,
    drop: Arc<Mutex<Option<Call>>>,
    alive: Arc<AtomicUsize>,
}

fn at(hook: &Mutex<Option<Call>>, call: impl FnOnce() + Send + 'static) {
    *hook.lock().unwrap() = Some(Box::new(call));
}

fn call(hook: &Mutex<Option<Call>>) {
    let call = hook.lock().unwrap().take();
    if let Some(call) = call {
        call();
    }
}

struct Object(Hooks);

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Object")
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Ordering::Relaxed);
        call(&self.0.drop);
    }
}

impl Recycle<Object> for Hooks {
    fn create(&self) -> Object {
        call(&self.create);
        self.alive.fetch_add(1, Ordering::Relaxed);
        Object(self.clone())
    }

    fn reset(&self, _: &mut Object) -> Verdict {
        call(&self.reset);
        Verdict::Keep
    }
}

type Own<M> = Arc<Pool<Object, Hooks, M>>;

/// A pool whose threads keep next to nothing for themselves, so that a trim finds objects.
fn pool<M: Store>(max: usize) -> (Own<M>, Hooks) {
    let hooks = Hooks::default();
    (Arc::new(Builder::new(hooks.clone()).max(max).cache(0).at_end(AtEnd::Panic).build_in()), hooks)
}

fn fill<M: Store>(pool: &Pool<Object, Hooks, M>, objects: usize) {
    drop((0..objects).map(|_| pool.acquire().unwrap()).collect::<Vec<_>>());
}

macro_rules! for_both_stores {
    ($($name:ident: $run:ident;)*) => {
        mod lock_free { $(#[test] fn $name() { super::$run::<super::LockFree>(); })* }
        mod mutexed { $(#[test] fn $name() { super::$run::<super::Mutexed>(); })* }
    };
}

for_both_stores! {
    a_reset_may_take_and_return_an_object_of_its_pool: reset_uses;
    a_reset_may_tick_trim_warm_and_look_at_its_pool: reset_tends;
    a_reset_may_end_its_pool: reset_ends;
    an_object_may_be_made_of_another_of_its_pool: create_uses;
    an_object_that_is_being_made_counts: create_counts;
    a_trimmed_object_makes_room_before_it_is_dropped: drop_uses;
    the_drop_of_an_object_may_trim_its_pool: drop_trims;
    a_trim_that_panics_drops_the_others: trim_panics;
    a_pool_whose_end_panics_drops_and_frees_everything: end_panics;
    an_object_may_hold_a_lease_of_its_pool: nested;
    a_policy_may_use_the_pool_that_asks_it: policy_uses;
    a_cache_without_a_limit_is_as_deep_as_can_be_counted: deep;
}

fn reset_uses<M: Store>() {
    let (pool, hooks) = pool::<M>(2);
    fill(&pool, 2);
    let inner = pool.clone();
    let lease = pool.acquire().unwrap();
    at(&hooks.reset, move || {
        let other = inner.acquire().unwrap();
        assert_eq!(inner.acquire().unwrap_err(), Exhausted { max: 2 }, "what is being reset counts as out");
        drop(other);
    });
    drop(lease);
    assert!(hooks.reset.lock().unwrap().is_none());
    assert_eq!((pool.stats().idle, pool.stats().out()), (2, 0));
}

fn reset_tends<M: Store>() {
    let (pool, hooks) = pool::<M>(20);
    fill(&pool, 10);
    let inner = pool.clone();
    let lease = pool.acquire().unwrap();
    at(&hooks.reset, move || {
        inner.tick();
        inner.trim(0);
        assert_eq!(inner.warm(15), 15);
        assert_eq!(inner.stats().out(), 1);
    });
    drop(lease);
    assert_eq!((pool.stats().objects, pool.stats().out()), (15, 0));
}

fn reset_ends<M: Store>() {
    let hooks = Hooks::default();
    let pool = Builder::new(hooks.clone()).at_end(AtEnd::Ignore).build_in::<Object, M>();
    fill(&pool, 5);
    let lease = pool.acquire_owned().unwrap();
    at(&hooks.reset, move || assert_eq!(pool.close().unwrap_err().objects, 1));
    drop(lease);
    assert_eq!(hooks.alive.load(Ordering::Relaxed), 0);
    assert_eq!(Arc::strong_count(&hooks.alive), 1, "what the pool shared is still there");
}

fn create_uses<M: Store>() {
    let (pool, hooks) = pool::<M>(2);
    let inner = pool.clone();
    at(&hooks.create, move || drop(inner.acquire().unwrap()));
    let _lease = pool.acquire().unwrap();
    assert_eq!((pool.stats().created, pool.stats().idle), (2, 1));
}

fn create_counts<M: Store>() {
    let (pool, hooks) = pool::<M>(1);
    let inner = pool.clone();
    at(&hooks.create, move || assert_eq!(inner.acquire().unwrap_err(), Exhausted { max: 1 }));
    drop(pool.acquire().unwrap());
    assert_eq!(pool.stats().created, 1);
}

fn drop_uses<M: Store>() {
    const MAX: usize = 12;
    let (pool, hooks) = pool::<M>(MAX);
    fill(&pool, MAX);
    let inner = pool.clone();
    at(&hooks.drop, move || {
        // All that the trim took is gone for others: whoever is told that the pool is exhausted has a right to be told so.
        let leases: Vec<_> = (0..MAX).map(|_| inner.acquire()).collect();
        assert!(
            leases.iter().all(Result::is_ok),
            "{:?}",
            leases.iter().map(Result::is_ok).collect::<Vec<_>>()
        );
    });
    pool.trim(0);
    assert!(hooks.drop.lock().unwrap().is_none(), "nothing was trimmed");
    assert_eq!(pool.stats().objects, MAX as u64);
    assert_eq!(hooks.alive.load(Ordering::Relaxed), MAX);
}

fn drop_trims<M: Store>() {
    let (pool, hooks) = pool::<M>(50);
    fill(&pool, 50);
    let inner = pool.clone();
    at(&hooks.drop, move || inner.trim(0));
    pool.trim(30);
    let stats = pool.stats();
    assert!(stats.objects <= 2 && stats.out() == 0, "{stats:?}");
    assert_eq!(hooks.alive.load(Ordering::Relaxed), stats.objects as usize);
}

fn trim_panics<M: Store>() {
    let (pool, hooks) = pool::<M>(50);
    fill(&pool, 50);
    at(&hooks.drop, || panic!("at its drop"));
    assert!(catch_unwind(AssertUnwindSafe(|| pool.trim(0))).is_err());
    let stats = pool.stats();
    assert!(stats.objects <= 2 && stats.out() == 0, "{stats:?}");
    assert_eq!(hooks.alive.load(Ordering::Relaxed), stats.objects as usize);
    fill(&pool, 50);
}

fn end_panics<M: Store>() {
    let (pool, hooks) = pool::<M>(50);
    fill(&pool, 50);
    at(&hooks.drop, || panic!("at its drop"));
    let pool = Arc::into_inner(pool).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| drop(pool))).is_err());
    assert_eq!(hooks.alive.load(Ordering::Relaxed), 0);
    assert_eq!(Arc::strong_count(&hooks.alive), 1, "what the pool shared is still there");
}

fn nested<M: Store>() {
    struct Chain<M: Store>(Option<OwnedLease<Chain<M>, Chains, M>>);
    struct Chains;
    impl<M: Store> Recycle<Chain<M>> for Chains {
        fn create(&self) -> Chain<M> {
            Chain(None)
        }
        fn reset(&self, chain: &mut Chain<M>) -> Verdict {
            chain.0 = None;
            Verdict::Keep
        }
    }
    let pool = Builder::new(Chains).max(3).at_end(AtEnd::Panic).build_in::<Chain<M>, M>();
    for _ in 0..3 {
        let mut first = pool.acquire_owned().unwrap();
        let mut second = pool.acquire_owned().unwrap();
        second.0 = Some(pool.acquire_owned().unwrap());
        first.0 = Some(second);
        drop(first);
        assert_eq!((pool.stats().idle, pool.stats().objects), (3, 3));
    }
    // The same after the pool's end: the last lease is dropped inside the drop of another's object.
    let mut first = pool.acquire_owned().unwrap();
    first.0 = Some(pool.acquire_owned().unwrap());
    assert_eq!(pool.close().unwrap_err().objects, 2);
    drop(first);
}

fn policy_uses<M: Store>() {
    struct Inward<M: Store> {
        pool: Arc<OnceLock<Weak<Pool<Object, Hooks, M>>>>,
        asked: Arc<AtomicUsize>,
    }
    impl<M: Store> Sizing for Inward<M> {
        fn decide(&mut self, _: &[Sample], _: u64, _: &mut dyn FnMut(Move)) {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let pool = self.pool.get().unwrap().upgrade().unwrap();
            fill(&pool, 3);
            pool.trim(0);
            pool.tick();
        }
    }
    let (hooks, own, asked) = (Hooks::default(), Arc::new(OnceLock::new()), Arc::new(AtomicUsize::new(0)));
    let pool: Own<M> = Arc::new(
        Builder::new(hooks)
            .max(3)
            .cache(0)
            .sizing(Inward { pool: own.clone(), asked: asked.clone() }, 1 << 20, 8)
            .build_in(),
    );
    own.set(Arc::downgrade(&pool)).unwrap();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        pool.tick();
        tell.send(pool.stats().out()).unwrap();
    });
    let out = told.recv_timeout(Duration::from_secs(60)).expect("a tick inside a tick waits for itself");
    assert_eq!((out, asked.load(Ordering::Relaxed)), (0, 1));
}

fn deep<M: Store>() {
    let hooks = Hooks::default();
    let pool = Builder::new(hooks.clone()).cache(u32::MAX).at_end(AtEnd::Panic).build_in::<Object, M>();
    fill(&pool, 1000);
    pool.trim(0);
    pool.tick();
    assert_eq!((pool.stats().idle, hooks.alive.load(Ordering::Relaxed)), (1000, 1000));
}

#[test]
fn threads_beyond_those_with_a_cache_share_what_is_common() {
    // More than have a number each (256).
    const THREADS: usize = 300;
    let hooks = Hooks::default();
    let pool = Builder::new(hooks.clone()).max(THREADS).at_end(AtEnd::Panic).build();
    let (barrier, refused) = (std::sync::Barrier::new(THREADS), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let lease = pool.acquire().unwrap();
                // All are alive at once, and hold one each.
                barrier.wait();
                drop(lease);
                barrier.wait();
                // All are idle, wherever they are; nobody needs a new one.
                let again = pool.acquire();
                refused.fetch_add(usize::from(again.is_err()), Ordering::Relaxed);
                barrier.wait();
            });
        }
    });
    assert_eq!(refused.load(Ordering::Relaxed), 0);
    let stats = pool.stats();
    assert_eq!((stats.created, stats.objects, stats.out()), (THREADS as u64, THREADS as u64, 0), "{stats:?}");
    let all: Vec<_> = (0..THREADS).map(|_| pool.acquire().unwrap()).collect();
    assert_eq!(pool.acquire().unwrap_err(), Exhausted { max: THREADS });
    drop(all);
}

mod managed {
    use super::*;
    use terrane_pool::Managed;

    const MAX: usize = 12;

    fn managed() -> (Arc<Managed<Object, Hooks>>, Hooks) {
        let hooks = Hooks::default();
        (Arc::new(Managed::new(Builder::new(hooks.clone()).cache(0).at_end(AtEnd::Panic), MAX)), hooks)
    }

    fn all(pool: &Managed<Object, Hooks>) -> Vec<impl Sized> {
        (0..MAX).map(|_| pool.try_acquire().unwrap()).collect()
    }

    #[test]
    fn a_permit_stands_for_an_object_while_a_tick_drops_others() {
        let (pool, hooks) = managed();
        drop(all(&pool));
        let inner = pool.clone();
        at(&hooks.drop, move || drop(all(&inner)));
        (0..20).for_each(|_| pool.tick());
        assert!(hooks.drop.lock().unwrap().is_none(), "nothing was trimmed");
        assert_eq!((pool.free(), pool.stats().out()), (MAX, 0));
    }

    #[test]
    fn a_panic_in_a_reset_or_a_creation_gives_the_permit_back() {
        let (pool, hooks) = managed();
        let lease = pool.try_acquire().unwrap();
        at(&hooks.reset, || panic!("at its reset"));
        assert!(catch_unwind(AssertUnwindSafe(|| drop(lease))).is_err());
        assert_eq!((pool.free(), pool.stats().objects), (MAX, 0));
        at(&hooks.create, || panic!("at its creation"));
        assert!(catch_unwind(AssertUnwindSafe(|| drop(pool.try_acquire()))).is_err());
        assert_eq!((pool.free(), pool.stats().objects), (MAX, 0));
        drop(all(&pool));
    }
}

#[test]
fn a_waker_may_take_the_answer_and_drop_the_reply_at_once() {
    use std::pin::Pin;
    use std::task::{Context, Poll, Wake, Waker};
    use terrane_pool::{Replies, Reply};

    #[derive(Default)]
    struct Inline {
        reply: Mutex<Option<Reply<u64>>>,
        answer: Mutex<Option<u64>>,
    }

    impl Wake for Inline {
        fn wake(self: Arc<Self>) {
            let mut reply = self.reply.lock().unwrap().take().unwrap();
            let Poll::Ready(answer) = Pin::new(&mut reply).poll(&mut Context::from_waker(Waker::noop()))
            else {
                panic!("woken without an answer");
            };
            *self.answer.lock().unwrap() = answer.ok();
        }
    }

    let replies = Replies::new(1);
    // The slot is used again, as new.
    for number in 0..3 {
        let (sender, mut reply) = replies.channel().unwrap();
        let task = Arc::new(Inline::default());
        let waker = Waker::from(task.clone());
        assert!(Pin::new(&mut reply).poll(&mut Context::from_waker(&waker)).is_pending());
        *task.reply.lock().unwrap() = Some(reply);
        sender.send(number).unwrap();
        assert_eq!(task.answer.lock().unwrap().take(), Some(number));
        assert_eq!((replies.stats().out(), replies.stats().created), (0, 1));
        // The slot holds no waker back: this one, and the task's own.
        drop(waker);
        assert_eq!(Arc::strong_count(&task), 1);
    }
}
