//! python3, node and a JVM.

use super::stage::Stage;
use super::{Error, Program};
use crate::test::Wanted;

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

/// A slice of CPython's own test suite, every allocation through `malloc`; the verdict of each test is compared.
fn python(stage: &Stage) -> Result<Vec<u8>, Error> {
    let modules: &[&str] = if stage.full() {
        &[
            "test_dict",
            "test_list",
            "test_json",
            "test_bytes",
            "test_unicode",
            "test_set",
            "test_deque",
            "test_gc",
            "test_pickle",
            "test_re",
            "test_threading",
            "test_zlib",
            "test_bz2",
            "test_memoryview",
            "test_array",
            "test_struct",
            "test_string",
            "test_format",
            "test_long",
            "test_itertools",
            "test_heapq",
            "test_queue",
            "test_thread",
            "test_weakref",
            "test_sort",
            "test_tuple",
            "test_collections",
            "test_functools",
        ]
    } else {
        &[
            "test_dict",
            "test_list",
            "test_json",
            "test_bytes",
            "test_set",
            "test_deque",
            "test_gc",
            "test_re",
            "test_array",
            "test_memoryview",
            "test_weakref",
            "test_thread",
        ]
    };
    let mut found = stage.command("python3");
    found.args([
        "-c",
        "import sys; print(sys.executable, sys.version); import test.support; import test.test_dict",
    ]);
    let mut transcript = stage
        .say(&mut found, 30)
        .map_err(|why| Error(format!("this python3 comes without its test suite ({why})")))?;

    let mut command = stage.command("python3");
    command.args(["-m", "unittest", "-v"]).args(modules.iter().map(|module| format!("test.{module}")));
    command.env("PYTHONMALLOC", "malloc").env("PYTHONHASHSEED", "0").env("PYTHONDONTWRITEBYTECODE", "1");
    let printed = stage.run(&mut command, None, if stage.full() { 900 } else { 300 })?;
    // The exit code counts as much as the verdicts, but a test that fails without Terrane may fail on it.
    transcript.extend(format!("{}\n", printed.ended.describe()).into_bytes());
    let verdicts = verdicts(&String::from_utf8_lossy(&printed.stderr));
    if verdicts.len() < 100 {
        return Err(Error(format!("only {} tests ran ({})", verdicts.len(), printed.ended.describe())));
    }
    transcript.extend(verdicts.join("\n").into_bytes());
    Ok(transcript)
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
