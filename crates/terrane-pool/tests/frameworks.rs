//! Pooled objects inside actors, rings, waiting tasks and collections.
#![cfg(not(loom))]

use std::sync::Arc;
use terrane_pool::{
    AtEnd, BufPool, BufPoolConfig, Builder, OwnedLease, Pool, Recycle, Replies, ReplySender, Unanswered,
    Verdict,
};

/// A message body that an actor receives.
#[derive(Debug, Default)]
struct Body {
    text: String,
}

#[derive(Debug)]
struct Bodies;

impl Recycle<Body> for Bodies {
    fn create(&self) -> Body {
        Body { text: String::with_capacity(64) }
    }

    fn reset(&self, body: &mut Body) -> Verdict {
        body.text.clear();
        Verdict::Keep
    }
}

fn bodies() -> Arc<Pool<Body, Bodies>> {
    Arc::new(Builder::new(Bodies).max(64).cache(8).at_end(AtEnd::Panic).build())
}

mod actors {
    use super::*;
    use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

    enum Message {
        Take(OwnedLease<Body, Bodies>),
        Echo(OwnedLease<Body, Bodies>, RpcReplyPort<OwnedLease<Body, Bodies>>),
        Answer(u64, ReplySender<u64>),
        /// Says that it is read, and holds the actor for good.
        Hold(OwnedLease<Body, Bodies>, tokio::sync::oneshot::Sender<()>),
    }

    struct Reader;

    impl Actor for Reader {
        type Msg = Message;
        type State = usize;
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<Message>, (): ()) -> Result<usize, ActorProcessingErr> {
            Ok(0)
        }

        async fn handle(
            &self,
            _: ActorRef<Message>,
            message: Message,
            read: &mut usize,
        ) -> Result<(), ActorProcessingErr> {
            match message {
                Message::Take(body) => *read += body.text.len(),
                Message::Echo(mut body, reply) => {
                    body.text.push('!');
                    drop(reply.send(body));
                }
                Message::Answer(number, reply) => drop(reply.send(number * 2)),
                Message::Hold(_body, reached) => {
                    let _ = reached.send(());
                    std::future::pending::<()>().await;
                }
            }
            tokio::task::yield_now().await;
            Ok(())
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn bodies_and_replies_go_to_an_actor_and_come_back() {
        let pool = bodies();
        let (actor, running) = Actor::spawn(None, Reader, ()).await.unwrap();
        for number in 0..500 {
            let mut body = pool.acquire_owned().unwrap();
            body.text.push_str(&number.to_string());
            let reply = ractor::call!(actor, Message::Echo, body).unwrap();
            assert_eq!(reply.text, format!("{number}!"));
        }
        assert!(pool.stats().created <= 16, "{:?}", pool.stats());
        actor.stop(None);
        running.await.unwrap();
        assert_eq!(pool.stats().out(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_actor_killed_with_a_full_mailbox_leaves_no_lease_out() {
        let pool = bodies();
        let (actor, running) = Actor::spawn(None, Reader, ()).await.unwrap();
        let body = || pool.acquire_owned().unwrap();
        let (reached, holds) = tokio::sync::oneshot::channel();
        assert!(actor.cast(Message::Hold(body(), reached)).is_ok());
        holds.await.unwrap();
        // Nothing of what follows is read: the actor holds.
        let mut replies = Vec::new();
        for _ in 0..20 {
            assert!(actor.cast(Message::Take(body())).is_ok());
            let (port, reply) = tokio::sync::oneshot::channel();
            assert!(actor.cast(Message::Echo(body(), port.into())).is_ok());
            replies.push(reply);
        }
        assert_eq!(pool.stats().out(), 41);
        actor.kill();
        drop(running.await);
        drop(actor);
        for reply in replies {
            assert!(reply.await.is_err(), "a reply came from an actor that was killed");
        }
        // The mailbox is dropped by the actor's task, which the runtime may do after the join handle resolves.
        let returned = async {
            while pool.stats().out() > 0 {
                tokio::task::yield_now().await;
            }
        };
        let within = tokio::time::timeout(std::time::Duration::from_secs(20), returned).await;
        assert!(within.is_ok(), "{} leases are out", pool.stats().out());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn answers_come_through_pooled_slots() {
        let replies = Replies::new(8);
        let (actor, running) = Actor::spawn(None, Reader, ()).await.unwrap();
        for round in 0..200 {
            // Several wait at a time, and one leaves before its answer is there.
            let mut waiting = Vec::new();
            for number in 0..4 {
                let (sender, reply) = replies.channel().unwrap();
                assert!(actor.cast(Message::Answer(round * 4 + number, sender)).is_ok());
                waiting.push((number, reply));
            }
            drop(waiting.pop());
            for (number, reply) in waiting {
                assert_eq!(reply.await, Ok((round * 4 + number) * 2));
            }
        }
        actor.stop(None);
        running.await.unwrap();
        let stats = replies.stats();
        assert!(stats.created <= 8 && stats.out() == 0, "{stats:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_actor_killed_with_a_full_mailbox_leaves_no_reply_waiting() {
        let (pool, replies) = (bodies(), Replies::new(40));
        let (actor, running) = Actor::spawn(None, Reader, ()).await.unwrap();
        let (reached, holds) = tokio::sync::oneshot::channel();
        assert!(actor.cast(Message::Hold(pool.acquire_owned().unwrap(), reached)).is_ok());
        holds.await.unwrap();
        let mut waiting = Vec::new();
        for number in 0..40 {
            let (sender, reply) = replies.channel().unwrap();
            assert!(actor.cast(Message::Answer(number, sender)).is_ok());
            waiting.push(tokio::spawn(reply));
        }
        assert!(replies.channel().is_err(), "more than the bound");
        actor.kill();
        drop(running.await);
        drop(actor);
        for reply in waiting {
            let ended = tokio::time::timeout(std::time::Duration::from_secs(20), reply).await;
            assert_eq!(ended.expect("a reply waits for a dead actor").unwrap(), Err(Unanswered));
        }
        // The sender wakes before it returns, but after it has given the slot up: the receiver was the last.
        assert_eq!(replies.stats().out(), 0);
    }

    #[tokio::test]
    async fn an_answer_that_nobody_waits_for_comes_back_and_one_unread_is_dropped() {
        let replies = Replies::<Arc<()>>::new(2);
        let answer = Arc::new(());
        let (sender, reply) = replies.channel().unwrap();
        assert!(!sender.is_abandoned());
        drop(reply);
        assert!(sender.is_abandoned());
        assert!(sender.send(answer.clone()).is_err());
        let (sender, reply) = replies.channel().unwrap();
        sender.send(answer.clone()).unwrap();
        drop(reply);
        assert_eq!((Arc::strong_count(&answer), replies.stats().out()), (1, 0));
        // An end may outlive the pool.
        let (sender, reply) = replies.channel().unwrap();
        drop(replies);
        sender.send(answer).unwrap();
        assert!(reply.await.is_ok());
    }

    #[tokio::test]
    async fn a_task_killed_in_the_middle_returns_what_it_held() {
        let pool = bodies();
        let held = pool.acquire_owned().unwrap();
        let task = tokio::spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        assert_eq!(pool.stats().out(), 1);
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(pool.stats().out(), 0);
    }
}

mod rings {
    use super::*;
    use disruptor::{BusySpin, Producer, Sequence, build_single_producer};
    use std::sync::atomic::{AtomicU64, Ordering};
    use terrane_pool::PooledBuf;

    fn slices() -> BufPool {
        BufPool::new(BufPoolConfig { at_end: AtEnd::Panic, max_per_class: 512, ..BufPoolConfig::default() })
    }

    /// A ring's slot: its slice is allocated once, contiguous, and reused at each turn.
    struct Slot(PooledBuf);

    #[test]
    fn the_slots_of_a_disruptor_hold_pooled_slices() {
        let pool = slices();
        let sum = Arc::new(AtomicU64::new(0));
        let consumer = {
            let sum = sum.clone();
            move |slot: &Slot, _: Sequence, _: bool| {
                sum.fetch_add(slot.0.iter().map(|&byte| u64::from(byte)).sum(), Ordering::Relaxed);
            }
        };
        let mut producer = build_single_producer(64, || Slot(pool.take(1500).unwrap()), BusySpin)
            .handle_events_with(consumer)
            .build();
        for number in 0..5000_usize {
            producer.publish(|slot| {
                slot.0.clear();
                slot.0.extend_from_slice(&[1; 1500][..number % 1500]);
            });
        }
        drop(producer); // joins the consumer, and drops the slots
        let expected: usize = (0..5000).map(|number| number % 1500).sum();
        assert_eq!(sum.load(Ordering::Relaxed), expected as u64);
        let (_, stats) = pool.stats()[0];
        assert_eq!((stats.created, stats.out()), (64, 0));
    }

    #[test]
    fn an_rtrb_ring_carries_pooled_slices_to_another_thread_and_back() {
        let pool = slices();
        let (mut producer, mut consumer) = rtrb::RingBuffer::<PooledBuf>::new(32);
        let reading = std::thread::spawn(move || {
            let mut read = 0_usize;
            while !(consumer.is_abandoned() && consumer.is_empty()) {
                match consumer.pop() {
                    Ok(slice) => read += slice.len(),
                    Err(_) => std::thread::yield_now(),
                }
            }
            read
        });
        for number in 0..5000_usize {
            let mut slice = pool.take(1000).unwrap();
            slice.extend_from_slice(&[7; 1000][..number % 1000]);
            while let Err(rtrb::PushError::Full(back)) = producer.push(slice) {
                slice = back;
                std::thread::yield_now();
            }
        }
        drop(producer);
        assert_eq!(reading.join().unwrap(), (0..5000).map(|number| number % 1000).sum::<usize>());
        let (_, stats) = pool.stats()[0];
        assert_eq!(stats.out(), 0);
        assert!(stats.created <= 128, "{stats:?}");
    }

    #[test]
    fn a_ring_dropped_full_leaves_no_lease_out() {
        let pool = slices();
        let (mut producer, consumer) = rtrb::RingBuffer::<PooledBuf>::new(32);
        while producer.push(pool.take(100).unwrap()).is_ok() {}
        drop((producer, consumer));
        assert_eq!(pool.stats()[0].1.out(), 0);
    }
}

#[cfg(feature = "managed")]
mod managed {
    use super::*;
    use std::time::Duration;
    use terrane_pool::managed::WaitError;
    use terrane_pool::{Exhausted, Managed};

    fn managed() -> Managed<Body, Bodies> {
        Managed::new(Builder::new(Bodies).at_end(AtEnd::Panic), 2)
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_its_deadline_and_is_served_when_an_object_returns() {
        let pool = Arc::new(managed());
        let (first, _second) = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
        assert_eq!(pool.try_acquire().unwrap_err(), Exhausted { max: 2 });
        let waited = Duration::from_secs(3);
        assert_eq!(pool.acquire_within(waited).await.unwrap_err(), WaitError::TimedOut { waited });
        let waiting = {
            let pool = pool.clone();
            tokio::spawn(async move { pool.acquire_within(waited).await.map(|lease| lease.text.len()) })
        };
        tokio::task::yield_now().await;
        drop(first);
        assert_eq!(waiting.await.unwrap(), Ok(0));
        assert_eq!(pool.free(), 1);
    }

    #[tokio::test]
    async fn a_cancelled_wait_loses_no_permit() {
        let pool = Arc::new(managed());
        let held = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
        for _ in 0..50 {
            let waiting = {
                let pool = pool.clone();
                tokio::spawn(async move { pool.acquire().await.map(drop) })
            };
            tokio::task::yield_now().await;
            waiting.abort();
            drop(waiting.await);
        }
        drop(held);
        assert_eq!(pool.free(), 2);
        assert_eq!(pool.stats().out(), 0);
        pool.close();
        assert_eq!(pool.acquire().await.unwrap_err(), WaitError::Closed);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn every_permit_finds_an_object_whatever_thread_it_idles_on() {
        let pool = Arc::new(managed());
        let tasks: Vec<_> = (0..16)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    for _ in 0..200 {
                        let lease = pool.acquire().await.unwrap();
                        tokio::task::yield_now().await;
                        drop(lease);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(pool.free(), 2);
        assert!(pool.stats().created <= 2);
    }
}

mod collections {
    use terrane::Terrane;

    #[test]
    fn maps_and_arenas_stand_on_terrane() {
        let mut map = hashbrown::HashMap::<u64, u64, _, _>::with_hasher_in(
            hashbrown::DefaultHashBuilder::default(),
            Terrane,
        );
        map.extend((0..1000).map(|number| (number, number * number)));
        assert_eq!(map[&31], 961);

        let mut list = allocator_api2::vec::Vec::new_in(Terrane);
        list.extend(0..1000_u64);
        assert_eq!(list.iter().sum::<u64>(), 499_500);

        // The arena takes its chunks from the global allocator, and its collections from its chunks.
        let arena = bumpalo::Bump::new();
        let mut inside = hashbrown::HashMap::<u32, u32, _, &bumpalo::Bump>::with_hasher_in(
            hashbrown::DefaultHashBuilder::default(),
            &arena,
        );
        inside.extend((0..100).map(|number| (number, number + 1)));
        assert_eq!(inside.values().sum::<u32>(), 5050);
    }
}
