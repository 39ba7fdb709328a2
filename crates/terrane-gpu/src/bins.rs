//! The free spans of one stream, by length class, last in first out.
//!
//! Invariant: each span in here is live for the placement engine (nobody else can get it) and was freed in the order of
//! this stream, in the epoch that is kept beside it. Nodes lie in one vector and are linked by index, so a hit allocates
//! nothing.

use crate::size_class::{CLASSES, round_down};
use terrane_core::Span;

const NONE: u32 = u32::MAX;

struct Node {
    span: Span,
    epoch: u64,
    next: u32,
}

/// Free spans of one stream.
pub(crate) struct Bins {
    heads: Box<[u32]>,
    nodes: Vec<Node>,
    spare: u32,
    bytes: u64,
    count: u64,
}

impl Bins {
    pub(crate) fn new() -> Self {
        Self {
            heads: vec![NONE; CLASSES].into_boxed_slice(),
            nodes: Vec::new(),
            spare: NONE,
            bytes: 0,
            count: 0,
        }
    }

    /// Bytes of all spans in here.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of spans in here.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    #[inline]
    pub(crate) fn push(&mut self, span: Span, epoch: u64) {
        let class = round_down(span.len);
        let node = Node { span, epoch, next: self.heads[class] };
        let index = if self.spare == NONE {
            self.nodes.push(node);
            (self.nodes.len() - 1) as u32
        } else {
            let index = self.spare;
            let slot = &mut self.nodes[index as usize];
            self.spare = slot.next;
            *slot = node;
            index
        };
        self.heads[class] = index;
        self.bytes += span.len;
        self.count += 1;
    }

    /// The span of `class` that was freed last, if it lies at a multiple of `align`.
    #[inline]
    pub(crate) fn pop(&mut self, class: usize, align: u64) -> Option<Span> {
        let index = *self.heads.get(class)?;
        let node = self.nodes.get_mut(index as usize)?;
        let span = node.span;
        if !span.offset.is_multiple_of(align) {
            return None;
        }
        self.heads[class] = node.next;
        node.next = self.spare;
        self.spare = index;
        self.bytes -= span.len;
        self.count -= 1;
        Some(span)
    }

    /// Takes all spans out, with their epochs.
    pub(crate) fn drain(&mut self) -> Vec<(Span, u64)> {
        let mut all = Vec::with_capacity(self.count as usize);
        if self.count > 0 {
            for head in &mut self.heads {
                let mut index = core::mem::replace(head, NONE);
                while let Some(node) = self.nodes.get(index as usize) {
                    all.push((node.span, node.epoch));
                    index = node.next;
                }
            }
        }
        self.nodes.clear();
        (self.spare, self.bytes, self.count) = (NONE, 0, 0);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size_class::round_up;

    #[test]
    fn spans_come_back_last_in_first_out_and_only_for_their_class_and_alignment() {
        let mut bins = Bins::new();
        let class = round_up(1024).0;
        bins.push(Span::new(512, 1024), 1);
        bins.push(Span::new(4096, 1024), 2);
        bins.push(Span::new(8192 + 256, 1024), 3);
        assert_eq!(bins.pop(class, 512), None, "the last one is not aligned to 512");
        assert_eq!(bins.pop(class, 256), Some(Span::new(8448, 1024)));
        assert_eq!(bins.pop(class + 1, 256), None);
        bins.push(Span::new(1 << 20, 2048), 4);
        assert_eq!((bins.count(), bins.bytes()), (3, 4096));
        let mut all = bins.drain();
        all.sort();
        assert_eq!(
            all,
            [(Span::new(512, 1024), 1), (Span::new(4096, 1024), 2), (Span::new(1 << 20, 2048), 4)]
        );
        assert_eq!((bins.count(), bins.bytes(), bins.pop(class, 256)), (0, 0, None));
    }
}
