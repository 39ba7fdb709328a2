//! The pools of other projects, where they are installed, each in a process of its own, by the lowest calls that Python
//! reaches.
//!
//! Python is not charged to them: the same loop over built-in functions of the same shape is timed beside theirs and taken off.
//! What is left still has the conversion of arguments in it, so it is an upper bound of theirs. There is no figure for threads:
//! Python runs one at a time.

use crate::goals::Goal;
use crate::{Bench, Failure};
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const SCRIPT: &str = include_str!("peers.py");
/// A peer that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// One line of the script.
struct Figure {
    /// Bytes; 0 for mixed lengths between 2000 free blocks.
    len: u64,
    pair: f64,
    python: f64,
}

impl Figure {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('\t');
        let figure = Self {
            len: fields.next()?.parse().ok()?,
            pair: fields.next()?.parse().ok()?,
            python: fields.next()?.parse().ok()?,
        };
        fields.next().is_none().then_some(figure)
    }

    /// Without Python. Never less than nothing.
    fn net(&self) -> f64 {
        (self.pair - self.python).max(0.0)
    }
}

/// Runs the script for each peer, where there is a driver.
pub fn run(bench: &Bench) -> Result<(), Failure> {
    if !bench.driver {
        println!("peers: PyTorch, CuPy and RMM need a device");
        return Ok(());
    }
    println!("peers, a pair through Python, and without Python's own loop");
    println!(
        "{}",
        ["peer", "size", "pair", "Python", "net", "ours faster"].map(|n| format!("{n:>14}")).concat()
    );
    for (peer, goal) in [("PyTorch", Some(Goal::OverTorch)), ("CuPy", None), ("RMM", Some(Goal::OverRmm))] {
        match figures(bench, peer) {
            Ok((figures, stopped)) => {
                figures.iter().for_each(|figure| show(bench, peer, goal, figure));
                if let Some(why) = stopped {
                    println!("{peer:>14}: stopped: {why}");
                }
            }
            Err(why) => println!("{peer:>14}: skipped: {why}"),
        }
    }
    Ok(())
}

fn show(bench: &Bench, peer: &str, goal: Option<Goal>, figure: &Figure) {
    let (size, goal, ours) = if figure.len == 0 {
        let goal = goal.filter(|_| peer == "RMM").map(|_| Goal::OverRmmHoles);
        ("2000 free".into(), goal, bench.variable_between_holes.get())
    } else {
        let pairs = bench.variable_pairs.borrow();
        let ours = pairs.iter().find(|(len, _)| *len == figure.len).map(|&(_, nanos)| nanos);
        (format!("{} B", figure.len), goal, ours)
    };
    let ratio = ours.map(|ours| figure.net() / ours);
    if let (Some(goal), Some(ratio)) = (goal, ratio) {
        bench.found(goal, ratio);
    }
    let times =
        [figure.pair, figure.python, figure.net()].map(|nanos| format!("{:>14}", bench.shown_nanos(nanos)));
    let ratio = ratio.map_or_else(|| "–".into(), |ratio| bench.shown(format!("{ratio:.1}×")));
    println!("{peer:>14}{size:>14}{}{ratio:>14}", times.concat());
}

/// What the script prints for `peer`, and why there is no more if it ended early.
fn figures(bench: &Bench, peer: &str) -> Result<(Vec<Figure>, Option<String>), Failure> {
    let (calls, rounds) = (bench.amount(2000, 10).to_string(), bench.rounds().to_string());
    let mut command = Command::new(&bench.args.python);
    command.args(["-c", SCRIPT, peer, &calls, &rounds]);
    if bench.args.device != 0 {
        command.env("CUDA_VISIBLE_DEVICES", bench.device.info().uuid.to_string());
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|why| format!("{}: {why}", bench.args.python))?;
    let (stdout, stderr) = (read_all(child.stdout.take()), read_all(child.stderr.take()));
    let status = wait(&mut child)?;
    let (stdout, stderr) = (joined(stdout), joined(stderr));
    let figures: Vec<Figure> = stdout.lines().filter_map(Figure::parse).collect();
    let stopped = match status {
        None => Some(format!("it did not end in {} s", PATIENCE.as_secs())),
        Some(status) if status.success() => None,
        // The last line says which error it was.
        Some(status) => {
            let last = stderr.lines().rfind(|line| !line.trim().is_empty());
            Some(last.map_or_else(|| status.to_string(), str::to_owned))
        }
    };
    match stopped {
        Some(why) if figures.is_empty() => Err(why.into()),
        stopped => Ok((figures, stopped)),
    }
}

type Reader = std::thread::JoinHandle<String>;

fn read_all(pipe: Option<impl Read + Send + 'static>) -> Option<Reader> {
    let mut pipe = pipe?;
    Some(std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read until then is all there is.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }))
}

fn joined(reader: Option<Reader>) -> String {
    reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
}

/// How it ended; `None` if it had to be killed.
fn wait(child: &mut Child) -> Result<Option<ExitStatus>, Failure> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
