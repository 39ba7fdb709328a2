//! `Mmap` under the limits of the system. Limits hold for a whole process, so each test sets them in a forked child.
#![cfg(target_os = "linux")]

use core::ptr::NonNull;
use terrane_core::{Contents, Decommit, PageSource, Source, SourceError};
use terrane_pages::{Commit, Mmap, page_size};

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

/// What this process uses now, in bytes, of what `field` of `/proc/self/status` counts.
fn used(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn limit(what: libc::__rlimit_resource_t, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: the limit is valid for reads.
    assert_eq!(unsafe { libc::setrlimit(what, &raw const limit) }, 0);
}

#[test]
fn address_space_that_is_limited_runs_out_as_an_error() {
    in_child(|| {
        const PIECE: usize = 16 << 20;
        limit(libc::RLIMIT_AS, used("VmSize:") + 100 * (1 << 20));
        let source = Mmap::new();
        let mut extents = Vec::with_capacity(16);
        let refused = loop {
            match source.reserve(PIECE, PIECE) {
                Ok(extent) => extents.push(extent),
                Err(refused) => break refused,
            }
            assert!(extents.len() < 16, "the limit does not hold");
        };
        assert_eq!(refused, SourceError::OutOfMemory { requested: PIECE as u64 });
        // An aligned reservation may need twice its length for a moment, so not all of the 100 MiB can be had.
        assert!(extents.len() >= 4, "only {} pieces", extents.len());
        assert_eq!(source.reserved_bytes(), extents.len() * PIECE);
        // What was given works, and what is released can be had again.
        for extent in &extents {
            let start = NonNull::new(extent.as_ptr()).unwrap();
            // SAFETY: inside the extent.
            unsafe {
                source.commit(start, page_size()).unwrap();
                start.write(1);
            }
        }
        let count = extents.len();
        for extent in extents.drain(..) {
            // SAFETY: nothing uses it.
            unsafe { source.release(extent) }.unwrap();
        }
        for _ in 0..count {
            extents.push(source.reserve(PIECE, PIECE).unwrap());
        }
    });
}

#[test]
fn aligned_reservations_keep_no_address_space_beside_them() {
    in_child(|| {
        let source = Mmap::new();
        let before = used("VmSize:");
        let extents: Vec<_> = (0..32).map(|_| source.reserve(1 << 20, 1 << 25).unwrap()).collect();
        let more = used("VmSize:") - before;
        // The vector and the text of the status file may take some as well.
        assert!((32 << 20..34 << 20).contains(&more), "{more} bytes for 32 MiB");
        for extent in extents {
            // SAFETY: nothing uses it.
            unsafe { source.release(extent) }.unwrap();
        }
        assert!(used("VmSize:") - before < 2 << 20);
    });
}

#[test]
fn limited_data_turns_an_open_source_guarded() {
    in_child(|| {
        limit(libc::RLIMIT_DATA, used("VmData:") + (8 << 20));
        let source = Mmap::new().with_commit(Commit::Open);
        let small = source.reserve(1 << 20, page_size()).unwrap();
        assert!(source.is_open());
        let large = source.reserve(1 << 30, page_size()).unwrap();
        assert!(!source.is_open());
        // The limit now counts what is committed.
        for extent in [&small, &large] {
            let start = NonNull::new(extent.as_ptr()).unwrap();
            // SAFETY: inside the extents.
            unsafe {
                source.commit(start, 1 << 20).unwrap();
                start.write_bytes(1, 1 << 20);
            }
        }
        let start = NonNull::new(large.as_ptr()).unwrap();
        // SAFETY: inside the extent.
        unsafe {
            assert!(source.commit(start, 64 << 20).is_err());
            assert_eq!(start.read(), 1, "a refused commit leaves the range as it was");
            // What is decommitted can be committed elsewhere.
            for place in 0..64 {
                let at = start.add(place << 22);
                source.commit(at, 4 << 20).unwrap();
                at.write(2);
                assert_eq!(source.decommit(at, 4 << 20, Decommit::Now), Ok(Contents::Zero));
            }
        }
    });
}

#[test]
fn locked_memory_can_be_decommitted() {
    in_child(|| {
        // A guarded decommit makes a new mapping, which is not locked.
        let source = Mmap::new().with_commit(Commit::Open);
        let len = 16 * page_size();
        let extent = source.acquire(len as u64, page_size() as u64).unwrap();
        let start = NonNull::new(extent.as_ptr()).unwrap();
        // SAFETY: inside the extent.
        unsafe {
            if libc::mlock(extent.as_ptr().cast(), len) != 0 {
                return;
            }
            for how in [Decommit::Now, Decommit::Lazy] {
                start.write_bytes(7, len);
                // Locked pages cannot wait to be dropped, so both ways drop them at once.
                assert_eq!(source.decommit(start, len, how), Ok(Contents::Zero));
                source.commit(start, len).unwrap();
                assert_eq!(start.read(), 0);
            }
        }
    });
}

/// In the child of a fork, sources go on from where they were, apart from the parent.
#[test]
fn a_forked_child_has_sources_of_its_own() {
    static SOURCE: Mmap = Mmap::new();
    let extent = SOURCE.acquire(page_size() as u64, 1).unwrap();
    // SAFETY: committed.
    unsafe { extent.as_ptr().write(1) };
    let before = SOURCE.reserved_bytes();
    assert!(before >= page_size());
    in_child(|| {
        let more = SOURCE.acquire(1 << 20, 1).unwrap();
        // SAFETY: committed.
        unsafe { more.as_ptr().write(2) };
    });
    assert_eq!(SOURCE.reserved_bytes(), before);
    // SAFETY: live, then used by nobody.
    unsafe {
        assert_eq!(extent.as_ptr().read(), 1);
        SOURCE.release(extent).unwrap();
    }
}
