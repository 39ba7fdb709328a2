//! The background thread gives memory back while the program sleeps.

use std::time::{Duration, Instant};

#[global_allocator]
static GLOBAL: terrane::Terrane = terrane::Terrane;

#[test]
fn memory_falls_while_the_program_sleeps() {
    assert!(terrane::start_background_purge());
    assert!(terrane::start_background_purge(), "a second start finds the first");
    let burst: Vec<Vec<u8>> = (0..20_000).map(|n| vec![n as u8; 4000]).collect();
    let before = terrane::stats().purged_bytes;
    drop(burst);
    // Returns what the thread's lists hold, and sleeps: nothing below allocates or frees.
    terrane::collect();
    let start = Instant::now();
    let mut purged = 0;
    while purged < 60 << 20 && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(50));
        purged = terrane::stats().purged_bytes - before;
    }
    assert!(purged >= 60 << 20, "only {purged} bytes of about 80 MB were given back");
}
