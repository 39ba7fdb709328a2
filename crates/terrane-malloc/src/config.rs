//! Configuration by environment variables, read once when the library is loaded.
//!
//! | variable | values | default | meaning |
//! |---|---|---|---|
//! | `TERRANE_PURGE_DELAY_MS` | a number, or `never` | 250 | milliseconds that free memory is kept for reuse |
//! | `TERRANE_PURGE` | `now`, `lazy` | `now` | whether memory goes back at once or when the system needs it |
//! | `TERRANE_BACKGROUND` | `on`, `off` | `off` | a thread that gives memory back while the program is idle |
//! | `TERRANE_HUGE_CACHE_MIB` | a number | 256 | MiB of freed huge blocks kept for reuse |
//! | `TERRANE_LARGE_CACHE_MIB` | a number | 4 | MiB of freed large blocks that each thread keeps |
//! | `TERRANE_HUGE_PAGES` | `on`, `off` | `on` | transparent huge pages behind blocks above 4 MiB that are expected to be filled |
//! | `TERRANE_GUARDED` | `on`, `off` | `off` | reserved memory is inaccessible until it is used: for programs that call `mlockall` |
//! | `TERRANE_NUMA` | `on`, `off` | `off` | memory of each NUMA node kept apart |
//! | `TERRANE_REPORT` | a path, or `stderr` | none | where the report goes at exit |
//! | `TERRANE_REPORT_FORMAT` | `text`, `json` | `text` | its form |
//!
//! `1` and `0` mean `on` and `off`. A value that cannot be read is reported in one line and ignored, and so is a name that begins with
//! `TERRANE_` and is not in the table. Where no report file can be made there is no report.

use crate::settings::{BadSetting, Setting, read};
use core::ffi::{CStr, c_char};
use terrane_front::Background;
use terrane_front::process::{Line, domain};

unsafe extern "C" {
    static environ: *const *const c_char;
}

fn apply(setting: Setting<'_>) {
    let domain = domain();
    let mut purge = domain.policy().purge;
    match setting {
        Setting::PurgeDelay(ms) => purge.delay_ms = ms,
        Setting::Purge(how) => purge.how = how,
        Setting::HugeCache(bytes) => purge.huge_cache_bytes = bytes,
        Setting::LargeCache(bytes) => purge.large_cache_bytes = bytes,
        Setting::HugePages(on) => domain.set_huge_pages(on),
        Setting::Guarded(true) => domain.source().guard(),
        Setting::Guarded(false) => {}
        Setting::Numa(on) => terrane_front::process::set_numa(on),
        Setting::Background(on) => {
            // A thread that cannot be started leaves memory to be given back by activity.
            let _ = on && terrane_front::start_background_purge();
        }
        Setting::Report(path) => crate::report::send_to(path),
        Setting::ReportJson(json) => crate::report::set_json(json),
    }
    domain.set_purge(purge);
}

/// Runs when the library is loaded.
extern "C" fn read_environment() {
    // SAFETY: the system sets `environ` before any library is initialised, and nobody changes it meanwhile; it is a list of C
    // strings that ends with null.
    unsafe {
        // A C program may free while it holds locks that starting a thread takes.
        terrane_front::set_background(Background::Off);
        let mut next = environ;
        while !next.is_null() && !(*next).is_null() {
            let variable = CStr::from_ptr(*next).to_bytes();
            next = next.add(1);
            let Some(read) = read(variable) else { continue };
            match read.setting {
                Ok(setting) => apply(setting),
                Err(bad) => {
                    let why = match bad {
                        BadSetting::UnknownName => "unknown variable TERRANE_",
                        BadSetting::BadValue => "bad value ignored: TERRANE_",
                    };
                    let text = core::str::from_utf8(read.text).unwrap_or("(not text)");
                    Line::new().text("terrane: ").text(why).text(text).write(libc::STDERR_FILENO);
                }
            }
        }
    }
}

#[used]
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
static READ_ENVIRONMENT: extern "C" fn() = read_environment;
