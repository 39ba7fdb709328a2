//! The C ABI, called through the names that every program uses; `cargo xtask fuzz` preloads the library into this target,
//! so the fuzzer itself lives on it. Any size, count and alignment: what cannot be had gives null and `ENOMEM` or
//! `EINVAL`, what is had is aligned, as long as asked, apart from every other block, and keeps its contents. Each block
//! has one owner, the process or a heap of its own, and is freed by any of the names that may free it.

use crate::bytes::Bytes;
use abi::Abi;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr::null_mut;

/// The functions under test, found by name at run time: the compiler knows `malloc` and its relatives, and would remove
/// calls whose outcome it believes to know; and a program that was not given the library is told so.
mod abi {
    use std::ffi::{c_int, c_void};
    use std::sync::OnceLock;

    macro_rules! table {
        ($($field:ident = $name:literal: ($($argument:ty),*) $(-> $result:ty)?;)+) => {
            pub struct Abi {
                $(pub $field: unsafe extern "C" fn($($argument),*) $(-> $result)?,)+
            }

            impl Abi {
                fn find() -> Option<Self> {
                    Some(Self {$(
                        $field: {
                            // SAFETY: the name is a C string.
                            let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, $name.as_ptr()) };
                            if symbol.is_null() {
                                return None;
                            }
                            type Function = unsafe extern "C" fn($($argument),*) $(-> $result)?;
                            // SAFETY: the name has this signature in C, or in the C++ ABI.
                            unsafe { std::mem::transmute::<*mut c_void, Function>(symbol) }
                        },
                    )+})
                }
            }
        };
    }

    table! {
        malloc = c"malloc": (usize) -> *mut c_void;
        calloc = c"calloc": (usize, usize) -> *mut c_void;
        realloc = c"realloc": (*mut c_void, usize) -> *mut c_void;
        reallocarray = c"reallocarray": (*mut c_void, usize, usize) -> *mut c_void;
        memalign = c"memalign": (usize, usize) -> *mut c_void;
        aligned_alloc = c"aligned_alloc": (usize, usize) -> *mut c_void;
        posix_memalign = c"posix_memalign": (*mut *mut c_void, usize, usize) -> c_int;
        valloc = c"valloc": (usize) -> *mut c_void;
        pvalloc = c"pvalloc": (usize) -> *mut c_void;
        free = c"free": (*mut c_void);
        cfree = c"cfree": (*mut c_void);
        free_sized = c"free_sized": (*mut c_void, usize);
        free_aligned_sized = c"free_aligned_sized": (*mut c_void, usize, usize);
        malloc_usable_size = c"malloc_usable_size": (*mut c_void) -> usize;
        malloc_trim = c"malloc_trim": (usize) -> c_int;
        mallopt = c"mallopt": (c_int, c_int) -> c_int;
        mallinfo2 = c"mallinfo2": () -> [usize; 10];
        new = c"_Znwm": (usize) -> *mut c_void;
        new_nothrow = c"_ZnwmRKSt9nothrow_t": (usize, *const c_void) -> *mut c_void;
        new_aligned = c"_ZnwmSt11align_val_t": (usize, usize) -> *mut c_void;
        new_array = c"_Znam": (usize) -> *mut c_void;
        delete = c"_ZdlPv": (*mut c_void);
        delete_sized = c"_ZdlPvm": (*mut c_void, usize);
        delete_array = c"_ZdaPv": (*mut c_void);
        delete_aligned = c"_ZdlPvSt11align_val_t": (*mut c_void, usize);
        heap_new = c"terrane_heap_new": () -> *mut c_void;
        heap_destroy = c"terrane_heap_destroy": (*mut c_void);
        heap_malloc = c"terrane_heap_malloc": (*mut c_void, usize) -> *mut c_void;
        heap_calloc = c"terrane_heap_calloc": (*mut c_void, usize, usize) -> *mut c_void;
        heap_realloc = c"terrane_heap_realloc": (*mut c_void, *mut c_void, usize) -> *mut c_void;
        heap_free = c"terrane_heap_free": (*mut c_void, *mut c_void);
        heap_purge = c"terrane_heap_purge": (*mut c_void);
        tick = c"terrane_tick": ();
        collect = c"terrane_collect": ();
        purge = c"terrane_purge": () -> usize;
    }

    /// The functions, if the library is preloaded.
    pub fn get() -> Option<&'static Abi> {
        static ABI: OnceLock<Option<Abi>> = OnceLock::new();
        ABI.get_or_init(Abi::find).as_ref()
    }
}

/// Whether the library is preloaded into this program.
pub fn is_preloaded() -> bool {
    abi::get().is_some()
}

/// Bytes up to which a request has to be served.
const SERVED: usize = 1 << 26;
/// Bytes at both ends of a block that are written and checked.
const ENDS: usize = 4096;
/// Bytes that are held at one time, far below what the machine has.
const HELD: usize = 1 << 29;

struct Block {
    len: usize,
    /// What was asked for; 16 where nothing was.
    align: usize,
    seed: u8,
    /// The number of the heap that owns it.
    heap: Option<u8>,
}

struct Model {
    abi: &'static Abi,
    blocks: BTreeMap<usize, Block>,
    held: usize,
    /// Heaps of their own; null where there is none.
    heaps: [*mut c_void; 3],
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn set_errno(value: i32) {
    // SAFETY: the location is that of this thread.
    unsafe { *libc::__errno_location() = value };
}

fn positions(len: usize) -> impl Iterator<Item = usize> {
    (0..len.min(ENDS)).chain(len.saturating_sub(ENDS).max(ENDS)..len)
}

fn pattern(seed: u8, at: usize) -> u8 {
    seed.wrapping_add((at as u8).wrapping_mul(11))
}

/// The bytes of `count` times `len`, if such a block is possible.
fn product(count: usize, len: usize) -> Option<usize> {
    count.checked_mul(len).filter(|total| *total <= isize::MAX as usize)
}

impl Model {
    /// Takes in what a call returned for `len` bytes at a multiple of `align`: null is fine only where the request is
    /// impossible or too large to be sure of. `heap` is the owner; heaps leave `errno` alone.
    fn add(&mut self, block: *mut c_void, len: usize, align: usize, heap: Option<u8>, zero: bool, seed: u8) {
        if block.is_null() {
            let error = errno();
            assert!(
                heap.is_some() || error == libc::ENOMEM,
                "null for {len} bytes at {align}, and errno is {error}"
            );
            assert!(len > SERVED || align > SERVED, "no memory for {len} bytes at {align}");
            return;
        }
        assert!(len <= isize::MAX as usize, "{len} bytes cannot be had");
        let start = block as usize;
        assert_eq!(start % align, 0, "{start:#x} for an alignment of {align}");
        let usable = if heap.is_none() {
            // SAFETY: the block is live.
            unsafe { (self.abi.malloc_usable_size)(block) }
        } else {
            len
        };
        assert!(usable >= len, "{usable} bytes usable of {len}");
        let end = start + usable.max(1);
        if let Some((&before, other)) = self.blocks.range(..end).next_back() {
            assert!(
                before + other.len.max(1) <= start,
                "{start:#x}..{end:#x} overlaps the block at {before:#x}"
            );
        }
        if len > SERVED {
            self.blocks.insert(start, Block { len: 0, align, seed, heap });
            self.free(start, seed);
            return;
        }
        for at in positions(len) {
            // SAFETY: `at` is inside the block.
            let byte = unsafe { block.cast::<u8>().add(at) };
            // SAFETY: as above.
            assert!(!zero || unsafe { byte.read() } == 0, "byte {at} of {len} zeroed bytes");
            // SAFETY: as above.
            unsafe { byte.write(pattern(seed, at)) };
        }
        self.held += len;
        self.blocks.insert(start, Block { len, align, seed, heap });
    }

    fn pick(&self, bytes: &mut Bytes) -> Option<usize> {
        let from = bytes.below(self.blocks.len());
        self.blocks.keys().nth(from).copied()
    }

    fn check(&self, start: usize, limit: usize) {
        let block = &self.blocks[&start];
        for at in positions(block.len).filter(|at| *at < limit) {
            // SAFETY: `at` is inside the block, which is live.
            let found = unsafe { (start as *const u8).add(at).read() };
            let wanted = pattern(block.seed, at);
            assert_eq!(found, wanted, "byte {at} of the block of {} bytes at {start:#x}", block.len);
        }
    }

    /// Checks and frees a block by one of the names that may free it.
    fn free(&mut self, start: usize, how: u8) {
        self.check(start, usize::MAX);
        let Block { len, align, heap, .. } = self.blocks.remove(&start).expect("picked from the model");
        self.held -= len;
        let (abi, block) = (self.abi, start as *mut c_void);
        set_errno(4711);
        // SAFETY: the block is live, and out of the model now; the lengths and alignments are its own.
        unsafe {
            match (heap, how % 9) {
                (Some(heap), _) => (abi.heap_free)(self.heaps[usize::from(heap)], block),
                (None, 0) => (abi.cfree)(block),
                (None, 1) => (abi.free_sized)(block, len),
                (None, 2) => (abi.free_aligned_sized)(block, align, len),
                (None, 3) => (abi.delete)(block),
                (None, 4) => (abi.delete_sized)(block, len),
                (None, 5) => (abi.delete_array)(block),
                (None, 6) => (abi.delete_aligned)(block, align),
                (None, _) => (abi.free)(block),
            }
        }
        assert_eq!(errno(), 4711, "a free of {len} bytes changed errno");
    }

    /// Moves a block's entry to where a call that returned `new` has put it.
    fn resized(&mut self, start: usize, new: *mut c_void, len: usize) {
        let heap = self.blocks[&start].heap;
        if new.is_null() {
            let error = errno();
            assert!(heap.is_some() || error == libc::ENOMEM, "null for {len} bytes, and errno is {error}");
            assert!(len > SERVED, "no memory to resize {} to {len} bytes", self.blocks[&start].len);
            self.check(start, usize::MAX);
            return;
        }
        let old = self.blocks.remove(&start).expect("picked from the model");
        self.held -= old.len;
        for at in positions(old.len).filter(|at| *at < len) {
            // SAFETY: `at` is inside the block, old and new.
            let found = unsafe { new.cast::<u8>().add(at).read() };
            let wanted = pattern(old.seed, at);
            assert_eq!(found, wanted, "byte {at} of a block resized from {} to {len}", old.len);
        }
        self.add(new, len, 16, heap, false, old.seed);
    }

    /// Resizes a block of the process or of a heap; a length of 0 frees a block of the process.
    fn resize(&mut self, start: usize, count: usize, len: usize, as_array: bool) {
        let total = if as_array { count.checked_mul(len) } else { Some(len) };
        let block = start as *mut c_void;
        let heap = self.blocks[&start].heap;
        if heap.is_none() && total == Some(0) {
            self.check(start, usize::MAX);
            let freed = self.blocks.remove(&start).expect("picked from the model");
            self.held -= freed.len;
        }
        // SAFETY: the block is live.
        let new = unsafe {
            match heap {
                Some(heap) => (self.abi.heap_realloc)(self.heaps[usize::from(heap)], block, len),
                None if as_array => (self.abi.reallocarray)(block, count, len),
                None => (self.abi.realloc)(block, len),
            }
        };
        match (heap, total) {
            (Some(_), _) => self.resized(start, new, len),
            (None, Some(0)) => assert!(new.is_null(), "a block resized to 0 bytes is gone"),
            (None, total) => {
                assert!(total.is_some() || new.is_null(), "{count} times {len} bytes overflow");
                self.resized(start, new, total.unwrap_or(usize::MAX));
            }
        }
    }

    /// A block at a multiple of a power of two.
    fn aligned(&mut self, bytes: &mut Bytes, len: usize, seed: u8) {
        let (abi, align) = (self.abi, bytes.align());
        // SAFETY: the alignment is a power of two; what would throw is not asked for.
        let block = unsafe {
            match bytes.byte() % 5 {
                0 => (abi.memalign)(align, len),
                1 => (abi.aligned_alloc)(align, len),
                2 => {
                    let page = 4096;
                    let block = (abi.valloc)(len);
                    self.add(block, len, page, None, false, seed);
                    return;
                }
                3 => {
                    let block = (abi.pvalloc)(len);
                    let whole = len.max(1).checked_next_multiple_of(4096).unwrap_or(usize::MAX);
                    self.add(block, whole, 4096, None, false, seed);
                    return;
                }
                _ if len <= SERVED && align <= SERVED => (abi.new_aligned)(len, align),
                _ => return,
            }
        };
        self.add(block, len, align, None, false, seed);
    }

    /// Alignments that are no powers of two, or small: what the answer is differs by name.
    fn any_alignment(&mut self, bytes: &mut Bytes, len: usize, seed: u8) {
        let abi = self.abi;
        let align = usize::try_from(bytes.number(if seed < 128 { 2 } else { 8 })).unwrap_or(0);
        match bytes.byte() % 3 {
            0 => {
                let mut block = null_mut();
                // SAFETY: the place for the result can be written.
                let error = unsafe { (abi.posix_memalign)(&raw mut block, align, len) };
                assert_eq!(errno(), 0, "posix_memalign answers, and leaves errno alone");
                if align.is_power_of_two() && align.is_multiple_of(size_of::<*mut c_void>()) {
                    assert!(error == 0 || error == libc::ENOMEM, "{error} for {len} at {align}");
                    assert_eq!(error == 0, !block.is_null());
                    set_errno(libc::ENOMEM);
                    self.add(block, len, align, None, false, seed);
                } else {
                    assert!(error == libc::EINVAL && block.is_null(), "{error} for an alignment of {align}");
                }
            }
            1 => {
                // SAFETY: no preconditions.
                let block = unsafe { (abi.aligned_alloc)(align, len) };
                if align.is_power_of_two() {
                    self.add(block, len, align, None, false, seed);
                } else {
                    assert!(block.is_null() && errno() == libc::EINVAL, "an alignment of {align}");
                }
            }
            _ => {
                // SAFETY: no preconditions.
                let block = unsafe { (abi.memalign)(align, len) };
                match align.checked_next_power_of_two() {
                    Some(rounded) => self.add(block, len, rounded, None, false, seed),
                    None => assert!(block.is_null() && errno() == libc::EINVAL, "an alignment of {align}"),
                }
            }
        }
    }

    /// Blocks of heaps of their own.
    fn on_heap(&mut self, bytes: &mut Bytes, len: usize, seed: u8) {
        let abi = self.abi;
        let number = bytes.byte() % 3;
        let heap = &mut self.heaps[usize::from(number)];
        // SAFETY: a heap is used between its making and its end only; with it, its blocks leave the model.
        unsafe {
            if heap.is_null() {
                *heap = (abi.heap_new)();
                assert!(!heap.is_null(), "no memory for a heap");
            }
            let heap = *heap;
            match bytes.byte() % 8 {
                0..=2 => {
                    let block = (abi.heap_malloc)(heap, len);
                    self.add(block, len, 16, Some(number), false, seed);
                }
                3 | 4 => {
                    let count = bytes.size() % 3;
                    let total = product(count, len);
                    let block = (abi.heap_calloc)(heap, count, len);
                    assert!(total.is_some() || block.is_null(), "{count} times {len} bytes overflow");
                    self.add(block, total.unwrap_or(usize::MAX), 16, Some(number), true, seed);
                }
                5 => {
                    let block = (abi.heap_realloc)(heap, null_mut(), len);
                    self.add(block, len, 16, Some(number), false, seed);
                }
                6 => (abi.heap_purge)(heap),
                _ => {
                    let own = |block: &Block| block.heap == Some(number);
                    self.blocks
                        .iter()
                        .filter(|(_, block)| own(block))
                        .for_each(|(start, _)| self.check(*start, usize::MAX));
                    self.held -=
                        self.blocks.values().filter(|block| own(block)).map(|block| block.len).sum::<usize>();
                    self.blocks.retain(|_, block| !own(block));
                    (abi.heap_destroy)(heap);
                    self.heaps[usize::from(number)] = null_mut();
                }
            }
        }
    }

    /// Calls that change no block.
    fn aside(&self, bytes: &mut Bytes, len: usize) {
        let abi = self.abi;
        // SAFETY: null is a block of length 0 to all of these.
        unsafe {
            match bytes.byte() % 6 {
                0 => {
                    (abi.free)(null_mut());
                    (abi.cfree)(null_mut());
                    (abi.free_sized)(null_mut(), len);
                    (abi.free_aligned_sized)(null_mut(), 16, len);
                    (abi.delete)(null_mut());
                    (abi.heap_destroy)(null_mut());
                    assert_eq!((abi.malloc_usable_size)(null_mut()), 0);
                }
                1 => {
                    let trimmed = (abi.malloc_trim)(len);
                    assert!(trimmed == 0 || trimmed == 1);
                }
                2 => assert_eq!((abi.mallopt)(len as i32, 0), 1),
                3 => {
                    // Huge blocks and the others; the model holds no more than the process does.
                    let info = (abi.mallinfo2)();
                    let process: usize = self
                        .blocks
                        .values()
                        .filter(|block| block.heap.is_none())
                        .map(|block| block.len)
                        .sum();
                    assert!(info[4] + info[7] >= process, "{info:?} for {process} bytes");
                }
                4 => (abi.collect)(),
                _ => {
                    (abi.tick)();
                    (abi.purge)();
                }
            }
        }
    }

    fn step(&mut self, bytes: &mut Bytes) {
        let operation = bytes.byte();
        let (len, seed, abi) = (bytes.size(), operation, self.abi);
        if self.held > HELD {
            let all: Vec<usize> = self.blocks.keys().copied().collect();
            all.into_iter().for_each(|start| self.free(start, seed));
        }
        set_errno(0);
        match operation % 16 {
            0 | 1 => {
                // SAFETY: no preconditions.
                let block = unsafe { (abi.malloc)(len) };
                self.add(block, len, 16, None, false, seed);
            }
            2 => {
                let count = bytes.size();
                let total = product(count, len);
                // What is zeroed and large is touched whole.
                if total.is_some_and(|total| total > SERVED) {
                    return;
                }
                // SAFETY: no preconditions.
                let block = unsafe { (abi.calloc)(count, len) };
                assert!(total.is_some() || block.is_null(), "{count} times {len} bytes overflow");
                self.add(block, total.unwrap_or(usize::MAX), 16, None, true, seed);
            }
            3 => {
                // SAFETY: what would throw is not asked for.
                let block = unsafe {
                    match bytes.byte() % 3 {
                        0 if len <= SERVED => (abi.new)(len),
                        1 if len <= SERVED => (abi.new_array)(len),
                        _ => (abi.new_nothrow)(len, (&raw const *self).cast()),
                    }
                };
                set_errno(libc::ENOMEM);
                self.add(block, len, 16, None, false, seed);
            }
            4..=6 => {
                if let Some(start) = self.pick(bytes) {
                    let how = bytes.byte();
                    self.free(start, how);
                }
            }
            7..=9 => {
                let (Some(start), as_array) = (self.pick(bytes), operation >= 128) else { return };
                let count = if as_array { bytes.size() } else { 1 };
                self.resize(start, count, len, as_array);
            }
            10 => {
                // SAFETY: null is a block of length 0.
                let block = unsafe { (abi.realloc)(null_mut(), len) };
                self.add(block, len, 16, None, false, seed);
            }
            11 => self.aligned(bytes, len, seed),
            12 => self.any_alignment(bytes, len, seed),
            13 | 14 => self.on_heap(bytes, len, seed),
            _ => self.aside(bytes, len),
        }
    }
}

/// Carries out what the bytes say.
///
/// # Panics
/// If the library is not preloaded, or a call did not do what it promises.
pub fn run(data: &[u8]) {
    let abi = abi::get().expect("libterrane.so is preloaded into this program");
    let mut bytes = Bytes::new(data);
    let mut model = Model { abi, blocks: BTreeMap::new(), held: 0, heaps: [null_mut(); 3] };
    while !bytes.is_empty() {
        model.step(&mut bytes);
    }
    let rest: Vec<usize> = model.blocks.keys().copied().collect();
    rest.into_iter().for_each(|start| model.free(start, 8));
    // SAFETY: nothing of the heaps is used any more; null is ignored.
    model.heaps.into_iter().for_each(|heap| unsafe { (abi.heap_destroy)(heap) });
}
