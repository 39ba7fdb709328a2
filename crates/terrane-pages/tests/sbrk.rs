//! The contract of `Sbrk`. Each test owns the break of a process of its own: tests of one binary run in threads, and
//! `sbrk` is not atomic, so the body of each runs in a forked child.
#![cfg(target_os = "linux")]

use core::ptr::NonNull;
use terrane_core::{Contents, Decommit, Extent, PageSource, Source, SourceError};
use terrane_pages::{Sbrk, page_size};

/// Runs `body` in a forked child and fails if it panics.
fn in_child(body: fn()) {
    // SAFETY: the child only runs `body` and exits; the C library makes its allocator usable in a forked child.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            // A panic in a forked child may find a lock of std taken for good; it then ends here, and not never.
            libc::alarm(60);
            let outcome = std::panic::catch_unwind(body);
            libc::_exit(i32::from(outcome.is_err()));
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        assert!(
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
            "the child ended with {status:#x}"
        );
    }
}

fn brk() -> usize {
    // SAFETY: reads the break.
    unsafe { libc::sbrk(0) }.addr()
}

fn foreign(bytes: isize) -> *mut u8 {
    // SAFETY: only ground that the test itself took is given back.
    let old = unsafe { libc::sbrk(bytes) };
    assert_ne!(old.addr(), usize::MAX);
    old.cast()
}

fn start(extent: &Extent) -> NonNull<u8> {
    NonNull::new(extent.as_ptr()).unwrap()
}

fn fill(extent: &Extent, byte: u8) {
    // SAFETY: an extent of `Sbrk` is accessible.
    unsafe { start(extent).write_bytes(byte, extent.len() as usize) };
}

fn bytes(extent: &Extent) -> &[u8] {
    // SAFETY: as above; nothing writes while the slice is looked at.
    unsafe { core::slice::from_raw_parts(extent.as_ptr(), extent.len() as usize) }
}

fn holds(extent: &Extent, byte: u8) -> bool {
    bytes(extent).iter().all(|&held| held == byte)
}

fn release(source: &Sbrk, extent: Extent) {
    // SAFETY: nothing uses it.
    unsafe { source.release(extent) }.unwrap();
}

#[test]
fn the_break_comes_down_when_the_top_is_released() {
    in_child(|| {
        let source = Sbrk::new();
        let page = page_size() as u64;
        let first = source.acquire(4 * page, page).unwrap();
        let low = brk();
        let second = source.acquire(8 * page, page).unwrap();
        assert_eq!(brk(), low + 8 * page as usize);
        release(&source, second);
        assert_eq!(brk(), low);
        release(&source, first);
        assert_eq!((source.lent_bytes(), source.idle_bytes()), (0, 0));
    });
}

#[test]
fn what_is_not_on_top_is_kept_and_lent_again_as_zero() {
    in_child(|| {
        let source = Sbrk::new();
        let page = page_size() as u64;
        let below = source.acquire(16 * page, page).unwrap();
        let above = source.acquire(page, page).unwrap();
        let top = brk();
        fill(&below, 9);
        fill(&above, 8);
        let address = below.address();
        release(&source, below);
        assert_eq!(brk(), top);
        assert_eq!(source.idle_bytes() as u64, 16 * page);
        let again = source.acquire(16 * page, page).unwrap();
        assert_eq!(again.address(), address);
        assert!(holds(&again, 0));
        assert!(holds(&above, 8));
        assert_eq!(brk(), top);
    });
}

#[test]
fn a_foreign_sbrk_is_survived_and_left_alone() {
    in_child(|| {
        let source = Sbrk::new();
        let page = page_size() as u64;
        let first = source.acquire(4 * page, page).unwrap();
        fill(&first, 1);
        // Not a whole number of pages, as a stranger may like it.
        let theirs = foreign(1000);
        // SAFETY: the stranger's own ground.
        unsafe { theirs.write_bytes(0xAA, 1000) };
        let second = source.acquire(4 * page, 4 * page).unwrap();
        assert!(second.address() as usize >= theirs.addr() + 1000);
        fill(&second, 2);
        let top = brk();
        // The stranger's ground keeps the first from being on top.
        release(&source, first);
        assert_eq!(brk(), top);
        release(&source, second);
        assert!(brk() >= theirs.addr() + 1000);
        for i in 0..1000 {
            // SAFETY: the stranger's own ground.
            assert_eq!(unsafe { theirs.add(i).read() }, 0xAA);
        }
        // The stranger on top: nothing of ours comes down with it above.
        let third = source.acquire(64 * page, page).unwrap();
        foreign(123);
        let top = brk();
        release(&source, third);
        assert_eq!(brk(), top);
        assert!(source.idle_bytes() as u64 >= 64 * page);
        let fourth = source.acquire(64 * page, page).unwrap();
        assert_eq!(brk(), top, "released ground was not used again");
        release(&source, fourth);
    });
}

#[test]
fn decommitted_pages_read_as_zero() {
    in_child(|| {
        let source = Sbrk::new();
        let page = page_size();
        let extent = source.reserve(8 * page, page).unwrap();
        fill(&extent, 7);
        // SAFETY: inside the extent.
        unsafe {
            let middle = start(&extent).add(2 * page);
            assert_eq!(source.decommit(middle, 4 * page, Decommit::Now), Ok(Contents::Zero));
            source.commit(middle, 4 * page).unwrap();
        }
        let held = bytes(&extent);
        assert!(held[2 * page..6 * page].iter().all(|&byte| byte == 0));
        assert!(held[..2 * page].iter().chain(&held[6 * page..]).all(|&byte| byte == 7));
    });
}

#[test]
fn a_break_that_cannot_move_is_an_error_that_changes_nothing() {
    in_child(|| {
        let source = Sbrk::new();
        let page = page_size() as u64;
        let kept = source.acquire(page, page).unwrap();
        let before = (brk(), source.lent_bytes(), source.idle_bytes());
        let most = source.geometry().max_len;
        assert_eq!(source.acquire(most, page).unwrap_err(), SourceError::OutOfMemory { requested: most });
        assert_eq!((brk(), source.lent_bytes(), source.idle_bytes()), before);
        release(&source, kept);
    });
}

/// Thousands of requests of all sizes and alignments, with a stranger in between.
#[test]
fn a_long_mixed_life_keeps_contents_and_accounts() {
    in_child(|| {
        let source = Sbrk::new();
        let page = page_size() as u64;
        let bottom = brk();
        let mut random = 88_172_645_463_325_252u64;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let mut live: Vec<(Extent, u8)> = Vec::new();
        let mut foreign_bytes = 0;
        for round in 0..4000u64 {
            match next() % 16 {
                0 => {
                    let bytes = (next() % 5000) as isize;
                    foreign(bytes);
                    foreign_bytes += bytes as usize;
                }
                1..8 if !live.is_empty() => {
                    let (extent, seed) = live.swap_remove((next() % live.len() as u64) as usize);
                    assert!(holds(&extent, seed), "round {round}");
                    release(&source, extent);
                }
                _ => {
                    let align = page << (next() % 5);
                    let extent = source.acquire(page * (1 + next() % 20), align).unwrap();
                    assert_eq!(extent.address() % align, 0);
                    assert!(holds(&extent, 0), "round {round}");
                    let seed = (round % 255 + 1) as u8;
                    fill(&extent, seed);
                    live.push((extent, seed));
                }
            }
            let lent: u64 = live.iter().map(|(extent, _)| extent.len()).sum();
            assert_eq!(source.lent_bytes() as u64, lent);
            // The break holds what is lent, what is idle, the stranger's, and less than a page lost beside each of its.
            let ground = brk() - bottom;
            assert!(ground >= source.lent_bytes() + source.idle_bytes() + foreign_bytes);
        }
        for (extent, seed) in live {
            assert!(holds(&extent, seed));
            release(&source, extent);
        }
        assert_eq!(source.lent_bytes(), 0);
    });
}
