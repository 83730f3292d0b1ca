//! What the cluster says of itself: `dog` is asked in a storage pod.

use super::json::{list, number, text};
use super::kubectl::{Kubectl, Problem};
use super::objects::Pod;
use serde_json::Value;
use std::thread;

/// Container of a storage pod, and the control socket of its node. As the operator makes them.
const CONTAINER: &str = "sheep";
const SOCKET: &str = "/var/lib/sheepdog/storage/control.sock";
/// Container of a pod that owns block devices, and its socket.
const DEVICE_CONTAINER: &str = "device";
const DEVICE_SOCKET: &str = "/run/sheepdog/devices/devices.sock";
/// So many pods are asked before the cluster is taken for silent.
const TRIES: usize = 3;
/// So many pods are asked at the same time.
const TOGETHER: usize = 8;

/// The cluster as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Info {
    /// Its id.
    pub(super) id: String,
    /// One word: `ok` if all is well.
    pub(super) health: String,
    /// One sentence: what is wrong and what to do.
    pub(super) message: String,
    /// Of the node that was asked.
    pub(super) version: String,
    /// How often the list of storage nodes has changed.
    pub(super) epoch: u64,
    /// Copies of new volumes, and below how many writes wait.
    pub(super) copies: (u64, u64),
    /// Storage nodes that are up, and all.
    pub(super) storage_nodes: (u64, u64),
    /// Bytes in use, and all.
    pub(super) used: (u64, u64),
    /// Storage nodes that lack copies.
    pub(super) recovering: u64,
    /// Objects and bytes that they have to copy yet, milliseconds that it takes (0: not known), and whether it pauses.
    pub(super) left: (u64, u64, u64, bool),
}

/// A member of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Member {
    /// Its id.
    pub(super) id: String,
    /// Its name: that of its node in Kubernetes.
    pub(super) name: String,
    /// `storage`, `gateway` or `witness`.
    pub(super) role: String,
    /// `up`, `down`, `leaving` or `out`.
    pub(super) state: String,
    /// Failure domain.
    pub(super) zone: String,
    /// Bytes in use, and all.
    pub(super) used: (u64, u64),
}

/// A volume or a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Vdi {
    /// What its handle in Kubernetes ends with.
    pub(super) id: u64,
    /// Its name.
    pub(super) name: String,
    /// It is a snapshot of the volume with this id.
    pub(super) snapshot_of: Option<u64>,
    /// Name of that volume.
    pub(super) source: String,
    /// What it was cloned from; empty if it was not.
    pub(super) origin: String,
    /// Bytes.
    pub(super) size: u64,
    /// Copies: that it has now, that it should have, and below how many writes wait.
    pub(super) copies: (u64, u64, u64),
    /// When it was made, in milliseconds since 1970.
    pub(super) created: u64,
    /// Ids of members that it is attached to.
    pub(super) attached: Vec<String>,
    /// Id of the member that has it open for writing.
    pub(super) holder: Option<String>,
    /// How many members have it open for reading.
    pub(super) readers: usize,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Inside {
    /// The cluster as a whole.
    pub(super) info: Info,
    /// Its members.
    pub(super) members: Vec<Member>,
    /// Volumes and snapshots.
    pub(super) vdis: Vec<Vdi>,
    /// Sentences about what is wrong.
    pub(super) findings: Vec<String>,
}

impl Info {
    fn read(info: &Value) -> Self {
        let of = |key: &str| number(&info[key]);
        Self {
            id: text(&info["cluster_id"]),
            health: text(&info["health"]),
            message: text(&info["message"]),
            version: text(&info["version"]),
            epoch: of("epoch"),
            copies: (number(&info["settings"]["copies"]), number(&info["settings"]["min_copies"])),
            storage_nodes: (of("storage_nodes_up"), of("storage_nodes")),
            used: (of("used_bytes"), of("capacity_bytes")),
            recovering: of("nodes_recovering"),
            left: (
                of("objects_to_recover"),
                of("bytes_to_recover"),
                of("recovery_time_left_ms"),
                info["settings"]["recovery_paused"] == true,
            ),
        }
    }
}

impl Member {
    fn read(node: &Value) -> Self {
        Self {
            id: text(&node["id"]),
            name: text(&node["name"]),
            role: text(&node["role"]),
            state: text(&node["state"]),
            zone: text(&node["zone"]),
            used: (number(&node["used_bytes"]), number(&node["capacity_bytes"])),
        }
    }
}

impl Vdi {
    fn read(vdi: &Value) -> Self {
        let of = |key: &str| number(&vdi[key]);
        Self {
            id: of("id"),
            name: text(&vdi["name"]),
            snapshot_of: (vdi["kind"] == "snapshot").then(|| of("source_id")),
            source: text(&vdi["source"]),
            origin: match vdi["cloned"] == true {
                true if text(&vdi["origin"]).is_empty() => "a snapshot that is deleted".into(),
                true => text(&vdi["origin"]),
                false => String::new(),
            },
            size: of("size_bytes"),
            copies: (of("effective_copies"), of("copies"), of("min_copies")),
            created: of("created_unix_ms"),
            attached: list(&vdi["attachments"]).iter().map(|it| text(&it["node"])).collect(),
            holder: vdi["lock"]["node"].as_str().map(str::to_owned),
            readers: list(&vdi["readers"]).len(),
        }
    }
}

impl Inside {
    /// From what `dog` printed for `cluster info`, `node list`, `vdi list` and `cluster check`.
    pub(super) fn read(info: &Value, members: &Value, vdis: &Value, check: &Value) -> Self {
        Self {
            info: Info::read(info),
            members: list(members).iter().map(Member::read).collect(),
            vdis: list(vdis).iter().map(Vdi::read).collect(),
            findings: list(&check["findings"]).iter().map(text).collect(),
        }
    }

    /// The name of a member.
    pub(super) fn name_of(&self, id: &str) -> String {
        let member = self.members.iter().find(|member| member.id == id && !member.name.is_empty());
        member.map_or_else(|| id.to_owned(), |member| member.name.clone())
    }

    /// Nodes that have a volume: it is attached to them, or else open there.
    pub(super) fn nodes_of(&self, vdi: &Vdi) -> Vec<String> {
        let ids: Vec<&String> = match vdi.attached.is_empty() {
            true => vdi.holder.iter().collect(),
            false => vdi.attached.iter().collect(),
        };
        ids.into_iter().map(|id| self.name_of(id)).collect()
    }
}

/// Storage pods in the order in which to ask them: those that are ready know best.
pub(super) fn to_ask<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Vec<&'a Pod> {
    let mut pods: Vec<&Pod> = pods.into_iter().filter(|pod| pod.component == "storage" && pod.runs).collect();
    pods.sort_by_key(|pod| !pod.ready);
    pods
}

/// Asks the cluster through the first pod that answers: one that is not ready says at least why.
pub(super) fn ask(kubectl: &Kubectl, pods: &[&Pod]) -> Result<Inside, Problem> {
    let mut last = Problem::Other("no storage pod runs".into());
    for pod in pods.iter().take(TRIES) {
        let info = match dog(kubectl, pod, &["cluster", "info"]) {
            Ok(info) => info,
            Err(problem) => {
                last = problem;
                continue;
            }
        };
        // One that does not serve knows no more.
        if info["primary"] == false {
            return Ok(Inside::read(&info, &Value::Null, &Value::Null, &Value::Null));
        }
        let ask = |words: &'static [&'static str]| dog(kubectl, pod, words);
        let [members, vdis, check] = thread::scope(|scope| {
            let questions: [&[&str]; 3] = [&["node", "list"], &["vdi", "list"], &["cluster", "check"]];
            questions.map(|words| scope.spawn(move || ask(words))).map(joined)
        });
        let mut inside = Inside::read(&info, &members?, &vdis?, check.as_ref().unwrap_or(&Value::Null));
        // It asks all nodes, and takes long if some do not answer.
        if let Err(problem) = check {
            inside.findings.push(format!("Not everything could be checked: {problem}."));
        }
        return Ok(inside);
    }
    Err(last)
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T, Problem>>) -> Result<T, Problem> {
    thread.join().unwrap_or_else(|_| Err(Problem::Other("a question was not finished".into())))
}

fn dog(kubectl: &Kubectl, pod: &Pod, words: &[&str]) -> Result<Value, Problem> {
    kubectl.dog(&pod.namespace, &pod.name, CONTAINER, &[&["--server", SOCKET], words].concat())
}

/// Asks pods, each for itself.
fn ask_each<'a>(
    pods: &[&'a Pod],
    ask: impl Fn(&Pod) -> Result<Value, Problem> + Sync,
) -> Vec<(&'a Pod, Result<Value, Problem>)> {
    let mut answers = Vec::new();
    for some in pods.chunks(TOGETHER) {
        answers.extend(thread::scope(|scope| {
            let asked: Vec<_> = some.iter().map(|pod| (*pod, scope.spawn(|| ask(pod)))).collect();
            asked.into_iter().map(|(pod, thread)| (pod, joined(thread))).collect::<Vec<_>>()
        }));
    }
    answers
}

/// The disks of storage pods that run.
pub(super) fn disks<'a>(kubectl: &Kubectl, pods: &[&'a Pod]) -> Vec<(&'a Pod, Result<Value, Problem>)> {
    ask_each(pods, |pod| dog(kubectl, pod, &["node", "md", "list"]))
}

/// The block devices that a pod owns.
pub(super) fn devices(kubectl: &Kubectl, pod: &Pod) -> Result<Value, Problem> {
    let words = ["device", "--devices", DEVICE_SOCKET, "list"];
    kubectl.dog(&pod.namespace, &pod.name, DEVICE_CONTAINER, &words)
}

/// What to run in a storage pod for `dog WORDS`.
pub(super) fn command() -> [&'static str; 3] {
    ["dog", "--server", SOCKET]
}

/// The container of a storage pod in which `dog` is run.
pub(super) const fn container() -> &'static str {
    CONTAINER
}
