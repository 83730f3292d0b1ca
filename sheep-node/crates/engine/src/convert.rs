//! Between the words of the ring and those of the log, which do not know each other.

use sheep_state::{Command, EntryKind, Genesis};
use sheep_totem as totem;

pub(crate) fn configuration(from: totem::Configuration) -> sheep_log::Configuration {
    sheep_log::Configuration {
        id: from.id,
        regular: from.kind == totem::ConfigurationKind::Regular,
        members: from.members,
    }
}

pub(crate) fn delivery(from: totem::Delivery) -> sheep_log::Delivery {
    sheep_log::Delivery {
        config: from.config,
        position: from.position,
        sender: from.sender,
        payload: from.payload,
        transitional: from.transitional,
    }
}

pub(crate) fn token(from: &totem::TokenSeen) -> sheep_log::TokenSeen {
    sheep_log::TokenSeen {
        config: from.config,
        rotation: from.rotation,
        passed_previous: from.passed_previous,
        notes: from.notes.iter().map(|(member, note)| (*member, note_to_log(note))).collect(),
    }
}

fn note_to_log(from: &totem::Note) -> sheep_log::Note {
    sheep_log::Note {
        written_rotation: from.written_rotation,
        term: from.term,
        durable: from.durable,
        commit: from.commit,
        promised: from.promised,
        flags: from.flags,
    }
}

pub(crate) fn note_to_ring(from: sheep_log::Note) -> totem::Note {
    totem::Note {
        written_rotation: from.written_rotation,
        term: from.term,
        durable: from.durable,
        commit: from.commit,
        promised: from.promised,
        flags: from.flags,
    }
}

/// What a committed entry means to the state. Every entry takes its index, understood or not.
pub(crate) fn entry(from: &sheep_log::CommittedKind) -> EntryKind {
    use sheep_log::CommittedKind as Kind;
    match from {
        Kind::Genesis { command, .. } => {
            Genesis::decode(command).map_or(EntryKind::Unknown, EntryKind::Genesis)
        }
        Kind::Install { term, members } => EntryKind::Install { term: *term, members: members.clone() },
        Kind::Voters { list } => EntryKind::Voters { voters: list.clone() },
        Kind::Command { origin, seq, command } => {
            EntryKind::Command { origin: *origin, seq: *seq, command: Command::decode(command) }
        }
        Kind::Unknown => EntryKind::Unknown,
    }
}
