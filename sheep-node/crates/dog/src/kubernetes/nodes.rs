//! `get nodes`, and the nodes of `status`: a line for each machine.

use super::inside::{Inside, Member};
use super::json::dash;
use super::objects::{KubeNode, Pod};
use crate::output;
use serde_json::{Value, json};
use sheep_api::Size;
use std::collections::BTreeSet;

/// A machine: a node of Kubernetes, of the cluster, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Machine {
    /// Its name.
    pub(super) name: String,
    /// How Kubernetes sees it; none: it does not, or it may not be asked.
    pub(super) kubernetes: Option<String>,
    /// How its storage node is.
    pub(super) storage: String,
    /// How its gateway is.
    pub(super) gateway: String,
    /// How its owner of devices is.
    pub(super) device: String,
    /// How the CSI driver on it is.
    pub(super) csi: String,
    /// Its storage node.
    pub(super) member: Option<Member>,
    /// How many volumes it has.
    pub(super) volumes: usize,
}

/// How good it is if a member is in a state: of several with one name the best counts.
fn rank(member: &Member) -> usize {
    ["up", "leaving", "down"].iter().position(|state| *state == member.state).unwrap_or(3)
}

/// All machines, by name.
pub(super) fn machines(nodes: Option<&[KubeNode]>, pods: &[Pod], inside: Option<&Inside>) -> Vec<Machine> {
    let of_kubernetes = nodes.unwrap_or_default().iter().map(|node| node.name.as_str());
    let members = inside.map_or(&[][..], |inside| &inside.members);
    let of_cluster = members
        .iter()
        .filter(|member| member.state != "out")
        .map(|member| if member.name.is_empty() { member.id.as_str() } else { member.name.as_str() });
    let names: BTreeSet<&str> = of_kubernetes.chain(of_cluster).collect();
    names.into_iter().map(|name| machine(name, nodes, pods, inside)).collect()
}

fn machine(name: &str, nodes: Option<&[KubeNode]>, pods: &[Pod], inside: Option<&Inside>) -> Machine {
    let member = |role: &str| {
        let members = inside.map_or(&[][..], |inside| &inside.members).iter();
        members
            .filter(|it| it.role == role && (it.name == name || it.name.is_empty() && it.id == name))
            .min_by_key(|it| rank(it))
    };
    let pod = |component: &str| {
        let mut of_part = pods.iter().filter(|pod| pod.component == component && pod.node == name);
        let first = of_part.clone().find(|pod| pod.ready).or_else(|| of_part.next());
        first.map_or("-", |pod| if pod.ready { "ready" } else { "not ready" }).to_owned()
    };
    // What the cluster says of a member counts; it may be up although its pod is not ready yet.
    let part = |role: &str| member(role).map_or_else(|| pod(role), |member| member.state.clone());
    let volumes = inside.map_or(0, |inside| {
        inside.vdis.iter().filter(|vdi| inside.nodes_of(vdi).iter().any(|node| node == name)).count()
    });
    Machine {
        name: name.to_owned(),
        kubernetes: nodes.map(|nodes| {
            nodes.iter().find(|node| node.name == name).map_or_else(|| "gone".into(), KubeNode::state)
        }),
        storage: part("storage"),
        gateway: part("gateway"),
        device: pod("device"),
        csi: pod("csi-node"),
        member: member("storage").cloned(),
        volumes,
    }
}

fn bytes(machine: &Machine, which: fn((u64, u64)) -> u64) -> String {
    machine.member.as_ref().map_or_else(|| "-".into(), |member| Size(which(member.used)).to_string())
}

/// The table; with everything, or what fits beside the rest of `status`.
pub(super) fn table(machines: &[Machine], everything: bool) -> String {
    let mut heads = vec!["NODE", "KUBERNETES", "STORAGE", "GATEWAY", "DEVICE", "CSI", "USED", "CAPACITY"];
    if everything {
        heads.extend(["VOLUMES", "ZONE", "ID"]);
    }
    let rows = machines.iter().map(|machine| {
        let mut row = vec![
            machine.name.clone(),
            machine.kubernetes.clone().unwrap_or_else(|| "?".into()),
            machine.storage.clone(),
            machine.gateway.clone(),
            machine.device.clone(),
            machine.csi.clone(),
            bytes(machine, |used| used.0),
            bytes(machine, |used| used.1),
        ];
        if everything {
            let of = |field: fn(&Member) -> &String| {
                machine.member.as_ref().map_or("-".into(), |it| dash(field(it)))
            };
            row.extend([machine.volumes.to_string(), of(|it| &it.zone), of(|it| &it.id)]);
        }
        row
    });
    output::table(&heads, rows)
}

/// The same for programs.
pub(super) fn to_json(machines: &[Machine]) -> Value {
    let machine = |it: &Machine| {
        let storage = it.member.as_ref();
        json!({
            "name": it.name,
            "kubernetes": it.kubernetes,
            "storage": it.storage,
            "gateway": it.gateway,
            "device": it.device,
            "csi": it.csi,
            "id": storage.map(|member| &member.id),
            "zone": storage.map(|member| &member.zone),
            "used_bytes": storage.map(|member| member.used.0),
            "capacity_bytes": storage.map(|member| member.used.1),
            "volumes": it.volumes,
        })
    };
    Value::Array(machines.iter().map(machine).collect())
}
