//! A cluster is made once, ever. Which node makes it is written into the cluster's Secret before that node is told to, and the
//! Secret outlives the operator, its SheepdogCluster and the installation. What exists already is found and kept.

use super::observed::{Founder, Observed, StoragePod};
use super::validate::{FOUND_WITHOUT, Valid};

/// What `sheep` says when its directory belongs to a cluster with another key.
const OTHER_KEY: &str = "is not the key of the cluster that";

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Founding {
    /// Nothing: there is a cluster, and it is known.
    Done,
    /// The Secret has to be made, with a key.
    MakeKey,
    /// This cluster exists: it is to be remembered.
    Remember(String),
    /// This node makes the cluster: it is to be remembered.
    Choose(Founder),
    /// The node that was chosen is to make it: address of its control API.
    Found(String),
    /// Nothing can be done now.
    Wait {
        /// In one word.
        reason: &'static str,
        /// For a person.
        message: String,
    },
}

fn wait(reason: &'static str, message: impl Into<String>) -> Founding {
    Founding::Wait { reason, message: message.into() }
}

/// Decides.
pub(crate) fn next(cluster: &Valid, observed: &Observed) -> Founding {
    let Some(secret) = &observed.secret else {
        // Another key would keep these nodes from starting again.
        return match observed.pods.iter().find(|pod| pod.cluster_id().is_some()) {
            None => Founding::MakeKey,
            Some(pod) => wait(
                "NoKey",
                format!(
                    "Secret {} is lost, and node {} belongs to a cluster: make the Secret, with the contents of {}/storage/key on that \
                     node as `key`",
                    super::build::secret_name(&cluster.name),
                    pod.node,
                    cluster.directory
                ),
            ),
        };
    };
    if !secret.has_key {
        return wait(
            "NoKey",
            format!(
                "Secret {} has no key: put the file key of a storage node ({}/storage/key) there, or delete it if there is no data",
                super::build::secret_name(&cluster.name),
                cluster.directory
            ),
        );
    }
    let mut known: Vec<&str> = observed.pods.iter().filter_map(|pod| pod.cluster_id()).collect();
    known.extend(secret.cluster_id.as_deref());
    known.sort_unstable();
    known.dedup();
    match (known[..].split_first(), &secret.cluster_id) {
        (Some((one, [])), Some(_)) => {
            let serves = observed.pods.iter().any(|pod| pod.cluster_id() == Some(one));
            if serves { Founding::Done } else { missing_nodes(cluster, observed, one) }
        }
        (Some((one, [])), None) => Founding::Remember((*one).to_owned()),
        (Some(_), _) => wait(
            "SeveralClusters",
            format!(
                "storage nodes have data of different clusters ({}): each may be in one only",
                known.join(", ")
            ),
        ),
        (None, _) => found(cluster, observed),
    }
}

fn missing_nodes(cluster: &Valid, observed: &Observed, id: &str) -> Founding {
    let blank = |pod: &StoragePod| pod.answer.is_some() && pod.cluster_id().is_none();
    if observed.pods.is_empty() || !observed.pods.iter().all(blank) {
        return wait("NoAnswer", format!("no storage node of cluster {id} answers: look at their pods"));
    }
    let secret = super::build::secret_name(&cluster.name);
    wait(
        "NoData",
        format!(
            "all storage nodes answer, and none has data of cluster {id}: their directories are empty. Put {}/storage of that cluster's nodes \
             back. If it is gone for good, and another one is to be begun: `kubectl -n {} delete secret {secret}`",
            cluster.directory, cluster.namespace
        ),
    )
}

/// Pods whose nodes have data of a cluster with another key. Last words of one that answers are of an earlier time.
pub(crate) fn of_another_key(observed: &Observed) -> impl Iterator<Item = &StoragePod> {
    observed.pods.iter().filter(|pod| pod.answer.is_none() && pod.last_words.contains(OTHER_KEY))
}

fn waited_for(cluster: &Valid, silent: &[&str]) -> String {
    format!(
        "waiting for storage nodes to start: {}. A node that is silent may have data of this cluster, so none is made without it. If \
         one is never to be: `kubectl -n {} annotate --overwrite sheepdogcluster {} {FOUND_WITHOUT}={}`",
        silent.join(", "),
        cluster.namespace,
        cluster.name,
        silent.join(",")
    )
}

/// There has never been a cluster, as far as anybody knows.
fn found(cluster: &Valid, observed: &Observed) -> Founding {
    if let Some(pod) = of_another_key(observed).next() {
        return wait(
            "OtherKey",
            format!(
                "node {} has data of a cluster with another key: to go on with that cluster, put the contents of {}/storage/key \
                 on that node into Secret {}; to begin anew, empty the directory",
                pod.node,
                cluster.directory,
                super::build::secret_name(&cluster.name)
            ),
        );
    }
    if let Some(founder) = observed.secret.as_ref().and_then(|secret| secret.founder.as_ref()) {
        let chosen = observed.pods.iter().find(|pod| pod.answer.as_ref().is_some_and(|a| a.id == founder.id));
        return match chosen.and_then(|pod| pod.ip.clone()) {
            Some(ip) => Founding::Found(ip),
            None => wait(
                "FounderAway",
                format!(
                    "node {} (id {}) was to make the cluster, may have done so, and does not answer. If its directory is lost, \
                     and with it the cluster, remove the annotations sheepdog.io/founder-* from Secret {}",
                    founder.node,
                    founder.id,
                    super::build::secret_name(&cluster.name)
                ),
            ),
        };
    }
    if cluster.storage_nodes.is_empty() {
        return wait(
            "NoNodes",
            "no node fits storage.nodeSelector and storage.tolerations: nothing can store data",
        );
    }
    let answers = |node: &String| observed.pods.iter().any(|pod| pod.node == *node && pod.answer.is_some());
    let awaited = cluster.storage_nodes.iter().filter(|node| !cluster.found_without.contains(node));
    let silent: Vec<&str> = awaited.filter(|node| !answers(node)).map(String::as_str).collect();
    if !silent.is_empty() {
        return wait("Starting", waited_for(cluster, &silent));
    }
    let first = observed
        .pods
        .iter()
        .filter(|pod| !pod.leaving && pod.ip.is_some() && cluster.storage_nodes.contains(&pod.node))
        .filter_map(|pod| Some(Founder { node: pod.node.clone(), id: pod.answer.as_ref()?.id.clone() }))
        .min_by(|one, other| one.node.cmp(&other.node));
    match first {
        Some(founder) => Founding::Choose(founder),
        None => wait("Starting", "waiting for a storage node to start"),
    }
}
