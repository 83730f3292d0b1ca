//! Which objects of dead vids somebody who is alive reaches, in one part of the map.

use super::super::contents::Found;
use super::super::map::{ENTRIES, Entry, Layer, decode};
use crate::View;
use sheep_types::{BLOCK_SIZE, ObjectId, Vid};
use std::collections::{BTreeMap, BTreeSet};

/// Some blocks of a map object in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) map: u32,
    pub(super) block: u32,
    pub(super) blocks: u32,
}

impl Window {
    /// First byte within the map object, and bytes.
    pub(super) fn range(self) -> (u32, u32) {
        (self.block * BLOCK_SIZE, self.blocks * BLOCK_SIZE)
    }
}

/// Contents of a window: for each block its entries, none where the map object says nothing. Zeros where they are short.
pub(super) type Blocks = Vec<Option<Vec<u32>>>;

/// What was read, cut into blocks.
pub(super) fn blocks_of(found: &[Found], window: Window) -> Blocks {
    let mut blocks = Blocks::with_capacity(window.blocks as usize);
    for part in found {
        match part {
            Found::Data(data) => {
                for block in data.chunks(BLOCK_SIZE as usize) {
                    let entries = block.as_chunks::<4>().0.iter().map(|entry| u32::from_le_bytes(*entry));
                    blocks.push(Some(entries.collect()));
                }
            }
            Found::Zero(len) => blocks.extend((0..len / BLOCK_SIZE).map(|_| Some(Vec::new()))),
            Found::Absent(len) => blocks.extend((0..len / BLOCK_SIZE).map(|_| None)),
        }
    }
    blocks
}

/// An entry that this version does not know, or that does not fit the tree: nothing can be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unknown;

/// A vid whose reach in a window is being found out.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) layers: Vec<Layer>,
    window: Window,
    /// What the members have in the vid's own map object. Copies may differ in what is not confirmed: what any of them
    /// reaches is reached.
    own: Vec<Blocks>,
    /// What the map objects of the other layers have, from the first of these on; `None`: there is none.
    lower: Vec<Option<Blocks>>,
}

impl Walk {
    pub(super) fn new(layers: Vec<Layer>, window: Window) -> Self {
        Self { layers, window, own: Vec::new(), lower: Vec::new() }
    }

    /// The map object to be read next, and its layer; `None` if nothing more is needed.
    pub(super) fn wanted(&mut self) -> Option<(usize, ObjectId)> {
        let kept_by = |layer: &Layer| layer.maps.get(&self.window.map).copied();
        if self.own.is_empty() {
            match self.layers.first().and_then(kept_by) {
                Some(vid) => return Some((0, ObjectId::map(vid, self.window.map))),
                None => self.own.push(Blocks::new()),
            }
        }
        while self.is_open() {
            let layer = self.lower.len() + 1;
            match self.layers.get(layer).and_then(kept_by) {
                Some(vid) => return Some((layer, ObjectId::map(vid, self.window.map))),
                None if layer < self.layers.len() => self.lower.push(None),
                None => break,
            }
        }
        None
    }

    /// Takes over what one member, or one of them, has.
    pub(super) fn take(&mut self, layer: usize, blocks: Blocks) {
        if layer == 0 { self.own.push(blocks) } else { self.lower.push(Some(blocks)) }
    }

    /// Whether what was read refers to other layers. An entry may refer to any of them.
    fn is_open(&self) -> bool {
        let refers = |blocks: &Blocks| {
            blocks.len() < self.window.blocks as usize
                || blocks.iter().any(|block| match block {
                    None => true,
                    Some(entries) => entries.iter().any(|entry| {
                        !matches!(decode(*entry), Entry::Absent | Entry::At { partial: false, .. })
                    }),
                })
        };
        self.own.iter().any(refers)
    }

    /// Adds what the vid reaches of these vids.
    pub(super) fn names(
        &self,
        view: &View,
        of: &BTreeMap<Vid, bool>,
        entries_per_map: u32,
        names: &mut BTreeSet<(Vid, u32)>,
    ) -> Result<(), Unknown> {
        for own in &self.own {
            for block in 0..self.window.blocks {
                let Some(entries) = self.block(own, 0, block as usize) else { continue };
                let first = self.window.map * entries_per_map + (self.window.block + block) * ENTRIES;
                for (place, entry) in entries.iter().enumerate().filter(|(_, entry)| **entry != 0) {
                    let mut entry = decode(*entry);
                    loop {
                        let (vid, partial) = match entry {
                            Entry::Absent => break,
                            Entry::Unknown => return Err(Unknown),
                            Entry::At { vid, partial } => (vid, partial),
                        };
                        if of.contains_key(&vid) {
                            names.insert((vid, first + place as u32));
                        }
                        if !partial {
                            break;
                        }
                        let below = self.below(view, vid).ok_or(Unknown)?;
                        let entries = self.block(own, below, block as usize);
                        entry = decode(entries.and_then(|entries| entries.get(place).copied()).unwrap_or(0));
                    }
                }
            }
        }
        Ok(())
    }

    /// The layer in which absent blocks of a vid's objects are found.
    fn below(&self, view: &View, vid: Vid) -> Option<usize> {
        let lineage = view.vid(vid)?.lineage;
        let layer = self.layers.iter().position(|layer| layer.lineage == lineage)? + 1;
        (layer < self.layers.len()).then_some(layer)
    }

    /// Entries of a block as a layer sees them.
    fn block<'a>(&'a self, own: &'a Blocks, layer: usize, block: usize) -> Option<&'a [u32]> {
        let own = Some(own).filter(|_| layer == 0);
        let lower = self.lower.iter().skip(layer.saturating_sub(1)).filter_map(Option::as_ref);
        own.into_iter().chain(lower).find_map(|blocks| blocks.get(block)?.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const WINDOW: Window = Window { map: 0, block: 0, blocks: 2 };

    fn layer(vid: u32, kept_by: Option<u32>) -> Layer {
        let maps = kept_by.map(|vid| (0, Vid(vid))).into_iter().collect();
        Layer { vid: Vid(vid), lineage: Vid(vid), maps: Arc::new(maps) }
    }

    #[test]
    fn lower_layers_are_read_only_where_something_refers_to_them() {
        let mut walk = Walk::new(vec![layer(9, Some(8)), layer(5, None), layer(3, Some(2))], WINDOW);
        assert_eq!(walk.wanted(), Some((0, ObjectId::map(Vid(8), 0))));
        walk.take(0, vec![Some(vec![8, 9]), Some(Vec::new())]);
        assert_eq!(walk.wanted(), None, "all is said");
        // Another member has not got the second block yet.
        walk.take(0, vec![Some(vec![8, 9]), None]);
        assert_eq!(
            walk.wanted(),
            Some((2, ObjectId::map(Vid(2), 0))),
            "the layer between has no such map object"
        );
        walk.take(2, vec![Some(vec![7]), Some(vec![6])]);
        assert_eq!(walk.wanted(), None);
        let one = walk.own.last().unwrap();
        assert_eq!((walk.block(one, 0, 0), walk.block(one, 0, 1)), (Some(&[8, 9][..]), Some(&[6][..])));
        assert_eq!(walk.block(one, 1, 0), Some(&[7][..]));
    }

    #[test]
    fn without_a_map_object_everything_is_below() {
        let mut walk = Walk::new(vec![layer(9, None), layer(3, Some(3))], WINDOW);
        assert_eq!(walk.wanted(), Some((1, ObjectId::map(Vid(3), 0))));
        walk.take(1, vec![None, None]);
        assert_eq!(walk.wanted(), None);
        let mut alone = Walk::new(vec![layer(9, None)], WINDOW);
        assert_eq!(alone.wanted(), None);
    }

    #[test]
    fn contents_are_cut_into_blocks() {
        let mut data = vec![0; 8192];
        data[..8].copy_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0x80]);
        let found = [Found::Data(data.into()), Found::Zero(4096), Found::Absent(4096)];
        let blocks = blocks_of(&found, Window { blocks: 4, ..WINDOW });
        assert_eq!(blocks[0].as_ref().unwrap()[..3], [1, 2 | 1 << 31, 0]);
        assert_eq!(
            (blocks[1].as_ref().unwrap().len(), &blocks[2], &blocks[3]),
            (1024, &Some(Vec::new()), &None)
        );
    }
}
