//! The background thread comes when a program of several threads has freed much, and goes when nothing is left to give back.

#[cfg(target_os = "linux")]
mod linux {
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    #[global_allocator]
    static GLOBAL: terrane::Terrane = terrane::Terrane;

    fn threads() -> usize {
        std::fs::read_dir("/proc/self/task").unwrap().count()
    }

    fn wait_until(what: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        while !what() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
        what()
    }

    #[test]
    fn a_thread_gives_memory_back_after_a_burst_and_then_ends() {
        // A second thread of the program, with a heap, asleep.
        let (stop, stopped) = mpsc::channel::<()>();
        let other = std::thread::spawn(move || stopped.recv().is_err());
        let small: Vec<Vec<u8>> = (0..1000).map(|n| vec![n as u8; 1000]).collect();
        drop(small);
        let before = threads();

        let burst: Vec<Vec<u8>> = (0..20_000).map(|n| vec![n as u8; 4000]).collect();
        let held = terrane::stats().committed_bytes;
        let purged = terrane::stats().purged_bytes;
        drop(burst);
        assert!(wait_until(|| threads() == before + 1), "no thread was started for {held} bytes");
        assert!(wait_until(|| terrane::stats().purged_bytes - purged >= 60 << 20), "memory stays");
        assert!(wait_until(|| threads() == before), "the thread stays");

        // Once more, and never when it is switched off.
        drop((0..20_000).map(|n| vec![n as u8; 4000]).collect::<Vec<_>>());
        assert!(wait_until(|| threads() == before + 1), "no thread was started again");
        terrane::set_background(terrane::Background::Off);
        assert!(wait_until(|| threads() == before), "the thread stays though it is off");
        drop((0..20_000).map(|n| vec![n as u8; 4000]).collect::<Vec<_>>());
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(threads(), before, "a thread was started though it is off");
        drop(stop);
        other.join().unwrap();
    }
}
