//! Bytes on their way to the socket: small headers gathered, payload by reference.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::VecDeque;

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Output queue of a connection.
#[derive(Default)]
pub(crate) struct Transmit {
    queue: VecDeque<Bytes>,
    /// Headers not yet followed by payload. Successive replies without payload share one chunk.
    tail: BytesMut,
    bytes: usize,
}

impl Transmit {
    /// Bytes not yet taken by the socket.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub(crate) fn put_u16(&mut self, value: u16) {
        self.put_slice(&value.to_be_bytes());
    }

    pub(crate) fn put_u32(&mut self, value: u32) {
        self.put_slice(&value.to_be_bytes());
    }

    pub(crate) fn put_u64(&mut self, value: u64) {
        self.put_slice(&value.to_be_bytes());
    }

    pub(crate) fn put_slice(&mut self, bytes: &[u8]) {
        self.tail.put_slice(bytes);
        self.bytes += bytes.len();
    }

    /// Appends contents without copying them.
    pub(crate) fn put_payload(&mut self, payload: Bytes) {
        if payload.is_empty() {
            return;
        }
        self.seal();
        self.bytes += payload.len();
        self.queue.push_back(payload);
    }

    /// Appends zero bytes, all of them references to the same few.
    pub(crate) fn put_zeroes(&mut self, mut len: usize) {
        while len > 0 {
            let step = len.min(ZEROES.len());
            self.put_payload(Bytes::from_static(&ZEROES[..step]));
            len -= step;
        }
    }

    /// What is to be sent, in order. The chunks stay in place until [`Self::advance`] passes them.
    pub(crate) fn chunks(&mut self) -> impl ExactSizeIterator<Item = &Bytes> {
        self.seal();
        self.queue.iter()
    }

    /// The socket has taken the first `n` bytes.
    pub(crate) fn advance(&mut self, mut n: usize) {
        self.seal();
        assert!(n <= self.bytes, "{n} bytes sent of {}", self.bytes);
        self.bytes -= n;
        while let Some(front) = self.queue.front_mut() {
            if n < front.len() {
                front.advance(n);
                return;
            }
            n -= front.len();
            self.queue.pop_front();
        }
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.queue.push_back(self.tail.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(tx: &mut Transmit, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !tx.is_empty() {
            let chunk = tx.chunks().next().unwrap().clone();
            let n = step.min(chunk.len());
            all.extend_from_slice(&chunk[..n]);
            tx.advance(n);
        }
        all
    }

    #[test]
    fn order_survives_any_step() {
        for step in [1, 3, 7, 100_000] {
            let mut tx = Transmit::default();
            tx.put_u16(0x0102);
            tx.put_u32(0x0304_0506);
            tx.put_payload(Bytes::from_static(b"abc"));
            tx.put_payload(Bytes::new());
            tx.put_u64(7);
            tx.put_zeroes(70_000);
            assert_eq!(tx.len(), 6 + 3 + 8 + 70_000);
            let mut want = b"\x01\x02\x03\x04\x05\x06abc\0\0\0\0\0\0\0\x07".to_vec();
            want.resize(want.len() + 70_000, 0);
            assert_eq!(drain(&mut tx, step), want);
            assert_eq!(tx.chunks().count(), 0);
        }
    }

    #[test]
    fn headers_share_a_chunk_and_payload_is_not_copied() {
        let mut tx = Transmit::default();
        let payload = Bytes::from(vec![9; 100]);
        tx.put_u32(1);
        tx.put_u32(2);
        tx.put_payload(payload.clone());
        tx.put_u32(3);
        let chunks: Vec<_> = tx.chunks().cloned().collect();
        assert_eq!(chunks.iter().map(Bytes::len).collect::<Vec<_>>(), [8, 100, 4]);
        assert_eq!(chunks[1].as_ptr(), payload.as_ptr());
    }
}
