//! Pools inside real frameworks, before and after: `cargo run --release -p terrane-pool --example frameworks`.
//!
//! Each row does the same work twice, with plain allocation and with pooled objects, and prints the requests, allocations per
//! request, and the most and the remaining bytes of the heap. The global allocator counts; its figures are exact. A warm-up of a
//! tenth of the requests comes first. Terrane's own memory (buffers, `Allocator`) is not the global allocator's: it is added from
//! the pool's own count.

mod support;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use disruptor::{BusySpin, Producer, Sequence, build_single_producer};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use std::convert::Infallible;
use std::hint::black_box;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;
use support::{Counting, Meter, row};
use terrane_pool::{
    AtEnd, BufPool, BufPoolConfig, Builder, Managed, PooledBuf, Replies, ReplySender, Verdict, by,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[global_allocator]
static COUNTING: Counting = Counting;

fn buffers() -> Arc<BufPool> {
    Arc::new(BufPool::new(BufPoolConfig { at_end: AtEnd::Panic, ..BufPoolConfig::default() }))
}

/// Serves `requests` bodies of 8000 bytes over one connection, each made by `body`.
async fn hyper_bodies<D: Buf + Send + 'static>(
    requests: usize,
    meter: Meter,
    body: impl Fn() -> D + Clone + Send + 'static,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(move |_: hyper::Request<hyper::body::Incoming>| {
            let body = body.clone();
            async move { Ok::<_, Infallible>(hyper::Response::new(Full::new(body()))) }
        });
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await
            .unwrap();
    });
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driving = tokio::spawn(connection);
    for number in 0..requests + requests / 10 {
        meter.begin_at(number, requests / 10);
        let request = hyper::Request::get("/").body(Full::<Bytes>::default()).unwrap();
        let mut answer = client.send_request(request).await.unwrap().into_body();
        let mut got = 0;
        while let Some(frame) = answer.frame().await {
            got += frame.unwrap().into_data().map_or(0, |data| data.len());
        }
        assert_eq!(got, 8000);
    }
    meter.end();
    drop(client);
    driving.await.unwrap().unwrap();
    serving.await.unwrap();
}

/// Reads `requests` messages of 100 bytes from a socket, of which every hundredth is kept. `read` makes a chunk of what comes next.
async fn raw_reads<F: AsyncFnMut(&mut TcpStream) -> Bytes>(requests: usize, meter: Meter, mut read: F) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sending = tokio::spawn(async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        for _ in 0..requests + requests / 10 {
            stream.write_all(&[3; 100]).await.unwrap();
        }
    });
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut kept = Vec::with_capacity(requests / 50);
    for number in 0..requests + requests / 10 {
        meter.begin_at(number, requests / 10);
        let chunk = read(&mut stream).await;
        assert!(chunk.len() == 100 && chunk.iter().all(|&byte| byte == 3));
        if number % 100 == 0 {
            kept.push(chunk);
        }
    }
    meter.end();
    sending.await.unwrap();
    drop(kept);
}

/// Where an actor's answer goes.
trait Port<B>: Send + 'static {
    fn answer(self, body: B);
}

impl<B: Send + 'static> Port<B> for RpcReplyPort<B> {
    fn answer(self, body: B) {
        drop(self.send(body));
    }
}

impl<B: Send + 'static> Port<B> for ReplySender<B> {
    fn answer(self, body: B) {
        drop(self.send(body));
    }
}

/// An actor that answers with the body that it got.
struct Echo<B, P>(std::marker::PhantomData<fn(B, P)>);
struct Ask<B, P>(B, P);

impl<B: Send + 'static, P: Port<B>> Actor for Echo<B, P> {
    type Msg = Ask<B, P>;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Ask<B, P>>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Ask<B, P>>,
        Ask(body, reply): Ask<B, P>,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        reply.answer(body);
        Ok(())
    }
}

/// Asks with bodies that `body` makes, for answers that come through the ends that `channel` makes.
async fn ask<B, P: Port<B>, A: Future<Output = Option<B>>>(
    requests: usize,
    meter: Meter,
    body: impl Fn() -> B,
    channel: impl Fn() -> (P, A),
) where
    B: Send + 'static,
{
    let (actor, running) = Actor::spawn(None, Echo::<B, P>(std::marker::PhantomData), ()).await.unwrap();
    for number in 0..requests + requests / 10 {
        meter.begin_at(number, requests / 10);
        let (port, answer) = channel();
        assert!(actor.cast(Ask(body(), port)).is_ok());
        drop(black_box(answer.await.unwrap()));
    }
    meter.end();
    actor.stop(None);
    running.await.unwrap();
}

/// ractor's own way to answer: what its `call!` makes.
fn rpc<B: Send + 'static>() -> (RpcReplyPort<B>, impl Future<Output = Option<B>>) {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    (sender.into(), async { receiver.await.ok() })
}

/// Publishes slices of 1000 bytes through a ring of 64 slots.
fn disrupt<E: Send + Sync + 'static>(
    requests: usize,
    meter: Meter,
    slot: impl FnMut() -> E,
    mut fill: impl FnMut(&mut E),
    read: impl Fn(&E) -> usize + Send + 'static,
) {
    let mut producer = build_single_producer(64, slot, BusySpin)
        .handle_events_with(move |slot: &E, _: Sequence, _: bool| {
            black_box(read(slot));
        })
        .build();
    for number in 0..requests + requests / 10 {
        meter.begin_at(number, requests / 10);
        producer.publish(&mut fill);
        if number % 16 == 0 {
            std::thread::yield_now();
        }
    }
    meter.end();
}

/// Sends slices of 1000 bytes through a ring of 32 to another thread, which drops them.
fn ring<B: AsRef<[u8]> + Send>(requests: usize, meter: Meter, make: impl Fn() -> B) {
    let (mut producer, mut consumer) = rtrb::RingBuffer::<B>::new(32);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while !(consumer.is_abandoned() && consumer.is_empty()) {
                match consumer.pop() {
                    Ok(slice) => assert_eq!(slice.as_ref().len(), 1000),
                    Err(_) => std::thread::yield_now(),
                }
            }
        });
        for number in 0..requests + requests / 10 {
            meter.begin_at(number, requests / 10);
            let mut slice = make();
            while let Err(rtrb::PushError::Full(back)) = producer.push(slice) {
                slice = back;
                std::thread::yield_now();
            }
        }
        meter.end();
        drop(producer);
    });
}

/// A connection as a database client has one: buffers that are dear to make.
struct Connection {
    sent: Vec<u8>,
    received: Vec<u8>,
}

impl Connection {
    fn open() -> Self {
        Self { sent: Vec::with_capacity(8 << 10), received: Vec::with_capacity(16 << 10) }
    }

    async fn ask(&mut self) {
        self.sent.extend_from_slice(b"select 1");
        tokio::task::yield_now().await;
        self.received.extend_from_slice(black_box(&self.sent));
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    support::heading();

    row("hyper: response bodies of 8000 bytes", 2000, |pooled, requests, meter| {
        let pool = buffers();
        let ours = pool.clone();
        runtime.block_on(async {
            if pooled {
                let body = move || {
                    let mut body = ours.take(8000).unwrap();
                    body.put_bytes(b'x', 8000);
                    // A buffer that is read to its end, and returns then: `freeze` would cost an allocation.
                    Cursor::new(body)
                };
                hyper_bodies(requests, meter, body).await;
            } else {
                hyper_bodies(requests, meter, || Bytes::from(vec![b'x'; 8000])).await;
            }
        });
        pool.bytes()
    });

    row("tokio: raw reads, one chunk in 100 kept", 20_000, |pooled, requests, meter| {
        let pool = buffers();
        runtime.block_on(async {
            if pooled {
                raw_reads(requests, meter, async |stream| {
                    let mut buffer = pool.take(100).unwrap();
                    while buffer.len() < 100 {
                        let room = 100 - buffer.len();
                        stream.read_buf(&mut (&mut buffer).limit(room)).await.unwrap();
                    }
                    buffer.freeze()
                })
                .await;
            } else {
                // As tutorials have it: one buffer that is read into, and split.
                let mut buffer = BytesMut::with_capacity(16 << 10);
                raw_reads(requests, meter, async |stream| {
                    while buffer.len() < 100 {
                        if buffer.capacity() - buffer.len() < 100 {
                            buffer.reserve(16 << 10);
                        }
                        stream.read_buf(&mut buffer).await.unwrap();
                    }
                    buffer.split_to(100).freeze()
                })
                .await;
            }
        });
        pool.bytes()
    });

    for slots in [false, true] {
        let name =
            if slots { "ractor: the same, and reply slots" } else { "ractor: calls with a body of 4 KiB" };
        row(name, 5000, |pooled, requests, meter| {
            runtime.block_on(async {
                if !pooled {
                    return ask(requests, meter, || vec![0_u8; 4096], rpc).await;
                }
                let recycle = by(
                    || vec![0_u8; 4096],
                    |body: &mut Vec<u8>| {
                        body.fill(0);
                        Verdict::Keep
                    },
                );
                let pool = Builder::new(recycle).at_end(AtEnd::Panic).build();
                let body = || pool.acquire_owned().unwrap();
                let replies = Replies::new(100);
                if slots {
                    let channel = || {
                        let (sender, reply) = replies.channel().unwrap();
                        (sender, async { reply.await.ok() })
                    };
                    ask(requests, meter, body, channel).await;
                } else {
                    ask(requests, meter, body, rpc).await;
                }
            });
            0
        });
    }

    row("disruptor: events with 1000 bytes", 20_000, |pooled, requests, meter| {
        let pool = buffers();
        if pooled {
            let fill = |slot: &mut PooledBuf| {
                slot.clear();
                slot.put_bytes(1, 1000);
            };
            disrupt(requests, meter, || pool.take(1000).unwrap(), fill, |slot| slot.len());
        } else {
            disrupt(requests, meter, Vec::new, |slot| *slot = vec![1_u8; 1000], Vec::len);
        }
        pool.bytes()
    });

    row("rtrb: slices of 1000 bytes", 20_000, |pooled, requests, meter| {
        let pool = buffers();
        if pooled {
            ring(requests, meter, || {
                let mut slice = pool.take(1000).unwrap();
                slice.put_bytes(1, 1000);
                slice
            });
        } else {
            ring(requests, meter, || vec![1_u8; 1000]);
        }
        pool.bytes()
    });

    row("managed: connections for 32 tasks", 6400, |pooled, requests, meter| {
        let recycle = by(Connection::open, |connection: &mut Connection| {
            connection.sent.clear();
            connection.received.clear();
            Verdict::Keep
        });
        let pool = Arc::new(Managed::new(Builder::new(recycle).at_end(AtEnd::Panic), 4));
        runtime.block_on(async {
            for round in 0..requests / 32 + requests / 320 {
                meter.begin_at(round, requests / 320);
                let tasks: Vec<_> = (0..32)
                    .map(|_| {
                        let pool = pool.clone();
                        tokio::spawn(async move {
                            if pooled {
                                pool.acquire_within(Duration::from_secs(10)).await.unwrap().ask().await;
                            } else {
                                Connection::open().ask().await;
                            }
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await.unwrap();
                }
            }
        });
        meter.end();
        0
    });

    row("Vec through Allocator, 1 KiB grown", 20_000, |on_terrane, requests, meter| {
        for number in 0..requests + requests / 10 {
            meter.begin_at(number, requests / 10);
            if on_terrane {
                let mut list = allocator_api2::vec::Vec::new_in(terrane::Terrane);
                list.extend(0..128_u64);
                black_box(&list);
            } else {
                let mut list = allocator_api2::vec::Vec::new();
                list.extend(0..128_u64);
                black_box(&list);
            }
        }
        meter.end();
        0
    });

    row("hashbrown through Allocator, 100 entries", 5000, |on_terrane, requests, meter| {
        let hasher = hashbrown::DefaultHashBuilder::default();
        for number in 0..requests + requests / 10 {
            meter.begin_at(number, requests / 10);
            if on_terrane {
                let mut map =
                    hashbrown::HashMap::<u64, u64, _, _>::with_hasher_in(hasher.clone(), terrane::Terrane);
                map.extend((0..100).map(|key| (key, key)));
                black_box(&map);
            } else {
                let mut map = hashbrown::HashMap::<u64, u64, _>::with_hasher(hasher.clone());
                map.extend((0..100).map(|key| (key, key)));
                black_box(&map);
            }
        }
        meter.end();
        0
    });

    row("bumpalo: arenas from a pool, 64 boxes each", 5000, |pooled, requests, meter| {
        let recycle = by(
            || bumpalo::Bump::with_capacity(8 << 10),
            |arena: &mut bumpalo::Bump| {
                arena.reset();
                Verdict::Keep
            },
        );
        let pool = Builder::new(recycle).at_end(AtEnd::Panic).build();
        let fill = |arena: &bumpalo::Bump| {
            for number in 0..64_u64 {
                black_box(arena.alloc([number; 8]));
            }
        };
        for number in 0..requests + requests / 10 {
            meter.begin_at(number, requests / 10);
            if pooled {
                fill(&pool.acquire().unwrap());
            } else {
                fill(&bumpalo::Bump::new());
            }
        }
        meter.end();
        0
    });
}
