//! A library with its own Terrane may be closed: threads that used it end afterwards, its background thread works on, its blocks
//! stay, and opening it again brings no second allocator.

#![cfg(all(target_os = "linux", not(miri)))]

use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;

const ROUNDS: u8 = 100;
const THREADS: usize = 3;
const LONG: usize = 5 << 20;

/// The example `plugin`, built in the profile of this test.
fn plugin() -> CString {
    let this = std::env::current_exe().unwrap();
    let profile = this.parent().unwrap().parent().unwrap();
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--quiet", "--package", "terrane", "--example", "plugin", "--target-dir"]);
    command.arg(profile.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR"));
    if profile.ends_with("release") {
        command.arg("--release");
    }
    assert!(command.status().unwrap().success());
    let library: PathBuf = profile.join("examples/libplugin.so");
    CString::new(library.into_os_string().into_encoded_bytes()).unwrap()
}

#[derive(Clone, Copy)]
struct Library {
    handle: usize,
    make: extern "C" fn(usize) -> *mut u8,
    take: unsafe extern "C" fn(*mut u8),
}

impl Library {
    fn open(path: &CStr) -> Self {
        // SAFETY: the library is this workspace's, and its functions have these types.
        unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            assert!(!handle.is_null(), "{path:?} cannot be opened");
            let make = libc::dlsym(handle, c"plugin_make".as_ptr());
            let take = libc::dlsym(handle, c"plugin_take".as_ptr());
            assert!(!make.is_null() && !take.is_null());
            Self {
                handle: handle as usize,
                make: std::mem::transmute::<*mut libc::c_void, extern "C" fn(usize) -> *mut u8>(make),
                take: std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn(*mut u8)>(take),
            }
        }
    }

    fn make(self, bytes: usize, fill: u8) -> *mut u8 {
        let block = (self.make)(bytes);
        assert!(!block.is_null());
        // SAFETY: the block has that many bytes.
        unsafe { block.write_bytes(fill, bytes) };
        block
    }

    fn take(self, block: *mut u8) {
        // SAFETY: the block came from `make`, and callers take each once.
        unsafe { (self.take)(block) };
    }

    fn work(self, fill: u8) {
        let blocks: Vec<_> = (1..200).map(|at| self.make(at * 29, fill)).collect();
        for block in blocks {
            // SAFETY: the block is live.
            assert_eq!(unsafe { block.read() }, fill);
            self.take(block);
        }
    }

    fn close(self) {
        // SAFETY: opened above; nobody calls its functions any more.
        assert_eq!(unsafe { libc::dlclose(self.handle as *mut libc::c_void) }, 0);
    }
}

fn pages_of_address_space() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_library_with_its_own_terrane_may_be_closed_before_its_threads_end_and_opened_again() {
    let path = plugin();
    let mut early = 0;
    let mut homes = std::collections::HashSet::new();
    for round in 0..ROUNDS {
        let library = Library::open(&path);
        homes.insert(library.make as usize);
        let (used, closed) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
        let survivor = library.make(1000, round);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    library.work(round);
                    used.wait();
                    // Closed by now: what the library has to do at the end of this thread is done without it.
                    closed.wait();
                });
            }
            used.wait();
            let long: Vec<_> = (0..9).map(|_| library.make(LONG, round)).collect();
            long.into_iter().for_each(|block| library.take(block));
            library.work(round);
            library.close();
            closed.wait();
        });
        if round % 10 == 0 {
            // Time for the background thread.
            std::thread::sleep(Duration::from_millis(30));
        }
        // SAFETY: the block was never freed.
        assert_eq!(unsafe { survivor.add(999).read() }, round);
        if round == 9 {
            early = pages_of_address_space();
        }
    }
    assert_eq!(homes.len(), 1, "the library was loaded again, beside what was left of it");
    let late = pages_of_address_space();
    assert!(late <= early + early / 2, "{early} pages after 10 rounds, {late} after {ROUNDS}");
}
