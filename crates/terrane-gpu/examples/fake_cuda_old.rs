//! A driver library from before everything: all it can do is start. For the tests of what happens then.
#![allow(missing_docs, reason = "one function of the driver's")]

/// Starts.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the driver's name")]
pub extern "C" fn cuInit(_flags: u32) -> i32 {
    0
}
