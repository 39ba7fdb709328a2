#![no_main]
#![doc = "The target `private_heap`: see `terrane_fuzz::targets::private_heap`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| terrane_fuzz::targets::private_heap::run(data));
