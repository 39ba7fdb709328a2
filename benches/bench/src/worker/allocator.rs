//! The allocator under test: exactly one per build, chosen by feature, so that it is inlined as in a user's program.
//!
//! Invariant: without a feature the worker runs on the system allocator, declared like any other, and two features
//! at once do not compile.

/// The name that results carry.
pub const NAME: &str = CHOSEN.0;

macro_rules! choose {
    ($($feature:literal $name:literal $ty:ty = $value:expr;)+) => {
        $(
            #[cfg(feature = $feature)]
            #[global_allocator]
            static GLOBAL: $ty = $value;
        )+

        const CHOICES: &[(&str, bool)] = &[$(($name, cfg!(feature = $feature))),+];
    };
}

choose! {
    "peer-mimalloc2" "mimalloc2" mimalloc::MiMalloc = mimalloc::MiMalloc;
    "peer-mimalloc3" "mimalloc3" mimalloc::MiMalloc = mimalloc::MiMalloc;
    "peer-jemalloc" "jemalloc" tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
    "peer-snmalloc" "snmalloc" snmalloc_rs::SnMalloc = snmalloc_rs::SnMalloc;
    "peer-rpmalloc" "rpmalloc" rpmalloc::RpMalloc = rpmalloc::RpMalloc;
    "peer-rusty-alloc" "rusty_alloc" rusty_alloc_api::RustyAlloc = rusty_alloc_api::RustyAlloc;
    "peer-terrane" "terrane" terrane::Terrane = terrane::Terrane;
}

#[cfg(not(any(
    feature = "peer-mimalloc2",
    feature = "peer-mimalloc3",
    feature = "peer-jemalloc",
    feature = "peer-snmalloc",
    feature = "peer-rpmalloc",
    feature = "peer-rusty-alloc",
    feature = "peer-terrane",
)))]
#[global_allocator]
static GLOBAL: std::alloc::System = std::alloc::System;

const CHOSEN: (&str, bool) = {
    let mut found = ("system", true);
    let mut i = 0;
    while i < CHOICES.len() {
        if CHOICES[i].1 {
            found = CHOICES[i];
        }
        i += 1;
    }
    found
};
