//! The checks themselves: functions of what was found.

use super::super::json::{count, text};
use super::super::kubectl::Problem;
use super::super::objects::KubeNode;
use super::numbers::{quantity, version};
use super::{Check, Findings, Level, Rights};
use serde_json::Value;
use sheep_api::Size;

/// Oldest Kubernetes, and kubelet, that it is made for.
const KUBERNETES: (u32, u32) = (1, 33);
/// From this kernel on block devices survive a restart of what serves them (docs/internals/devices.md).
const KERNEL: (u32, u32) = (6, 9);
/// Most members of a cluster. Every node has a gateway, and those that store data are one more.
const MEMBERS: usize = 40;
/// A smaller disk is soon full: other things are on it too.
const LEAST_DISK: u64 = 10 << 30;
/// Copies that a cluster makes if nothing else is said.
const COPIES: usize = 3;
/// Label of a namespace that says what its pods may do.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";
/// Annotation of the CSIDriver that says which SheepdogCluster it is for.
const OWNER: &str = "sheepdog.io/owner";
/// Taints of Kubernetes' own that no DaemonSet minds begin so.
const TOLERATED: &str = "node.kubernetes.io/";
/// So many names are told.
const NAMES: usize = 5;

fn check(level: Level, what: &'static str, words: impl Into<String>) -> Check {
    Check { level, what, words: words.into() }
}

/// All of them, in the order in which they are told.
pub(super) fn all(findings: &Findings) -> Vec<Check> {
    let mut checks = vec![client(findings.client.as_deref())];
    match &findings.server {
        Ok(version) => checks.push(server(version)),
        Err(problem) => {
            checks.push(check(Level::Unknown, "Kubernetes", format!("cannot be asked: {problem}")));
            return checks;
        }
    }
    match &findings.nodes {
        Ok(nodes) => checks.extend(of_nodes(nodes)),
        Err(problem) => checks.push(check(Level::Unknown, "nodes", problem.to_string())),
    }
    checks.push(snapshots(&findings.snapshots));
    checks.push(pod_security(&findings.namespace, &findings.namespace_object));
    checks.push(other_installation(findings));
    checks.push(rights(&findings.rights));
    checks
}

fn at_least(said: &str, least: (u32, u32)) -> bool {
    version(said).is_some_and(|version| version >= least)
}

fn client(said: Option<&str>) -> Check {
    let (major, minor) = KUBERNETES;
    match said {
        None => check(Level::Warning, "kubectl", "does not say its version"),
        Some(said) if at_least(said, KUBERNETES) => check(Level::Ok, "kubectl", said),
        Some(said) => check(Level::Warning, "kubectl", format!("{said}; better {major}.{minor} or later")),
    }
}

fn server(said: &str) -> Check {
    let (major, minor) = KUBERNETES;
    match at_least(said, KUBERNETES) {
        true => check(Level::Ok, "Kubernetes", said),
        false => {
            check(Level::Problem, "Kubernetes", format!("{said}: upgrade it to {major}.{minor} or later"))
        }
    }
}

/// Some names, and how many more.
fn names(nodes: &[&KubeNode]) -> String {
    let mut names = nodes.iter().take(NAMES).map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
    if nodes.len() > NAMES {
        names += &format!(" and {} more", nodes.len() - NAMES);
    }
    names
}

/// Whether data would be stored there if nothing else is said.
fn stores(node: &KubeNode) -> bool {
    node.taints.iter().all(|taint| taint.starts_with(TOLERATED))
}

fn of_nodes(nodes: &[KubeNode]) -> Vec<Check> {
    let linux: Vec<&KubeNode> = nodes.iter().filter(|node| node.os == "linux").collect();
    if linux.is_empty() {
        return vec![check(Level::Problem, "nodes", "there is no Linux node: add one")];
    }
    let storage: Vec<&KubeNode> = linux.iter().copied().filter(|node| stores(node)).collect();
    let mut checks = vec![number(nodes.len(), &linux, &storage)];
    let failed: Vec<&KubeNode> = linux.iter().copied().filter(|node| !node.ready).collect();
    if !failed.is_empty() {
        let words = format!("{} not ready: no pod can start there", names(&failed));
        checks.push(check(Level::Warning, "nodes", words));
    }
    let strange: Vec<&KubeNode> = linux
        .iter()
        .copied()
        .filter(|node| !["amd64", "arm64"].contains(&node.architecture.as_str()))
        .collect();
    if !strange.is_empty() {
        let words = format!("{}: neither amd64 nor arm64; build an image for them", names(&strange));
        checks.push(check(Level::Warning, "nodes", words));
    }
    checks.push(kernels(&linux));
    checks.push(kubelets(&linux));
    checks.push(disks(&storage));
    checks
}

fn number(all: usize, linux: &[&KubeNode], storage: &[&KubeNode]) -> Check {
    let other = match all - linux.len() {
        0 => String::new(),
        other => format!(", beside {other} that have not Linux and get nothing"),
    };
    let of = format!("{} of {} would store data{other}", storage.len(), count(linux.len(), "Linux node"));
    let members = linux.len() + storage.len();
    if storage.is_empty() {
        let words = format!("{of}: all have taints; give storage.tolerations, or take the taints away");
        return check(Level::Problem, "nodes", words);
    }
    if members > MEMBERS {
        let words = format!(
            "{of}; with a gateway on each they would be {members} members, and at most {MEMBERS} work: give \
             storage.nodeSelector"
        );
        return check(Level::Problem, "nodes", words);
    }
    match storage.len() {
        COPIES.. => check(Level::Ok, "nodes", of),
        few => {
            let words = format!(
                "{of}: with {few} there {} only",
                if few == 1 { "is 1 copy".into() } else { format!("are {few} copies") }
            );
            check(Level::Warning, "nodes", words)
        }
    }
}

fn kernels(nodes: &[&KubeNode]) -> Check {
    let old: Vec<&KubeNode> = nodes.iter().copied().filter(|node| !at_least(&node.kernel, KERNEL)).collect();
    let (major, minor) = KERNEL;
    match old.first() {
        None => check(Level::Ok, "kernels", format!("{major}.{minor} or later everywhere")),
        Some(first) => {
            let words = format!(
                "{} of {}: before {major}.{minor} volumes in use get I/O errors when the device process of their node is \
                 replaced",
                first.kernel,
                names(&old)
            );
            check(Level::Warning, "kernels", words)
        }
    }
}

fn kubelets(nodes: &[&KubeNode]) -> Check {
    let old: Vec<&KubeNode> =
        nodes.iter().copied().filter(|node| !at_least(&node.kubelet, KUBERNETES)).collect();
    let (major, minor) = KUBERNETES;
    match old.first() {
        None => check(Level::Ok, "kubelets", format!("{major}.{minor} or later everywhere")),
        Some(first) => {
            let words =
                format!("{} of {}: upgrade them to {major}.{minor} or later", first.kubelet, names(&old));
            check(Level::Warning, "kubelets", words)
        }
    }
}

fn disks(nodes: &[&KubeNode]) -> Check {
    let bytes = |node: &KubeNode| quantity(&node.disk).unwrap_or(0);
    let unknown: Vec<&KubeNode> = nodes.iter().copied().filter(|node| bytes(node) == 0).collect();
    if !unknown.is_empty() {
        let words = format!(
            "Kubernetes does not know the disk of {}: give each a maxSize in storage.nodes",
            names(&unknown)
        );
        let level = if unknown.len() == nodes.len() { Level::Problem } else { Level::Warning };
        return check(level, "disks", words);
    }
    let all: u64 = nodes.iter().map(|node| bytes(node)).fold(0, u64::saturating_add);
    let small: Vec<&KubeNode> = nodes.iter().copied().filter(|node| bytes(node) < LEAST_DISK).collect();
    match small.first() {
        None => check(
            Level::Ok,
            "disks",
            format!(
                "{} for pods on {}, of which 60% are used at most",
                Size(all),
                count(nodes.len(), "node")
            ),
        ),
        Some(first) => {
            let words = format!("{} have little, {} the first: soon full", names(&small), Size(bytes(first)));
            check(Level::Warning, "disks", words)
        }
    }
}

fn snapshots(served: &Result<bool, Problem>) -> Check {
    match served {
        Ok(true) => check(Level::Ok, "snapshots", "VolumeSnapshots are served"),
        Ok(false) => check(
            Level::Warning,
            "snapshots",
            "not served: install external-snapshotter's definitions and controller to have VolumeSnapshots",
        ),
        Err(problem) => check(Level::Unknown, "snapshots", problem.to_string()),
    }
}

fn pod_security(name: &str, namespace: &Result<Value, Problem>) -> Check {
    let what = "namespace";
    let label = format!("kubectl label namespace {name} {POD_SECURITY}=privileged --overwrite");
    match namespace {
        Err(problem) => check(Level::Unknown, what, problem.to_string()),
        Ok(Value::Null) => check(Level::Ok, what, format!("{name} is made by the installation")),
        Ok(namespace) if namespace["status"]["phase"] == "Terminating" => {
            check(Level::Problem, what, format!("{name} is being deleted: wait until it is gone"))
        }
        Ok(namespace) => match text(&namespace["metadata"]["labels"][POD_SECURITY]).as_str() {
            "" | "privileged" => check(Level::Ok, what, format!("{name} allows privileged pods")),
            level => {
                let words = format!("{name} is {level}, and block devices need privileged pods: {label}");
                check(Level::Problem, what, words)
            }
        },
    }
}

fn other_installation(findings: &Findings) -> Check {
    let what = "installed";
    let wishes = match &findings.wishes {
        Ok(wishes) => &wishes[..],
        Err(Problem::NotServed) => &[],
        Err(problem) => return check(Level::Unknown, what, problem.to_string()),
    };
    if let Some(other) = wishes.iter().find(|wish| wish.namespace != findings.namespace) {
        let words = format!(
            "there is Sheepdog in namespace {} already, and a Kubernetes can have one: say -n {0}, or uninstall it",
            other.namespace
        );
        return check(Level::Problem, what, words);
    }
    if let Some(own) = wishes.first() {
        let words = format!("{}/{} is there: `helm upgrade` changes it", own.namespace, own.name);
        return check(Level::Warning, what, words);
    }
    match &findings.driver {
        Err(problem) => check(Level::Unknown, what, problem.to_string()),
        Ok(Value::Null) => check(Level::Ok, what, "no other Sheepdog is here"),
        Ok(driver) => {
            let name = text(&driver["metadata"]["name"]);
            let owner = match text(&driver["metadata"]["annotations"][OWNER]) {
                owner if owner.is_empty() => owner,
                owner => format!(" of {owner}"),
            };
            let words = format!(
                "CSIDriver {name}{owner} is there, and no SheepdogCluster: if nothing of an earlier installation runs, \
                 `kubectl delete csidriver {name}`"
            );
            check(Level::Problem, what, words)
        }
    }
}

fn rights(rights: &Result<Rights, Problem>) -> Check {
    let what = "permissions";
    match rights {
        Ok(Rights::All) => check(Level::Ok, what, "you may do everything"),
        Ok(Rights::Enough) => check(
            Level::Warning,
            what,
            "you may make what is needed; roles only with rights that you have yourself, unless you may `escalate`",
        ),
        Ok(Rights::Lacking(kinds)) => {
            let words = format!("you may not make {}: ask an administrator of the cluster", kinds.join(", "));
            check(Level::Problem, what, words)
        }
        Err(problem) => check(Level::Unknown, what, problem.to_string()),
    }
}
