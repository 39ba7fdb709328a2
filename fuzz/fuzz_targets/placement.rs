#![no_main]
#![doc = "The target `placement`: see `terrane_fuzz::targets::placement`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| terrane_fuzz::targets::placement::run(data));
