//! The report: what the allocator held and did, as text, JSON or XML, written without allocating.
//!
//! At exit it goes to the file that `TERRANE_REPORT` names, because many programs have closed their standard error by then. A
//! program that runs others passes the variable on; the report is that of the process that came first, also if it has
//! become another program by `exec`. So the process that loads the library first leaves its number in the file, and only the
//! process with that number writes the report there. A number whose process is gone was left by one that ended without running
//! exit handlers, and counts for nothing. On standard error every process reports.

use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use terrane_front::{Snapshot, snapshot};

/// Longest path of a report.
const PATH_MAX: usize = 4096;

struct Path(UnsafeCell<[u8; PATH_MAX]>);
// SAFETY: written once while the library is loaded, before there is a second thread, and read after that.
unsafe impl Sync for Path {}

static PATH: Path = Path(UnsafeCell::new([0; PATH_MAX]));
static WANTED: AtomicBool = AtomicBool::new(false);
static JSON: AtomicBool = AtomicBool::new(false);
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// Chooses JSON or text.
pub(crate) fn set_json(json: bool) {
    JSON.store(json, Ordering::Relaxed);
}

/// Asks for a report at exit in the file at `path`. A path that is too long is ignored.
pub(crate) fn send_to(path: &[u8]) {
    if path.len() >= PATH_MAX {
        return;
    }
    // SAFETY: called while the library is loaded; see `Path`.
    unsafe { (&mut *PATH.0.get())[..path.len()].copy_from_slice(path) };
    // SAFETY: asks for a number.
    let me = unsafe { libc::getpid() } as u32;
    PROCESS.store(me, Ordering::Relaxed);
    if path != b"stderr" {
        match owner() {
            Some(first) if first != me && is_alive(first) => return,
            _ => {
                let Some(file) = Output::create() else { return };
                let mut file = file;
                // The file is new: what cannot be written now cannot be written at exit either, and then there is no report.
                let _ = writeln!(file, "{me}");
            }
        }
    }
    WANTED.store(true, Ordering::Relaxed);
    // SAFETY: registers a function that stays loaded.
    unsafe { libc::atexit(at_exit) };
}

fn path() -> &'static [u8; PATH_MAX] {
    // SAFETY: see `Path`.
    unsafe { &*PATH.0.get() }
}

/// The process that the report file belongs to, if it says so.
fn owner() -> Option<u32> {
    let mut text = [0_u8; 16];
    // SAFETY: the path ends with a zero byte, and `text` can be written.
    let got = unsafe {
        let file = libc::open(path().as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
        if file < 0 {
            return None;
        }
        let got = libc::read(file, text.as_mut_ptr().cast(), text.len());
        libc::close(file);
        got
    };
    let text = core::str::from_utf8(text.get(..usize::try_from(got).ok()?)?).ok()?;
    text.lines().next()?.parse().ok()
}

/// Whether there is a process with this number.
fn is_alive(process: u32) -> bool {
    let Ok(process @ 1..) = libc::pid_t::try_from(process) else { return false };
    // SAFETY: signal 0 is sent to nobody; the call says whether it could be.
    let refused = unsafe { libc::kill(process, 0) } != 0;
    // SAFETY: the location is the calling thread's own.
    !refused || unsafe { *libc::__errno_location() } != libc::ESRCH
}

/// A file descriptor with a buffer.
struct Output {
    descriptor: c_int,
    close: bool,
    buffer: [u8; 1024],
    used: usize,
}

impl Output {
    fn new(descriptor: c_int, close: bool) -> Self {
        Self { descriptor, close, buffer: [0; 1024], used: 0 }
    }

    fn create() -> Option<Self> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC;
        // SAFETY: the path ends with a zero byte.
        let descriptor = unsafe { libc::open(path().as_ptr().cast(), flags, 0o644) };
        (descriptor >= 0).then(|| Self::new(descriptor, true))
    }

    fn flush(&mut self) {
        let mut rest = &self.buffer[..self.used];
        while !rest.is_empty() {
            // SAFETY: the bytes are readable.
            let written = unsafe { libc::write(self.descriptor, rest.as_ptr().cast(), rest.len()) };
            let Ok(written @ 1..) = usize::try_from(written) else { break };
            rest = &rest[written..];
        }
        self.used = 0;
    }
}

impl Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.used == self.buffer.len() {
                self.flush();
            }
            self.buffer[self.used] = byte;
            self.used += 1;
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.flush();
        if self.close {
            // SAFETY: the descriptor is ours.
            unsafe { libc::close(self.descriptor) };
        }
    }
}

/// What the system says of the process.
struct Usage {
    faults_minor: i64,
    faults_major: i64,
    kernel_ms: i64,
    user_ms: i64,
    peak_resident_kib: i64,
}

fn usage() -> Usage {
    // SAFETY: a zeroed `rusage` is a valid one, and the call fills it in.
    let usage = unsafe {
        let mut usage: libc::rusage = core::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let ms = |time: libc::timeval| time.tv_sec * 1000 + time.tv_usec / 1000;
    Usage {
        faults_minor: usage.ru_minflt,
        faults_major: usage.ru_majflt,
        kernel_ms: ms(usage.ru_stime),
        user_ms: ms(usage.ru_utime),
        peak_resident_kib: usage.ru_maxrss,
    }
}

struct Mib(u64);

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One decimal, rounded down, without floating point.
        let tenths = (self.0 * 10) >> 20;
        write!(f, "{:>8}.{} MiB", tenths / 10, tenths % 10)
    }
}

/// The counters that every form of the report has, with their names.
fn counters(s: &Snapshot) -> [(&'static str, u64); 26] {
    [
        ("allocations", s.allocations()),
        ("live_bytes", s.live_bytes()),
        ("committed_bytes", s.committed_bytes),
        ("peak_committed_bytes", s.peak_committed_bytes),
        ("reserved_bytes", s.reserved_bytes),
        ("large_live_bytes", s.large_live_bytes),
        ("huge_live_bytes", s.huge_live_bytes),
        ("large_allocated", s.large_allocated),
        ("large_freed", s.large_freed),
        ("large_cached", s.large_cached),
        ("huge_allocated", s.huge_allocated),
        ("huge_freed", s.huge_freed),
        ("heaps", s.heaps),
        ("heaps_used", s.heaps_used),
        ("refills", s.refills),
        ("flushes", s.flushes),
        ("remote_frees", s.remote_frees),
        ("remote_batches", s.remote_batches),
        ("steals", s.steals),
        ("claims", s.claims),
        ("arenas", s.arenas),
        ("segments", s.segments),
        ("purges", s.purges),
        ("purged_bytes", s.purged_bytes),
        ("grown_in_place", s.grown_in_place),
        ("remapped", s.remapped),
    ]
}

fn text(out: &mut impl Write) -> fmt::Result {
    let (s, u) = (snapshot(), usage());
    writeln!(out, "terrane heap report")?;
    writeln!(out, "  live        {}   in use by the program", Mib(s.live_bytes()))?;
    writeln!(out, "  committed   {}   in slabs, large and huge blocks", Mib(s.committed_bytes))?;
    writeln!(out, "  peak        {}   of committed", Mib(s.peak_committed_bytes))?;
    writeln!(
        out,
        "  reserved    {}   address space, {} arenas, {} segments",
        Mib(s.reserved_bytes),
        s.arenas,
        s.segments
    )?;
    writeln!(out, "  given back  {}   in {} purges", Mib(s.purged_bytes), s.purges)?;
    writeln!(
        out,
        "  allocations {:>14}   {} large ({} from caches), {} huge, {} grown in place, {} remapped",
        s.allocations(),
        s.large_allocated,
        s.large_cached,
        s.huge_allocated,
        s.grown_in_place,
        s.remapped
    )?;
    writeln!(
        out,
        "  threads     {:>14}   heaps made, {} in use; {} refills, {} flushes",
        s.heaps, s.heaps_used, s.refills, s.flushes
    )?;
    writeln!(
        out,
        "  remote      {:>14}   frees in {} batches; {} slabs stolen, {} claimed",
        s.remote_frees, s.remote_batches, s.steals, s.claims
    )?;
    writeln!(
        out,
        "  process     {:>14}   page faults ({} major), {} ms user, {} ms kernel, {} KiB peak resident",
        u.faults_minor + u.faults_major,
        u.faults_major,
        u.user_ms,
        u.kernel_ms,
        u.peak_resident_kib
    )?;
    writeln!(out, "  class   block bytes     allocations        blocks out    slabs made     retired")?;
    for (class, c) in s.classes.iter().enumerate().filter(|(_, c)| c.taken > 0) {
        writeln!(
            out,
            "  {class:>5} {:>13} {:>15} {:>17} {:>13} {:>11}",
            c.block_bytes,
            c.allocations(),
            c.out() - c.in_own_list.min(c.out()),
            c.slabs_made,
            c.slabs_retired
        )?;
    }
    Ok(())
}

fn json(out: &mut impl Write) -> fmt::Result {
    let (s, u) = (snapshot(), usage());
    write!(out, "{{")?;
    for (name, value) in counters(&s) {
        write!(out, "\"{name}\":{value},")?;
    }
    write!(
        out,
        "\"page_faults\":{},\"major_faults\":{},\"user_ms\":{},\"kernel_ms\":{},\"peak_resident_kib\":{},\"classes\":[",
        u.faults_minor + u.faults_major,
        u.faults_major,
        u.user_ms,
        u.kernel_ms,
        u.peak_resident_kib
    )?;
    let mut first = true;
    for (class, c) in s.classes.iter().enumerate().filter(|(_, c)| c.taken > 0) {
        write!(
            out,
            "{}{{\"class\":{class},\"block_bytes\":{},\"allocations\":{},\"out\":{},\"slabs_made\":{},\"slabs_retired\":{}}}",
            if first { "" } else { "," },
            c.block_bytes,
            c.allocations(),
            c.out() - c.in_own_list.min(c.out()),
            c.slabs_made,
            c.slabs_retired
        )?;
        first = false;
    }
    writeln!(out, "]}}")
}

/// Writes the report as text to `descriptor`.
pub(crate) fn write_text(descriptor: c_int) {
    // `Output` reports no errors: what cannot be written is lost.
    let _ = text(&mut Output::new(descriptor, false));
}

extern "C" fn at_exit() {
    // SAFETY: asks for a number.
    let me = unsafe { libc::getpid() } as u32;
    if !WANTED.load(Ordering::Relaxed) || PROCESS.load(Ordering::Relaxed) != me {
        return;
    }
    let to_stderr = path().starts_with(b"stderr\0");
    let out = if to_stderr { Some(Output::new(libc::STDERR_FILENO, false)) } else { Output::create() };
    let Some(mut out) = out else { return };
    // `Output` reports no errors: what cannot be written is lost.
    let _ = if JSON.load(Ordering::Relaxed) { json(&mut out) } else { text(&mut out) };
}

/// A C stream, as something to write to.
struct Stream(*mut libc::FILE);

impl Write for Stream {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // SAFETY: the stream is open, as the caller of `write_xml` promised.
        let written = unsafe { libc::fwrite(text.as_ptr().cast(), 1, text.len(), self.0) };
        if written == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Writes the counters as XML to `stream`; whether that worked.
///
/// # Safety
/// The stream is open for writing.
pub(crate) unsafe fn write_xml(stream: *mut libc::FILE) -> bool {
    let mut out = Stream(stream);
    let s = snapshot();
    let mut write = || -> fmt::Result {
        writeln!(out, "<malloc version=\"terrane-1\">")?;
        for (name, value) in counters(&s) {
            writeln!(out, "<{name}>{value}</{name}>")?;
        }
        for (class, c) in s.classes.iter().enumerate().filter(|(_, c)| c.taken > 0) {
            writeln!(
                out,
                "<class nr=\"{class}\" size=\"{}\" allocations=\"{}\" out=\"{}\"/>",
                c.block_bytes,
                c.allocations(),
                c.out()
            )?;
        }
        writeln!(out, "</malloc>")
    };
    write().is_ok()
}
