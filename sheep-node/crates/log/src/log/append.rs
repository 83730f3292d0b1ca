//! What is put into the log, and how far it is on disk.

use super::Log;
use crate::api::{Note, Output, PersistId};
use crate::entry::{Entry, install_body, ordered_body};
use crate::mutant::Mutant;
use bytes::Bytes;
use sheep_types::{Place, Term, Time};

/// A write that is not known to be durable yet, and what will be when it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    id: PersistId,
    last: Place,
    promised: Term,
    /// Length of the file then; zero if the file was replaced since.
    len: u64,
}

impl Log {
    /// Keeps a number for the ring. It is durable when [`handle_durable`](Self::handle_durable) was told
    /// of the id given back, or a higher one.
    pub fn persist_number(&mut self, number: u64) -> PersistId {
        self.number = self.number.max(number);
        self.writer.number(self.number);
        self.next_persist
    }

    /// Everything up to this write is durable.
    pub fn handle_durable(&mut self, now: Time, upto: PersistId) {
        if self.stopped {
            return;
        }
        while let Some(write) = self.in_flight.front().copied().filter(|w| w.id <= upto) {
            self.in_flight.pop_front();
            self.writer.synced = self.writer.synced.max(write.len);
            self.durable_promise = self.durable_promise.max(write.promised);
            // A later write may have replaced what this one ended with. Then there is nothing to say about
            // the present log until that one is durable.
            if self.chain.contains(&write.last) {
                self.durable = write.last;
            }
        }
        self.send_promise();
        self.update_commit(now);
        self.refresh_note();
    }

    /// Writes what was collected.
    pub(super) fn flush(&mut self) {
        if self.writer.is_flushed() {
            return;
        }
        if self.commit.index > self.recorded_commit {
            // Costs nothing beside other records, and saves a restarted node from waiting for a primary
            // before it knows what is committed.
            self.recorded_commit = self.commit.index;
            self.writer.commit(self.commit);
        }
        let records = self.writer.flush();
        let id = self.track_write();
        self.outputs.push_back(Output::Persist { id, records });
    }

    /// Replaces the file by what is in memory.
    pub(super) fn rewrite(&mut self) {
        let mut writer = crate::record::RecordWriter::default();
        if let Some(snapshot) = &self.snapshot {
            writer.snapshot(self.chain.root(), snapshot);
        }
        writer.number(self.number);
        writer.promise(self.promised);
        for entry in self.chain.entries_after(self.chain.root().index) {
            writer.entry(entry);
        }
        if self.chain.contains(&self.commit) {
            writer.commit(self.commit);
            self.recorded_commit = self.commit.index;
        }
        let contents = writer.flush();
        self.writer = writer;
        for write in &mut self.in_flight {
            write.len = 0;
        }
        let id = self.track_write();
        self.outputs.push_back(Output::Rewrite { id, contents });
    }

    fn track_write(&mut self) -> PersistId {
        let id = self.next_persist;
        self.next_persist = PersistId(id.0 + 1);
        let (last, promised, len) = (self.chain.last(), self.promised, self.writer.end());
        self.in_flight.push_back(InFlight { id, last, promised, len });
        id
    }

    /// Appends the entry that an ordered message makes in the present term.
    pub(super) fn append_ordered(&mut self, term: Term, payload: Bytes) {
        let entry = Entry::after(&self.chain.last(), term, ordered_body(payload));
        self.append(entry);
    }

    /// Appends the install entry of a term to its base, and cuts off what the base does not have.
    pub(super) fn append_install(&mut self, base: Place, term: Term, members: &[sheep_types::Member]) {
        assert!(base.index >= self.commit.index, "committed entries are never cut off");
        self.stats.replaced += self.chain.cut_after(base.index);
        let entry = Entry::after(&base, term, install_body(term, members));
        self.append(entry);
    }

    pub(super) fn append(&mut self, entry: Entry) {
        // To append an entry of a term is to promise the term.
        self.promised = self.promised.max(entry.place.term);
        self.writer.entry(&entry);
        self.chain.push(entry);
        self.chain.settle(self.commit.index);
        self.stats.appended += 1;
    }

    /// Puts out this node's note if it changed.
    pub(super) fn refresh_note(&mut self) {
        let term = self.term();
        let mut durable = self.durable;
        if self.without(Mutant::ConfirmNotDurable) {
            durable = self.chain.last();
        }
        let promised = term != Term::default() && (self.durable_promise == term || durable.term == term);
        let note = Note { written_rotation: 0, term, durable, commit: self.commit, promised, flags: 0 };
        if note != self.note {
            self.note = note;
            self.outputs.push_back(Output::Note(note));
        }
    }
}
