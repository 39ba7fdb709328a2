//! A library that holds this allocator stays loaded.
//!
//! Invariant: from before the first thread-specific value, fork handler or background thread until the process ends, the code
//! of this allocator is mapped. All three are called by the system at moments of its own: a library that was unloaded by
//! `dlclose` would be called where nothing is any more. Its heaps would be lost besides, once for each time it is loaded.
//!
//! A library asks the loader, once, never to unload it. A program cannot be unloaded, and does not ask. With the feature
//! `initial-exec` nobody asks: the loader itself may be the caller that waits for a block then, so the library must say it when
//! it is linked (`-z nodelete`), as `libterrane.so` does.

/// Asks the loader to keep the library that this code lies in.
#[cfg(all(
    target_os = "linux",
    not(any(target_feature = "crt-static", feature = "initial-exec", loom, miri))
))]
pub(crate) fn pin() {
    use core::ffi::c_void;
    use core::ptr;

    /// The file that `address` was loaded from, and where that file begins.
    fn module(address: *const c_void) -> Option<libc::Dl_info> {
        // SAFETY: all fields may be zero.
        let mut info: libc::Dl_info = unsafe { core::mem::zeroed() };
        // SAFETY: the loader compares the address and does not follow it.
        (unsafe { libc::dladdr(address, &mut info) } != 0).then_some(info)
    }

    // SAFETY: asks for a number.
    let program = unsafe { libc::getauxval(libc::AT_PHDR) } as usize;
    let Some(this) = module(pin as fn() as *const c_void) else { return };
    if module(ptr::without_provenance(program)).is_some_and(|program| program.dli_fbase == this.dli_fbase) {
        return;
    }
    // Loaded already, so nothing is run or mapped. A handle that is never closed would do as well; the flag outlives closing.
    // SAFETY: the name is one that the loader gave.
    unsafe { libc::dlopen(this.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE) };
}

/// Nothing: the loader is absent or must not be asked.
#[cfg(not(all(
    target_os = "linux",
    not(any(target_feature = "crt-static", feature = "initial-exec", loom, miri))
)))]
pub(crate) const fn pin() {}
