//! Misuse that is noticed ends the process with one line that says what and where.
//!
//! Each case runs in a child process: this program again, with the case's name.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

const CASE: &str = "TERRANE_MISUSE_CASE";

fn misuse(case: &str) {
    // SAFETY: this is misuse on purpose, in a process that exists for it.
    unsafe {
        let block = terrane_front::alloc(100, 16);
        let other = terrane_front::alloc(100, 16);
        match case {
            "twice in a row" => {
                terrane_front::free(block);
                terrane_front::free(block);
            }
            "inside a block" => {
                // In release builds only the miss path looks: when the list has no room.
                let mut blocks = [std::ptr::null_mut(); 3000];
                blocks.fill_with(|| terrane_front::alloc(100, 16));
                blocks[..2000].iter().for_each(|&block| terrane_front::free(block));
                blocks[2000..].iter().for_each(|&block| terrane_front::free(block.wrapping_add(16)));
            }
            "on the stack" => terrane_front::free((&raw const case).cast_mut().cast()),
            "a large block twice" => {
                let large = terrane_front::alloc(1 << 20, 16);
                terrane_front::free(large);
                terrane_front::free(large);
            }
            "inside a large block" => {
                terrane_front::free(terrane_front::alloc(1 << 20, 16).wrapping_add(4096))
            }
            "the slice of a large block" => {
                // Of several blocks, some begin behind the start of their slice.
                let large: Vec<_> = (0..8).map(|_| terrane_front::alloc(100_000, 16)).collect();
                let inside = large.iter().find(|block| !block.addr().is_multiple_of(1 << 16)).unwrap();
                terrane_front::free(inside.map_addr(|address| address & !0xffff));
            }
            "a huge block twice" => {
                let huge = terrane_front::alloc(64 << 20, 16);
                terrane_front::free(huge);
                terrane_front::free(huge);
            }
            "of another class" => terrane_front::free_sized(block, 2000, 16),
            "a null pointer" => {
                terrane_front::free(std::ptr::null_mut());
                std::process::exit(0);
            }
            _ => unreachable!("{case}"),
        }
        terrane_front::free(other);
    }
}

fn says(case: &str, line: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_case_of_the_child", "--nocapture", "--test-threads=1"])
        .env(CASE, case)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(6), "{case}: {said}");
    assert!(said.contains(&format!("terrane: {line} at 0x")), "{case}: {said}");
}

#[test]
fn the_case_of_the_child() {
    if let Ok(case) = std::env::var(CASE) {
        misuse(&case);
    }
}

#[test]
fn a_block_that_is_freed_twice_in_a_row_is_noticed() {
    says("twice in a row", "free of a block that is free already");
}

#[test]
fn an_address_inside_a_block_is_noticed_on_the_miss_path() {
    says("inside a block", "free of an address that is not the start of a block");
}

#[test]
fn a_foreign_address_is_noticed() {
    says("on the stack", "free of an address that is not the start of a block");
}

#[test]
fn a_large_block_that_is_freed_twice_is_noticed() {
    says("a large block twice", "free of a block that is free already");
    says("inside a large block", "free of a block that is free already");
    says("the slice of a large block", "free of a block that is free already");
}

#[test]
fn a_huge_block_that_is_freed_twice_is_noticed() {
    says("a huge block twice", "free of an address that is not the start of a block");
}

#[test]
#[cfg(debug_assertions)]
fn a_free_with_another_size_is_noticed_in_debug_builds() {
    says("of another class", "free with a size of another class than the block was allocated with");
}

#[test]
fn a_null_pointer_is_no_misuse() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_case_of_the_child", "--nocapture"])
        .env(CASE, "a null pointer")
        .output()
        .unwrap();
    assert!(output.status.success());
}
