//! What the model files share: exploring, and planting faults.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use terrane_slab::fault::{Fault, plant};

/// Models share memory, so they take turns.
fn alone(f: impl FnOnce()) {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    f();
}

/// Runs `model` in every order of its threads that has at most this many preemptions.
pub fn check(preemptions: usize, iterations: &'static AtomicU64, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(move || {
        iterations.fetch_add(1, Ordering::Relaxed);
        model();
    });
}

/// Runs a model over the code as it is, and prints its line.
pub fn passes(name: &str, threads: usize, model: fn(&'static AtomicU64), iterations: &'static AtomicU64) {
    alone(|| {
        plant(None);
        model(iterations);
        println!("model {name} threads={threads} iterations={}", iterations.load(Ordering::Relaxed));
    });
}

/// Runs a model over the code with a fault, which it must find.
pub fn fails(fault: Fault, model: fn(&'static AtomicU64), iterations: &'static AtomicU64) {
    alone(|| {
        plant(Some(fault));
        let outcome = catch_unwind(AssertUnwindSafe(|| model(iterations)));
        plant(None);
        assert!(outcome.is_err(), "loom did not find {fault:?}");
    });
}

macro_rules! models {
    ($($name:ident: $model:ident, threads $threads:literal, faults [$($twin:ident: $fault:ident),*];)*) => {$(
        #[test]
        fn $name() {
            static ITERATIONS: AtomicU64 = AtomicU64::new(0);
            harness::passes(stringify!($model), $threads, $model, &ITERATIONS);
        }
        $(
            #[test]
            fn $twin() {
                static ITERATIONS: AtomicU64 = AtomicU64::new(0);
                harness::fails(Fault::$fault, $model, &ITERATIONS);
            }
        )*
    )*};
}
pub(crate) use models;
