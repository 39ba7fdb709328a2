//! A long run of many threads on Terrane, which checks contents as it goes and the allocator's own books at intervals.
//!
//! ```text
//!   lanes    each a row of short-lived threads: blocks of mixed lengths, kept, resized, handed to others through tables, freed
//!            by whoever takes them out; now and then `collect`, `tick`, `purge` and `verify`
//!   main     forks (the child frees what its parent's threads had, checks itself, and ends), and at intervals stops all lanes
//!            and verifies everything: `verify_quiet`
//! ```
//!
//! `cargo run --release -p terrane --example soak -- --seconds 60 --threads 8`. It ends with its figures and with 0, or with 1
//! and what was wrong. With `--plant` a freed block is written to, which must be found.

use std::alloc::{GlobalAlloc, Layout};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[global_allocator]
static GLOBAL: terrane::Terrane = terrane::Terrane;

/// Blocks that a thread keeps to itself.
const KEPT: usize = 300;
/// Operations of one thread's life, at most.
const LIFE: u64 = 60_000;
/// Slots through which threads hand each other small blocks, and long ones.
const SHARED: usize = 4096;
const SHARED_LONG: usize = 24;
/// Blocks from here on are long.
const LONG: usize = 64 << 10;
/// Bytes checked at each end of a block; all of a shorter one.
const ENDS: usize = 512;

static SMALL_TABLE: [AtomicPtr<Head>; SHARED] = [const { AtomicPtr::new(std::ptr::null_mut()) }; SHARED];
static LONG_TABLE: [AtomicPtr<Head>; SHARED_LONG] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; SHARED_LONG];

/// What lies at the start of every block.
#[repr(C)]
struct Head {
    bytes: usize,
    align: usize,
    seed: u64,
    /// The thread that allocated it.
    from: u64,
}

/// What all threads counted.
#[derive(Default)]
struct Sums {
    operations: AtomicU64,
    from_others: AtomicU64,
    threads: AtomicU64,
    verifications: AtomicU64,
    looked_at: AtomicU64,
}

static SUMS: Sums = Sums {
    operations: AtomicU64::new(0),
    from_others: AtomicU64::new(0),
    threads: AtomicU64::new(0),
    verifications: AtomicU64::new(0),
    looked_at: AtomicU64::new(0),
};

static STOP: AtomicBool = AtomicBool::new(false);
/// Whether threads are to wait, and how many do.
static PAUSE: AtomicBool = AtomicBool::new(false);
static WAITING: AtomicUsize = AtomicUsize::new(0);

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // Marsaglia's xorshift (2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }

    fn bytes(&mut self) -> usize {
        size_of::<Head>()
            + match self.below(1000) {
                0 => self.below(12 << 20),
                1..10 => self.below(1 << 20),
                10..60 => self.below(64 << 10),
                60..300 => self.below(4 << 10),
                _ => self.below(300),
            }
    }
}

/// Ends the run: something that must hold does not.
fn wrong(what: std::fmt::Arguments<'_>) -> ! {
    eprintln!("soak: WRONG: {what}");
    std::process::abort();
}

fn checked(head: *mut Head) -> impl Iterator<Item = usize> {
    // SAFETY: callers name live blocks.
    let bytes = unsafe { (*head).bytes };
    let begin = size_of::<Head>();
    (begin..bytes.min(begin + ENDS)).chain(bytes.saturating_sub(ENDS).max(begin + ENDS)..bytes)
}

fn layout(head: *mut Head) -> Layout {
    // SAFETY: callers name live blocks.
    unsafe { Layout::from_size_align((*head).bytes, (*head).align).expect("written by `fill`") }
}

fn fill(head: *mut Head, bytes: usize, align: usize, seed: u64, from: u64) {
    // SAFETY: the block has `bytes` bytes, a head at least, and is the caller's.
    unsafe {
        head.write(Head { bytes, align, seed, from });
        for at in checked(head) {
            head.cast::<u8>().add(at).write((seed as usize).wrapping_add(at) as u8);
        }
    }
}

/// Looks whether the first `upto` bytes of a block are those that were written.
fn check(head: *mut Head, upto: usize) {
    // SAFETY: the block is the caller's.
    unsafe {
        let seed = (*head).seed as usize;
        for at in checked(head).filter(|&at| at < upto) {
            let found = head.cast::<u8>().add(at).read();
            if found != seed.wrapping_add(at) as u8 {
                wrong(format_args!("byte {at} of {} at {head:p} is {found:#x}", (*head).bytes));
            }
        }
    }
}

fn allocate(random: &mut Random, me: u64) -> *mut Head {
    let bytes = random.bytes();
    let align = if random.below(20) == 0 { 8 << random.below(9) } else { 8 };
    let layout = Layout::from_size_align(bytes, align).expect("a small power of two");
    let zeroed = random.below(5) == 0;
    // SAFETY: the length is not 0.
    let block = unsafe { if zeroed { GLOBAL.alloc_zeroed(layout) } else { GLOBAL.alloc(layout) } };
    if block.is_null() || !block.addr().is_multiple_of(align) {
        wrong(format_args!("{bytes} bytes at {align}: {block:p}"));
    }
    if zeroed {
        let dirty = (0..bytes.min(ENDS)).chain(bytes.saturating_sub(ENDS)..bytes).find(|&at| {
            // SAFETY: inside the block.
            unsafe { block.add(at).read() != 0 }
        });
        if let Some(at) = dirty {
            wrong(format_args!("byte {at} of {bytes} zeroed at {block:p}"));
        }
    }
    fill(block.cast(), bytes, align, random.next(), me);
    block.cast()
}

fn release(head: *mut Head, me: u64) {
    // SAFETY: the block is the caller's, and freed once.
    unsafe {
        check(head, usize::MAX);
        if (*head).from != me {
            SUMS.from_others.fetch_add(1, Ordering::Relaxed);
        }
        GLOBAL.dealloc(head.cast(), layout(head));
    }
}

fn resize(head: *mut Head, random: &mut Random, me: u64) -> *mut Head {
    let (old, bytes) = (layout(head), random.bytes());
    check(head, usize::MAX);
    // SAFETY: the block is the caller's, and the length is not 0.
    let moved: *mut Head = unsafe { GLOBAL.realloc(head.cast(), old, bytes) }.cast();
    if moved.is_null() {
        wrong(format_args!("{} bytes to {bytes}", old.size()));
    }
    check(moved, bytes.min(old.size()));
    fill(moved, bytes, old.align(), random.next(), me);
    moved
}

fn verify() {
    match terrane::verify() {
        Ok(report) => {
            SUMS.verifications.fetch_add(1, Ordering::Relaxed);
            SUMS.looked_at.fetch_add(report.looked_at(), Ordering::Relaxed);
        }
        Err(error) => wrong(format_args!("{error}")),
    }
}

/// Waits while main looks at everything.
fn gate() {
    if PAUSE.load(Ordering::Acquire) {
        WAITING.fetch_add(1, Ordering::AcqRel);
        while PAUSE.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// One thread's life.
fn live(me: u64) {
    let mut random = Random(me.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut kept = [std::ptr::null_mut::<Head>(); KEPT];
    let life = random.next() % LIFE;
    let mut operations = 0;
    while operations < life && !STOP.load(Ordering::Relaxed) {
        operations += 1;
        let at = random.below(KEPT);
        match random.below(10) {
            0 if !kept[at].is_null() => kept[at] = resize(kept[at], &mut random, me),
            0..5 => {
                let fresh = allocate(&mut random, me);
                let old = std::mem::replace(&mut kept[at], fresh);
                if !old.is_null() {
                    release(old, me);
                }
            }
            5..7 => {
                let old = std::mem::replace(&mut kept[at], std::ptr::null_mut());
                if !old.is_null() {
                    release(old, me);
                }
            }
            _ => {
                let fresh = allocate(&mut random, me);
                // SAFETY: just allocated.
                let is_long = unsafe { (*fresh).bytes } >= LONG;
                let slot = if is_long {
                    &LONG_TABLE[random.below(SHARED_LONG)]
                } else {
                    &SMALL_TABLE[random.below(SHARED)]
                };
                let old = slot.swap(fresh, Ordering::AcqRel);
                if !old.is_null() {
                    release(old, me);
                }
            }
        }
        if operations % 64 == 0 {
            gate();
            match random.below(4000) {
                0 => drop(terrane::purge()),
                1..5 => terrane::collect(),
                5..20 => terrane::tick(),
                20..60 => verify(),
                _ => {}
            }
        }
    }
    // Half of the threads leave what they have to others, in the tables; the rest free it.
    for head in kept.into_iter().filter(|head| !head.is_null()) {
        // SAFETY: the block is ours.
        let is_small = unsafe { (*head).bytes } < LONG;
        let left = if me.is_multiple_of(2) && is_small {
            SMALL_TABLE[random.below(SHARED)].swap(head, Ordering::AcqRel)
        } else {
            head
        };
        if !left.is_null() {
            release(left, me);
        }
    }
    SUMS.operations.fetch_add(operations, Ordering::Relaxed);
    SUMS.threads.fetch_add(1, Ordering::Relaxed);
}

/// A child frees what the threads of its parent had, allocates, checks itself and ends; whether all was well.
fn fork_once(seed: u64) -> bool {
    // SAFETY: the child calls the allocator and async-signal-safe functions only.
    unsafe {
        let child = libc::fork();
        if child != 0 {
            let mut status = 0;
            return child > 0
                && libc::waitpid(child, &mut status, 0) == child
                && libc::WIFEXITED(status)
                && libc::WEXITSTATUS(status) == 5;
        }
        // A child that waits for ever is ended by the system.
        libc::alarm(30);
        let mut random = Random(seed | 1);
        for slot in &SMALL_TABLE[..SHARED / 2] {
            let old = slot.swap(allocate(&mut random, 0), Ordering::AcqRel);
            if !old.is_null() {
                release(old, 0);
            }
        }
        verify();
        terrane::purge();
        verify();
        libc::_exit(5)
    }
}

/// Stops all lanes and verifies everything; bytes in use and resident then.
fn checkpoint(lanes: usize) -> [u64; 2] {
    WAITING.store(0, Ordering::Release);
    PAUSE.store(true, Ordering::Release);
    while WAITING.load(Ordering::Acquire) < lanes {
        std::thread::sleep(Duration::from_micros(200));
    }
    // SAFETY: every lane's thread waits at the gate, and the lane waits for its thread; there is no thread that purges.
    match unsafe { terrane::verify_quiet() } {
        Ok(report) => {
            SUMS.verifications.fetch_add(1, Ordering::Relaxed);
            SUMS.looked_at.fetch_add(report.looked_at(), Ordering::Relaxed);
        }
        Err(error) => wrong(format_args!("with all threads stopped: {error}")),
    }
    let bytes = [terrane::stats().committed_bytes, resident()];
    PAUSE.store(false, Ordering::Release);
    bytes
}

fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

fn plant_a_write_to_a_freed_block() {
    let layout = Layout::new::<[u64; 8]>();
    // SAFETY: the write behind the free is the fault that is to be found.
    unsafe {
        let block = GLOBAL.alloc(layout);
        GLOBAL.dealloc(block, layout);
        block.cast::<usize>().write_volatile(0x4141_4141_4140);
    }
    verify();
}

/// The value behind `--name`.
fn argument(name: &str, default: u64) -> u64 {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1).map_or(default, |value| value.parse().expect("a number"))
}

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--plant") {
        plant_a_write_to_a_freed_block();
        return ExitCode::SUCCESS;
    }
    let length = Duration::from_secs(argument("--seconds", 10).max(4));
    let lanes = argument("--threads", 8) as usize;
    let begin = Instant::now();
    let next = AtomicU64::new(1);
    let (mut samples, mut forks, mut bad_forks) = (Vec::with_capacity(1 << 16), 0_u64, 0_u64);
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                while !STOP.load(Ordering::Relaxed) {
                    let me = next.fetch_add(1, Ordering::Relaxed);
                    std::thread::Builder::new()
                        .spawn(move || live(me))
                        .and_then(|thread| thread.join().map_err(|_| std::io::Error::other("it panicked")))
                        .unwrap_or_else(|cause| wrong(format_args!("thread {me}: {cause}")));
                }
            });
        }
        let mut told = Instant::now();
        while begin.elapsed() < length {
            std::thread::sleep(Duration::from_millis(50));
            forks += 1;
            bad_forks += !fork_once(forks) as u64;
            samples.push(checkpoint(lanes));
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                let mib = samples.last().map_or(0, |bytes| bytes[0] >> 20);
                eprintln!("soak: {:4} s, {forks} forks, {mib} MiB in use", begin.elapsed().as_secs());
            }
        }
        STOP.store(true, Ordering::Relaxed);
    });
    for slot in SMALL_TABLE.iter().chain(&LONG_TABLE) {
        let head = slot.swap(std::ptr::null_mut(), Ordering::AcqRel);
        if !head.is_null() {
            release(head, 0);
        }
    }
    terrane::purge();
    // SAFETY: all other threads have been joined.
    let last =
        unsafe { terrane::verify_quiet() }.unwrap_or_else(|error| wrong(format_args!("at the end: {error}")));

    // The highest of the second quarter, when everything has been used once, and of the last.
    let quarter = samples.len() / 4;
    let highest = |from: usize, kind: usize| {
        samples[from..].iter().take(quarter).map(|bytes| bytes[kind]).max().unwrap_or(0)
    };
    let end = samples.len() - quarter;
    let (warm, end) = ([highest(quarter, 0), highest(quarter, 1)], [highest(end, 0), highest(end, 1)]);
    let is_flat =
        warm.iter().zip(&end).all(|(&warm, &end)| warm > 0 && end > 0 && end <= warm + warm / 4 + (16 << 20));
    let sum = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!("operations          {}", sum(&SUMS.operations));
    println!("frees of others'    {}", sum(&SUMS.from_others));
    println!("threads             {}", sum(&SUMS.threads));
    println!("forks               {forks}, {bad_forks} bad");
    println!("verifications       {}, {} things looked at", sum(&SUMS.verifications), sum(&SUMS.looked_at));
    let stats = terrane::stats();
    println!("steals and claims   {} and {}", stats.steals, stats.claims);
    println!("given back          {} MiB in {} purges", stats.purged_bytes >> 20, stats.purges);
    println!("MiB in use          {} after warm-up, {} at the end", warm[0] >> 20, end[0] >> 20);
    println!("MiB resident        {} after warm-up, {} at the end", warm[1] >> 20, end[1] >> 20);
    println!(
        "left when all ended {} blocks of slabs, {} large, {} huge",
        last.out_blocks, last.large_blocks, last.huge_blocks
    );
    if bad_forks > 0 || !is_flat {
        println!("soak: WRONG: {}", if is_flat { "a child did not end well" } else { "memory is not flat" });
        return ExitCode::FAILURE;
    }
    println!("soak: ok");
    ExitCode::SUCCESS
}
