//! What the kernel says about this process's memory and faults.
//!
//! Invariant: reading allocates nothing through the allocator under test: files are read into a buffer on the stack.

use std::fs::File;
use std::io::Read;

/// Resident and anonymous memory at one moment, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resident {
    /// All resident pages.
    pub rss: u64,
    /// Anonymous resident pages: heaps and stacks, not code.
    pub anon: u64,
    /// Pages given up with `MADV_FREE` that the kernel has not taken yet; part of `anon`.
    pub lazy: u64,
}

/// `path`'s numbers after `keys`, in bytes (the files give kB); 0 where a key is missing.
fn kilobytes<const N: usize>(path: &str, keys: [&str; N]) -> [u64; N] {
    let mut buffer = [0u8; 8192];
    let mut filled = 0;
    if let Ok(mut file) = File::open(path) {
        while let Ok(n @ 1..) = file.read(&mut buffer[filled..]) {
            filled += n;
        }
    }
    let text = std::str::from_utf8(&buffer[..filled]).unwrap_or("");
    keys.map(|key| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let number = line.and_then(|rest| rest.split_ascii_whitespace().next());
        number.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
    })
}

/// Memory now.
pub fn resident() -> Resident {
    let [rss, anon, lazy] = kilobytes("/proc/self/smaps_rollup", ["Rss", "Anonymous", "LazyFree"]);
    Resident { rss, anon, lazy }
}

/// The largest resident set so far, in bytes.
pub fn peak() -> u64 {
    let [peak] = kilobytes("/proc/self/status", ["VmHWM"]);
    peak
}

/// Minor page faults and context switches of this process so far.
pub fn faults_and_switches() -> (u64, u64) {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is valid for one rusage; all-zero bytes are one, so it is initialised either way.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    (usage.ru_minflt as u64, (usage.ru_nvcsw + usage.ru_nivcsw) as u64)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn touched_memory_is_seen_as_anonymous_and_at_its_peak() {
        let (before, (faults, _)) = (resident(), faults_and_switches());
        // Far more than other tests of this process take or give back in the meantime.
        let block = std::hint::black_box(vec![1u8; 256 << 20]);
        let during = resident();
        assert!(during.anon >= before.anon + (128 << 20), "{before:?} then {during:?}");
        assert!(faults_and_switches().0 > faults, "touching fresh pages faults");
        drop(block);
        assert!(peak() >= during.rss - (4 << 20), "peak {} against {during:?}", peak());
    }
}
