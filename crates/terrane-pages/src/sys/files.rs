//! What platforms do differently with files that are mapped: memory without a name, holes, blocks set aside.
//!
//! These functions serve the sources that need the standard library, so they may allocate and speak its errors.

use core::ptr::NonNull;
use std::format;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use terrane_core::SourceError;

/// The source's word for an error of the standard library about `requested` bytes.
pub(crate) fn source_error(error: &io::Error, requested: u64) -> SourceError {
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::OutOfMemory | io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, _) => {
            SourceError::OutOfMemory { requested }
        }
        (io::ErrorKind::Unsupported, _) | (_, None) => SourceError::Unsupported,
        (_, Some(code)) => SourceError::Os { code },
    }
}

pub(crate) use platform::{discard, fix_length, memory_file, path_to_descriptor, set_aside};

#[cfg(any(target_os = "linux", target_os = "android"))]
mod platform {
    use super::*;
    use crate::sys::unix::{advise, refusal};
    use std::ffi::CString;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    /// A file of memory that ends with its last descriptor and mapping.
    pub(crate) fn memory_file(name: &str) -> io::Result<File> {
        let name = CString::new(name)?;
        // SAFETY: the name ends in a zero byte; a descriptor that is not negative is ours.
        unsafe {
            let file = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
            if file < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(OwnedFd::from_raw_fd(file).into())
        }
    }

    /// Seals the length, so that no process that opens the file can pull the ground from under the others.
    pub(crate) fn fix_length(file: &File) -> io::Result<()> {
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: the descriptor is open for as long as `file` lives.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Where another process finds a descriptor of this one.
    pub(crate) fn path_to_descriptor(file: &File) -> Option<(u32, i32)> {
        Some((std::process::id(), file.as_raw_fd()))
    }

    /// Makes a hole of a range of a shared mapping: its memory or its blocks are freed, and it reads as zero.
    ///
    /// # Safety
    /// The range lies in a shared mapping of ours, and nothing relies on its contents.
    pub(crate) unsafe fn discard(start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
        // SAFETY: passed on by the caller.
        unsafe { advise(start, len, libc::MADV_REMOVE) }.map_err(|code| refusal(code, len))
    }

    /// Sets blocks of the disk aside for a range, so that no write to it can find the disk full.
    pub(crate) fn set_aside(file: &File, offset: u64, len: u64) -> io::Result<()> {
        let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else {
            return Err(io::ErrorKind::StorageFull.into());
        };
        // SAFETY: the descriptor is open for as long as `file` lives.
        match unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, offset, len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(target_vendor = "apple")]
mod platform {
    use super::*;
    use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use std::ffi::CString;
    use std::os::fd::{FromRawFd, OwnedFd};

    pub(crate) fn memory_file(_name: &str) -> io::Result<File> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let name = CString::new(format!("/terrane.{}.{number}", std::process::id()))?;
        // SAFETY: the name ends in a zero byte; a descriptor that is not negative is ours. The name goes at once.
        unsafe {
            let file = libc::shm_open(name.as_ptr(), libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o600);
            if file < 0 {
                return Err(io::Error::last_os_error());
            }
            libc::shm_unlink(name.as_ptr());
            Ok(OwnedFd::from_raw_fd(file).into())
        }
    }

    pub(crate) fn fix_length(_file: &File) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn path_to_descriptor(_file: &File) -> Option<(u32, i32)> {
        None
    }

    pub(crate) unsafe fn discard(_start: NonNull<u8>, _len: usize) -> Result<(), SourceError> {
        Err(SourceError::Unsupported)
    }

    pub(crate) fn set_aside(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(windows)]
mod platform {
    use super::*;
    use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use std::fs::OpenOptions;
    use std::os::windows::fs::OpenOptionsExt;
    use windows_sys::Win32::Storage::FileSystem::{FILE_ATTRIBUTE_TEMPORARY, FILE_FLAG_DELETE_ON_CLOSE};

    pub(crate) fn memory_file(_name: &str) -> io::Result<File> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let path = std::env::temp_dir().join(format!("terrane.{}.{number}", std::process::id()));
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .attributes(FILE_ATTRIBUTE_TEMPORARY)
            .custom_flags(FILE_FLAG_DELETE_ON_CLOSE)
            .open(path)
    }

    pub(crate) fn fix_length(_file: &File) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn path_to_descriptor(_file: &File) -> Option<(u32, i32)> {
        None
    }

    pub(crate) unsafe fn discard(_start: NonNull<u8>, _len: usize) -> Result<(), SourceError> {
        Err(SourceError::Unsupported)
    }

    pub(crate) fn set_aside(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(target_family = "wasm")]
mod platform {
    use super::*;

    pub(crate) fn memory_file(_name: &str) -> io::Result<File> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn fix_length(_file: &File) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn path_to_descriptor(_file: &File) -> Option<(u32, i32)> {
        None
    }

    pub(crate) unsafe fn discard(_start: NonNull<u8>, _len: usize) -> Result<(), SourceError> {
        Err(SourceError::Unsupported)
    }

    pub(crate) fn set_aside(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The path under which a descriptor of a process can be opened again.
pub(crate) fn descriptor_path(process: u32, descriptor: i32) -> PathBuf {
    format!("/proc/{process}/fd/{descriptor}").into()
}
