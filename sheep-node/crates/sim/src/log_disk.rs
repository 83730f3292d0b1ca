//! The disk under a node's log file: writes in order, loses what was not synced.

use crate::rng::Rng8;
use sheep_engine::FileId;
use std::collections::VecDeque;

enum Write {
    Append(FileId, Vec<u8>),
    Replace(FileId, Vec<u8>),
}

/// A file whose appends become durable later, in order.
#[derive(Default)]
pub struct LogDisk {
    durable: Vec<u8>,
    pending: VecDeque<Write>,
}

impl LogDisk {
    /// A file with these durable contents.
    pub fn with(durable: Vec<u8>) -> Self {
        Self { durable, pending: VecDeque::new() }
    }

    /// What a start finds.
    pub fn contents(&self) -> &[u8] {
        assert!(self.pending.is_empty(), "a start follows a crash");
        &self.durable
    }

    /// Cuts a torn tail off.
    pub fn truncate(&mut self, len: u64) {
        self.durable.truncate(len as usize);
    }

    /// Begins an append.
    pub fn append(&mut self, id: FileId, bytes: &[u8]) {
        self.pending.push_back(Write::Append(id, bytes.to_vec()));
    }

    /// Begins an atomic replacement.
    pub fn replace(&mut self, id: FileId, bytes: &[u8]) {
        self.pending.push_back(Write::Replace(id, bytes.to_vec()));
    }

    /// Everything up to `id` is durable now.
    pub fn sync(&mut self, id: FileId) {
        while let Some(write) = self.pending.pop_front() {
            let (done, last) = match write {
                Write::Append(at, bytes) => {
                    self.durable.extend_from_slice(&bytes);
                    (at, at >= id)
                }
                Write::Replace(at, bytes) => {
                    self.durable = bytes;
                    (at, at >= id)
                }
            };
            assert!(done <= id, "completions come in order");
            if last {
                break;
            }
        }
    }

    /// Power goes: of what was not synced, any prefix survives, the last piece torn.
    pub fn crash(&mut self, rng: &mut Rng8) {
        for write in core::mem::take(&mut self.pending) {
            match write {
                Write::Append(_, bytes) => {
                    let kept = rng.range(0, bytes.len() as u64) as usize;
                    self.durable.extend_from_slice(&bytes[..kept]);
                    if kept < bytes.len() {
                        break;
                    }
                }
                Write::Replace(_, bytes) if rng.chance(500_000) => self.durable = bytes,
                Write::Replace(..) => break,
            }
        }
    }
}
