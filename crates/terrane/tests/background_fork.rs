//! A child process does not have its parent's background thread, and gets its own.

#[cfg(target_os = "linux")]
mod linux {
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    #[global_allocator]
    static GLOBAL: terrane::Terrane = terrane::Terrane;

    /// Frees 80 MB in a program of several threads, and sleeps; whether 60 MiB and more were given back.
    fn burst_falls() -> bool {
        let (stop, stopped) = mpsc::channel::<()>();
        let other = std::thread::spawn(move || stopped.recv().is_err());
        let purged = terrane::stats().purged_bytes;
        drop((0..400).map(|n| vec![n as u8; 200_000]).collect::<Vec<_>>());
        terrane::collect();
        // Nothing in this loop allocates or frees.
        let start = Instant::now();
        let falls = loop {
            let falls = terrane::stats().purged_bytes - purged >= 60 << 20;
            if falls || start.elapsed() > Duration::from_secs(10) {
                break falls;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        drop(stop);
        falls && other.join().is_ok()
    }

    #[test]
    fn memory_falls_in_a_child_while_its_parent_has_the_thread() {
        assert!(burst_falls(), "memory stays in the parent");
        // The parent's thread has some more looks to make before it ends, or is gone: it is not in the child.
        // SAFETY: the child uses the allocator and threads, which the C library permits after a fork, and exits.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let code = if burst_falls() { 0 } else { 1 };
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) };
        }
        assert!(child > 0);
        let mut status = 0;
        // SAFETY: `status` is a number.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "memory stays in the child");
    }
}
