//! Tells the loader never to unload `libterrane.so`: its threads' values, fork handlers and background thread are called by the
//! system at any time, and blocks outlive whoever closes the library.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo::rustc-link-arg-cdylib=-Wl,-z,nodelete");
    }
}
