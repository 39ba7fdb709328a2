#![no_main]
#![doc = "The target `global`: see `terrane_fuzz::targets::global`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| terrane_fuzz::targets::global::run(data));
