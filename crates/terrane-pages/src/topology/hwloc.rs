//! The same facts through hwloc.

use super::{LOCAL_DISTANCE, Node, REMOTE_DISTANCE, Topology, TopologyError};
use hwlocality::object::TopologyObject;
use hwlocality::object::attributes::ObjectAttributes;
use hwlocality::object::distance::DistancesKind;
use hwlocality::object::types::ObjectType;
use std::string::ToString;
use std::vec::Vec;

fn failed(what: impl ToString) -> TopologyError {
    TopologyError::Library { text: what.to_string() }
}

impl Topology {
    /// The nodes of this machine as hwloc finds them.
    ///
    /// # Errors
    /// [`TopologyError::Library`]; also when hwloc, told by its environment variables, describes another machine.
    pub fn from_hwloc() -> Result<Self, TopologyError> {
        let found = hwlocality::Topology::new().map_err(failed)?;
        if !found.is_this_system() {
            return Err(failed("hwloc describes another machine than this one"));
        }
        Self::convert(&found)
    }

    /// A machine that does not exist, in hwloc's own notation, such as `"NUMANode:2 core:4 pu:1"`.
    ///
    /// hwloc's binding calls on such a topology succeed and bind nothing; [`is_this_system`](Self::is_this_system)
    /// answers `false` for it.
    ///
    /// # Errors
    /// [`TopologyError::Library`]
    pub fn from_hwloc_synthetic(description: &str) -> Result<Self, TopologyError> {
        let builder = hwlocality::Topology::builder().from_synthetic(description).map_err(failed)?;
        Self::convert(&builder.build().map_err(failed)?)
    }

    fn convert(found: &hwlocality::Topology) -> Result<Self, TopologyError> {
        let mut objects: Vec<(u32, &TopologyObject)> = found
            .objects_with_type(ObjectType::NUMANode)
            .filter_map(|object| Some((u32::try_from(object.os_index()?).ok()?, object)))
            .collect();
        objects.sort_by_key(|&(id, _)| id);
        if objects.is_empty() {
            return Err(failed("hwloc found no memory node"));
        }
        let latencies = found
            .distances_with_type(Some(DistancesKind::MEANS_LATENCY), ObjectType::NUMANode)
            .unwrap_or_default();
        let distance = |from: usize, to: usize| {
            let known = latencies
                .first()
                .and_then(|matrix| matrix.object_pair_distance((objects[from].1, objects[to].1)))
                .and_then(|(there, _)| u32::try_from(there).ok());
            known.unwrap_or(if from == to { LOCAL_DISTANCE } else { REMOTE_DISTANCE })
        };
        let node = |place: usize| {
            let (id, object) = objects[place];
            let memory = match object.attributes() {
                Some(ObjectAttributes::NUMANode(memory)) => {
                    memory.local_memory().map_or(0, |bytes| bytes.get())
                }
                _ => 0,
            };
            let cpus = object.cpuset().map_or_else(Vec::new, |set| {
                set.into_iter().filter_map(|cpu| u32::try_from(usize::from(cpu)).ok()).collect()
            });
            Node {
                id,
                cpus,
                memory_bytes: memory,
                distances: (0..objects.len()).map(|to| distance(place, to)).collect(),
            }
        };
        Ok(Self { nodes: (0..objects.len()).map(node).collect(), is_this_system: found.is_this_system() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hwloc_and_the_plain_reading_agree_on_this_machine() {
        let (plain, through) = (Topology::system(), Topology::from_hwloc().unwrap());
        assert!(through.is_this_system());
        let ids = |machine: &Topology| machine.nodes().iter().map(|node| node.id).collect::<Vec<_>>();
        assert_eq!(ids(&plain), ids(&through));
        let cpu = crate::numa::current_cpu().unwrap() as u32;
        assert_eq!(plain.node_of_cpu(cpu), through.node_of_cpu(cpu));
    }

    #[test]
    fn a_synthetic_machine_is_not_this_system() {
        let machine = Topology::from_hwloc_synthetic("NUMANode:2 core:4 pu:1").unwrap();
        assert!(!machine.is_this_system());
        assert_eq!(machine.nodes().len(), 2);
        assert_eq!(machine.nodes()[1].cpus, [4, 5, 6, 7]);
        assert_eq!(machine.distance(0, 0), Some(LOCAL_DISTANCE));
        assert!(machine.distance(0, 1).unwrap() > LOCAL_DISTANCE);
    }

    #[test]
    fn a_description_that_hwloc_does_not_understand_is_an_error() {
        assert!(matches!(
            Topology::from_hwloc_synthetic("two nodes").unwrap_err(),
            TopologyError::Library { text } if !text.is_empty()
        ));
    }
}
