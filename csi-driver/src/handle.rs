//! How volumes and snapshots are called towards Kubernetes: `CLUSTER-ID`. The cluster belongs to it, so that a claim of
//! another cluster, or of one before it was made anew, never means a volume that only has the same number.

use crate::Error;
use std::fmt;

/// What a handle is of, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
        })
    }
}

/// A volume or snapshot of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle {
    /// The cluster.
    pub cluster: String,
    /// The id there.
    pub id: u64,
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.cluster, self.id)
    }
}

impl Handle {
    /// What a text says, whatever cluster it is of.
    pub fn read(text: &str) -> Option<Self> {
        let (cluster, digits) = text.rsplit_once('-')?;
        let id = digits.parse::<u64>().ok().filter(|id| *id > 0 && id.to_string() == digits)?;
        Some(Self { cluster: cluster.to_owned(), id })
    }

    /// The id that a text means in this cluster. A text that is no handle means nothing that there could be; one of another
    /// cluster is a mistake that must not be taken for "it is gone".
    ///
    /// # Errors
    /// As said.
    pub fn parse(text: &str, kind: Kind, cluster: &str) -> Result<u64, Error> {
        let none = || Error::NotFound(format!("there is no {kind} {text:?}"));
        let handle = Self::read(text).ok_or_else(none)?;
        if handle.cluster == cluster {
            Ok(handle.id)
        } else if handle.is_foreign(cluster) {
            let of = handle.cluster;
            Err(Error::Precondition(format!("{kind} {text} is of cluster {of}, and this is {cluster}")))
        } else {
            Err(none())
        }
    }

    /// Whether it is of another cluster than this one.
    pub fn is_foreign(&self, cluster: &str) -> bool {
        let Self { cluster: of, .. } = self;
        of != cluster && of.len() == cluster.len() && of.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_of_this_cluster_of_another_and_nonsense() {
        let (here, there) = ("00ff", "00aa");
        let handle = Handle { cluster: here.into(), id: 42 };
        assert_eq!(Handle::parse(&handle.to_string(), Kind::Volume, here), Ok(42));
        let other = Handle::parse(&handle.to_string(), Kind::Volume, there).unwrap_err();
        assert!(matches!(other, Error::Precondition(_)), "{other:?}");
        assert!(handle.is_foreign(there) && !handle.is_foreign(here));
        assert!(!handle.is_foreign(""), "which cluster this is, is not known yet");
        for text in
            ["", "42", "-42", "00ff-", "00ff-0", "00ff-042", "00ff-+42", "00ff-x", "xx-42", "fake-vol-id"]
        {
            let error = Handle::parse(text, Kind::Snapshot, here).unwrap_err();
            assert!(matches!(error, Error::NotFound(_)), "{text}: {error:?}");
        }
    }
}
