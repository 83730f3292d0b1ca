//! Which blocks differ from a snapshot, against a model that knows what every block was.

use crate::serving::{read, write};
use crate::snapshots::{clone_of, close, read_only, take};
use crate::world::{BLOCK, OBJECT, World, ms};
use sheep_datapath::{Difference, GatewayConfig, VolumeError, VolumeOp, VolumeReply};
use sheep_state::{Command, Guard, Settings};
use sheep_types::{Incarnation, Member, NodeId, ObjectId, VdiId};
use std::time::Duration;

const OBJECTS: u64 = 16;
/// The volume ends within an object and within a block of the map.
const SIZE: u64 = OBJECTS * OBJECT + 5 * BLOCK as u64;
const PER_OBJECT: usize = OBJECT as usize / BLOCK;

/// What every block of the volume is in comparison with `since`.
fn diff(world: &mut World, node: u64, handle: u64, size: u64, since: Option<VdiId>) -> Vec<Difference> {
    let mut all = Vec::new();
    let mut offset = 0;
    while offset < size {
        let op = VolumeOp::Diff { offset, len: size - offset, since };
        let VolumeReply::Diff(extents) = world.act(node, handle, op).unwrap() else { panic!() };
        assert!(!extents.is_empty());
        for extent in extents {
            assert!(extent.len > 0 && extent.len.is_multiple_of(BLOCK as u64));
            offset += extent.len;
            all.extend(std::iter::repeat_n(extent.difference, extent.len as usize / BLOCK));
        }
    }
    assert_eq!(offset, size);
    all
}

fn blocks(size: u64) -> usize {
    size as usize / BLOCK
}

fn contents(world: &mut World, node: u64, handle: u64, size: u64) -> Vec<Vec<u8>> {
    read(world, node, handle, 0, size as u32).chunks(BLOCK).map(<[u8]>::to_vec).collect()
}

/// Checks every block; returns how many are called different that are not.
fn judge(now: &[Vec<u8>], before: &[Vec<u8>], said: &[Difference]) -> usize {
    let zeros = vec![0; BLOCK];
    let mut needless = 0;
    for (block, said) in said.iter().enumerate() {
        let (now, before) = (&now[block], before.get(block).unwrap_or(&zeros));
        match said {
            Difference::Same => assert_eq!(now, before, "block {block} is not the same"),
            Difference::Zero => assert_eq!(now, &zeros, "block {block} is not zero"),
            Difference::Data => {}
        }
        needless += usize::from(*said != Difference::Same && now == before);
    }
    needless
}

struct Shot {
    vdi: VdiId,
    contents: Vec<Vec<u8>>,
    /// Number of the tree it stands in.
    tree: usize,
}

struct Open {
    handle: u64,
    tree: usize,
}

struct Model {
    world: World,
    open: Vec<Open>,
    shots: Vec<Shot>,
    /// Blocks looked at, called different, and called so without need.
    counts: [usize; 3],
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut world = World::new(6, Settings::default(), seed);
        let vdi = world.create(SIZE);
        let handle = world.open(100, vdi);
        Self { world, open: vec![Open { handle, tree: 0 }], shots: Vec::new(), counts: [0; 3] }
    }

    fn random(&mut self, below: usize) -> usize {
        self.world.random.below(below as u64) as usize
    }

    fn change(&mut self, tag: u8) {
        let which = self.random(self.open.len());
        let handle = self.open[which].handle;
        let place = if self.random(4) == 0 { blocks(SIZE) } else { 4 * PER_OBJECT };
        let start = self.random(place);
        let long = if self.random(6) == 0 { 3 * PER_OBJECT } else { 3 };
        let len = (1 + self.random(long)).min(blocks(SIZE) - start) * BLOCK;
        let (offset, bytes) = ((start * BLOCK) as u64, len as u64);
        let zeroes =
            VolumeOp::WriteZeroes { offset, len: bytes, fua: false, no_hole: false, fast_zero: false };
        let op = match self.random(8) {
            0 => zeroes,
            1 => VolumeOp::Discard { offset, len: bytes, fua: false },
            2 => VolumeOp::Flush,
            3 if len > 1024 => write(offset + 512, len - 1024, tag),
            _ => write(offset, len, tag),
        };
        self.world.act(100, handle, op).unwrap();
    }

    fn snapshot(&mut self, tag: usize) {
        let which = self.random(self.open.len());
        let (handle, tree) = (self.open[which].handle, self.open[which].tree);
        let vdi = take(&mut self.world, handle, &format!("t{tag}")).vdi;
        let contents = contents(&mut self.world, 100, handle, SIZE);
        self.shots.push(Shot { vdi, contents, tree });
    }

    fn branch(&mut self, name: usize) {
        if self.shots.is_empty() || self.open.len() > 4 {
            return;
        }
        let which = self.random(self.shots.len());
        let (vdi, tree) = (self.shots[which].vdi, self.shots[which].tree);
        let clone = clone_of(&mut self.world, vdi, &format!("clone{name}"));
        let handle = self.world.open(100, clone);
        self.open.push(Open { handle, tree });
    }

    /// Compares a volume, or a snapshot, with a snapshot or with nothing.
    fn compare(&mut self) {
        let since = self.random(self.shots.len() + 1);
        let since = self.shots.get(since).map(|shot| (shot.vdi, shot.contents.clone(), shot.tree));
        let closed = !self.shots.is_empty() && self.random(2) == 0;
        let (node, handle) = if closed {
            let which = self.random(self.shots.len());
            (101, read_only(&mut self.world, 101, self.shots[which].vdi))
        } else {
            let which = self.random(self.open.len());
            (100, self.open[which].handle)
        };
        let now = contents(&mut self.world, node, handle, SIZE);
        let said = diff(&mut self.world, node, handle, SIZE, since.as_ref().map(|since| since.0));
        let before = since.map_or_else(Vec::new, |since| since.1);
        let needless = judge(&now, &before, &said);
        self.counts[0] += said.len();
        self.counts[1] += said.iter().filter(|said| **said != Difference::Same).count();
        self.counts[2] += needless;
        if closed {
            close(&mut self.world, 101, handle);
        }
    }
}

#[test]
fn what_differs_is_never_called_the_same() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(12);
    let mut total = [0; 3];
    for seed in 1..=seeds {
        let mut model = Model::new(seed);
        for step in 0..120 {
            match model.random(12) {
                0 => model.snapshot(step),
                1 if step > 30 => model.branch(step),
                2 | 3 => model.compare(),
                _ => {
                    let tag = 1 + model.random(200) as u8;
                    model.change(tag);
                }
            }
        }
        for (total, count) in total.iter_mut().zip(model.counts) {
            *total += count;
        }
    }
    let [all, different, needless] = total;
    assert!(different > all / 20 && different < all, "{total:?}");
    // Between volumes of several lineages equal contents cannot always be told.
    assert!(needless < different / 3, "{total:?}");
}

/// One block is changed of an object that is full: that block differs, no other.
#[test]
fn a_change_of_one_block_is_one_block() {
    let mut world = World::new(3, Settings::default(), 3);
    let vdi = world.create(SIZE);
    let handle = world.open(100, vdi);
    world.act(100, handle, write(0, 2 * OBJECT as usize, 1)).unwrap();
    let first = take(&mut world, handle, "one").vdi;
    assert!(diff(&mut world, 100, handle, SIZE, Some(first)).iter().all(|said| *said == Difference::Same));
    world.act(100, handle, write(OBJECT + 3 * BLOCK as u64, BLOCK, 2)).unwrap();
    let second = take(&mut world, handle, "two").vdi;
    world.act(100, handle, write(512, 512, 3)).unwrap();
    let zero = VolumeOp::WriteZeroes {
        offset: 5 * BLOCK as u64,
        len: BLOCK as u64,
        fua: false,
        no_hole: false,
        fast_zero: false,
    };
    world.act(100, handle, zero).unwrap();
    let differ = |said: &[Difference]| -> Vec<(usize, Difference)> {
        said.iter().copied().enumerate().filter(|(_, said)| *said != Difference::Same).collect()
    };
    let changed = PER_OBJECT + 3;
    let said = diff(&mut world, 100, handle, SIZE, Some(first));
    assert_eq!(differ(&said), [(0, Difference::Data), (5, Difference::Zero), (changed, Difference::Data)]);
    let said = diff(&mut world, 100, handle, SIZE, Some(second));
    assert_eq!(differ(&said), [(0, Difference::Data), (5, Difference::Zero)]);
    let closed = read_only(&mut world, 101, second);
    let said = diff(&mut world, 101, closed, SIZE, Some(first));
    assert_eq!(differ(&said), [(changed, Difference::Data)]);
    // Only what is there is allocated.
    let said = diff(&mut world, 101, closed, SIZE, None);
    assert_eq!(differ(&said), (0..2 * PER_OBJECT).map(|block| (block, Difference::Data)).collect::<Vec<_>>());
    // A clone differs from what it was cloned from by what was written to it.
    let clone = clone_of(&mut world, first, "clone");
    let handle = world.open(101, clone);
    world.act(101, handle, write(9 * BLOCK as u64, BLOCK, 9)).unwrap();
    let said = diff(&mut world, 101, handle, SIZE, Some(first));
    assert_eq!(differ(&said), [(9, Difference::Data)]);
    let said = diff(&mut world, 101, handle, SIZE, Some(second));
    assert!(said[changed] != Difference::Same && said[9] != Difference::Same);
}

/// What grew was zeros before, whatever is behind the old end.
#[test]
fn behind_the_old_end_were_zeros() {
    let mut world = World::new(3, Settings::default(), 3);
    let vdi = world.create(SIZE);
    let handle = world.open(100, vdi);
    world.act(100, handle, write(0, SIZE as usize, 1)).unwrap();
    let first = take(&mut world, handle, "one").vdi;
    let grown = SIZE + 2 * OBJECT;
    let me = Member { node: NodeId(100), incarnation: Incarnation(1) };
    let guard = Guard::Held(world.state.vdi(vdi).unwrap().last_generation);
    let resize = Command::ResizeVdi { vdi, size: grown, shrink: false, guard };
    world.order_now(me, resize).unwrap();
    world.publish();
    world.run(crate::world::ms(50));
    assert!(diff(&mut world, 100, handle, grown, Some(first)).iter().all(|said| *said == Difference::Same));
    world.act(100, handle, write(SIZE, BLOCK, 2)).unwrap();
    let said = diff(&mut world, 100, handle, grown, Some(first));
    let differ: Vec<usize> = (0..said.len()).filter(|block| said[*block] != Difference::Same).collect();
    assert_eq!(differ, [blocks(SIZE)]);
}

/// Volumes that have nothing in common are not compared, nor is anything with what is gone.
#[test]
fn strangers_are_refused() {
    let mut world = World::new(3, Settings::default(), 3);
    let vdi = world.create(SIZE);
    let handle = world.open(100, vdi);
    let first = take(&mut world, handle, "one").vdi;
    let me = Member { node: NodeId(100), incarnation: Incarnation(1) };
    let ask = |world: &mut World, handle, since| {
        world.act(100, handle, VolumeOp::Diff { offset: 0, len: SIZE, since: Some(since) })
    };
    assert_eq!(ask(&mut world, handle, vdi), Err(VolumeError::NotRelated), "no snapshot");
    assert_eq!(ask(&mut world, handle, VdiId(7)), Err(VolumeError::NotRelated), "unknown");
    assert!(ask(&mut world, handle, first).is_ok());
    let sideways = clone_of(&mut world, first, "clone");
    let other = world.open(100, sideways);
    let second = take(&mut world, other, "two").vdi;
    assert!(ask(&mut world, handle, second).is_ok(), "not older, but of the same tree");
    let delete = Command::DeleteVdi { vdi: first, guard: Guard::ClosedClean };
    world.order_now(me, delete).unwrap();
    world.publish();
    world.run(crate::world::ms(50));
    assert_eq!(ask(&mut world, handle, first), Err(VolumeError::NotRelated), "deleted");
}

/// Who cannot say anything makes it different; what cannot be read of a map makes it an error.
#[test]
fn what_cannot_be_found_out_differs() {
    let mut world = World::new(3, Settings::default(), 3);
    let vdi = world.create(SIZE);
    let handle = world.open(100, vdi);
    world.act(100, handle, write(0, OBJECT as usize, 1)).unwrap();
    let first = take(&mut world, handle, "one");
    world.act(100, handle, write(0, BLOCK, 2)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    for replica in world.replicas.values_mut() {
        replica.current.remove(&ObjectId::data(first.vid, 0));
    }
    let said = diff(&mut world, 100, handle, SIZE, Some(first.vdi));
    assert!(said[..PER_OBJECT].iter().all(|said| *said == Difference::Data));
    assert!(said[PER_OBJECT..].iter().all(|said| *said == Difference::Same));
    for replica in world.replicas.values_mut() {
        replica.memory.remove(&ObjectId::map(first.vid, 0));
        replica.current.remove(&ObjectId::map(first.vid, 0));
    }
    let second = take(&mut world, handle, "two").vdi;
    let closed = read_only(&mut world, 101, second);
    let op = VolumeOp::Diff { offset: 0, len: SIZE, since: Some(first.vdi) };
    assert_eq!(world.act(101, closed, op), Err(VolumeError::Io));
}

/// A map that does not fit the cache is compared piece by piece.
#[test]
fn a_large_volume_is_more_than_one_answer() {
    let mut world = World::new(3, Settings::default(), 9);
    let config = GatewayConfig { map_blocks: 8, ..Default::default() };
    world.start_gateway_with(Member { node: NodeId(100), incarnation: Incarnation(1) }, config);
    let size = 20 << 30;
    let vdi = world.create(size);
    let handle = world.open(100, vdi);
    let far = size - OBJECT;
    world.act(100, handle, write(far, BLOCK, 1)).unwrap();
    let first = take(&mut world, handle, "one").vdi;
    world.act(100, handle, write(far + BLOCK as u64, BLOCK, 1)).unwrap();
    let op = |offset| VolumeOp::Diff { offset, len: size - offset, since: Some(first) };
    let (mut offset, mut calls, mut found) = (0, 0, Vec::new());
    while offset < size {
        let VolumeReply::Diff(extents) = world.act(100, handle, op(offset)).unwrap() else { panic!() };
        calls += 1;
        for extent in extents {
            if extent.difference != Difference::Same {
                found.push((offset, extent.len));
            }
            offset += extent.len;
        }
    }
    assert_eq!(found, [(far + BLOCK as u64, BLOCK as u64)]);
    assert!(calls > 50, "{calls} answers for {} objects", size / OBJECT);
}

/// A snapshot ends within a block, and the volume has grown since and lost what was there: that block is not the same.
#[test]
fn a_snapshot_may_end_within_a_block() {
    let mut world = World::new(3, Settings::default(), 4);
    let (end, rest) = (OBJECTS * OBJECT, 3 * 512);
    let vdi = world.create(end + rest);
    let handle = world.open(100, vdi);
    world.act(100, handle, write(end, rest as usize, 7)).unwrap();
    let snapshot = take(&mut world, handle, "one").vdi;
    let offset = end;
    let zero = VolumeOp::WriteZeroes { offset, len: rest, fua: false, no_hole: false, fast_zero: false };
    world.act(100, handle, zero).unwrap();
    let guard = Guard::Held(world.state.vdi(vdi).unwrap().lock.unwrap().generation);
    let resize = Command::ResizeVdi { vdi, size: end + 2 * BLOCK as u64, shrink: false, guard };
    let me = Member { node: NodeId(100), incarnation: Incarnation(1) };
    world.order_now(me, resize).unwrap();
    world.publish();
    world.run(std::time::Duration::from_millis(100));
    let op = VolumeOp::Diff { offset, len: 2 * BLOCK as u64, since: Some(snapshot) };
    let Ok(VolumeReply::Diff(said)) = world.act(100, handle, op) else { panic!("no answer") };
    assert_eq!((said[0].len, said[0].difference), (BLOCK as u64, Difference::Zero), "{said:?}");
    assert_eq!(said[1].difference, Difference::Same, "what is new is zeros");
}

/// The snapshot is deleted, and its vid forgotten, while its map is being read: the comparison fails, and the volume can be
/// closed.
#[test]
fn a_snapshot_may_go_while_it_is_compared_with() {
    let mut world = World::new(3, Settings::default(), 5);
    let vdi = world.create(SIZE);
    let handle = world.open(100, vdi);
    let [first, second] = ["one", "two"].map(|tag| {
        world.act(100, handle, write(0, BLOCK, 1)).unwrap();
        take(&mut world, handle, tag).vdi
    });
    close(&mut world, 100, handle);
    let me = Member { node: NodeId(101), incarnation: Incarnation(1) };
    let back = Command::Rollback { vdi, snapshot: first, guard: Guard::ClosedClean };
    world.order_now(me, back).unwrap();
    world.publish();
    let handle = world.open(100, vdi);
    world.deaf.extend((1..=3).map(|node| (NodeId(node), "read")));
    let op = VolumeOp::Diff { offset: 0, len: SIZE, since: Some(second) };
    let asked = world.submit(100, handle, op);
    world.run(crate::world::ms(50));
    assert_eq!(world.answer(asked), None);
    world.order_now(me, Command::DeleteVdi { vdi: second, guard: Guard::ClosedClean }).unwrap();
    world.publish();
    world.run(std::time::Duration::from_secs(1));
    assert_eq!(world.answer(asked), Some(Err(VolumeError::NotRelated)));
    world.deaf.clear();
    close(&mut world, 100, handle);
    world.open(101, vdi);
}

/// A member has a write that makes a block what it was in the snapshot, and nobody else has it: it may never have been.
#[test]
fn what_only_one_member_has_proves_nothing() {
    for seed in 0..8 {
        let mut world = World::new(3, Settings::default(), seed);
        let vdi = world.create(SIZE);
        let handle = world.open(100, vdi);
        world.act(100, handle, write(0, 4 * BLOCK, 1)).unwrap();
        let taken = take(&mut world, handle, "one");
        world.act(100, handle, write(0, BLOCK, 2)).unwrap();
        let nodes: Vec<NodeId> = world.replicas.keys().copied().collect();
        // Asked before the write comes, and answered after it.
        world.deaf.extend(nodes.iter().map(|node| (*node, "other")));
        let op = VolumeOp::Diff { offset: 0, len: OBJECT, since: Some(taken.vdi) };
        let diff = world.submit(100, handle, op);
        world.run(ms(5));
        let lacks = nodes[seed as usize % nodes.len()];
        world.deaf.insert((lacks, "write"));
        let io = world.submit(100, handle, write(0, BLOCK, 1));
        world.run(ms(50));
        world.deaf.retain(|(_, kind)| *kind == "write");
        world.run(Duration::from_secs(2));
        assert_eq!(world.answer(io), None);
        let Some(Ok(VolumeReply::Diff(extents))) = world.answer(diff) else { panic!("not compared") };
        assert_ne!(extents[0].difference, Difference::Same, "{seed}: {extents:?}");
        world.deaf.clear();
        world.run(Duration::from_secs(5));
        assert_eq!(world.answer(io), Some(Ok(VolumeReply::Done)));
    }
}
