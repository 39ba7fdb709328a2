//! The programs that are run under preloaded libraries, and their inputs.
//!
//! Invariant: a program's output depends on its input alone, so that a run under any library can be compared with the
//! run under none.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How a program is run.
pub enum Kind {
    /// Started with these arguments; what it prints, and what it writes to the file, is compared.
    Batch {
        /// Program and arguments.
        command: Vec<OsString>,
        /// A file that it makes, compared as well.
        makes: Option<PathBuf>,
    },
    /// A redis server that is preloaded, and a load on it that is timed.
    Redis,
}

/// One program.
pub struct Program {
    /// Its name in results.
    pub name: &'static str,
    /// How it is run.
    pub kind: Kind,
}

/// Where `program` is, if it can be found on the path.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The interpreter itself: what is on the path may be a script that chooses one.
fn python() -> Option<PathBuf> {
    let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.is_file().then_some(path)
}

/// A C file of many functions.
fn c_source() -> String {
    let mut text = String::from("#include <stdio.h>\n#include <string.h>\n");
    for i in 0..500 {
        let _ = write!(
            text,
            "struct s{i} {{ int a[{}]; double d; struct s{i} *next; }};\n\
             int f{i}(struct s{i} *s, int n) {{\n  int sum = {i};\n  for (int k = 0; k < n; k++) {{\n    \
             switch ((s->a[k % {}] + k) % 5) {{ case 0: sum += k; break; case 1: sum ^= s->a[0]; break;\n    \
             case 2: if (s->next) sum -= f{i}(s->next, n / 2); break; default: s->d *= 1.5; }}\n  }}\n  return sum;\n}}\n",
            i % 30 + 1,
            i % 30 + 1
        );
    }
    text
}

/// The programs that this machine has, their inputs written to `folder`; and the names of those it lacks.
pub fn all(folder: &Path) -> std::io::Result<(Vec<Program>, Vec<&'static str>)> {
    std::fs::create_dir_all(folder)?;
    let input = |name: &str, text: &str| -> std::io::Result<OsString> {
        let path = folder.join(name);
        std::fs::write(&path, text)?;
        Ok(path.into_os_string())
    };
    let (py, pl) = (
        input("work.py", include_str!("../../programs/work.py"))?,
        input("work.pl", include_str!("../../programs/work.pl"))?,
    );
    let sql = input("work.sql", include_str!("../../programs/work.sql"))?;
    let (c, cpp) =
        (input("work.c", &c_source())?, input("work.cpp", include_str!("../../programs/templates.cpp"))?);
    let object = folder.join("work.o");
    let words = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
    let compile = |options: &[&str], source: OsString| {
        let mut rest = words(options);
        rest.extend([source, "-o".into(), object.clone().into_os_string()]);
        rest
    };
    let mut read = OsString::from(".read ");
    read.push(&sql);
    let batch: [(&'static str, Option<PathBuf>, Vec<OsString>, bool); 5] = [
        ("python3", python(), vec!["-I".into(), py], false),
        ("perl", on_path("perl"), vec![pl], false),
        ("sqlite3", on_path("sqlite3"), vec![":memory:".into(), read], false),
        ("gcc", on_path("gcc"), compile(&["-O1", "-c"], c), true),
        ("g++", on_path("g++"), compile(&["-O0", "-std=c++17", "-c"], cpp), true),
    ];
    let (mut found, mut lacking) = (Vec::new(), Vec::new());
    for (name, program, arguments, compiles) in batch {
        match program {
            Some(program) => {
                let command = std::iter::once(program.into_os_string()).chain(arguments).collect();
                let makes = compiles.then(|| object.clone());
                found.push(Program { name, kind: Kind::Batch { command, makes } });
            }
            None => lacking.push(name),
        }
    }
    match (on_path("redis-server"), on_path("redis-benchmark")) {
        (Some(_), Some(_)) => found.push(Program { name: "redis", kind: Kind::Redis }),
        _ => lacking.push("redis"),
    }
    Ok((found, lacking))
}
