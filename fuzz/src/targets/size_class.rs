//! Size classes: for any request and alignment, the class chosen holds the request, is the smallest that does, and its
//! blocks have the alignment when the request is rounded up to it; the two ways to find a class agree.

use crate::bytes::Bytes;
use terrane_slab::size_class::{CLASSES, MAX_SMALL, TABLE, class, class_of, class_of_dynamic};

/// Carries out what the bytes say.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    while !bytes.is_empty() {
        let (size, align) = (bytes.size(), bytes.align());
        let Some(rounded) = size.max(1).checked_next_multiple_of(align) else { continue };
        if rounded > MAX_SMALL {
            continue;
        }
        let number = class_of(rounded);
        assert!(number < CLASSES, "{rounded} bytes: class {number}");
        assert_eq!(number, class_of_dynamic(rounded), "{rounded} bytes");
        let entry = class(number);
        let block = entry.block_bytes as usize;
        assert!(block >= rounded, "{rounded} bytes in a block of {block}");
        assert_eq!(block % align, 0, "blocks of {block} bytes for an alignment of {align}");
        assert!(
            number == 0 || (TABLE[number - 1].block_bytes as usize) < rounded,
            "{rounded} bytes: too large a class"
        );
        assert_eq!(entry.slab_bytes(), entry.blocks as usize * block + entry.tail_waste());
        assert!(entry.tail_waste() < block, "one more block of {block} bytes would fit");
    }
}
