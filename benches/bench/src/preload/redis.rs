//! A redis server under a preloaded library, and a load on it over the loopback interface.
//!
//! Invariant: the server listens on a port of its own, writes nothing to disk, and is gone when the run is over.

use std::ffi::OsStr;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Ends the server when the run is over, however it ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Peak resident bytes of a running process.
fn peak_of(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kb| kb * 1024)
}

/// Seconds of the load and peak memory of the server.
pub fn run(library: &OsStr) -> Result<(f64, u64), String> {
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_err(|error| format!("no free port: {error}"))?
        .port()
        .to_string();
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if !library.is_empty() {
        command.env("LD_PRELOAD", library);
    }
    let server = Server(command.spawn().map_err(|error| format!("redis-server: {error}"))?);
    let start = Instant::now();
    while TcpStream::connect(format!("127.0.0.1:{port}")).is_err() {
        if start.elapsed() > Duration::from_secs(10) {
            return Err("the server does not answer".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut load = Command::new("redis-benchmark");
    load.args([
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "-n",
        "200000",
        "-r",
        "100000",
        "-d",
        "200",
        "-P",
        "16",
        "-q",
    ]);
    load.args(["-t", "set,get,lpush,lpop,sadd,hset"]).stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let status = load.stderr(Stdio::null()).status().map_err(|error| format!("redis-benchmark: {error}"))?;
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        return Err(format!("the load ended with {status}"));
    }
    let peak = peak_of(server.0.id()).ok_or("the server was gone when the load ended")?;
    Ok((seconds, peak))
}
