//! Parameters of a StorageClass or a VolumeSnapshotClass, and sizes.

use crate::v1::CapacityRange;
use crate::{Attributes, Capacity, Error, names};
use std::collections::{BTreeMap, HashMap};

/// Size of a volume that is asked for without one.
const DEFAULT_SIZE: u64 = 1 << 30;
/// Sizes are multiples of this, which is what kernels like of a device.
const UNIT: u64 = 4096;

const REDUNDANCY: &str = "redundancy";
const MIN_COPIES: &str = "minCopies";
const MKFS_OPTIONS: &str = "mkfsOptions";
const ALLOWED: [&str; 3] = [REDUNDANCY, MIN_COPIES, MKFS_OPTIONS];

/// What sidecars add by themselves; for people, so it becomes attributes.
const PVC_NAME: &str = "csi.storage.k8s.io/pvc/name";
const PVC_NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
const PV_NAME: &str = "csi.storage.k8s.io/pv/name";
const SNAPSHOT_NAME: &str = "csi.storage.k8s.io/volumesnapshot/name";
const SNAPSHOT_NAMESPACE: &str = "csi.storage.k8s.io/volumesnapshot/namespace";
const SNAPSHOT_CONTENT: &str = "csi.storage.k8s.io/volumesnapshotcontent/name";

/// How a volume is to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct VolumeParameters {
    pub(crate) copies: Option<u32>,
    pub(crate) min_copies: Option<u32>,
    /// Those of ours, in one line, to compare with what a volume was made with.
    pub(crate) line: String,
    /// What nodes have to know.
    pub(crate) context: HashMap<String, String>,
    pub(crate) attributes: Attributes,
}

fn number(key: &str, text: &str) -> Result<u32, Error> {
    let number = text.parse::<u32>().ok().filter(|number| (1..=16).contains(number));
    number.ok_or_else(|| Error::Invalid(format!("{key} is a number of copies from 1 to 16, not {text:?}")))
}

fn unknown(key: &str, allowed: &[&str]) -> Error {
    let list = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
    Error::Invalid(format!("parameter {key:?} is not known; allowed: {list}"))
}

/// `NAMESPACE/NAME`, if there is a name.
fn who(parameters: &HashMap<String, String>, namespace: &str, name: &str) -> Option<String> {
    let name = parameters.get(name)?;
    Some(parameters.get(namespace).map_or_else(|| name.clone(), |namespace| format!("{namespace}/{name}")))
}

impl VolumeParameters {
    pub(crate) fn parse(parameters: &HashMap<String, String>) -> Result<Self, Error> {
        let sorted: BTreeMap<&String, &String> = parameters.iter().collect();
        let mut parsed = Self::default();
        let mut ours = Vec::new();
        for (key, value) in sorted {
            match key.as_str() {
                REDUNDANCY => parsed.copies = Some(number(key, value)?),
                MIN_COPIES => parsed.min_copies = Some(number(key, value)?),
                MKFS_OPTIONS if value.contains(';') => {
                    return Err(Error::Invalid(format!("{MKFS_OPTIONS} must not have a semicolon")));
                }
                MKFS_OPTIONS => {
                    parsed.context.insert(key.clone(), value.clone());
                }
                PVC_NAME | PVC_NAMESPACE | PV_NAME => continue,
                _ => return Err(unknown(key, &ALLOWED)),
            }
            ours.push(format!("{key}={value}"));
        }
        if parsed.min_copies > parsed.copies && parsed.copies.is_some() {
            return Err(Error::Invalid(format!("{MIN_COPIES} is larger than {REDUNDANCY}")));
        }
        parsed.line = ours.join(";");
        let attributes = [
            (names::CLAIM, who(parameters, PVC_NAMESPACE, PVC_NAME)),
            (names::PERSISTENT_VOLUME, parameters.get(PV_NAME).cloned()),
            (names::PARAMETERS, Some(parsed.line.clone()).filter(|line| !line.is_empty())),
        ];
        let present = attributes.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        parsed.attributes = present.collect();
        Ok(parsed)
    }
}

/// Options for mkfs in the context of a volume.
pub(crate) fn mkfs_options(context: &HashMap<String, String>) -> Vec<String> {
    let line = context.get(MKFS_OPTIONS).map_or("", String::as_str);
    line.split_whitespace().map(str::to_owned).collect()
}

/// The context of a volume that was made before: what nodes have to know.
pub(crate) fn context_of(attributes: &Attributes) -> HashMap<String, String> {
    let line = attributes.get(names::PARAMETERS).map_or("", String::as_str);
    let pairs = line.split(';').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == MKFS_OPTIONS).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// Attributes of a snapshot from its parameters, of which there are none of ours.
pub(crate) fn snapshot_attributes(parameters: &HashMap<String, String>) -> Result<Attributes, Error> {
    let from_sidecar = [SNAPSHOT_NAME, SNAPSHOT_NAMESPACE, SNAPSHOT_CONTENT];
    let mut keys: Vec<&String> = parameters.keys().collect();
    keys.sort();
    if let Some(key) = keys.into_iter().find(|key| !from_sidecar.contains(&key.as_str())) {
        return Err(unknown(key, &[]));
    }
    let of = who(parameters, SNAPSHOT_NAMESPACE, SNAPSHOT_NAME);
    Ok(of.into_iter().map(|of| (names::VOLUME_SNAPSHOT.to_owned(), of)).collect())
}

/// Bytes from the number of a request.
fn bytes(what: &str, value: i64) -> Result<u64, Error> {
    u64::try_from(value).map_err(|_| Error::OutOfRange(format!("{what} of {value} bytes is negative")))
}

/// The limits of a request: at least, and at most if that is limited.
pub(crate) fn range(range: Option<CapacityRange>) -> Result<(u64, Option<u64>), Error> {
    let range = range.unwrap_or_default();
    let required = bytes("a required size", range.required_bytes)?;
    let limit = Some(bytes("a largest size", range.limit_bytes)?).filter(|limit| *limit > 0);
    if limit.is_some_and(|limit| limit < required) {
        return Err(Error::OutOfRange(format!(
            "the largest size is below the required one, {required} bytes"
        )));
    }
    Ok((required, limit))
}

/// The size of a volume that is asked for, and that has at least `least` bytes.
pub(crate) fn size(
    (required, limit): (u64, Option<u64>),
    least: u64,
    capacity: &Capacity,
) -> Result<u64, Error> {
    let wanted = match (required, least, limit) {
        (0, 0, Some(limit)) => DEFAULT_SIZE.min(limit / UNIT * UNIT),
        (0, 0, None) => DEFAULT_SIZE,
        _ => required.max(least),
    };
    let wanted = wanted.max(capacity.min_volume);
    let rounded = wanted.checked_next_multiple_of(UNIT).filter(|size| *size <= capacity.max_volume);
    // What it is copied from may end anywhere.
    let size = if limit.is_some_and(|limit| rounded.is_none_or(|size| size > limit)) {
        Some(wanted)
    } else {
        rounded
    };
    let fits = |size: &u64| {
        (capacity.min_volume..=capacity.max_volume).contains(size)
            && limit.is_none_or(|limit| *size <= limit)
            && size.is_multiple_of(512)
    };
    size.filter(fits).ok_or_else(|| {
        let (min, max) = (capacity.min_volume, capacity.max_volume);
        let most = limit.map_or_else(String::new, |limit| format!(" and at most {limit}"));
        Error::OutOfRange(format!(
            "a volume of {wanted} bytes{most} cannot be made: volumes have {min} to {max} bytes, in multiples of {UNIT}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn parameters_are_known_or_refused_with_the_list() {
        let given = map(&[
            ("redundancy", "3"),
            ("mkfsOptions", "-i 8192"),
            (PVC_NAME, "data"),
            (PVC_NAMESPACE, "shop"),
            (PV_NAME, "pvc-1"),
        ]);
        let parsed = VolumeParameters::parse(&given).unwrap();
        assert_eq!((parsed.copies, parsed.min_copies), (Some(3), None));
        assert_eq!(parsed.line, "mkfsOptions=-i 8192;redundancy=3");
        assert_eq!(parsed.attributes[names::CLAIM], "shop/data");
        assert_eq!(parsed.attributes[names::PERSISTENT_VOLUME], "pvc-1");
        assert_eq!(context_of(&parsed.attributes), parsed.context);
        assert_eq!(mkfs_options(&parsed.context), ["-i", "8192"]);
        assert_eq!(VolumeParameters::parse(&HashMap::new()).unwrap(), VolumeParameters::default());
        let refused = |pairs: &[(&str, &str)]| VolumeParameters::parse(&map(pairs)).unwrap_err().to_string();
        assert!(refused(&[("copies", "3")]).ends_with("allowed: redundancy, minCopies, mkfsOptions"));
        assert!(refused(&[("redundancy", "0")]).contains("1 to 16"));
        assert!(refused(&[("redundancy", "two")]).contains("1 to 16"));
        assert!(refused(&[("mkfsOptions", "-i 1;redundancy=1")]).contains("semicolon"));
        assert!(refused(&[("redundancy", "2"), ("minCopies", "3")]).contains("larger"));
        let snapshot = map(&[(SNAPSHOT_NAME, "s"), (SNAPSHOT_NAMESPACE, "shop"), (SNAPSHOT_CONTENT, "c")]);
        assert_eq!(snapshot_attributes(&snapshot).unwrap()[names::VOLUME_SNAPSHOT], "shop/s");
        assert!(snapshot_attributes(&map(&[("x", "y")])).unwrap_err().to_string().ends_with("allowed: none"));
    }

    #[test]
    fn sizes_fit_the_range_or_are_refused() {
        let capacity = Capacity { available: 0, copies: 1, min_volume: 1 << 20, max_volume: 1 << 50 };
        let asked = |required, limit, least| {
            let given = CapacityRange { required_bytes: required, limit_bytes: limit };
            range(Some(given)).and_then(|range| size(range, least, &capacity)).ok()
        };
        let table = [
            ((0, 0, 0), Some(DEFAULT_SIZE)),
            ((1, 0, 0), Some(1 << 20)),
            ((1 << 20, 1 << 20, 0), Some(1 << 20)),
            (((1 << 20) + 1, 0, 0), Some((1 << 20) + 4096)),
            ((0, 10_000_000, 0), Some(9_998_336)),
            ((0, 1000, 0), None),
            ((5, 4, 0), None),
            ((-1, 0, 0), None),
            ((1 << 50, 0, 0), Some(1 << 50)),
            (((1 << 50) + 1, 0, 0), None),
            ((i64::MAX, 0, 0), None),
            // A source of an odd size.
            ((0, 0, (1 << 20) + 512), Some((1 << 20) + 4096)),
            ((0, (1 << 20) + 512, (1 << 20) + 512), Some((1 << 20) + 512)),
            ((0, 1 << 20, 1 << 21), None),
        ];
        for ((required, limit, least), expected) in table {
            assert_eq!(asked(required, limit, least), expected, "{required} {limit} {least}");
        }
        assert_eq!(range(None), Ok((0, None)));
    }
}
