//! Vacated spans that wait, unmerged, for a request of the same length.
//!
//! Invariants: the first `count` records of a slot wait, and no other does; `count` of all is their number and at most
//! [`MOST`], `units` their length. A slot is `missed` if a request has asked for one of its records since the cursor came by.
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

    /// Moves the cursor on, and gives up the oldest record of its slot if none there has been asked for meanwhile.
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
