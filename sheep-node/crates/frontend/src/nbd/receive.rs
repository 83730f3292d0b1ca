//! The staging buffer: bytes from the socket that are not yet understood.

/// A fixed buffer that is filled at the end and consumed at the start.
///
/// Contents move only in [`Staging::target`]: a driver that reads asynchronously may leave the kernel writing into
/// the target while it reports completions.
pub(crate) struct Staging {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Staging {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { buf: vec![0; capacity].into(), start: 0, end: 0 }
    }

    /// Bytes waiting to be understood.
    pub(crate) fn filled(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The first `N` bytes, if so many are there.
    pub(crate) fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        self.filled().first_chunk().copied()
    }

    /// The first `n` bytes are done with.
    pub(crate) fn consume(&mut self, n: usize) {
        assert!(n <= self.len());
        self.start += n;
    }

    /// Room for what comes next. Never empty unless the buffer is full of unconsumed bytes.
    pub(crate) fn target(&mut self) -> &mut [u8] {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 && self.buf.len() - self.end < self.buf.len() / 2 {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buf[self.end..]
    }

    /// The first `n` bytes of the target have been filled.
    pub(crate) fn commit(&mut self, n: usize) {
        assert!(n <= self.buf.len() - self.end);
        self.end += n;
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.start = self.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let mut staging = Staging::new(16);
        let (mut next_in, mut next_out, mut total) = (0u8, 0u8, 0);
        for round in 0..200usize {
            let target = staging.target();
            let n = target.len().min(round % 7 + 1);
            for byte in &mut target[..n] {
                *byte = next_in;
                next_in = next_in.wrapping_add(1);
            }
            staging.commit(n);
            let take = staging.len().min(round % 5 + 1);
            for &byte in &staging.filled()[..take] {
                assert_eq!(byte, next_out);
                next_out = next_out.wrapping_add(1);
            }
            staging.consume(take);
            total += take;
        }
        assert!(total > 500, "{total} bytes went through");
    }

    #[test]
    fn full_buffer_offers_nothing() {
        let mut staging = Staging::new(8);
        staging.target();
        staging.commit(8);
        assert!(staging.target().is_empty());
        assert_eq!(staging.peek::<9>(), None);
        staging.consume(1);
        assert_eq!(staging.target().len(), 1);
    }
}
