//! Spans of huge blocks that are used again. A process of its own: what other tests allocate would have the cache give spans back.
#![cfg(not(loom))]

#[test]
fn a_span_that_began_at_a_segment_serves_blocks_of_small_alignment_again() {
    const SEGMENT: usize = terrane_slab::segment::SEGMENT_BYTES;
    let mut again = 0;
    // SAFETY: each block is freed once, with the length and alignment that it was allocated with.
    unsafe {
        for bytes in (SEGMENT..2 * SEGMENT).step_by(SEGMENT / 16) {
            let mut aligned = 0;
            for (bytes, align) in [(bytes + 8, SEGMENT), (bytes + 100, 8)] {
                let block = terrane_front::alloc(bytes, align);
                assert!(!block.is_null() && block.addr().is_multiple_of(align));
                block.write(1);
                block.add(bytes - 1).write(2);
                assert!(terrane_front::usable_size(block) >= bytes);
                terrane_front::free(block);
                again += (block.addr() & !(SEGMENT - 1) == aligned) as usize;
                aligned = block.addr();
            }
        }
    }
    assert!(again > 4, "spans were used again {again} times only");
}
