//! What the operator is told by whoever installed it: images, and what else concerns Kubernetes and not the cluster.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{LocalObjectReference, ResourceRequirements, Toleration};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// All of it. The chart writes this as a file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Image with the programs of Sheepdog.
    pub image: String,
    /// Name of the SheepdogCluster that this installation keeps: it may not read the key of any other. Empty: of any name.
    #[serde(default)]
    pub cluster: String,
    /// When images are fetched.
    #[serde(default = "if_not_present")]
    pub image_pull_policy: String,
    /// Secrets with which images are fetched.
    #[serde(default)]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Labels of every object that the operator makes.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations of every object that the operator makes.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Account of pods that need no rights.
    pub service_account: String,
    /// Account of the CSI controller.
    pub csi_service_account: String,
    /// Pods of storage nodes.
    #[serde(default)]
    pub storage: Component,
    /// Pods of gateways.
    #[serde(default)]
    pub gateway: Component,
    /// Pods that own block devices.
    #[serde(default)]
    pub device: Component,
    /// CSI.
    pub csi: Csi,
    /// The StorageClass.
    #[serde(default)]
    pub storage_class: StorageClass,
    /// The VolumeSnapshotClass.
    #[serde(default)]
    pub snapshot_class: SnapshotClass,
}

fn if_not_present() -> String {
    "IfNotPresent".into()
}

/// What can be said of any kind of pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Component {
    /// Of its main container.
    pub resources: ResourceRequirements,
    /// Labels of its pods.
    pub labels: BTreeMap<String, String>,
    /// Annotations of its pods.
    pub annotations: BTreeMap<String, String>,
    /// Taints that do not keep it away. Storage nodes have theirs in the SheepdogCluster.
    pub tolerations: Vec<Toleration>,
    /// Nodes that it runs on. Storage nodes have theirs in the SheepdogCluster.
    pub node_selector: BTreeMap<String, String>,
    /// How important it is.
    pub priority_class_name: String,
}

/// The CSI driver.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Csi {
    /// Directory of the kubelet.
    pub kubelet_dir: String,
    /// Whether mounts are made with the SELinux label of the pod.
    #[serde(default)]
    pub se_linux_mount: bool,
    /// The controller's pods.
    #[serde(default)]
    pub controller: Component,
    /// How many controllers there are; one works.
    #[serde(default = "one")]
    pub controller_replicas: i32,
    /// Pods on nodes.
    #[serde(default)]
    pub node: Component,
    /// Upstream programs beside the controller.
    pub sidecars: Sidecars,
}

fn one() -> i32 {
    1
}

/// Upstream programs beside the controller.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sidecars {
    /// external-provisioner
    pub provisioner: Sidecar,
    /// external-attacher
    pub attacher: Sidecar,
    /// external-resizer
    pub resizer: Sidecar,
    /// external-snapshotter; used where its API is served
    pub snapshotter: Sidecar,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sidecar {
    /// Its image.
    pub image: String,
    /// Further arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Of its container.
    #[serde(default)]
    pub resources: ResourceRequirements,
}

/// The StorageClass that comes with the cluster.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StorageClass {
    /// Whether there is one.
    pub create: bool,
    /// Its name.
    pub name: String,
    /// Claims that name no class get it.
    pub default: bool,
    /// Delete or Retain.
    pub reclaim_policy: String,
    /// Parameters of the driver.
    pub parameters: BTreeMap<String, String>,
}

impl Default for StorageClass {
    fn default() -> Self {
        Self {
            create: true,
            name: "sheepdog".into(),
            default: false,
            reclaim_policy: "Delete".into(),
            parameters: BTreeMap::new(),
        }
    }
}

/// The VolumeSnapshotClass that comes with the cluster, where its API is served.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SnapshotClass {
    /// Whether there is one.
    pub create: bool,
    /// Its name.
    pub name: String,
    /// Snapshots that name no class get it.
    pub default: bool,
    /// Delete or Retain.
    pub deletion_policy: String,
}

impl Default for SnapshotClass {
    fn default() -> Self {
        Self { create: true, name: "sheepdog".into(), default: true, deletion_policy: "Delete".into() }
    }
}

impl Settings {
    /// From the file that the chart has written.
    ///
    /// # Errors
    /// It cannot be read, or says something that is not known here.
    pub fn load(file: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("{} cannot be used", file.display()))
    }

    /// From text.
    ///
    /// # Errors
    /// As for [`Self::load`].
    pub fn parse(text: &str) -> Result<Self> {
        Ok(serde_json::from_str(text)?)
    }
}
