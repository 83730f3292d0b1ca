//! Several disks as one store: where copies are, what a disk takes with it, and which of two copies counts.
#![allow(clippy::unwrap_used)]

use sheep_store::{
    BlockState, Body, Condition, DiskError, Header, NOTES, Op, Outcome, Piece, SetEvent, StoreConfig,
    StoreError, StoreIdentity, StoreSet, VirtualDisk,
};
use sheep_types::{Birth, ClusterId, Epoch, Generation, Geometry, NodeId, ObjectId, Version, Vid};
use std::collections::BTreeMap;

const BLOCK: u32 = 4096;

/// A set over virtual disks, which are done with everything at once.
struct Rig {
    set: StoreSet,
    disks: BTreeMap<u64, VirtualDisk>,
    slots: BTreeMap<u8, u64>,
    done: BTreeMap<u64, Result<Outcome, StoreError>>,
    said: Vec<SetEvent>,
    last: u64,
}

fn object(index: u32) -> ObjectId {
    ObjectId::data(Vid(3), index)
}

fn header(index: u32, epoch: u64, sequence: u64) -> Header {
    Header {
        id: object(index),
        birth: Birth(1),
        version: Version { generation: Generation(1), sequence },
        validated: Epoch(epoch),
        pending: false,
    }
}

fn block(fill: u8) -> Body {
    let payload = bytes::Bytes::from(vec![fill; BLOCK as usize]);
    let crcs = vec![crc32c::crc32c(&payload)];
    Body::Data { payload, crcs }
}

fn write(header: Header, create: bool, fill: u8) -> Op {
    Op::Write { header, create, offset: 0, body: block(fill) }
}

impl Rig {
    fn new(ids: &[u64]) -> Self {
        let mut rig = Self {
            set: StoreSet::new(),
            disks: BTreeMap::new(),
            slots: BTreeMap::new(),
            done: BTreeMap::new(),
            said: Vec::new(),
            last: 0,
        };
        ids.iter().for_each(|id| _ = rig.add(*id));
        rig.run();
        rig
    }

    fn add(&mut self, id: u64) -> u8 {
        let fresh = !self.disks.contains_key(&id);
        self.disks.entry(id).or_insert_with(|| VirtualDisk::new(128 << 20));
        let geometry = Geometry::with_object_size(64 << 10).unwrap();
        let identity = StoreIdentity { cluster: ClusterId(9), node: NodeId(2), store: id };
        let slot = self.set.add(StoreConfig::small(geometry, 64 << 20), identity, fresh, 1).unwrap();
        self.slots.insert(slot, id);
        slot
    }

    /// Lets all disks do everything.
    fn run(&mut self) {
        loop {
            while let Some(event) = self.set.poll_event() {
                match event {
                    SetEvent::Done { token, result } => _ = self.done.insert(token, result),
                    other => self.said.push(other),
                }
            }
            let Some(op) = self.set.poll_disk() else { return };
            let id = op.id;
            let disk = self.disks.get_mut(&self.slots[&id.slot()]).unwrap();
            let result = disk.run(op);
            self.set.handle_disk(id, result);
        }
    }

    fn start(&mut self, op: Op, home: u8) -> u64 {
        self.last += 1;
        self.set.submit(self.last, op, home);
        self.last
    }

    fn call(&mut self, op: Op, home: u8) -> Result<Outcome, StoreError> {
        let token = self.start(op, home);
        self.run();
        self.done.remove(&token).unwrap()
    }

    fn fill(&mut self, index: u32) -> Option<u8> {
        let read = Op::Read { object: object(index), offset: 0, len: BLOCK };
        match self.call(read, 0) {
            Ok(Outcome::Read(read)) => Some(read.data.first().map_or(0, |data| data[0])),
            Err(StoreError::NotFound(_)) => None,
            other => panic!("{other:?}"),
        }
    }

    fn slot_of(&self, index: u32) -> Option<u8> {
        self.set.located(object(index)).map(|(slot, _)| slot)
    }

    /// Power goes: nothing unsynced stays.
    fn restart(self) -> Self {
        let mut disks = self.disks;
        disks.values_mut().for_each(|disk| disk.crash_seeded(0));
        let ids: Vec<u64> = disks.keys().copied().collect();
        let mut rig = Self { disks, ..Self::new(&[]) };
        ids.iter().for_each(|id| _ = rig.add(*id));
        rig.run();
        rig
    }
}

#[test]
fn copies_are_made_where_the_caller_says_and_found_there() {
    let mut rig = Rig::new(&[11, 22, 33]);
    assert_eq!(rig.said, [SetEvent::Ready]);
    for index in 0..9 {
        let op = write(header(index, 1, 1), true, index as u8 + 1);
        rig.call(op, (index % 3) as u8).unwrap();
    }
    // Where an object is counts, not where it would be made now.
    rig.call(write(header(4, 1, 2), false, 77), 0).unwrap();
    assert_eq!((rig.slot_of(4), rig.fill(4)), (Some(1), Some(77)));
    let ids: Vec<ObjectId> = rig.set.objects(object(2)).map(|header| header.id).collect();
    assert_eq!(ids, (2..9).map(object).collect::<Vec<_>>());
    rig.call(Op::Flush, 0).unwrap();
    rig.call(write(header(5, 1, 2), false, 78), 0).unwrap();
    let mut rig = rig.restart();
    assert_eq!((rig.fill(4), rig.fill(5), rig.slot_of(5)), (Some(77), Some(6), Some(2)));
    rig.call(Op::Delete { object: object(4) }, 0).unwrap();
    assert_eq!(rig.fill(4), None);
    let note = Header { id: ObjectId(u64::from(NOTES.0) << 32 | 5), ..header(0, 5, 1) };
    rig.call(Op::Write { header: note, create: true, offset: 0, body: Body::Zero { len: 0 } }, 0).unwrap();
    assert!((0..3).all(|slot| rig.set.note_on(slot, note.id) == Some(&note)), "each disk has its own");
}

#[test]
fn a_failing_disk_takes_its_objects_with_it_and_fails_the_flush() {
    let mut rig = Rig::new(&[11, 22]);
    rig.call(write(header(0, 1, 1), true, 1), 0).unwrap();
    rig.call(write(header(1, 1, 1), true, 2), 1).unwrap();
    rig.disks.get_mut(&22).unwrap().set_fail_syncs(true);
    assert_eq!(rig.call(Op::Flush, 0), Err(StoreError::Failed));
    let failed = SetEvent::DiskFailed(1, StoreError::Disk(DiskError::Io));
    assert_eq!(rig.said, [SetEvent::Ready, failed]);
    assert_eq!((rig.fill(0), rig.fill(1)), (Some(1), None));
    rig.call(Op::Flush, 0).unwrap();
    assert_eq!((rig.set.working(22), rig.set.disks().count()), (None, 2));
    // It comes back as another run of itself, with what was flushed.
    let disk = rig.disks.get_mut(&22).unwrap();
    disk.set_fail_syncs(false);
    disk.crash_seeded(0);
    let slot = rig.add(22);
    rig.run();
    assert_eq!(rig.set.working(22).map(|run| run.0), Some(2));
    assert_eq!((slot, rig.fill(1), rig.said.last()), (1, None, Some(&SetEvent::DiskReady(1))));
    // The last one ends everything.
    rig.set.remove(1);
    rig.run();
    assert_eq!(rig.said.last(), Some(&SetEvent::DiskFailed(1, StoreError::Closed)));
    assert!(rig.set.disks().all(|disk| disk.condition == Condition::Working));
    rig.set.remove(0);
    rig.run();
    assert_eq!(rig.said.last(), Some(&SetEvent::Failed(StoreError::Closed)));
    assert_eq!(rig.call(Op::Flush, 0), Err(StoreError::Failed));
}

#[test]
fn a_disk_that_was_away_comes_back_with_copies_that_do_not_count() {
    let mut rig = Rig::new(&[11, 22]);
    for index in 0..3 {
        rig.call(write(header(index, 1, 1), true, 1), 1).unwrap();
    }
    rig.call(Op::Flush, 0).unwrap();
    rig.set.remove(1);
    rig.run();
    // One was made anew; of another there is something that never counted.
    rig.call(write(header(0, 4, 1), true, 2), 0).unwrap();
    rig.call(write(header(1, 0, 9), true, 3), 0).unwrap();
    rig.disks.get_mut(&22).unwrap().crash_seeded(0);
    rig.add(22);
    rig.run();
    assert!(!rig.set.is_tidying());
    assert_eq!([rig.fill(0), rig.fill(1), rig.fill(2)], [Some(2), Some(1), Some(1)]);
    rig.call(Op::Flush, 0).unwrap();
    let mut rig = rig.restart();
    assert_eq!([rig.slot_of(0), rig.slot_of(1), rig.slot_of(2)], [Some(0), Some(1), Some(1)]);
    assert_eq!(rig.set.usage().objects, 3, "each is on one disk");
    assert_eq!(rig.fill(1), Some(1));
}

/// Moves object 0 to the second disk; what happens after so many steps is up to the caller.
fn begin_move(rig: &mut Rig) -> Header {
    rig.call(write(header(0, 1, 1), true, 5), 0).unwrap();
    rig.call(Op::Flush, 0).unwrap();
    let moved = header(0, 3, 1);
    rig.last += 1;
    rig.set.begin_move(rig.last, moved, vec![Piece { offset: 0, body: block(5) }], 1);
    rig.run();
    assert_eq!(rig.done.remove(&rig.last), Some(Ok(Outcome::Done)));
    assert_eq!((rig.slot_of(0), rig.set.is_tidying()), (Some(0), true));
    moved
}

#[test]
fn a_move_ends_with_one_copy_wherever_it_is_cut_short() {
    for step in 0..5 {
        let mut rig = Rig::new(&[11, 22]);
        let moved = begin_move(&mut rig);
        match step {
            0 => {}
            1 => rig.set.finish_move(object(0), 1, false),
            _ => {
                rig.call(Op::Flush, 0).unwrap();
                rig.set.finish_move(object(0), 1, true);
            }
        }
        rig.run();
        if step > 1 {
            assert_eq!(rig.set.header(object(0)), Some(&moved));
            assert!(!rig.set.is_tidying() && rig.slot_of(0) == Some(1));
        }
        if step == 3 {
            rig.call(Op::Flush, 0).unwrap();
        }
        if step == 4 {
            rig.call(Op::Delete { object: object(0) }, 0).unwrap();
            rig.call(Op::Flush, 0).unwrap();
        }
        let mut rig = rig.restart();
        let there = u64::from(step != 4);
        assert_eq!(rig.set.usage().objects, there, "after step {step}");
        assert_eq!(rig.fill(0), (step != 4).then_some(5), "after step {step}");
        if step == 2 || step == 3 {
            assert_eq!(rig.slot_of(0), Some(1), "the later one counts");
        }
    }
}

#[test]
fn an_object_that_is_deleted_in_the_middle_of_its_move_is_gone() {
    let mut rig = Rig::new(&[11, 22]);
    begin_move(&mut rig);
    rig.call(Op::Delete { object: object(0) }, 0).unwrap();
    rig.set.finish_move(object(0), 1, true);
    rig.run();
    assert_eq!((rig.fill(0), rig.set.usage().objects, rig.set.is_tidying()), (None, 0, false));
    // A new one of the name is another one, on whatever disk.
    rig.call(write(header(0, 4, 1), true, 8), 1).unwrap();
    rig.call(Op::Flush, 0).unwrap();
    assert_eq!(rig.restart().fill(0), Some(8));
}

#[test]
fn one_that_cannot_be_opened_does_not_keep_the_others_from_working() {
    let mut rig = Rig::new(&[11, 22]);
    rig.call(write(header(0, 1, 1), true, 5), 0).unwrap();
    rig.call(Op::Flush, 0).unwrap();
    rig.disks.get_mut(&22).unwrap().set_fail_writes(true);
    let mut rig = rig.restart();
    let failed = SetEvent::DiskFailed(1, StoreError::Disk(DiskError::Io));
    assert_eq!(rig.said, [SetEvent::Ready, failed]);
    assert_eq!(rig.fill(0), Some(5));
    let read = Op::Read { object: object(0), offset: BLOCK, len: BLOCK };
    let Ok(Outcome::Read(read)) = rig.call(read, 0) else { panic!() };
    assert_eq!(read.extents[0].state, BlockState::Absent);
}

#[test]
fn a_copy_that_does_not_count_is_kept_while_the_other_one_has_lost_blocks() {
    let mut rig = Rig::new(&[11, 22]);
    rig.call(write(header(0, 2, 1), true, 7), 1).unwrap();
    rig.call(Op::Flush, 0).unwrap();
    rig.set.remove(1);
    rig.run();
    // It was made again, of the same version, from one that had lost a block.
    let Body::Data { crcs, .. } = block(7) else { panic!() };
    let piece = Piece { offset: 0, body: Body::Lost { crcs } };
    rig.call(Op::Replace { header: header(0, 4, 1), pieces: vec![piece] }, 0).unwrap();
    rig.call(Op::Flush, 0).unwrap();
    rig.disks.get_mut(&22).unwrap().crash_seeded(0);
    rig.add(22);
    rig.run();
    for _ in 0..2 {
        assert_eq!((rig.slot_of(0), rig.set.is_tidying(), rig.set.lost_in(object(0))), (Some(0), false, 1));
        assert_eq!(rig.set.spare(object(0)), Some(&header(0, 0, 1)), "it is never current");
        rig.last += 1;
        rig.set.read_spare(rig.last, object(0), BLOCK);
        rig.run();
        let Some(Ok(Outcome::Read(read))) = rig.done.remove(&rig.last) else { panic!() };
        assert_eq!((read.extents[0].state, read.data[0][0]), (BlockState::Data, 7));
        rig.set.drop_spare(object(0));
        rig = rig.restart();
    }
    // It is the only one when the other disk fails, and not current.
    rig.set.remove(0);
    rig.run();
    assert_eq!((rig.set.header(object(0)), rig.set.spare(object(0))), (Some(&header(0, 0, 1)), None));
    let mut rig = rig.restart();
    assert!(rig.set.spare(object(0)).is_some());
    let good = Op::Patch { header: header(0, 4, 1), pieces: vec![Piece { offset: 0, body: block(7) }] };
    rig.call(good, 0).unwrap();
    rig.set.drop_spare(object(0));
    rig.run();
    assert_eq!((rig.set.usage().objects, rig.fill(0), rig.set.spare(object(0))), (1, Some(7), None));
}
