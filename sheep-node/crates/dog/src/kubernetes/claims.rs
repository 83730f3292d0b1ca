//! What Kubernetes calls volumes and snapshots, as far as they are of our driver.

use super::json::{full_name, list, text};
use serde_json::Value;

/// Name of the CSI driver.
pub(super) const DRIVER: &str = "csi.sheepdog.io";
/// Annotations of a claim that say whose it is, the second in old Kubernetes.
const PROVISIONERS: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];

/// What a handle means: `CLUSTER-ID`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Handle {
    /// As it is written.
    pub(super) text: String,
    /// The cluster.
    pub(super) cluster: String,
    /// The id of the VDI there; 0 if it is no handle of ours.
    pub(super) id: u64,
}

impl Handle {
    fn read(handle: &Value) -> Self {
        let text = text(handle);
        let (cluster, id) = match text.rsplit_once('-') {
            Some((cluster, id)) => (cluster.to_owned(), id.parse().unwrap_or(0)),
            None => (String::new(), 0),
        };
        Self { cluster, id, text }
    }

    /// Whether it is of this VDI.
    pub(super) fn is(&self, cluster: &str, id: u64) -> bool {
        self.cluster == cluster && self.id == id && id != 0
    }
}

/// A persistent volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Volume {
    /// Its name.
    pub(super) name: String,
    /// Which VDI it is.
    pub(super) handle: Handle,
    /// `Bound`, `Released`, ...
    pub(super) phase: String,
    /// `NAMESPACE/NAME` of its claim; empty if it has none.
    pub(super) claim: String,
    /// Its StorageClass.
    pub(super) class: String,
    /// Its access modes.
    pub(super) modes: String,
    /// What becomes of it when its claim is deleted.
    pub(super) policy: String,
}

impl Volume {
    /// From what Kubernetes says; none if another driver makes it.
    pub(super) fn read(volume: &Value) -> Option<Self> {
        let spec = &volume["spec"];
        let ours = spec["csi"]["driver"] == DRIVER;
        ours.then(|| Self {
            name: text(&volume["metadata"]["name"]),
            handle: Handle::read(&spec["csi"]["volumeHandle"]),
            phase: text(&volume["status"]["phase"]),
            claim: full_name(&spec["claimRef"]),
            class: text(&spec["storageClassName"]),
            modes: list(&spec["accessModes"]).iter().map(text).collect::<Vec<_>>().join(", "),
            policy: text(&spec["persistentVolumeReclaimPolicy"]),
        })
    }
}

/// A claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    /// `NAMESPACE/NAME`.
    pub(super) name: String,
    /// Its persistent volume; empty if it has none yet.
    pub(super) volume: String,
    /// `Bound`, `Pending`, `Lost`.
    pub(super) phase: String,
    /// The size that it asks for, and the one that it has.
    pub(super) sizes: (String, String),
    /// Whether our driver is to make it.
    pub(super) ours: bool,
}

impl Claim {
    /// From what Kubernetes says.
    pub(super) fn read(claim: &Value) -> Self {
        let (metadata, spec, status) = (&claim["metadata"], &claim["spec"], &claim["status"]);
        Self {
            name: full_name(metadata),
            volume: text(&spec["volumeName"]),
            phase: text(&status["phase"]),
            sizes: (text(&spec["resources"]["requests"]["storage"]), text(&status["capacity"]["storage"])),
            ours: PROVISIONERS.iter().any(|key| metadata["annotations"][*key] == DRIVER),
        }
    }
}

/// A VolumeSnapshotContent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// Its name.
    pub(super) name: String,
    /// Which VDI it is.
    pub(super) handle: Handle,
    /// `NAMESPACE/NAME` of the VolumeSnapshot.
    pub(super) snapshot: String,
    /// Whether it can be restored.
    pub(super) ready: bool,
    /// What went wrong last.
    pub(super) error: String,
}

impl Content {
    /// From what Kubernetes says; none if another driver makes it.
    pub(super) fn read(content: &Value) -> Option<Self> {
        let (spec, status) = (&content["spec"], &content["status"]);
        let handle = match &status["snapshotHandle"] {
            Value::Null => &spec["source"]["snapshotHandle"],
            handle => handle,
        };
        (spec["driver"] == DRIVER).then(|| Self {
            name: text(&content["metadata"]["name"]),
            handle: Handle::read(handle),
            snapshot: full_name(&spec["volumeSnapshotRef"]),
            ready: status["readyToUse"] == true,
            error: text(&status["error"]["message"]),
        })
    }
}
