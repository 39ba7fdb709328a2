//! An asynchronous echo server and its clients on the loopback interface, under one tokio runtime.
//!
//! Invariant: every reply equals its request.

use std::future::Future;
use std::pin::Pin;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::gang::{Measured, Plan, gang};
use crate::probe::Quiet;

const CLIENTS: usize = 16;
const MESSAGE: usize = 200;

type Answer = Pin<Box<dyn Future<Output = std::io::Result<Vec<u8>>> + Send>>;

/// A handler as frameworks have them: a boxed future that owns its request and gives back an owned reply.
fn handle(request: Vec<u8>) -> Answer {
    Box::pin(async move { Ok(request.clone()) })
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let mut request = vec![0; MESSAGE];
        if stream.read_exact(&mut request).await.is_err() {
            return Ok(());
        }
        stream.write_all(&handle(request).await?).await?;
    }
}

async fn ask(mut stream: TcpStream, requests: usize, seed: usize) -> std::io::Result<usize> {
    stream.set_nodelay(true)?;
    for i in 0..requests {
        let message = vec![(seed + i) as u8; MESSAGE];
        stream.write_all(&message).await?;
        let mut reply = vec![0; MESSAGE];
        stream.read_exact(&mut reply).await?;
        assert!(reply == message, "the reply differs from the request");
    }
    Ok(requests)
}

async fn conversation(requests: usize) -> std::io::Result<u64> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(async move {
        for _ in 0..CLIENTS {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(serve(stream));
        }
        std::io::Result::Ok(())
    });
    let mut clients = Vec::new();
    for seed in 0..CLIENTS {
        let stream = TcpStream::connect(address).await?;
        clients.push(tokio::spawn(ask(stream, requests / CLIENTS, seed)));
    }
    server.await??;
    let mut total = 0;
    for client in clients {
        total += client.await??;
    }
    Ok(total as u64)
}

/// Sixteen clients, one runtime on one thread.
pub fn echo(plan: Plan) -> Measured {
    let requests = plan.count(16_000).max(CLIENTS);
    gang::<Quiet>(plan, |_, _, gate| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
        gate.start();
        match runtime.block_on(conversation(requests)) {
            Ok(ops) => gate.end(ops),
            Err(error) => panic!("no conversation over the loopback interface: {error}"),
        }
    })
}
