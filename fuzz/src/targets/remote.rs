//! `Terrane` on two threads that take turns as the bytes say: blocks made by one are freed and resized by the other, a
//! thread ends with blocks of both in its lists and a new one takes its place. One step runs at a time, so that an input
//! always does the same; what runs at the same time is left to the models and the stress tests.

use crate::bytes::Bytes;
use crate::model::Model;
use std::alloc::Layout;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

static TERRANE: terrane::Terrane = terrane::Terrane;

/// One operation on the model, carried out by whoever's turn it is.
enum Step {
    Allocate { layout: Layout, zeroed: bool, count: u8, seed: u8 },
    Free { index: usize, count: u8 },
    Resize { index: usize, size: usize },
    Collect,
}

fn carry_out(model: &mut Model<'static, terrane::Terrane>, step: Step) {
    match step {
        Step::Allocate { layout, zeroed, count, seed } => {
            (0..count.max(1)).for_each(|offset| model.allocate(layout, zeroed, seed.wrapping_add(offset)));
        }
        Step::Free { index, count } => {
            for _ in 0..count.max(1) {
                if !model.is_empty() {
                    model.free(index % model.len());
                }
            }
        }
        Step::Resize { index, size } if !model.is_empty() => model.resize(index % model.len(), size),
        Step::Resize { .. } => {}
        Step::Collect => terrane::collect(),
    }
}

/// The model travels to the other thread with each step, and comes back.
type Turn = (Model<'static, terrane::Terrane>, Step);

struct Other {
    thread: JoinHandle<()>,
    to: Sender<Turn>,
    from: Receiver<Model<'static, terrane::Terrane>>,
}

fn start() -> Other {
    let (to, turns) = channel::<Turn>();
    let (back, from) = channel();
    let thread = std::thread::spawn(move || {
        for (mut model, step) in turns {
            carry_out(&mut model, step);
            if back.send(model).is_err() {
                break;
            }
        }
    });
    Other { thread, to, from }
}

/// Carries out what the bytes say.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mut model = Model::new(&TERRANE);
    let mut other = start();
    while !bytes.is_empty() {
        let operation = bytes.byte();
        let step = match operation % 8 {
            0..=2 => {
                let layout = bytes.layout();
                let count = if layout.size() <= 4096 && layout.align() <= 4096 { bytes.byte() } else { 1 };
                Step::Allocate { layout, zeroed: operation & 64 != 0, count, seed: operation }
            }
            3..=5 => Step::Free { index: bytes.below(1 << 16), count: bytes.byte() },
            6 => Step::Resize { index: bytes.below(1 << 16), size: bytes.size() },
            _ if operation & 64 != 0 => Step::Collect,
            _ => {
                // The thread ends, whatever it holds; another takes its place.
                drop(other.to);
                other.thread.join().expect("a model that disagrees has ended the process already");
                other = start();
                continue;
            }
        };
        if operation & 128 != 0 {
            other.to.send((model, step)).expect("the other thread waits for its turn");
            model = other.from.recv().expect("the other thread gives the model back");
        } else {
            carry_out(&mut model, step);
        }
    }
    drop(other.to);
    other.thread.join().expect("a model that disagrees has ended the process already");
    model.end();
}
