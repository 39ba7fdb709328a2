//! The C ABI, seen from C and C++ programs that know nothing of Terrane: the sources in `tests/c/` are compiled with the
//! machine's own compiler and run twice, on the system's allocator (which shows that the program itself is right) and
//! with `libterrane.so` preloaded. A program checks for itself, prints `ok` as its last line and ends with 0.
//!
//! Without a C or C++ compiler the tests say that they were skipped.

#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The longest that one program may run.
const LIMIT: Duration = Duration::from_secs(240);

#[test]
fn every_entry_point_behaves_as_programs_for_glibc_expect() {
    program("entry_points.c").run(&[]);
}

#[test]
fn every_form_of_new_and_delete_pairs_up_and_fails_as_the_standard_says() {
    program("operators.cc").run(&[]);
}

#[test]
fn a_child_forked_while_eight_threads_allocate_can_allocate_free_and_exit() {
    program("fork.c").run(&["200"]);
}

#[test]
fn a_thread_may_end_by_exit_or_cancellation_inside_the_new_handler() {
    program("callbacks.cc").run(&[]);
}

#[test]
fn blocks_outlive_their_threads_however_those_end() {
    program("threads.c").run(&["10000"]);
}

#[test]
fn destructors_and_exit_handlers_may_allocate_and_free_to_the_very_end() {
    program("late.cc").run(&[]);
}

#[test]
fn a_library_may_be_loaded_and_unloaded_while_its_blocks_are_live() {
    let Some(plugin) = compile("plugin.c", &["-shared", "-fPIC"]) else { return };
    program("load.c").run(&[plugin.to_str().expect("the target folder has a name in UTF-8")]);
}

#[test]
fn the_library_may_be_opened_and_closed_by_threads_that_end_later() {
    let Some(program) = compile("reload.c", &[]) else { return };
    run(
        Command::new(program).arg(library()).args(["malloc", "free"]).env_remove("LD_PRELOAD"),
        "reload.c with the library",
    );
}

#[test]
fn a_library_that_includes_the_static_library_may_be_opened_and_closed() {
    let archive = library().with_file_name("libterrane.a");
    let archive = archive.to_str().expect("the target folder has a name in UTF-8");
    // Calls within the library stay within it; the loader is told never to unload it.
    let flags = ["-shared", "-fPIC", "-Wl,-Bsymbolic", "-Wl,-z,nodelete", archive, "-lgcc_s", "-lm"];
    let Some(plugin) = compile("plugin.c", &flags) else { return };
    let Some(program) = compile("reload.c", &[]) else { return };
    run(
        Command::new(program).arg(plugin).args(["plugin_make", "plugin_take"]).env_remove("LD_PRELOAD"),
        "reload.c with the archive",
    );
}

#[test]
fn the_smallest_stack_and_the_end_of_a_deep_one_are_enough() {
    let program = program("small_stack.c");
    let Some(binary) = &program.binary else { return };
    run(Command::new(binary).env_remove("LD_PRELOAD"), "small_stack.c on the system's allocator");
    // Code that is not optimised needs more stack, and nobody preloads that.
    let library = build(&["--release"]).join("release/libterrane.so");
    run(Command::new(binary).env("LD_PRELOAD", library).env("ON_TERRANE", "1"), "small_stack.c on Terrane");
}

#[test]
fn memory_that_runs_out_gives_null_and_comes_back() {
    program("limits.c").run(&[]);
}

#[test]
fn a_sandbox_that_denies_madvise_and_mremap_is_survived() {
    program("denied.c").run(&[]);
}

#[test]
fn pools_serve_c_from_any_thread_and_notice_what_is_returned_twice() {
    program("pools.c").run(&[]);
}

#[test]
fn pools_serve_a_program_on_another_allocator_that_opens_the_library() {
    let program = program("pools.c");
    let Some(binary) = &program.binary else { return };
    // As released: what the optimiser binds within the library must not depend on how it is loaded.
    let released = build(&["--release"]).join("release/libterrane.so");
    run(
        Command::new(binary).arg(released).env_remove("LD_PRELOAD"),
        "pools.c that opens the released library",
    );
    run(Command::new(binary).arg(library()).env_remove("LD_PRELOAD"), "pools.c that opens the library");
}

#[test]
fn java_runs_off_heap_on_terrane_and_calls_its_heaps_and_pools() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/java/run.sh");
    let mut command = Command::new("sh");
    command.arg(script).arg("0.3").env("LIBTERRANE", library()).env_remove("LD_PRELOAD");
    run(&mut command, "examples of Java");
}

#[test]
fn locking_all_memory_makes_only_used_memory_present_when_reservations_are_guarded() {
    let program = program("locked.c");
    let Some(binary) = &program.binary else { return };
    let mut command = Command::new(binary);
    command.env("LD_PRELOAD", library()).env("TERRANE_GUARDED", "on");
    run(&mut command, "locked.c on Terrane");
}

#[test]
fn signals_during_allocation_are_harmless() {
    program("signals.c").run(&[]);
}

#[test]
fn blocks_that_threads_hand_to_each_other_keep_their_contents_and_come_back() {
    program("stress.c").run(&["4", "40000"]);
    program("stress.c").run(&["16", "10000"]);
}

#[test]
fn a_program_started_under_a_limit_on_its_address_space_runs() {
    let program = program("threads.c");
    // 1 GiB: a reservation that is larger has to give way to a smaller one.
    let Some(binary) = &program.binary else { return };
    let script = format!("ulimit -v 1048576 && exec {} 500", binary.display());
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    run(command.env("LD_PRELOAD", library()).env("ON_TERRANE", "1"), "threads.c under ulimit -v");
}

#[test]
fn a_program_without_address_space_randomisation_runs() {
    let program = program("stress.c");
    let Some(binary) = &program.binary else { return };
    let mut command = Command::new(binary);
    command.args(["4", "10000"]).env("LD_PRELOAD", library()).env("ON_TERRANE", "1");
    // SAFETY: between fork and exec only the async-signal-safe call `personality` is made.
    unsafe {
        command.pre_exec(|| {
            libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
            Ok(())
        });
    }
    run(&mut command, "stress.c without address space randomisation");
}

#[test]
fn a_report_is_of_the_first_process_and_of_the_next_program_when_that_was_killed() {
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report-of-the-killed");
    let _ = fs::remove_file(&report);
    let run = |command: &mut Command| {
        let status = command.env("LD_PRELOAD", library()).env("TERRANE_REPORT", &report).status();
        let text = fs::read_to_string(&report).expect("a program leaves something there");
        (status.expect("the program can be started").success(), text)
    };
    // `ls` is the child of a process that lives, and writes nothing there.
    let (ended_well, left) = run(Command::new("sh").args(["-c", "ls / >/dev/null; kill -9 $$"]));
    assert!(!ended_well && left.trim().parse::<u32>().is_ok(), "a number alone: {left}");
    let (ended_well, left) = run(Command::new("ls").arg("/").stdout(Stdio::null()));
    assert!(ended_well && left.starts_with("terrane heap report"), "a report: {left}");
}

/// A compiled test program; `None` without a compiler.
struct Program {
    source: &'static str,
    binary: Option<PathBuf>,
}

fn program(source: &'static str) -> Program {
    Program { source, binary: compile(source, &[]) }
}

impl Program {
    /// Runs it on the system's allocator, then on Terrane.
    fn run(&self, args: &[&str]) {
        let Some(binary) = &self.binary else { return };
        run(
            Command::new(binary).args(args).env_remove("LD_PRELOAD"),
            &format!("{} on the system's allocator", self.source),
        );
        let mut command = Command::new(binary);
        command.args(args).env("LD_PRELOAD", library()).env("ON_TERRANE", "1");
        run(&mut command, &format!("{} on Terrane", self.source));
    }
}

/// Runs `command` within the limit; panics with all that it printed unless it ends with 0 and its last line is `ok`.
fn run(command: &mut Command, what: &str) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let name: String =
        what.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
    let log = folder.join(format!("{name}-{}.log", std::thread::current().name().unwrap_or("main")));
    let out = File::create(&log).expect("the target folder can be written");
    let err = out.try_clone().expect("a file handle can be copied");
    // A group of its own: what a program leaves behind when it is killed dies with it.
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .process_group(0)
        .spawn()
        .unwrap_or_else(|cause| panic!("{what}: cannot start it: {cause}"));
    let begin = Instant::now();
    let ended = loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => break status.to_string(),
            None if begin.elapsed() > LIMIT => break format!("it did not end within {} s", LIMIT.as_secs()),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    // SAFETY: kill has no memory effects; the group is that of our child.
    unsafe { libc::kill(-child.id().cast_signed(), libc::SIGKILL) };
    let _ = child.wait();
    let printed = fs::read_to_string(&log).unwrap_or_default();
    let said_ok = printed.lines().any(|line| line.starts_with("ok"));
    assert!(ended == "exit status: 0" && said_ok, "{what}: {ended}; it printed:\n{printed}");
    assert!(!printed.contains("cannot be preloaded"), "{what}: {printed}");
}

/// Compiles a source of `tests/c/`; `None`, after saying so, without a compiler for it.
fn compile(source: &str, flags: &[&str]) -> Option<PathBuf> {
    let is_cxx = source.ends_with(".cc");
    let compiler = if is_cxx { "c++" } else { "cc" };
    let has_compiler =
        Command::new(compiler).arg("--version").output().is_ok_and(|output| output.status.success());
    if !has_compiler {
        // Not `eprintln!`: the harness would show that for failed tests only.
        let _ = writeln!(std::io::stderr(), "skipped: {source}: no {compiler} on this machine");
        return None;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c").join(source);
    // Tests run in parallel and may want the same program: each thread compiles its own.
    let thread =
        format!("{:?}", std::thread::current().id()).replace(|letter: char| !letter.is_ascii_digit(), "");
    let binary =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{thread}", source.replace('.', "-")));
    let mut command = Command::new(compiler);
    command.arg(if is_cxx { "-std=c++17" } else { "-std=c11" });
    // Without builtins the compiler takes no call to malloc and free away.
    command.args(["-O1", "-g", "-fno-builtin", "-Wall", "-Wextra", "-Werror"]);
    command.args(flags).arg(&path).arg("-o").arg(&binary).args(["-lpthread", "-ldl"]);
    let output = command.output().expect("the compiler can be started");
    assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
    Some(binary)
}

/// The shared library, built in the profile of this test.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let is_release = profile().ends_with("release");
        let library = if is_release {
            build(&["--release"]).join("release/libterrane.so")
        } else {
            build(&[]).join("debug/libterrane.so")
        };
        assert!(library.is_file(), "{} was not built", library.display());
        library
    })
}

/// This program is `target/PROFILE/deps/c_abi-…`; the folder of its profile.
fn profile() -> PathBuf {
    let this = std::env::current_exe().expect("a test knows its own path");
    this.parent().and_then(Path::parent).expect("a test lies in target/PROFILE/deps").to_owned()
}

/// Builds the library; the target folder.
fn build(flags: &[&str]) -> PathBuf {
    let target = profile().parent().expect("a profile lies in the target folder").to_owned();
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["build", "--quiet", "--package", "terrane-malloc", "--target-dir"])
        .arg(&target)
        .args(flags);
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    target
}
