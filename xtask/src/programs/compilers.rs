//! cc on a large C file, c++ on templates, rustc on a crate.

use super::stage::{Numbers, Stage};
use super::{Error, Program};
use crate::test::Wanted;
use crate::workspace::root;
use std::collections::BinaryHeap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

pub const PROGRAMS: &[Program] = &[
    Program { name: "program-cc", wants: &[Wanted::Program("cc", "gcc")], play: cc },
    Program { name: "program-c++", wants: &[Wanted::Program("c++", "g++")], play: cxx },
    Program { name: "program-rustc", wants: &[Wanted::Program("rustc", "rustc")], play: rustc },
];

/// A generated C file, and the largest C file at hand that compiles by itself; the object files are compared.
fn cc(stage: &Stage) -> Result<Vec<u8>, Error> {
    stage.write("generated.c", generated_c(if stage.full() { 4000 } else { 500 }))?;
    let mut transcript =
        stage.say(stage.command("cc").args(["-O2", "-g", "-c", "generated.c", "-o", "out.o"]), 240)?;
    transcript.extend(stage.read("out.o")?);
    for source in largest_sources() {
        let folder = source.parent().unwrap_or(Path::new("/"));
        let mut command = stage.command("cc");
        command.arg("-O1").arg("-w").arg("-c").arg(&source).arg("-o").arg("found.o").arg("-I").arg(folder);
        command.arg("-I").arg(folder.join("include")).arg("-I").arg(folder.join("../include"));
        let printed = stage.run(&mut command, None, 240)?;
        if printed.ended.success() {
            transcript.extend(source.to_string_lossy().into_owned().into_bytes());
            transcript.extend(stage.read("found.o")?);
            break;
        }
        // A file that wants flags of its own is not for us; that it fails both ways is part of the transcript.
        transcript.extend(printed.stderr);
    }
    Ok(transcript)
}

/// Many functions over structures, arrays and switches: work for every pass of a compiler.
fn generated_c(functions: usize) -> String {
    let mut numbers = Numbers(41);
    let mut text = String::from(
        "#include <stddef.h>\nstruct node { struct node *next; long key; double weight[4]; };\n",
    );
    for function in 0..functions {
        let (a, b, c) = (numbers.next() % 97 + 1, numbers.next() % 61 + 2, numbers.next() % 13 + 3);
        let _ = write!(
            text,
            "long f{function}(struct node *n, long x) {{\n\
             \x20 long table[{b}]; for (size_t i = 0; i < {b}; i++) table[i] = x * {a} + (long)i;\n\
             \x20 for (; n; n = n->next) {{ switch (n->key % {c}) {{\n\
             \x20   case 0: x += table[(size_t)x % {b}]; break; case 1: n->weight[x & 3] *= {a}.5; break;\n\
             \x20   case 2: x ^= n->key << {c}; break; default: x = x / {a} + (long)n->weight[0]; }} }}\n\
             \x20 return x{};\n}}\n",
            if function == 0 {
                String::new()
            } else {
                format!(" + f{}(n, x - 1)", numbers.next() as usize % function)
            },
        );
    }
    text
}

/// The largest C files among the sources that cargo has fetched, largest first; few, since not all compile alone.
fn largest_sources() -> Vec<PathBuf> {
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let mut heap = BinaryHeap::new();
    let mut folders: Vec<PathBuf> = cargo_home.into_iter().map(|home| home.join("registry/src")).collect();
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.filter_map(Result::ok) {
            seen += 1;
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && seen < 200_000 {
                folders.push(entry.path());
            } else if kind.is_file() && entry.path().extension().is_some_and(|extension| extension == "c") {
                heap.push((entry.metadata().map_or(0, |meta| meta.len()), entry.path()));
            }
        }
    }
    std::iter::from_fn(|| heap.pop()).take(6).map(|(_, path)| path).collect()
}

/// Standard containers instantiated many times, compiled, and the program run on the same allocator.
fn cxx(stage: &Stage) -> Result<Vec<u8>, Error> {
    let mut source = String::from(
        "#include <algorithm>\n#include <iostream>\n#include <map>\n#include <memory>\n#include <regex>\n\
         #include <string>\n#include <unordered_map>\n#include <vector>\n\
         template <int N> struct alignas(N % 2 ? 64 : 8) Item { char bytes[N]; int key; };\n\
         template <int N> long use() {\n\
         \x20 std::vector<std::unique_ptr<Item<N>>> items; std::map<std::string, Item<N>> by_name;\n\
         \x20 std::unordered_map<long, std::shared_ptr<std::string>> names;\n\
         \x20 for (int i = 0; i < 2000; i++) { auto item = std::make_unique<Item<N>>(); item->key = i * N % 577;\n\
         \x20   if ((reinterpret_cast<size_t>(item.get()) % alignof(Item<N>)) != 0) return -1;\n\
         \x20   by_name[std::to_string(item->key)] = *item; names[i % 211] = std::make_shared<std::string>(N, 'x');\n\
         \x20   items.push_back(std::move(item)); }\n\
         \x20 std::sort(items.begin(), items.end(), [](auto &a, auto &b) { return a->key < b->key; });\n\
         \x20 long sum = 0; for (auto &pair : by_name) sum = sum * 31 + pair.second.key;\n\
         \x20 for (auto &item : items) sum += item->key; return sum + (long)names.size(); }\n\
         int main() {\n\
         \x20 std::cout << std::regex_replace(std::string(3000, 'a') + \"bc\", std::regex(\"a(a)b\"), \"<$1>\").size() << '\\n';\n",
    );
    for size in 1..40 {
        let _ = writeln!(source, "  std::cout << use<{size}>() << '\\n';");
    }
    source.push_str("}\n");
    stage.write("generated.cc", source)?;
    let mut compile = stage.command("c++");
    compile.args(["-std=c++17", "-O1", "-c", "generated.cc", "-o", "generated.o"]);
    let mut transcript = stage.say(&mut compile, 300)?;
    transcript.extend(stage.read("generated.o")?);
    transcript.extend(stage.say(stage.command("c++").args(["generated.o", "-o", "generated"]), 120)?);
    let printed = stage.say(&mut stage.command("./generated"), 120)?;
    if printed.split(|byte| *byte == b'\n').any(|line| line == b"-1") {
        return Err(Error("an over-aligned object was not aligned".into()));
    }
    transcript.extend(printed);
    Ok(transcript)
}

/// A crate of this workspace, optimised; the library files are compared. (The official rustc carries an allocator of
/// its own for Rust code; the linker and LLVM's C parts use ours.)
fn rustc(stage: &Stage) -> Result<Vec<u8>, Error> {
    let mut compile = stage.command("rustc");
    compile.args(["--edition", "2024", "--crate-type", "rlib", "--crate-name", "terrane_core"]);
    compile.args(["-C", "opt-level=3", "-C", "codegen-units=4", "-C", "metadata=same", "--out-dir", "."]);
    compile.arg(root().join("crates/terrane-core/src/lib.rs"));
    let mut transcript = stage.say(&mut compile, 180)?;
    transcript.extend(stage.read("libterrane_core.rlib")?);
    stage.write("hello.rs", "fn main() { let v: Vec<String> = (0..9).map(|i| i.to_string()).collect(); println!(\"{}\", v.join(\" \")); }")?;
    transcript.extend(stage.say(stage.command("rustc").args(["-O", "hello.rs", "-o", "hello"]), 180)?);
    transcript.extend(stage.say(&mut stage.command("./hello"), 30)?);
    Ok(transcript)
}
