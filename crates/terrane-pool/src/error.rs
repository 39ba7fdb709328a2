//! What a pool answers when it cannot do what it was asked.

use core::fmt;

/// No object can be had: as many as the pool may have are out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exhausted {
    /// Objects that the pool may have.
    pub max: usize,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pool exhausted: all {} objects are out", self.max)
    }
}

impl core::error::Error for Exhausted {}

/// An object could not come under a pool's care; it is still the caller's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rejected<T> {
    /// The object.
    pub object: T,
    /// Why.
    pub cause: Exhausted,
}

impl<T> fmt::Debug for Rejected<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejected").field("cause", &self.cause).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for Rejected<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object not taken: {}", self.cause)
    }
}

impl<T> core::error::Error for Rejected<T> {}

/// A key names no object that waits to be claimed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KeyError {
    /// The key was claimed before.
    Stale {
        /// Generation of the key.
        generation: u32,
        /// Generation that its place has now.
        current: u32,
    },
    /// The pool never gave such a key.
    Unknown {
        /// Place that the key names.
        index: u32,
    },
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Stale { generation, current } => {
                write!(f, "stale key: of generation {generation}, its place is at {current}")
            }
            Self::Unknown { index } => write!(f, "unknown key: no place {index}"),
        }
    }
}

impl core::error::Error for KeyError {}

/// Objects were still out when their pool was closed. They stay valid, and are dropped when their handles are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaked {
    /// Objects that were out.
    pub objects: usize,
}

impl fmt::Display for Leaked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pool closed while {} of its objects were out", self.objects)
    }
}

impl core::error::Error for Leaked {}
