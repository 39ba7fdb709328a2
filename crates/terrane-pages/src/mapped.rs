//! The mappings of a source over files: which file, and where, lies behind an address.
//!
//! Invariant: each entry is a live shared mapping, and its part is the extent that was handed out for it.

use core::ptr::NonNull;
use memmap2::{MmapOptions, MmapRaw};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A part of a shared mapping of a file, at an address that is aligned as wanted.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: MmapRaw,
    /// Bytes of the mapping before the part.
    head: usize,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes of `file`, at or up to `align` bytes after `offset`, at a multiple of `align`. The mapping goes
    /// beyond the part, and may go beyond the end of the file; only the part is ever touched.
    pub(crate) fn new(file: &File, offset: u64, len: usize, align: usize) -> io::Result<Self> {
        let wide = len.checked_add(align - crate::page_size()).ok_or(io::ErrorKind::OutOfMemory)?;
        let map = MmapOptions::new().offset(offset).len(wide).map_raw(file)?;
        let head = map.as_ptr().addr().wrapping_neg() & (align - 1);
        Ok(Self { map, head, len })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        // SAFETY: the part lies in the mapping, and a mapping does not lie at address 0.
        unsafe { NonNull::new_unchecked(self.map.as_mut_ptr().add(self.head)) }
    }

    /// Bytes between the offset asked for and the part.
    pub(crate) fn head(&self) -> usize {
        self.head
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        self.map.flush_range(self.head, self.len)
    }
}

/// Values by the address of their mapping.
#[derive(Debug)]
pub(crate) struct ByAddress<T>(BTreeMap<usize, (Mapping, T)>);

impl<T> Default for ByAddress<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> ByAddress<T> {
    /// Adds a mapping; its address.
    pub(crate) fn add(&mut self, mapping: Mapping, value: T) -> u64 {
        let address = mapping.start().as_ptr().expose_provenance();
        self.0.insert(address, (mapping, value));
        address as u64
    }

    /// The mapping whose part is exactly this range.
    pub(crate) fn exact(&self, address: u64, len: u64) -> Option<&(Mapping, T)> {
        self.0.get(&usize::try_from(address).ok()?).filter(|(mapping, _)| mapping.len() as u64 == len)
    }

    /// The mapping whose part holds this range, and the distance from its start.
    pub(crate) fn holding(&self, address: usize, len: usize) -> Option<(usize, &(Mapping, T))> {
        let (&start, found) = self.0.range(..=address).next_back()?;
        (address - start + len <= found.0.len()).then_some((address - start, found))
    }

    pub(crate) fn remove(&mut self, address: u64) -> Option<(Mapping, T)> {
        self.0.remove(&usize::try_from(address).ok()?)
    }
}

/// Locks; no panic happens inside the locks of this crate, so none is ever poisoned half-way.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Methods of `PageSource` that shared mappings have in common. A commit is up to each.
macro_rules! shared_pages {
    () => {
        fn page_size(&self) -> usize {
            page_size()
        }

        unsafe fn decommit(
            &self,
            start: NonNull<u8>,
            len: usize,
            _how: Decommit,
        ) -> Result<Contents, SourceError> {
            // SAFETY: the range lies in a mapping of ours, and its contents are not needed. Shared pages cannot be
            // dropped lazily.
            unsafe { files::discard(start, len) }.map(|()| Contents::Zero)
        }

        unsafe fn populate(&self, start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
            // SAFETY: the range lies in a mapping of ours.
            unsafe { sys::populate(start, len) }
        }

        unsafe fn advise_huge(&self, start: NonNull<u8>, len: usize, huge: bool) -> Result<(), SourceError> {
            // SAFETY: the range lies in a mapping of ours.
            unsafe { sys::advise_huge(start, len, huge) }
        }

        unsafe fn bind(&self, start: NonNull<u8>, len: usize, node: u32) -> Result<(), SourceError> {
            // SAFETY: the range lies in a mapping of ours.
            unsafe { sys::bind(start, len, node) }
        }
    };
}

pub(crate) use shared_pages;
