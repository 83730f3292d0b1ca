//! The disk of an object inside a node: weighted rendezvous hashing, so that a disk that comes or goes moves
//! only what it gets or had.

use crate::Key;
use twox_hash::XxHash3_64;

/// A working disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Random identity.
    pub id: u64,
    /// Share of the node's objects; zero gets none.
    pub weight: u32,
}

/// The disk that holds a key; `None` if none takes any. Does not depend on the order of the disks.
pub fn disk_for(disks: &[Disk], key: Key) -> Option<u64> {
    let mut best: Option<(u64, Disk)> = None;
    for disk in disks.iter().filter(|disk| disk.weight > 0) {
        let cost = negative_log2(score(disk.id, key));
        best = match best {
            Some((least, winner)) if !is_less((cost, *disk), (least, winner)) => Some((least, winner)),
            Some(_) | None => Some((cost, *disk)),
        };
    }
    best.map(|(_, disk)| disk.id)
}

/// Compares cost / weight without dividing; equal costs go to the lower id.
fn is_less(a: (u64, Disk), b: (u64, Disk)) -> bool {
    let left = u128::from(a.0) * u128::from(b.1.weight);
    let right = u128::from(b.0) * u128::from(a.1.weight);
    (left, a.1.id) < (right, b.1.id)
}

/// XXH3 (64 bits) over disk id and the key's hash, little-endian.
fn score(disk: u64, key: Key) -> u64 {
    let mut bytes = [0; 16];
    let (id, hash) = bytes.split_at_mut(8);
    id.copy_from_slice(&disk.to_le_bytes());
    hash.copy_from_slice(&key.hash().to_le_bytes());
    XxHash3_64::oneshot(&bytes)
}

/// -log2(x / 2^64) with 32 fractional bits, in integers: floating-point logarithms differ between machines, and
/// a store that moves to another one must find its objects.
fn negative_log2(x: u64) -> u64 {
    let x = x.max(1);
    let whole = u64::from(x.ilog2());
    // Mantissa in [1, 2) with 63 fractional bits; squaring it shifts out one bit of the logarithm at a time.
    let mut mantissa = u128::from(x) << (63 - whole);
    let mut fraction = 0u64;
    for _ in 0..32 {
        mantissa = (mantissa * mantissa) >> 63;
        fraction <<= 1;
        if mantissa >> 64 != 0 {
            mantissa >>= 1;
            fraction |= 1;
        }
    }
    (64 << 32) - ((whole << 32) | fraction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheep_types::{ObjectKind, Vid};

    fn key(index: u32) -> Key {
        Key { lineage: Vid(7), kind: ObjectKind::Data, index }
    }

    #[test]
    fn logarithm_is_right() {
        assert_eq!(negative_log2(1 << 63), 1 << 32);
        assert_eq!(negative_log2(0), 64 << 32);
        for x in [3u64, 1000, 1 << 40, (1 << 40) + 12345, u64::MAX] {
            let exact = (64.0 - (x as f64).log2()) * 4_294_967_296.0;
            assert!((negative_log2(x) as f64 - exact).abs() < 8.0, "{x}");
        }
    }

    #[test]
    fn shares_follow_weights_and_only_the_newcomer_gains() {
        let three = [1, 2, 1].iter().zip(10..).map(|(&weight, id)| Disk { id, weight });
        let mut disks: Vec<Disk> = three.collect();
        let before: Vec<u64> = (0..20_000).map(|i| disk_for(&disks, key(i)).unwrap()).collect();
        let share = before.iter().filter(|id| **id == 11).count();
        assert!((9_700..10_300).contains(&share), "{share}");
        disks.insert(0, Disk { id: 99, weight: 4 });
        let after: Vec<u64> = (0..20_000).map(|i| disk_for(&disks, key(i)).unwrap()).collect();
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b);
        assert!(moved.clone().all(|(_, to)| *to == 99));
        let moved = moved.count();
        assert!((9_700..10_300).contains(&moved), "{moved}");
        disks.reverse();
        assert!((0..1000).all(|i| disk_for(&disks, key(i)) == after.get(i as usize).copied()));
    }

    #[test]
    fn chosen_disks_are_pinned() {
        // Changing these moves data on every node: a new store format.
        let disks = [Disk { id: 1, weight: 10 }, Disk { id: 2, weight: 10 }, Disk { id: 3, weight: 30 }];
        let chosen: Vec<u64> = (0..12).map(|i| disk_for(&disks, key(i)).unwrap()).collect();
        assert_eq!(chosen, PINNED);
        assert_eq!(disk_for(&[], key(0)), None);
        assert_eq!(disk_for(&[Disk { id: 1, weight: 0 }], key(0)), None);
    }

    const PINNED: [u64; 12] = [2, 3, 1, 3, 3, 3, 3, 2, 3, 1, 3, 1];
}
