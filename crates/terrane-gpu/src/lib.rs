//! Pools of device memory for Rust programs on GPUs: hits that make no driver call, reuse that is safe across streams by
//! construction, and all of it runnable and testable on a machine with no GPU.
//!
//! ```text
//!   DeviceBuf<T>, Transfer                typed, gives itself back | copies that own both ends
//!        |
//!   Limit, Track, Trace, Statistics, …    adaptors: each takes any pool and is one
//!   SizeClassPool                         one more: short blocks from slabs, by length class
//!        |
//!   FixedPool     VariablePool<P>         one length, lock-free | any length, over any placement engine P
//!        |          |          |
//!        |        Chunks      Vmm         chunks of any Source | pieces remapped to close holes, without copying
//!        |          |          |
//!   StreamOrder                           epochs: one event for many frees, waits on the device, never the host
//!        |
//!   Device: Cuda | OpenCl | Sim | your own         streams, events, copies, memory
//! ```
//!
//! # Example
//!
//! ```
//! use terrane_gpu::{Device, DeviceBuf, FixedConfig, FixedPool, Sim};
//!
//! let sim = Sim::new();
//! let device = sim.device(0);
//! let (compute, copy) = (device.stream_create()?, device.stream_create()?);
//! let pool = FixedPool::new(device.clone(), FixedConfig::new(1 << 20))?;
//!
//! let buf = DeviceBuf::<f32, _>::new_in(&pool, 1024, compute)?;
//! // SAFETY: `buf` is held while the work is submitted.
//! unsafe { device.fill(buf.address(), 0, buf.bytes(), compute)? };
//! drop(buf); // in the order of `compute`: no driver call, and nothing waits
//!
//! let again = DeviceBuf::<f32, _>::new_in(&pool, 1024, copy)?; // another stream: ordered on the device
//! # let _ = again;
//! assert_eq!(sim.violations(), []);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The simulated device
//!
//! [`Sim`] runs the work of many streams in an adversarial order, poisons what is freed, checks every access for a
//! happens-before order, caps memory, counts calls and makes them fail on demand. What passes there is ordered by rule and
//! not by luck. Its times are a model and are never figures of a device.
//!
//! # Features
//!
//! * `cuda` (default): [`Cuda`], through NVIDIA's driver, loaded when it is first asked for; nothing of CUDA is needed to
//!   build, and its absence is a [`GpuAbsence`], never a panic. [`CudaBuf`] goes wherever `cudarc` takes a device pointer.
//! * `opencl`: `OpenCl`, devices under OpenCL that have shared virtual memory, through the loader that the system has, loaded
//!   when it is first asked for. A processor will do.
//! * `snapshot` (default): [`snapshot`] writes a pool as JSON and as an HTML page with a map of memory over time.
//!
//! # Limits
//!
//! A pool serves one device; [`DeviceManager`](manager::DeviceManager) keeps several. Work that uses a buffer on a stream
//! other than its own has to be named with [`DeviceBuf::used_on`]. A stream that is captured into a graph is declared with
//! [`VariablePool::begin_capture`]; fixed pools take no part in captures (use a [sibling](FixedPool::sibling)).

pub mod adaptors;
pub mod arena;
mod bins;
pub mod buf;
pub mod capture;
pub mod chunks;
pub mod conformance;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
pub mod driver_pool;
#[doc(hidden)]
pub mod epoch;
pub mod error;
mod evacuation;
pub mod fixed;
#[doc(hidden)]
pub mod free_list;
mod gate;
#[cfg(any(feature = "cuda", feature = "opencl"))]
mod host_call;
mod lanes;
pub mod manager;
pub mod movable;
#[cfg(feature = "opencl")]
pub mod opencl;
pub mod pinned;
pub mod pool;
pub mod regions;
pub mod sim;
mod size_class;
pub mod size_class_pool;
#[cfg(feature = "snapshot")]
pub mod snapshot;
pub mod sources;
mod space;
pub mod stream_order;
pub mod transfer;
pub mod variable;
pub mod vmm;

pub use buf::{DeviceBuf, Plain};
pub use chunks::{ChunkConfig, Chunks, DevicePoolOf};
#[cfg(feature = "cuda")]
pub use cuda::{Cuda, CudaBuf};
pub use device::{
    Device, DeviceInfo, DeviceMemoryInfo, DriverResult, Event, OrderedMemory, OrderedUsage, Physical, Stream,
    Streams, Uuid, VirtualMemory,
};
pub use driver_pool::DriverPool;
pub use error::{DriverError, GpuAbsence, PoolError, Shortage};
pub use fixed::{FixedConfig, FixedPool, LockFree, Locked};
#[cfg(feature = "opencl")]
pub use opencl::OpenCl;
pub use pinned::{PinnedBuf, PinnedPool};
pub use pool::{Block, DevicePool, PoolStats};
pub use regions::Regions;
pub use sim::{Sim, SimConfig, SimDevice};
pub use size_class_pool::{SizeClassConfig, SizeClassPool};
pub use sources::{DeviceMemory, Immediate, PinnedMemory};
pub use stream_order::{OrderStats, Stamp, StreamOrder};
pub use variable::{Backing, Engine, StreamFigures, VariablePool};
pub use vmm::{Vmm, VmmConfig, VmmPool};
