//! A library for other programs to load, with an allocator of its own: what Rust code in it allocates comes from Terrane, whatever
//! the program that loads it uses.
//!
//! `cargo build --release -p terrane --example plugin` makes `target/release/examples/libplugin.so`. It may be closed and opened
//! again: it stays loaded from its first block on.

use std::alloc::{Layout, alloc, dealloc};

#[global_allocator]
static GLOBAL: terrane::Terrane = terrane::Terrane;

/// Bytes in front of a block, in which its length is.
const HEAD: usize = 16;

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.checked_add(HEAD)?, HEAD).ok()
}

/// A block of `bytes` bytes; null without memory.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_make(bytes: usize) -> *mut u8 {
    let Some(layout) = layout(bytes) else { return std::ptr::null_mut() };
    // SAFETY: the layout has `HEAD` bytes at least; its length is written where no caller looks.
    unsafe {
        let start = alloc(layout);
        if start.is_null() {
            return start;
        }
        start.cast::<usize>().write(bytes);
        start.add(HEAD)
    }
}

/// Frees a block.
///
/// # Safety
/// The block came from [`plugin_make`] and is freed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn plugin_take(block: *mut u8) {
    // SAFETY: the caller's promise; the length was written by `plugin_make`.
    unsafe {
        let start = block.sub(HEAD);
        if let Some(layout) = layout(start.cast::<usize>().read()) {
            dealloc(start, layout);
        }
    }
}
