//! Another kind of memory under the same pool: a region that was registered with a network card, in the manner of RDMA.
//!
//! What has to be written is a [`Source`]: it hands out stretches of the special memory, and carries what the hardware wants
//! to know of each (here the remote key) in the extent's cookie. Everything else (splitting, joining, lists, limits, traces)
//! comes with the pool. The card is pretended; the rest is as it would be.
//!
//! `cargo run -p terrane-gpu --example registered_region`

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use terrane_core::{Extent, Geometry, ReleaseError, Source, SourceError};
use terrane_gpu::adaptors::Track;
use terrane_gpu::{ChunkConfig, Chunks, DevicePool, Immediate, PoolError, VariablePool};

const PAGE: u64 = 4096;

/// A card that knows which memory the other side may reach, and by which key.
#[derive(Default)]
struct Card {
    /// By address: length and remote key.
    registered: Mutex<BTreeMap<u64, (u64, u32)>>,
}

impl Card {
    /// The key for `len` bytes at `address`, if all of them lie in one registered region.
    fn key(&self, address: u64, len: u64) -> Option<u32> {
        let registered = self.registered.lock().ok()?;
        let (start, (region, key)) = registered.range(..=address).next_back()?;
        (address + len <= start + region).then_some(*key)
    }
}

/// Host memory that is registered with the card for as long as it is out.
#[derive(Clone)]
struct Registered {
    card: Arc<Card>,
}

fn layout(len: u64) -> Result<Layout, SourceError> {
    let bad = SourceError::BadLength { requested: len, granule: PAGE };
    Layout::from_size_align(len as usize, PAGE as usize).map_err(|_| bad)
}

// SAFETY: stretches come from the system's allocator, which keeps them apart, at multiples of a page.
unsafe impl Source for Registered {
    fn geometry(&self) -> Geometry {
        Geometry { granule: PAGE, max_align: PAGE, max_len: 1 << 40, zeroed: true }
    }

    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        self.geometry().check(len, align)?;
        // SAFETY: the length is not zero.
        let start = unsafe { alloc_zeroed(layout(len)?) };
        if start.is_null() {
            return Err(SourceError::OutOfMemory { requested: len });
        }
        let address = start.expose_provenance() as u64;
        let mut registered = self.card.registered.lock().map_err(|_| SourceError::Os { code: -1 })?;
        let key = 0x1000 + registered.len() as u32;
        registered.insert(address, (len, key));
        // SAFETY: the memory was just taken.
        Ok(unsafe { Extent::from_raw(address, len, u64::from(key)) })
    }

    unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
        let layout = match layout(extent.len()) {
            Ok(layout) => layout,
            Err(cause) => return Err(ReleaseError { extent, cause }),
        };
        if let Ok(mut registered) = self.card.registered.lock() {
            registered.remove(&extent.address());
        }
        // SAFETY: taken in `acquire` with this layout, and nobody uses it any more.
        unsafe { dealloc(extent.as_ptr(), layout) };
        let _ = extent.into_raw();
        Ok(())
    }
}

fn main() -> Result<(), PoolError> {
    let card = Arc::new(Card::default());
    let source = Registered { card: card.clone() };
    let chunks =
        Chunks::new(source, ChunkConfig { chunk_len: 1 << 20, limit: 8 << 20, ..ChunkConfig::default() });
    let engine = || terrane_fit::Tlsf::with_granule(256);
    let pool = Track::new(VariablePool::over(Arc::new(Immediate), chunks, engine));

    let mut messages = Vec::new();
    for i in 0..100u64 {
        messages.push(pool.allocate(500 + i * 300, 256, Immediate::STREAM)?);
        if i % 3 == 0 {
            let done = messages.swap_remove((i * 7 % messages.len() as u64) as usize);
            // SAFETY: its completion was awaited, as the card would have it.
            unsafe { pool.deallocate(done, Immediate::STREAM, &[]) };
        }
    }
    for message in &messages {
        let key =
            card.key(message.address(), message.len()).expect("every block lies in one registered region");
        assert!(key >= 0x1000);
    }
    let stats = pool.stats();
    println!("{} messages in {} bytes of {} registered", stats.live_blocks, stats.live, stats.reserved);
    assert_eq!((pool.live().len(), stats.grows), (messages.len(), stats.reserved >> 20));
    for message in messages {
        // SAFETY: as above.
        unsafe { pool.deallocate(message, Immediate::STREAM, &[]) };
    }
    pool.trim();
    assert!(
        card.registered.lock().is_ok_and(|registered| registered.is_empty()),
        "everything is unregistered"
    );
    println!("all regions unregistered");
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_runs() {
        super::main().unwrap();
    }
}
