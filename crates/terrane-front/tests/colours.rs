//! Long blocks begin in different cache lines of their pages, and are found, grown and freed wherever they begin.

const LINE: usize = 64;
const PAGE: usize = 4096;

/// Lines of a page in which blocks of these lengths begin, live at the same time.
fn lines_of(lengths: impl Iterator<Item = usize>, align: usize) -> Vec<usize> {
    // SAFETY: each block is freed once, with the length and alignment that it was allocated with.
    unsafe {
        let blocks: Vec<_> = lengths.map(|bytes| (terrane_front::alloc(bytes, align), bytes)).collect();
        let lines = blocks.iter().map(|(block, _)| block.addr() % PAGE / LINE).collect();
        blocks.iter().for_each(|&(block, bytes)| terrane_front::free_sized(block, bytes, align));
        lines
    }
}

fn most_in_one(lines: &[usize]) -> usize {
    lines.iter().map(|line| lines.iter().filter(|other| *other == line).count()).max().unwrap()
}

#[test]
fn blocks_of_one_length_do_not_begin_in_one_line() {
    for bytes in [40_000, 100_000, 300_000, 1_000_000, 3_000_000, 5_000_000] {
        let lines = lines_of((0..24).map(|_| bytes), 8);
        assert!(most_in_one(&lines) <= 6, "24 blocks of {bytes} bytes begin in the lines {lines:?}");
    }
}

#[test]
fn blocks_that_ask_for_an_alignment_or_leave_no_room_begin_at_a_page() {
    assert_eq!(most_in_one(&lines_of((1..20).map(|i| i * 100_000), 4096)), 19);
    assert_eq!(most_in_one(&lines_of((1..20).map(|i| i * 65_536), 8)), 19);
}

#[test]
fn a_block_keeps_its_contents_through_every_length_wherever_it_begins() {
    // SAFETY: the block is freed once, with its last length.
    unsafe {
        for first in [33_000_usize, 70_000, 200_001, 1_100_000, 6_000_000] {
            let mut bytes = first;
            let mut block = terrane_front::alloc(bytes, 16);
            for i in 0..bytes {
                block.add(i).write(i as u8);
            }
            while bytes < 48 << 20 {
                let longer = bytes + bytes / 3 + 12_345;
                block = terrane_front::realloc(block, longer, 16);
                assert!(!block.is_null() && block.addr().is_multiple_of(16));
                assert!(terrane_front::usable_size(block) >= longer);
                for i in (0..bytes).step_by(997).chain(bytes - 100..bytes) {
                    assert_eq!(*block.add(i), i as u8, "byte {i} of {first} bytes grown to {longer}");
                }
                for i in bytes..longer {
                    block.add(i).write(i as u8);
                }
                bytes = longer;
            }
            while bytes > 40_000 {
                bytes /= 3;
                block = terrane_front::realloc(block, bytes, 16);
                for i in (0..bytes).step_by(997).chain(bytes - 100..bytes) {
                    assert_eq!(*block.add(i), i as u8, "byte {i} of {first} bytes shrunk to {bytes}");
                }
            }
            terrane_front::free(block);
        }
    }
}

#[test]
fn all_that_is_usable_of_a_block_is_its_own() {
    // SAFETY: blocks are written within their usable length, and freed once.
    unsafe {
        for bytes in [40_000, 65_536, 65_537, 190_000, 1_000_000, 4_194_304, 5_000_001] {
            let blocks: Vec<_> = (0..6).map(|_| terrane_front::alloc(bytes, 8)).collect();
            for (tag, &block) in blocks.iter().enumerate() {
                block.write_bytes(tag as u8, terrane_front::usable_size(block));
            }
            for (tag, &block) in blocks.iter().enumerate() {
                let usable = terrane_front::usable_size(block);
                assert!((0..usable).all(|i| *block.add(i) == tag as u8), "block {tag} of {bytes} bytes");
                terrane_front::free(block);
            }
        }
    }
}

#[test]
fn a_block_asked_to_be_zero_is_zero_wherever_it_begins() {
    // SAFETY: blocks are written within their length, and freed once.
    unsafe {
        for round in 0..3 {
            for bytes in [40_000, 100_000, 3_000_000, 5_000_000] {
                let block = terrane_front::alloc_zeroed(bytes, 8);
                assert!((0..bytes).all(|i| *block.add(i) == 0), "{bytes} bytes in round {round}");
                block.write_bytes(0xa5, terrane_front::usable_size(block));
                terrane_front::free_sized(block, bytes, 8);
            }
        }
    }
}
