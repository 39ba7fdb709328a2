//! redis-server under a load from redis-benchmark, on the loopback address only.

use super::stage::Stage;
use super::{Error, Program};
use crate::test::Wanted;
use std::net::TcpListener;
use std::time::Duration;

pub const PROGRAMS: &[Program] = &[Program {
    name: "program-redis",
    wants: &[
        Wanted::Program("redis-server", "redis-server"),
        Wanted::Program("redis-benchmark", "redis-tools"),
        Wanted::Program("redis-cli", "redis-tools"),
    ],
    play: redis,
}];

/// 100 000 requests each of SET, GET, LPUSH and more, none of which may fail; then a known data set and its digest.
fn redis(stage: &Stage) -> Result<Vec<u8>, Error> {
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_err(|cause| Error::io("no free port on 127.0.0.1", cause))?
        .port()
        .to_string();
    let mut command = stage.command("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"]);
    command.args(["--enable-debug-command", "yes"]);
    let mut server = stage.start(&mut command)?;
    let cli = |args: &[&str]| {
        let mut command = stage.command("redis-cli");
        command.args(["-h", "127.0.0.1", "-p", &port]).args(args);
        // Only the server is under test; the client runs on the system's allocator.
        command.env_remove("LD_PRELOAD").env_remove("TERRANE_REPORT");
        command
    };
    let mut is_up = false;
    for _ in 0..100 {
        if !server.is_running() {
            return Err(Error("redis-server ended at once".into()));
        }
        if stage.run(&mut cli(&["ping"]), None, 5)?.stdout == b"PONG\n" {
            is_up = true;
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    if !is_up {
        return Err(Error("redis-server did not answer within 10 s".into()));
    }

    let mut load = stage.command("redis-benchmark");
    load.args(["-h", "127.0.0.1", "-p", &port, "-n", "100000", "-c", "50", "-d", "100", "-r", "10000", "-q"]);
    load.args(["-t", "set,get,lpush"]).env_remove("LD_PRELOAD").env_remove("TERRANE_REPORT");
    let printed = stage.run(&mut load, None, 180)?;
    let said = String::from_utf8_lossy(&printed.stdout).replace('\r', "\n");
    let errors = String::from_utf8_lossy(&printed.stderr).to_ascii_lowercase().contains("error")
        || said.to_ascii_lowercase().contains("error");
    let finished = ["SET", "GET", "LPUSH"].iter().all(|name| {
        said.lines().any(|line| line.starts_with(&format!("{name}:")) && line.contains("requests per second"))
    });
    if !printed.ended.success() || errors || !finished {
        return Err(Error(format!("redis-benchmark: {}; it printed {said:?}", printed.ended.describe())));
    }
    let mut transcript = stage.say(&mut cli(&["llen", "mylist"]), 10)?;
    if transcript != b"100000\n" {
        return Err(Error(format!(
            "{} of 100000 list items arrived",
            String::from_utf8_lossy(&transcript).trim()
        )));
    }
    transcript.extend(stage.say(&mut cli(&["flushall"]), 60)?);
    let fill = "for i = 1, 50000 do redis.call('set', 'key' .. i, string.rep('v' .. i, i % 50)); \
                redis.call('hset', 'hash' .. i % 100, 'field' .. i, i); redis.call('zadd', 'zset', i % 977, i); \
                redis.call('append', 'text' .. i % 10, i) end \
                for i = 1, 50000, 3 do redis.call('del', 'key' .. i) end return redis.call('dbsize')";
    transcript.extend(stage.say(&mut cli(&["eval", fill, "0"]), 120)?);
    transcript.extend(stage.say(&mut cli(&["debug", "digest"]), 60)?);
    transcript.extend(stage.say(&mut cli(&["info", "errorstats"]), 10)?);

    // The server closes the connection instead of answering, which the client counts as an error.
    stage.run(&mut cli(&["shutdown", "nosave"]), None, 30)?;
    let ended = server.wait(Duration::from_secs(30))?;
    if !ended.success() {
        return Err(Error(format!("redis-server ended with {}", ended.describe())));
    }
    Ok(transcript)
}
