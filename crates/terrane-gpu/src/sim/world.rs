//! What all devices of one simulation share: streams with their queues, events, memory, and the adversarial scheduler.
//!
//! Invariant: work of one stream runs in order, and a wait holds back its stream until the record that it saw at
//! submission has run. Within that, the seeded scheduler runs work as late and in as odd an order as it likes: nothing
//! runs because time passes, only because the host waits or asks, or because the dice say so.

use super::checker::{Clock, Violation};
use super::faults::{Call, Faults};
use super::memory::{POISON, Space};
use super::{Access, SimConfig};
use crate::device::DriverResult;
use crate::error::DriverError;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// The body of a simulated kernel.
pub(super) type Kernel = Arc<dyn Fn(&mut KernelMemory<'_>) + Send + Sync>;
/// A function to be called outside of the lock.
pub(super) type Later = Box<dyn FnOnce() + Send>;

/// What a kernel sees: the memory that its launch declared.
pub struct KernelMemory<'a> {
    space: &'a mut Space,
    declared: &'a [Access],
    violations: &'a mut Vec<Violation>,
}

impl KernelMemory<'_> {
    fn permits(&mut self, address: u64, len: u64, write: bool) -> bool {
        let fine = self
            .declared
            .iter()
            .any(|a| (a.write || !write) && a.address <= address && address + len <= a.address + a.len);
        if !fine {
            self.violations.push(Violation::Undeclared { address, len });
        }
        fine
    }

    /// Reads bytes at `address`. Undeclared bytes read as zero and are a [`Violation`].
    pub fn read(&mut self, address: u64, into: &mut [u8]) {
        if !self.permits(address, into.len() as u64, false) || !self.space.read(address, into) {
            into.fill(0);
        }
    }

    /// Writes bytes at `address`. Undeclared bytes are left alone, which is a [`Violation`].
    pub fn write(&mut self, address: u64, from: &[u8]) {
        if self.permits(address, from.len() as u64, true) {
            self.space.write(address, from);
        }
    }
}

#[derive(Clone)]
pub(super) enum Work {
    Fill { to: u64, byte: u8, len: u64 },
    Copy { to: u64, from: u64, len: u64 },
    Write { to: u64, bytes: Arc<[u8]> },
    Kernel { body: Kernel, declared: Arc<[Access]> },
    Record { event: u64, generation: u64 },
    Wait { event: u64, generation: u64 },
    Call(Arc<parking_lot::Mutex<Option<Later>>>),
    Unmap { address: u64 },
    Note,
}

/// What work occupies, for the latency model.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    None,
    Upload,
    Download,
    Compute,
}

/// Work with what it touches.
#[derive(Clone)]
pub(super) struct Submission {
    pub(super) work: Work,
    pub(super) accesses: Vec<Access>,
    pub(super) what: &'static str,
    pub(super) engine: Engine,
    pub(super) bytes: u64,
}

#[derive(Default)]
pub(super) struct Capture {
    pub(super) work: Vec<Submission>,
    pub(super) spoilt: bool,
}

pub(super) struct StreamState {
    pub(super) device: usize,
    pub(super) alive: bool,
    queue: VecDeque<Work>,
    pub(super) clock: Clock,
    ready_nanos: u64,
    pub(super) capture: Option<Capture>,
}

#[derive(Default)]
pub(super) struct EventState {
    generation: u64,
    /// Records that were submitted and have not run. A wait is for one of them, not for the latest.
    pending: Vec<u64>,
    clock: Clock,
    nanos: u64,
    captured: bool,
    /// Destroyed, and kept until its records have run: whoever waits for one still does.
    destroyed: bool,
}

#[derive(Default)]
pub(super) struct DeviceState {
    pub(super) used: u64,
    pub(super) next_address: u64,
    pub(super) spare: HashMap<u64, Vec<u64>>,
    pub(super) streams: u32,
    engines: [u64; 3],
    pub(super) ordered_used: u64,
    pub(super) ordered_peak: u64,
}

pub(super) struct State {
    pub(super) config: SimConfig,
    rng: u64,
    pub(super) now: u64,
    pub(super) devices: Vec<DeviceState>,
    pub(super) streams: Vec<StreamState>,
    pub(super) events: HashMap<u64, EventState>,
    pub(super) next_event: u64,
    pub(super) graphs: Vec<Vec<Submission>>,
    pub(super) host: Clock,
    pub(super) violations: Vec<Violation>,
    pub(super) faults: Faults,
    pub(super) space: Space,
    pub(super) host_blocks: HashMap<u64, usize>,
    pub(super) later: Vec<Later>,
}

/// Handles of streams start here, so that they are not mistaken for indices.
const FIRST_STREAM: u64 = 0x1000;

impl State {
    pub(super) fn new(config: SimConfig) -> Self {
        let devices = (0..config.devices as u64)
            .map(|i| DeviceState { next_address: (i + 1) << 48, ..DeviceState::default() })
            .collect();
        Self {
            rng: config.seed ^ 0x9E37_79B9_7F4A_7C15,
            config,
            now: 0,
            devices,
            streams: Vec::new(),
            events: HashMap::new(),
            next_event: 1,
            graphs: Vec::new(),
            host: Clock::default(),
            violations: Vec::new(),
            faults: Faults::default(),
            space: Space::default(),
            host_blocks: HashMap::new(),
            later: Vec::new(),
        }
    }

    fn dice(&mut self, sides: u64) -> u64 {
        self.rng = self.rng.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides.max(1)
    }

    /// Counts and charges a call, and fails it if that was asked for.
    pub(super) fn enter(&mut self, call: Call) -> DriverResult<()> {
        self.now += call.model_nanos();
        self.faults.enter(call)
    }

    /// Whether a capture is in progress; then `call` is against the rules and spoils it.
    pub(super) fn forbid_in_capture(&mut self, call: Call) -> DriverResult<()> {
        let mut any = false;
        for capture in self.streams.iter_mut().filter_map(|s| s.capture.as_mut()) {
            capture.spoilt = true;
            any = true;
        }
        if !any {
            return Ok(());
        }
        let call = call.driver_name();
        self.violations.push(Violation::InCapture { call });
        Err(DriverError { call, code: DriverError::CAPTURE_UNSUPPORTED })
    }

    pub(super) fn add_stream(&mut self, device: usize) -> (u64, u32) {
        let key = self.devices[device].streams;
        self.devices[device].streams += 1;
        self.streams.push(StreamState {
            device,
            alive: true,
            queue: VecDeque::new(),
            clock: Clock::default(),
            ready_nanos: 0,
            capture: None,
        });
        (FIRST_STREAM + self.streams.len() as u64 - 1, key)
    }

    pub(super) fn stream_raw(index: usize) -> u64 {
        FIRST_STREAM + index as u64
    }

    pub(super) fn stream_index(&self, raw: u64, call: Call) -> DriverResult<usize> {
        raw.checked_sub(FIRST_STREAM)
            .map(|i| i as usize)
            .filter(|&i| self.streams.get(i).is_some_and(|s| s.alive))
            .ok_or(DriverError { call: call.driver_name(), code: DriverError::INVALID_HANDLE })
    }

    /// Submits work to a stream: checks it against everything before it, and queues it.
    pub(super) fn submit(&mut self, stream: usize, submission: Submission) -> DriverResult<()> {
        if let Some(capture) = self.streams[stream].capture.as_mut() {
            if matches!(submission.work, Work::Call(_)) {
                capture.spoilt = true;
                return Err(DriverError { call: submission.what, code: DriverError::CAPTURE_UNSUPPORTED });
            }
            capture.work.push(submission);
            return Ok(());
        }
        self.streams[stream].clock.join(&self.host);
        let tick = self.streams[stream].clock.tick(stream);
        for access in &submission.accesses {
            if access.len == 0 {
                continue;
            }
            let (address, len, what) = (access.address, access.len, submission.what);
            let Some(stretches) = self.space.resolve(address, len) else {
                let raw = Self::stream_raw(stream);
                self.violations.push(Violation::Unmapped { address, len, stream: raw, what });
                return Err(DriverError { call: what, code: DriverError::ILLEGAL_ADDRESS });
            };
            for s in stretches {
                let Some(piece) = self.space.pieces.get_mut(&s.piece) else { continue };
                let clock = &self.streams[stream].clock;
                let found = piece.shadow.access(s.offset, s.len, access.write, clock, stream, tick);
                if let Some(earlier) = found {
                    self.violations.push(Violation::Race {
                        address,
                        len,
                        stream: Self::stream_raw(stream),
                        earlier: Self::stream_raw(earlier),
                        write: access.write,
                        what,
                    });
                }
            }
        }
        self.charge(stream, submission.engine, submission.bytes);
        self.streams[stream].queue.push_back(submission.work);
        self.wander();
        Ok(())
    }

    /// Moves the modelled time of a stream over a piece of work.
    fn charge(&mut self, stream: usize, engine: Engine, bytes: u64) {
        let device = self.streams[stream].device;
        let (slot, bytes_per_micro) = match engine {
            Engine::None => return,
            Engine::Upload => (0, self.config.link_bytes_per_micro),
            Engine::Download => (1, self.config.link_bytes_per_micro),
            Engine::Compute => (2, self.config.memory_bytes_per_micro),
        };
        let start = self.streams[stream].ready_nanos.max(self.now).max(self.devices[device].engines[slot]);
        let end = start + bytes.saturating_mul(1000) / bytes_per_micro.max(1);
        self.streams[stream].ready_nanos = end;
        self.devices[device].engines[slot] = end;
    }

    /// Destroys an event; waits for its records stay.
    pub(super) fn destroy_event(&mut self, event: u64) {
        if let Some(state) = self.events.get_mut(&event) {
            state.destroyed = true;
            if state.pending.is_empty() {
                self.events.remove(&event);
            }
        }
    }

    /// Records an event: work of the stream, and from now on the event stands for this moment.
    pub(super) fn record(&mut self, event: u64, stream: usize) -> DriverResult<()> {
        let captured = self.streams[stream].capture.is_some();
        self.streams[stream].clock.join(&self.host);
        let (clock, nanos) = (self.streams[stream].clock.clone(), self.streams[stream].ready_nanos);
        let Some(state) = self.events.get_mut(&event).filter(|e| !e.destroyed) else {
            return Err(DriverError {
                call: Call::EventRecord.driver_name(),
                code: DriverError::INVALID_HANDLE,
            });
        };
        state.captured = captured;
        state.generation += 1;
        if !captured {
            state.pending.push(state.generation);
        }
        (state.clock, state.nanos) = (clock, nanos);
        let generation = state.generation;
        self.submit(stream, Submission::plain(Work::Record { event, generation }, "cuEventRecord"))
    }

    /// Makes a stream wait for the latest record of an event.
    pub(super) fn wait(&mut self, stream: usize, event: u64) -> DriverResult<()> {
        let call = Call::StreamWait.driver_name();
        let Some(state) = self.events.get(&event).filter(|e| !e.destroyed) else {
            return Err(DriverError { call, code: DriverError::INVALID_HANDLE });
        };
        let (clock, nanos, generation) = (state.clock.clone(), state.nanos, state.generation);
        let captured = state.captured;
        if let Some(capture) = self.streams[stream].capture.as_mut() {
            if captured {
                return Ok(());
            }
            capture.spoilt = true;
            self.violations.push(Violation::InCapture { call });
            return Err(DriverError { call, code: DriverError::CAPTURE_ISOLATION });
        }
        let s = &mut self.streams[stream];
        s.clock.join(&clock);
        s.ready_nanos = s.ready_nanos.max(nanos);
        self.submit(stream, Submission::plain(Work::Wait { event, generation }, call))
    }

    /// Whether the latest record of an event has run; the dice may run some work first.
    pub(super) fn query(&mut self, event: u64) -> DriverResult<bool> {
        self.wander();
        let Some(state) = self.events.get(&event).filter(|e| !e.destroyed) else {
            return Err(DriverError {
                call: Call::EventQuery.driver_name(),
                code: DriverError::INVALID_HANDLE,
            });
        };
        let done = !state.pending.contains(&state.generation);
        if done {
            let clock = state.clock.clone();
            self.host.join(&clock);
        }
        Ok(done)
    }

    /// The host waits for an event.
    pub(super) fn synchronize_event(&mut self, event: u64) -> DriverResult<()> {
        let Some(state) = self.events.get(&event).filter(|e| !e.destroyed) else {
            return Err(DriverError {
                call: Call::EventSynchronize.driver_name(),
                code: DriverError::INVALID_HANDLE,
            });
        };
        let (clock, nanos, generation) = (state.clock.clone(), state.nanos, state.generation);
        while self.events.get(&event).is_some_and(|e| e.pending.contains(&generation)) {
            if !self.step() {
                break;
            }
        }
        self.host.join(&clock);
        self.now = self.now.max(nanos);
        Ok(())
    }

    /// The host waits for the streams that `which` picks.
    pub(super) fn synchronize(&mut self, which: impl Fn(usize, &StreamState) -> bool) {
        let picked: Vec<usize> =
            self.streams.iter().enumerate().filter(|(i, s)| which(*i, s)).map(|(i, _)| i).collect();
        while picked.iter().any(|&i| !self.streams[i].queue.is_empty()) {
            if !self.step() {
                break;
            }
        }
        for i in picked {
            let clock = self.streams[i].clock.clone();
            self.host.join(&clock);
            self.now = self.now.max(self.streams[i].ready_nanos);
        }
    }

    /// Lets the scheduler run a few pieces of work, or, mostly, none.
    fn wander(&mut self) {
        if self.config.eagerness > 0 && self.dice(100) < u64::from(self.config.eagerness) {
            for _ in 0..self.dice(4) {
                self.step();
            }
        }
    }

    fn runnable(&self, stream: usize) -> bool {
        match self.streams[stream].queue.front() {
            None => false,
            Some(Work::Wait { event, generation }) => {
                self.events.get(event).is_none_or(|e| !e.pending.contains(generation))
            }
            Some(_) => true,
        }
    }

    /// Runs one piece of work of a stream that the dice choose. `false` if nothing can run.
    pub(super) fn step(&mut self) -> bool {
        let ready: Vec<usize> = (0..self.streams.len()).filter(|&i| self.runnable(i)).collect();
        if ready.is_empty() {
            if self.streams.iter().any(|s| !s.queue.is_empty()) {
                self.violations.push(Violation::Deadlock);
                self.streams.iter_mut().for_each(|s| s.queue.clear());
            }
            return false;
        }
        let stream = ready[self.dice(ready.len() as u64) as usize];
        if let Some(work) = self.streams[stream].queue.pop_front() {
            self.run(stream, work);
        }
        true
    }

    fn run(&mut self, stream: usize, work: Work) {
        let (address, len, what, fine) = match work {
            Work::Fill { to, byte, len } => (to, len, "fill", self.space.fill(to, byte, len)),
            Work::Write { to, bytes } => (to, bytes.len() as u64, "upload", self.space.write(to, &bytes)),
            Work::Copy { to, from, len } => {
                let mut buffer = vec![0; len as usize];
                let fine = self.space.read(from, &mut buffer) && self.space.write(to, &buffer);
                (to, len, "copy", fine)
            }
            Work::Kernel { body, declared } => {
                let (space, violations) = (&mut self.space, &mut self.violations);
                body(&mut KernelMemory { space, declared: &declared, violations });
                return;
            }
            Work::Record { event, generation } => {
                if let Some(state) = self.events.get_mut(&event) {
                    state.pending.retain(|&g| g != generation);
                    if state.destroyed && state.pending.is_empty() {
                        self.events.remove(&event);
                    }
                }
                return;
            }
            Work::Call(slot) => {
                self.later.extend(slot.lock().take());
                return;
            }
            Work::Unmap { address } => {
                self.unmap_whole(address);
                return;
            }
            Work::Wait { .. } | Work::Note => return,
        };
        if !fine {
            let stream = Self::stream_raw(stream);
            self.violations.push(Violation::Unmapped { address, len, stream, what });
        }
    }

    /// Takes a whole allocation away: poisoned first, so that whoever kept a mapping sees it.
    pub(super) fn unmap_whole(&mut self, address: u64) -> Option<u64> {
        let map = self.space.maps.get(&address).copied().filter(|m| m.whole)?;
        self.space.fill(address, POISON, map.len);
        self.space.maps.remove(&address);
        if let Some(piece) = self.space.pieces.get_mut(&map.piece) {
            piece.mappings -= 1;
            piece.held = false;
        }
        if let Some((device, len)) = self.space.drop_if_unused(map.piece) {
            self.devices[device].used -= len;
            self.devices[device].spare.entry(len).or_default().push(address);
        }
        Some(map.len)
    }
}

impl Submission {
    /// Work that touches no memory.
    pub(super) fn plain(work: Work, what: &'static str) -> Self {
        Self { work, accesses: Vec::new(), what, engine: Engine::None, bytes: 0 }
    }
}
