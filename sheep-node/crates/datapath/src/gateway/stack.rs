//! Where the contents of an index are, from the uppermost object down: in the volume, and in a snapshot that it is compared
//! with, whose map is read and cached beside the volume's own.

use super::api::VolumeError;
use super::contents::{Found, flatten};
use super::map::{Entry, LayerBlock, MapCache};
use super::open::layers;
use super::read::{Location, ReadOwner, ReadPiece, Target};
use super::shared::Core;
use super::verdict::Level;
use super::volume::Volume;
use sheep_types::{BLOCK_SIZE, ObjectId, Vid};
use std::collections::BTreeSet;

/// Map blocks that are cached for each layer of a snapshot's map.
const BLOCKS_PER_LAYER: usize = 32;

/// Why a stack is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// A map block is being read.
    Loading,
    /// A map block cannot be read.
    Unreadable,
}

/// The map of a snapshot.
#[derive(Debug)]
pub(super) struct OldMap {
    map: MapCache,
    loading: BTreeSet<LayerBlock>,
    /// Could not be read lately.
    unreadable: BTreeSet<LayerBlock>,
}

impl Volume {
    /// The stack of an index of the volume.
    pub(super) fn stack(&mut self, core: &Core, index: u32) -> Result<Vec<Level>, Unknown> {
        let (mut stack, mut layer) = (Vec::new(), 0);
        loop {
            let place = match self.locate_in(core, layer, index) {
                Location::Loading => return Err(Unknown::Loading),
                Location::Unreadable | Location::Unknown => return Err(Unknown::Unreadable),
                Location::Absent => return Ok(stack),
                Location::At(place) => place,
            };
            stack.push((place.vid, place.below.is_some()));
            match place.below {
                Some(below) => layer = below,
                None => return Ok(stack),
            }
        }
    }

    /// The stack of an index of a snapshot.
    pub(super) fn old_stack(&mut self, core: &Core, vid: Vid, index: u32) -> Result<Vec<Level>, Unknown> {
        let view = core.view();
        let geometry = self.geometry;
        let old = self.diffs.maps.entry(vid).or_insert_with(|| {
            let layers = layers(&view, vid);
            let limit = BLOCKS_PER_LAYER * layers.len().max(1);
            OldMap {
                map: MapCache::new(geometry, limit, layers),
                loading: BTreeSet::new(),
                unreadable: BTreeSet::new(),
            }
        });
        let (mut stack, mut layer) = (Vec::new(), 0);
        loop {
            let (vid, partial) = match old.map.entry(layer, index) {
                Err(block) => return Err(self.load_old(vid, block)),
                Ok(Entry::Absent) => return Ok(stack),
                Ok(Entry::Unknown) => return Err(Unknown::Unreadable),
                Ok(Entry::At { vid, partial }) => (vid, partial),
            };
            stack.push((vid, partial));
            if !partial {
                return Ok(stack);
            }
            let below = view.vid(vid).and_then(|record| old.map.below(record.lineage));
            let Some(below) = below else { return Err(Unknown::Unreadable) };
            layer = below;
        }
    }

    /// Begins to read a block of a snapshot's map, unless that has just failed.
    fn load_old(&mut self, vid: Vid, at: LayerBlock) -> Unknown {
        let Some(old) = self.diffs.maps.get_mut(&vid) else { return Unknown::Unreadable };
        if old.unreadable.remove(&at) {
            return Unknown::Unreadable;
        }
        if old.loading.insert(at) {
            let block = at.block;
            let kept_by = old.map.kept_by(at.layer, block.map).unwrap_or(vid);
            let range = (block.offset(), block.offset() + BLOCK_SIZE);
            let target = Target::Map(ObjectId::map(kept_by, block.map));
            let owner = ReadOwner::OldMap { vid, at };
            self.add_read(ReadPiece::new(owner, target, range, self.sequence));
            self.again = true;
        }
        Unknown::Loading
    }

    pub(super) fn old_map_arrived(
        &mut self,
        vid: Vid,
        at: LayerBlock,
        result: Result<Vec<Found>, VolumeError>,
    ) {
        // It may not be wanted any more.
        let Some(old) = self.diffs.maps.get_mut(&vid) else { return };
        old.loading.remove(&at);
        match result.as_deref() {
            Ok([Found::Absent(_)]) => old.map.insert(at, None),
            Ok(found) => old.map.insert(at, Some(&flatten(found))),
            Err(_) => {
                old.unreadable.insert(at);
            }
        }
    }
}
