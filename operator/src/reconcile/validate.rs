//! From what somebody wrote to what can be built: texts become numbers, and what cannot work becomes a sentence.

use super::leaving;
use super::observed::{KubeNode, Observed};
use crate::crd::{NetworkProvider, SheepdogCluster, SheepdogClusterSpec};
use k8s_openapi::api::core::v1::Toleration;
use std::collections::BTreeMap;

/// Label that every node has.
const OS: &str = "kubernetes.io/os";
/// Least that a storage node can work in, bytes.
const MIN_CAPACITY: u64 = 64 << 20;
/// Annotation of a SheepdogCluster: names of nodes that are not waited for when the cluster is made.
pub(crate) const FOUND_WITHOUT: &str = "sheepdog.io/found-without";
/// Names of the cluster's objects are longer than its own, and are labels too.
const MAX_NAME: usize = 40;

/// A cluster that can be built.
#[derive(Clone, Debug)]
pub(crate) struct Valid {
    /// Its name, which those of its objects begin with.
    pub(crate) name: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its uid.
    pub(crate) uid: String,
    /// Taints that do not keep data away.
    pub(crate) tolerations: Vec<Toleration>,
    /// Directory on the nodes.
    pub(crate) directory: String,
    /// Whether pods are in the nodes' network.
    pub(crate) host_network: bool,
    /// Whether data between nodes is encrypted.
    pub(crate) encrypt_data: bool,
    /// What each node of Kubernetes is told, by name.
    pub(crate) nodes: BTreeMap<String, NodeConfig>,
    /// Names of nodes that should store data.
    pub(crate) storage_nodes: Vec<String>,
    /// Names of nodes that should not, and may still have something that is not elsewhere.
    pub(crate) kept: Vec<String>,
    /// Those of `kept` that do not fit the selector: they are drained.
    pub(crate) leaving: Vec<String>,
    /// Names of nodes that would store data, and whose disks are too small.
    pub(crate) too_small: Vec<String>,
    /// Names of nodes whose taints would keep a new storage pod away.
    pub(crate) tainted: Vec<String>,
    /// Names of nodes that somebody said are not to be waited for when the cluster is made.
    pub(crate) found_without: Vec<String>,
    /// First settings of the cluster.
    pub(crate) copies: u32,
    /// See [`Self::copies`].
    pub(crate) min_copies: u32,
    /// Settings of the cluster.
    pub(crate) settings: sheep_api::v1::Settings,
    /// Seconds of silence after which pods of a lost node go elsewhere; none: never.
    pub(crate) move_pods_after: Option<i64>,
    /// Rings that are wished for, beyond the one that there is.
    pub(crate) many_rings: bool,
}

impl Valid {
    /// Whether a storage pod belongs on a node.
    pub(crate) fn may_store(&self, node: &String) -> bool {
        self.storage_nodes.contains(node) || self.kept.contains(node)
    }
}

/// What is different from node to node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeConfig {
    /// Failure domain; empty: the node by itself.
    pub(crate) zone: String,
    /// Most bytes that it stores.
    pub(crate) capacity: Option<u64>,
}

/// Looks at the whole.
///
/// # Errors
/// A sentence that says what cannot work.
pub(crate) fn validate(cluster: &SheepdogCluster, observed: &Observed) -> Result<Valid, String> {
    if let Some(why) = is_another_ones(cluster, observed) {
        return Err(why);
    }
    let name = cluster.metadata.name.clone().unwrap_or_default();
    let namespace = cluster.metadata.namespace.clone().unwrap_or_default();
    if name.len() > MAX_NAME {
        return Err(format!(
            "the name {name} is longer than {MAX_NAME} letters: names of its objects begin with it"
        ));
    }
    let spec = &cluster.spec;
    let (mut nodes, mut too_small) = (BTreeMap::new(), Vec::new());
    for node in &observed.nodes {
        let mut config = node_config(spec, node)?;
        let unknown = config.capacity.is_none() && !is_listed(observed, &node.name);
        if unknown || config.capacity.is_some_and(|capacity| capacity < MIN_CAPACITY) {
            // Should it have data already it gets nothing new.
            config.capacity = Some(MIN_CAPACITY);
            too_small.push(node.name.clone());
        }
        nodes.insert(node.name.clone(), config);
    }
    let places = places(spec, observed, &too_small)?;
    too_small.retain(|name| places.selected.contains(name) && !places.tainted.contains(name));
    Ok(Valid {
        name,
        namespace,
        uid: cluster.metadata.uid.clone().unwrap_or_default(),
        tolerations: spec.storage.tolerations.clone(),
        directory: spec.storage.directory.path.trim_end_matches('/').to_owned(),
        host_network: spec.network.provider == NetworkProvider::Host,
        encrypt_data: spec.network.encrypt_data,
        nodes,
        storage_nodes: places.storage_nodes,
        kept: places.kept,
        leaving: places.leaving,
        too_small,
        tainted: places.tainted,
        found_without: found_without(cluster),
        copies: spec.redundancy.copies,
        min_copies: spec.redundancy.min_copies(),
        settings: settings(spec)?,
        move_pods_after: move_pods_after(spec)?,
        many_rings: many_rings(spec),
    })
}

/// Whether a storage pod was meant for a node already.
fn is_listed(observed: &Observed, node: &String) -> bool {
    observed.listed.as_ref().is_some_and(|listed| listed.contains(node))
}

/// Why this object is not the one that this operator, and this Kubernetes, keeps; nothing, if it is.
pub(super) fn is_another_ones(cluster: &SheepdogCluster, observed: &Observed) -> Option<String> {
    if let Some(older) = &observed.older {
        return Some(format!(
            "there is an older SheepdogCluster {older} in this namespace, and one operator keeps one cluster: delete this one"
        ));
    }
    let namespace = cluster.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(other) = observed.driver_of.as_deref().filter(|of| is_elsewhere(of, namespace)) {
        return Some(format!(
            "the CSI driver belongs to SheepdogCluster {other}, and a Kubernetes can have one Sheepdog only: uninstall this one or that \
             one. If that one is gone: `kubectl delete csidriver {}`",
            super::build::DRIVER
        ));
    }
    observed.misnamed.as_ref().map(|wanted| {
        format!("this installation keeps a SheepdogCluster called {wanted} (the chart's cluster.name): it may not read the key of another")
    })
}

/// Whether an owner, `NAMESPACE/NAME`, is in another namespace. In the same one there is one SheepdogCluster at a time, whatever
/// it is called.
fn is_elsewhere(owner: &str, namespace: &str) -> bool {
    owner.split_once('/').is_some_and(|(of, _)| of != namespace)
}

/// Where storage pods are, and where they are not to be.
struct Places {
    selected: Vec<String>,
    tainted: Vec<String>,
    storage_nodes: Vec<String>,
    kept: Vec<String>,
    leaving: Vec<String>,
}

fn places(spec: &SheepdogClusterSpec, observed: &Observed, too_small: &[String]) -> Result<Places, String> {
    let names = |fits: &dyn Fn(&KubeNode) -> bool| -> Vec<String> {
        observed.nodes.iter().filter(|node| fits(node)).map(|node| node.name.clone()).collect()
    };
    let selector = &spec.storage.node_selector;
    let is_linux = |node: &KubeNode| node.labels.get(OS).is_some_and(|os| os == "linux");
    let selected = names(&|node| {
        is_linux(node) && selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
    });
    let tainted = names(&|node| !node.taints.iter().all(|taint| tolerated(taint, &spec.storage.tolerations)));
    let mut storage_nodes = selected.clone();
    storage_nodes.retain(|name| !tainted.contains(name) && !too_small.contains(name));
    if storage_nodes.is_empty() && has_data(observed) {
        return Err(
            "no node fits storage.nodeSelector and storage.tolerations, and the cluster has data: correct them, or the labels and              taints of the nodes. Storage pods stay where they are"
                .into(),
        );
    }
    let kept = leaving::kept(observed, &storage_nodes);
    // A node that Kubernetes does not have may only be registering anew; if not, its pod ends, and what it had is copied.
    let unwanted =
        |name: &&String| !selected.contains(name) && observed.nodes.iter().any(|node| node.name == **name);
    let leaving = kept.iter().filter(unwanted).cloned().collect();
    Ok(Places { selected, tainted, storage_nodes, kept, leaving })
}

/// Whether there is a cluster, so that nodes may have what is nowhere else.
fn has_data(observed: &Observed) -> bool {
    observed.secret.as_ref().is_some_and(|secret| secret.cluster_id.is_some())
        || observed.pods.iter().any(|pod| pod.cluster_id().is_some())
}

fn found_without(cluster: &SheepdogCluster) -> Vec<String> {
    let annotations = cluster.metadata.annotations.iter().flatten();
    let said = annotations.filter(|(key, _)| *key == FOUND_WITHOUT).flat_map(|(_, value)| value.split(','));
    said.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

fn node_config(spec: &SheepdogClusterSpec, node: &KubeNode) -> Result<NodeConfig, String> {
    let own = spec.storage.nodes.iter().find(|own| own.name == node.name);
    let zone = match own.and_then(|own| own.failure_domain.clone()) {
        Some(zone) => zone,
        None => node.labels.get(&spec.topology.failure_domain_key).cloned().unwrap_or_default(),
    };
    let size = own.and_then(|own| own.max_size.as_ref()).unwrap_or(&spec.storage.directory.max_size);
    Ok(NodeConfig { zone, capacity: capacity(size, node.disk)? })
}

/// Most bytes that a node stores; of a share nothing is known where the size of the disk is not, and it may be too little to work in.
fn capacity(size: &str, disk: Option<u64>) -> Result<Option<u64>, String> {
    let bytes = match size.strip_suffix('%') {
        Some(share) => {
            let share: u64 =
                share.parse().map_err(|_| format!("storage.directory.maxSize {size:?} is no share"))?;
            return Ok(disk.map(|disk| disk / 100 * share.min(100)));
        }
        None => quantity(size)
            .ok_or_else(|| format!("maxSize {size:?} is no size: write something like 200Gi, or 60%"))?,
    };
    if bytes < MIN_CAPACITY {
        return Err(format!("maxSize {size:?} is less than 64Mi, in which no node can work"));
    }
    Ok(Some(bytes))
}

/// Bytes of a quantity of Kubernetes, as far as it stands for a size.
pub(crate) fn quantity(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: u64 = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        _ => return None,
    };
    match number.split_once('.') {
        None => number.parse::<u64>().ok()?.checked_mul(factor),
        Some((whole, part)) => {
            let digits = u32::try_from(part.len()).ok().filter(|digits| (1..=6).contains(digits))?;
            let part = part.parse::<u64>().ok()?.checked_mul(factor)? / 10u64.pow(digits);
            whole.parse::<u64>().ok()?.checked_mul(factor)?.checked_add(part)
        }
    }
}

fn milliseconds(field: &str, text: &str) -> Result<u64, String> {
    let wrong = || format!("{field} {text:?} is no time: write something like 30s, 10m, 2h or 7d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let factor = match unit {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(factor).ok_or_else(wrong)
}

fn settings(spec: &SheepdogClusterSpec) -> Result<sheep_api::v1::Settings, String> {
    let recovery = &spec.recovery;
    let bandwidth = match &recovery.bandwidth_per_node {
        None => 0,
        Some(text) => {
            quantity(text).ok_or_else(|| format!("recovery.bandwidthPerNode {text:?} is no size"))?
        }
    };
    Ok(sheep_api::v1::Settings {
        copies: Some(spec.redundancy.copies),
        min_copies: Some(spec.redundancy.min_copies()),
        out_delay_ms: Some(milliseconds("recovery.delay", &recovery.delay)?),
        recovery_paused: Some(recovery.paused),
        recovery_bytes_per_second: Some(bandwidth),
        scrub_interval_ms: Some(milliseconds("recovery.scrubInterval", &recovery.scrub_interval)?),
        ..Default::default()
    })
}

/// Seconds; none stands for never.
pub(super) fn move_pods_after(spec: &SheepdogClusterSpec) -> Result<Option<i64>, String> {
    let after = milliseconds("nodeFailure.movePodsAfter", &spec.node_failure.move_pods_after)? / 1000;
    Ok((after > 0).then(|| i64::try_from(after).unwrap_or(i64::MAX)))
}

/// As the scheduler sees it.
fn tolerated((key, value, effect): &(String, String, String), tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| {
        let key_fits = toleration.key.as_ref().is_none_or(|wanted| wanted.is_empty() || wanted == key);
        let value_fits = match toleration.operator.as_deref() {
            Some("Exists") => true,
            _ => toleration.key.is_some() && toleration.value.as_deref().unwrap_or_default() == value,
        };
        let effect_fits =
            toleration.effect.as_ref().is_none_or(|wanted| wanted.is_empty() || wanted == effect);
        key_fits && value_fits && effect_fits
    })
}

fn many_rings(spec: &SheepdogClusterSpec) -> bool {
    let rings = &spec.rings;
    rings.named.len() > 1 || rings.topology_key.is_some() || rings.max_nodes_per_ring.is_some()
}
