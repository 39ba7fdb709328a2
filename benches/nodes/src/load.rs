//! Threads bound to nodes, and the sets of blocks that they allocate and free.
//!
//! Invariant: a block is filled with its own address when it is made and checked before it is freed, so memory that is
//! handed out twice does not go unnoticed.

use crate::kernel::{self, PAGE};
use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeSet;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

/// Bytes of one thread's set.
const SET_BYTES: usize = 16 << 20;
/// Lengths in turn: small blocks, large blocks, and now and then a huge one.
const LENGTHS: [usize; 11] = [24, 64, 200, 520, 1000, 2500, 4000, 9000, 16_000, 60_000, 300_000];
const HUGE_BYTES: usize = 5 << 20;

/// A live block.
pub struct Block {
    address: usize,
    layout: Layout,
}

impl Block {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, 8).expect("lengths are small");
        // SAFETY: lengths are not zero.
        let start = unsafe { alloc(layout) };
        assert!(!start.is_null(), "no memory for {bytes} bytes");
        let block = Self { address: start.expose_provenance(), layout };
        // SAFETY: the block is ours and at a multiple of 8.
        block.places().for_each(|place| unsafe { block.word(place).write(block.address + place) });
        block
    }

    /// Offsets of the words that are written: one in every page's length.
    fn places(&self) -> impl Iterator<Item = usize> + use<> {
        (0..self.layout.size() - 7).step_by(PAGE)
    }

    fn word(&self, place: usize) -> *mut usize {
        std::ptr::with_exposed_provenance_mut(self.address + place)
    }

    /// Frees the block, wherever it was allocated.
    pub fn free(self) {
        for place in self.places() {
            // SAFETY: the block is live.
            let found = unsafe { self.word(place).read() };
            assert_eq!(
                found,
                self.address + place,
                "a block of {} bytes was overwritten",
                self.layout.size()
            );
        }
        // SAFETY: the block came from `alloc` with this layout, and nobody else has it.
        unsafe { dealloc(self.word(0).cast(), self.layout) };
    }
}

/// Allocates a set of all lengths.
pub fn set_of_all_lengths() -> Vec<Block> {
    let mut blocks = vec![Block::new(HUGE_BYTES)];
    let mut bytes = HUGE_BYTES;
    // Short blocks more often than long ones, so that every length has about as many bytes.
    let mut due = [0; LENGTHS.len()];
    while bytes < SET_BYTES {
        for (length, due) in LENGTHS.iter().zip(&mut due) {
            *due += 9000;
            while *due >= *length {
                *due -= length;
                bytes += length;
                blocks.push(Block::new(*length));
            }
        }
    }
    blocks
}

/// Allocates a set of small blocks.
pub fn set_of_small_blocks() -> Vec<Block> {
    (0..SET_BYTES / 2 / 520).map(|_| Block::new(520)).collect()
}

/// The pages that the blocks have written to.
pub fn pages_of(blocks: &[Block]) -> BTreeSet<usize> {
    blocks
        .iter()
        .flat_map(|block| block.places().map(|place| (block.address + place) & !(PAGE - 1)))
        .collect()
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread bound to a node, which does what it is told.
pub struct Worker {
    /// The number of its node.
    pub node: u32,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// An answer that is waited for later.
pub struct Answer<R>(std::sync::mpsc::Receiver<R>);

impl<R> Answer<R> {
    /// Waits for it.
    pub fn get(self) -> R {
        self.0.recv().expect("the worker panicked")
    }
}

impl Worker {
    /// A thread on these processors of `node`.
    pub fn new(node: u32, cpus: Vec<u32>) -> Self {
        let (jobs, inbox) = channel::<Job>();
        let thread = std::thread::spawn(move || {
            kernel::bind_thread(&cpus).expect("the processors are online");
            inbox.into_iter().for_each(|job| job());
        });
        Self { node, jobs: Some(jobs), thread: Some(thread) }
    }

    /// Lets the thread do `job`, at once.
    pub fn start<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> Answer<R> {
        let (answer, receiver) = channel();
        let job = Box::new(move || {
            // Nobody has to want the answer.
            let _ = answer.send(job());
        });
        self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).expect("the worker panicked");
        Answer(receiver)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // What it panicked about was reported when its answer did not come.
            let _ = thread.join();
        }
    }
}

/// Lets all workers do the same at the same time; their answers in order.
pub fn all<R: Send + 'static>(
    workers: &[Worker],
    job: impl Fn(&Worker) -> Box<dyn FnOnce() -> R + Send>,
) -> Vec<R> {
    let answers: Vec<Answer<R>> = workers.iter().map(|worker| worker.start(job(worker))).collect();
    answers.into_iter().map(Answer::get).collect()
}
