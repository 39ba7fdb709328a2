//! The contracts of `Shared` and `FileBacked`.
#![cfg(target_os = "linux")]

use core::ptr::NonNull;
use proptest::prelude::*;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use terrane_core::{Contents, Decommit, Extent, PageSource, Source, SourceError};
use terrane_pages::shared::TOKEN_BYTES;
use terrane_pages::{FileBacked, Shared, page_size};

fn at(extent: &Extent, offset: usize) -> NonNull<u8> {
    assert!(offset < extent.len() as usize);
    // SAFETY: inside the extent.
    NonNull::new(unsafe { extent.as_ptr().add(offset) }).unwrap()
}

fn fill(extent: &Extent, byte: u8) {
    // SAFETY: extents of these sources are accessible.
    unsafe { at(extent, 0).write_bytes(byte, extent.len() as usize) };
}

fn holds(extent: &Extent, byte: u8) -> bool {
    // SAFETY: as above; nothing writes meanwhile.
    let bytes = unsafe { core::slice::from_raw_parts(extent.as_ptr(), extent.len() as usize) };
    bytes.iter().all(|&held| held == byte)
}

fn release(source: &impl Source, extent: Extent) {
    // SAFETY: nothing uses it.
    unsafe { source.release(extent) }.unwrap();
}

/// A path that is gone when dropped.
struct TempPath(PathBuf);

impl TempPath {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("terrane-{}-{name}", std::process::id())))
    }

    fn open(&self) -> FileBacked {
        // SAFETY: the name is this test's own.
        unsafe { FileBacked::open(&self.0) }.unwrap()
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_forked_child_and_its_parent_see_the_same_memory() {
    let source = Shared::new("fork");
    let extent = source.acquire(4 * page_size() as u64, 1 << 21).unwrap();
    assert_eq!(extent.address() % (1 << 21), 0);
    // SAFETY: the child writes a byte and exits.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            at(&extent, 5).write(42);
            libc::_exit(0);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        assert_eq!(at(&extent, 5).read(), 42);
    }
    release(&source, extent);
}

/// The other half of `a_token_opens_the_same_memory_in_another_process`; run alone, it has nothing to open.
#[test]
fn another_process() {
    let Ok(text) = std::env::var("TERRANE_TEST_TOKEN") else { return };
    let token: Vec<u8> =
        (0..TOKEN_BYTES).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect();
    let source = Shared::new("other");
    let extent = source.share().unwrap().import(&token).unwrap();
    assert!(holds(&extent, 3));
    fill(&extent, 4);
    release(&source, extent);
}

#[test]
fn a_token_opens_the_same_memory_in_another_process() {
    let source = Shared::new("token");
    // An alignment of more than a page puts the extent somewhere inside its file.
    let extent = source.acquire(8 * page_size() as u64, 1 << 20).unwrap();
    fill(&extent, 3);
    let mut token = [0; TOKEN_BYTES];
    assert_eq!(source.share().unwrap().export(&extent, &mut token), Ok(TOKEN_BYTES));
    let text: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "another_process"])
        .env("TERRANE_TEST_TOKEN", text)
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
    assert!(holds(&extent, 4));
    release(&source, extent);
}

#[test]
fn tokens_that_do_not_fit_are_refused() {
    let source = Shared::new("refused");
    let page = page_size() as u64;
    let extent = source.acquire(page, page).unwrap();
    let ability = source.share().unwrap();
    let mut token = [0; TOKEN_BYTES];
    let granule = TOKEN_BYTES as u64;
    assert_eq!(
        ability.export(&extent, &mut token[1..]),
        Err(SourceError::BadLength { requested: granule - 1, granule })
    );
    ability.export(&extent, &mut token).unwrap();
    assert_eq!(ability.import(&token[..9]), Err(SourceError::BadLength { requested: 9, granule }));
    // Another file, a range beyond its end, half a page.
    for (place, change) in [(24, 1), (42, 1), (33, 8), (40, 1)] {
        let mut forged = token;
        forged[place] ^= change;
        assert!(ability.import(&forged).is_err(), "byte {place}");
    }
    release(&source, ability.import(&token).unwrap());
    release(&source, extent);
    assert!(ability.import(&token).is_err(), "the file should be gone");
}

#[test]
fn decommitted_shared_pages_read_as_zero() {
    let source = Shared::new("decommit");
    let page = page_size();
    let extent = source.reserve(4 * page, page).unwrap();
    fill(&extent, 9);
    // SAFETY: inside the extent.
    unsafe {
        assert_eq!(source.decommit(at(&extent, page), 2 * page, Decommit::Lazy), Ok(Contents::Zero));
        assert_eq!(source.commit(at(&extent, page), page), Ok(Contents::Unspecified));
        assert_eq!([at(&extent, page).read(), at(&extent, 3 * page - 1).read()], [0; 2]);
        assert_eq!([at(&extent, page - 1).read(), at(&extent, 3 * page).read()], [9; 2]);
    }
    release(&source, extent);
}

#[test]
fn a_file_keeps_what_was_written() {
    let path = TempPath::new("keeps");
    std::fs::write(&path.0, b"what was there before").unwrap();
    let page = page_size() as u64;
    let source = path.open();
    assert_eq!(source.file_bytes(), page);
    let (first, second) = (source.acquire(2 * page, page).unwrap(), source.acquire(3 * page, page).unwrap());
    fill(&first, 1);
    fill(&second, 2);
    source.flush(&second).unwrap();
    let place = (second.cookie(), second.len());
    assert_eq!(source.file_bytes(), 6 * page);
    drop(source);

    let source = path.open();
    let again = source.attach(place.0, place.1).unwrap();
    assert!(holds(&again, 2));
    assert_eq!(source.attach(place.0, page).unwrap_err(), SourceError::Unsupported);
    assert_eq!(
        source.attach(5 * page, 2 * page).unwrap_err(),
        SourceError::BadLength { requested: 2 * page, granule: page }
    );
    let new = source.acquire(page, page).unwrap();
    assert!(holds(&new, 0));
    assert_eq!(new.cookie(), 6 * page);
    drop(source);
    assert!(std::fs::read(&path.0).unwrap().starts_with(b"what was there before\0"));
}

#[test]
fn a_file_has_one_user() {
    let path = TempPath::new("user");
    let source = path.open();
    // SAFETY: it is not opened.
    let refused = unsafe { FileBacked::open(&path.0) }.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    // A child that was forked meanwhile keeps nobody out.
    // SAFETY: the child waits to be ended, and is.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            libc::alarm(60);
            libc::pause();
            libc::_exit(0);
        }
        drop(source);
        drop(path.open());
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, core::ptr::null_mut(), 0);
    }
}

#[test]
fn releases_make_holes_and_shorten_the_file() {
    let path = TempPath::new("holes");
    let source = path.open();
    let page = page_size() as u64;
    let extents: Vec<_> = (0..4).map(|_| source.acquire(4 * page, page).unwrap()).collect();
    let [a, b, c, d]: [Extent; 4] = extents.try_into().unwrap();
    for extent in [&a, &b, &c, &d] {
        fill(extent, 5);
    }
    let hole = b.cookie();
    release(&source, b);
    assert_eq!(source.file_bytes(), 16 * page);
    if source.free_bytes() == 0 {
        use std::io::Write;
        writeln!(io::stderr(), "skipped: holes: the file system of the temporary folder makes none").unwrap();
        return;
    }
    assert_eq!(source.free_bytes(), 4 * page);
    let again = source.acquire(3 * page, page).unwrap();
    assert_eq!(again.cookie(), hole);
    assert!(holds(&again, 0));
    release(&source, d);
    assert_eq!(source.file_bytes(), 12 * page);
    release(&source, c);
    assert_eq!(source.file_bytes(), 7 * page, "the rest of the hole goes with its neighbour");
    release(&source, a);
    release(&source, again);
    assert_eq!((source.file_bytes(), source.free_bytes()), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any life of extents in a file keeps their contents, and hands out zeroed ranges that overlap nothing.
    #[test]
    fn a_mixed_life_of_a_file(steps in prop::collection::vec((0u8..4, 1u64..9, 0u32..4, any::<u8>()), 1..60)) {
        let path = TempPath::new("mixed");
        let source = path.open();
        let page = page_size() as u64;
        let mut live: Vec<(Extent, u8)> = Vec::new();
        let makes_holes = {
            let (below, above) = (source.acquire(page, page).unwrap(), source.acquire(page, page).unwrap());
            release(&source, below);
            let free = source.free_bytes();
            release(&source, above);
            free == page
        };
        for (what, pages, shift, pick) in steps {
            if what > 0 || live.is_empty() {
                let align = page << shift;
                let extent = source.acquire(pages * page, align).unwrap();
                prop_assert_eq!(extent.address() % align, 0);
                prop_assert!(holds(&extent, 0));
                let range = |extent: &Extent| extent.cookie()..extent.cookie() + extent.len();
                for (other, _) in &live {
                    let (one, two) = (range(&extent), range(other));
                    prop_assert!(one.end <= two.start || two.end <= one.start);
                }
                prop_assert!(range(&extent).end <= source.file_bytes());
                fill(&extent, pick | 1);
                live.push((extent, pick | 1));
            } else {
                let (extent, byte) = live.swap_remove(usize::from(pick) % live.len());
                prop_assert!(holds(&extent, byte));
                release(&source, extent);
            }
            if makes_holes {
                let used: u64 = live.iter().map(|(extent, _)| extent.len()).sum();
                prop_assert_eq!(used + source.free_bytes(), source.file_bytes());
            }
        }
        for (extent, byte) in live {
            prop_assert!(holds(&extent, byte));
            release(&source, extent);
        }
    }
}
