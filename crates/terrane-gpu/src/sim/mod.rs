//! Simulated devices: everything a pool asks of a device, on any machine, with the worst of luck and a judge.
//!
//! Invariant: what the simulation lets pass is ordered by the rules of streams and events alone; nothing is in order
//! because it happened to be fast.
//!
//! * A seeded, adversarial **scheduler** runs the work of many streams as late and as interleaved as their waits allow
//!   ([`SimConfig::seed`], [`SimConfig::eagerness`]).
//! * A **happens-before checker** keeps vector clocks and the last accesses to every byte, and finds a reuse of memory
//!   before the work of its former user is ordered before it ([`Sim::violations`]). A pool tells it of the blocks that
//!   it hands out and takes back, so that reuse inside a pool's memory is seen too.
//! * Fresh memory is garbage, freed memory is poison, whether it is freed to the driver or to a pool.
//! * Capacity is capped, calls are counted ([`Sim::calls`]) and can be made to fail ([`Sim::inject`]).
//! * A **latency model** moves a virtual clock ([`Sim::model_nanos`]). Its figures are for tests of overlap and of the
//!   number of driver calls; they say nothing about any real device.
//!
//! ```
//! use terrane_gpu::{Device, Sim, Streams};
//!
//! let sim = Sim::new();
//! let device = sim.device(0);
//! let (a, b) = (device.stream_create()?, device.stream_create()?);
//! let address = device.alloc(4096)?;
//! // SAFETY: the memory was just taken, and is never freed.
//! unsafe {
//!     device.fill(address, 1, 4096, a)?;
//!     device.fill(address, 2, 4096, b)?; // nothing orders b after a
//! }
//! assert_eq!(sim.violations().len(), 1);
//! # Ok::<(), terrane_gpu::DriverError>(())
//! ```

mod checker;
mod device;
mod driver_memory;
mod faults;
mod memory;
mod world;

pub use checker::Violation;
pub use device::{Graph, SimDevice};
pub use faults::{Call, Fault};
pub use world::KernelMemory;

use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};
use world::State;

/// How a simulation is set up.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Number of devices.
    pub devices: u32,
    /// Bytes of memory per device.
    pub capacity: u64,
    /// Seed of the scheduler.
    pub seed: u64,
    /// How often the scheduler runs work although nobody waits for it, in percent of the calls. 0 is laziest.
    pub eagerness: u8,
    /// Granularity of mappings in bytes, a power of two.
    pub granularity: u64,
    /// Pairs of devices that reach each other's memory.
    pub links: Vec<(u32, u32)>,
    /// NUMA node per device; devices beyond the list have none.
    pub numa_nodes: Vec<u32>,
    /// Whether blocks of pools are watched too.
    pub watch_blocks: bool,
    /// Modelled bandwidth between host and device, one way, in bytes per microsecond.
    pub link_bytes_per_micro: u64,
    /// Modelled bandwidth of device memory in bytes per microsecond.
    pub memory_bytes_per_micro: u64,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            devices: 1,
            capacity: 16 << 30,
            seed: 1,
            eagerness: 10,
            granularity: 2 << 20,
            links: Vec::new(),
            numa_nodes: Vec::new(),
            watch_blocks: true,
            link_bytes_per_micro: 25_000,
            memory_bytes_per_micro: 1_000_000,
        }
    }
}

/// A range of memory that work touches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    address: u64,
    len: u64,
    write: bool,
}

impl Access {
    /// `len` bytes at `address` are read.
    pub const fn read(address: u64, len: u64) -> Self {
        Self { address, len, write: false }
    }

    /// `len` bytes at `address` are written, and perhaps read.
    pub const fn write(address: u64, len: u64) -> Self {
        Self { address, len, write: true }
    }
}

struct World {
    state: Mutex<State>,
    captures: AtomicU32,
    /// Called at the start of every driver call.
    watcher: OnceLock<Box<dyn Fn(Call) + Send + Sync>>,
}

impl World {
    /// Runs `f` under the lock, and then, without it, what work has put off until now.
    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let (result, later) = {
            let mut state: MutexGuard<'_, State> = self.state.lock();
            let result = f(&mut state);
            (result, core::mem::take(&mut state.later))
        };
        for call in later {
            call();
        }
        result
    }
}

/// A simulation: some devices, and the means to provoke and to judge.
#[derive(Clone)]
pub struct Sim {
    world: Arc<World>,
    devices: Vec<Arc<SimDevice>>,
}

impl Default for Sim {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for Sim {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Sim").field("devices", &self.devices.len()).finish_non_exhaustive()
    }
}

impl Sim {
    /// One device with 16 GiB.
    pub fn new() -> Self {
        Self::with(SimConfig::default())
    }

    /// As configured.
    pub fn with(config: SimConfig) -> Self {
        let count = config.devices;
        let state = Mutex::new(State::new(config));
        let world = Arc::new(World { state, captures: AtomicU32::new(0), watcher: OnceLock::new() });
        let devices = (0..count).map(|i| Arc::new(SimDevice::new(world.clone(), i as usize))).collect();
        Self { world, devices }
    }

    /// Device number `index`.
    ///
    /// # Panics
    /// If there is no such device.
    pub fn device(&self, index: usize) -> Arc<SimDevice> {
        self.devices[index].clone()
    }

    /// All devices.
    pub fn devices(&self) -> &[Arc<SimDevice>] {
        &self.devices
    }

    /// What was done against the rules so far.
    pub fn violations(&self) -> Vec<Violation> {
        self.world.with(|s| s.violations.clone())
    }

    /// Takes the list of violations away and starts a new one.
    pub fn take_violations(&self) -> Vec<Violation> {
        self.world.with(|s| core::mem::take(&mut s.violations))
    }

    /// Makes calls fail.
    pub fn inject(&self, fault: Fault) {
        self.world.with(|s| s.faults.inject(fault));
    }

    /// Makes the `nth` call from now on (the first is 1), of whatever kind, fail with `code`.
    pub fn fail_nth_call(&self, nth: u64, code: i32) {
        self.inject(Fault { call: None, after: nth - 1, times: 1, code });
    }

    /// Has `watcher` called at the start of every driver call, on the thread that makes it, before the device does
    /// anything. Can be set once; later ones are dropped.
    pub fn watch_calls(&self, watcher: impl Fn(Call) + Send + Sync + 'static) {
        let _ = self.world.watcher.set(Box::new(watcher));
    }

    /// Forgets the failures to come.
    pub fn clear_faults(&self) {
        self.world.with(|s| s.faults.clear());
    }

    /// How often `call` was made.
    pub fn calls(&self, call: Call) -> u64 {
        self.world.with(|s| s.faults.count(call))
    }

    /// How many calls were made in all.
    pub fn total_calls(&self) -> u64 {
        self.world.with(|s| s.faults.total())
    }

    /// Runs up to `pieces` pieces of work in an order that the seed decides; returns how many there were.
    pub fn step(&self, pieces: u32) -> u32 {
        self.world.with(|s| (0..pieces).take_while(|_| s.step()).count() as u32)
    }

    /// Runs all work, without the host learning of it: the checker still wants it ordered.
    pub fn run_all(&self) {
        self.world.with(|s| while s.step() {});
    }

    /// The virtual clock in nanoseconds. A model, not a measurement.
    pub fn model_nanos(&self) -> u64 {
        self.world.with(|s| s.now)
    }

    /// Bytes of physical memory in use on a device.
    pub fn used_bytes(&self, device: usize) -> u64 {
        self.world.with(|s| s.devices[device].used)
    }

    /// Reads device memory as it is now, past all order: for looking at, not for computing with. `None` if some of the
    /// range is not mapped.
    pub fn peek(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        self.world.with(|s| {
            let mut bytes = vec![0; len];
            s.space.read(address, &mut bytes).then_some(bytes)
        })
    }
}
