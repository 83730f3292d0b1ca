//! What the hand does as if it were a gateway: writes and reads of single blocks.

use super::{Net, block};
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
        let (vdi, vid) = net.vdi(name, 16);
        let birth = net.log.state.vid(vid).unwrap().birth;
        let mut held = Self { vdi, vid, birth, generation: Generation(0), sequence: 0, confirmed: 0 };
        held.lock(net);
        held
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
            offset: 0,
            body: Body::Data { payload, crcs },
            durable: false,
            confirmed: Confirmed { upto: self.confirmed, except: Vec::new() },
        }
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
