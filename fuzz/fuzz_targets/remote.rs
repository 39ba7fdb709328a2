#![no_main]
#![doc = "The target `remote`: see `terrane_fuzz::targets::remote`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| terrane_fuzz::targets::remote::run(data));
