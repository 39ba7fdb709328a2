//! Memory nodes: where the calling thread runs, and a source whose reservations prefer a node ([`Numa`]).
//!
//! Invariant: `Numa` changes where pages come from, never whether they come. A system that refuses to bind leaves
//! the reservation as good as any other, and the refusal is counted.

use crate::page::Once;
use crate::{list, sys};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use terrane_core::{
    Contents, Decommit, Extent, Geometry, HostMapped, PageSource, Purge, ReleaseError, Share, Source,
    SourceError, SplitMerge,
};

/// Processors whose node is remembered; those above are asked for every time.
const REMEMBERED_CPUS: usize = 1024;

/// The processor on which the calling thread runs just now, if the system says.
pub fn current_cpu() -> Option<usize> {
    sys::current_cpu()
}

/// The memory node of the processor on which the calling thread runs just now, if the system says. Nodes of processors
/// are remembered, so that this is a system call once for each processor.
pub fn current_node() -> Option<u32> {
    /// By processor: its node plus one; 0 for not known.
    static NODES: [AtomicU8; REMEMBERED_CPUS] = [const { AtomicU8::new(0) }; REMEMBERED_CPUS];

    let cpu = sys::current_cpu()?;
    let place = NODES.get(cpu);
    if let Some(known) = place.map(|place| place.load(Relaxed)).filter(|&known| known != 0) {
        return Some(u32::from(known) - 1);
    }
    let (asked_on, node) = sys::current_node()?;
    // The thread may have moved since.
    if let (Some(place), Ok(known)) = (NODES.get(asked_on), u8::try_from(node + 1)) {
        place.store(known, Relaxed);
    }
    Some(node)
}

/// One more than the highest number of a memory node that is online; 1 where the system does not say.
pub fn node_count() -> u32 {
    static COUNT: Once = Once::new();
    let count = COUNT.get(|| {
        let mut buffer = [0; 256];
        let text = sys::online_nodes(&mut buffer).unwrap_or(b"");
        list::ranges(text).map(|(_, last)| last as usize + 1).max().unwrap_or(1)
    });
    count as u32
}

/// Which node a reservation prefers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeChoice {
    /// The node of the thread that reserves.
    Local,
    /// Always this one.
    Node(u32),
    /// Each reservation the next of [`node_count`] nodes.
    InTurn,
}

/// A source whose reservations prefer the memory of a node, chosen when they are made.
///
/// The preference is a hint: pages come from another node when the preferred one has none left, and where the system
/// refuses (one node, a sandbox), the reservation stands without it; [`refusals`](Self::refusals) counts those.
///
/// ```
/// use terrane_core::{PageSource, Source};
/// use terrane_pages::{Mmap, NodeChoice, Numa};
///
/// static PAGES: Numa<Mmap> = Numa::new(Mmap::new(), NodeChoice::Local);
///
/// let extent = PAGES.reserve(1 << 20, 1 << 16).unwrap();
/// // SAFETY: the extent came from this source and nothing uses it.
/// unsafe { PAGES.release(extent) }.unwrap();
/// ```
#[derive(Debug)]
pub struct Numa<S> {
    source: S,
    choice: NodeChoice,
    turn: AtomicU32,
    refusals: AtomicU64,
}

impl<S> Numa<S> {
    /// A source over `source` that binds as `choice` says.
    pub const fn new(source: S, choice: NodeChoice) -> Self {
        Self { source, choice, turn: AtomicU32::new(0), refusals: AtomicU64::new(0) }
    }

    /// The source below.
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// Reservations that the system would not bind.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Relaxed)
    }

    fn choose(&self) -> Option<u32> {
        match self.choice {
            NodeChoice::Local => current_node(),
            NodeChoice::Node(node) => Some(node),
            NodeChoice::InTurn => Some(self.turn.fetch_add(1, Relaxed) % node_count()),
        }
    }
}

impl<S: PageSource> Numa<S> {
    fn prefer(&self, extent: &Extent) {
        let Some(start) = NonNull::new(extent.as_ptr()) else { return };
        let bound = match self.choose() {
            // SAFETY: the extent was just reserved.
            Some(node) => unsafe { self.source.bind(start, extent.len() as usize, node) }.is_ok(),
            None => false,
        };
        if !bound {
            self.refusals.fetch_add(1, Relaxed);
        }
    }
}

// SAFETY: every call is passed on; binding changes neither addresses nor contents.
unsafe impl<S: PageSource> Source for Numa<S> {
    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        let extent = self.source.acquire(len, align)?;
        self.prefer(&extent);
        Ok(extent)
    }

    crate::forward::source!(source: geometry, release, abilities);
}

// SAFETY: every call is passed on; binding changes neither addresses nor contents.
unsafe impl<S: PageSource> PageSource for Numa<S> {
    fn reserve(&self, len: usize, align: usize) -> Result<Extent, SourceError> {
        let extent = self.source.reserve(len, align)?;
        self.prefer(&extent);
        Ok(extent)
    }

    crate::forward::pages!(source: page_size, commit, decommit, remap, populate, advise_huge, bind);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mmap;

    #[test]
    fn this_thread_runs_on_a_node_that_is_online() {
        let node = current_node().unwrap();
        assert!(node < node_count());
        assert_eq!(current_node(), Some(node));
    }

    #[test]
    fn a_reservation_works_whether_or_not_its_node_exists() {
        let plain = Mmap::new();
        let extent = plain.acquire(1 << 20, 1).unwrap();
        let start = NonNull::new(extent.as_ptr()).unwrap();
        // A sandbox may forbid it.
        // SAFETY: inside the extent, which is then released.
        let can_bind = unsafe { plain.bind(start, 1 << 20, current_node().unwrap()) }.is_ok();
        // SAFETY: nothing uses it.
        unsafe { plain.release(extent) }.unwrap();
        for (choice, may_refuse) in
            [(NodeChoice::Local, false), (NodeChoice::InTurn, false), (NodeChoice::Node(700), true)]
        {
            let source = Numa::new(Mmap::new(), choice);
            let extent = source.acquire(1 << 20, 1 << 16).unwrap();
            // SAFETY: committed by `acquire`.
            unsafe {
                extent.as_ptr().write(3);
                assert_eq!(extent.as_ptr().read(), 3);
                source.release(extent).unwrap();
            }
            if may_refuse {
                assert_eq!(source.refusals(), 1);
            } else if can_bind {
                assert_eq!(source.refusals(), 0);
            }
        }
    }
}
