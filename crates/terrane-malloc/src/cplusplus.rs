//! C++'s `operator new` and `operator delete`, in the names that the Itanium C++ ABI gives them on 64-bit machines.
//!
//! libstdc++'s own would call [`malloc`](crate::malloc::malloc) and work; these save a jump and a test. When memory is out, the
//! forms of `operator new` hand over to the next one in the program, libstdc++'s, which calls the new-handler and throws, or
//! catches what the handler throws and answers null.

use crate::malloc::ALIGN;
use core::ffi::{CStr, c_void};
use core::{mem, ptr};
use terrane_front as front;

type New = unsafe extern "C-unwind" fn(usize) -> *mut c_void;
type NewAligned = unsafe extern "C-unwind" fn(usize, usize) -> *mut c_void;
type NewNothrow = unsafe extern "C" fn(usize, *const c_void) -> *mut c_void;
type NewAlignedNothrow = unsafe extern "C" fn(usize, usize, *const c_void) -> *mut c_void;

fn next(name: &CStr) -> *mut c_void {
    // SAFETY: the name is a C string.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    if next.is_null() {
        front::process::Line::new().text("terrane: out of memory in operator new").write(libc::STDERR_FILENO);
        // SAFETY: ends the process, as an exception that nobody can throw would.
        unsafe { libc::abort() };
    }
    next
}

#[cold]
unsafe fn fail(size: usize, name: &CStr) -> *mut c_void {
    // SAFETY: the symbol is an `operator new` of this signature.
    unsafe { mem::transmute::<*mut c_void, New>(next(name))(size) }
}

#[cold]
unsafe fn fail_aligned(size: usize, align: usize, name: &CStr) -> *mut c_void {
    // SAFETY: the symbol is an `operator new` of this signature.
    unsafe { mem::transmute::<*mut c_void, NewAligned>(next(name))(size, align) }
}

/// What a form that does not throw answers when memory is out: libstdc++'s asks the new-handler first. In a program without
/// libstdc++ there is no handler to ask.
#[cold]
unsafe fn fail_nothrow(size: usize, tag: *const c_void, name: &CStr) -> *mut c_void {
    // SAFETY: the name is a C string.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    if next.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: the symbol is an `operator new` of this signature.
    unsafe { mem::transmute::<*mut c_void, NewNothrow>(next)(size, tag) }
}

#[cold]
unsafe fn fail_aligned_nothrow(size: usize, align: usize, tag: *const c_void, name: &CStr) -> *mut c_void {
    // SAFETY: the name is a C string.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    if next.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: the symbol is an `operator new` of this signature.
    unsafe { mem::transmute::<*mut c_void, NewAlignedNothrow>(next)(size, align, tag) }
}

macro_rules! operators {
    (new: $($new:ident = $new_name:literal),+; aligned: $($aligned:ident = $aligned_name:literal),+;
     nothrow: $($nothrow:ident = $nothrow_name:literal),+;
     aligned_nothrow: $($aligned_nothrow:ident = $aligned_nothrow_name:literal),+;
     delete: $($delete:ident),+; delete_2: $($delete_2:ident),+; delete_3: $($delete_3:ident),+;) => {
        $(
            /// `operator new`.
            ///
            /// # Safety
            /// The caller is C++ code: the call may throw.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "the name is the ABI's")]
            pub unsafe extern "C-unwind" fn $new(size: usize) -> *mut c_void {
                // SAFETY: the alignment is a power of two.
                let block = unsafe { front::alloc(size, ALIGN) };
                // SAFETY: the caller's promise.
                if block.is_null() { unsafe { fail(size, $new_name) } } else { block.cast() }
            }
        )+
        $(
            /// `operator new` with an alignment.
            ///
            /// # Safety
            /// The alignment is a power of two, and the caller is C++ code: the call may throw.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "the name is the ABI's")]
            pub unsafe extern "C-unwind" fn $aligned(size: usize, align: usize) -> *mut c_void {
                // SAFETY: the caller's promise.
                let block = unsafe { front::alloc(size, align.max(ALIGN)) };
                // SAFETY: the caller's promise.
                if block.is_null() { unsafe { fail_aligned(size, align, $aligned_name) } } else { block.cast() }
            }
        )+
        $(
            /// `operator new` that answers null when memory is out.
            ///
            /// # Safety
            /// The caller is C++ code, and the tag is `std::nothrow`.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "the name is the ABI's")]
            pub unsafe extern "C" fn $nothrow(size: usize, tag: *const c_void) -> *mut c_void {
                // SAFETY: the alignment is a power of two.
                let block = unsafe { front::alloc(size, ALIGN) };
                // SAFETY: the caller's promise.
                if block.is_null() { unsafe { fail_nothrow(size, tag, $nothrow_name) } } else { block.cast() }
            }
        )+
        $(
            /// `operator new` with an alignment that answers null when memory is out.
            ///
            /// # Safety
            /// The caller is C++ code, and the tag is `std::nothrow`.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "the name is the ABI's")]
            pub unsafe extern "C" fn $aligned_nothrow(size: usize, align: usize, tag: *const c_void) -> *mut c_void {
                if !align.is_power_of_two() {
                    return ptr::null_mut();
                }
                // SAFETY: the alignment is a power of two.
                let block = unsafe { front::alloc(size, align.max(ALIGN)) };
                if block.is_null() {
                    // SAFETY: the caller's promise.
                    return unsafe { fail_aligned_nothrow(size, align, tag, $aligned_nothrow_name) };
                }
                block.cast()
            }
        )+
        $(
            /// `operator delete`.
            ///
            /// # Safety
            /// The block is null or live, and came from this library.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "the name is the ABI's")]
            pub unsafe extern "C" fn $delete(block: *mut c_void) {
                // SAFETY: the caller's promise.
                unsafe { front::free(block.cast()) };
            }
        )+
        $(
            /// `operator delete` with a length, an alignment or a tag.
            ///
            /// # Safety
            /// The block is null or live, and came from this library.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "the name is the ABI's")]
            pub unsafe extern "C" fn $delete_2(block: *mut c_void, _: usize) {
                // SAFETY: the caller's promise.
                unsafe { front::free(block.cast()) };
            }
        )+
        $(
            /// `operator delete` with a length and an alignment, or an alignment and a tag.
            ///
            /// # Safety
            /// The block is null or live, and came from this library.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "the name is the ABI's")]
            pub unsafe extern "C" fn $delete_3(block: *mut c_void, _: usize, _: usize) {
                // SAFETY: the caller's promise.
                unsafe { front::free(block.cast()) };
            }
        )+
    };
}

operators! {
    new: _Znwm = c"_Znwm", _Znam = c"_Znam";
    aligned: _ZnwmSt11align_val_t = c"_ZnwmSt11align_val_t", _ZnamSt11align_val_t = c"_ZnamSt11align_val_t";
    nothrow: _ZnwmRKSt9nothrow_t = c"_ZnwmRKSt9nothrow_t", _ZnamRKSt9nothrow_t = c"_ZnamRKSt9nothrow_t";
    aligned_nothrow: _ZnwmSt11align_val_tRKSt9nothrow_t = c"_ZnwmSt11align_val_tRKSt9nothrow_t",
        _ZnamSt11align_val_tRKSt9nothrow_t = c"_ZnamSt11align_val_tRKSt9nothrow_t";
    delete: _ZdlPv, _ZdaPv;
    delete_2: _ZdlPvm, _ZdaPvm, _ZdlPvSt11align_val_t, _ZdaPvSt11align_val_t, _ZdlPvRKSt9nothrow_t, _ZdaPvRKSt9nothrow_t;
    delete_3: _ZdlPvmSt11align_val_t, _ZdaPvmSt11align_val_t,
        _ZdlPvSt11align_val_tRKSt9nothrow_t, _ZdaPvSt11align_val_tRKSt9nothrow_t;
}
