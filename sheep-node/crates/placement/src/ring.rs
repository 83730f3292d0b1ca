//! The hash ring.

use sheep_types::{NodeId, ObjectId, ObjectKind, Vid};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use twox_hash::XxHash3_64;

/// Points in the ring of a node whose weight is the unit.
pub const STANDARD_POINTS: u32 = 128;
/// Most points of one node: bounds the ring's memory (16 bytes a point).
pub const MAX_POINTS: u32 = 16 * STANDARD_POINTS;

/// A storage node with a place in the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementMember {
    /// The node.
    pub node: NodeId,
    /// Failure domain; an empty one means that the node is a zone of its own.
    pub zone: String,
    /// Share of objects; zero means no place in the ring.
    pub weight: u32,
}

/// What is hashed: not the object id, so that the objects of a snapshot line at one index share their nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// First vid of the line of snapshots.
    pub lineage: Vid,
    /// Kind of object.
    pub kind: ObjectKind,
    /// Its index.
    pub index: u32,
}

impl Key {
    /// The key of an object whose vid has this lineage; `None` if the object id has an unknown kind.
    pub fn of(lineage: Vid, object: ObjectId) -> Option<Self> {
        Some(Self { lineage, kind: object.kind()?, index: object.index() })
    }

    /// Its place on the ring: XXH3 (64 bits) over lineage, kind and index, little-endian, 4 + 1 + 4 bytes.
    pub fn hash(self) -> u64 {
        let kind: u8 = match self.kind {
            ObjectKind::Data => 0,
            ObjectKind::Map => 1,
            ObjectKind::Attribute => 2,
        };
        let [a, b, c, d] = self.lineage.0.to_le_bytes();
        let [e, f, g, h] = self.index.to_le_bytes();
        XxHash3_64::oneshot(&[a, b, c, d, kind, e, f, g, h])
    }
}

/// Numbers of members, or of zones, that are in a list already. Sets are small: they cost no allocation.
type Taken = SmallVec<[u32; 8]>;

/// A point: (hash, number of the member).
type Point = (u64, u32);

/// The ring of one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// Members by node id.
    nodes: Vec<NodeId>,
    /// Zone number of each member.
    zone_of: Vec<u32>,
    zones: usize,
    points: Vec<Point>,
}

impl Ring {
    /// Builds the ring. A member of weight `unit` gets [`STANDARD_POINTS`] points, others in proportion, at
    /// least one and at most [`MAX_POINTS`]. The unit must be the same everywhere and change rarely: with it
    /// all numbers of points change. Of members with the same id only the first counts.
    pub fn build(members: &[PlacementMember], unit: u32) -> Self {
        let mut sorted: Vec<&PlacementMember> = members.iter().filter(|member| member.weight > 0).collect();
        sorted.sort_by_key(|member| member.node);
        sorted.dedup_by_key(|member| member.node);
        let mut ring = Self::default();
        let mut zones: BTreeMap<&str, u32> = BTreeMap::new();
        for member in sorted {
            let number = ring.nodes.len() as u32;
            let zone = if member.zone.is_empty() {
                ring.next_zone()
            } else if let Some(zone) = zones.get(member.zone.as_str()) {
                *zone
            } else {
                let zone = ring.next_zone();
                zones.insert(&member.zone, zone);
                zone
            };
            ring.nodes.push(member.node);
            ring.zone_of.push(zone);
            let count = points_of(member.weight, unit);
            ring.points.extend((0..count).map(|point| (point_hash(member.node, point), number)));
        }
        // Two points at one place: the lower node id goes first, whatever the order of the members was.
        ring.points.sort_unstable();
        ring
    }

    fn next_zone(&mut self) -> u32 {
        self.zones += 1;
        (self.zones - 1) as u32
    }

    /// Number of nodes that have a place.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Number of zones; each node without one counts as one.
    pub fn zones(&self) -> usize {
        self.zones
    }

    /// Number of points, for statistics.
    pub fn points(&self) -> usize {
        self.points.len()
    }

    /// The nodes for `copies` copies of an object, most preferred first; fewer if there are not so many.
    pub fn set(&self, lineage: Vid, kind: ObjectKind, index: u32, copies: usize) -> Vec<NodeId> {
        self.list(Key { lineage, kind, index }).take(copies).collect()
    }

    /// All nodes in the order in which they are chosen for a key. Lazy: take as many as needed.
    pub fn list(&self, key: Key) -> List<'_> {
        let hash = key.hash();
        // The node of a key is that of the first point at or after it, around the ring.
        let start = self.points.partition_point(|(point, _)| *point < hash);
        List { ring: self, start, walked: 0, taken: Taken::new(), zones_taken: Taken::new() }
    }
}

/// The list of nodes for one key.
#[derive(Clone, Debug)]
pub struct List<'a> {
    ring: &'a Ring,
    start: usize,
    /// Points walked in the present pass.
    walked: usize,
    taken: Taken,
    zones_taken: Taken,
}

impl List<'_> {
    /// Walks on to the next point whose member passes.
    fn walk(&mut self, wanted: impl Fn(&Self, u32) -> bool) -> Option<u32> {
        let (wrapped, first) = self.ring.points.split_at_checked(self.start)?;
        while self.walked < self.ring.points.len() {
            let place = self.walked;
            self.walked += 1;
            let (_, member) = first.get(place).or_else(|| wrapped.get(place - first.len()))?;
            if wanted(self, *member) {
                return Some(*member);
            }
        }
        None
    }

    fn zone(&self, member: u32) -> Option<u32> {
        self.ring.zone_of.get(member as usize).copied()
    }
}

impl Iterator for List<'_> {
    type Item = NodeId;

    fn next(&mut self) -> Option<NodeId> {
        if self.taken.len() == self.ring.nodes.len() {
            return None;
        }
        let first_pass = self.zones_taken.len() < self.ring.zones;
        let member = if first_pass {
            self.walk(|list, member| list.zone(member).is_some_and(|zone| !list.zones_taken.contains(&zone)))?
        } else {
            self.walk(|list, member| !list.taken.contains(&member))?
        };
        self.taken.push(member);
        if first_pass {
            self.zones_taken.extend(self.zone(member));
            if self.zones_taken.len() == self.ring.zones {
                // All zones have one: the second pass starts at the key again.
                self.walked = 0;
            }
        }
        self.ring.nodes.get(member as usize).copied()
    }
}

fn points_of(weight: u32, unit: u32) -> u32 {
    let exact = u64::from(weight) * u64::from(STANDARD_POINTS);
    let unit = u64::from(unit.max(1));
    let rounded = (exact + unit / 2) / unit;
    rounded.clamp(1, u64::from(MAX_POINTS)) as u32
}

/// XXH3 (64 bits) over node id and number of the point, little-endian, 8 + 4 bytes. A node's points do not
/// depend on how many it has: another weight adds or removes the last ones.
fn point_hash(node: NodeId, point: u32) -> u64 {
    let mut bytes = [0; 12];
    let (id, number) = bytes.split_at_mut(8);
    id.copy_from_slice(&node.0.to_le_bytes());
    number.copy_from_slice(&point.to_le_bytes());
    XxHash3_64::oneshot(&bytes)
}
