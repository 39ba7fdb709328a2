#![no_main]
#![doc = "The target `page_source`: see `terrane_fuzz::targets::page_source`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| terrane_fuzz::targets::page_source::run(data));
