//! Messages on a byte stream: taking them apart without blocking, and sending many with one system call.

use bytes::{Buf, Bytes};
use sheep_frontend::{AlignedBuf, BufferPool};
use sheep_types::BLOCK_SIZE;
use sheep_wire::{DecodeError, HEADER_LEN, Header, Message, RawHeader, decode_header, decode_message};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};

/// Bytes read at once; a small message fits many times.
const CHUNK: usize = 128 << 10;
/// Buffers given to one `writev`.
const SLICES: usize = 256;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("closed by the other side")]
    Closed,
    #[error(transparent)]
    Io(io::Error),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("{}", sheep_tls::sentence(.0))]
    Tls(rustls::Error),
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => Self::Tls(tls.clone()),
            None => Self::Io(error),
        }
    }
}

/// A payload that is being received, straight into its own buffer.
struct Partial {
    raw: RawHeader,
    payload: AlignedBuf,
    have: usize,
}

/// Bytes in, messages out.
pub(super) struct Receiver {
    /// Received and not taken apart yet: `start..end`. Never cleared, so that a read costs no more than its bytes.
    staging: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read got less than it could take: the socket was empty.
    drained: bool,
    partial: Option<Partial>,
    /// The variable part of the message whose payload is being received.
    body: Vec<u8>,
    pool: BufferPool,
}

impl Receiver {
    pub(super) fn new(pool: BufferPool) -> Self {
        Self { staging: Vec::new(), start: 0, end: 0, drained: false, partial: None, body: Vec::new(), pool }
    }

    /// Bytes that are not taken apart yet; the handshake comes before the first message.
    pub(super) fn unread(&self) -> &[u8] {
        self.staging.get(self.start..self.end).unwrap_or_default()
    }

    /// Forgets the first `n` bytes of [`Receiver::unread`].
    pub(super) fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }

    /// Reads once. `false`: nothing there now. A read that got less than it had room for has emptied the socket, and is not
    /// followed by another one until the next event, unless the other side is `closing`: its end shows only in a read that
    /// gets nothing.
    pub(super) fn read(&mut self, stream: &mut impl Read, closing: bool) -> Result<bool, StreamError> {
        if std::mem::take(&mut self.drained) && !closing {
            return Ok(false);
        }
        if let Some(partial) = &mut self.partial {
            let rest = partial.payload.as_mut_slice().get_mut(partial.have..).unwrap_or_default();
            let room = rest.len();
            let n = read_some(stream, rest)?;
            partial.have += n;
            self.drained = n > 0 && n < room;
            return Ok(n > 0);
        }
        self.make_room();
        let rest = self.staging.get_mut(self.end..).unwrap_or_default();
        let room = rest.len();
        let n = read_some(stream, rest)?;
        self.end += n;
        self.drained = n > 0 && n < room;
        Ok(n > 0)
    }

    /// What is unread goes to the front; a variable part that is longer than a chunk gets more room.
    fn make_room(&mut self) {
        self.staging.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.staging.len() < self.end + CHUNK / 2 {
            self.staging.resize(self.end + CHUNK, 0);
        } else if self.staging.len() > 2 * CHUNK && self.end < CHUNK / 2 {
            self.staging.truncate(CHUNK);
            self.staging.shrink_to_fit();
        }
    }

    /// Next whole message.
    pub(super) fn next(&mut self) -> Result<Option<(Header, Message)>, StreamError> {
        if self.partial.is_none() {
            self.begin()?;
        }
        let Some(partial) = &self.partial else { return Ok(None) };
        if partial.have < partial.raw.payload_len {
            return Ok(None);
        }
        let Some(Partial { raw, payload, .. }) = self.partial.take() else { return Ok(None) };
        let payload = if raw.payload_len == 0 { Bytes::new() } else { payload.freeze() };
        let message = decode_message(&raw, &self.body, payload)?;
        Ok(Some((raw.header, message)))
    }

    /// Takes the next header, variable part and what is here of the payload out of the staging buffer.
    fn begin(&mut self) -> Result<(), StreamError> {
        let Some(fixed) = self.unread().first_chunk::<HEADER_LEN>() else { return Ok(()) };
        let raw = decode_header(fixed)?;
        let unread = self.staging.get(self.start..self.end).unwrap_or_default();
        let Some(body) = unread.get(HEADER_LEN..HEADER_LEN + raw.body_len) else { return Ok(()) };
        self.body.clear();
        self.body.shrink_to(CHUNK);
        self.body.extend_from_slice(body);
        self.consume(HEADER_LEN + raw.body_len);
        let mut payload = self.pool.take(raw.payload_len, 0);
        let have = raw.payload_len.min(self.unread().len());
        if let (Some(to), Some(from)) = (payload.as_mut_slice().get_mut(..have), self.unread().get(..have)) {
            to.copy_from_slice(from);
        }
        self.consume(have);
        self.partial = Some(Partial { raw, payload, have });
        Ok(())
    }
}

/// Reads once; zero means that nothing is there now, the end is an error.
fn read_some(stream: &mut impl Read, buffer: &mut [u8]) -> Result<usize, StreamError> {
    loop {
        match stream.read(buffer) {
            Ok(0) => return Err(StreamError::Closed),
            Ok(n) => return Ok(n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Bytes that wait to be sent.
#[derive(Default)]
pub(super) struct SendQueue {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl SendQueue {
    pub(super) fn push(&mut self, chunk: impl Into<Bytes>) {
        let chunk = chunk.into();
        if !chunk.is_empty() {
            self.bytes += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts what another queue has behind what is here.
    pub(super) fn append(&mut self, mut other: Self) {
        self.bytes += other.bytes;
        self.chunks.append(&mut other.chunks);
    }

    /// Sends until nothing is left or the socket takes no more.
    pub(super) fn send(&mut self, stream: &mut impl Write) -> io::Result<()> {
        while !self.chunks.is_empty() {
            let sent = {
                let chunks = self.chunks.iter().take(SLICES);
                let slices: SmallVec<[IoSlice<'_>; 64]> = chunks.map(|chunk| IoSlice::new(chunk)).collect();
                stream.write_vectored(&slices)
            };
            match sent {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn sent(&mut self, mut n: usize) {
        self.bytes -= n;
        while let Some(first) = self.chunks.front_mut() {
            if n < first.len() {
                first.advance(n);
                return;
            }
            n -= first.len();
            self.chunks.pop_front();
        }
    }
}

const _: () = assert!(CHUNK > HEADER_LEN + BLOCK_SIZE as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sheep_types::*;
    use sheep_wire::{Body, Confirmed, MAX_BODY_LEN, MAX_PAYLOAD_LEN, Request, WriteRequest, encode};

    fn sample(n: u64) -> (Header, Message) {
        let header = Header {
            request: n,
            cluster: ClusterId(1),
            from: Member { node: NodeId(2), incarnation: Incarnation(3) },
            to: Incarnation(4),
            shard: 0,
            epoch: Epoch(5),
            relies_on: LogIndex(6),
            generation: Generation(7),
        };
        let blocks = (n % 5) as usize;
        let body =
            Body::Data { payload: vec![n as u8; blocks * 4096].into(), crcs: vec![n as u32; blocks].into() };
        let write = WriteRequest {
            object: ObjectId(n),
            birth: Birth(1),
            previous: None,
            version: Version::default(),
            create: false,
            base: None,
            offset: 0,
            body,
            durable: false,
            confirmed: Confirmed::default(),
        };
        (header, Message::Request(Request::Write(write)))
    }

    /// Gives its bytes in pieces, and between them nothing.
    struct Pieces(VecDeque<Vec<u8>>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some(mut piece) = self.0.pop_front() else { return Err(io::ErrorKind::WouldBlock.into()) };
            let n = piece.len().min(buffer.len());
            buffer[..n].copy_from_slice(&piece[..n]);
            if n < piece.len() {
                self.0.push_front(piece.split_off(n));
            }
            Ok(n)
        }
    }

    #[test]
    fn messages_come_out_however_the_stream_is_cut() {
        let sent: Vec<_> = (0..20).map(sample).collect();
        let mut queue = SendQueue::default();
        for (header, message) in &sent {
            let frame = encode(header, message);
            queue.push(frame.head);
            frame.payload.into_iter().for_each(|part| queue.push(part));
        }
        let mut stream = Vec::new();
        queue.send(&mut stream).unwrap();
        assert_eq!(queue.bytes(), 0);
        for piece in [1, 7, 95, 96, 97, 4096, 5000, 1 << 20] {
            assert_eq!(receive(&stream, piece), sent, "in pieces of {piece}");
        }
    }

    fn stream_of(messages: &[(Header, Message)]) -> Vec<u8> {
        let mut stream = Vec::new();
        for (header, message) in messages {
            let frame = encode(header, message);
            stream.extend_from_slice(&frame.head);
            frame.payload.iter().for_each(|part| stream.extend_from_slice(part));
        }
        stream
    }

    /// Takes a stream in pieces as a connection does; gives the messages before it ends.
    fn receive(stream: &[u8], piece: usize) -> Vec<(Header, Message)> {
        let mut input = Pieces(stream.chunks(piece).map(<[u8]>::to_vec).collect());
        let mut receiver = Receiver::new(BufferPool::new(1 << 20));
        let mut got = Vec::new();
        while !input.0.is_empty() {
            receiver.read(&mut input, false).unwrap();
            loop {
                match receiver.next() {
                    Ok(Some(message)) => got.push(message),
                    Ok(None) => break,
                    Err(_) => return got,
                }
            }
            let payload = receiver.partial.as_ref().map_or(0, |partial| partial.raw.payload_len);
            assert!(payload <= MAX_PAYLOAD_LEN && receiver.unread().len() <= HEADER_LEN + MAX_BODY_LEN);
            assert!(receiver.staging.len() <= HEADER_LEN + MAX_BODY_LEN + 2 * CHUNK);
        }
        got
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn a_damaged_stream_gives_what_was_sent_until_it_ends(
            first in 0u64..5, holes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..4),
            cut in any::<usize>(), piece in 1usize..10_000,
        ) {
            let sent: Vec<_> = (first..first + 6).map(sample).collect();
            let good = stream_of(&sent);
            let mut stream = good.clone();
            for (at, byte) in holes {
                let at = at % stream.len();
                stream[at] = byte;
            }
            stream.truncate(cut % (stream.len() + 1));
            // Payloads carry their own checksums, which those look at who use them.
            let kept = good.iter().zip(&stream).take_while(|(a, b)| a == b).count();
            let got = receive(&stream, piece);
            let whole = sent.len().min(got.len());
            let intact = (0..=whole).rev().find(|n| stream_of(&sent[..*n]).len() <= kept).unwrap();
            prop_assert!(got.len() <= sent.len() && got[..intact] == sent[..intact]);
        }

        #[test]
        fn any_header_with_a_right_checksum_is_refused_or_bounded(
            header in prop::collection::vec(any::<u8>(), HEADER_LEN - 12), kind in any::<u8>(),
            lens in any::<(u32, u32)>(), small in any::<bool>(), rest in prop::collection::vec(any::<u8>(), 0..500),
            piece in 1usize..600,
        ) {
            let mut stream = stream_of(&[sample(1)]);
            stream.truncate(HEADER_LEN);
            stream[8..HEADER_LEN - 4].copy_from_slice(&header);
            stream[6] = kind;
            let limit = if small { 600 } else { u32::MAX };
            stream[84..88].copy_from_slice(&(lens.0 % limit).to_le_bytes());
            stream[88..92].copy_from_slice(&(lens.1 % limit).to_le_bytes());
            let crc = crc32c::crc32c(&stream[..HEADER_LEN - 4]);
            stream[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
            stream.extend_from_slice(&rest);
            receive(&stream, piece);
        }

        #[test]
        fn any_bytes_end_the_stream(bytes in prop::collection::vec(any::<u8>(), 0..2000), piece in 1usize..2000) {
            prop_assert!(receive(&bytes, piece).is_empty());
        }
    }

    #[test]
    fn a_socket_that_was_found_empty_is_looked_at_again() {
        let (header, message) = sample(3);
        let bytes = stream_of(&[(header, message.clone())]);
        let mut receiver = Receiver::new(BufferPool::new(1 << 20));
        for cut in [1, 100, 5_000] {
            let (first, rest) = bytes.split_at(cut);
            assert!(!receiver.read(&mut Pieces(VecDeque::new()), false).unwrap(), "nothing there");
            assert!(receiver.read(&mut Pieces(VecDeque::from([first.to_vec()])), false).unwrap());
            assert!(
                !receiver.read(&mut Pieces(VecDeque::new()), false).unwrap(),
                "emptied by the read before"
            );
            assert!(receiver.next().unwrap().is_none());
            assert!(!receiver.read(&mut Pieces(VecDeque::new()), false).unwrap(), "nothing there again");
            assert!(receiver.read(&mut Pieces(VecDeque::from([rest.to_vec()])), false).unwrap());
            assert_eq!(receiver.next().unwrap(), Some((header, message.clone())));
            assert!(!receiver.read(&mut Pieces(VecDeque::new()), false).unwrap());
        }
    }

    #[test]
    fn garbage_ends_the_stream() {
        let mut receiver = Receiver::new(BufferPool::new(1 << 20));
        receiver.read(&mut Pieces(VecDeque::from([vec![0x55; 500]])), false).unwrap();
        assert!(matches!(receiver.next(), Err(StreamError::Decode(DecodeError::Magic))));
    }
}
