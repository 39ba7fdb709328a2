//! Huge blocks backed by transparent huge pages give all of their memory back.

#![cfg(target_os = "linux")]

use std::alloc::{GlobalAlloc, Layout};
use terrane::Terrane;

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

/// Pages of the range that are in memory.
fn present(start: usize, bytes: usize) -> usize {
    let mut pages = vec![0u8; bytes / PAGE];
    // SAFETY: the range is mapped (address space is kept), and there is a byte for each of its pages.
    let answer =
        unsafe { libc::mincore(std::ptr::with_exposed_provenance_mut(start), bytes, pages.as_mut_ptr()) };
    assert_eq!(answer, 0);
    pages.into_iter().filter(|page| page & 1 == 1).count()
}

#[test]
fn the_huge_page_that_reaches_beyond_a_block_goes_with_the_block() {
    // Five of six MiB: where the system has huge pages, the third comes whole.
    let layout = Layout::from_size_align(5 * MIB, 4096).unwrap();
    // SAFETY: the block is written within its length, and freed once.
    let start = unsafe {
        let block = Terrane.alloc(layout);
        block.write_bytes(1, layout.size());
        let start = block.expose_provenance();
        assert!(present(start, 5 * MIB) == 5 * MIB / PAGE);
        Terrane.dealloc(block, layout);
        start
    };
    terrane::purge();
    assert_eq!(present(start, 6 * MIB), 0);
}
