//! Objects of Kubernetes, as far as they matter here.

use super::json::{list, number, text};
use super::kubectl::shorten;
use serde_json::Value;

/// Labels of our objects.
const NAME: &str = "app.kubernetes.io/name";
const COMPONENT: &str = "app.kubernetes.io/component";
/// Value of the first for the operator, which belongs to no cluster.
const OPERATOR: &str = "sheepdog-operator";

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pod {
    /// Where it is.
    pub(super) namespace: String,
    /// Its name.
    pub(super) name: String,
    /// Its node; empty if it has none yet.
    pub(super) node: String,
    /// Which part of Sheepdog it is: `storage`, `gateway`, ..., `operator`.
    pub(super) component: String,
    /// In Kubernetes' own word.
    pub(super) phase: String,
    /// Whether its containers run, ready or not.
    pub(super) runs: bool,
    /// Whether it is ready.
    pub(super) ready: bool,
    /// Why it is not ready.
    pub(super) trouble: Option<String>,
    /// Claims that it uses, in its namespace.
    pub(super) claims: Vec<String>,
}

impl Pod {
    /// From what Kubernetes says.
    pub(super) fn read(pod: &Value) -> Self {
        let (metadata, status) = (&pod["metadata"], &pod["status"]);
        let labels = &metadata["labels"];
        let name = text(&metadata["name"]);
        let component = match labels[NAME].as_str() {
            Some(OPERATOR) => "operator".into(),
            _ => text(&labels[COMPONENT]),
        };
        let ready = condition(status, "Ready").is_some_and(|ready| ready["status"] == "True");
        let phase = text(&status["phase"]);
        let containers = list(&status["containerStatuses"]);
        let over = phase == "Succeeded" || phase == "Failed";
        let claims = list(&pod["spec"]["volumes"]).iter().filter_map(|volume| {
            match volume["persistentVolumeClaim"]["claimName"].as_str() {
                Some(claim) => Some(claim.to_owned()),
                None if volume["ephemeral"].is_object() => Some(format!("{name}-{}", text(&volume["name"]))),
                None => None,
            }
        });
        Self {
            namespace: text(&metadata["namespace"]),
            node: text(&pod["spec"]["nodeName"]),
            component,
            runs: !containers.is_empty() && containers.iter().all(|it| it["state"]["running"].is_object()),
            ready: ready && !over,
            trouble: (!ready || over).then(|| trouble(pod)),
            claims: if over { Vec::new() } else { claims.collect() },
            phase,
            name,
        }
    }
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    list(&status["conditions"]).iter().find(|condition| condition["type"] == kind)
}

/// Why a pod is not ready.
fn trouble(pod: &Value) -> String {
    let status = &pod["status"];
    if pod["metadata"]["deletionTimestamp"].is_string() {
        return "is ending".into();
    }
    if status["phase"] == "Failed" {
        return said(&text(&status["reason"]), &text(&status["message"]), "failed");
    }
    if let Some(scheduled) = condition(status, "PodScheduled").filter(|it| it["status"] == "False") {
        return said("no node for it", &text(&scheduled["message"]), "");
    }
    let containers = list(&status["initContainerStatuses"]).iter().chain(list(&status["containerStatuses"]));
    let all: Vec<&Value> = containers.collect();
    let of = |what: fn(&Value) -> Option<String>| all.iter().find_map(|container| what(container));
    of(waiting)
        .or_else(|| of(ended))
        .or_else(|| of(idle))
        .unwrap_or_else(|| said("", "", "is not ready, and Kubernetes does not say why"))
}

fn waiting(container: &Value) -> Option<String> {
    let waiting = container["state"]["waiting"].as_object()?;
    let reason = waiting.get("reason").map(text).unwrap_or_default();
    let last = &container["lastState"]["terminated"];
    let words = match last.is_object() {
        true => last_run(last),
        false => waiting.get("message").map(text).unwrap_or_default(),
    };
    Some(said(&reason, &words, "waits"))
}

fn ended(container: &Value) -> Option<String> {
    let run = &container["state"]["terminated"];
    // Containers that prepare something end when they have.
    (run.is_object() && number(&run["exitCode"]) != 0).then(|| last_run(run))
}

fn idle(container: &Value) -> Option<String> {
    let running = container["state"]["running"].is_object();
    if !running || container["ready"] == true {
        return None;
    }
    let since = text(&container["state"]["running"]["startedAt"]);
    let mut words = format!("container {} runs since {since}, but is not ready", text(&container["name"]));
    let last = &container["lastState"]["terminated"];
    if last.is_object() {
        words += &format!("; before it {}", last_run(last));
    }
    Some(words)
}

/// How a container ended, with the last line that it said.
fn last_run(run: &Value) -> String {
    let message = text(&run["message"]);
    let words = message.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    let how = match run["reason"].as_str() {
        Some("OOMKilled") => "ended because its memory was not enough".to_owned(),
        _ => format!("ended with exit code {}", number(&run["exitCode"])),
    };
    said(&how, words, "")
}

fn said(what: &str, words: &str, else_this: &str) -> String {
    let text = match (what.is_empty(), words.is_empty()) {
        (false, false) => format!("{what}: {words}"),
        (false, true) => what.to_owned(),
        (true, false) => words.to_owned(),
        (true, true) => else_this.to_owned(),
    };
    shorten(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A node of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KubeNode {
    /// Its name.
    pub(super) name: String,
    /// Whether its kubelet says that it works.
    pub(super) ready: bool,
    /// Whether new pods are kept away by hand.
    pub(super) cordoned: bool,
    /// Taints that keep pods away: `KEY=VALUE:EFFECT`.
    pub(super) taints: Vec<String>,
    /// `linux`, usually.
    pub(super) os: String,
    /// `amd64`, `arm64`, ...
    pub(super) architecture: String,
    /// Release of its kernel.
    pub(super) kernel: String,
    /// Version of its kubelet.
    pub(super) kubelet: String,
    /// Bytes of disk that pods may use, as Kubernetes writes them; empty if it does not know.
    pub(super) disk: String,
}

impl KubeNode {
    /// From what Kubernetes says.
    pub(super) fn read(node: &Value) -> Self {
        let (status, info) = (&node["status"], &node["status"]["nodeInfo"]);
        let taints =
            list(&node["spec"]["taints"]).iter().filter(|taint| taint["effect"] != "PreferNoSchedule");
        let taint = |taint: &Value| {
            let value = taint["value"].as_str().map(|value| format!("={value}")).unwrap_or_default();
            format!("{}{value}:{}", text(&taint["key"]), text(&taint["effect"]))
        };
        Self {
            name: text(&node["metadata"]["name"]),
            ready: condition(status, "Ready").is_some_and(|ready| ready["status"] == "True"),
            cordoned: node["spec"]["unschedulable"] == true,
            taints: taints.map(taint).collect(),
            os: text(&info["operatingSystem"]),
            architecture: text(&info["architecture"]),
            kernel: text(&info["kernelVersion"]),
            kubelet: text(&info["kubeletVersion"]),
            disk: text(&status["allocatable"]["ephemeral-storage"]),
        }
    }

    /// In a word or two.
    pub(super) fn state(&self) -> String {
        let ready = if self.ready { "Ready" } else { "NotReady" };
        if self.cordoned { format!("{ready}, cordoned") } else { ready.into() }
    }
}

/// A SheepdogCluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// Where it is.
    pub(super) namespace: String,
    /// Its name.
    pub(super) name: String,
    /// Whether it is being deleted.
    pub(super) leaving: bool,
    /// What the operator says of it.
    pub(super) conditions: Vec<Condition>,
    /// Its rings: name, members.
    pub(super) rings: Vec<(String, u64)>,
}

/// One statement of the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Condition {
    /// What it is about.
    pub(super) kind: String,
    /// `True`, `False` or `Unknown`.
    pub(super) status: String,
    /// A sentence.
    pub(super) message: String,
}

impl Wish {
    /// From what Kubernetes says.
    pub(super) fn read(cluster: &Value) -> Self {
        let (metadata, status) = (&cluster["metadata"], &cluster["status"]);
        let condition = |condition: &Value| Condition {
            kind: text(&condition["type"]),
            status: text(&condition["status"]),
            message: text(&condition["message"]),
        };
        Self {
            namespace: text(&metadata["namespace"]),
            name: text(&metadata["name"]),
            leaving: metadata["deletionTimestamp"].is_string(),
            conditions: list(&status["conditions"]).iter().map(condition).collect(),
            rings: list(&status["rings"])
                .iter()
                .map(|ring| (text(&ring["name"]), number(&ring["members"])))
                .collect(),
        }
    }

    /// What the operator says if a condition has this status.
    pub(super) fn says(&self, kind: &str, status: &str) -> Option<&str> {
        let found = self.conditions.iter().find(|it| it.kind == kind && it.status == status)?;
        Some(found.message.as_str()).filter(|message| !message.is_empty())
    }
}

/// A DaemonSet or a Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Workload {
    /// Where it is.
    pub(super) namespace: String,
    /// `daemonset` or `deployment`.
    pub(super) kind: String,
    /// Its name.
    pub(super) name: String,
    /// Pods that it should have.
    pub(super) wanted: u64,
    /// Pods that were made.
    pub(super) made: u64,
}

impl Workload {
    /// From what Kubernetes says.
    pub(super) fn read(object: &Value) -> Self {
        let status = &object["status"];
        let (wanted, made) = match object["kind"].as_str() {
            Some("DaemonSet") => (&status["desiredNumberScheduled"], &status["currentNumberScheduled"]),
            _ => (&object["spec"]["replicas"], &status["replicas"]),
        };
        Self {
            namespace: text(&object["metadata"]["namespace"]),
            kind: text(&object["kind"]).to_lowercase(),
            name: text(&object["metadata"]["name"]),
            wanted: number(wanted),
            made: number(made),
        }
    }
}
