//! What valgrind's memcheck is told about blocks: a client request is a few instructions that do nothing on the machine and
//! that valgrind recognises.
//!
//! Invariant, when the program runs under memcheck: bytes that the program may use are addressable, and are *undefined* until
//! written; everything else in a slab, freed blocks and the red zone behind each block, is not. The allocator itself links
//! free blocks through their first word, so reports are off ([`Quiet`]) while it works.
//!
//! ```text
//!   | bytes of the program          | red zone ≥ 16: not accessible, its last word is the length asked for |
//!   ^ block                         ^ block + bytes                                     block + usable ^
//! ```
//!
//! The instructions and request numbers are those of valgrind 3's client request interface. On other machines than x86-64 and
//! AArch64 the requests are nothing.

/// Bytes behind a block that nobody may touch, at least.
pub const RED_ZONE: usize = 16;

/// Numbers of requests.
mod request {
    pub const RUNNING_ON_VALGRIND: usize = 0x1001;
    pub const MALLOCLIKE_BLOCK: usize = 0x1301;
    pub const FREELIKE_BLOCK: usize = 0x1302;
    pub const CREATE_MEMPOOL: usize = 0x1303;
    pub const DESTROY_MEMPOOL: usize = 0x1304;
    pub const MEMPOOL_ALLOC: usize = 0x1305;
    pub const MEMPOOL_FREE: usize = 0x1306;
    pub const CHANGE_ERR_DISABLEMENT: usize = 0x1801;
    const MEMCHECK: usize = (b'M' as usize) << 24 | (b'C' as usize) << 16;
    pub const MAKE_MEM_NOACCESS: usize = MEMCHECK;
    pub const MAKE_MEM_DEFINED: usize = MEMCHECK + 2;
}

/// Makes a client request; 0 where nobody listens.
#[inline(always)]
fn ask(request: usize, arguments: [usize; 4]) -> usize {
    let [a, b, c, d] = arguments;
    let words: [usize; 6] = [request, a, b, c, d, 0];
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        expect(unused_mut, reason = "nobody answers")
    )]
    let mut answer = 0_usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the rotations add up to two whole turns, and the exchange is of a register with itself: nothing changes on the
    // machine. Valgrind reads the words and writes the answer.
    unsafe {
        core::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") words.as_ptr(),
            inout("rdx") answer,
            options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the rotations add up to two whole turns, and the last instruction writes a register to itself: nothing changes on
    // the machine. Valgrind reads the words and writes the answer.
    unsafe {
        core::arch::asm!(
            "ror x12, x12, #3",
            "ror x12, x12, #13",
            "ror x12, x12, #51",
            "ror x12, x12, #61",
            "orr x10, x10, x10",
            inout("x3") answer,
            in("x4") words.as_ptr(),
            options(nostack),
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = words;
    answer
}

/// Whether the program runs under valgrind.
pub fn is_running() -> bool {
    ask(request::RUNNING_ON_VALGRIND, [0; 4]) != 0
}

/// While it lives, what the calling thread does is not reported: the allocator at work.
#[derive(Debug)]
#[must_use = "reports are on again when it is dropped"]
pub struct Quiet(());

impl Quiet {
    /// Switches reports off for the calling thread; such spans nest.
    #[inline]
    #[expect(clippy::new_without_default, reason = "a default would hide that it does something")]
    pub fn new() -> Self {
        ask(request::CHANGE_ERR_DISABLEMENT, [1, 0, 0, 0]);
        Self(())
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        ask(request::CHANGE_ERR_DISABLEMENT, [usize::MAX, 0, 0, 0]);
    }
}

/// The bytes that a block with its red zone takes, or `bytes` itself if that is impossibly large anyhow.
pub const fn padded(bytes: usize) -> usize {
    // The length goes into the last word, which is aligned because classes and large blocks are multiples of a word.
    match bytes.checked_add(RED_ZONE) {
        Some(padded) if padded <= isize::MAX as usize => padded,
        _ => usize::MAX,
    }
}

/// Who a block belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The process.
    Process,
    /// A heap of its own, named by an address of its own.
    Heap(usize),
}

/// Tells that `block`, which has `usable ≥ bytes + RED_ZONE` bytes, is the program's now.
///
/// # Safety
/// The block is the caller's, a multiple of 8 bytes long, and not the program's yet.
pub unsafe fn handed_out(owner: Owner, block: *mut u8, bytes: usize, usable: usize, zeroed: bool) {
    {
        let _quiet = Quiet::new();
        // SAFETY: the caller's promise: the last word lies in the red zone.
        unsafe { block.add(usable - size_of::<usize>()).cast::<usize>().write(bytes) };
    }
    ask(request::MAKE_MEM_NOACCESS, [block.addr(), usable, 0, 0]);
    match owner {
        Owner::Process => ask(request::MALLOCLIKE_BLOCK, [block.addr(), bytes, 0, usize::from(zeroed)]),
        Owner::Heap(heap) => ask(request::MEMPOOL_ALLOC, [heap, block.addr(), bytes, 0]),
    };
    if zeroed {
        ask(request::MAKE_MEM_DEFINED, [block.addr(), bytes, 0, 0]);
    }
}

/// Tells that the program gives `block` back. What was not its own to give is reported by memcheck itself.
pub fn given_back(owner: Owner, block: *mut u8) {
    match owner {
        Owner::Process => ask(request::FREELIKE_BLOCK, [block.addr(), 0, 0, 0]),
        Owner::Heap(heap) => ask(request::MEMPOOL_FREE, [heap, block.addr(), 0, 0]),
    };
}

/// The bytes that the program asked for when it got the block, whose length is `usable`.
///
/// # Safety
/// The block was [`handed_out`] with this length, and is live.
pub unsafe fn asked_for(block: *mut u8, usable: usize) -> usize {
    let _quiet = Quiet::new();
    // SAFETY: the caller's promise.
    unsafe { block.add(usable - size_of::<usize>()).cast::<usize>().read() }
}

/// Tells that there is a heap of its own, all of whose blocks go at once with it.
pub fn heap_made(heap: usize) {
    ask(request::CREATE_MEMPOOL, [heap, 0, 0, 0]);
}

/// Tells that the heap, and every block of it, is gone.
pub fn heap_dropped(heap: usize) {
    ask(request::DESTROY_MEMPOOL, [heap, 0, 0, 0]);
}
