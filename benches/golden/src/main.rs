//! The golden test of the hit path: what allocating and freeing a block cost in instructions, loads, read-modify-writes
//! and conditional branches, as compiled into this very program.
//!
//! Each path below is a function of its own. The program reads its own machine code, follows every way through the function
//! that makes no call (the hit path is the one way that never leaves for the cold side), counts, and compares with
//! `golden.txt`. A path that grew fails; `--bless` records the counts anew. No path may have a locked instruction: what a hit
//! writes is the thread's own, so throughput grows with the threads.
//!
//! The return instruction is not counted: inlined, as a program has it, there is none. Where a function begins by loading the
//! offset of its thread-local storage, that instruction is counted: inlined beside another access it would be shared, as the
//! row `pair` shows.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
};
use object::{Object, ObjectSection, ObjectSymbol};
use std::alloc::{GlobalAlloc, Layout};
use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;
use terrane::Terrane;

#[global_allocator]
static GLOBAL: Terrane = Terrane;

type Value = [u64; 3];

/// Allocates a block of 24 bytes.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "Rust" fn golden_alloc() -> *mut u8 {
    // SAFETY: the layout is not empty.
    unsafe { GLOBAL.alloc(Layout::new::<Value>()) }
}

/// Frees a block of 24 bytes.
///
/// # Safety
/// The block came from [`golden_alloc`].
#[inline(never)]
#[unsafe(no_mangle)]
pub unsafe extern "Rust" fn golden_free(block: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { GLOBAL.dealloc(block, Layout::new::<Value>()) };
}

/// Allocates a block of 24 bytes, writes one word, and frees it.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "Rust" fn golden_pair(word: u64) {
    // SAFETY: the layout is not empty; the block is freed once, and written only if there is one.
    unsafe {
        let block = GLOBAL.alloc(Layout::new::<Value>());
        if !block.is_null() {
            block.cast::<u64>().write_volatile(word);
            GLOBAL.dealloc(block, Layout::new::<Value>());
        }
    }
}

/// What a path costs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Cost {
    instructions: u32,
    loads: u32,
    updates: u32,
    branches: u32,
    /// Locked instructions: those that would take a cache line from other cores.
    locked: u32,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instructions, loads, updates, branches, locked } = self;
        write!(f, "{instructions:>4} {loads:>6} {updates:>8} {branches:>9} {locked:>7}")
    }
}

/// The paths, and the most that each may cost in instructions and conditional branches.
const PATHS: [(&str, u32, u32); 3] = [("golden_alloc", 8, 2), ("golden_free", 12, 2), ("golden_pair", 20, 4)];

fn code_of(file: &object::File<'_>, name: &str) -> Option<(u64, Vec<u8>)> {
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name))?;
    let section = file.section_by_index(symbol.section_index()?).ok()?;
    let bytes = section.data_range(symbol.address(), symbol.size()).ok()??;
    Some((symbol.address(), bytes.to_vec()))
}

/// The dearest way through the function that makes no call and ends in a return.
fn cost_of(address: u64, code: &[u8]) -> Option<Cost> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let instructions: BTreeMap<u64, Instruction> = decoder.iter().map(|i| (i.ip(), i)).collect();
    let mut info = InstructionInfoFactory::new();
    let mut best: Option<Cost> = None;
    let mut open = vec![(address, Cost::default())];
    while let Some((mut at, mut cost)) = open.pop() {
        while let Some(instruction) = instructions.get(&at) {
            if instruction.flow_control() == FlowControl::Return {
                if best.is_none_or(|best| best.instructions < cost.instructions) {
                    best = Some(cost);
                }
                break;
            }
            cost.instructions += 1;
            // An exchange with memory is locked without saying so.
            let exchange = instruction.mnemonic() == Mnemonic::Xchg
                && instruction.op_kinds().any(|kind| kind == OpKind::Memory);
            cost.locked += (instruction.has_lock_prefix() || exchange) as u32;
            for memory in info.info(instruction).used_memory() {
                match memory.access() {
                    OpAccess::Read | OpAccess::CondRead => cost.loads += 1,
                    OpAccess::ReadWrite | OpAccess::ReadCondWrite => cost.updates += 1,
                    _ => {}
                }
            }
            match instruction.flow_control() {
                FlowControl::Next => at = instruction.next_ip(),
                FlowControl::ConditionalBranch => {
                    cost.branches += 1;
                    // Only forward: the hit path has no loop.
                    if instruction.near_branch_target() > at {
                        open.push((instruction.near_branch_target(), cost));
                    }
                    at = instruction.next_ip();
                }
                FlowControl::UnconditionalBranch if instruction.near_branch_target() > at => {
                    at = instruction.near_branch_target();
                }
                // A call, or a jump out of the function: the cold side.
                _ => break,
            }
        }
    }
    best
}

fn main() -> ExitCode {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        println!("golden: skipped: the recorded counts are for x86-64 Linux");
        return ExitCode::SUCCESS;
    }
    if cfg!(debug_assertions) {
        println!("golden: skipped: built without optimisation");
        return ExitCode::SUCCESS;
    }
    // The functions run too, so that none is removed.
    let block = golden_alloc();
    // SAFETY: the block came from there.
    unsafe { golden_free(block) };
    golden_pair(1);

    let program = std::env::current_exe().and_then(std::fs::read);
    let Ok(program) = program else {
        eprintln!("golden: cannot read this program's file");
        return ExitCode::FAILURE;
    };
    let Ok(file) = object::File::parse(&*program) else {
        eprintln!("golden: this program's file is not an object file");
        return ExitCode::FAILURE;
    };
    let table = concat!(env!("CARGO_MANIFEST_DIR"), "/golden.txt");
    let recorded = std::fs::read_to_string(table).unwrap_or_default();
    let mut fresh = String::from("path         instructions loads updates branches locked\n");
    let mut failed = false;
    println!("path           instr  loads  updates  branches  locked  goal");
    for (name, most, most_branches) in PATHS {
        let Some(cost) = code_of(&file, name).and_then(|(address, code)| cost_of(address, &code)) else {
            eprintln!("golden: no way through {name} without a call");
            failed = true;
            continue;
        };
        let short = name.trim_start_matches("golden_");
        let row = format!(
            "{short} {} {} {} {} {}\n",
            cost.instructions, cost.loads, cost.updates, cost.branches, cost.locked
        );
        let met = cost.instructions <= most && cost.branches <= most_branches && cost.locked == 0;
        let known = recorded.lines().find(|line| line.split(' ').next() == Some(short));
        let verdict = match known {
            Some(line) if line == row.trim_end() => "as recorded",
            Some(_) => "CHANGED",
            None => "NOT RECORDED",
        };
        failed |= verdict != "as recorded";
        let goal = if met { "met" } else { "missed" };
        println!("{short:<14} {cost}  ≤ {most}, ≤ {most_branches}, 0: {goal}; {verdict}");
        fresh.push_str(&row);
    }
    if std::env::args().any(|argument| argument == "--bless") {
        if let Err(error) = std::fs::write(table, fresh) {
            eprintln!("golden: cannot write {table}: {error}");
            return ExitCode::FAILURE;
        }
        println!("golden: recorded");
        return ExitCode::SUCCESS;
    }
    if failed {
        eprintln!(
            "golden: the hit path is not what golden.txt says; look at the change, then record it with --bless"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
