//! Pages of a file: [`FileBacked`].
//!
//! Invariant: each byte of the file between 0 and `end` lies in one mapped extent, in one free range, or in what was in
//! the file before it was opened or after its extent was released uncleaned (*kept*). Free ranges are holes: they read
//! as zero and take no room on the disk. Mapped extents and free ranges never overlap.
//!
//! ```text
//!   0            kept             mapped      free      mapped     end = length of the file
//!   |--------------------------|###########|~~~~~~~~~|##########|
//! ```
//!
//! Protocol: a reservation takes the first free range that is long enough, otherwise it makes the file longer. A release
//! makes a hole of the range, or where the file system cannot, keeps it: what cannot be cleared is not lent again. A free
//! range at the end makes the file shorter.

use crate::intervals::Intervals;
use crate::mapped::{ByAddress, Mapping, lock, shared_pages};
use crate::page::page_size;
use crate::sys::{self, files};
use core::ops::Range;
use core::ptr::NonNull;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Mutex;
use terrane_core::{
    Contents, Decommit, Extent, Geometry, HostMapped, PageSource, ReleaseError, Source, SourceError,
};

/// Host pages that are pages of a file.
///
/// The cookie of an extent is its offset in the file; [`attach`](Self::attach) maps the same range again later, also in
/// another run of the program. A commit sets blocks of the disk aside, where the file system can, so that no write can
/// find the disk full. A decommit makes a hole. What was written reaches the disk when the system likes, and surely
/// with [`flush`](Self::flush).
///
/// Mappings are aligned by choosing where in the file they start, so an extent of a large alignment may leave a free
/// range before it.
///
/// ```
/// use terrane_core::Source;
/// use terrane_pages::FileBacked;
///
/// let path = std::env::temp_dir().join(format!("terrane-example-{}", std::process::id()));
/// // SAFETY: nobody else knows the file.
/// let source = unsafe { FileBacked::open(&path) }.unwrap();
/// let extent = source.acquire(1 << 16, 4096).unwrap();
/// // SAFETY: the extent is live.
/// unsafe { extent.as_ptr().write(7) };
/// source.flush(&extent).unwrap();
/// let (offset, len) = (extent.cookie(), extent.len());
/// drop(source);
///
/// // SAFETY: as above.
/// let source = unsafe { FileBacked::open(&path) }.unwrap();
/// let extent = source.attach(offset, len).unwrap();
/// // SAFETY: the extent is live.
/// assert_eq!(unsafe { extent.as_ptr().read() }, 7);
/// # drop(source);
/// # std::fs::remove_file(path).unwrap();
/// ```
#[derive(Debug)]
pub struct FileBacked {
    file: File,
    /// The process that opened it.
    opener: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Offset of the mapping's part in the file, by its address.
    mappings: ByAddress<u64>,
    /// Ranges of the file that are mapped.
    mapped: Intervals,
    /// Ranges of the file that are holes and nobody's.
    free: Intervals,
    /// Length of the file.
    end: u64,
}

fn refused(requested: u64) -> impl Fn(io::Error) -> SourceError {
    move |error| files::source_error(&error, requested)
}

impl FileBacked {
    /// Opens a file, or makes it. What is in it is kept; new extents come after it. The file is locked against another
    /// `FileBacked`, in any process.
    ///
    /// # Errors
    /// Why it cannot be opened; `WouldBlock` if it is open elsewhere.
    ///
    /// # Safety
    /// Until every extent is released or forgotten, nobody else makes the file shorter or writes to it.
    pub unsafe fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
        }
        let page = page_size() as u64;
        let kept = file.metadata()?.len();
        let end = kept.checked_next_multiple_of(page).ok_or(io::ErrorKind::FileTooLarge)?;
        file.set_len(end)?;
        Ok(Self { file, opener: std::process::id(), state: Mutex::new(State { end, ..State::default() }) })
    }

    /// Length of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        lock(&self.state).end
    }

    /// Bytes of holes that wait to be used again.
    pub fn free_bytes(&self) -> u64 {
        lock(&self.state).free.total()
    }

    /// Maps a range of the file that is in it already, at a page's alignment.
    ///
    /// # Errors
    /// [`SourceError::BadLength`] if the range is not whole pages inside the file, [`SourceError::Unsupported`] if a
    /// part of it is mapped or free, or the system's refusal.
    pub fn attach(&self, offset: u64, len: u64) -> Result<Extent, SourceError> {
        let mut state = lock(&self.state);
        let granule = page_size() as u64;
        let range = offset..offset.saturating_add(len);
        if self.geometry().check(len, granule).is_err()
            || !offset.is_multiple_of(granule)
            || range.end > state.end
        {
            return Err(SourceError::BadLength { requested: len, granule });
        }
        if state.mapped.inside(&range) + state.free.inside(&range) > 0 {
            return Err(SourceError::Unsupported);
        }
        let mapping = Mapping::new(&self.file, offset, len as usize, page_size()).map_err(refused(len))?;
        Ok(state.add(mapping, range))
    }

    /// Writes an extent's changes to the disk and waits for it.
    ///
    /// # Errors
    /// [`SourceError::Unsupported`] if it is not an extent of this source, or the system's refusal.
    pub fn flush(&self, extent: &Extent) -> Result<(), SourceError> {
        let state = lock(&self.state);
        let (mapping, _) =
            state.mappings.exact(extent.address(), extent.len()).ok_or(SourceError::Unsupported)?;
        mapping.flush().map_err(refused(extent.len()))
    }

    /// Maps a range that is nobody's, without room on the disk.
    fn place(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        self.geometry().check(len, align)?;
        let align = (align as usize).max(page_size());
        let mut state = lock(&self.state);
        // Wherever in this window the mapping turns out to be aligned, the extent fits.
        let window = len + (align - page_size()) as u64;
        let hole = state.free.first_of(window);
        let from = hole.as_ref().map_or(state.end, |hole| hole.start);
        let mapping = Mapping::new(&self.file, from, len as usize, align).map_err(refused(len))?;
        let start = from + mapping.head() as u64;
        let range = start..start + len;
        if hole.is_some() {
            state.free.remove(range.clone());
        } else {
            self.file.set_len(range.end).map_err(refused(len))?;
            let end = state.end;
            state.free.insert(end..start);
            state.end = range.end;
        }
        Ok(state.add(mapping, range))
    }

    fn set_aside(&self, offset: u64, len: u64) -> Result<(), SourceError> {
        match files::set_aside(&self.file, offset, len).map_err(refused(len)) {
            // A file system that cannot: the range is as usable as files are there.
            Err(SourceError::Unsupported) => Ok(()),
            other => other,
        }
    }
}

impl Drop for FileBacked {
    fn drop(&mut self) {
        // A forked child has the lock as long as it lives, unless it is given up here; the child itself must not.
        if std::process::id() == self.opener {
            let _ = self.file.unlock();
        }
    }
}

impl State {
    fn add(&mut self, mapping: Mapping, range: Range<u64>) -> Extent {
        let (offset, len) = (range.start, range.end - range.start);
        self.mapped.insert(range);
        let address = self.mappings.add(mapping, offset);
        // SAFETY: the mapping is new, and the extent is its only part.
        unsafe { Extent::from_raw(address, len, offset) }
    }

    /// Makes the file shorter if a free range ends it.
    fn shorten(&mut self, file: &File) {
        if let Some(last) = self.free.last().filter(|last| last.end == self.end)
            && file.set_len(last.start).is_ok()
        {
            self.end = last.start;
            self.free.remove(last);
        }
    }
}

// SAFETY: each extent is a part of a mapping of its own, which lasts until it is released.
unsafe impl Source for FileBacked {
    fn geometry(&self) -> Geometry {
        let page = page_size();
        Geometry {
            granule: page as u64,
            max_align: 1 << 30,
            max_len: ((isize::MAX as usize / 2) & !(page - 1)) as u64,
            zeroed: true,
        }
    }

    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        let extent = self.place(len, align)?;
        match self.set_aside(extent.cookie(), len) {
            Ok(()) => Ok(extent),
            Err(refused) => {
                // SAFETY: nobody has seen the extent. A range that cannot be cleared is kept.
                let _ = unsafe { self.release(extent) };
                Err(refused)
            }
        }
    }

    unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
        let mut state = lock(&self.state);
        let Some(&(ref mapping, offset)) = state.mappings.exact(extent.address(), extent.len()) else {
            return Err(ReleaseError { extent, cause: SourceError::Unsupported });
        };
        let range = offset..offset + extent.len();
        // SAFETY: the extent is a mapping of ours that nothing uses any more.
        let is_hole = unsafe { files::discard(mapping.start(), mapping.len()) }.is_ok();
        state.mappings.remove(extent.address());
        state.mapped.remove(range.clone());
        // At the end, cutting the file clears as well as a hole does.
        if is_hole || range.end == state.end {
            state.free.insert(range.clone());
            state.shorten(&self.file);
            if !is_hole {
                state.free.remove(range);
            }
        }
        let _ = extent.into_raw();
        Ok(())
    }

    fn host_mapped(&self) -> Option<&dyn HostMapped> {
        Some(self)
    }
}

impl HostMapped for FileBacked {
    fn host_ptr(&self, extent: &Extent) -> NonNull<u8> {
        // No extent lies at address 0.
        NonNull::new(extent.as_ptr()).unwrap_or(NonNull::dangling())
    }
}

// SAFETY: a shared mapping inside the file is accessible throughout; a hole reads as zero.
unsafe impl PageSource for FileBacked {
    fn reserve(&self, len: usize, align: usize) -> Result<Extent, SourceError> {
        self.place(len as u64, align as u64)
    }

    unsafe fn commit(&self, start: NonNull<u8>, len: usize) -> Result<Contents, SourceError> {
        let state = lock(&self.state);
        let Some((from_start, &(_, offset))) = state.mappings.holding(start.addr().get(), len) else {
            return Err(SourceError::Unsupported);
        };
        let place = offset + from_start as u64;
        drop(state);
        self.set_aside(place, len as u64)?;
        Ok(Contents::Unspecified)
    }

    shared_pages!();
}
