//! Configuration: any environment entry is read without a panic and as a second reader of the same table reads it; what
//! could be read goes into the policy of a heap, whatever the numbers are, and the heap still holds what is written to it.

#[path = "../../../crates/terrane-malloc/src/settings.rs"]
mod settings;

use crate::bytes::Bytes;
use crate::heap::OneHeap;
use crate::model::Model;
use settings::{BadSetting, Setting};
use std::alloc::Layout;
use std::cell::Cell;
use terrane_core::Decommit;
use terrane_pages::Mmap;
use terrane_slab::domain::Policy;
use terrane_slab::{Growth, PrivateHeap, PurgePolicy};

/// The names of the table, and values at the edges of what they take.
const NAMES: [&str; 12] = [
    "GUARDED",
    "PURGE_DELAY_MS",
    "PURGE",
    "BACKGROUND",
    "HUGE_CACHE_MIB",
    "LARGE_CACHE_MIB",
    "HUGE_PAGES",
    "NUMA",
    "REPORT",
    "REPORT_FORMAT",
    "",
    "PURGE_DELAY",
];
const VALUES: [&str; 20] = [
    "0",
    "1",
    "250",
    "never",
    "now",
    "lazy",
    "on",
    "off",
    "text",
    "json",
    "stderr",
    "",
    "-1",
    "+1",
    " 1",
    "18446744073709551615",
    "18446744073709551616",
    "17592186044415",
    "17592186044416",
    "1e3",
];

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
}

/// A decimal number without Rust's own parser: digits after at most one `+`.
fn decimal(value: &[u8]) -> Option<u128> {
    let digits = value.strip_prefix(b"+").unwrap_or(value);
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let number = digits.iter().fold(0_u128, |sum, &digit| {
        sum.saturating_mul(10).saturating_add(u128::from(digit.wrapping_sub(b'0')))
    });
    (is_number && number <= u128::from(u64::MAX)).then_some(number)
}

/// The table, written a second time.
fn expected<'a>(name: &str, value: &'a [u8]) -> Result<Setting<'a>, BadSetting> {
    let switch = || match value {
        b"on" | b"1" => Ok(true),
        b"off" | b"0" => Ok(false),
        _ => Err(BadSetting::BadValue),
    };
    let bytes = || {
        decimal(value).and_then(|mebibytes| usize::try_from(mebibytes << 20).ok()).ok_or(BadSetting::BadValue)
    };
    match (name, value) {
        ("PURGE_DELAY_MS", b"never") => Ok(Setting::PurgeDelay(u64::MAX)),
        ("PURGE_DELAY_MS", _) => decimal(value)
            .map(|number| Setting::PurgeDelay(u64::try_from(number).expect("it fits, as it was checked")))
            .ok_or(BadSetting::BadValue),
        ("PURGE", b"now") => Ok(Setting::Purge(Decommit::Now)),
        ("PURGE", b"lazy") => Ok(Setting::Purge(Decommit::Lazy)),
        ("HUGE_CACHE_MIB", _) => bytes().map(Setting::HugeCache),
        ("LARGE_CACHE_MIB", _) => bytes().map(Setting::LargeCache),
        ("HUGE_PAGES", _) => switch().map(Setting::HugePages),
        ("GUARDED", _) => switch().map(Setting::Guarded),
        ("NUMA", _) => switch().map(Setting::Numa),
        ("BACKGROUND", _) => switch().map(Setting::Background),
        ("REPORT", path) if !path.is_empty() => Ok(Setting::Report(path)),
        ("REPORT_FORMAT", b"text") => Ok(Setting::ReportJson(false)),
        ("REPORT_FORMAT", b"json") => Ok(Setting::ReportJson(true)),
        ("PURGE" | "REPORT" | "REPORT_FORMAT", _) => Err(BadSetting::BadValue),
        _ => Err(BadSetting::UnknownName),
    }
}

fn read(name: &[u8], value: &[u8], policy: &mut Policy) {
    let entry = [b"TERRANE_", name, b"=", value].concat();
    let found = settings::read(&entry).expect("the entry begins with our name and has a value");
    assert_eq!(found.text, &entry[8..]);
    // The name ends at the first equals sign.
    let equals = found.text.iter().position(|&byte| byte == b'=').expect("one was put in");
    let (name, value) = (&found.text[..equals], &found.text[equals + 1..]);
    assert_eq!(settings::parse(name, value), found.setting);
    match std::str::from_utf8(name) {
        Ok(name) => assert_eq!(found.setting, expected(name, value), "{name}={}", value.escape_ascii()),
        Err(_) => assert_eq!(found.setting, Err(BadSetting::UnknownName)),
    }
    assert_eq!(settings::read(&entry[..8 + equals]), None, "without an equals sign there is no value");
    match found.setting {
        Ok(Setting::PurgeDelay(ms)) => policy.purge.delay_ms = ms,
        Ok(Setting::Purge(how)) => policy.purge.how = how,
        Ok(Setting::HugeCache(bytes)) => policy.purge.huge_cache_bytes = bytes,
        Ok(Setting::LargeCache(bytes)) => policy.purge.large_cache_bytes = bytes,
        Ok(Setting::HugePages(on)) => policy.huge_pages = on,
        _ => {}
    }
}

/// Carries out what the bytes say.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    // The whole input as one entry, whatever it is: it is ours exactly when it begins so and has an equals sign.
    let is_ours = data.strip_prefix(b"TERRANE_").is_some_and(|rest| rest.contains(&b'='));
    assert_eq!(settings::read(data).is_some(), is_ours);

    let mut policy =
        Policy { growth: Growth::SMALL, clock: || NOW.get(), purge: PurgePolicy::DEFAULT, ..Policy::DEFAULT };
    for _ in 0..bytes.byte() % 8 {
        let name = NAMES[bytes.below(NAMES.len())].as_bytes();
        let shape = bytes.byte();
        if shape < 128 {
            read(name, VALUES[usize::from(shape) % VALUES.len()].as_bytes(), &mut policy);
        } else {
            let value: Vec<u8> = (0..shape % 24).map(|_| bytes.byte()).collect();
            read(if shape < 240 { name } else { &value[..value.len() / 2] }, &value, &mut policy);
        }
    }
    NOW.set(if bytes.byte() < 128 { bytes.number(2) } else { bytes.number(8) });
    let subject = OneHeap(PrivateHeap::with_policy(Mmap::new(), policy, ()).expect("a page for the heap"));
    let mut model = Model::new(&subject);
    while !bytes.is_empty() {
        let operation = bytes.byte();
        match operation % 6 {
            0 | 1 => model.allocate(bytes.layout(), operation >= 128, operation),
            2 => {
                // Large and huge blocks: what the caches of the policy keep.
                let size = 1_usize << (15 + bytes.below(10));
                let layout = Layout::from_size_align(size, 16).expect("a power of two");
                (0..bytes.byte() % 8).for_each(|seed| model.allocate(layout, false, seed));
            }
            3 => (0..bytes.byte() % 16).for_each(|_| {
                if !model.is_empty() {
                    model.free(bytes.below(model.len()));
                }
            }),
            4 if operation >= 128 && !model.is_empty() => {
                let index = bytes.below(model.len());
                model.resize(index, bytes.size());
            }
            4 => NOW.set(NOW.get().saturating_add(bytes.number(2))),
            _ => subject.0.release_free_memory(),
        }
    }
    model.end();
}
