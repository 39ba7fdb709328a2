//! Where pages really lie: for each node of this machine, pages are reserved for it, touched, and their node is read
//! back from the kernel. Ends with 1 if one lies elsewhere.
//!
//! `cargo run --example numa_placement`

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use terrane_core::Source;
    use terrane_pages::{Mmap, NodeChoice, Numa, Topology, page_size};

    const PAGES: usize = 64;

    /// The node of each page, as `move_pages` without a destination tells it.
    fn nodes_of(start: *mut u8) -> Option<Vec<i32>> {
        let places: Vec<*mut u8> = (0..PAGES).map(|page| start.wrapping_add(page * page_size())).collect();
        let mut nodes = vec![-1i32; PAGES];
        let none = std::ptr::null::<i32>();
        // SAFETY: both arrays have `PAGES` entries; without a destination nothing moves.
        let answer = unsafe {
            libc::syscall(libc::SYS_move_pages, 0, PAGES, places.as_ptr(), none, nodes.as_mut_ptr(), 0)
        };
        (answer == 0).then_some(nodes)
    }

    let topology = Topology::system();
    let mut is_right = true;
    for node in topology.nodes() {
        println!(
            "node {}: processors {:?}, {} MiB, distances {:?}",
            node.id,
            node.cpus,
            node.memory_bytes >> 20,
            node.distances
        );
        let choices = [("fixed", NodeChoice::Node(node.id)), ("local", NodeChoice::Local)];
        for (name, choice) in choices {
            let wanted = match choice {
                NodeChoice::Local => terrane_pages::numa::current_node(),
                _ => Some(node.id),
            };
            let source = Numa::new(Mmap::new(), choice);
            let Ok(extent) = source.acquire((PAGES * page_size()) as u64, 1) else {
                println!("  {name}: no memory");
                is_right = false;
                continue;
            };
            // SAFETY: inside the extent.
            unsafe { extent.as_ptr().write_bytes(1, PAGES * page_size()) };
            match nodes_of(extent.as_ptr()) {
                Some(nodes) => {
                    let there = nodes.iter().filter(|&&found| u32::try_from(found).ok() == wanted).count();
                    println!("  {name}: {there} of {PAGES} pages on node {wanted:?}");
                    is_right &= there == PAGES;
                }
                None => println!("  {name}: the kernel does not say where pages lie"),
            }
            // SAFETY: nothing uses it.
            is_right &= unsafe { source.release(extent) }.is_ok();
        }
    }
    std::process::ExitCode::from(u8::from(!is_right))
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("only Linux says where pages lie");
}
