//! The contract of buffers, and of what carries them through other crates.
#![cfg(not(loom))]

use std::thread;
use terrane_pool::{AtEnd, BufPool, BufPoolConfig, Exhausted, PooledBuf, ReceiveSize};

fn pool() -> BufPool {
    BufPool::new(BufPoolConfig { max_per_class: 64, cache: 4, clamp: 256 << 10, at_end: AtEnd::Panic })
}

#[test]
fn a_buffer_has_the_room_asked_for_at_every_length() {
    let pool = pool();
    let lengths =
        (0..24).flat_map(|shift| [(1_usize << shift) - 1, 1 << shift, (1 << shift) + 1, 3 << shift]);
    for length in lengths {
        let mut buffer = pool.take(length).unwrap();
        assert!(buffer.capacity() >= length && buffer.is_empty());
        assert!(buffer.as_ptr().addr().is_multiple_of(64));
        let capacity = buffer.capacity();
        assert!(capacity <= (length.max(64)) * 2, "{capacity} bytes for {length}");
        for spare in buffer.spare() {
            spare.write(0xA5);
        }
        // SAFETY: all of it was just written.
        unsafe { buffer.advance(capacity) };
        assert!(buffer.iter().all(|&byte| byte == 0xA5));
    }
}

#[test]
fn buffers_that_are_out_never_overlap_and_keep_their_contents() {
    let pool = pool();
    let mut held: Vec<(u8, PooledBuf)> = Vec::new();
    for step in 0..4000_usize {
        let length = (step * 7919) % 5000 + 1;
        let mark = step as u8;
        match pool.take(length) {
            Ok(mut buffer) => {
                buffer.extend_from_slice(&vec![mark; length]);
                held.push((mark, buffer));
            }
            Err(Exhausted { max }) => assert_eq!(max, 64),
        }
        if held.len() > 100 {
            let (mark, buffer) = held.swap_remove(step * 31 % 100);
            assert!(buffer.iter().all(|&byte| byte == mark));
            if step % 2 == 0 {
                thread::spawn(move || drop(buffer)).join().unwrap();
            }
        }
    }
}

#[test]
fn a_buffer_above_the_clamp_is_freed_and_one_below_is_kept() {
    let pool = pool();
    drop(pool.take(1 << 20).unwrap());
    assert_eq!(pool.bytes(), 0);
    drop(pool.take(100_000).unwrap());
    assert_eq!(pool.bytes(), 128 << 10);
}

#[test]
#[should_panic(expected = "do not fit")]
fn writing_past_the_room_panics() {
    pool().take(64).unwrap().extend_from_slice(&[0; 65]);
}

#[test]
fn an_impossible_length_is_an_error() {
    assert_eq!(pool().take(usize::MAX).unwrap_err(), Exhausted { max: 0 });
}

#[test]
fn receive_size_grows_fast_and_shrinks_slowly_within_its_limits() {
    let mut size = ReceiveSize::new(512, 8192);
    let (mut grow, mut shrink) = (0, 0);
    while size.next() < 8192 {
        size.received(size.next());
        grow += 1;
    }
    size.received(8192);
    assert_eq!((size.next(), grow), (8192, 4));
    while size.next() > 512 {
        size.received(1);
        shrink += 1;
    }
    (0..100).for_each(|_| size.received(1));
    assert_eq!((size.next(), shrink), (512, 32));
}

#[cfg(feature = "bytes")]
mod with_bytes {
    use super::*;
    use bytes::{BufMut, Bytes, BytesMut};
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn a_frozen_buffer_returns_with_its_last_slice() {
        let pool = pool();
        let mut buffer = pool.take(1000).unwrap();
        buffer.put_u32(7);
        buffer.put_slice(b"payload");
        let bytes = buffer.freeze();
        let slice = bytes.slice(4..);
        drop(bytes);
        let out = || pool.stats().iter().map(|(_, stats)| stats.out()).sum::<u64>();
        assert_eq!((&slice[..], out()), (&b"payload"[..], 1));
        thread::spawn(move || drop(slice)).join().unwrap();
        assert_eq!(out(), 0);
    }

    #[test]
    fn a_held_chunk_holds_its_own_buffer_and_nothing_more() {
        // Small messages of which one in a hundred is kept: the kept ones pin what they were cut from.
        const MESSAGES: usize = 5000;
        let message = [9_u8; 100];
        let pool = pool();
        let mut kept = Vec::new();
        for number in 0..MESSAGES {
            let mut buffer = pool.take(message.len()).unwrap();
            buffer.put_slice(&message);
            let chunk = buffer.freeze();
            if number % 100 == 0 {
                kept.push(chunk);
            }
        }
        let pooled = pool.bytes();
        assert_eq!(kept.len(), 50);
        assert!(pooled <= 60 * 128, "{pooled} bytes for 50 chunks of 100");

        // The same with one `BytesMut` that is read into and split: each kept chunk pins 16 KiB.
        let mut source = BytesMut::with_capacity(16 << 10);
        let mut plain: Vec<Bytes> = Vec::new();
        let mut blocks = std::collections::BTreeSet::new();
        for number in 0..MESSAGES {
            if source.capacity() < message.len() {
                source.reserve(16 << 10);
            }
            source.put_slice(&message);
            let chunk = source.split().freeze();
            if number % 100 == 0 {
                blocks.insert(chunk.as_ptr().addr() >> 14);
                plain.push(chunk);
            }
        }
        assert!(blocks.len() * (16 << 10) > 10 * pooled as usize, "{} blocks of 16 KiB", blocks.len());
    }

    #[tokio::test]
    async fn raw_reads_into_pooled_buffers_are_flat_in_memory() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sender = tokio::spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            for _ in 0..200 {
                stream.write_all(&[3; 4096]).await.unwrap();
            }
        });
        let pool = pool();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut size = ReceiveSize::new(512, 16 << 10);
        let mut total = 0;
        loop {
            let mut buffer = pool.take(size.next()).unwrap();
            let room = buffer.capacity();
            let got = stream.read_buf(&mut buffer).await.unwrap();
            if got == 0 {
                break;
            }
            assert!(buffer.iter().all(|&byte| byte == 3));
            total += got;
            size.received(if got == room { size.next() } else { got });
        }
        sender.await.unwrap();
        assert_eq!(total, 200 * 4096);
        let made: u64 = pool.stats().iter().map(|(_, stats)| stats.created).sum();
        assert!(made <= 8, "{made} buffers made for one reader");
    }

    #[tokio::test]
    async fn hyper_serves_bodies_from_the_pool_and_gives_them_back() {
        const REQUESTS: usize = 300;
        let pool = std::sync::Arc::new(pool());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = {
            let pool = pool.clone();
            tokio::spawn(async move {
                let (stream, _) = listener.accept().await.unwrap();
                let service =
                    hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                        let pool = pool.clone();
                        async move {
                            let mut body = pool.take(8000).unwrap();
                            let path = request.uri().path().as_bytes();
                            while body.len() + path.len() <= 8000 {
                                body.put_slice(path);
                            }
                            Ok::<_, std::convert::Infallible>(hyper::Response::new(Full::new(body.freeze())))
                        }
                    });
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await
                    .unwrap();
            })
        };
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut client, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driving = tokio::spawn(connection);
        for number in 0..REQUESTS {
            let path = format!("/{number:04}-");
            let request = hyper::Request::get(&path).body(Full::<Bytes>::default()).unwrap();
            let body =
                client.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body.len(), 8000 / 6 * 6);
            assert!(body.chunks(6).all(|chunk| chunk == path.as_bytes()));
        }
        drop(client);
        driving.await.unwrap().unwrap();
        serving.await.unwrap();
        let stats = pool.stats();
        let (made, out) =
            stats.iter().fold((0, 0), |(made, out), (_, stats)| (made + stats.created, out + stats.out()));
        assert_eq!(out, 0);
        assert!(made <= 4, "{made} buffers made for {REQUESTS} bodies");
    }
}

#[test]
fn receive_size_has_sane_limits_whatever_it_is_told() {
    let mut none = ReceiveSize::new(0, 64);
    (0..10).for_each(|_| none.received(none.next()));
    assert_eq!(none.next(), 64);
    let mut crossed = ReceiveSize::new(100, 10);
    crossed.received(100);
    assert_eq!(crossed.next(), 100);
    let mut endless = ReceiveSize::new(1 << 62, usize::MAX);
    (0..3).for_each(|_| endless.received(usize::MAX));
    assert_eq!(endless.next(), usize::MAX);
}
