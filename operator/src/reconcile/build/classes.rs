//! What users of volumes name: the driver and its classes. They are in no namespace.

use super::object::{Object, global};
use super::{DRIVER, OWNER, Plan, Valid};
use serde_json::json;

pub(super) fn driver(plan: Plan<'_>) -> Object {
    let spec = json!({
        // An attachment is what keeps a node away from a volume that another one has.
        "attachRequired": true,
        "podInfoOnMount": false,
        "fsGroupPolicy": "File",
        "requiresRepublish": false,
        "seLinuxMount": plan.settings.csi.se_linux_mount,
        // Any node can use all of the space: nothing to choose a node by.
        "storageCapacity": false,
        "volumeLifecycleModes": ["Persistent"],
    });
    let mut object = global(plan, "storage.k8s.io/v1", "CSIDriver", DRIVER, json!({"spec": spec}));
    object.0["metadata"]["annotations"][OWNER] = owner(plan.cluster).into();
    object
}

/// What the CSIDriver says of whose it is.
fn owner(cluster: &Valid) -> String {
    format!("{}/{}", cluster.namespace, cluster.name)
}

pub(super) fn storage_class(plan: Plan<'_>) -> Option<Object> {
    let class = &plan.settings.storage_class;
    if !class.create {
        return None;
    }
    let mut rest = json!({
        "provisioner": DRIVER,
        "reclaimPolicy": class.reclaim_policy,
        "allowVolumeExpansion": true,
        "volumeBindingMode": "Immediate",
    });
    // They cannot be changed, and none is something else than an empty map.
    if !class.parameters.is_empty() {
        rest["parameters"] = json!(class.parameters);
    }
    let mut object = global(plan, "storage.k8s.io/v1", "StorageClass", &class.name, rest);
    if class.default {
        object.0["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] = "true".into();
    }
    Some(object)
}

pub(super) fn snapshot_class(plan: Plan<'_>) -> Option<Object> {
    let class = &plan.settings.snapshot_class;
    if !class.create || !plan.observed.snapshots {
        return None;
    }
    let rest = json!({"driver": DRIVER, "deletionPolicy": class.deletion_policy});
    let mut object = global(plan, "snapshot.storage.k8s.io/v1", "VolumeSnapshotClass", &class.name, rest);
    if class.default {
        object.0["metadata"]["annotations"]["snapshot.storage.kubernetes.io/is-default-class"] =
            "true".into();
    }
    Some(object)
}
