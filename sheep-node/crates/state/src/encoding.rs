//! Bytes of commands and of the first entry, as they stand in the log.

use crate::{Command, EntryKind, Genesis};
use sheep_types::{ClusterId, CommandSeq, Geometry, Member};

/// First byte of an encoded command. Another one is not understood.
const COMMAND_FORMAT: u8 = 1;

impl Command {
    /// Bytes for the log.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![COMMAND_FORMAT]).expect("plain data encodes")
    }

    /// From the log. What cannot be decoded is [`Command::Unknown`]: it has taken its number in the order, on
    /// every node alike, and is refused when applied.
    pub fn decode(bytes: &[u8]) -> Self {
        match bytes.split_first() {
            Some((&COMMAND_FORMAT, rest)) => match postcard::take_from_bytes(rest) {
                Ok((command, [])) => command,
                Ok(_) | Err(_) => Self::Unknown,
            },
            Some(_) | None => Self::Unknown,
        }
    }
}

impl Genesis {
    /// Bytes for the log.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![COMMAND_FORMAT]).expect("plain data encodes")
    }

    /// From the log; `None` if these are not the bytes of a genesis entry of this version, or of one that could
    /// not work.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&format, rest) = bytes.split_first()?;
        match postcard::take_from_bytes::<Self>(rest) {
            Ok((genesis, [])) if format == COMMAND_FORMAT && genesis.is_valid() => Some(genesis),
            Ok(_) | Err(_) => None,
        }
    }

    /// Whether a cluster can begin like this.
    pub fn is_valid(&self) -> bool {
        let mut voters = self.voters.clone();
        voters.sort_unstable();
        voters.dedup();
        self.cluster != ClusterId(0)
            && Geometry::with_object_size(self.geometry.object_size()).is_ok()
            && self.settings.validate().is_ok()
            && voters.len() == self.voters.len()
            && !voters.len().is_multiple_of(2)
    }
}

impl EntryKind {
    /// A command as the log gives it.
    pub fn command(origin: Member, seq: CommandSeq, bytes: &[u8]) -> Self {
        Self::Command { origin, seq, command: Command::decode(bytes) }
    }
}
