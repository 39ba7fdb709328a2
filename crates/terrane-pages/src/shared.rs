//! Memory without a name that several processes can map: [`Shared`].
//!
//! Invariant: each extent is a memory file of its own (on Linux a memfd whose length is sealed), mapped once here. It
//! ends when the last process that has it mapped or open lets go.
//!
//! Protocol between processes: [`Share::export`] writes a token that names this process, the descriptor, the file's
//! identity and the range; [`Share::import`] in another process of the same user opens that descriptor through `/proc`
//! and checks the identity, so that a number that has been reused is noticed. The exporter has to live until the import.
//! A forked child has every extent at the same address without any token.

use crate::mapped::{ByAddress, Mapping, lock, shared_pages};
use crate::page::page_size;
use crate::sys::{self, files};
use core::ptr::NonNull;
use std::fs::{File, OpenOptions};
use std::sync::Mutex;
use terrane_core::{
    Contents, Decommit, Extent, Geometry, HostMapped, PageSource, Purge, ReleaseError, Share, Source,
    SourceError,
};

/// Bytes in a token of [`Shared`].
pub const TOKEN_BYTES: usize = 48;

const MAGIC: [u8; 8] = *b"trrnshm1";

/// Shared memory without a name.
///
/// A commit does nothing; a decommit frees the memory for all processes that have it mapped. Pages are charged when they
/// are first touched.
///
/// ```
/// use terrane_core::Source;
/// use terrane_pages::Shared;
///
/// let source = Shared::new("example");
/// let extent = source.acquire(1 << 16, 4096).unwrap();
/// let mut token = [0; terrane_pages::shared::TOKEN_BYTES];
/// # if cfg!(target_os = "linux") {
/// source.share().unwrap().export(&extent, &mut token).unwrap();
/// // Another process would do this; the same memory then has two addresses.
/// let again = source.share().unwrap().import(&token).unwrap();
/// // SAFETY: both extents are live, and nobody else uses them.
/// unsafe {
///     extent.as_ptr().write(7);
///     assert_eq!(again.as_ptr().read(), 7);
///     source.release(again).unwrap();
/// }
/// # }
/// // SAFETY: nothing uses it.
/// unsafe { source.release(extent) }.unwrap();
/// ```
#[derive(Debug)]
pub struct Shared {
    name: &'static str,
    mappings: Mutex<ByAddress<File>>,
}

impl Shared {
    /// A source whose files show up under `name` in the system's listings.
    pub fn new(name: &'static str) -> Self {
        Self { name, mappings: Mutex::default() }
    }

    fn add(&self, file: File, offset: u64, len: usize, align: usize) -> std::io::Result<Extent> {
        let mapping = Mapping::new(&file, offset, len, align)?;
        let in_file = offset + mapping.head() as u64;
        let address = lock(&self.mappings).add(mapping, file);
        // SAFETY: the mapping is new, and the extent is its only part. The cookie is the place in the file.
        Ok(unsafe { Extent::from_raw(address, len as u64, in_file) })
    }
}

// SAFETY: each extent is a part of a mapping of its own, which lasts until it is released.
unsafe impl Source for Shared {
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
        self.geometry().check(len, align)?;
        let align = (align as usize).max(page_size());
        let make = || {
            let file = files::memory_file(self.name)?;
            file.set_len(len + (align - page_size()) as u64)?;
            files::fix_length(&file)?;
            self.add(file, 0, len as usize, align)
        };
        make().map_err(|error| files::source_error(&error, len))
    }

    unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
        let mut mappings = lock(&self.mappings);
        if mappings.exact(extent.address(), extent.len()).is_none() {
            return Err(ReleaseError { extent, cause: SourceError::Unsupported });
        }
        // Unmapped and closed after the lock is left.
        let gone = mappings.remove(extent.address());
        drop(mappings);
        drop(gone);
        let _ = extent.into_raw();
        Ok(())
    }

    fn host_mapped(&self) -> Option<&dyn HostMapped> {
        Some(self)
    }

    fn purge(&self) -> Option<&dyn Purge> {
        Some(self)
    }

    fn share(&self) -> Option<&dyn Share> {
        Some(self)
    }
}

// SAFETY: a shared mapping is accessible throughout; a discarded range reads as zero.
unsafe impl PageSource for Shared {
    fn reserve(&self, len: usize, align: usize) -> Result<Extent, SourceError> {
        self.acquire(len as u64, align as u64)
    }

    unsafe fn commit(&self, _start: NonNull<u8>, _len: usize) -> Result<Contents, SourceError> {
        Ok(Contents::Unspecified)
    }

    shared_pages!();
}

impl HostMapped for Shared {
    fn host_ptr(&self, extent: &Extent) -> NonNull<u8> {
        // No extent lies at address 0.
        NonNull::new(extent.as_ptr()).unwrap_or(NonNull::dangling())
    }
}

impl Purge for Shared {
    unsafe fn purge(&self, extent: &Extent, offset: u64, len: u64) -> Result<Contents, SourceError> {
        let granule = page_size() as u64;
        let inside = offset.checked_add(len).is_some_and(|end| end <= extent.len());
        if !inside || len == 0 || !offset.is_multiple_of(granule) || !len.is_multiple_of(granule) {
            return Err(SourceError::BadLength { requested: len, granule });
        }
        // SAFETY: inside the extent; the caller does not need the contents.
        unsafe { files::discard(self.host_ptr(extent).add(offset as usize), len as usize) }?;
        Ok(Contents::Zero)
    }
}

/// What a token says, in the order of its bytes, each number little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Token {
    process: u32,
    descriptor: i32,
    device: u64,
    inode: u64,
    offset: u64,
    len: u64,
}

impl Token {
    fn bytes(self) -> [u8; TOKEN_BYTES] {
        let mut bytes = [0; TOKEN_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.process.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.descriptor.to_le_bytes());
        for (place, number) in [self.device, self.inode, self.offset, self.len].into_iter().enumerate() {
            bytes[16 + place * 8..24 + place * 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; TOKEN_BYTES] = bytes.get(..TOKEN_BYTES)?.try_into().ok()?;
        let four = |at: usize| bytes[at..at + 4].try_into().unwrap_or([0; 4]);
        let eight = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or([0; 8]));
        (bytes[..8] == MAGIC).then(|| Self {
            process: u32::from_le_bytes(four(8)),
            descriptor: i32::from_le_bytes(four(12)),
            device: eight(16),
            inode: eight(24),
            offset: eight(32),
            len: eight(40),
        })
    }
}

#[cfg(unix)]
fn identity(file: &File) -> std::io::Result<(u64, u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let data = file.metadata()?;
    Ok((data.dev(), data.ino(), data.len()))
}

#[cfg(not(unix))]
fn identity(_file: &File) -> std::io::Result<(u64, u64, u64)> {
    Err(std::io::ErrorKind::Unsupported.into())
}

impl Share for Shared {
    fn export(&self, extent: &Extent, token: &mut [u8]) -> Result<usize, SourceError> {
        let Some(place) = token.get_mut(..TOKEN_BYTES) else {
            return Err(SourceError::BadLength {
                requested: token.len() as u64,
                granule: TOKEN_BYTES as u64,
            });
        };
        let mappings = lock(&self.mappings);
        let (_, file) = mappings.exact(extent.address(), extent.len()).ok_or(SourceError::Unsupported)?;
        let (process, descriptor) = files::path_to_descriptor(file).ok_or(SourceError::Unsupported)?;
        let (device, inode, _) = identity(file).map_err(|error| files::source_error(&error, extent.len()))?;
        let written =
            Token { process, descriptor, device, inode, offset: extent.cookie(), len: extent.len() };
        place.copy_from_slice(&written.bytes());
        Ok(TOKEN_BYTES)
    }

    fn import(&self, token: &[u8]) -> Result<Extent, SourceError> {
        let token = Token::read(token)
            .ok_or(SourceError::BadLength { requested: token.len() as u64, granule: TOKEN_BYTES as u64 })?;
        let open = || {
            let path = files::descriptor_path(token.process, token.descriptor);
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            let (device, inode, len) = identity(&file)?;
            let fits = token.offset.checked_add(token.len).is_some_and(|end| end <= len);
            let page = page_size() as u64;
            let paged = token.len > 0 && (token.offset | token.len).is_multiple_of(page);
            if (device, inode) != (token.device, token.inode) || !fits || !paged {
                return Err(std::io::ErrorKind::NotFound.into());
            }
            self.add(file, token.offset, token.len as usize, page_size())
        };
        open().map_err(|error| files::source_error(&error, token.len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_what_it_was_made_from() {
        let token =
            Token { process: 7, descriptor: -1, device: u64::MAX, inode: 3, offset: 1 << 40, len: 4096 };
        assert_eq!(Token::read(&token.bytes()), Some(token));
        assert_eq!(Token::read(&token.bytes()[..TOKEN_BYTES - 1]), None);
        assert_eq!(Token::read(&[0; TOKEN_BYTES]), None);
    }
}
