//! The plain reading of the kernel's files.

use super::{LOCAL_DISTANCE, Node, REMOTE_DISTANCE, Topology, TopologyError};
use crate::list::{number, ranges};
use std::borrow::ToOwned;
use std::format;
use std::fs;
use std::path::Path;
use std::string::String;
use std::vec::Vec;

fn text_of(path: &Path) -> Result<String, TopologyError> {
    fs::read_to_string(path)
        .map_err(|error| TopologyError::Unreadable { path: path.to_owned(), kind: error.kind() })
}

fn numbers(path: &Path, may_be_empty: bool) -> Result<Vec<u32>, TopologyError> {
    let text = text_of(path)?;
    let list: Vec<u32> = ranges(text.as_bytes()).flat_map(|(first, last)| first..=last).collect();
    let is_whole = ranges(text.as_bytes()).count() == text.trim().split(',').count();
    let is_empty = text.trim().is_empty();
    if (is_empty && may_be_empty) || (!is_empty && is_whole) {
        return Ok(list);
    }
    Err(TopologyError::Unexpected { path: path.to_owned(), text })
}

impl Topology {
    /// Reads a folder as Linux offers it at `/sys/devices/system/node`: the files `online`, `nodeN/cpulist`,
    /// `nodeN/meminfo` and `nodeN/distance`. The last two may be missing. Wherever the folder lies, the result is not
    /// taken for this system.
    ///
    /// # Errors
    /// A file that cannot be read, or holds something else.
    pub fn read(folder: &Path) -> Result<Self, TopologyError> {
        let online = folder.join("online");
        let ids = numbers(&online, false)?;
        let mut nodes = Vec::new();
        for (place, &id) in ids.iter().enumerate() {
            let folder = folder.join(format!("node{id}"));
            let mut cpus = numbers(&folder.join("cpulist"), true)?;
            cpus.sort_unstable();
            nodes.push(Node {
                id,
                cpus,
                memory_bytes: memory(&folder),
                distances: distances(&folder, place, ids.len())?,
            });
        }
        nodes.sort_by_key(|node| node.id);
        Ok(Self { nodes, is_this_system: false })
    }
}

/// From a line such as `Node 0 MemTotal:  12019916 kB`.
fn memory(folder: &Path) -> u64 {
    let find = || {
        let text = text_of(&folder.join("meminfo")).ok()?;
        let line = text.lines().find(|line| line.contains("MemTotal:"))?;
        line.split_whitespace().nth_back(1)?.parse::<u64>().ok()?.checked_mul(1024)
    };
    find().unwrap_or(0)
}

fn distances(folder: &Path, place: usize, nodes: usize) -> Result<Vec<u32>, TopologyError> {
    let path = folder.join("distance");
    let Ok(text) = text_of(&path) else {
        return Ok((0..nodes)
            .map(|other| if other == place { LOCAL_DISTANCE } else { REMOTE_DISTANCE })
            .collect());
    };
    let read: Option<Vec<u32>> = text.split_whitespace().map(|word| number(word.as_bytes())).collect();
    read.filter(|read| read.len() == nodes).ok_or(TopologyError::Unexpected { path, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A folder in the shape of the kernel's, gone when dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("terrane-topology-{}-{name}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_machine_with_a_hole_in_its_numbers_and_a_node_of_memory_alone() {
        let folder = Folder::new(
            "hole",
            &[
                ("online", "0,2-3\n"),
                ("node0/cpulist", "0-1,8\n"),
                ("node0/meminfo", "\nNode 0 MemTotal:       1024 kB\nNode 0 MemFree: 5 kB\n"),
                ("node0/distance", "10 21 31\n"),
                ("node2/cpulist", "2-7\n"),
                ("node2/distance", "21 10 41\n"),
                ("node3/cpulist", "\n"),
                ("node3/meminfo", "Node 3 MemTotal: 2048 kB\n"),
            ],
        );
        let machine = Topology::read(&folder.0).unwrap();
        let node = |id, cpus: &[u32], memory_bytes, distances: [u32; 3]| Node {
            id,
            cpus: cpus.to_vec(),
            memory_bytes,
            distances: distances.to_vec(),
        };
        assert_eq!(
            machine.nodes(),
            [
                node(0, &[0, 1, 8], 1 << 20, [10, 21, 31]),
                node(2, &[2, 3, 4, 5, 6, 7], 0, [21, 10, 41]),
                node(3, &[], 2 << 20, [20, 20, 10]),
            ]
        );
        assert_eq!(machine.distance(2, 3), Some(41));
        assert_eq!(machine.node_of_cpu(8), Some(0));
        assert!(!machine.is_this_system());
    }

    #[test]
    fn files_that_hold_something_else_are_named() {
        let folder = Folder::new(
            "odd",
            &[("online", "0\n"), ("node0/cpulist", "0-1\n"), ("node0/distance", "10 20\n")],
        );
        let path = folder.0.join("node0/distance");
        assert_eq!(
            Topology::read(&folder.0).unwrap_err(),
            TopologyError::Unexpected { path, text: "10 20\n".into() }
        );
        let folder = Folder::new("odder", &[("online", "0-x\n")]);
        let path = folder.0.join("online");
        assert_eq!(
            Topology::read(&folder.0).unwrap_err(),
            TopologyError::Unexpected { path, text: "0-x\n".into() }
        );
        let missing = folder.0.join("missing");
        let kind = std::io::ErrorKind::NotFound;
        assert_eq!(
            Topology::read(&missing).unwrap_err(),
            TopologyError::Unreadable { path: missing.join("online"), kind }
        );
    }
}
