//! [`DeviceBuf`]: a typed buffer that gives itself back.
//!
//! Invariant: the buffer owns its block until it is dropped or taken apart. It is given back in the order of the stream
//! that it was made for, and after the work of every stream that was named with [`used_on`](DeviceBuf::used_on).

use crate::device::Stream;
use crate::error::PoolError;
use crate::pool::{Block, DevicePool};
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use parking_lot::Mutex;

/// Types of which every pattern of bits is a value, without padding or pointers: they may be copied as bytes.
///
/// # Safety
/// The type has no invalid values, no padding, and no interior mutability.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($t:ty),*) => {$(
        // SAFETY: numbers have no invalid values and no padding.
        unsafe impl Plain for $t {}
    )*};
}
plain!(u8, i8, u16, i16, u32, i32, u64, i64, u128, i128, usize, isize, f32, f64);
// SAFETY: an array has no padding between its elements.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// `len` values of `T` in device memory from the pool `P`, which is a reference to a pool or an `Arc` of one.
pub struct DeviceBuf<T, P: DevicePool> {
    block: ManuallyDrop<Block>,
    len: usize,
    stream: Stream,
    also_used_on: Mutex<Vec<Stream>>,
    pool: P,
    values: PhantomData<T>,
}

// SAFETY: the buffer holds an address and not a `T` of this host; sending it sends the right to use the memory.
unsafe impl<T: Send, P: DevicePool> Send for DeviceBuf<T, P> {}
// SAFETY: through a shared reference the address can be read and streams can be named, which is behind a lock.
unsafe impl<T: Sync, P: DevicePool> Sync for DeviceBuf<T, P> {}

impl<T, P: DevicePool> core::fmt::Debug for DeviceBuf<T, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("DeviceBuf")
            .field("address", &format_args!("{:#x}", self.address()))
            .field("len", &self.len)
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

impl<T, P: DevicePool> DeviceBuf<T, P> {
    /// Room for `len` values, not initialised, for use on `stream`. A buffer of no bytes still has an address.
    ///
    /// # Errors
    /// A [`PoolError`].
    #[inline]
    #[track_caller]
    pub fn new_in(pool: P, len: usize, stream: Stream) -> Result<Self, PoolError> {
        let bytes =
            (len as u64).checked_mul(size_of::<T>() as u64).ok_or(PoolError::bad_request(u64::MAX))?;
        let block = pool.allocate(bytes.max(1), (align_of::<T>() as u64).max(16), stream)?;
        let (block, also_used_on) = (ManuallyDrop::new(block), Mutex::new(Vec::new()));
        Ok(Self { block, len, stream, also_used_on, pool, values: PhantomData })
    }

    /// Takes the buffer apart: the pool, and the block, which must be given back to it by hand, in the order of the
    /// streams named.
    pub fn into_parts(self) -> (P, Block, Stream, Vec<Stream>) {
        let this = ManuallyDrop::new(self);
        let also = core::mem::take(&mut *this.also_used_on.lock());
        let (address, len, asked, key) =
            (this.block.address, this.block.len, this.block.asked, this.block.key);
        // SAFETY: `this` is never dropped or used again, so its pool is moved out once.
        let pool = unsafe { core::ptr::read(&this.pool) };
        (pool, Block { address, len, asked, key }, this.stream, also)
    }

    /// Device address of the first value.
    #[inline]
    pub fn address(&self) -> u64 {
        self.block.address
    }

    /// Number of values.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is room for no value at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the values.
    pub fn bytes(&self) -> u64 {
        (self.len * size_of::<T>()) as u64
    }

    /// The stream that the buffer is ordered with.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// The pool that the buffer came from.
    pub fn pool(&self) -> &P {
        &self.pool
    }

    /// Says that `stream` uses the buffer too: it will not be handed out again before that work is past. The work itself
    /// has to be ordered after what fills the buffer, by an event of the caller's.
    pub fn used_on(&self, stream: Stream) {
        if stream != self.stream {
            let mut also = self.also_used_on.lock();
            if !also.contains(&stream) {
                also.push(stream);
            }
        }
    }
}

impl<T, P: DevicePool> Drop for DeviceBuf<T, P> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: dropped once, and the block is not used after this.
        let block = unsafe { ManuallyDrop::take(&mut self.block) };
        // SAFETY: the block came from this pool. Whoever submits work with the buffer's address holds the buffer until
        // it is submitted, and names other streams (the contract of `address` and `used_on`).
        unsafe { self.pool.deallocate(block, self.stream, self.also_used_on.get_mut()) };
    }
}
