//! Which processors and how much memory belong to which memory node: [`Topology`].
//!
//! Invariant: there is at least one node, nodes ascend by number, a processor belongs to at most one of them, and each
//! node knows its distance to every node, in the order of the nodes.
//!
//! The plain reading takes `/sys/devices/system/node`; with the feature `hwloc` the same facts can come from hwloc. A
//! synthetic topology is for tests of code that decides by nodes: it describes a machine that is not this one, so
//! nothing can be bound by it, and [`Topology::is_this_system`] says so.

#[cfg(feature = "hwloc")]
mod hwloc;
mod read;

use core::fmt;
use std::path::PathBuf;
use std::string::String;
use std::vec::Vec;

/// Distance of a node to itself, in the unit of firmware tables.
pub const LOCAL_DISTANCE: u32 = 10;
/// Distance between two nodes of which nothing more is known.
pub const REMOTE_DISTANCE: u32 = 20;

/// A memory node: memory, and the processors that are nearest to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// The system's number for it, as [`bind`](terrane_core::PageSource::bind) takes it.
    pub id: u32,
    /// The numbers of its processors, ascending. A node of memory alone has none.
    pub cpus: Vec<u32>,
    /// Memory of the node in bytes; 0 if it has none, or if the system does not say.
    pub memory_bytes: u64,
    /// The distance to each node of the topology, in its order; 10 is local, 20 is twice as far.
    pub distances: Vec<u32>,
}

/// The memory nodes of a machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topology {
    nodes: Vec<Node>,
    is_this_system: bool,
}

/// Why there is no topology.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TopologyError {
    /// A file of the system could not be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        kind: std::io::ErrorKind,
    },
    /// A file of the system holds something else than expected.
    Unexpected {
        /// The file.
        path: PathBuf,
        /// Its contents.
        text: String,
    },
    /// A description of a synthetic topology is not understood.
    BadDescription {
        /// The description.
        text: String,
    },
    /// The library that was asked did not answer.
    Library {
        /// What it said.
        text: String,
    },
}

impl fmt::Display for TopologyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, kind } => write!(f, "cannot read {}: {kind}", path.display()),
            Self::Unexpected { path, text } => {
                write!(f, "{} holds {text:?}, which is not expected there", path.display())
            }
            Self::BadDescription { text } => {
                write!(f, "{text:?} is not a topology; an example of one is \"2 nodes x 4 cpus\"")
            }
            Self::Library { text } => f.write_str(text),
        }
    }
}

impl core::error::Error for TopologyError {}

impl Topology {
    /// The nodes of this machine, as its kernel describes them; one node with all processors where it does not.
    pub fn system() -> Self {
        let read = cfg!(target_os = "linux").then(|| Self::read("/sys/devices/system/node".as_ref()));
        match read {
            Some(Ok(topology)) => Self { is_this_system: true, ..topology },
            _ => {
                let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
                Self { is_this_system: true, ..Self::uniform(1, cpus, 0) }
            }
        }
    }

    /// A machine that does not exist, as `"2 nodes x 4 cpus"` or `"4 nodes x 1 cpu x 512 MiB"` describes it. Every
    /// node is equally far from every other.
    ///
    /// ```
    /// use terrane_pages::Topology;
    ///
    /// let machine = Topology::synthetic("2 nodes x 4 cpus").unwrap();
    /// assert_eq!(machine.node_of_cpu(5), Some(1));
    /// assert!(!machine.is_this_system());
    /// ```
    ///
    /// # Errors
    /// [`TopologyError::BadDescription`], also for no nodes and for more than 1024 nodes or 65536 processors.
    pub fn synthetic(description: &str) -> Result<Self, TopologyError> {
        let parse = || {
            let mut parts = description.split('x').map(str::trim);
            let nodes = counted(parts.next()?, &["node", "nodes"])?;
            let cpus = counted(parts.next()?, &["cpu", "cpus"])?;
            let memory = match parts.next() {
                None => 0,
                Some(size) => ["KiB", "MiB", "GiB"]
                    .iter()
                    .zip([10, 20, 30])
                    .find_map(|(unit, shift)| u64::from(counted(size, &[unit])?).checked_shl(shift))?,
            };
            let sane = (1..=1024).contains(&nodes) && nodes.checked_mul(cpus)? <= 65_536;
            (sane && parts.next().is_none()).then(|| Self::uniform(nodes, cpus, memory))
        };
        parse().ok_or_else(|| TopologyError::BadDescription { text: description.into() })
    }

    fn uniform(nodes: u32, cpus: u32, memory_bytes: u64) -> Self {
        let node = |id| Node {
            id,
            cpus: (id * cpus..(id + 1) * cpus).collect(),
            memory_bytes,
            distances: (0..nodes)
                .map(|other| if other == id { LOCAL_DISTANCE } else { REMOTE_DISTANCE })
                .collect(),
        };
        Self { nodes: (0..nodes).map(node).collect(), is_this_system: false }
    }

    /// Whether this describes the machine that runs it, so that its nodes can be bound to.
    pub fn is_this_system(&self) -> bool {
        self.is_this_system
    }

    /// The nodes, by ascending number.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node with this number.
    pub fn node(&self, id: u32) -> Option<&Node> {
        self.place(id).map(|place| &self.nodes[place])
    }

    fn place(&self, id: u32) -> Option<usize> {
        self.nodes.binary_search_by_key(&id, |node| node.id).ok()
    }

    /// The number of the node to which a processor belongs.
    pub fn node_of_cpu(&self, cpu: u32) -> Option<u32> {
        self.nodes.iter().find(|node| node.cpus.binary_search(&cpu).is_ok()).map(|node| node.id)
    }

    /// How far memory of `to` is from processors of `from`; 10 is local.
    pub fn distance(&self, from: u32, to: u32) -> Option<u32> {
        self.node(from)?.distances.get(self.place(to)?).copied()
    }

    /// The numbers of all nodes, the nearest to `from` first; `from` itself leads. Empty if there is no such node.
    pub fn nearest_first(&self, from: u32) -> Vec<u32> {
        let Some(node) = self.node(from) else { return Vec::new() };
        let mut ids: Vec<(u32, u32)> =
            node.distances.iter().zip(&self.nodes).map(|(&far, other)| (far, other.id)).collect();
        ids.sort_by_key(|&(far, id)| (id != from, far, id));
        ids.into_iter().map(|(_, id)| id).collect()
    }
}

/// The number in `"4 cpus"`.
fn counted(text: &str, units: &[&str]) -> Option<u32> {
    let (count, unit) = text.split_once(' ')?;
    units.contains(&unit.trim()).then(|| crate::list::number(count.as_bytes()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synthetic_machines_have_what_was_described() {
        let machine = Topology::synthetic("2 nodes x 4 cpus").unwrap();
        assert_eq!(machine.nodes().len(), 2);
        assert_eq!(machine.nodes()[1].cpus, [4, 5, 6, 7]);
        assert_eq!(machine.node_of_cpu(3), Some(0));
        assert_eq!(machine.node_of_cpu(8), None);
        assert_eq!(machine.distance(0, 1), Some(REMOTE_DISTANCE));
        assert_eq!(machine.distance(1, 1), Some(LOCAL_DISTANCE));
        let machine = Topology::synthetic("1 node x 1 cpu x 512 MiB").unwrap();
        assert_eq!(machine.nodes()[0].memory_bytes, 512 << 20);
    }

    #[test]
    fn descriptions_that_make_no_sense_are_errors() {
        for text in
            ["", "2", "2 nodes", "2 nodes x", "0 nodes x 4 cpus", "2 cpus x 4 nodes", "-1 nodes x 1 cpus"]
                .into_iter()
                .chain(["2 nodes x 4 cpus x", "2 nodes x 4 cpus x 1 TB", "1 node x 1 cpu x 1 MiB x 1"])
                .chain(["2000 nodes x 1 cpu", "2 nodes x 4294967295 cpus"])
        {
            let error = Topology::synthetic(text).unwrap_err();
            assert_eq!(error, TopologyError::BadDescription { text: text.into() });
        }
    }

    #[test]
    fn the_nearest_nodes_come_first() {
        let mut machine = Topology::synthetic("4 nodes x 1 cpu").unwrap();
        machine.nodes[2].distances = [31, 12, 10, 10].into();
        assert_eq!(machine.nearest_first(2), [2, 3, 1, 0]);
        assert_eq!(machine.nearest_first(0), [0, 1, 2, 3]);
        assert!(machine.nearest_first(4).is_empty());
    }

    #[test]
    fn this_machine_knows_the_processor_that_runs_this() {
        let machine = Topology::system();
        assert!(machine.is_this_system());
        let cpu = crate::numa::current_cpu().unwrap() as u32;
        let node = machine.node_of_cpu(cpu).expect("the kernel lists the processor that runs this");
        assert_eq!(machine.nearest_first(node)[0], node);
        assert!(node < crate::numa::node_count());
    }
}
