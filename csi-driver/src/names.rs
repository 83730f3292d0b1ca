//! Names of volumes and tags of snapshots in the cluster, and the driver's attributes.

use crate::Attributes;
use ring::digest::{SHA256, digest};

/// The name that the orchestrator gave.
pub(crate) const NAME: &str = "csi.sheepdog.io/name";
/// What the volume was made from.
pub(crate) const SOURCE: &str = "csi.sheepdog.io/source";
/// The parameters that it was made with.
pub(crate) const PARAMETERS: &str = "csi.sheepdog.io/parameters";
/// The claim that it was made for, `NAMESPACE/NAME`.
pub(crate) const CLAIM: &str = "csi.sheepdog.io/claim";
/// The persistent volume's name.
pub(crate) const PERSISTENT_VOLUME: &str = "csi.sheepdog.io/persistent-volume";
/// The VolumeSnapshot that it was taken for, `NAMESPACE/NAME`.
pub(crate) const VOLUME_SNAPSHOT: &str = "csi.sheepdog.io/volume-snapshot";
/// How far formatting is: absent, `formatting by attachment N`, or `formatted`.
pub(crate) const FORMAT: &str = "csi.sheepdog.io/format";
/// The mark of a volume that has been formatted.
pub(crate) const FORMATTED: &str = "formatted";
/// What the mark of one begins with that is being formatted.
pub(crate) const FORMATTING: &str = "formatting by attachment ";

/// The mark that a copy has of this origin: what is formatted stays so. Who copies what is being formatted has the beginning
/// of a file system or nothing, and which of them the cluster can say.
pub(crate) fn format_of_copy(origin: &Attributes) -> Option<String> {
    origin.get(FORMAT).filter(|mark| !mark.starts_with(FORMATTING)).cloned()
}

/// Longest name that is taken as it is: a snapshot's is that of its volume, a mark and its tag, and the cluster takes 255.
const PLAIN_MAX: usize = 120;

/// What something is called in the cluster that the orchestrator calls `name`: the same, if that is short and has nothing
/// special in it, else a digest of it. Who finds the name taken compares the attribute [`NAME`].
pub(crate) fn in_cluster(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !name.is_empty() && name.len() <= PLAIN_MAX && name.bytes().all(plain) {
        return name.to_owned();
    }
    let mut text = "csi-".to_owned();
    for byte in digest(&SHA256, name.as_bytes()).as_ref() {
        text += &format!("{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_stay_and_others_are_told_apart() {
        let plain = "pvc-0aA1.b_c";
        assert_eq!(in_cluster(plain), plain);
        assert_eq!(in_cluster(&"x".repeat(120)).len(), 120);
        let odd = ["a@b", " a", "a/", "ü", "a%b", &"x".repeat(121), &"x".repeat(128)].map(in_cluster);
        for (at, name) in odd.iter().enumerate() {
            assert_eq!(name.len(), 68);
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
            assert!(!odd[..at].contains(name));
        }
        // The name of a snapshot: volume, mark, tag.
        const { assert!(2 * PLAIN_MAX < 255) };
    }
}
