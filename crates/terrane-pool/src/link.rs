//! Intrusive lists of idle objects: [`Link`], [`List`].
//!
//! Invariant: a link is in at most one list, and only whoever holds the list reads or writes the links in it. A list knows its
//! own length, so it changes hands as a whole without being walked.

use core::ptr;
use terrane_core::sync::cell::UnsafeCell;

/// What one idle object is linked by: the first field of a pool's node.
#[derive(Debug)]
#[repr(C)]
pub struct Link {
    next: UnsafeCell<*mut Link>,
    /// Meaningful in the first link of a list that lies in a [`Depot`](crate::depot::Depot).
    batch: UnsafeCell<Batch>,
}

#[derive(Clone, Copy, Debug)]
struct Batch {
    below: *mut Link,
    count: u32,
}

impl Link {
    /// A link that is in no list.
    pub fn new() -> Self {
        let batch = Batch { below: ptr::null_mut(), count: 0 };
        Self { next: UnsafeCell::new(ptr::null_mut()), batch: UnsafeCell::new(batch) }
    }

    /// # Safety
    /// The link is live and the caller's.
    pub(crate) unsafe fn set_batch(this: *mut Self, below: *mut Self, count: u32) {
        // SAFETY: the link is the caller's.
        unsafe { (*this).batch.with_mut(|batch| *batch = Batch { below, count }) }
    }

    /// The list below, and the length of the list that begins here.
    ///
    /// # Safety
    /// The link is live and the caller's, and its batch was set.
    pub(crate) unsafe fn batch(this: *mut Self) -> (*mut Self, u32) {
        // SAFETY: the link is the caller's.
        unsafe { (*this).batch.with(|batch| ((*batch).below, (*batch).count)) }
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
    pub(crate) head: *mut Link,
    pub(crate) count: u32,
}

impl List {
    /// A list of nothing.
    pub const fn empty() -> Self {
        Self { head: ptr::null_mut(), count: 0 }
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
        unsafe { (*link).next.with_mut(|next| *next = self.head) };
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
        self.head = unsafe { (*head).next.with(|next| *next) };
        self.count -= 1;
        Some(head)
    }

    /// Takes the whole list and leaves an empty one.
    pub const fn take(&mut self) -> Self {
        core::mem::replace(self, Self::empty())
    }
}
