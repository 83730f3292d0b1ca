//! What all objects have in common.

use super::{Plan, Valid};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// An object of Kubernetes, as it is applied.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Object(pub Value);

impl Object {
    /// Its kind.
    pub(crate) fn kind(&self) -> &str {
        self.0["kind"].as_str().unwrap_or_default()
    }

    /// Its version, with the group before it if it has one.
    pub(crate) fn api_version(&self) -> &str {
        self.0["apiVersion"].as_str().unwrap_or_default()
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.0["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// Its namespace, if it is in one.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.0["metadata"]["namespace"].as_str()
    }
}

/// Labels by which pods of a part are found. They never change: selectors cannot.
pub(super) fn selector(plan: Plan<'_>, component: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "sheepdog"),
        ("app.kubernetes.io/instance", plan.cluster.name.as_str()),
        ("app.kubernetes.io/component", component),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Labels of an object: those that were asked for, and over them those by which it is found.
pub(super) fn labels(plan: Plan<'_>, component: &str) -> BTreeMap<String, String> {
    let mut labels = plan.settings.labels.clone();
    labels.extend(selector(plan, component));
    labels.insert("app.kubernetes.io/managed-by".into(), "sheep-operator".into());
    labels
}

/// Makes an object go with the SheepdogCluster.
pub(crate) fn owner_references(cluster: &Valid) -> Value {
    json!([{
        "apiVersion": "sheepdog.io/v1alpha1",
        "kind": "SheepdogCluster",
        "name": cluster.name,
        "uid": cluster.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

/// An object in the cluster's namespace, which goes with the SheepdogCluster.
pub(super) fn namespaced(
    plan: Plan<'_>,
    api_version: &str,
    kind: &str,
    name: &str,
    component: &str,
    rest: Value,
) -> Object {
    let metadata = json!({
        "name": name,
        "namespace": plan.cluster.namespace,
        "labels": labels(plan, component),
        "annotations": plan.settings.annotations,
        "ownerReferences": owner_references(plan.cluster),
    });
    whole(api_version, kind, metadata, rest)
}

/// An object without a namespace. What has a namespace cannot own it, so it goes with a ClusterRole of the same installation.
pub(super) fn global(plan: Plan<'_>, api_version: &str, kind: &str, name: &str, rest: Value) -> Object {
    let owners: Vec<Value> = plan
        .observed
        .anchor
        .iter()
        .map(|anchor| {
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "name": anchor.name,
                "uid": anchor.uid,
            })
        })
        .collect();
    let metadata = json!({
        "name": name,
        "labels": labels(plan, super::component::CLUSTER),
        "annotations": plan.settings.annotations,
        "ownerReferences": owners,
    });
    whole(api_version, kind, metadata, rest)
}

fn whole(api_version: &str, kind: &str, metadata: Value, rest: Value) -> Object {
    let mut object = Map::new();
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    object.insert("metadata".into(), metadata);
    if let Value::Object(rest) = rest {
        object.extend(rest);
    }
    let mut object = Value::Object(object);
    prune(&mut object);
    Object(object)
}

/// Without what is null or empty in metadata: it would only be said to be wished for. An empty emptyDir means something, so the
/// rest stays as it is.
fn prune(object: &mut Value) {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|_, value| match value {
            Value::Object(map) => !map.is_empty(),
            Value::Array(list) => !list.is_empty(),
            other => !other.is_null(),
        });
    }
}
