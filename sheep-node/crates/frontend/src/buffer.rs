//! Aligned payload buffers that are received into once and then only shared.

use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

/// Alignment of payload in memory, bytes: what direct I/O to any disk accepts.
pub const ALIGNMENT: usize = 4096;

/// Buffers of 4 KiB, 8 KiB, ... 32 MiB are kept for reuse; larger ones are not.
const CLASSES: usize = 14;

/// Payload buffers to use again, so that a write costs neither an allocation nor the clearing of fresh memory.
///
/// Cheap to clone; clones share the buffers. Meant to be shared by the connections of one shard: the lock is
/// then never contended, it is there because a payload may be dropped on another thread.
#[derive(Clone)]
pub struct BufferPool {
    shelf: Arc<Mutex<Shelf>>,
}

struct Shelf {
    free: [Vec<Vec<u8>>; CLASSES],
    bytes: usize,
    bytes_max: usize,
}

impl BufferPool {
    /// A pool that keeps at most `bytes_max` bytes of unused buffers.
    pub fn new(bytes_max: usize) -> Self {
        let shelf = Shelf { free: std::array::from_fn(|_| Vec::new()), bytes: 0, bytes_max };
        Self { shelf: Arc::new(Mutex::new(shelf)) }
    }

    /// A buffer of `len` bytes whose address modulo [`ALIGNMENT`] is that of `offset`.
    ///
    /// With the volume offset given, every whole block inside is aligned, even if the range begins
    /// in the middle of one. The contents are unspecified (zeroes or what an earlier user left): the caller
    /// must fill all of it before anybody sees it.
    pub fn take(&self, len: usize, offset: u64) -> AlignedBuf {
        let phase = (offset % ALIGNMENT as u64) as usize;
        let class = class_of(len + phase);
        let reused = class.and_then(|class| self.lock().take(class));
        let store = reused.unwrap_or_else(|| {
            let room = class.map_or(len + phase, |class| ALIGNMENT << class);
            vec![0; room + ALIGNMENT - 1]
        });
        let start = (store.as_ptr().addr().wrapping_neg() % ALIGNMENT) + phase;
        assert!(start + len <= store.len());
        AlignedBuf { store, start, len, home: class.map(|class| (class, self.clone())) }
    }

    /// Bytes of unused buffers kept.
    pub fn idle_bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shelf> {
        // A panic elsewhere cannot leave the shelf half changed.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn take(&mut self, class: usize) -> Option<Vec<u8>> {
        let store = self.free[class].pop()?;
        self.bytes -= store.len();
        Some(store)
    }

    fn put(&mut self, class: usize, store: Vec<u8>) {
        if self.bytes + store.len() <= self.bytes_max {
            self.bytes += store.len();
            self.free[class].push(store);
        }
    }
}

/// Smallest class with room for `len` bytes.
fn class_of(len: usize) -> Option<usize> {
    let class = len.div_ceil(ALIGNMENT).next_power_of_two().trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

/// A payload buffer being filled. Returns to its pool when it, or the last [`Bytes`] made from it, is dropped.
pub struct AlignedBuf {
    store: Vec<u8>,
    start: usize,
    len: usize,
    home: Option<(usize, BufferPool)>,
}

impl AlignedBuf {
    /// The bytes to fill.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.store[self.start..self.start + self.len]
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Shares the contents, without copying them.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        &self.store[self.start..self.start + self.len]
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let Some((class, pool)) = self.home.take() {
            pool.lock().put(class, std::mem::take(&mut self.store));
        }
    }
}

impl core::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_follows_the_offset() {
        let pool = BufferPool::new(0);
        for (len, offset) in [(1, 0), (4096, 0), (4096, 512), (1 << 20, 4096 * 7 + 3584), (40 << 20, 1536)] {
            let mut buf = pool.take(len, offset);
            assert_eq!(buf.as_mut_slice().len(), len);
            let bytes = buf.freeze();
            assert_eq!(bytes.len(), len);
            assert_eq!(bytes.as_ptr().addr() % ALIGNMENT, (offset % 4096) as usize);
        }
        assert_eq!(pool.idle_bytes(), 0, "a pool of no bytes keeps nothing");
    }

    #[test]
    fn buffers_come_back_with_the_last_reference() {
        let pool = BufferPool::new(1 << 20);
        let first = pool.take(4096, 0).freeze();
        let address = first.as_ptr().addr();
        let part = first.slice(512..1024);
        drop(first);
        assert_eq!(pool.idle_bytes(), 0);
        drop(part);
        assert!(pool.idle_bytes() >= 4096);
        assert_eq!(pool.take(512, 0).as_ref().as_ptr().addr(), address);
    }

    #[test]
    fn keeps_no_more_than_told() {
        let pool = BufferPool::new(20_000);
        let many: Vec<_> = (0..10).map(|_| pool.take(4096, 0)).collect();
        drop(many);
        assert!(pool.idle_bytes() <= 20_000 && pool.idle_bytes() > 8192);
    }
}
