#![no_main]
#![doc = "The target `size_class`: see `terrane_fuzz::targets::size_class`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| terrane_fuzz::targets::size_class::run(data));
