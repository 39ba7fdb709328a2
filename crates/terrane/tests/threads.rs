//! Many threads on the process's allocator: contents stay, blocks come back wherever they are freed, nothing is stranded.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use terrane::Terrane;

#[global_allocator]
static GLOBAL: Terrane = Terrane;

/// Tests that look at process-wide counters take turns.
static TURN: Mutex<()> = Mutex::new(());

/// A turn. Nothing of the test's thread is left in its lists when the next test begins.
struct Turn {
    _guard: MutexGuard<'static, ()>,
}

impl Turn {
    fn take() -> Self {
        Self { _guard: TURN.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        terrane::purge();
    }
}

struct Block {
    start: *mut u8,
    layout: Layout,
    seed: u8,
}

// SAFETY: a block is plain memory.
unsafe impl Send for Block {}

impl Block {
    fn new(bytes: usize, seed: u8) -> Self {
        let layout = Layout::from_size_align(bytes, 8).unwrap();
        // SAFETY: the layout is not empty.
        let start = unsafe { GLOBAL.alloc(layout) };
        assert!(!start.is_null());
        // SAFETY: inside the block.
        unsafe { start.write_bytes(seed, bytes) };
        Self { start, layout, seed }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: inside the block, which is freed once.
        unsafe {
            for at in 0..self.layout.size() {
                assert_eq!(self.start.add(at).read(), self.seed, "byte {at} of {:?}", self.layout);
            }
            GLOBAL.dealloc(self.start, self.layout);
        }
    }
}

struct Random(u64);
impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }

    fn size(&mut self) -> usize {
        match self.next(100) {
            0 => 1 + self.next(200_000),
            1..10 => 1 + self.next(9000),
            _ => 1 + self.next(300),
        }
    }
}

fn committed() -> u64 {
    terrane::stats().committed_bytes
}

fn churn(count: usize, operations: usize) {
    let exchange: Arc<Vec<Mutex<Vec<Block>>>> =
        Arc::new((0..count).map(|_| Mutex::new(Vec::new())).collect());
    let threads: Vec<_> = (0..count)
        .map(|me| {
            let exchange = Arc::clone(&exchange);
            thread::spawn(move || {
                let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ me as u64);
                let mut live = Vec::new();
                for n in 0..operations {
                    if live.len() < 200 || random.next(2) == 0 {
                        live.push(Block::new(random.size(), n as u8));
                    } else {
                        let index = random.next(live.len());
                        let block: Block = live.swap_remove(index);
                        if random.next(3) == 0 {
                            exchange[random.next(count)].lock().unwrap().push(block);
                        }
                    }
                    if n % 64 == 0 {
                        // Free what others have sent: a remote free for each.
                        let received = std::mem::take(&mut *exchange[me].lock().unwrap());
                        drop(received);
                    }
                }
            })
        })
        .collect();
    // A scope would return before the threads' destructors have run; joining waits until their heaps are given up.
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn contents_stay_when_threads_exchange_blocks() {
    let _turn = Turn::take();
    for threads in [2, 4, 16] {
        churn(threads, 30_000 / threads);
    }
}

#[test]
fn memory_is_flat_when_the_same_work_is_done_again() {
    let _turn = Turn::take();
    let after_a_round = || {
        churn(4, 10_000);
        // What the main thread's lists and batches hold keeps slabs from being empty.
        terrane::purge();
        committed()
    };
    let first = after_a_round();
    let mut last = 0;
    for _ in 0..10 {
        last = after_a_round();
    }
    assert!(last <= first + (8 << 20), "{first} bytes after the first round, {last} after the eleventh");
}

#[test]
fn a_thread_that_only_frees_does_not_gather_slabs() {
    let _turn = Turn::take();
    for life in 0..100 {
        let child = thread::spawn(move || {
            let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ life);
            let mut blocks: Vec<Block> = (0..200).map(|_| Block::new(1 + random.next(2000), 1)).collect();
            blocks.truncate(100);
            blocks
        });
        drop(child.join().unwrap());
    }
    // Short blocks are those of the test harness as well.
    let stats = terrane::stats();
    let used = stats.classes.iter().filter(|class| class.block_bytes > 256 && class.slabs_made > 0);
    let (classes, slabs) = used.fold((0, 0), |(classes, slabs), class| {
        (classes + 1, slabs + class.slabs_made - class.slabs_retired)
    });
    assert!(slabs <= 3 * classes, "{slabs} slabs of {classes} classes, of whose blocks none is live");
}

#[test]
fn an_idle_owner_strands_nothing() {
    let _turn = Turn::take();
    const BLOCKS: usize = 200_000;
    terrane::purge();
    let before = committed();
    let (send, receive) = mpsc::channel::<Vec<Block>>();
    let (done, wait) = mpsc::channel::<()>();
    // The owner allocates everything, hands it over, and then does nothing at all until the end.
    let owner = thread::spawn(move || {
        send.send((0..BLOCKS).map(|n| Block::new(64, n as u8)).collect()).unwrap();
        wait.recv().unwrap();
    });
    let blocks = receive.recv().unwrap();
    let full = committed();
    assert!(full - before >= (BLOCKS * 64 * 3 / 4) as u64, "the blocks must not all fit where others were");
    drop(blocks);
    terrane::purge();
    let after = committed();
    assert!(after - before.min(after) < (full - before) / 8, "{before} before, {full} full, {after} after");
    done.send(()).unwrap();
    owner.join().unwrap();
}

#[test]
fn a_thread_that_only_frees_lets_the_producer_reuse_its_memory() {
    let _turn = Turn::take();
    let (send, receive) = mpsc::sync_channel::<Vec<Block>>(4);
    let reclaimer = thread::spawn(move || receive.into_iter().for_each(drop));
    let mut peak = 0;
    for round in 0..200 {
        send.send((0..2000).map(|n| Block::new(200, n as u8)).collect()).unwrap();
        if round == 20 {
            peak = committed();
        }
    }
    drop(send);
    reclaimer.join().unwrap();
    let after = committed();
    assert!(after <= peak * 2 + (4 << 20), "{peak} bytes in round 20, {after} at the end");
}

#[test]
fn a_thread_that_ends_strands_nothing() {
    let _turn = Turn::take();
    let round = || {
        let left: Vec<Block> =
            thread::spawn(|| (0..5000).map(|n| Block::new(1 + n % 700, n as u8)).collect()).join().unwrap();
        drop(left);
    };
    (0..5).for_each(|_| round());
    let early = committed();
    (0..200).for_each(|_| round());
    let late = committed();
    assert!(late <= early + (4 << 20), "{early} bytes after 5 threads, {late} after 205");
    assert!(terrane::stats().heaps < 64, "records are reused: {}", terrane::stats().heaps);
}

#[test]
fn destructors_of_thread_locals_can_allocate_and_free_late() {
    let _turn = Turn::take();
    struct Late(Vec<Box<[u8]>>);
    impl Drop for Late {
        fn drop(&mut self) {
            let more: Vec<Box<[u8]>> = (0..100).map(|n| vec![n as u8; 1000].into_boxed_slice()).collect();
            assert!(more.iter().enumerate().all(|(n, bytes)| bytes.iter().all(|&byte| byte == n as u8)));
            DROPPED.fetch_add(self.0.len(), Ordering::Relaxed);
        }
    }
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    std::thread_local!(static LATE: Late = Late((0..50).map(|n| vec![n; 100].into_boxed_slice()).collect()));
    let threads: Vec<_> =
        (0..50).map(|_| thread::spawn(|| LATE.with(|late| assert_eq!(late.0.len(), 50)))).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(DROPPED.load(Ordering::Relaxed), 2500);
}

#[test]
fn sums_over_classes_and_tiers_are_exact() {
    let _turn = Turn::take();
    terrane::collect();
    let before = terrane::stats();
    let held: Vec<Block> = (0..1000).map(|n| Block::new(20_000, n as u8)).collect();
    let large = Block::new(1 << 20, 1);
    let during = terrane::stats();
    let class = during.classes.iter().position(|class| class.block_bytes == 20_480).unwrap();
    let held_of = |s: &terrane::Snapshot| s.classes[class].out() - s.classes[class].in_own_list;
    assert_eq!(held_of(&during) - held_of(&before), 1000);
    assert_eq!(during.classes[class].allocations() - before.classes[class].allocations(), 1000);
    assert_eq!(during.large_live_bytes - before.large_live_bytes, 1 << 20);
    drop(held);
    drop(large);
    let after = terrane::stats();
    assert_eq!(held_of(&after), held_of(&before));
    assert_eq!(after.large_live_bytes, before.large_live_bytes);
}
