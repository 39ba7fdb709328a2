//! The one switch between the machine's atomics and those of the `loom` model checker.
//!
//! Lock-free code in Terrane takes its atomics and its interior mutability from here, so that the models run the
//! production code and not a copy of it. Compiled with `RUSTFLAGS="--cfg loom"`, every name below is loom's.

/// Functions that are `const`, except under the model checker, whose atomics cannot be made in constants.
///
/// ```
/// use terrane_core::sync::atomic::AtomicU64;
///
/// struct Word(AtomicU64);
///
/// impl Word {
///     terrane_core::const_unless_loom! {
///         /// Zero.
///         pub fn new() -> Self {
///             Self(AtomicU64::new(0))
///         }
///     }
/// }
///
/// assert_eq!(Word::new().0.into_inner(), 0);
/// ```
#[macro_export]
macro_rules! const_unless_loom {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($args:tt)*) -> $result:ty $body:block)*) => {$(
        $(#[$meta])*
        #[cfg(not(loom))]
        $vis const fn $name($($args)*) -> $result $body

        $(#[$meta])*
        #[cfg(loom)]
        $vis fn $name($($args)*) -> $result $body
    )*};
}

/// Atomic types, fences and orderings.
pub mod atomic {
    #[cfg(not(loom))]
    pub use core::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    #[cfg(loom)]
    pub use loom::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
}

/// Interior mutability whose every access loom can see.
pub mod cell {
    #[cfg(loom)]
    pub use loom::cell::UnsafeCell;

    /// [`core::cell::UnsafeCell`] with access through closures, so that loom can watch the accesses.
    #[cfg(not(loom))]
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub struct UnsafeCell<T: ?Sized>(core::cell::UnsafeCell<T>);

    #[cfg(not(loom))]
    impl<T> UnsafeCell<T> {
        /// Wraps `value`.
        #[inline(always)]
        pub const fn new(value: T) -> Self {
            Self(core::cell::UnsafeCell::new(value))
        }

        /// Unwraps the value.
        #[inline(always)]
        pub fn into_inner(self) -> T {
            self.0.into_inner()
        }
    }

    #[cfg(not(loom))]
    impl<T: ?Sized> UnsafeCell<T> {
        /// Calls `f` with a pointer for reading.
        #[inline(always)]
        pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        /// Calls `f` with a pointer for writing.
        #[inline(always)]
        pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}

/// Waiting politely.
pub mod hint {
    #[cfg(not(loom))]
    pub use core::hint::spin_loop;
    #[cfg(loom)]
    pub use loom::hint::spin_loop;
}
