//! The throw-away program of the check `only-rust`.

use std::collections::HashMap;
use std::thread;

#[global_allocator]
static GLOBAL: terrane::Terrane = terrane::Terrane;

fn main() {
    let workers: Vec<_> = (0..8_u64)
        .map(|worker| thread::spawn(move || (0..10_000).map(|i| Box::new(worker * 10_000 + i)).collect::<Vec<_>>()))
        .collect();
    // The boxes were made by threads that are gone, and are freed here.
    let boxes: Vec<Box<u64>> = workers.into_iter().flat_map(|worker| worker.join().expect("no worker panics")).collect();
    let names: HashMap<String, u64> = boxes.iter().map(|number| (number.to_string(), **number)).collect();
    assert_eq!(names.len(), boxes.len());
    println!("sum {} on terrane", names.values().sum::<u64>());
}
