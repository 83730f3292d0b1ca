//! Bits that flip in messages between data paths. Messages are encoded, damaged and decoded here as they are on a
//! connection; whatever is no message any more ends the connection.

use crate::world::World;
use sheep_wire::{DecodeError, HEADER_LEN, Message, Packet, decode_header, decode_message, encode};

/// How long a connection is away that has ended.
const AWAY: u64 = 50_000_000;

impl World {
    /// The packet as it arrives, perhaps with a bit flipped; `None` if nobody could read it.
    pub(crate) fn flip(&mut self, node: usize, to: usize, packet: Packet) -> Option<Packet> {
        if self.options.flips == 0 {
            return Some(packet);
        }
        // Replies go back on the connection of those who asked.
        let caller = if matches!(packet.message, Message::Request(_)) { (node, to) } else { (to, node) };
        if self.broken.get(&caller).is_some_and(|until| *until > self.now) {
            return None;
        }
        if !self.rng.chance(self.options.flips) {
            return Some(packet);
        }
        let frame = encode(&packet.header, &packet.message);
        let head = frame.head.len();
        let mut bytes = frame.head.to_vec();
        frame.payload.iter().for_each(|part| bytes.extend_from_slice(part));
        let bit = self.rng.index(8 * bytes.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
        match decode(&bytes) {
            Ok((header, message)) => {
                // Payload has its checksums in the message, for those who use it.
                if bit / 8 < head {
                    self.violate(format!("nobody noticed that bit {bit} of a message flipped"));
                }
                self.counts.payloads_flipped += 1;
                self.trace.say(self.now, &format!("a bit flips in what node {node} sends to node {to}"));
                Some(Packet { to: packet.to, header, message })
            }
            Err(problem) => {
                self.counts.frames_flipped += 1;
                let end = format!("connection of node {} to node {} ends: {problem}", caller.0, caller.1);
                self.trace.say(self.now, &end);
                self.broken.insert(caller, self.now + AWAY);
                None
            }
        }
    }
}

fn decode(bytes: &[u8]) -> Result<(sheep_wire::Header, Message), DecodeError> {
    let cut = DecodeError::Malformed("header");
    let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(cut)?;
    let raw = decode_header(header)?;
    let (body, payload) = rest.split_at_checked(raw.body_len).ok_or(cut)?;
    let message = decode_message(&raw, body, payload.to_vec().into())?;
    Ok((raw.header, message))
}
