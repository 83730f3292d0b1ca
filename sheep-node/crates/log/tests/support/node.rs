//! One node of the model: a log, its file, and what is on its way to the disk.

use super::state::State;
use bytes::Bytes;
use sheep_log::{Log, LogConfig, Note, PersistId, Recovered};
use sheep_types::{Incarnation, Member, NodeId, Time};
use std::collections::VecDeque;

/// A write that the disk has not confirmed.
#[derive(Debug)]
pub enum Write {
    Append(PersistId, Bytes),
    Replace(PersistId, Bytes),
}

#[derive(Debug)]
pub struct SimNode {
    pub id: NodeId,
    pub incarnation: u64,
    pub log: Option<Log>,
    pub file: Vec<u8>,
    pub writes: VecDeque<Write>,
    /// The ring's durable number; kept apart here, durable at once.
    pub number: u64,
    /// Index of the ring (configuration) it is in.
    pub ring: Option<usize>,
    /// Messages not ordered yet.
    pub submit: VecDeque<Bytes>,
    pub state: State,
    pub note: Note,
    /// Commands proposed in this run.
    pub proposed: u64,
    pub form_again: bool,
    /// Disk writes wait.
    pub slow_disk: bool,
    /// Flow control of the ring lets none of its messages through.
    pub mute: bool,
}

impl SimNode {
    pub fn new(id: u64) -> Self {
        Self {
            id: NodeId(id),
            incarnation: 0,
            log: None,
            file: Vec::new(),
            writes: VecDeque::new(),
            number: 0,
            ring: None,
            submit: VecDeque::new(),
            state: State::default(),
            note: Note::default(),
            proposed: 0,
            form_again: false,
            slow_disk: false,
            mute: false,
        }
    }

    pub fn member(&self) -> Member {
        Member { node: self.id, incarnation: Incarnation(self.incarnation) }
    }

    pub fn start(&mut self, config: &LogConfig, now: Time) -> Result<(), String> {
        assert!(self.log.is_none());
        let recovered = Recovered::decode(self.file.clone().into()).map_err(|e| e.to_string())?;
        self.incarnation += 1;
        self.number = self.number.max(recovered.number());
        self.state = State::default();
        self.note = Note::default();
        self.proposed = 0;
        self.form_again = false;
        self.log = Some(Log::open(config.clone(), self.member(), recovered, now));
        Ok(())
    }

    /// Of the writes under way the first `whole` reach the disk, and `torn` bytes of the next.
    pub fn crash(&mut self, whole: usize, torn: usize) {
        for _ in 0..whole {
            self.complete_write();
        }
        if let Some(Write::Append(_, bytes)) = self.writes.front() {
            self.file.extend_from_slice(&bytes[..torn.min(bytes.len())]);
        }
        self.writes.clear();
        self.submit.clear();
        self.log = None;
        self.ring = None;
    }

    /// The oldest write reaches the disk.
    pub fn complete_write(&mut self) -> Option<PersistId> {
        match self.writes.pop_front()? {
            Write::Append(id, bytes) => {
                self.file.extend_from_slice(&bytes);
                Some(id)
            }
            Write::Replace(id, bytes) => {
                self.file = bytes.to_vec();
                Some(id)
            }
        }
    }
}
