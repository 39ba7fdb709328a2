//! Keys for objects that travel as a number: [`Key`], [`Keys`].
//!
//! Invariant: a place of the table is free, or holds one object. Its generation goes up when the object is claimed, so a key
//! can be claimed once, and never again by whoever kept a copy. (Generations come back after 2³² claims of one place.)
//!
//! A place is one word of state beside the pointer, and free places form a list under a lock that is not taken to look a stale
//! key up.
//!
//! Model: `model_keys` in `tests/loom_pool.rs`. The argument: `docs/src/protocols/pool-keys.md`.

use crate::error::KeyError;
use crate::fences::{Asymmetric, Fences};
use crate::group::Object;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use std::sync::{Mutex, OnceLock, PoisonError};
use terrane_core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// An object of a pool as a number: for a ring's slot, a C handle, another language. [`Pool::claim`](crate::Pool::claim) turns
/// it into a lease again, once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    pub(crate) const fn index(self) -> u32 {
        self.index
    }

    /// The key as one number, never zero.
    pub const fn to_bits(self) -> u64 {
        ((self.generation as u64) << 32) | (self.index as u64 + 1)
    }

    /// The key that [`to_bits`](Self::to_bits) gave; `None` for numbers that it never gives.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        let index = bits as u32;
        if index == 0 {
            return None;
        }
        Some(Self { index: index - 1, generation: (bits >> 32) as u32 })
    }
}

/// | bits | meaning |
/// |---|---|
/// | 0 | an object is here |
/// | 1..=31 | zero |
/// | 32..=63 | generation |
#[derive(Debug)]
struct Place {
    state: AtomicU64,
    object: AtomicPtr<()>,
}

const HERE: u64 = 1;
/// Places of the first chunk; each chunk is as long as all before it together, and the second as long as the first.
const FIRST: u32 = 64;
const CHUNKS: usize = 26;

/// The objects of one pool that travel as keys.
#[derive(Debug)]
pub struct Keys<F = Asymmetric> {
    chunks: [OnceLock<Box<[Place]>>; CHUNKS],
    free: Mutex<Free>,
    fences: PhantomData<fn() -> F>,
}

#[derive(Debug, Default)]
struct Free {
    fresh: u32,
    returned: Vec<u32>,
}

/// Chunk, and place within it.
const fn locate(index: u32) -> (usize, usize) {
    if index < FIRST {
        return (0, index as usize);
    }
    let doubling = (index / FIRST).ilog2();
    (doubling as usize + 1, (index - (FIRST << doubling)) as usize)
}

impl<F: Fences> Keys<F> {
    /// No objects.
    pub const fn new() -> Self {
        Self {
            chunks: [const { OnceLock::new() }; CHUNKS],
            free: Mutex::new(Free { fresh: 0, returned: Vec::new() }),
            fences: PhantomData,
        }
    }

    fn place(&self, index: u32) -> Option<&Place> {
        let (chunk, place) = locate(index);
        self.chunks.get(chunk)?.get()?.get(place)
    }

    /// Puts `object` away under a key.
    pub fn put(&self, object: Object) -> Key {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let index = free.returned.pop().unwrap_or_else(|| {
            free.fresh += 1;
            free.fresh - 1
        });
        drop(free);
        let (chunk, place) = locate(index);
        let places = self.chunks[chunk].get_or_init(|| {
            let len = if chunk == 0 { FIRST } else { FIRST << (chunk - 1) };
            (0..len)
                .map(|_| Place { state: AtomicU64::new(0), object: AtomicPtr::new(ptr::null_mut()) })
                .collect()
        });
        let place = &places[place];
        place.object.store(object.as_ptr(), Ordering::Relaxed);
        // Release: whoever claims sees the object and all that was done to it.
        let before = place.state.fetch_or(HERE, F::PUBLISH);
        Key { index, generation: (before >> 32) as u32 }
    }

    /// Takes the object of `key` out.
    ///
    /// # Errors
    /// [`KeyError`] if there was never such a key, or it was claimed before.
    pub fn take(&self, key: Key) -> Result<Object, KeyError> {
        let place = self.place(key.index).ok_or(KeyError::Unknown { index: key.index })?;
        let here = (u64::from(key.generation) << 32) | HERE;
        let next = u64::from(key.generation.wrapping_add(F::STEP)) << 32;
        let found = place.state.load(F::TAKE);
        if found != here {
            return Err(KeyError::Stale { generation: key.generation, current: (found >> 32) as u32 });
        }
        // Read before the exchange, after which the place may be another's.
        let object = NonNull::new(place.object.load(Ordering::Relaxed));
        match place.state.compare_exchange(here, next, F::TAKE, Ordering::Relaxed) {
            Ok(_) => {
                self.free.lock().unwrap_or_else(PoisonError::into_inner).returned.push(key.index);
                // The place has an object: it was put before the state that was found.
                Ok(object.expect("a place that is taken has an object"))
            }
            Err(found) => Err(KeyError::Stale { generation: key.generation, current: (found >> 32) as u32 }),
        }
    }
}

impl<F: Fences> Default for Keys<F> {
    fn default() -> Self {
        Self::new()
    }
}
