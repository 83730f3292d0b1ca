//! A cluster is made once, ever. Which node makes it is written into the cluster's Secret before that node is told to, and the
//! Secret outlives the operator, its SheepdogCluster and the installation. What exists already is found and kept.

use super::observed::{Founder, Observed, StoragePod};
use super::validate::Valid;

/// How long nodes that do not answer are waited for: they might have data of a cluster.
const PATIENCE_S: i64 = 60;
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

/// Decides. `age_s`: how long the SheepdogCluster has existed.
pub(crate) fn next(cluster: &Valid, observed: &Observed, age_s: i64) -> Founding {
    let Some(secret) = &observed.secret else { return Founding::MakeKey };
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
            if serves { Founding::Done } else { missing_nodes(one) }
        }
        (Some((one, [])), None) => Founding::Remember((*one).to_owned()),
        (Some(_), _) => wait(
            "SeveralClusters",
            format!(
                "storage nodes have data of different clusters ({}): each may be in one only",
                known.join(", ")
            ),
        ),
        (None, _) => found(cluster, observed, age_s),
    }
}

fn missing_nodes(cluster: &str) -> Founding {
    wait("NoAnswer", format!("no storage node of cluster {cluster} answers: look at their pods"))
}

/// There has never been a cluster, as far as anybody knows.
fn found(cluster: &Valid, observed: &Observed, age_s: i64) -> Founding {
    // Last words of one that answers are of an earlier time.
    let refused = |pod: &&StoragePod| pod.answer.is_none() && pod.last_words.contains(OTHER_KEY);
    if let Some(pod) = observed.pods.iter().find(refused) {
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
    let answers = |node: &&String| observed.pods.iter().any(|pod| pod.node == **node && pod.answer.is_some());
    let silent: Vec<&str> =
        cluster.storage_nodes.iter().filter(|node| !answers(node)).map(String::as_str).collect();
    if cluster.storage_nodes.is_empty() {
        return wait(
            "NoNodes",
            "no node fits storage.nodeSelector and storage.tolerations: nothing can store data",
        );
    }
    if !silent.is_empty() && (age_s < PATIENCE_S || silent.len() == cluster.storage_nodes.len()) {
        return wait("Starting", format!("waiting for storage nodes to start: {}", silent.join(", ")));
    }
    let first = observed
        .pods
        .iter()
        .filter(|pod| !pod.leaving && pod.ip.is_some())
        .filter_map(|pod| Some(Founder { node: pod.node.clone(), id: pod.answer.as_ref()?.id.clone() }))
        .min_by(|one, other| one.node.cmp(&other.node));
    match first {
        Some(founder) => Founding::Choose(founder),
        None => wait("Starting", "waiting for a storage node to start"),
    }
}
