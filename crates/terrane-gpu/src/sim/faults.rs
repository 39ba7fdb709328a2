//! Which driver calls were made, and which of them are to fail.
//!
//! Invariant: a call that fails by injection has no effect on the simulated device.

use crate::error::DriverError;

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident = $driver:literal, $nanos:literal;)*) => {
        /// The calls that a simulated device takes, for counting and for failure injection.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        pub enum Call { $($(#[$doc])* $name,)* }

        impl Call {
            /// Every call.
            pub const ALL: &'static [Call] = &[$(Call::$name,)*];

            /// The name of the CUDA driver's call that this one stands for.
            pub const fn driver_name(self) -> &'static str {
                match self { $(Call::$name => $driver,)* }
            }

            /// What the latency model charges the host for one call, in nanoseconds: the order of magnitude that is
            /// reported for real drivers, and no more than that.
            pub const fn model_nanos(self) -> u64 {
                match self { $(Call::$name => $nanos,)* }
            }
        }
    };
}

calls! {
    /// Device memory taken.
    Alloc = "cuMemAlloc", 30_000;
    /// Device memory given back.
    Free = "cuMemFree", 30_000;
    /// Free memory asked for.
    MemoryInfo = "cuMemGetInfo", 2_000;
    /// A stream made.
    StreamCreate = "cuStreamCreate", 5_000;
    /// A stream destroyed.
    StreamDestroy = "cuStreamDestroy", 5_000;
    /// The host waits for a stream.
    StreamSynchronize = "cuStreamSynchronize", 2_000;
    /// A stream waits for an event.
    StreamWait = "cuStreamWaitEvent", 500;
    /// The host waits for the device.
    Synchronize = "cuCtxSynchronize", 2_000;
    /// An event made.
    EventCreate = "cuEventCreate", 500;
    /// An event recorded.
    EventRecord = "cuEventRecord", 450;
    /// An event asked about.
    EventQuery = "cuEventQuery", 400;
    /// The host waits for an event.
    EventSynchronize = "cuEventSynchronize", 2_000;
    /// Host to device.
    Upload = "cuMemcpyHtoDAsync", 1_500;
    /// Device to host.
    Download = "cuMemcpyDtoHAsync", 1_500;
    /// Within the device.
    Copy = "cuMemcpyDtoDAsync", 1_500;
    /// To another device.
    CopyPeer = "cuMemcpyPeerAsync", 2_000;
    /// Bytes set.
    Fill = "cuMemsetD8Async", 1_500;
    /// A kernel started.
    Launch = "cuLaunchKernel", 2_000;
    /// A function of the host put into a stream.
    HostFunction = "cuLaunchHostFunc", 1_000;
    /// Page-locked memory taken.
    HostAlloc = "cuMemHostAlloc", 2_000_000;
    /// Page-locked memory given back.
    HostFree = "cuMemFreeHost", 500_000;
    /// Host memory page-locked.
    HostRegister = "cuMemHostRegister", 1_000_000;
    /// Host memory unlocked.
    HostUnregister = "cuMemHostUnregister", 500_000;
    /// Address space taken.
    Reserve = "cuMemAddressReserve", 5_000;
    /// Address space given back.
    Unreserve = "cuMemAddressFree", 5_000;
    /// Physical memory taken.
    Create = "cuMemCreate", 20_000;
    /// Physical memory given back.
    Release = "cuMemRelease", 10_000;
    /// Physical memory mapped.
    Map = "cuMemMap", 2_000;
    /// Access granted.
    Allow = "cuMemSetAccess", 5_000;
    /// A mapping removed.
    Unmap = "cuMemUnmap", 5_000;
    /// Memory of the driver's own pool taken.
    AllocOrdered = "cuMemAllocAsync", 700;
    /// Memory of the driver's own pool given back.
    FreeOrdered = "cuMemFreeAsync", 500;
    /// The driver's own pool configured or asked.
    OrderedPool = "cuMemPoolSetAttribute", 500;
    /// A capture begun.
    CaptureBegin = "cuStreamBeginCapture", 2_000;
    /// A capture ended.
    CaptureEnd = "cuStreamEndCapture", 50_000;
    /// A graph launched.
    GraphLaunch = "cuGraphLaunch", 3_000;
}

/// A failure to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The call that fails, or any.
    pub call: Option<Call>,
    /// How many such calls still succeed before it.
    pub after: u64,
    /// How many calls fail in a row from then on.
    pub times: u64,
    /// The driver's code that they fail with.
    pub code: i32,
}

/// Counts calls and decides which fail.
#[derive(Debug, Default)]
pub(super) struct Faults {
    counts: Vec<u64>,
    pending: Vec<Fault>,
}

impl Faults {
    pub(super) fn inject(&mut self, fault: Fault) {
        self.pending.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.pending.clear();
    }

    pub(super) fn count(&self, call: Call) -> u64 {
        self.counts.get(call as usize).copied().unwrap_or(0)
    }

    pub(super) fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Counts a call, and fails it if its time has come.
    pub(super) fn enter(&mut self, call: Call) -> Result<(), DriverError> {
        if self.counts.is_empty() {
            self.counts = vec![0; Call::ALL.len()];
        }
        self.counts[call as usize] += 1;
        let mut failure = None;
        for fault in self.pending.iter_mut().filter(|f| f.call.is_none_or(|c| c == call)) {
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 && failure.is_none() {
                fault.times -= 1;
                failure = Some(DriverError { call: call.driver_name(), code: fault.code });
            }
        }
        self.pending.retain(|f| f.times > 0);
        failure.map_or(Ok(()), Err)
    }
}
