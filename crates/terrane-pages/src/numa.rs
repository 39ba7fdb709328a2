//! Memory nodes: where the calling thread runs.

use crate::sys;

/// The processor on which the calling thread runs just now, if the system says.
pub fn current_cpu() -> Option<usize> {
    sys::current_cpu()
}

/// The memory node of the processor on which the calling thread runs just now, if the system says. A system call.
pub fn current_node() -> Option<u32> {
    sys::current_node()
}

/// What the system does about transparent huge pages, read now.
pub fn transparent_huge_pages() -> sys::TransparentHugePages {
    sys::transparent_huge_pages()
}
