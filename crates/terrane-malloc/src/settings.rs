//! Settings as text: one environment variable at a time, without allocating and without applying anything.
//!
//! Invariant: whether an entry is a setting, and which, depends on the entry alone; no bytes make the reader panic. The
//! table of names and values is in [`config`](crate::config).

use terrane_core::Decommit;

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
    /// `TERRANE_GUARDED`.
    Guarded(bool),
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
        b"GUARDED" => switch(value).map(Setting::Guarded),
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

/// An entry of the environment whose name begins with `TERRANE_`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Read<'a> {
    /// The entry behind that beginning, for messages.
    pub text: &'a [u8],
    /// What it asks for.
    pub setting: Result<Setting<'a>, BadSetting>,
}

/// Reads an entry `NAME=value`; `None` if it is not ours, or no such entry at all.
pub fn read(entry: &[u8]) -> Option<Read<'_>> {
    let text = entry.strip_prefix(b"TERRANE_")?;
    let equals = text.iter().position(|&byte| byte == b'=')?;
    Some(Read { text, setting: parse(&text[..equals], &text[equals + 1..]) })
}
