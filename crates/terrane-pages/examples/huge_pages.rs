//! What huge pages do here: first touch and scattered reads of 256 MiB, with base pages and with [`Dense`].
//!
//! `cargo run --release --example huge_pages`

use core::hint::black_box;
use core::ptr::NonNull;
use std::time::Instant;
use terrane_core::PageSource;
use terrane_pages::{Dense, HugePages, Mmap, page_size};

const BYTES: usize = 256 << 20;
const READS: usize = 8 << 20;

/// Nanoseconds per base page touched and per scattered read.
fn measure(source: &impl PageSource) -> (f64, f64) {
    let extent = source.acquire(BYTES as u64, 2 << 20).expect("256 MiB of memory");
    let start = NonNull::new(extent.as_ptr()).expect("not at address 0");
    let clock = Instant::now();
    for offset in (0..BYTES).step_by(page_size()) {
        // SAFETY: inside the extent.
        unsafe { start.add(offset).write(1) };
    }
    let touch = clock.elapsed().as_nanos() as f64 / (BYTES / page_size()) as f64;
    let clock = Instant::now();
    let (mut random, mut sum) = (88_172_645_463_325_252usize, 0usize);
    for _ in 0..READS {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // SAFETY: inside the extent.
        sum += usize::from(unsafe { start.add(random % BYTES).read() });
    }
    black_box(sum);
    let read = clock.elapsed().as_nanos() as f64 / READS as f64;
    // SAFETY: nothing uses it.
    unsafe { source.release(extent) }.expect("an extent of this source");
    (touch, read)
}

fn main() {
    let off = Mmap::new().with_huge_pages(HugePages::Off);
    let dense = Dense::<_, 256>::new(Mmap::new());
    let explicit = Mmap::new().with_huge_pages(HugePages::Explicit);
    for round in 1..=3 {
        let (off, dense, explicit) = (measure(&off), measure(&dense), measure(&explicit));
        println!(
            "round {round}: first touch per page: off {:.0} ns, dense {:.0} ns, explicit {:.0} ns; scattered read: \
             off {:.1} ns, dense {:.1} ns, explicit {:.1} ns",
            off.0, dense.0, explicit.0, off.1, dense.1, explicit.1
        );
    }
}
