//! What gateways say, held against the model.

use crate::support::BLOCK;
use crate::world::{Io, World, Write};
use sheep_datapath::{GatewayOutput, ReadExtent, VolumeError, VolumeReply};

impl World {
    pub(crate) fn listen(&mut self) {
        for (node, output) in core::mem::take(&mut self.net.said) {
            let Some(session) = &mut self.session else { continue };
            if session.node != node.0 {
                continue;
            }
            let mine = session.handle;
            match output {
                GatewayOutput::Opened { handle, .. } if handle == mine => session.open = true,
                GatewayOutput::OpenFailed { handle, error } if handle == mine => {
                    assert!(
                        !matches!(error, sheep_datapath::OpenError::MapLost),
                        "seed {}: {error}",
                        self.seed
                    );
                    self.end_session();
                }
                GatewayOutput::Lost { handle, reason } if handle == mine => {
                    if matches!(reason, sheep_datapath::LostReason::WritesMissing) {
                        self.counts.lost += 1;
                    }
                    let (now, node) = (self.net.now, node.0);
                    self.gateway(node, |gateway| gateway.close(now, mine));
                    self.end_session();
                }
                GatewayOutput::Closed { handle } if handle == mine => self.end_session(),
                GatewayOutput::Done { handle, io, result } if handle == mine => self.done(io, result),
                _ => {}
            }
        }
    }

    fn done(&mut self, io: u64, result: Result<VolumeReply, VolumeError>) {
        let Some(io) = self.session.as_mut().and_then(|session| session.ios.remove(&io)) else { return };
        if let Err(error) = result {
            let over = matches!(error, VolumeError::Lost | VolumeError::ShuttingDown);
            assert!(over, "seed {}: {io:?} failed: {error} at {:?}", self.seed, self.net.now);
            return;
        }
        match (io, result) {
            (Io::Read { first, lows }, Ok(VolumeReply::Read(extents))) => self.check(first, &lows, &extents),
            (Io::Write { first, count }, _) => {
                self.counts.writes += 1;
                for block in &mut self.blocks[first as usize..(first + count) as usize] {
                    block.busy = false;
                    block.known = true;
                    if let Some(write) = block.writes.last_mut() {
                        write.acked = Some(self.crashes);
                    }
                }
            }
            (Io::Flush(covered), _) => {
                self.counts.flushes += 1;
                for (block, covered) in self.blocks.iter_mut().zip(covered) {
                    if let Some(write) = block.writes.iter_mut().find(|write| write.id == covered) {
                        write.flushed = true;
                    }
                }
            }
            (io, result) => panic!("seed {}: {io:?} gave {result:?}", self.seed),
        }
    }

    fn check(&mut self, first: u64, lows: &[u64], extents: &[ReadExtent]) {
        self.counts.reads += 1;
        let mut bytes = Vec::new();
        for extent in extents {
            match extent {
                ReadExtent::Data(data) => bytes.extend_from_slice(data),
                ReadExtent::Hole(len) => bytes.resize(bytes.len() + *len as usize, 0),
            }
        }
        assert_eq!(bytes.len(), lows.len() * BLOCK);
        for ((number, low), found) in (first..).zip(lows).zip(bytes.chunks(BLOCK)) {
            let tag = u64::from_le_bytes(*found.first_chunk().unwrap());
            assert!(
                found.chunks(8).all(|c| c == tag.to_le_bytes()),
                "seed {}: torn block {number}",
                self.seed
            );
            let (seed, now) = (self.seed, self.net.now);
            let block = &mut self.blocks[number as usize];
            let fits = |write: &&Write| write.tag == tag && write.id >= *low;
            let matching = block.writes.iter().filter(fits).count();
            let right = matching > 0;
            assert!(
                right,
                "seed {seed}: block {number} reads {tag}, not from {low} on of {:?}, at {now:?}",
                block.writes
            );
            // What a session has seen it goes on seeing, unless it writes.
            if !block.known && !block.busy && matching == 1 {
                block.writes.retain(|write| write.tag == tag && write.id >= *low);
                block.writes[0].acked = Some(self.crashes);
                block.writes[0].flushed = true;
                block.known = true;
            }
        }
    }
}
