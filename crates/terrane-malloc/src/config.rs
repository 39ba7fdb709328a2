//! Configuration by environment variables, read once when the library is loaded.
//!
//! | variable | values | default | meaning |
//! |---|---|---|---|
//! | `TERRANE_PURGE_DELAY_MS` | a number, or `never` | 250 | milliseconds that free memory is kept for reuse |
//! | `TERRANE_PURGE` | `now`, `lazy` | `now` | whether memory goes back at once or when the system needs it |
//! | `TERRANE_BACKGROUND` | `on`, `off` | `off` | a thread that gives memory back while the program is idle |
//! | `TERRANE_HUGE_CACHE_MIB` | a number | 256 | MiB of freed huge blocks kept for reuse |
//! | `TERRANE_LARGE_CACHE_MIB` | a number | 4 | MiB of freed large blocks that each thread keeps |
//! | `TERRANE_HUGE_PAGES` | `on`, `off` | `on` | transparent huge pages behind blocks that grow large |
//! | `TERRANE_NUMA` | `on`, `off` | `off` | memory of each NUMA node kept apart |
//! | `TERRANE_REPORT` | a path, or `stderr` | none | where the report goes at exit |
//! | `TERRANE_REPORT_FORMAT` | `text`, `json` | `text` | its form |
//!
//! A value that cannot be read is reported in one line and ignored, and so is a name that begins with `TERRANE_` and is not in
//! the table.

use core::ffi::{CStr, c_char};
use terrane_core::Decommit;
use terrane_front::process::{Line, domain};

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// What a variable asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setting<'a> {
    /// `TERRANE_PURGE_DELAY_MS`.
    PurgeDelay(u64),
    /// `TERRANE_PURGE`.
    Purge(Decommit),
    /// `TERRANE_HUGE_CACHE_MIB`, in bytes.
    HugeCache(usize),
    /// `TERRANE_LARGE_CACHE_MIB`, in bytes.
    LargeCache(usize),
    /// `TERRANE_HUGE_PAGES`.
    HugePages(bool),
    /// `TERRANE_NUMA`.
    Numa(bool),
    /// `TERRANE_BACKGROUND`.
    Background(bool),
    /// `TERRANE_REPORT`.
    Report(&'a [u8]),
    /// `TERRANE_REPORT_FORMAT`: whether it is JSON.
    ReportJson(bool),
}

/// Why a variable asks for nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadSetting {
    /// No variable has this name.
    UnknownName,
    /// The value is not one of the variable's.
    BadValue,
}

fn number(value: &[u8]) -> Option<u64> {
    core::str::from_utf8(value).ok()?.parse().ok()
}

fn mebibytes(value: &[u8]) -> Option<usize> {
    usize::try_from(number(value)?.checked_mul(1 << 20)?).ok()
}

fn switch(value: &[u8]) -> Option<bool> {
    match value {
        b"on" | b"1" => Some(true),
        b"off" | b"0" => Some(false),
        _ => None,
    }
}

/// Reads one variable whose name begins with `TERRANE_`; `name` is what follows.
///
/// # Errors
/// [`BadSetting`].
pub fn parse<'a>(name: &[u8], value: &'a [u8]) -> Result<Setting<'a>, BadSetting> {
    let setting = match name {
        b"PURGE_DELAY_MS" if value == b"never" => Some(Setting::PurgeDelay(u64::MAX)),
        b"PURGE_DELAY_MS" => number(value).map(Setting::PurgeDelay),
        b"PURGE" => match value {
            b"now" => Some(Setting::Purge(Decommit::Now)),
            b"lazy" => Some(Setting::Purge(Decommit::Lazy)),
            _ => None,
        },
        b"HUGE_CACHE_MIB" => mebibytes(value).map(Setting::HugeCache),
        b"LARGE_CACHE_MIB" => mebibytes(value).map(Setting::LargeCache),
        b"HUGE_PAGES" => switch(value).map(Setting::HugePages),
        b"BACKGROUND" => switch(value).map(Setting::Background),
        b"NUMA" => switch(value).map(Setting::Numa),
        b"REPORT" => (!value.is_empty()).then_some(Setting::Report(value)),
        b"REPORT_FORMAT" => match value {
            b"text" => Some(Setting::ReportJson(false)),
            b"json" => Some(Setting::ReportJson(true)),
            _ => None,
        },
        _ => return Err(BadSetting::UnknownName),
    };
    setting.ok_or(BadSetting::BadValue)
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
        Setting::Numa(on) => domain.set_nodes(if on { terrane_pages::numa::node_count() } else { 1 }),
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
        let mut next = environ;
        while !next.is_null() && !(*next).is_null() {
            let variable = CStr::from_ptr(*next).to_bytes();
            next = next.add(1);
            let Some(rest) = variable.strip_prefix(b"TERRANE_") else { continue };
            let Some(equals) = rest.iter().position(|&byte| byte == b'=') else { continue };
            let (name, value) = (&rest[..equals], &rest[equals + 1..]);
            match parse(name, value) {
                Ok(setting) => apply(setting),
                Err(bad) => {
                    let why = match bad {
                        BadSetting::UnknownName => "unknown variable TERRANE_",
                        BadSetting::BadValue => "bad value ignored: TERRANE_",
                    };
                    let text = core::str::from_utf8(rest).unwrap_or("(not text)");
                    Line::new().text("terrane: ").text(why).text(text).write(libc::STDERR_FILENO);
                }
            }
        }
    }
}

#[used]
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
static READ_ENVIRONMENT: extern "C" fn() = read_environment;
