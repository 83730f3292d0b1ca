//! Little-endian fields in byte strings. Nothing here can run past the end of its input.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

/// Reads fields one after the other; `None` once the input is too short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }
}

/// Appends fields to a byte string.
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, v: u8) {
        self.put(&v.to_le_bytes());
    }

    fn put_u16(&mut self, v: u16) {
        self.put(&v.to_le_bytes());
    }

    fn put_u32(&mut self, v: u32) {
        self.put(&v.to_le_bytes());
    }

    fn put_u64(&mut self, v: u64) {
        self.put(&v.to_le_bytes());
    }

    fn put_u128(&mut self, v: u128) {
        self.put(&v.to_le_bytes());
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Length of the checksum field of every checksummed structure.
const CRC_LEN: usize = 4;

/// CRC-32C of `bytes` as if the four bytes at `at` were zero.
pub(crate) fn crc_without(bytes: &[u8], at: usize) -> Option<u32> {
    let head = bytes.get(..at)?;
    let tail = bytes.get(at.checked_add(CRC_LEN)?..)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(head), &[0; CRC_LEN]);
    Some(crc32c::crc32c_append(crc, tail))
}

/// Puts the checksum of `bytes` into its own four bytes at `at` and returns it. `bytes` must reach that far.
pub(crate) fn seal(bytes: &mut [u8], at: usize) -> u32 {
    let crc = crc_without(bytes, at).unwrap_or_default();
    if let Some(field) = bytes.get_mut(at..at + CRC_LEN) {
        field.copy_from_slice(&crc.to_le_bytes());
    } else {
        debug_assert!(false, "no room for the checksum");
    }
    crc
}

/// The checksum of `bytes` if the four bytes at `at` hold it.
pub(crate) fn check_seal(bytes: &[u8], at: usize) -> Option<u32> {
    let field = Reader::new(bytes.get(at..)?).u32()?;
    (crc_without(bytes, at)? == field).then_some(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_covers_every_bit_but_its_own() {
        let mut bytes: Vec<u8> = (0..100).collect();
        let crc = seal(&mut bytes, 8);
        assert_eq!(check_seal(&bytes, 8), Some(crc));
        for i in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[i] ^= 0x10;
            assert_eq!(check_seal(&bad, 8), None, "byte {i}");
        }
        assert_eq!(check_seal(&bytes[..10], 8), None);
        assert_eq!(check_seal(&bytes[..3], 8), None);
    }

    #[test]
    fn fields_come_back_and_short_input_ends() {
        let mut out = Vec::new();
        out.put_u8(1);
        out.put_u16(2);
        out.put_u32(3);
        out.put_u64(4);
        out.put_u128(5);
        let mut r = Reader::new(&out);
        assert_eq!(
            (r.u8(), r.u16(), r.u32(), r.u64(), r.u128()),
            (Some(1), Some(2), Some(3), Some(4), Some(5))
        );
        assert!(r.is_empty());
        assert_eq!(r.u8(), None);
    }
}
