//! Vacated spans that wait, unmerged, for a request of the same length.
//!
//! Invariants: the first `count` records of a slot wait, and no other does; `count` of all is their number and at most
//! [`MOST`], `units` their length. A slot is `missed` if a request has taken one of its records since the cursor came by.
//!
//! Protocol: a span waits in the slot of its length's class, the last one in is the first out. The cursor goes round the
//! slots, one for each call, and gives up the oldest record of a slot that is not missed.

use crate::node::Node;

/// Slots; as the classes of twelve powers of two and more are in slots of their own, two lengths share one only if one is
/// thousands of times the other.
const SLOTS: usize = 128;
/// Records in a slot.
const DEPTH: usize = 15;
/// Records that wait at one time: what one call that merges all of them may take.
pub(crate) const MOST: u32 = 512;

const _: () = assert!(size_of::<Slot>() == 64, "a slot is a cache line");

/// Records of spans of one length.
#[derive(Clone, Copy)]
struct Slot {
    count: u8,
    missed: bool,
    nodes: [u32; DEPTH],
}

#[derive(Clone)]
pub(crate) struct Waiting {
    slots: [Slot; SLOTS],
    count: u32,
    cursor: u32,
    units: u64,
    hits: u32,
    refused: u32,
}

impl Waiting {
    pub(crate) const fn new() -> Self {
        Self {
            slots: [Slot { count: 0, missed: false, nodes: [0; DEPTH] }; SLOTS],
            count: 0,
            cursor: 0,
            units: 0,
            hits: 0,
            refused: 0,
        }
    }

    /// How many wait.
    pub(crate) const fn count(&self) -> u32 {
        self.count
    }

    /// Length of all that wait.
    pub(crate) const fn units(&self) -> u64 {
        self.units
    }

    /// How many have been taken back since the last call, and for how many there was no room.
    pub(crate) fn take_figures(&mut self) -> (u32, u32) {
        (core::mem::take(&mut self.hits), core::mem::take(&mut self.refused))
    }

    /// Lets `node`, of `len` units, wait; whether there is room.
    #[inline(always)]
    pub(crate) fn push(&mut self, class: usize, node: u32, len: u64) -> bool {
        let slot = &mut self.slots[class % SLOTS];
        let count = slot.count as usize;
        if count >= DEPTH || self.count >= MOST {
            self.refused = self.refused.wrapping_add(1);
            return false;
        }
        slot.nodes[count] = node;
        slot.count = count as u8 + 1;
        self.count += 1;
        self.units += len;
        true
    }

    /// Takes back the last that waits in the slot of `class`, if it has `len` units at a multiple of `align`.
    #[inline(always)]
    pub(crate) fn pop<X>(&mut self, nodes: &[Node<X>], class: usize, len: u64, align: u64) -> Option<u32> {
        let slot = &mut self.slots[class % SLOTS];
        let last = (slot.count as usize).wrapping_sub(1);
        let node = *slot.nodes.get(last)?;
        let record = &nodes[node as usize];
        if record.len != len || record.offset & (align - 1) != 0 {
            return None;
        }
        slot.count = last as u8;
        slot.missed = true;
        self.count -= 1;
        self.units -= len;
        self.hits = self.hits.wrapping_add(1);
        Some(node)
    }

    /// Moves the cursor on, and gives up the oldest record of its slot if there is one and none was taken meanwhile.
    pub(crate) fn pass<X>(&mut self, nodes: &[Node<X>]) -> Option<u32> {
        if self.count == 0 {
            return None;
        }
        let at = self.cursor as usize % SLOTS;
        self.cursor = self.cursor.wrapping_add(1);
        let slot = &mut self.slots[at];
        let missed = core::mem::replace(&mut slot.missed, false);
        (!missed && slot.count != 0).then(|| self.take_oldest(nodes, at))
    }

    /// Gives up any record that waits.
    pub(crate) fn give_up<X>(&mut self, nodes: &[Node<X>]) -> Option<u32> {
        if self.count == 0 {
            return None;
        }
        let from = self.cursor as usize % SLOTS;
        let at = (from..from + SLOTS).map(|at| at % SLOTS).find(|&at| self.slots[at].count != 0)?;
        self.cursor = at as u32;
        Some(self.take_oldest(nodes, at))
    }

    fn take_oldest<X>(&mut self, nodes: &[Node<X>], at: usize) -> u32 {
        let slot = &mut self.slots[at];
        let node = slot.nodes[0];
        slot.nodes.copy_within(1.., 0);
        slot.count -= 1;
        self.count -= 1;
        self.units -= nodes[node as usize].len;
        node
    }

    /// Shows every record that waits.
    pub(crate) fn each(&self, see: &mut dyn FnMut(u32)) {
        for slot in &self.slots {
            slot.nodes[..slot.count as usize].iter().for_each(|&node| see(node));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DEPTH, MOST, SLOTS, Waiting};
    use crate::node::Node;

    /// Records of 8 units each, in order.
    fn records(count: u64) -> Vec<Node<()>> {
        (0..count).map(|at| Node { offset: 8 * at, len: 8, ..Node::spare(0) }).collect()
    }

    #[test]
    fn the_last_that_waits_is_taken_first_and_only_if_it_fits() {
        let nodes = records(3);
        let mut waiting = Waiting::new();
        assert!(waiting.push(5, 1, 8) && waiting.push(5, 2, 8));
        assert_eq!(waiting.pop(&nodes, 5, 16, 1), None, "another length of the same slot");
        assert_eq!(waiting.pop(&nodes, 5, 8, 32), None, "offset 16 is no multiple of 32");
        assert_eq!(waiting.pop(&nodes, 6, 8, 1), None, "nothing waits there");
        assert_eq!(waiting.pop(&nodes, 5, 8, 16), Some(2));
        assert_eq!((waiting.count(), waiting.units(), waiting.take_figures()), (1, 8, (1, 0)));
    }

    #[test]
    fn the_oldest_of_each_slot_is_given_up_in_turn_but_not_where_one_was_taken_since_the_last_time() {
        let nodes = records(6);
        let mut waiting = Waiting::new();
        for (class, node) in [(1, 0), (1, 1), (2, 2), (3, 3), (3, 4), (3, 5)] {
            assert!(waiting.push(class, node, 8));
        }
        assert_eq!(waiting.pop(&nodes, 3, 8, 1), Some(5));
        let round =
            |waiting: &mut Waiting| -> Vec<u32> { (0..SLOTS).filter_map(|_| waiting.pass(&nodes)).collect() };
        assert_eq!(round(&mut waiting), [0, 2], "one was taken from slot 3");
        assert_eq!(round(&mut waiting), [1, 3]);
        assert_eq!(round(&mut waiting), [4]);
        assert_eq!((waiting.count(), waiting.units(), round(&mut waiting)), (0, 0, vec![]));
    }

    #[test]
    fn no_more_wait_than_one_call_may_merge_and_no_more_of_a_length_than_a_slot_holds() {
        let nodes = records(u64::from(MOST) + 100);
        let mut waiting = Waiting::new();
        let one_length = (0..100).filter(|&node| waiting.push(0, node, 8)).count();
        assert_eq!(one_length, DEPTH);
        let rest = (100..100 + MOST).filter(|&node| waiting.push(1 + node as usize % 100, node, 8)).count();
        assert_eq!((one_length + rest, waiting.count()), (MOST as usize, MOST));
        assert_eq!(waiting.take_figures(), (0, 100 - DEPTH as u32 + MOST - rest as u32));
        let mut seen = 0;
        waiting.each(&mut |_| seen += 1);
        assert_eq!(seen, MOST);
        assert_eq!(std::iter::from_fn(|| waiting.give_up(&nodes)).count(), MOST as usize);
    }
}
