//! A program for valgrind's memcheck: correct without an argument, otherwise with exactly one fault, the one that is named.
//!
//! ```sh
//! cargo build --example memcheck --features valgrind
//! valgrind --error-exitcode=9 --leak-check=full target/debug/examples/memcheck after-free
//! ```

use std::alloc::{GlobalAlloc, Layout, alloc, dealloc};
use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::sync::mpsc;
use terrane::Terrane;

#[global_allocator]
static GLOBAL: Terrane = Terrane;

/// Collections, threads that free each other's blocks, large and aligned blocks, resizing, giving memory back.
fn correct() {
    let mut words: HashMap<String, Vec<u64>> = HashMap::new();
    for number in 0..2000_u64 {
        words.entry(format!("word {}", number % 97)).or_default().push(number);
    }
    let tree: BTreeMap<u64, Box<[u8]>> =
        (0..300).map(|size| (size, vec![1; size as usize * 17].into())).collect();
    let (to, from) = mpsc::channel::<Vec<u8>>();
    let other = std::thread::spawn(move || {
        from.into_iter().map(|block| block.iter().map(|&b| u64::from(b)).sum::<u64>()).sum::<u64>()
    });
    for size in 0..500 {
        to.send(vec![1; size * 13]).expect("the other thread listens");
    }
    drop(to);
    assert_eq!(other.join().expect("the other thread ends"), (0..500).map(|size| size * 13).sum());
    let mut long = vec![7_u8; 100_000];
    long.resize(9_000_000, 7);
    long.shrink_to(50_000);
    assert!(long.iter().all(|&byte| byte == 7));
    for align in [64, 4096, 1 << 16] {
        let layout = Layout::from_size_align(100, align).expect("a power of two");
        // SAFETY: the layout is not empty; the block is freed once, with its layout.
        unsafe {
            let block = GLOBAL.alloc_zeroed(layout);
            assert!((0..100).all(|at| block.add(at).read() == 0));
            GLOBAL.dealloc(block, layout);
        }
    }
    assert_eq!(words.values().map(Vec::len).sum::<usize>() + tree.len(), 2300);
    drop((words, tree));
    terrane::collect();
    terrane::purge();
    let heap = terrane::Heap::builder().build().expect("pages for a heap");
    let mut numbers = allocator_api2::vec::Vec::new_in(&heap);
    numbers.extend(0..10_000_u64);
    let boxed = allocator_api2::boxed::Box::new_in([1_u8; 5000], &heap);
    assert_eq!(numbers.len() + boxed.len(), 15_000);
    std::mem::forget(boxed);
}

/// # Safety
/// Never: each of these is a fault, for memcheck to see.
unsafe fn fault(which: &str) {
    let layout = Layout::from_size_align(40, 8).expect("a power of two");
    let long = Layout::from_size_align(200_000, 8).expect("a power of two");
    // SAFETY: the layouts are not empty; beyond that the caller takes the blame.
    unsafe {
        let (block, large) = (black_box(alloc(layout)), black_box(alloc(long)));
        block.write_bytes(1, 40);
        match which {
            "after-free" => {
                dealloc(block, layout);
                black_box(block.add(8).read_volatile());
            }
            "after-free-first-word" => {
                dealloc(block, layout);
                block.write_volatile(2);
            }
            "after-free-large" => {
                dealloc(large, long);
                black_box(large.add(100_000).read_volatile());
                dealloc(block, layout);
                return;
            }
            "after-free-elsewhere" => {
                let address = block.addr();
                let other = std::thread::spawn(move || {
                    dealloc(std::ptr::with_exposed_provenance_mut::<u8>(address), layout);
                });
                block.expose_provenance();
                other.join().expect("the other thread ends");
                black_box(block.add(16).read_volatile());
            }
            "past-end" => {
                block.add(40).write_volatile(3);
                dealloc(block, layout);
            }
            "past-end-large" => {
                black_box(large.add(200_000).read_volatile());
                dealloc(block, layout);
            }
            "uninitialised" => {
                dealloc(block, layout);
                if large.add(77).read_volatile() == 1 {
                    println!("one");
                }
            }
            "leak" => {}
            "heap-after-free" => {
                let heap = terrane::Heap::builder().build().expect("pages for a heap");
                let boxed = allocator_api2::boxed::Box::new_in([1_u8; 300], &heap);
                let inside: *const u8 = boxed.as_ptr();
                drop(boxed);
                black_box(inside.add(100).read_volatile());
                dealloc(block, layout);
            }
            "heap-past-end" => {
                let heap = terrane::Heap::builder().build().expect("pages for a heap");
                let boxed = allocator_api2::boxed::Box::new_in([1_u8; 300], &heap);
                black_box(boxed.as_ptr().add(300).read_volatile());
                dealloc(block, layout);
            }
            "heap-dropped" => {
                let heap = terrane::Heap::builder().build().expect("pages for a heap");
                let inside: *const u8 =
                    allocator_api2::boxed::Box::leak(allocator_api2::boxed::Box::new_in([1_u8; 300], &heap))
                        .as_ptr();
                drop(heap);
                // The pages are gone: this ends the process as well.
                black_box(inside.add(100).read_volatile());
            }
            "double-free" => {
                dealloc(block, layout);
                dealloc(block, layout);
            }
            other => panic!("no fault is named {other}"),
        }
        dealloc(large, long);
    }
}

fn main() {
    match std::env::args().nth(1) {
        None => correct(),
        // SAFETY: none: that is the point.
        Some(which) => unsafe { fault(&which) },
    }
}
