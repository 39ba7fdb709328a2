//! The background thread comes too when memory is freed by a thread that has given its heap up already.

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::c_void;
    use std::time::{Duration, Instant};

    #[global_allocator]
    static GLOBAL: terrane::Terrane = terrane::Terrane;

    type Burst = Vec<Vec<u8>>;

    extern "C" fn free_burst(burst: *mut c_void) {
        // SAFETY: the value of the key is a box that the thread left here.
        drop(unsafe { Box::<Burst>::from_raw(burst.cast()) });
    }

    #[test]
    fn memory_falls_after_a_thread_has_freed_it_late() {
        // A second thread of the program, this one: the test's own has a heap as well. The key is younger than the allocator's own, so
        // its destructor runs when the thread's heap is given up.
        let mut key: libc::pthread_key_t = 0;
        // SAFETY: `key` is a key.
        assert_eq!(unsafe { libc::pthread_key_create(&mut key, Some(free_burst)) }, 0);
        let before = terrane::stats().purged_bytes;
        let owner = std::thread::spawn(move || {
            let burst: Box<Burst> = Box::new((0..400).map(|n| vec![n as u8; 200_000]).collect());
            // SAFETY: the key exists.
            assert_eq!(unsafe { libc::pthread_setspecific(key, Box::into_raw(burst).cast()) }, 0);
        });
        owner.join().unwrap();
        // Nothing below allocates or frees.
        let start = Instant::now();
        let mut purged = 0;
        while purged < 60 << 20 && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(50));
            purged = terrane::stats().purged_bytes - before;
        }
        assert!(purged >= 60 << 20, "only {purged} bytes of about 80 MB were given back");
    }
}
