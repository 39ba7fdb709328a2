//! What a pair on a thread's own stream writes is nobody else's: no cache line that it writes is touched by a pair of another
//! thread on another stream. So pairs of different streams do not slow each other down, however many there are.
//!
//! Two threads, one after the other, run pairs on their own streams under a tool that prints every access to memory
//! (valgrind's lackey). The lines that the first one writes while it is marked as running are compared with those that the
//! second one touches.
#![cfg(all(target_os = "linux", not(loom)))]

use std::collections::{BTreeSet, HashSet};
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use terrane_fit::Tlsf;
use terrane_gpu::adaptors::Statistics;
use terrane_gpu::{
    ChunkConfig, Device, DevicePool, FixedConfig, FixedPool, Locked, Sim, SimConfig, SimDevice,
    SizeClassConfig, SizeClassPool, Stream, VariablePool, VmmConfig,
};

/// Bytes of a line, with the neighbour that processors fetch along with it.
const LINE: u64 = 128;
const PAIRS: u32 = 50;

const KINDS: [&str; 7] =
    ["fixed", "fixed, locked", "variable", "mapped", "size classes", "statistics", "exact peak"];

/// Written to say whose pairs follow: two threads for each kind of pool, and nobody.
static MARKS: [AtomicU64; 2 * KINDS.len() + 1] = [const { AtomicU64::new(0) }; 2 * KINDS.len() + 1];
const NOBODY: usize = 2 * KINDS.len();

fn pairs(pool: &dyn DevicePool, stream: Stream, phase: usize) {
    let pair = || {
        let block = pool.allocate(black_box(4096), 256, stream).unwrap();
        // SAFETY: no work uses the block.
        unsafe { pool.deallocate(block, stream, &[]) }
    };
    (0..10).for_each(|_| pair());
    MARKS[phase].store(1, Ordering::SeqCst);
    (0..PAIRS).for_each(|_| pair());
    MARKS[NOBODY].store(1, Ordering::SeqCst);
}

fn pool(kind: &str, device: &Arc<SimDevice>) -> Arc<dyn DevicePool> {
    let engine = || Tlsf::with_granule(256);
    let fixed = FixedConfig { blocks_per_chunk: 64, ..FixedConfig::new(4096) };
    let chunks = || VariablePool::on(device.clone(), ChunkConfig::default(), engine);
    match kind {
        "fixed" => Arc::new(FixedPool::new(device.clone(), fixed).unwrap()),
        "fixed, locked" => Arc::new(FixedPool::<_, Locked>::with_lists(device.clone(), fixed).unwrap()),
        "variable" => Arc::new(chunks()),
        "mapped" => Arc::new(VariablePool::mapped_on(device.clone(), VmmConfig::default(), engine).unwrap()),
        "size classes" => Arc::new(SizeClassPool::new(chunks(), device.clone(), SizeClassConfig::default())),
        "statistics" => Arc::new(Statistics::new(chunks())),
        _ => Arc::new(Statistics::exact(chunks())),
    }
}

/// What runs under the tool.
#[test]
fn child_runs_pairs() {
    if std::env::var_os("SHARING_CHILD").is_none() {
        return;
    }
    println!("marks {}", MARKS.iter().map(|m| format!("{:x} ", m.as_ptr() as usize)).collect::<String>());
    let sim = Sim::with(SimConfig { watch_blocks: false, ..SimConfig::default() });
    let device = sim.device(0);
    for (number, kind) in KINDS.iter().enumerate() {
        let pool = pool(kind, &device);
        let streams = [device.stream_create().unwrap(), device.stream_create().unwrap()];
        // Both threads live as long as the other, so that neither gets the other's stack or records.
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            let (pool, barrier, [a, b]) = (&*pool, &barrier, streams);
            scope.spawn(move || {
                pairs(pool, a, 2 * number);
                barrier.wait();
                barrier.wait();
            });
            scope.spawn(move || {
                barrier.wait();
                pairs(pool, b, 2 * number + 1);
                barrier.wait();
            });
        });
    }
}

/// What the trace says of one kind of pool.
#[derive(Default)]
struct Seen {
    /// Lines that the first thread's pairs wrote.
    written: HashSet<u64>,
    /// Those of them that the second's touched.
    shared: BTreeSet<u64>,
    accesses: [u32; 2],
    /// Of the second thread's pairs.
    instructions: u32,
}

/// `what address,length`, if the line is an access: the address, the length, and whether it writes.
fn access(line: &str) -> Option<(u64, u64, bool)> {
    let mut words = line.split_whitespace();
    let writes = match words.next()? {
        "L" => false,
        "S" | "M" => true,
        _ => return None,
    };
    let (address, len) = words.next()?.split_once(',')?;
    Some((u64::from_str_radix(address, 16).ok()?, len.parse().ok()?, writes))
}

fn trace() -> Vec<Seen> {
    let mut child = Command::new("valgrind")
        .args(["--tool=lackey", "--trace-mem=yes", "--log-fd=1"])
        .arg(std::env::current_exe().unwrap())
        .args(["child_runs_pairs", "--exact", "--nocapture", "--test-threads=1"])
        .env("SHARING_CHILD", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut seen: Vec<Seen> = KINDS.iter().map(|_| Seen::default()).collect();
    let (mut marks, mut phase) = (Vec::new(), NOBODY);
    for line in BufReader::new(child.stdout.take().unwrap()).split(b'\n') {
        let line = line.unwrap();
        let Ok(text) = core::str::from_utf8(&line) else { continue };
        let Some((address, len, writes)) = access(text) else {
            if text.starts_with("I ") {
                if let Some(seen) = seen.get_mut(phase / 2).filter(|_| phase % 2 == 1) {
                    seen.instructions += 1;
                }
            } else if let Some(at) = text.find("marks ") {
                let addresses = text[at + 6..].split_whitespace();
                marks = addresses.map(|m| u64::from_str_radix(m, 16).unwrap()).collect();
            }
            continue;
        };
        if let Some(mark) = marks.iter().position(|&mark| writes && mark == address) {
            phase = mark;
            continue;
        }
        let Some(seen) = seen.get_mut(phase / 2) else { continue };
        seen.accesses[phase % 2] += 1;
        for line in address / LINE..=(address + len - 1) / LINE {
            if phase.is_multiple_of(2) && writes {
                seen.written.insert(line);
            } else if phase % 2 == 1 && seen.written.contains(&line) {
                seen.shared.insert(line * LINE);
            }
        }
    }
    assert!(child.wait().unwrap().success());
    seen
}

#[test]
fn a_pair_on_a_stream_of_one_s_own_writes_no_line_that_another_s_touches() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: there is no valgrind");
        return;
    }
    // The C library's heap may put the arrays of two threads side by side in one run; what the pools share, they share in each.
    for run in 1.. {
        let mut wrong = Vec::new();
        for (kind, Seen { written, shared, accesses, instructions }) in KINDS.iter().zip(trace()) {
            println!(
                "{kind}: {} instructions a pair, {} lines written, {} of them shared",
                instructions / PAIRS,
                written.len(),
                shared.len()
            );
            assert!(accesses.iter().all(|&count| count > PAIRS * 10), "{kind}: {accesses:?} accesses");
            // An exact peak takes a line that all threads write: the trace must show that one.
            if shared.is_empty() == (*kind == "exact peak") {
                wrong.push(format!("{kind}: {shared:x?}"));
            }
        }
        if wrong.is_empty() {
            return;
        }
        assert!(run < 3, "in each of {run} runs, in the last {wrong:?}");
    }
}
