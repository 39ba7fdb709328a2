//! Several devices: [`DeviceManager`] knows them by UUID, keeps a pool for each, and picks one for new work.
//!
//! Invariant: a pool belongs to one device for good, and a device's entry is never taken away: what was picked stays valid.
//! Page-locked memory comes from one pool per NUMA node, shared by the devices that hang on it.

use crate::buf::DeviceBuf;
use crate::chunks::ChunkConfig;
use crate::device::{Device, Stream, Uuid};
use crate::error::{DriverError, PoolError};
use crate::pinned::PinnedPool;
use crate::pool::{DevicePool, PoolStats};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a device is picked for new work.
#[derive(Clone, PartialEq, Debug)]
pub enum Policy {
    /// The one with the most memory left: free at the driver, and free in its pool.
    MostFree,
    /// One after the other.
    RoundRobin,
    /// This one, while it has room for the request; otherwise as [`MostFree`](Self::MostFree).
    Affinity(Uuid),
    /// In proportion to weights, one for each device in the order of the manager; devices beyond the list weigh nothing.
    Weighted(Vec<u32>),
}

/// A device with its pools.
#[derive(Debug)]
pub struct Entry<D: Device + ?Sized + 'static, P> {
    device: Arc<D>,
    pool: Arc<P>,
    pinned: PinnedPool<D>,
}

impl<D: Device + ?Sized + 'static, P: DevicePool> Entry<D, P> {
    /// The device.
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// The pool of its memory.
    pub fn pool(&self) -> &Arc<P> {
        &self.pool
    }

    /// Page-locked memory near it.
    pub fn pinned(&self) -> &PinnedPool<D> {
        &self.pinned
    }

    /// Bytes that could be had: free at the driver, and free in the pool. A driver that does not answer counts as full.
    pub fn available(&self) -> u64 {
        self.device.memory().map_or(0, |memory| memory.free) + self.pool.stats().free()
    }
}

/// Several devices, each with a pool.
#[derive(Debug)]
pub struct DeviceManager<D: Device + ?Sized + 'static, P> {
    entries: Vec<Entry<D, P>>,
    by_uuid: HashMap<Uuid, usize>,
    turn: AtomicU64,
}

impl<D: Device + ?Sized + 'static, P: DevicePool> DeviceManager<D, P> {
    /// Manages `devices`, each with the pool that `make` gives it. A device that is named twice is taken once.
    ///
    /// # Errors
    /// What `make` meets.
    pub fn new(
        devices: impl IntoIterator<Item = Arc<D>>,
        mut make: impl FnMut(&Arc<D>) -> Result<P, PoolError>,
    ) -> Result<Self, PoolError> {
        let mut manager = Self { entries: Vec::new(), by_uuid: HashMap::new(), turn: AtomicU64::new(0) };
        let mut near: HashMap<u32, PinnedPool<D>> = HashMap::new();
        for device in devices {
            let info = device.info();
            if manager.by_uuid.contains_key(&info.uuid) {
                continue;
            }
            let fresh = || PinnedPool::new(device.clone(), ChunkConfig::default());
            let pinned = match info.numa_node {
                Some(node) => near.entry(node).or_insert_with(fresh).clone(),
                None => fresh(),
            };
            manager.by_uuid.insert(info.uuid, manager.entries.len());
            let pool = Arc::new(make(&device)?);
            manager.entries.push(Entry { device, pool, pinned });
        }
        Ok(manager)
    }

    /// All devices, in the order in which they were named.
    pub fn entries(&self) -> &[Entry<D, P>] {
        &self.entries
    }

    /// The device with this UUID.
    pub fn get(&self, uuid: Uuid) -> Option<&Entry<D, P>> {
        self.by_uuid.get(&uuid).map(|&i| &self.entries[i])
    }

    /// A device for `len` bytes of new work; `None` if there is none, or all weights are zero.
    pub fn pick(&self, policy: &Policy, len: u64) -> Option<&Entry<D, P>> {
        let most_free = || self.entries.iter().rev().max_by_key(|entry| entry.available());
        match policy {
            Policy::MostFree => most_free(),
            Policy::RoundRobin => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                self.entries.get((turn % self.entries.len().max(1) as u64) as usize)
            }
            Policy::Affinity(uuid) => {
                self.get(*uuid).filter(|entry| entry.available() >= len).or_else(most_free)
            }
            Policy::Weighted(weights) => {
                let weights = || weights.iter().take(self.entries.len()).map(|&w| u64::from(w));
                let total: u64 = weights().sum();
                if total == 0 {
                    return None;
                }
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                // A step that has no factor in common with most totals spreads the turns.
                let mut ticket = turn.wrapping_mul(0x9E37_79B9_7F4A_7C15) % total;
                let picked = weights().position(|weight| {
                    let here = ticket < weight;
                    ticket = ticket.saturating_sub(weight);
                    here
                })?;
                self.entries.get(picked)
            }
        }
    }

    /// Copies a buffer, of whichever device its pool belongs to, to another device: new memory there for `stream` of that
    /// device, which waits for the copy; the copy runs in the order of `from`'s stream. The host waits only where the devices
    /// do not reach each other.
    ///
    /// # Errors
    /// No memory there, no such device or no such pool here, or the driver's refusal.
    pub fn copy_to<T>(
        &self,
        from: &DeviceBuf<T, Arc<P>>,
        to_device: Uuid,
        stream: Stream,
    ) -> Result<DeviceBuf<T, Arc<P>>, PoolError> {
        let unknown = DriverError { call: "copy between devices", code: DriverError::PEER_UNSUPPORTED };
        let refused = |error| PoolError::driver(from.bytes(), error);
        let source = self.entries.iter().find(|entry| Arc::ptr_eq(&entry.pool, from.pool()));
        let source = source.ok_or(refused(unknown))?;
        let target = self.get(to_device).ok_or(refused(unknown))?;
        let to = DeviceBuf::new_in(target.pool.clone(), from.len(), stream)?;
        // What used the new memory before is ordered before `stream`; the copy comes after that. Both events are made before
        // anything is submitted: a refusal after the copy would have to be waited for.
        let (here, there) = (&source.device, &target.device);
        let ready = Owned { device: &**there, event: there.event_create().map_err(refused)? };
        let done = Owned { device: &**here, event: here.event_create().map_err(refused)? };
        there.event_record(ready.event, stream).map_err(refused)?;
        here.stream_wait(from.stream(), ready.event).map_err(refused)?;
        if here.reaches(to_device) {
            // SAFETY: both buffers have these bytes and are held; `to` is not used before `stream` has waited.
            let copied = unsafe {
                here.copy_peer(to.address(), to_device, from.address(), from.bytes(), from.stream())
            };
            copied.map_err(refused)?;
        } else {
            self.through_host(source, target, from, &to).map_err(refused)?;
        }
        let ordered =
            here.event_record(done.event, from.stream()).and_then(|()| there.stream_wait(stream, done.event));
        if let Err(error) = ordered {
            // The copy may be under way, and `to` would be given back in an order that does not know of it: the host waits.
            // If the driver will not even say that, the memory is lost.
            if here.stream_synchronize(from.stream()).is_err() {
                core::mem::forget(to);
            }
            return Err(refused(error));
        }
        Ok(to)
    }

    /// The detour for devices that do not reach each other: the host waits.
    fn through_host<T>(
        &self,
        source: &Entry<D, P>,
        target: &Entry<D, P>,
        from: &DeviceBuf<T, Arc<P>>,
        to: &DeviceBuf<T, Arc<P>>,
    ) -> Result<(), DriverError> {
        let mut bytes = vec![0u8; from.bytes() as usize];
        // SAFETY: the buffers have these bytes and are held, and memory that is not page-locked is copied before the calls
        // return.
        unsafe {
            source.device.download(bytes.as_mut_ptr(), from.address(), from.bytes(), from.stream())?;
            source.device.stream_synchronize(from.stream())?;
            target.device.upload(to.address(), bytes.as_ptr(), to.bytes(), to.stream())
        }
    }

    /// The figures of all pools together.
    pub fn stats(&self) -> PoolStats {
        self.entries.iter().map(|entry| entry.pool.stats()).fold(PoolStats::default(), |sum, s| PoolStats {
            reserved: sum.reserved + s.reserved,
            peak_reserved: sum.peak_reserved + s.peak_reserved,
            live: sum.live + s.live,
            peak_live: sum.peak_live + s.peak_live,
            requested: sum.requested + s.requested,
            live_blocks: sum.live_blocks + s.live_blocks,
            largest_free: sum.largest_free.max(s.largest_free),
            steals: sum.steals + s.steals,
            waits: sum.waits + s.waits,
            events_recorded: sum.events_recorded + s.events_recorded,
            grows: sum.grows + s.grows,
            remaps: sum.remaps + s.remaps,
        })
    }
}

/// An event that is destroyed in the end.
struct Owned<'a, D: Device + ?Sized> {
    device: &'a D,
    event: crate::device::Event,
}

impl<D: Device + ?Sized> Drop for Owned<'_, D> {
    fn drop(&mut self) {
        self.device.event_destroy(self.event);
    }
}
