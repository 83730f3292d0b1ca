//! Pods of a node that is lost go elsewhere. Kubernetes itself leaves them there for five minutes, and a pod of a StatefulSet, or one with a
//! volume, for ever: it cannot know whether the node still writes. The cluster can: what a node writes to a volume that was
//! taken away from it is refused.

use super::build::DRIVER;
use super::observed::{ClusterView, Observed, SilentNode};
use k8s_openapi::api::core::v1::{Pod, Volume};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// How volumes of the driver are called in what a node has in use.
const IN_USE: &str = "kubernetes.io/csi/";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Since when the cluster has none of a node's members in its ring, as far as this operator has seen. Only a memory of how long: one that
/// starts anew waits once more.
#[derive(Debug, Default)]
pub(crate) struct Absences(Mutex<BTreeMap<String, Timestamp>>);

impl Absences {
    /// Takes down which of `nodes` are absent at `now`, and says since when each of them has been.
    pub(crate) fn note<'a>(
        &self,
        view: Option<&ClusterView>,
        nodes: impl Iterator<Item = &'a str>,
        now: Timestamp,
    ) -> BTreeMap<String, Timestamp> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let absent = nodes.filter(|name| view.is_some_and(|view| left_the_ring(view, name)));
        let since = |name: &str| known.get(name).copied().unwrap_or(now);
        *known = absent.map(|name| (name.to_owned(), since(name))).collect();
        known.clone()
    }
}

/// What is to be taken from a node that is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    /// The node.
    pub(crate) node: String,
    /// Its version that this was decided from.
    pub(crate) resource_version: String,
    /// Pods that are to be deleted without asking the node.
    pub(crate) pods: Vec<Stranded>,
    /// What the node has in use without the driver's volumes; none if it has none of those in use.
    pub(crate) in_use: Option<Vec<String>>,
}

/// A pod of a lost node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stranded {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// Whether the cluster has had members on a node, and has none there now.
pub(crate) fn left_the_ring(view: &ClusterView, node: &str) -> bool {
    let mut members = view.nodes.iter().filter(|member| member.name == node).peekable();
    members.peek().is_some()
        && members.all(|member| !member.in_ring && !view.ring_members.contains(&member.id))
}

/// Decides: for nodes that have been silent for `after` seconds, and that the cluster has lost too. Both, because a kubelet may be silent on
/// a node that is well, and storage and gateway may be away from a node that is.
pub(crate) fn next(observed: &Observed, after: Option<i64>) -> Vec<Loss> {
    let (Some(after), Some(view)) = (after, &observed.cluster) else { return Vec::new() };
    let lost = observed.silent.iter().filter(|node| {
        observed.now.as_second() - node.since.as_second() >= after && left_the_ring(view, &node.name)
    });
    lost.map(loss).filter(|loss| !loss.pods.is_empty() || loss.in_use.is_some()).collect()
}

fn loss(node: &SilentNode) -> Loss {
    let ours = format!("{IN_USE}{DRIVER}^");
    let others: Vec<String> = node.in_use.iter().filter(|name| !name.starts_with(&ours)).cloned().collect();
    Loss {
        node: node.name.clone(),
        resource_version: node.resource_version.clone(),
        pods: node.pods.iter().filter(|pod| moves(pod, node)).map(stranded).collect(),
        in_use: (others.len() < node.in_use.len()).then_some(others),
    }
}

fn stranded(pod: &Pod) -> Stranded {
    Stranded {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
    }
}

/// Whether a pod is to start elsewhere: somebody makes another one, it has volumes of this driver and nothing else that two could
/// write, and does not say that it wants to stay.
fn moves(pod: &Pod, node: &SilentNode) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let made_again = pod
        .owner_references()
        .iter()
        .any(|owner| owner.controller == Some(true) && !["DaemonSet", "Node"].contains(&owner.kind.as_str()));
    let stays = spec.tolerations.iter().flatten().any(|toleration| {
        let key = toleration.key.as_deref().unwrap_or_default();
        let effect = toleration.effect.as_deref().unwrap_or_default();
        (key.is_empty() || key == UNREACHABLE)
            && (effect.is_empty() || effect == "NoExecute")
            && toleration.toleration_seconds.is_none()
    });
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let claimed = volumes.iter().filter_map(|volume| claim(pod, volume)).count();
    let fenced = |volume: &Volume| match claim(pod, volume) {
        Some(name) => {
            let key = (pod.namespace().unwrap_or_default(), name);
            node.claims.get(&key).is_some_and(|volume| node.attached.contains(volume))
        }
        None => is_own(volume),
    };
    made_again && !stays && claimed > 0 && volumes.iter().all(fenced)
}

/// Name of the claim that a volume of a pod is.
pub(crate) fn claim(pod: &Pod, volume: &Volume) -> Option<String> {
    let named = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
    named.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{}-{}", pod.name_any(), volume.name)))
}

/// Whether a volume is made for the pod, from what the API has, and ends with it.
fn is_own(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.empty_dir.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
        || volume.image.is_some()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{member, serving};
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::{Value, json};

    type Change = fn(&mut Value);

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {
                "name": "db-0", "namespace": "shop", "uid": "u-9",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "u-8", "controller": true}],
            },
            "spec": {
                "containers": [],
                "tolerations": [{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
                "volumes": [
                    {"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}},
                    {"name": "scratch", "ephemeral": {}},
                    {"name": "token", "projected": {}},
                ],
            },
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    /// Three nodes, of which `c` says nothing since 30 s, and is lost to the cluster.
    fn observed(pod: Pod) -> Observed {
        let mut observed = serving(&["a", "b", "c"]);
        let view = observed.cluster.as_mut().unwrap();
        view.nodes[2] = member("c", "storage", "down");
        view.ring_members.pop();
        view.nodes.push(member("c", "gateway", "down"));
        let claims = [("data-db-0", "pv-1"), ("db-0-scratch", "pv-2"), ("foreign", "pv-3")];
        observed.silent = vec![SilentNode {
            name: "c".into(),
            since: Timestamp::from_second(observed.now.as_second() - 30).unwrap(),
            resource_version: "12".into(),
            in_use: vec![format!("{IN_USE}{DRIVER}^1"), format!("{IN_USE}other.example^1")],
            pods: vec![pod],
            attached: ["pv-1".to_owned(), "pv-2".to_owned()].into(),
            claims: claims
                .map(|(claim, volume)| (("shop".to_owned(), claim.to_owned()), volume.to_owned()))
                .into(),
        }];
        observed
    }

    fn pods(observed: &Observed) -> Vec<String> {
        next(observed, Some(10)).into_iter().flat_map(|loss| loss.pods).map(|pod| pod.name).collect()
    }

    #[test]
    fn pods_of_a_lost_node_are_taken_from_it_and_its_volumes_too() {
        let found = next(&observed(pod(|_| ())), Some(10));
        let stranded = Stranded { namespace: "shop".into(), name: "db-0".into(), uid: "u-9".into() };
        let in_use = Some(vec![format!("{IN_USE}other.example^1")]);
        let loss = Loss { node: "c".into(), resource_version: "12".into(), pods: vec![stranded], in_use };
        assert_eq!(found, [loss]);
    }

    #[test]
    fn a_node_is_lost_when_kubernetes_and_the_cluster_say_so_for_long_enough() {
        let usual = observed(pod(|_| ()));
        assert!(next(&usual, None).is_empty());
        assert!(next(&usual, Some(31)).is_empty());
        for (number, why) in [(2, "its storage runs"), (3, "its gateway runs")] {
            let mut other = usual.clone();
            other.cluster.as_mut().unwrap().nodes[number].in_ring = true;
            assert!(next(&other, Some(10)).is_empty(), "{why}");
        }
        let mut other = usual.clone();
        other.cluster.as_mut().unwrap().ring_members.push("c-id".into());
        assert!(next(&other, Some(10)).is_empty());
        let mut other = usual.clone();
        other.cluster.as_mut().unwrap().nodes.truncate(2);
        assert!(next(&other, Some(10)).is_empty(), "the cluster was never there");
        let mut other = usual;
        other.cluster = None;
        assert!(next(&other, Some(10)).is_empty(), "nobody knows");
    }

    /// A moment without its ring is no loss, however long Kubernetes has heard nothing.
    #[test]
    fn an_absence_is_as_long_as_it_was_seen() {
        let gone = observed(pod(|_| ()));
        let view = gone.cluster.as_ref();
        let at = |second| Timestamp::from_second(second).unwrap();
        let absences = Absences::default();
        let note = |view, second| absences.note(view, ["a", "c"].into_iter(), at(second));
        assert_eq!(note(view, 100), [("c".to_owned(), at(100))].into());
        assert_eq!(note(view, 110), [("c".to_owned(), at(100))].into());
        let mut back = view.unwrap().clone();
        back.ring_members.push("c-id".into());
        assert_eq!(note(Some(&back), 120), BTreeMap::new());
        assert_eq!(note(view, 130), [("c".to_owned(), at(130))].into());
        assert_eq!(note(None, 140), BTreeMap::new(), "nobody knows");
    }

    #[test]
    fn pods_stay_that_may_write_elsewhere_or_that_nobody_makes_again() {
        assert_eq!(pods(&observed(pod(|_| ()))), ["db-0"]);
        let changes: [(&str, Change); 7] = [
            ("a pod alone", |pod| pod["metadata"]["ownerReferences"] = json!([])),
            ("of a DaemonSet", |pod| pod["metadata"]["ownerReferences"][0]["kind"] = "DaemonSet".into()),
            ("without volumes", |pod| pod["spec"]["volumes"] = json!([{"name": "token", "projected": {}}])),
            ("also of another driver", |pod| {
                pod["spec"]["volumes"][1] =
                    json!({"name": "x", "persistentVolumeClaim": {"claimName": "foreign"}});
            }),
            ("also a claim that is unknown", |pod| {
                pod["spec"]["volumes"][1] =
                    json!({"name": "x", "persistentVolumeClaim": {"claimName": "unknown"}});
            }),
            ("also a network file system", |pod| {
                pod["spec"]["volumes"][1] = json!({"name": "x", "nfs": {"server": "s", "path": "/"}});
            }),
            ("it wants to stay", |pod| pod["spec"]["tolerations"] = json!([{"operator": "Exists"}])),
        ];
        for (what, change) in changes {
            assert_eq!(pods(&observed(pod(change))), Vec::<String>::new(), "{what}");
        }
    }
}
