//! python3, node and a JVM.

use super::stage::Stage;
use super::{Error, Program};
use crate::test::Wanted;
use std::process::Command;

/// For `--full` only.
pub const SUITES: &[Program] = &[
    Program {
        name: "suite-cpython-objects",
        wants: &[Wanted::Program("python3", "python3")],
        play: |stage| python_runner(stage, OBJECTS),
    },
    Program {
        name: "suite-cpython-libraries",
        wants: &[Wanted::Program("python3", "python3")],
        play: |stage| python_runner(stage, LIBRARIES),
    },
    Program {
        name: "suite-cpython-lifetimes",
        wants: &[Wanted::Program("python3", "python3")],
        play: |stage| python_runner(stage, LIFETIMES),
    },
];

pub const PROGRAMS: &[Program] = &[
    Program { name: "program-python3", wants: &[Wanted::Program("python3", "python3")], play: python },
    Program { name: "program-node", wants: &[Wanted::Program("node", "nodejs")], play: node },
    Program {
        name: "program-java",
        wants: &[
            Wanted::Program("javac", "default-jdk-headless"),
            Wanted::Program("java", "default-jdk-headless"),
        ],
        play: java,
    },
];

/// A slice of CPython's own test suite in one process, every allocation through `malloc`; the verdict of each test is compared.
fn python(stage: &Stage) -> Result<Vec<u8>, Error> {
    const MODULES: [&str; 12] = [
        "test.test_dict",
        "test.test_list",
        "test.test_json",
        "test.test_bytes",
        "test.test_set",
        "test.test_deque",
        "test.test_gc",
        "test.test_re",
        "test.test_array",
        "test.test_memoryview",
        "test.test_weakref",
        "test.test_thread",
    ];
    let mut transcript = python_suite(stage)?;
    let mut command = stage.command("python3");
    command.args(["-m", "unittest", "-v"]).args(MODULES);
    let printed = stage.run(python_settings(&mut command), None, 300)?;
    // The exit code counts as much as the verdicts, but a test that fails without Terrane may fail on it.
    transcript.extend(format!("{}\n", printed.ended.describe()).into_bytes());
    let verdicts = verdicts(&String::from_utf8_lossy(&printed.stderr));
    if verdicts.len() < 100 {
        return Err(Error(format!("only {} tests ran ({})", verdicts.len(), printed.ended.describe())));
    }
    transcript.extend(verdicts.join("\n").into_bytes());
    Ok(transcript)
}

// The modules of CPython's test suite that are about memory, or use much of it.

/// Containers and buffers of the language itself.
const OBJECTS: &[&str] = &[
    "test_memoryview",
    "test_array",
    "test_bytes",
    "test_list",
    "test_dict",
    "test_set",
    "test_unicode",
    "test_buffer",
    "test_deque",
    "test_struct",
    "test_long",
    "test_itertools",
    "test_heapq",
    "test_sort",
    "test_tuple",
    "test_functools",
    "test_collections",
    "test_ordered_dict",
    "test_userlist",
    "test_descr",
    "test_super",
    "test_generators",
];

/// Modules of its library, many of them in C with blocks of their own.
const LIBRARIES: &[&str] = &[
    "test_json",
    "test_pickle",
    "test_re",
    "test_zlib",
    "test_bz2",
    "test_lzma",
    "test_string",
    "test_format",
    "test_memoryio",
    "test_marshal",
    "test_sqlite3",
    "test_csv",
    "test_xml_etree_c",
    "test_pyexpat",
    "test_codecs",
    "test_copy",
    "test_mmap",
    "test_bigmem",
    "test_ctypes",
    "test_capi",
];

/// Collection, weak references, threads.
const LIFETIMES: &[&str] =
    &["test_gc", "test_weakref", "test_threading", "test_thread", "test_queue", "test_finalization"];

/// CPython's own runner over `modules`: exit codes and verdicts, module by module.
fn python_runner(stage: &Stage, modules: &[&str]) -> Result<Vec<u8>, Error> {
    let mut transcript = python_suite(stage)?;
    let mut sum = 0;
    for module in modules {
        let mut command = stage.command("python3");
        command.args(["-m", "test", "-v", module]);
        let printed = stage.run(python_settings(&mut command), None, 600)?;
        if printed.ended.status.is_none() {
            return Err(Error(format!("{module}: {}", printed.ended.describe())));
        }
        let verdicts = verdicts(&String::from_utf8_lossy(&printed.stdout));
        sum += verdicts.len();
        transcript.extend(format!("{module}: {}\n", printed.ended.describe()).into_bytes());
        transcript.extend(verdicts.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()));
    }
    if sum < 20 * modules.len() {
        return Err(Error(format!("only {sum} tests ran")));
    }
    transcript.extend(format!("{sum} verdicts\n").into_bytes());
    Ok(transcript)
}

/// Which python3 this is; an error where it comes without its tests.
fn python_suite(stage: &Stage) -> Result<Vec<u8>, Error> {
    let mut found = stage.command("python3");
    found.args([
        "-c",
        "import sys; print(sys.executable, sys.version); import test.support; import test.test_dict",
    ]);
    stage
        .say(&mut found, 30)
        .map_err(|why| Error(format!("this python3 comes without its test suite ({why})")))
}

/// Every allocation through `malloc`, and nothing that differs from run to run.
fn python_settings(command: &mut Command) -> &mut Command {
    command.env("PYTHONMALLOC", "malloc").env("PYTHONHASHSEED", "0").env("PYTHONDONTWRITEBYTECODE", "1")
}

/// The lines `test … ok` (or FAIL, ERROR, skipped) of a verbose unittest run, sorted, without times and addresses.
fn verdicts(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| {
            let end = line.rsplit(" ... ").next().unwrap_or_default();
            line.contains(" ... ") && (["ok", "FAIL", "ERROR"].contains(&end) || end.starts_with("skipped"))
        })
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

/// Buffers outside the JavaScript heap, JSON, compression and worker threads.
fn node(stage: &Stage) -> Result<Vec<u8>, Error> {
    let script = r#"
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const crypto = require('crypto'), zlib = require('zlib');
function work(seed) {
  const live = []; let x = seed, hash = crypto.createHash('sha256');
  for (let i = 0; i < 20000; i++) {
    x = (Math.imul(x, 1103515245) + 12345) & 0x7fffffff;
    const buffer = Buffer.alloc(1 + x % 20000, x & 255);
    live[x % 500] = buffer;
    if (i % 50 === 0) hash.update(live[(x >> 3) % 500] || 'none');
  }
  const text = JSON.stringify(Array.from({ length: 20000 }, (_, i) => ({ i, name: 'n' + (i * seed) % 1000 })));
  const packed = zlib.deflateSync(text), back = zlib.inflateSync(packed).toString();
  hash.update(packed);
  return [hash.digest('hex'), back === text, packed.length, JSON.parse(back).length];
}
if (isMainThread) {
  const jobs = [1, 2, 3].map(seed => new Promise((resolve, reject) => {
    const worker = new Worker(__filename, { workerData: seed });
    worker.on('message', resolve); worker.on('error', reject);
  }));
  console.log(JSON.stringify(work(99)));
  Promise.all(jobs).then(results => results.forEach(result => console.log(JSON.stringify(result))));
} else {
  parentPort.postMessage(work(workerData));
}
"#;
    stage.write("script.js", script)?;
    let version = stage.say(stage.command("node").arg("--version"), 30)?;
    let mut transcript = stage.say(stage.command("node").arg("script.js"), 180)?;
    transcript.extend(version);
    Ok(transcript)
}

/// Direct buffers (which the JVM takes from `malloc`), filled and summed by several threads while others come and go.
fn java(stage: &Stage) -> Result<Vec<u8>, Error> {
    let source = r#"
import java.nio.ByteBuffer;
import java.util.*;
import java.util.concurrent.*;
import java.util.zip.*;

public class Direct {
    static long work(int seed) throws Exception {
        Random random = new Random(seed);
        ByteBuffer[] live = new ByteBuffer[64];
        long sum = 0;
        for (int i = 0; i < 4000; i++) {
            int at = random.nextInt(live.length), size = 16 + random.nextInt(1 << (4 + random.nextInt(13)));
            ByteBuffer buffer = ByteBuffer.allocateDirect(size);
            for (int j = 0; j + 8 <= size; j += 64) { sum += buffer.getLong(j); buffer.putLong(j, (long) seed * i + j); }
            ByteBuffer old = live[at];
            if (old != null) for (int j = 0; j + 8 <= old.capacity(); j += 64) sum = sum * 31 + old.getLong(j);
            live[at] = buffer;
        }
        Deflater deflater = new Deflater();
        byte[] in = new byte[200000], out = new byte[300000];
        random.nextBytes(in); Arrays.fill(in, 1000, 150000, (byte) seed);
        deflater.setInput(in); deflater.finish();
        int packed = deflater.deflate(out); deflater.end();
        CRC32 crc = new CRC32(); crc.update(out, 0, packed);
        return sum * 31 + crc.getValue();
    }
    public static void main(String[] args) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(4);
        List<Future<Long>> results = new ArrayList<>();
        for (int i = 0; i < 12; i++) { int seed = i + 1; results.add(pool.submit(() -> work(seed))); }
        for (int i = 0; i < 200; i++) { Thread thread = new Thread(() -> ByteBuffer.allocateDirect(5000)); thread.start(); thread.join(); }
        for (Future<Long> result : results) System.out.println(result.get());
        pool.shutdown();
        System.out.println(System.getProperty("java.version"));
    }
}
"#;
    stage.write("Direct.java", source)?;
    let mut transcript = stage.say(stage.command("javac").args(["-J-Xmx512m", "Direct.java"]), 180)?;
    let mut run = stage.command("java");
    run.args(["-Xmx256m", "-XX:MaxDirectMemorySize=256m", "Direct"]);
    transcript.extend(stage.say(&mut run, 180)?);
    Ok(transcript)
}

#[cfg(test)]
mod tests {
    use super::verdicts;

    #[test]
    fn verdicts_are_sorted_and_free_of_times() {
        let text = "test_b (test.A.test_b) ... ok\ntest_a (test.A.test_a) ... skipped 'no x'\nRan 2 tests in 0.1s\nOK\n";
        assert_eq!(
            verdicts(text),
            ["test_a (test.A.test_a) ... skipped 'no x'", "test_b (test.A.test_b) ... ok"]
        );
    }
}
