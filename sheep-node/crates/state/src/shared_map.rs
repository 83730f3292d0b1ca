//! An ordered map whose clones are cheap: entries lie in a fixed number of shared buckets, and a change copies
//! only the bucket it falls into. The whole state is cloned after each batch of entries, with up to a million
//! VDIs in it.

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};
use sheep_types::{VdiId, Vid};
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::Arc;
use twox_hash::XxHash3_64;

const BUCKETS: usize = 1024;

/// Chooses the bucket of a key; equal on every node, though nothing encoded depends on it.
pub(crate) trait Spread {
    fn spread(&self) -> usize;
}

impl Spread for Vid {
    fn spread(&self) -> usize {
        self.0 as usize % BUCKETS
    }
}

impl Spread for VdiId {
    fn spread(&self) -> usize {
        (self.0 % BUCKETS as u64) as usize
    }
}

impl Spread for str {
    fn spread(&self) -> usize {
        (XxHash3_64::oneshot(self.as_bytes()) % BUCKETS as u64) as usize
    }
}

impl Spread for String {
    fn spread(&self) -> usize {
        self.as_str().spread()
    }
}

type Bucket<K, V> = Arc<BTreeMap<K, Arc<V>>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SharedMap<K, V> {
    buckets: Arc<Vec<Bucket<K, V>>>,
    len: usize,
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        let empty = Arc::new(BTreeMap::new());
        Self { buckets: Arc::new(vec![empty; BUCKETS]), len: 0 }
    }
}

impl<K: Ord + Clone + Spread, V: Clone> SharedMap<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&Arc<V>>
    where
        K: Borrow<Q>,
        Q: Ord + Spread + ?Sized,
    {
        self.buckets.get(key.spread())?.get(key)
    }

    pub(crate) fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Ord + Spread + ?Sized,
    {
        // A miss must not copy the bucket.
        self.get(key)?;
        self.bucket(key.spread())?.get_mut(key).map(Arc::make_mut)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        let Some(bucket) = self.bucket(key.spread()) else { return };
        if bucket.insert(key, Arc::new(value)).is_none() {
            self.len += 1;
        }
    }

    pub(crate) fn remove<Q>(&mut self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
        Q: Ord + Spread + ?Sized,
    {
        self.get(key)?;
        let removed = self.bucket(key.spread())?.remove(key);
        self.len -= usize::from(removed.is_some());
        removed
    }

    fn bucket(&mut self, number: usize) -> Option<&mut BTreeMap<K, Arc<V>>> {
        Arc::make_mut(&mut self.buckets).get_mut(number).map(Arc::make_mut)
    }

    /// All values in the order of their keys. Sorts: for listings and encoding, not for the data path.
    pub(crate) fn sorted(&self) -> Vec<(&K, &Arc<V>)> {
        let mut all: Vec<_> = self.buckets.iter().flat_map(|bucket| bucket.iter()).collect();
        all.sort_unstable_by(|a, b| a.0.cmp(b.0));
        all
    }
}

impl<K: Ord + Clone + Spread + Serialize, V: Clone + Serialize> Serialize for SharedMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.sorted())
    }
}

impl<'de, K, V> Deserialize<'de> for SharedMap<K, V>
where
    K: Ord + Clone + Spread + Deserialize<'de>,
    V: Clone + Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let all = BTreeMap::<K, V>::deserialize(deserializer)?;
        let mut map = Self::default();
        for (key, value) in all {
            map.insert(key, value);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_do_not_see_later_changes() {
        let mut map = SharedMap::default();
        for i in 0..1000 {
            map.insert(Vid(i), i);
        }
        let before = map.clone();
        *map.get_mut(&Vid(7)).unwrap() = 70;
        map.remove(&Vid(8));
        assert_eq!((before.get(&Vid(7)).map(|v| **v), before.get(&Vid(8)).map(|v| **v)), (Some(7), Some(8)));
        assert_eq!((map.get(&Vid(7)).map(|v| **v), map.get(&Vid(8))), (Some(70), None));
        assert_eq!((before.len(), map.len()), (1000, 999));
        assert!(before.sorted().is_sorted_by_key(|(key, _)| **key));
    }

    #[test]
    fn encoding_is_in_key_order_and_returns() {
        let mut map = SharedMap::default();
        for i in [900, 3, 256, 0, 512] {
            map.insert(Vid(i), i);
        }
        let bytes = postcard::to_stdvec(&map).unwrap();
        let plain: BTreeMap<Vid, u32> = [0, 3, 256, 512, 900].map(|i| (Vid(i), i)).into();
        assert_eq!(bytes, postcard::to_stdvec(&plain).unwrap());
        assert_eq!(postcard::from_bytes::<SharedMap<Vid, u32>>(&bytes).unwrap(), map);
    }
}
