//! The simulated driver's virtual memory and its own stream-ordered pool.
//!
//! Invariant: as for the [device](super::device): a call that returns an error has changed nothing. A mapping lies in one
//! reserved range and overlaps no other; a physical piece lives until it is neither held nor mapped.

use super::Access;
use super::device::{SimDevice, refused, report_use};
use super::faults::Call;
use super::memory::Mapping;
use super::world::{Engine, Submission, Work};
use crate::device::{DriverResult, OrderedMemory, OrderedUsage, Physical, Stream, VirtualMemory};
use crate::error::DriverError;

impl VirtualMemory for SimDevice {
    fn granularity(&self) -> u64 {
        self.granularity
    }

    fn reserve(&self, len: u64, align: u64) -> DriverResult<u64> {
        self.call(Call::Reserve, |s| {
            if len == 0 || !len.is_multiple_of(self.granularity) {
                return Err(refused(Call::Reserve, DriverError::INVALID_VALUE));
            }
            let device = &mut s.devices[self.index];
            let address = device.next_address.next_multiple_of(align.max(self.granularity));
            device.next_address = address + len;
            s.space.reserved.insert(address, len);
            Ok(address)
        })
    }

    unsafe fn unreserve(&self, address: u64, len: u64) -> DriverResult<()> {
        self.call(Call::Unreserve, |s| {
            let whole = s.space.reserved.get(&address) == Some(&len);
            if !whole || s.space.any_mapped(address, len) {
                return Err(refused(Call::Unreserve, DriverError::INVALID_VALUE));
            }
            s.space.reserved.remove(&address);
            Ok(())
        })
    }

    fn create(&self, len: u64) -> DriverResult<Physical> {
        self.call(Call::Create, |s| {
            if !len.is_multiple_of(self.granularity) {
                return Err(refused(Call::Create, DriverError::INVALID_VALUE));
            }
            self.take_piece(s, Call::Create, len).map(Physical)
        })
    }

    unsafe fn release(&self, physical: Physical) -> DriverResult<()> {
        self.call(Call::Release, |s| {
            let piece = s
                .space
                .pieces
                .get_mut(&physical.0)
                .filter(|p| p.held && p.device == Some(self.index))
                .ok_or(refused(Call::Release, DriverError::INVALID_VALUE))?;
            piece.held = false;
            if let Some((device, len)) = s.space.drop_if_unused(physical.0) {
                s.devices[device].used -= len;
            }
            Ok(())
        })
    }

    unsafe fn map(&self, address: u64, len: u64, physical: Physical) -> DriverResult<()> {
        self.call(Call::Map, |s| {
            let inside = s
                .space
                .reserved
                .range(..=address)
                .next_back()
                .is_some_and(|(&start, &reserved)| address + len <= start + reserved);
            if !inside || s.space.any_mapped(address, len) {
                return Err(refused(Call::Map, DriverError::INVALID_VALUE));
            }
            let piece = s
                .space
                .pieces
                .get_mut(&physical.0)
                .filter(|p| p.held && p.len == len)
                .ok_or(refused(Call::Map, DriverError::INVALID_VALUE))?;
            piece.mappings += 1;
            s.space.maps.insert(address, Mapping { len, piece: physical.0, allowed: false, whole: false });
            Ok(())
        })
    }

    unsafe fn allow(&self, address: u64, len: u64) -> DriverResult<()> {
        self.call(Call::Allow, |s| {
            let covered: u64 = s.space.maps.range(address..address + len).map(|(_, m)| m.len).sum();
            if covered != len {
                return Err(refused(Call::Allow, DriverError::INVALID_VALUE));
            }
            s.space.maps.range_mut(address..address + len).for_each(|(_, m)| m.allowed = true);
            Ok(())
        })
    }

    unsafe fn unmap(&self, address: u64, len: u64) -> DriverResult<()> {
        self.call(Call::Unmap, |s| {
            let inside: Vec<(u64, Mapping)> =
                s.space.maps.range(address..address + len).map(|(&a, &m)| (a, m)).collect();
            if inside.iter().map(|(_, m)| m.len).sum::<u64>() != len || inside.iter().any(|(_, m)| m.whole) {
                return Err(refused(Call::Unmap, DriverError::INVALID_VALUE));
            }
            report_use(s, address, len);
            for (at, map) in inside {
                s.space.maps.remove(&at);
                if let Some(piece) = s.space.pieces.get_mut(&map.piece) {
                    piece.mappings -= 1;
                }
                if let Some((device, len)) = s.space.drop_if_unused(map.piece) {
                    s.devices[device].used -= len;
                }
            }
            Ok(())
        })
    }
}

impl OrderedMemory for SimDevice {
    fn alloc_ordered(&self, len: u64, stream: Stream) -> DriverResult<u64> {
        self.call(Call::AllocOrdered, |s| {
            s.stream_index(stream.raw(), Call::AllocOrdered)?;
            // The driver's pool takes back what streams have freed before it gives up.
            if s.devices[self.index].used + len.next_multiple_of(512) > s.config.capacity {
                while s.step() {}
            }
            let address = self.alloc_in(s, Call::AllocOrdered, len)?;
            let device = &mut s.devices[self.index];
            device.ordered_used += len.next_multiple_of(512);
            device.ordered_peak = device.ordered_peak.max(device.ordered_used);
            Ok(address)
        })
    }

    unsafe fn free_ordered(&self, address: u64, stream: Stream) -> DriverResult<()> {
        self.call(Call::FreeOrdered, |s| {
            let index = s.stream_index(stream.raw(), Call::FreeOrdered)?;
            let len = s
                .space
                .maps
                .get(&address)
                .filter(|m| m.whole)
                .map(|m| m.len)
                .ok_or(refused(Call::FreeOrdered, DriverError::INVALID_VALUE))?;
            s.devices[self.index].ordered_used -= len;
            let accesses = vec![Access::write(address, len)];
            let what = Call::FreeOrdered.driver_name();
            let work = Work::Unmap { address };
            s.submit(index, Submission { work, accesses, what, engine: Engine::None, bytes: 0 })
        })
    }

    /// Nothing unused is ever kept: what is freed goes back as soon as its stream has come so far.
    fn keep_unused(&self, _: u64) -> DriverResult<()> {
        self.call(Call::OrderedPool, |_| Ok(()))
    }

    fn trim(&self, _: u64) -> DriverResult<()> {
        self.call(Call::OrderedPool, |_| Ok(()))
    }

    fn usage(&self) -> DriverResult<OrderedUsage> {
        self.call(Call::OrderedPool, |s| {
            let device = &s.devices[self.index];
            let (reserved, used) = (device.ordered_used, device.ordered_used);
            Ok(OrderedUsage { reserved, peak_reserved: device.ordered_peak, used })
        })
    }
}
