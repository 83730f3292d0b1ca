//! What the hand does as if it were a gateway: writes and reads of single blocks.

use super::{Net, block};
use sheep_state::{Command, Guard, Outcome, SnapshotItem};
use sheep_types::{Birth, Generation, ObjectId, VdiId, Version, Vid};
use sheep_wire::{Body, Confirmed, ExtentState, Reply, Request, WriteRequest};

/// A VDI that the hand holds.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) vdi: VdiId,
    pub(crate) vid: Vid,
    pub(crate) birth: Birth,
    pub(crate) generation: Generation,
    pub(crate) sequence: u64,
    pub(crate) confirmed: u64,
}

impl Held {
    /// Runs until the view with the grant has reached everybody.
    pub(crate) fn locked(&mut self, net: &mut Net) {
        self.lock(net);
        net.run_for(core::time::Duration::from_millis(10));
    }

    pub(crate) fn new(net: &mut Net, name: &str) -> Self {
        Self::with_objects(net, name, 16)
    }

    pub(crate) fn with_objects(net: &mut Net, name: &str, objects: u64) -> Self {
        let (vdi, vid) = net.vdi(name, objects);
        let birth = net.log.state.vid(vid).unwrap().birth;
        let mut held = Self { vdi, vid, birth, generation: Generation(0), sequence: 0, confirmed: 0 };
        held.lock(net);
        held
    }

    /// A snapshot, which everybody has heard of; the hand goes on under the new vid. Gives the old one.
    pub(crate) fn snapshot(&mut self, net: &mut Net, tag: &str) -> Vid {
        let item = SnapshotItem {
            vdi: self.vdi,
            guard: Guard::Held(self.generation),
            tag: tag.to_owned(),
            attributes: Default::default(),
            created_unix_ms: 0,
        };
        let Ok(Outcome::Snapshots(made)) = net.log.run(super::HAND, Command::Snapshot { items: vec![item] })
        else {
            panic!("no snapshot")
        };
        net.distribute();
        net.run_for(core::time::Duration::from_millis(10));
        self.vid = made[0].working;
        self.birth = net.log.state.vid(self.vid).unwrap().birth;
        made[0].vid
    }

    /// A new generation. Settling is up to the test.
    pub(crate) fn lock(&mut self, net: &mut Net) {
        self.generation = net.log.lock(self.vdi);
        net.distribute();
        (self.sequence, self.confirmed) = (0, 0);
    }

    pub(crate) fn object(&self, index: u32) -> ObjectId {
        ObjectId::data(self.vid, index)
    }

    pub(crate) fn version(&self, sequence: u64) -> Version {
        Version { generation: self.generation, sequence }
    }

    /// The next write: block 0 of the object becomes `tag`.
    pub(crate) fn write(
        &mut self,
        index: u32,
        previous: Option<Version>,
        create: bool,
        tag: u64,
    ) -> WriteRequest {
        self.sequence += 1;
        let (payload, crcs) = block(tag);
        WriteRequest {
            object: self.object(index),
            birth: self.birth,
            previous,
            version: self.version(self.sequence),
            create,
            base: None,
            offset: 0,
            body: Body::Data { payload, crcs: crcs.into() },
            durable: false,
            confirmed: Confirmed { upto: self.confirmed, except: Default::default() },
        }
    }

    /// The next write to an object that exists: so many blocks from `first` on become `tag`, `tag` + 1 and so on.
    pub(crate) fn fill(
        &mut self,
        index: u32,
        previous: Version,
        blocks: core::ops::Range<u32>,
        tag: u64,
    ) -> WriteRequest {
        let mut write = self.write(index, Some(previous), false, tag);
        write.offset = blocks.start * super::BLOCK as u32;
        let (mut payload, mut crcs) = (Vec::new(), Vec::new());
        for i in 0..u64::from(blocks.end - blocks.start) {
            let (bytes, crc) = block(tag + i);
            payload.extend_from_slice(&bytes);
            crcs.extend(crc);
        }
        write.body = Body::Data { payload: payload.into(), crcs: crcs.into() };
        write
    }

    /// The next write to an object that exists: these blocks become zeros.
    pub(crate) fn zero(
        &mut self,
        index: u32,
        previous: Version,
        blocks: core::ops::Range<u32>,
    ) -> WriteRequest {
        let mut write = self.write(index, Some(previous), false, 0);
        write.offset = blocks.start * super::BLOCK as u32;
        write.body = Body::Zero { len: (blocks.end - blocks.start) * super::BLOCK as u32 };
        write
    }

    /// What all blocks of an object hold at a node: `None` absent, 0 zeros.
    pub(crate) fn blocks(&self, net: &mut Net, index: u32, from: u64) -> Vec<Option<u64>> {
        let len = super::geometry().object_size();
        let request = Request::Read { object: self.object(index), birth: self.birth, offset: 0, len };
        let Reply::Read(read) = net.call(from, self.generation, request) else {
            panic!("object {index} is not read from {from}");
        };
        let mut data = read.data.iter();
        let mut blocks = Vec::new();
        for extent in &read.extents {
            let count = extent.len as usize / super::BLOCK;
            match extent.state {
                ExtentState::Absent => blocks.extend(vec![None; count]),
                ExtentState::Zero => blocks.extend(vec![Some(0); count]),
                ExtentState::Lost => panic!("a read tells what is lost by an error"),
                ExtentState::Data => {
                    let bytes = data.next().unwrap().chunks(super::BLOCK);
                    blocks.extend(bytes.map(|b| Some(u64::from_le_bytes(*b.first_chunk().unwrap()))));
                }
            }
        }
        blocks
    }

    /// Sends a write to these nodes and expects that all do it.
    pub(crate) fn send(&self, net: &mut Net, write: &WriteRequest, to: &[u64]) {
        let numbers: Vec<u64> =
            to.iter().map(|node| net.ask(*node, self.generation, Request::Write(write.clone()))).collect();
        for number in numbers {
            assert_eq!(net.answer(number), Reply::Done);
        }
    }

    pub(crate) fn flush(&self, net: &mut Net, to: &[u64]) {
        for node in to {
            assert_eq!(net.call(*node, self.generation, Request::Flush { vid: self.vid }), Reply::Done);
        }
    }

    pub(crate) fn read(&self, net: &mut Net, index: u32, from: u64) -> Reply {
        let request = Request::Read {
            object: self.object(index),
            birth: self.birth,
            offset: 0,
            len: super::BLOCK as u32,
        };
        net.call(from, self.generation, request)
    }

    /// The number in block 0 of the object at a node, or why there is none. Asks again while the copy is not
    /// current.
    pub(crate) fn tag(&self, net: &mut Net, index: u32, from: u64) -> Result<u64, Reply> {
        for _ in 0..200 {
            match self.read(net, index, from) {
                Reply::Refused(sheep_wire::Refusal::NotCurrent | sheep_wire::Refusal::StaleEpoch(_)) => {
                    net.run_for(core::time::Duration::from_millis(20));
                }
                Reply::Read(read) => {
                    return Ok(match read.extents.first().map(|extent| extent.state) {
                        Some(ExtentState::Data) => {
                            let bytes = read.data.first().and_then(|data| data.first_chunk()).unwrap();
                            u64::from_le_bytes(*bytes)
                        }
                        _ => 0,
                    });
                }
                other => return Err(other),
            }
        }
        Err(Reply::Refused(sheep_wire::Refusal::NotCurrent))
    }
}
