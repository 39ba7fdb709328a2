//! What the kernel is asked: binding threads, the node of each page, the policy of a range, resident pages by node.
//!
//! Invariant: nothing here relies on what the allocator believes; every figure is read from the kernel.

use std::io;

/// Bytes of a page on the machines that this runs on.
pub const PAGE: usize = 4096;

const MPOL_F_NODE: i32 = 1;
const MPOL_F_ADDR: i32 = 2;
/// The policy of a range that prefers a node.
pub const MPOL_PREFERRED: i32 = 1;

/// Lets the calling thread run on these processors only.
pub fn bind_thread(cpus: &[u32]) -> io::Result<()> {
    // SAFETY: all zeros is an empty set; processors above its size are ignored by the macro's function.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        cpus.iter().for_each(|&cpu| libc::CPU_SET(cpu as usize, &mut set));
        set
    };
    // SAFETY: the set is as long as said.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The node on which each page lies; a negative error number for one that is not there.
pub fn nodes_of(pages: &[usize]) -> io::Result<Vec<i32>> {
    let mut nodes = vec![i32::MIN; pages.len()];
    // SAFETY: both arrays are as long as said; without a list of destinations nothing moves.
    let answer = unsafe {
        let none = std::ptr::null::<i32>();
        libc::syscall(libc::SYS_move_pages, 0, pages.len(), pages.as_ptr(), none, nodes.as_mut_ptr(), 0)
    };
    if answer == 0 { Ok(nodes) } else { Err(io::Error::last_os_error()) }
}

/// The node on which the page at `address` lies, asked in another way.
pub fn node_of(address: usize) -> io::Result<i32> {
    get_mempolicy(address, MPOL_F_NODE | MPOL_F_ADDR).map(|(node, _)| node)
}

/// The policy of the range that holds `address`, and the first 64 nodes of its set.
pub fn policy_of(address: usize) -> io::Result<(i32, u64)> {
    get_mempolicy(address, MPOL_F_ADDR)
}

fn get_mempolicy(address: usize, flags: i32) -> io::Result<(i32, u64)> {
    let (mut number, mut mask) = (-1i32, [0u64; 16]);
    // SAFETY: the mask has as many bits as said.
    let answer = unsafe {
        libc::syscall(libc::SYS_get_mempolicy, &raw mut number, mask.as_mut_ptr(), 1024usize, address, flags)
    };
    if answer == 0 { Ok((number, mask[0])) } else { Err(io::Error::last_os_error()) }
}

/// Bytes of memory without a file that this process has on each node.
pub fn resident_by_node(nodes: usize) -> io::Result<Vec<usize>> {
    Ok(sum_by_node(&std::fs::read_to_string("/proc/self/numa_maps")?, nodes))
}

/// Adds up the words `N0=12` of lines about memory without a file.
fn sum_by_node(text: &str, nodes: usize) -> Vec<usize> {
    let mut bytes = vec![0; nodes];
    for line in text.lines().filter(|line| line.contains(" anon=") && !line.contains(" file=")) {
        let number = |word: &str, prefix: &str| word.strip_prefix(prefix)?.parse::<usize>().ok();
        let page =
            line.split(' ').find_map(|word| number(word, "kernelpagesize_kB=")).map_or(PAGE, |kib| kib << 10);
        for word in line.split(' ') {
            let Some((node, pages)) = word.strip_prefix('N').and_then(|rest| rest.split_once('=')) else {
                continue;
            };
            if let (Ok(node), Ok(pages)) = (node.parse::<usize>(), pages.parse::<usize>())
                && node < nodes
            {
                bytes[node] += pages * page;
            }
        }
    }
    bytes
}

/// Makes the first process of a machine that was started for this program: file systems to read from.
pub fn mount_what_is_read() -> io::Result<()> {
    for (kind, place) in [(c"proc", c"/proc"), (c"sysfs", c"/sys")] {
        // A folder that is there already is as good.
        let _ = std::fs::create_dir(place.to_str().expect("the names are ASCII"));
        // SAFETY: all are C strings; no data is passed.
        let done = unsafe { libc::mount(kind.as_ptr(), place.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Switches the machine off.
pub fn power_off() -> ! {
    // SAFETY: only for the first process of a machine of its own; what it would lose is nothing.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
    // A machine that cannot be switched off ends when its first process does.
    std::process::exit(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_added_up_by_node_and_page_size() {
        let text = "7f00 prefer:1 anon=3 dirty=3 active=0 N0=1 N1=2 kernelpagesize_kB=4\n\
                    7f10 default file=/bin/x anon=9 N0=9 kernelpagesize_kB=4\n\
                    7f20 default anon=1 dirty=1 N1=1 kernelpagesize_kB=2048\n7f30 default\n";
        assert_eq!(sum_by_node(text, 2), [4096, 2 * 4096 + (2 << 20)]);
    }

    #[test]
    fn a_touched_page_lies_where_both_calls_say() {
        let bytes = vec![1u8; 8 * PAGE];
        let page = (bytes.as_ptr().addr() + PAGE) & !(PAGE - 1);
        // A sandbox may forbid either call.
        if let (Ok(nodes), Ok(node)) = (nodes_of(&[page]), node_of(page)) {
            assert_eq!(nodes, [node]);
        }
    }
}
