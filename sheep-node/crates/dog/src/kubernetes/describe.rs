//! `describe volume` and `describe node`.

use super::claims::Content;
use super::inside::Inside;
use super::json::{count, dash, list, text};
use super::kubectl::Problem;
use super::nodes::Machine;
use super::objects::{KubeNode, Pod};
use super::volumes::{self, Row, Users};
use crate::output;
use serde_json::Value;
use sheep_api::Size;

/// The volume that a name means: a claim, a persistent volume, a VDI, or a handle.
///
/// # Errors
/// There is none, or several.
pub(super) fn find<'a>(inside: &'a Inside, users: &'a Users, name: &str) -> Result<Row<'a>, Problem> {
    let all = volumes::rows(inside, users);
    let is = |row: &Row<'a>| {
        row.claim_name() == name
            || row.volume.is_some_and(|volume| volume.name == name || volume.handle.text == name)
            || row.vdi.is_some_and(|vdi| vdi.name == name)
    };
    // A claim's name alone will do if only one namespace has it.
    let short = |row: &Row<'a>| row.claim_name().split_once('/').is_some_and(|(_, claim)| claim == name);
    let mut found: Vec<Row<'a>> = all.iter().filter(|row| is(row)).cloned().collect();
    if found.is_empty() {
        found = all.into_iter().filter(short).collect();
    }
    match found.len() {
        1 => found.pop().ok_or(Problem::NotServed),
        0 => Err(Problem::NotFound(format!(
            "there is no volume {name:?}: name a claim as NAMESPACE/NAME, a persistent volume or a VDI, as \
             `kubectl sheepdog get volumes` shows them"
        ))),
        _ => {
            let names: Vec<&str> = found.iter().map(Row::claim_name).collect();
            Err(Problem::Other(format!("{name:?} may be any of {}", names.join(", "))))
        }
    }
}

/// Everything about a volume.
pub(super) fn volume(row: &Row<'_>, inside: &Inside, users: &Users) -> String {
    let mut facts = Vec::new();
    match row.vdi {
        Some(vdi) => facts.push(("Volume", vdi.name.clone())),
        None => facts.push(("Volume", "none in this cluster".into())),
    }
    let claim = match row.claim {
        Some(claim) => {
            let size = if claim.sizes.1.is_empty() { &claim.sizes.0 } else { &claim.sizes.1 };
            format!("{}, {}, {size}", claim.name, claim.phase)
        }
        None => dash(row.claim_name()),
    };
    facts.push(("Claim", claim));
    if let Some(it) = row.volume {
        facts.push(("Persistent volume", format!("{}, {}", it.name, it.phase)));
        facts.push(("Class", format!("{}, {}", dash(&it.class), it.modes)));
        facts.push(("When unclaimed", if it.policy == "Delete" { "deleted".into() } else { "kept".into() }));
        facts.push(("Handle", it.handle.text.clone()));
    }
    if let Some(vdi) = row.vdi {
        facts.push(("Size", format!("{} ({} bytes)", Size(vdi.size), vdi.size)));
        let (now, wanted, needed) = vdi.copies;
        let copies =
            if now < wanted { format!("{now} of {wanted} copies") } else { format!("{wanted} copies") };
        facts.push(("Redundancy", format!("{copies}, writes need {needed}")));
        facts.push(("Created", output::moment(vdi.created)));
        if !vdi.origin.is_empty() {
            facts.push(("Cloned from", vdi.origin.clone()));
        }
        let names = |ids: &[String]| ids.iter().map(|id| inside.name_of(id)).collect::<Vec<_>>().join(", ");
        facts.push(("Attached to", dash(&names(&vdi.attached))));
        let open = match (&vdi.holder, vdi.readers) {
            (Some(holder), _) => inside.name_of(holder),
            (None, 0) => "-".into(),
            (None, readers) => count(readers, "reader"),
        };
        facts.push(("Open at", open));
    }
    facts.push(("Pods", dash(&row.pods.iter().map(|pod| pod_text(pod)).collect::<Vec<_>>().join("; "))));
    let taken = snapshots_of(row, inside, users);
    facts.push(("Snapshots", dash(&taken.join(", "))));
    let findings = volume_findings(row, inside);
    let mut text = output::pairs(&facts);
    for finding in findings.iter().chain(&users.missing) {
        text += &format!("\n! {finding}");
    }
    text
}

fn pod_text(pod: &Pod) -> String {
    let place = if pod.node.is_empty() { "without a node".to_owned() } else { format!("on {}", pod.node) };
    let trouble = pod.trouble.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    format!("{}/{} {} {place}{trouble}", pod.namespace, pod.name, pod.phase)
}

fn snapshots_of(row: &Row<'_>, inside: &Inside, users: &Users) -> Vec<String> {
    let Some(id) = row.vdi.map(|vdi| vdi.id) else { return Vec::new() };
    let name = |content: Option<&Content>, name: &str| match content {
        Some(content) => format!("{} ({name})", content.snapshot),
        None => name.to_owned(),
    };
    let all = volumes::snapshots(inside, users).into_iter();
    all.filter(|(vdi, ..)| vdi.snapshot_of == Some(id))
        .map(|(vdi, content, _)| name(content, &vdi.name))
        .collect()
}

/// What does not fit together, with what to do.
fn volume_findings(row: &Row<'_>, inside: &Inside) -> Vec<String> {
    let mut findings = Vec::new();
    match (row.vdi, row.volume) {
        (None, Some(volume)) if volume.handle.cluster == inside.info.id => findings
            .push("The cluster has no such VDI any more: the data is gone. Delete the claim and restore it.".into()),
        (None, Some(volume)) => findings.push(format!(
            "It is of cluster {}, and this is {}: nobody here can serve it.",
            volume.handle.cluster, inside.info.id
        )),
        (None, None) => findings.push(format!(
            "It is not made yet: `kubectl describe pvc` of {} says why, and the pod of sheepdog-csi-controller.",
            row.claim_name()
        )),
        (Some(_), _) => {}
    }
    if let Some((asked, has)) = row.claim.map(|claim| &claim.sizes)
        && !has.is_empty()
        && asked != has
    {
        findings.push(format!("It is to have {asked} and has {has}: it grows while a pod uses it."));
    }
    let elsewhere = |pod: &&&Pod| !pod.node.is_empty() && !pod.ready && !row.nodes.contains(&pod.node);
    if let Some(pod) = row.pods.iter().find(elsewhere)
        && !row.nodes.is_empty()
    {
        findings.push(format!(
            "Pod {}/{} waits on {} for what {} still has: it gets the volume when the pod there is gone.",
            pod.namespace,
            pod.name,
            pod.node,
            row.nodes.join(", ")
        ));
    }
    findings
}

/// What is known of a node.
pub(super) struct Parts<'a> {
    /// The line that `get nodes` has for it.
    pub(super) machine: &'a Machine,
    /// The node in Kubernetes.
    pub(super) node: Option<&'a KubeNode>,
    /// Our pods there.
    pub(super) pods: Vec<&'a Pod>,
    /// Its disks.
    pub(super) disks: Option<Result<Value, Problem>>,
    /// Its block devices.
    pub(super) devices: Option<Result<Value, Problem>>,
}

/// Everything about a node.
pub(super) fn node(parts: &Parts<'_>, inside: &Inside, users: &Users) -> String {
    let machine = parts.machine;
    let mut facts = vec![
        ("Node", machine.name.clone()),
        ("Kubernetes", machine.kubernetes.clone().unwrap_or_else(|| "not known".into())),
    ];
    if let Some(node) = parts.node {
        facts.push(("System", format!("{} {}, kubelet {}", node.architecture, node.kernel, node.kubelet)));
        facts.push(("Taints", dash(&node.taints.join(", "))));
    }
    let storage = match &machine.member {
        Some(member) => format!(
            "{}, id {}, zone {}, {} of {} used",
            machine.storage,
            member.id,
            dash(&member.zone),
            Size(member.used.0),
            Size(member.used.1)
        ),
        None => machine.storage.clone(),
    };
    facts.push(("Storage", storage));
    facts.push(("Gateway", machine.gateway.clone()));
    let mut text = output::pairs(&facts);
    let pods = parts.pods.iter().map(|pod| {
        let state = pod.trouble.clone().unwrap_or_else(|| "ready".into());
        vec![pod.component.clone(), pod.name.clone(), state]
    });
    text += &format!("\n\n{}", output::table(&["PART", "POD", "STATE"], pods));
    text += &section("disks", &parts.disks, |answer| {
        let pod = Pod { node: machine.name.clone(), ..Pod::default() };
        super::disks::table(&[(&pod, Ok(answer.clone()))], &[])
    });
    text += &section("devices", &parts.devices, |answer| match list(answer).is_empty() {
        true => "No block devices.".into(),
        false => device_table(answer),
    });
    let rows = volumes::rows(inside, users);
    let here = rows.iter().filter(|row| row.nodes.contains(&machine.name)).map(|row| {
        let pods: Vec<&str> = row.pods.iter().map(|pod| pod.name.as_str()).collect();
        let name = row.vdi.map(|vdi| vdi.name.clone()).unwrap_or_default();
        vec![dash(row.claim_name()), name, dash(&pods.join(","))]
    });
    let here: Vec<_> = here.collect();
    text += "\n\n";
    text += &match here.is_empty() {
        true => "No volumes.".to_owned(),
        false => output::table(&["CLAIM HERE", "VOLUME", "PODS"], here),
    };
    text
}

fn section(
    what: &str,
    answer: &Option<Result<Value, Problem>>,
    show: impl FnOnce(&Value) -> String,
) -> String {
    match answer {
        None => String::new(),
        Some(Ok(answer)) => format!("\n\n{}", show(answer)),
        Some(Err(problem)) => format!("\n\nIts {what} are not known: {problem}"),
    }
}

fn device_table(devices: &Value) -> String {
    let rows = list(devices).iter().map(|device| {
        let mode = if device["read_only"] == true { "ro" } else { "rw" };
        let survives = if device["survives"] == true { "yes" } else { "no" };
        let of = |key: &str| dash(&text(&device[key]));
        vec![of("path"), of("name"), of("kind"), of("state"), mode.to_owned(), survives.to_owned()]
    });
    output::table(&["DEVICE", "VOLUME", "KIND", "STATE", "MODE", "SURVIVES"], rows)
}
