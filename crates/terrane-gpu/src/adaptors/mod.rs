//! Pools around pools: each adaptor takes any [`DevicePool`](crate::DevicePool) and is one, so they stack.
//!
//! ```
//! use terrane_gpu::adaptors::{Limit, OnOutOfMemory, Track};
//! use terrane_gpu::{DeviceBuf, FixedConfig, FixedPool, Sim};
//!
//! let sim = Sim::new();
//! let device = sim.device(0);
//! let pool = FixedPool::new(device.clone(), FixedConfig::new(4096))?;
//! let pool = Track::new(Limit::new(OnOutOfMemory::new(pool, |_, _| false), 8192));
//!
//! let a = DeviceBuf::<u8, _>::new_in(&pool, 4096, device.default_stream())?;
//! let b = DeviceBuf::<u8, _>::new_in(&pool, 4096, device.default_stream())?;
//! assert!(DeviceBuf::<u8, _>::new_in(&pool, 1, device.default_stream()).is_err(), "the limit");
//! assert_eq!(pool.live().len(), 2);
//! assert!(pool.live()[0].site.file().ends_with(".rs"));
//! # drop((a, b));
//! # Ok::<(), terrane_gpu::PoolError>(())
//! ```

mod limit;
mod oom;
mod statistics;
mod trace;
mod track;

pub use limit::Limit;
pub use oom::OnOutOfMemory;
pub use statistics::Statistics;
pub use trace::{Lifetime, Trace};
pub use track::{Leak, Track};

/// The methods that an adaptor only passes on.
macro_rules! pass_on {
    ($inner:ident) => {
        fn retire_stream(&self, stream: Stream) {
            self.$inner.retire_stream(stream);
        }
        fn trim(&self) -> u64 {
            self.$inner.trim()
        }
    };
}
use pass_on;
