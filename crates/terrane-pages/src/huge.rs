//! Huge pages as a policy: [`HugePages`].

use crate::sys;
pub use crate::sys::TransparentHugePages;

/// Which pages an [`Mmap`](crate::Mmap) asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HugePages {
    /// Base pages only: advice to use huge pages is answered `Unsupported`, and where the system gives them to
    /// everyone, reservations refuse them.
    Off,
    /// Huge pages where the user of the source knows a range to be densely used and says so with
    /// [`advise_huge`](terrane_core::PageSource::advise_huge).
    #[default]
    WhenDense,
    /// Huge pages that an administrator has set aside (hugetlb), and where there are too few of them, base pages
    /// aligned and advised so that they can become huge. The source's page is then a huge page.
    Explicit,
}

/// What the system does about transparent huge pages, read now.
pub fn transparent_huge_pages() -> TransparentHugePages {
    sys::transparent_huge_pages()
}
