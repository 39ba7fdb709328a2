//! Rust programs as people write them, in small: containers, parsers and trees from std and well-known crates.
//!
//! Invariant: inputs are made by fixed rules before the clock starts, and results are compared with what those rules
//! imply.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use crate::gang::{Measured, Plan, gang};
use crate::probe::Quiet;
use crate::rng::Rng;

/// A document of `users` records of the kind that web services answer with.
fn document(users: usize) -> String {
    let mut rng = Rng::new(1);
    let mut text = String::from("{\"users\":[");
    for id in 0..users {
        let comma = if id == 0 { "" } else { "," };
        let tags: Vec<String> = (0..rng.below(6)).map(|_| format!("\"tag-{}\"", rng.below(1000))).collect();
        let _ = write!(
            text,
            "{comma}{{\"id\":{id},\"name\":\"user {id}\",\"mail\":\"u{id}@example.org\",\"score\":{}.5,\
             \"active\":{},\"tags\":[{}],\"place\":{{\"lat\":{},\"long\":{},\"city\":null}}}}",
            rng.below(1000),
            rng.below(2) == 0,
            tags.join(","),
            rng.below(90),
            rng.below(180),
        );
    }
    text.push_str("]}");
    text
}

/// Parses, edits and prints a JSON document.
pub fn json(plan: Plan) -> Measured {
    let text = document(400);
    let rounds = plan.share(300);
    gang::<Quiet>(plan, |_, _, gate| {
        gate.start();
        for round in 0..rounds {
            let mut tree: serde_json::Value = serde_json::from_str(&text).expect("the document is valid");
            let users = tree["users"].as_array_mut().expect("users is an array");
            for user in users.iter_mut().step_by(3) {
                user["name"] = format!("renamed in round {round}").into();
                user["seen"] = serde_json::json!([round, "today"]);
            }
            users.retain(|user| user["id"].as_u64().is_some_and(|id| id % 7 != 6));
            let left = users.len();
            let printed = tree.to_string();
            assert_eq!(left, 400 - 57, "users whose number is 6 modulo 7 are gone");
            assert!(
                printed.len() > text.len() / 2 && printed.contains("renamed in round"),
                "the edit is printed"
            );
        }
        gate.end(rounds as u64);
    })
}

/// Inserts and removes random entries of a tree map.
pub fn btree(plan: Plan) -> Measured {
    let count = plan.share(1_500_000);
    let keys = plan.share(200_000).max(100);
    gang::<Quiet>(plan, |index, _, gate| {
        let mut rng = Rng::new(index as u64);
        gate.start();
        let mut map: BTreeMap<usize, Box<[usize; 4]>> = BTreeMap::new();
        for _ in 0..count {
            let key = rng.below(keys);
            match map.remove(&key) {
                Some(value) => assert!(value[3] == key ^ 3, "the value belongs to its key"),
                None => drop(map.insert(key, Box::new([key, 1, 2, key ^ 3]))),
            }
        }
        drop(map);
        gate.end(count as u64);
    })
}

/// Inserts and removes random entries of a hash map of strings.
pub fn hashmap(plan: Plan) -> Measured {
    let count = plan.share(1_200_000);
    let keys = plan.share(100_000).max(100);
    gang::<Quiet>(plan, |index, _, gate| {
        let mut rng = Rng::new(index as u64);
        gate.start();
        let mut map: HashMap<String, Vec<u32>> = HashMap::new();
        for _ in 0..count {
            let number = rng.below(keys);
            let key = format!("key number {number}");
            match map.remove(&key) {
                Some(value) => {
                    assert!(value.last() == Some(&(number as u32)), "the value belongs to its key")
                }
                None => drop(map.insert(key, vec![number as u32; 1 + number % 8])),
            }
        }
        drop(map);
        gate.end(count as u64);
    })
}

/// Interns words of a skewed distribution.
pub fn intern(plan: Plan) -> Measured {
    const ROUNDS: usize = 5;
    let count = plan.share(500_000);
    gang::<Quiet>(plan, |index, _, gate| {
        let mut rng = Rng::new(index as u64);
        let mut word = String::with_capacity(32);
        gate.start();
        for _ in 0..ROUNDS {
            let mut numbers: HashMap<Box<str>, u32> = HashMap::new();
            let mut words: Vec<Box<str>> = Vec::new();
            for _ in 0..count {
                word.clear();
                // Small numbers are drawn far more often than large ones.
                let limit = rng.log_uniform(8, 1 << 21);
                let draw = rng.below(limit);
                write!(word, "{draw:x}-identifier").expect("writing to a string succeeds");
                let number = match numbers.get(word.as_str()) {
                    Some(number) => *number,
                    None => {
                        let number = words.len() as u32;
                        words.push(word.as_str().into());
                        numbers.insert(word.as_str().into(), number);
                        number
                    }
                };
                assert!(*words[number as usize] == *word, "a number leads back to its word");
            }
        }
        gate.end((ROUNDS * count) as u64);
    })
}

/// A source file of `items` functions, structures and implementations.
fn source(items: usize) -> String {
    let mut rng = Rng::new(2);
    let mut text = String::new();
    for i in 0..items {
        let (a, b) = (rng.below(100), rng.below(1000));
        let _ = write!(
            text,
            "/// Item {i}.\n#[derive(Debug, Clone)]\npub struct S{i}<T: Clone> {{ a: Vec<Option<T>>, b: [u8; {a}], c: \
             Box<dyn Fn(&str) -> Result<T, String>> }}\n\
             impl<T: Clone> S{i}<T> {{\n    pub fn f{i}(&self, x: usize, y: &mut Vec<u64>) -> Result<usize, String> \
             {{\n        let mut sum = {b};\n        for (k, v) in y.iter_mut().enumerate().filter(|(k, _)| k % 3 == \
             {}) {{\n            *v += (x as u64 + {a}) * k as u64;\n            match (*v % 7, k) {{ (0, _) => \
             continue, (1 | 2, k) if k > x => sum += k, _ => {{ sum ^= x.wrapping_mul({b}); }} }}\n        }}\n        \
             if let Some(Some(_)) = self.a.get(sum % {}) {{ return Err(format!(\"bad {{}} in {i}\", sum)); }}\n        \
             Ok(sum + self.b.len())\n    }}\n}}\n",
            a % 3,
            a + 1,
        );
    }
    text
}

/// Tables of 24 columns, updated row by row.
pub fn columns(plan: Plan) -> Measured {
    const COLUMNS: usize = 24;
    const PASSES: usize = 4;
    let tables = plan.share(60);
    gang::<Quiet>(plan, |index, _, gate| {
        let mut rng = Rng::new(index as u64);
        let mut cells = 0;
        gate.start();
        for _ in 0..tables {
            let rows = rng.within(5_000, 40_000);
            let mut table: Vec<Vec<f64>> = (1..=COLUMNS).map(|column| vec![column as f64; rows]).collect();
            for _ in 0..PASSES {
                for row in 0..rows {
                    for column in &mut table {
                        column[row] += 1.0;
                    }
                }
            }
            cells += PASSES * COLUMNS * rows;
            let last_row: f64 = table.iter().map(|column| column[rows - 1]).sum();
            let want = COLUMNS * (COLUMNS + 1) / 2 + PASSES * COLUMNS;
            assert_eq!(last_row, want as f64, "every cell of the last row was updated in every pass");
        }
        gate.end(cells as u64);
    })
}

/// Parses a large source file into a syntax tree.
pub fn syn(plan: Plan) -> Measured {
    const ITEMS: usize = 400;
    let text = source(ITEMS);
    let rounds = plan.share(12);
    gang::<Quiet>(plan, |_, _, gate| {
        gate.start();
        for _ in 0..rounds {
            let file = syn::parse_file(&text).expect("the source is valid Rust");
            assert_eq!(file.items.len(), 2 * ITEMS, "a structure and an implementation each");
        }
        gate.end(rounds as u64);
    })
}
