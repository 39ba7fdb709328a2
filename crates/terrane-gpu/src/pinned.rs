//! Page-locked host memory from a pool: [`PinnedPool`] and [`PinnedBuf`].
//!
//! Invariant: a [`PinnedBuf`] that the program holds is touched by no copy. A copy takes the buffer along
//! ([`Transfers`](crate::transfer::Transfers)) and hands it out again when it is done; so the pool's memory is free the moment it
//! is given back, and the pool needs no order between streams.
//!
//! Page-locking costs the driver milliseconds, a block from the pool tens of nanoseconds. The memory is not write-combined:
//! the host may read it at full speed. Where the device is nearer to one NUMA node than to others, it comes from there.

use crate::buf::Plain;
use crate::chunks::{ChunkConfig, Chunks};
use crate::device::Device;
use crate::error::PoolError;
use crate::pool::{Block, DevicePool, PoolStats};
use crate::sources::{Immediate, PinnedMemory};
use crate::variable::VariablePool;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use std::sync::Arc;
use terrane_fit::Tlsf;
use terrane_pages::numa::node_count;

type Inner<D> = VariablePool<Tlsf, Chunks<PinnedMemory<D>>, Immediate>;

/// A pool of page-locked host memory. Clones share it.
pub struct PinnedPool<D: Device + ?Sized + 'static> {
    inner: Arc<Inner<D>>,
    node: Option<u32>,
}

impl<D: Device + ?Sized + 'static> Clone for PinnedPool<D> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), node: self.node }
    }
}

impl<D: Device + ?Sized + 'static> core::fmt::Debug for PinnedPool<D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PinnedPool").field("stats", &self.inner.stats()).finish_non_exhaustive()
    }
}

impl<D: Device + ?Sized + 'static> PinnedPool<D> {
    /// A pool of memory that the driver of `device` page-locks: on the device's NUMA node, if the device says which that is
    /// and there are several. Takes none yet.
    pub fn new(device: Arc<D>, config: ChunkConfig) -> Self {
        match device.info().numa_node.filter(|_| node_count() > 1) {
            Some(node) => Self::near(device, node, config),
            None => Self::of(PinnedMemory::new(device), config),
        }
    }

    /// A pool of page-locked memory that prefers the NUMA node `node`. Takes none yet.
    pub fn near(device: Arc<D>, node: u32, config: ChunkConfig) -> Self {
        Self::of(PinnedMemory::near(device, node), config)
    }

    fn of(memory: PinnedMemory<D>, config: ChunkConfig) -> Self {
        let node = memory.node();
        let engine = || Tlsf::with_granule(256);
        let pool = VariablePool::over(Arc::new(Immediate), Chunks::new(memory, config), engine);
        Self { inner: Arc::new(pool), node }
    }

    /// The NUMA node that the memory prefers, if one is.
    pub fn node(&self) -> Option<u32> {
        self.node
    }

    /// `len` values, all zero.
    ///
    /// # Errors
    /// A [`PoolError`].
    pub fn zeroed<T: Plain>(&self, len: usize) -> Result<PinnedBuf<T, D>, PoolError> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(PoolError::bad_request(u64::MAX))?;
        let block = self.inner.allocate(bytes.max(1) as u64, 256, Immediate::STREAM)?;
        let start = core::ptr::with_exposed_provenance_mut::<u8>(block.address() as usize);
        // SAFETY: the block is ours and has at least this many bytes.
        unsafe { core::ptr::write_bytes(start, 0, bytes) };
        Ok(PinnedBuf { block: ManuallyDrop::new(block), len, pool: self.clone(), values: PhantomData })
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// A [`PoolError`].
    pub fn copied<T: Plain>(&self, values: &[T]) -> Result<PinnedBuf<T, D>, PoolError> {
        let mut buf = self.zeroed(values.len())?;
        buf.copy_from_slice(values);
        Ok(buf)
    }

    /// The pool's figures.
    pub fn stats(&self) -> PoolStats {
        self.inner.stats()
    }

    /// Unlocks and gives back what is not in use; returns the bytes.
    pub fn trim(&self) -> u64 {
        self.inner.trim()
    }
}

/// Values in page-locked host memory: a slice that gives itself back.
pub struct PinnedBuf<T: Plain, D: Device + ?Sized + 'static> {
    block: ManuallyDrop<Block>,
    len: usize,
    pool: PinnedPool<D>,
    values: PhantomData<T>,
}

impl<T: Plain + core::fmt::Debug, D: Device + ?Sized> core::fmt::Debug for PinnedBuf<T, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Plain, D: Device + ?Sized> PinnedBuf<T, D> {
    pub(crate) fn address(&self) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(self.block.address() as usize)
    }

    /// Bytes of the values.
    pub fn bytes(&self) -> u64 {
        (self.len * size_of::<T>()) as u64
    }
}

impl<T: Plain, D: Device + ?Sized> Deref for PinnedBuf<T, D> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the block holds `len` values, initialised when it was made, at a multiple of 256 bytes, and no copy is in
        // flight while the program holds the buffer.
        unsafe { core::slice::from_raw_parts(self.address().cast(), self.len) }
    }
}

impl<T: Plain, D: Device + ?Sized> DerefMut for PinnedBuf<T, D> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the borrow is the only one.
        unsafe { core::slice::from_raw_parts_mut(self.address().cast(), self.len) }
    }
}

impl<T: Plain, D: Device + ?Sized> Drop for PinnedBuf<T, D> {
    fn drop(&mut self) {
        // SAFETY: dropped once, and the block is not used after this.
        let block = unsafe { ManuallyDrop::take(&mut self.block) };
        // SAFETY: the block came from this pool, and no copy uses it (the module's invariant).
        unsafe { self.pool.inner.deallocate(block, Immediate::STREAM, &[]) };
    }
}
