//! Pages from the program break: [`Sbrk`].
//!
//! Invariant: the process's break is shared with strangers, so what this source owns is a list of grounds, not one
//! range. Every byte between two addresses that this source got from `sbrk` is lent out, or lies in exactly one free
//! span. Free spans are whole pages, ascending, never touching one another, and read as zero except for the header at
//! their start:
//!
//! ```text
//!   stranger | lent | free span: Span{len, next} 0 0 0 … | lent | stranger's | lent | free … | <- break
//!                                             |                                        ^
//!                                             +----------------------------------------+
//! ```
//!
//! Protocol: a reservation takes the first free span that fits, otherwise it moves the break up, from the end of the
//! last free span where that ends at the break. A release drops the pages' memory, joins the range with its neighbours
//! among the free spans, and moves the break down if the last span ends at it. The break is read before it is moved:
//! when a stranger has moved it, the new ground simply starts where the stranger stopped, and nothing below a
//! stranger's ground is ever given back.

use crate::lock::Lock;
use crate::page::{is_paged, page_size};
use crate::sys;
use core::mem::size_of;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use terrane_core::{
    Contents, Decommit, Extent, Geometry, HostMapped, PageSource, ReleaseError, Source, SourceError,
};

/// Host pages from the program break (`sbrk`); on WebAssembly, from the end of the linear memory.
///
/// Reserved pages are committed pages here: a commit does nothing, and costs nothing. A decommit drops the memory and
/// keeps the addresses. Released ranges are handed out again; those at the break go back to the system.
///
/// Other users of `sbrk` in the process are survived, wherever they move the break upwards, and however often. Two
/// things are beyond any user of `sbrk`: a stranger that lowers the break into ground that is not its own, and a
/// stranger that calls `sbrk` in another thread at the same instant (the C library does not make the call atomic).
///
/// ```
/// use terrane_core::Source;
/// use terrane_pages::Sbrk;
///
/// static PAGES: Sbrk = Sbrk::new();
///
/// let extent = PAGES.acquire(1 << 20, 1 << 16).unwrap();
/// assert_eq!(extent.address() % (1 << 16), 0);
/// // SAFETY: the extent came from this source and nothing uses it.
/// unsafe { PAGES.release(extent) }.unwrap();
/// ```
#[derive(Debug)]
pub struct Sbrk {
    ground: Lock<Ground>,
}

/// What this source has of the break.
#[derive(Debug)]
struct Ground {
    /// Address of the first free span; 0 where there is none.
    free: usize,
    /// Bytes lent out.
    lent: usize,
    /// Bytes in free spans.
    idle: usize,
}

/// The header of a free span, in its first bytes.
#[derive(Clone, Copy)]
struct Span {
    /// Bytes in the span.
    len: usize,
    /// Address of the next span; 0 after the last.
    next: usize,
}

const _: () = assert!(size_of::<Span>() <= 64);

impl Default for Sbrk {
    fn default() -> Self {
        Self::new()
    }
}

/// How often a reservation begins anew because a stranger moved the break between two of its calls.
const ATTEMPTS: usize = 16;

impl Sbrk {
    /// A source that owns nothing yet.
    pub const fn new() -> Self {
        Self { ground: Lock::new(Ground { free: 0, lent: 0, idle: 0 }) }
    }

    /// Bytes lent out now.
    pub fn lent_bytes(&self) -> usize {
        self.ground.lock().lent
    }

    /// Bytes that were released but lie below other ground, and wait to be lent again.
    pub fn idle_bytes(&self) -> usize {
        self.ground.lock().idle
    }

    /// Waits until no other thread is inside, and keeps others out. For a handler that runs before a fork: the child
    /// would otherwise find the lock of a thread that it does not have.
    pub fn before_fork(&self) {
        self.ground.enter();
    }

    /// Lets others in again, after a fork, in the parent and in the child.
    ///
    /// # Safety
    /// Follows a [`before_fork`](Self::before_fork) of the same thread, or of the thread that the child copied.
    pub unsafe fn after_fork(&self) {
        // SAFETY: promised by the caller.
        unsafe { self.ground.leave() };
    }
}

impl Ground {
    /// # Safety
    /// `at` is the address of a free span.
    unsafe fn span(at: usize) -> Span {
        // SAFETY: a free span begins with its header.
        unsafe { with_exposed_provenance_mut::<Span>(at).read() }
    }

    /// # Safety
    /// The page at `at` belongs to a free span, or is about to.
    unsafe fn put(at: usize, span: Span) {
        // SAFETY: pages of free spans are ours and accessible, and larger than a header.
        unsafe { with_exposed_provenance_mut::<Span>(at).write(span) };
    }

    /// Makes a span's header read as zero, like the rest of it.
    ///
    /// # Safety
    /// As for [`put`](Self::put).
    unsafe fn wipe(at: usize) {
        // SAFETY: as for `put`.
        unsafe { Self::put(at, Span { len: 0, next: 0 }) };
    }

    /// Makes the link that leads to the span after `before` (0: the first one) lead to `next`.
    ///
    /// # Safety
    /// `before` is 0 or the address of a free span.
    unsafe fn link(&mut self, before: usize, next: usize) {
        if before == 0 {
            self.free = next;
        } else {
            // SAFETY: promised by the caller.
            unsafe { Self::put(before, Span { next, ..Self::span(before) }) };
        }
    }

    /// Takes `len` zeroed bytes at a multiple of `align` out of the free spans.
    fn take(&mut self, len: usize, align: usize) -> Option<usize> {
        let (mut before, mut at) = (0, self.free);
        while at != 0 {
            // SAFETY: `at` came from a link.
            let span = unsafe { Self::span(at) };
            let end = at + span.len;
            let start = at.checked_next_multiple_of(align)?;
            if start < end && end - start >= len {
                // SAFETY: the header goes, and the parts before and after the taken range become spans in its place.
                unsafe {
                    Self::wipe(at);
                    let mut next = span.next;
                    if start + len < end {
                        Self::put(start + len, Span { len: end - (start + len), next });
                        next = start + len;
                    }
                    if at < start {
                        Self::put(at, Span { len: start - at, next });
                        next = at;
                    }
                    self.link(before, next);
                }
                self.idle -= len;
                return Some(start);
            }
            (before, at) = (at, span.next);
        }
        None
    }

    /// Adds zeroed pages to the free spans.
    ///
    /// # Safety
    /// The range is ours, lent to nobody, and in no span.
    unsafe fn give(&mut self, start: usize, len: usize) {
        let (mut before, mut after) = (0, self.free);
        while after != 0 && after < start {
            // SAFETY: `after` came from a link.
            (before, after) = (after, unsafe { Self::span(after) }.next);
        }
        self.idle += len;
        let mut span = Span { len, next: after };
        // SAFETY: `before` and `after` are free spans or 0; joined headers are wiped.
        unsafe {
            if after != 0 && start + len == after {
                let joined = Self::span(after);
                Self::wipe(after);
                span = Span { len: len + joined.len, next: joined.next };
            }
            if before != 0 && before + Self::span(before).len == start {
                let len = Self::span(before).len + span.len;
                Self::put(before, Span { len, next: span.next });
            } else {
                Self::put(start, span);
                self.link(before, start);
            }
        }
    }

    /// The last free span and the one before it.
    fn last(&self) -> Option<(usize, usize)> {
        let (mut before, mut at) = (0, self.free);
        loop {
            // SAFETY: `at` came from a link.
            match (at != 0).then(|| unsafe { Self::span(at) }.next) {
                None => return None,
                Some(0) => return Some((before, at)),
                Some(next) => (before, at) = (at, next),
            }
        }
    }

    /// Moves the break up until there is a free range of `len` bytes at a multiple of `align`, and takes it.
    fn grow(&mut self, len: usize, align: usize) -> Result<usize, SourceError> {
        let refused = SourceError::OutOfMemory { requested: len as u64 };
        for _ in 0..ATTEMPTS {
            let top = sys::break_now()?;
            // The last free span is of use if the break has not moved away from its end.
            let from = match self.last() {
                // SAFETY: a free span.
                Some((_, at)) if at + unsafe { Self::span(at) }.len == top => at,
                _ => top.checked_next_multiple_of(page_size()).ok_or(refused)?,
            };
            let start = from.checked_next_multiple_of(align).ok_or(refused)?;
            let end = start.checked_add(len).ok_or(refused)?;
            let Ok(delta) = isize::try_from(end - top) else { return Err(refused) };
            // SAFETY: an upward move harms nobody.
            let old = unsafe { sys::break_move(delta) }?;
            // What came is ours wherever it lies; a stranger may have moved the break since it was read.
            let first = old.next_multiple_of(page_size());
            let past = (old + delta as usize) & !(page_size() - 1);
            if first < past {
                // SAFETY: new ground, zeroed by the system.
                unsafe { self.give(first, past - first) };
            }
            if let Some(start) = self.take(len, align) {
                return Ok(start);
            }
        }
        Err(refused)
    }

    /// Gives the last free span back to the system if it ends at the break.
    fn shrink(&mut self) {
        let Some((before, at)) = self.last() else { return };
        // SAFETY: a free span.
        let Span { len, next } = unsafe { Self::span(at) };
        if sys::break_now() != Ok(at + len) {
            return;
        }
        // SAFETY: the memory above the new break is the span, which nobody uses. It is not read after it is gone.
        unsafe {
            if sys::break_move(-(len as isize)).is_ok() {
                self.link(before, next);
                self.idle -= len;
            }
        }
    }
}

// SAFETY: lent ranges come from `Ground::take`, which removes them from the free spans; `sbrk` hands out each address
// once until it is given back, and only free spans at the break are given back.
unsafe impl Source for Sbrk {
    fn geometry(&self) -> Geometry {
        let page = page_size();
        Geometry {
            granule: page as u64,
            max_align: 1 << (usize::BITS - if usize::BITS > 32 { 20 } else { 2 }),
            max_len: (isize::MAX as usize & !(page - 1)) as u64,
            zeroed: true,
        }
    }

    fn acquire(&self, len: u64, align: u64) -> Result<Extent, SourceError> {
        self.geometry().check(len, align)?;
        let (len, align) = (len as usize, (align as usize).max(page_size()));
        let mut ground = self.ground.lock();
        let start = match ground.take(len, align) {
            Some(start) => start,
            None => ground.grow(len, align)?,
        };
        ground.lent += len;
        // SAFETY: taken from the free spans above.
        Ok(unsafe { Extent::from_raw(start as u64, len as u64, 0) })
    }

    unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
        let (address, len) = (extent.address() as usize, extent.len() as usize);
        let Some(start) = NonNull::new(extent.as_ptr()) else {
            return Err(ReleaseError { extent, cause: SourceError::Unsupported });
        };
        let mut ground = self.ground.lock();
        // SAFETY: the extent was lent, so its pages are ours; nothing uses them any more. Free spans read as zero.
        unsafe {
            if sys::discard(start, len).is_err() {
                start.write_bytes(0, len);
            }
            ground.give(address, len);
        }
        ground.lent -= len;
        ground.shrink();
        let _ = extent.into_raw();
        Ok(())
    }

    fn host_mapped(&self) -> Option<&dyn HostMapped> {
        Some(self)
    }
}

impl HostMapped for Sbrk {
    fn host_ptr(&self, extent: &Extent) -> NonNull<u8> {
        // No extent lies at address 0.
        NonNull::new(extent.as_ptr()).unwrap_or(NonNull::dangling())
    }
}

// SAFETY: all pages below the break are accessible. Zero is answered only where the system has dropped the pages.
unsafe impl PageSource for Sbrk {
    fn page_size(&self) -> usize {
        page_size()
    }

    fn reserve(&self, len: usize, align: usize) -> Result<Extent, SourceError> {
        self.acquire(len as u64, align as u64)
    }

    unsafe fn commit(&self, start: NonNull<u8>, len: usize) -> Result<Contents, SourceError> {
        debug_assert!(is_paged(start.addr().get(), len, page_size()));
        Ok(Contents::Unspecified)
    }

    unsafe fn decommit(
        &self,
        start: NonNull<u8>,
        len: usize,
        how: Decommit,
    ) -> Result<Contents, SourceError> {
        debug_assert!(is_paged(start.addr().get(), len, page_size()));
        // SAFETY: the range is lent, so it is ours, and its contents are not needed.
        let dropped = unsafe {
            match how {
                Decommit::Now => sys::discard(start, len).map(|()| true),
                Decommit::Lazy => sys::discard_lazily(start, len),
            }
        }?;
        Ok(if dropped { Contents::Zero } else { Contents::Unspecified })
    }

    unsafe fn populate(&self, start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
        // SAFETY: the range is lent and accessible.
        unsafe { sys::populate(start, len) }
    }

    unsafe fn advise_huge(&self, start: NonNull<u8>, len: usize, huge: bool) -> Result<(), SourceError> {
        // SAFETY: the range is lent.
        unsafe { sys::advise_huge(start, len, huge) }
    }

    unsafe fn bind(&self, start: NonNull<u8>, len: usize, node: u32) -> Result<(), SourceError> {
        // SAFETY: the range is lent.
        unsafe { sys::bind(start, len, node) }
    }
}
