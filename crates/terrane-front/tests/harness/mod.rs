//! What the model files share: exploring, and planting faults.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use terrane_front::fault::{Fault, plant};
use terrane_slab::fault::plant as plant_in_slab;

/// Runs `model` in every order of its threads that has at most this many preemptions.
pub fn check(preemptions: usize, iterations: &'static AtomicU64, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || {
        iterations.fetch_add(1, Ordering::Relaxed);
        model();
    });
}

/// Runs a model over the code as it is, and prints its line.
pub fn passes(name: &str, threads: usize, model: fn(&'static AtomicU64), iterations: &'static AtomicU64) {
    clear();
    model(iterations);
    println!("model {name} threads={threads} iterations={}", iterations.load(Ordering::Relaxed));
}

/// Runs a model over the code with the fault that `set` plants, which it must find.
pub fn fails(set: fn(), fault: &str, model: fn(&'static AtomicU64), iterations: &'static AtomicU64) {
    clear();
    set();
    let outcome = catch_unwind(AssertUnwindSafe(|| model(iterations)));
    clear();
    assert!(outcome.is_err(), "loom did not find {fault}");
}

/// Plants a fault of the front end.
pub fn front(fault: Fault) {
    plant(Some(fault));
}

fn clear() {
    plant(None);
    plant_in_slab(None);
}

macro_rules! models {
    ($($name:ident: $model:ident, threads $threads:literal, faults [$($twin:ident: $plant:expr),*];)*) => {$(
        #[test]
        fn $name() {
            static ITERATIONS: AtomicU64 = AtomicU64::new(0);
            harness::passes(stringify!($model), $threads, $model, &ITERATIONS);
        }
        $(
            #[test]
            fn $twin() {
                static ITERATIONS: AtomicU64 = AtomicU64::new(0);
                harness::fails(|| $plant, stringify!($plant), $model, &ITERATIONS);
            }
        )*
    )*};
}
pub(crate) use models;
