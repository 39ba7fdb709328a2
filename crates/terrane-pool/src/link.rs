//! Intrusive lists of idle objects: [`Link`], [`List`].
//!
//! Invariant: a link is in at most one list, and only whoever holds the list reads or writes the links in it. A list knows its
//! last link, so it is put onto others without being walked; whoever takes it over walks it once, and so finds its length.

use core::ptr;
use terrane_core::sync::cell::UnsafeCell;

/// What one idle object is linked by: the first field of a pool's node, and all that a node costs beside its object.
///
/// | bits | meaning |
/// |---|---|
/// | 0 | this is the last link of its list, and the list lies in a depot |
/// | 1.. | address of the next link, or in that last one of the list below; zero if there is none |
#[derive(Debug)]
#[repr(C)]
pub struct Link {
    next: UnsafeCell<*mut Link>,
}

const LAST: usize = 1;
const _: () = assert!(align_of::<Link>() > LAST);

impl Link {
    /// A link that is in no list.
    pub fn new() -> Self {
        Self { next: UnsafeCell::new(ptr::null_mut()) }
    }

    /// # Safety
    /// The link is live and the caller's.
    #[inline(always)]
    pub(crate) unsafe fn set_next(this: *mut Self, to: *mut Self) {
        // SAFETY: the link is the caller's.
        unsafe { (*this).next.with_mut(|next| *next = to) };
    }

    /// # Safety
    /// The link is live and the caller's.
    #[inline(always)]
    pub(crate) unsafe fn next(this: *mut Self) -> *mut Self {
        // SAFETY: the link is the caller's.
        unsafe { (*this).next.with(|next| *next) }
    }
}

impl Default for Link {
    fn default() -> Self {
        Self::new()
    }
}

/// A list of idle objects, last in, first out.
#[derive(Debug)]
pub struct List {
    head: *mut Link,
    /// Meaningful unless the list is empty.
    tail: *mut Link,
    count: u32,
}

impl List {
    /// A list of nothing.
    pub const fn empty() -> Self {
        Self { head: ptr::null_mut(), tail: ptr::null_mut(), count: 0 }
    }

    /// Objects in the list.
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// Puts `link` on top.
    ///
    /// # Safety
    /// The link is live, in no list, and the caller's; it stays valid while it is listed.
    #[inline(always)]
    pub unsafe fn push(&mut self, link: *mut Link) {
        // SAFETY: the link is the caller's.
        unsafe { Link::set_next(link, self.head) };
        if self.head.is_null() {
            self.tail = link;
        }
        self.head = link;
        self.count += 1;
    }

    /// Takes the top.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<*mut Link> {
        let head = self.head;
        if head.is_null() {
            return None;
        }
        // SAFETY: links of the list are its holder's.
        self.head = unsafe { Link::next(head) };
        self.count -= 1;
        Some(head)
    }

    /// Takes the whole list and leaves an empty one.
    pub const fn take(&mut self) -> Self {
        core::mem::replace(self, Self::empty())
    }
    /// Makes one word of the list, with `below` behind its last link. May be done again with another `below`, until the word is
    /// given away.
    pub(crate) fn onto(&self, below: *mut Link) -> *mut Link {
        debug_assert!(!self.is_empty());
        // SAFETY: links of the list are its holder's.
        unsafe { Link::set_next(self.tail, below.map_addr(|address| address | LAST)) };
        self.head
    }

    /// The list that [`onto`](Self::onto) made `head` of, and what is below it. Walks the list.
    ///
    /// # Safety
    /// The word is used up by this.
    pub(crate) unsafe fn off(head: *mut Link) -> (Self, *mut Link) {
        let (mut tail, mut count) = (head, 1);
        loop {
            // SAFETY: links of the list are its holder's.
            let next = unsafe { Link::next(tail) };
            if next.addr() & LAST != 0 {
                // SAFETY: as above.
                unsafe { Link::set_next(tail, ptr::null_mut()) };
                return (Self { head, tail, count }, next.map_addr(|address| address & !LAST));
            }
            (tail, count) = (next, count + 1);
        }
    }
}
