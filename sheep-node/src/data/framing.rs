//! Messages on a byte stream: taking them apart without blocking, and sending many with one system call.

use bytes::{Buf, Bytes, BytesMut};
use sheep_frontend::{AlignedBuf, BufferPool};
use sheep_types::BLOCK_SIZE;
use sheep_wire::{DecodeError, HEADER_LEN, Header, Message, RawHeader, decode_header, decode_message};
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
    Io(#[from] io::Error),
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// A payload that is being received, straight into its own buffer.
struct Partial {
    raw: RawHeader,
    body: Bytes,
    payload: AlignedBuf,
    have: usize,
}

/// Bytes in, messages out.
pub(super) struct Receiver {
    staging: BytesMut,
    partial: Option<Partial>,
    pool: BufferPool,
}

impl Receiver {
    pub(super) fn new(pool: BufferPool) -> Self {
        Self { staging: BytesMut::new(), partial: None, pool }
    }

    /// Bytes that came before the first message (the handshake).
    pub(super) fn staging(&mut self) -> &mut BytesMut {
        &mut self.staging
    }

    /// Reads once. `false`: nothing there now.
    pub(super) fn read(&mut self, stream: &mut impl Read) -> Result<bool, StreamError> {
        if let Some(partial) = &mut self.partial {
            let rest = partial.payload.as_mut_slice().get_mut(partial.have..).unwrap_or_default();
            return match read_some(stream, rest)? {
                0 => Ok(false),
                n => {
                    partial.have += n;
                    Ok(true)
                }
            };
        }
        let have = self.staging.len();
        self.staging.resize(have + CHUNK, 0);
        let result = read_some(stream, self.staging.get_mut(have..).unwrap_or_default());
        let n = *result.as_ref().unwrap_or(&0);
        self.staging.truncate(have + n);
        result.map(|n| n > 0)
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
        let Some(Partial { raw, body, payload, .. }) = self.partial.take() else { return Ok(None) };
        let payload = if raw.payload_len == 0 { Bytes::new() } else { payload.freeze() };
        let message = decode_message(&raw, &body, payload)?;
        Ok(Some((raw.header, message)))
    }

    /// Takes the next header, variable part and what is here of the payload out of the staging buffer.
    fn begin(&mut self) -> Result<(), StreamError> {
        let Some(fixed) = self.staging.first_chunk::<HEADER_LEN>() else { return Ok(()) };
        let raw = decode_header(fixed)?;
        if self.staging.len() < HEADER_LEN + raw.body_len {
            return Ok(());
        }
        self.staging.advance(HEADER_LEN);
        let body = self.staging.split_to(raw.body_len).freeze();
        let mut payload = self.pool.take(raw.payload_len, 0);
        let have = raw.payload_len.min(self.staging.len());
        if let (Some(to), Some(from)) = (payload.as_mut_slice().get_mut(..have), self.staging.get(..have)) {
            to.copy_from_slice(from);
        }
        self.staging.advance(have);
        self.partial = Some(Partial { raw, body, payload, have });
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
            let slices: Vec<IoSlice<'_>> = self.chunks.iter().take(SLICES).map(|c| IoSlice::new(c)).collect();
            match stream.write_vectored(&slices) {
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
    use sheep_types::*;
    use sheep_wire::{Body, Confirmed, Request, WriteRequest, encode};

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
        let body = Body::Data { payload: vec![n as u8; blocks * 4096].into(), crcs: vec![n as u32; blocks] };
        let write = WriteRequest {
            object: ObjectId(n),
            birth: Birth(1),
            previous: None,
            version: Version::default(),
            create: false,
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
            let mut input = Pieces(stream.chunks(piece).map(<[u8]>::to_vec).collect());
            let mut receiver = Receiver::new(BufferPool::new(1 << 20));
            let mut got = Vec::new();
            while receiver.read(&mut input).unwrap() {
                while let Some(message) = receiver.next().unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, sent, "in pieces of {piece}");
        }
    }

    #[test]
    fn garbage_ends_the_stream() {
        let mut receiver = Receiver::new(BufferPool::new(1 << 20));
        receiver.read(&mut Pieces(VecDeque::from([vec![0x55; 500]]))).unwrap();
        assert!(matches!(receiver.next(), Err(StreamError::Decode(DecodeError::Magic))));
    }
}
