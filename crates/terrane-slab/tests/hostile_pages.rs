//! Heaps over sources that behave as systems do on bad days: mappings run out, and address space comes from odd places.

#![cfg(all(not(loom), target_os = "linux"))]

mod support;

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use support::Strict;
use terrane_core::{Contents, Decommit, Extent, Geometry, PageSource, ReleaseError, Source, SourceError};
use terrane_slab::PrivateHeap;

/// A source that counts mappings as the kernel does (neighbours of the same kind are one) and refuses every call that would
/// leave more of them than `limit`: reserving, and also making a part of a mapping usable or unusable, which splits it.
struct Mappings {
    pages: Strict,
    limit: AtomicUsize,
    refused: AtomicU64,
    /// By address: length, and whether it can be used.
    maps: Mutex<BTreeMap<usize, (usize, bool)>>,
}

impl Mappings {
    fn new(limit: usize) -> Self {
        Self { pages: Strict::new(), limit: limit.into(), refused: AtomicU64::new(0), maps: Mutex::default() }
    }

    /// What the mappings are when `start..start + len` becomes `kind`; `None` for no mapping at all.
    fn changed(
        maps: &BTreeMap<usize, (usize, bool)>,
        start: usize,
        len: usize,
        kind: Option<bool>,
    ) -> BTreeMap<usize, (usize, bool)> {
        let end = start + len;
        let mut parts: Vec<(usize, usize, bool)> = kind.map(|kind| (start, end, kind)).into_iter().collect();
        for (&from, &(len, kind)) in maps {
            let to = from + len;
            parts.extend((from < start).then_some((from, to.min(start), kind)));
            parts.extend((to > end).then_some((from.max(end), to, kind)));
        }
        parts.sort_unstable();
        let mut merged: BTreeMap<usize, (usize, bool)> = BTreeMap::new();
        for (from, to, kind) in parts {
            match merged.last_entry() {
                Some(mut last) if last.key() + last.get().0 == from && last.get().1 == kind => {
                    last.get_mut().0 += to - from;
                }
                _ => {
                    merged.insert(from, (to - from, kind));
                }
            }
        }
        merged
    }

    fn change(&self, start: usize, len: usize, kind: Option<bool>) -> Result<(), SourceError> {
        let mut maps = self.maps.lock().unwrap();
        let changed = Self::changed(&maps, start, len, kind);
        if changed.len() > self.limit.load(Ordering::Relaxed) && changed.len() > maps.len() {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(SourceError::Os { code: libc::ENOMEM });
        }
        *maps = changed;
        Ok(())
    }

    fn count(&self) -> usize {
        self.maps.lock().unwrap().len()
    }
}

// SAFETY: calls are passed on or refused.
unsafe impl Source for Mappings {
    fn geometry(&self) -> Geometry {
        self.pages.geometry()
    }
    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        let extent = self.pages.acquire(len, align)?;
        match self.change(extent.address() as usize, len as usize, Some(true)) {
            Ok(()) => Ok(extent),
            Err(error) => {
                // SAFETY: just acquired.
                unsafe { self.pages.release(extent) }.unwrap();
                Err(error)
            }
        }
    }
    unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
        if let Err(cause) = self.change(extent.address() as usize, extent.len() as usize, None) {
            return Err(ReleaseError { extent, cause });
        }
        // SAFETY: passed on.
        unsafe { self.pages.release(extent) }
    }
}

// SAFETY: as above; a refusal changes nothing.
unsafe impl PageSource for Mappings {
    fn page_size(&self) -> usize {
        self.pages.page_size()
    }
    fn reserve(&self, len: usize, align: usize) -> Result<Extent, SourceError> {
        let extent = self.pages.reserve(len, align)?;
        match self.change(extent.address() as usize, len, Some(false)) {
            Ok(()) => Ok(extent),
            Err(error) => {
                // SAFETY: just reserved.
                unsafe { self.pages.release(extent) }.unwrap();
                Err(error)
            }
        }
    }
    unsafe fn commit(&self, start: NonNull<u8>, len: usize) -> Result<Contents, SourceError> {
        self.change(start.addr().get(), len, Some(true))?;
        // SAFETY: passed on.
        unsafe { self.pages.commit(start, len) }
    }
    unsafe fn decommit(
        &self,
        start: NonNull<u8>,
        len: usize,
        how: Decommit,
    ) -> Result<Contents, SourceError> {
        self.change(start.addr().get(), len, Some(false))?;
        // SAFETY: passed on.
        unsafe { self.pages.decommit(start, len, how) }
    }
}

/// Numbers that look random: Marsaglia's xorshift.
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as usize
}

fn mixed(state: &mut u64) -> usize {
    match next(state) % 20 {
        0 => next(state) % (40 << 20),
        1..4 => next(state) % (1 << 20),
        4..10 => next(state) % (64 << 10),
        _ => next(state) % 2000,
    }
    .max(1)
}

/// Allocates and frees at random; blocks keep what was written at both ends, and the heap verifies. Gives back how many
/// requests found no memory.
fn churn<S: PageSource>(heap: &PrivateHeap<S>, seed: u64, steps: usize, keep: usize) -> u64 {
    let mut state = seed | 1;
    let mut live: Vec<(NonNull<u8>, usize, u8)> = Vec::new();
    let mut refused = 0;
    let free = |(block, bytes, mark): (NonNull<u8>, usize, u8)| {
        // SAFETY: the block is live and came from this heap.
        unsafe {
            assert_eq!((block.read(), block.add(bytes - 1).read()), (mark, mark));
            heap.free(block, bytes, 8);
        }
    };
    for step in 0..steps {
        if live.len() > keep || (!live.is_empty() && next(&mut state).is_multiple_of(3)) {
            free(live.swap_remove(next(&mut state) % live.len()));
        } else {
            let (bytes, mark) = (mixed(&mut state), step as u8);
            match heap.alloc(bytes, 8) {
                Some(block) => {
                    // SAFETY: the block has `bytes` bytes.
                    unsafe {
                        block.write(mark);
                        block.add(bytes - 1).write(mark);
                    }
                    live.push((block, bytes, mark));
                }
                None => refused += 1,
            }
        }
        if step % 100 == 0 {
            heap.release_free_memory();
            heap.verify().unwrap();
        }
    }
    live.into_iter().for_each(free);
    heap.release_free_memory();
    heap.verify().unwrap();
    refused
}

#[test]
fn mappings_that_run_out_give_no_block_and_the_heap_recovers_when_they_come_back() {
    let (mut refusals, mut failed, mut peak) = (0, 0, 0);
    for limit in 3..40 {
        let source = Mappings::new(limit);
        {
            let Ok(heap) = PrivateHeap::new_in(&source) else { continue };
            failed += churn(&heap, limit as u64 * 77, 1200, 60);
            assert!(source.count() <= limit);
            refusals += source.refused.load(Ordering::Relaxed);
            // What could not be split before may be now: nothing that the heap holds was damaged by the refusals.
            source.limit.store(usize::MAX, Ordering::Relaxed);
            assert_eq!(churn(&heap, 5, 600, 60), 0);
            peak = peak.max(source.count());
            assert_eq!(heap.domain().counters.slices_in_use.get(), 0);
        }
        assert_eq!(source.pages.reserved.load(Ordering::Relaxed), 0, "address space is lost");
        assert_eq!(source.count(), 0);
    }
    println!("{refusals} calls refused, {failed} requests without memory, then {peak} mappings at most");
    assert!(refusals > 1000 && failed > 100);
}

/// A source whose address space comes, in turn, from as low as there is, as high as there is, right above the last one and
/// right below it, and never at a multiple of more than a page before it is cut to what was asked for.
struct OddAddresses {
    pages: Strict,
    placed: Mutex<Vec<(usize, usize)>>,
}

impl OddAddresses {
    const LOWEST: usize = 1 << 20;
    const HIGHEST: usize = 0x7fff_ffff_0000;

    /// Reserves exactly this range, if it is free.
    fn at(start: usize, len: usize) -> Option<usize> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a mapping where none is.
        let got = unsafe { libc::mmap(start as *mut _, len, libc::PROT_NONE, flags, -1, 0) };
        if got == libc::MAP_FAILED {
            return None;
        }
        if got as usize != start {
            // An old kernel takes the address for a hint.
            // SAFETY: just mapped.
            unsafe { libc::munmap(got, len) };
            return None;
        }
        Some(start)
    }
}

// SAFETY: ranges come from mmap and are handed out once.
unsafe impl Source for OddAddresses {
    fn geometry(&self) -> Geometry {
        self.pages.geometry()
    }
    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        let extent = self.reserve(len as usize, align as usize)?;
        let start = NonNull::new(extent.as_ptr()).expect("no page is at null");
        // SAFETY: just reserved.
        unsafe { self.commit(start, len as usize) }?;
        Ok(extent)
    }
    unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
        // SAFETY: passed on; `Strict` unmaps what it is given.
        unsafe { self.pages.release(extent) }
    }
}

// SAFETY: as above.
unsafe impl PageSource for OddAddresses {
    fn page_size(&self) -> usize {
        self.pages.page_size()
    }
    fn reserve(&self, len: usize, align: usize) -> Result<Extent, SourceError> {
        let mut placed = self.placed.lock().unwrap();
        let align = align.max(4096);
        let low = || {
            let starts = (Self::LOWEST.next_multiple_of(align)..1 << 36).step_by(align);
            starts.take(4096).find_map(|start| Self::at(start, len))
        };
        let high = || {
            let top = (Self::HIGHEST - len) / align * align;
            (0..4096).find_map(|down| Self::at(top - down * align, len))
        };
        let near = placed.last().copied();
        let above = || {
            near.and_then(|(start, len_before)| Self::at((start + len_before).next_multiple_of(align), len))
        };
        let below = || near.and_then(|(start, _)| Self::at((start.checked_sub(len)?) / align * align, len));
        let start = match placed.len() % 4 {
            0 => low(),
            1 => above(),
            2 => high(),
            _ => below(),
        };
        let start = start.or_else(low).ok_or(SourceError::OutOfMemory { requested: len as u64 })?;
        placed.push((start, len));
        self.pages.reserved.fetch_add(len as i64, Ordering::Relaxed);
        // SAFETY: just mapped.
        Ok(unsafe { Extent::from_raw(start as u64, len as u64, 0) })
    }
    unsafe fn commit(&self, start: NonNull<u8>, len: usize) -> Result<Contents, SourceError> {
        // SAFETY: passed on.
        unsafe { self.pages.commit(start, len) }
    }
    unsafe fn decommit(
        &self,
        start: NonNull<u8>,
        len: usize,
        how: Decommit,
    ) -> Result<Contents, SourceError> {
        // SAFETY: passed on.
        unsafe { self.pages.decommit(start, len, how) }
    }
}

#[test]
fn address_space_from_the_lowest_and_the_highest_places_and_from_touching_ones_serves() {
    let source = OddAddresses { pages: Strict::new(), placed: Mutex::default() };
    {
        let heap = PrivateHeap::new_in(&source).unwrap();
        for seed in 1..6 {
            assert_eq!(churn(&heap, seed, 2500, 400), 0);
        }
        let placed = source.placed.lock().unwrap();
        let bounds = (placed.iter().map(|at| at.0).min(), placed.iter().map(|at| at.0 + at.1).max());
        println!("{} reservations within {bounds:x?}", placed.len());
        assert!(bounds.0 < Some(1 << 36) && bounds.1 > Some(0x7ff0_0000_0000), "no odd place was free");
        assert!(placed.windows(2).any(|two| two[0].0 + two[0].1 == two[1].0), "none touched");
    }
    assert_eq!(source.pages.reserved.load(Ordering::Relaxed), 0, "address space is lost");
}
