//! The memory of simulated devices: physical pieces, their contents, and the addresses where they are mapped.
//!
//! Invariant: contents and the record of accesses belong to the physical piece, not to the address; so a piece that is
//! unmapped here and mapped there brings both along, and the checker sees through remapping.

use super::checker::Shadow;
use std::collections::{BTreeMap, HashMap};

/// Bytes per page of contents.
const PAGE: u64 = 64 << 10;

/// What fresh device memory holds: never zero, so that nobody relies on it.
pub(super) const FRESH: u8 = 0xCD;
/// What freed memory holds.
pub(super) const POISON: u8 = 0xDE;

pub(super) enum Page {
    Uniform(u8),
    Bytes(Box<[u8]>),
}

/// Contents that cost memory only where bytes differ.
pub(super) enum Bytes {
    /// Device memory.
    Sparse(HashMap<u64, Page>),
    /// Host memory at this address.
    Host(u64),
}

impl Bytes {
    pub(super) fn sparse() -> Self {
        Self::Sparse(HashMap::new())
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) {
        match self {
            Self::Host(base) => {
                let from = core::ptr::with_exposed_provenance::<u8>((base + offset) as usize);
                // SAFETY: the piece is page-locked host memory of at least this length (checked by `Space::resolve`),
                // and whoever submitted the copy keeps others away from it until it is complete.
                unsafe { core::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
            }
            Self::Sparse(pages) => {
                for_pages(offset, into.len() as u64, |page, start, range| {
                    let out = &mut into[range.clone()];
                    match pages.get(&page) {
                        None => out.fill(FRESH),
                        Some(Page::Uniform(byte)) => out.fill(*byte),
                        Some(Page::Bytes(bytes)) => out.copy_from_slice(&bytes[start..start + range.len()]),
                    }
                });
            }
        }
    }

    pub(super) fn write(&mut self, offset: u64, from: &[u8]) {
        match self {
            Self::Host(base) => {
                let to = core::ptr::with_exposed_provenance_mut::<u8>((*base + offset) as usize);
                // SAFETY: as in `read`.
                unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
            }
            Self::Sparse(pages) => for_pages(offset, from.len() as u64, |page, start, range| {
                let bytes = materialise(pages, page);
                bytes[start..start + range.len()].copy_from_slice(&from[range]);
            }),
        }
    }

    pub(super) fn fill(&mut self, offset: u64, byte: u8, len: u64) {
        match self {
            Self::Host(base) => {
                let to = core::ptr::with_exposed_provenance_mut::<u8>((*base + offset) as usize);
                // SAFETY: as in `read`.
                unsafe { core::ptr::write_bytes(to, byte, len as usize) };
            }
            Self::Sparse(pages) => for_pages(offset, len, |page, start, range| {
                if range.len() as u64 == PAGE {
                    pages.insert(page, Page::Uniform(byte));
                } else if !matches!(pages.get(&page), Some(Page::Uniform(b)) if *b == byte) {
                    materialise(pages, page)[start..start + range.len()].fill(byte);
                }
            }),
        }
    }
}

fn materialise(pages: &mut HashMap<u64, Page>, page: u64) -> &mut [u8] {
    let slot = pages.entry(page).or_insert(Page::Uniform(FRESH));
    if let Page::Uniform(byte) = *slot {
        *slot = Page::Bytes(vec![byte; PAGE as usize].into_boxed_slice());
    }
    match slot {
        Page::Bytes(bytes) => bytes,
        Page::Uniform(_) => unreachable!("just made into bytes"),
    }
}

/// Calls `each(page, first byte in the page, range of the request)` for every page that the request touches.
fn for_pages(offset: u64, len: u64, mut each: impl FnMut(u64, usize, core::ops::Range<usize>)) {
    let mut done = 0;
    while done < len {
        let at = offset + done;
        let step = (PAGE - at % PAGE).min(len - done);
        each(at / PAGE, (at % PAGE) as usize, done as usize..(done + step) as usize);
        done += step;
    }
}

/// A physical piece.
pub(super) struct Piece {
    pub(super) len: u64,
    /// The device whose capacity it counts against; `None` for host memory.
    pub(super) device: Option<usize>,
    pub(super) bytes: Bytes,
    pub(super) shadow: Shadow,
    /// How many mappings it has, and whether its handle is still held.
    pub(super) mappings: u32,
    pub(super) held: bool,
}

/// A range of addresses with a piece behind it.
#[derive(Clone, Copy)]
pub(super) struct Mapping {
    pub(super) len: u64,
    pub(super) piece: u64,
    pub(super) allowed: bool,
    /// Whether it was made by `alloc` (and goes by `free`) rather than by `map`.
    pub(super) whole: bool,
}

/// A stretch of one piece.
#[derive(Clone, Copy)]
pub(super) struct Stretch {
    pub(super) piece: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// All addresses of all devices, and of page-locked host memory.
#[derive(Default)]
pub(super) struct Space {
    pub(super) pieces: HashMap<u64, Piece>,
    pub(super) maps: BTreeMap<u64, Mapping>,
    pub(super) reserved: BTreeMap<u64, u64>,
    next_piece: u64,
}

impl Space {
    pub(super) fn add_piece(&mut self, len: u64, device: Option<usize>, bytes: Bytes) -> u64 {
        self.next_piece += 1;
        let piece = Piece { len, device, bytes, shadow: Shadow::default(), mappings: 0, held: true };
        self.pieces.insert(self.next_piece, piece);
        self.next_piece
    }

    /// The stretches behind a range of addresses, or `None` if some of it is not mapped or not accessible.
    pub(super) fn resolve(&self, address: u64, len: u64) -> Option<Vec<Stretch>> {
        let end = address.checked_add(len)?;
        let (mut at, mut stretches) = (address, Vec::new());
        while at < end {
            let (&start, map) = self.maps.range(..=at).next_back()?;
            if at >= start + map.len || !map.allowed {
                return None;
            }
            let step = (start + map.len).min(end) - at;
            stretches.push(Stretch { piece: map.piece, offset: at - start, len: step });
            at += step;
        }
        Some(stretches)
    }

    pub(super) fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let Some(stretches) = self.resolve(address, into.len() as u64) else { return false };
        let mut done = 0;
        for s in stretches {
            let Some(piece) = self.pieces.get(&s.piece) else { return false };
            piece.bytes.read(s.offset, &mut into[done..done + s.len as usize]);
            done += s.len as usize;
        }
        true
    }

    pub(super) fn write(&mut self, address: u64, from: &[u8]) -> bool {
        let Some(stretches) = self.resolve(address, from.len() as u64) else { return false };
        let mut done = 0;
        for s in stretches {
            let Some(piece) = self.pieces.get_mut(&s.piece) else { return false };
            piece.bytes.write(s.offset, &from[done..done + s.len as usize]);
            done += s.len as usize;
        }
        true
    }

    pub(super) fn fill(&mut self, address: u64, byte: u8, len: u64) -> bool {
        let Some(stretches) = self.resolve(address, len) else { return false };
        for s in stretches {
            let Some(piece) = self.pieces.get_mut(&s.piece) else { return false };
            piece.bytes.fill(s.offset, byte, s.len);
        }
        true
    }

    /// Whether any mapping touches the range.
    pub(super) fn any_mapped(&self, address: u64, len: u64) -> bool {
        self.maps.range(..address + len).next_back().is_some_and(|(&start, map)| start + map.len > address)
    }

    /// Drops a piece when nobody holds or maps it, and returns what it counted against a device.
    pub(super) fn drop_if_unused(&mut self, piece: u64) -> Option<(usize, u64)> {
        let unused = self.pieces.get(&piece).is_some_and(|p| p.mappings == 0 && !p.held);
        if !unused {
            return None;
        }
        let piece = self.pieces.remove(&piece)?;
        piece.device.map(|d| (d, piece.len))
    }
}
