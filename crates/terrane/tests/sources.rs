//! The same heap over every page source: mmap, sbrk beside a stranger, shared memory, a file, longer pages, huge pages, nodes.

use std::ptr::NonNull;
use terrane::Heap;
use terrane::core::PageSource;
use terrane::pages::{
    Accounting, Commit, FileBacked, HugePages, Mmap, NodeChoice, Numa, PageSized, Sbrk, Shared,
};
use terrane::slab::PrivateHeap;

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn size(&mut self) -> usize {
        match self.below(200) {
            0 => 5 << 20,
            1..10 => 1 + self.below(300_000),
            10..60 => 1 + self.below(9000),
            _ => 1 + self.below(300),
        }
    }
}

/// Allocates, grows, checks and frees on a heap over `source`, calling `stranger` now and then, and drops the heap.
fn exercise<S: PageSource>(source: S, mut stranger: impl FnMut()) {
    let heap = PrivateHeap::new_in(source).unwrap();
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    let mut live: Vec<(NonNull<u8>, usize, u8)> = Vec::new();
    let check = |&(block, bytes, seed): &(NonNull<u8>, usize, u8)| {
        for at in (0..bytes.min(64)).chain((64..bytes).step_by(4096)).chain([bytes - 1]) {
            // SAFETY: inside the block.
            assert_eq!(unsafe { block.add(at).read() }, seed, "byte {at} of {bytes}");
        }
    };
    for n in 0..4000 {
        if n % 500 == 250 {
            stranger();
        }
        if live.len() < 100 || random.below(2) == 0 {
            let bytes = random.size();
            let block = heap.alloc_zeroed(bytes, 16).unwrap();
            check(&(block, bytes, 0));
            // SAFETY: inside the block.
            unsafe { block.write_bytes(n as u8, bytes) };
            live.push((block, bytes, n as u8));
        } else {
            let index = random.below(live.len());
            let (block, bytes, seed) = live.swap_remove(index);
            check(&(block, bytes, seed));
            // SAFETY: the block is live and came from this heap.
            unsafe {
                if random.below(4) == 0 {
                    let longer = bytes * 2;
                    let block = heap.realloc(block, bytes, 16, longer).unwrap();
                    check(&(block, bytes, seed));
                    heap.free(block, longer, 16);
                } else {
                    heap.free(block, bytes, 16);
                }
            }
        }
        if n % 1000 == 999 {
            heap.release_free_memory();
        }
    }
    live.iter().for_each(check);
    // What is still live goes with the heap.
}

#[test]
fn a_heap_runs_over_mapped_pages_and_gives_all_back() {
    for commit in [Commit::Open, Commit::Guarded] {
        let source = Accounting::new(Mmap::new().with_commit(commit));
        exercise(&source, || ());
        source.assert_nothing_leaked();
    }
}

#[test]
fn a_heap_runs_over_the_program_break_beside_a_stranger() {
    let source = Accounting::new(Sbrk::new());
    exercise(&source, || {
        // SAFETY: moves the break, as any part of a program may.
        unsafe { assert_ne!(libc::sbrk(12_345).addr(), usize::MAX) };
    });
    source.assert_nothing_leaked();
}

#[test]
fn a_heap_runs_over_shared_memory_and_over_a_file() {
    exercise(Shared::new("terrane-test"), || ());
    let path = std::env::temp_dir().join(format!("terrane-heap-{}", std::process::id()));
    // SAFETY: nobody else knows the file.
    exercise(unsafe { FileBacked::open(&path) }.unwrap(), || ());
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_heap_runs_with_longer_pages_with_huge_pages_and_near_a_node() {
    for page in [16 << 10, 64 << 10] {
        exercise(PageSized::new(Mmap::new(), page), || ());
    }
    for huge in [HugePages::Off, HugePages::WhenDense, HugePages::Explicit] {
        exercise(Mmap::new().with_huge_pages(huge), || ());
    }
    exercise(Numa::new(Mmap::new(), NodeChoice::Local), || ());
    exercise(Numa::new(Mmap::new(), NodeChoice::Node(0)), || ());
}

#[test]
fn collections_live_in_a_heap_until_it_is_dropped() {
    use allocator_api2::vec::Vec;
    let heap = Heap::builder().classes(terrane::Classes::Coarse).build().unwrap();
    let mut map = hashbrown::HashMap::new_in(&heap);
    for n in 0..10_000_u32 {
        let mut row = Vec::new_in(&heap);
        row.extend(0..n % 50);
        map.insert(n, row);
    }
    assert!((0..10_000).all(|n| map[&n].len() == (n % 50) as usize));
    assert!(heap.counters().refills.get() > 0);
}
