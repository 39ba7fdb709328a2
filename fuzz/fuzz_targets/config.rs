#![no_main]
#![doc = "The target `config`: see `terrane_fuzz::targets::config`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| terrane_fuzz::targets::config::run(data));
