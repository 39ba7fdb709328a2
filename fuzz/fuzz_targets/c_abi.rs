#![no_main]
#![doc = "The target `c_abi`: see `terrane_fuzz::targets::c_abi`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| terrane_fuzz::targets::c_abi::run(data));
