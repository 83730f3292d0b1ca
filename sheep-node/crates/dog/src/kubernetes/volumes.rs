//! `get volumes` and `get snapshots`: what the cluster has, with what it is in Kubernetes.

use super::claims::{Claim, Content, Volume};
use super::inside::{Inside, Vdi};
use super::json::dash;
use super::kubectl::{Kubectl, Problem};
use super::objects::Pod;
use super::seen::all_pods;
use crate::output;
use serde_json::{Value, json};
use sheep_api::Size;
use std::thread;

/// Contents of VolumeSnapshots as kubectl takes them.
const CONTENTS: &str = "volumesnapshotcontents.snapshot.storage.k8s.io";

/// What users of volumes have in Kubernetes. What may not be seen, or is not served, is missing.
#[derive(Clone, Debug, Default)]
pub(super) struct Users {
    /// Persistent volumes of our driver.
    pub(super) volumes: Vec<Volume>,
    /// Claims, of any driver.
    pub(super) claims: Vec<Claim>,
    /// Pods, of anybody.
    pub(super) pods: Vec<Pod>,
    /// Contents of VolumeSnapshots of our driver.
    pub(super) contents: Vec<Content>,
    /// What is missing, as sentences.
    pub(super) missing: Vec<String>,
}

impl Users {
    /// Looks at everything.
    pub(super) fn look(kubectl: &Kubectl) -> Self {
        let (volumes, claims, pods, contents) = thread::scope(|scope| {
            let volumes = scope.spawn(|| kubectl.list_in(None, &["persistentvolumes"]));
            let claims = scope.spawn(|| kubectl.list_in(None, &["persistentvolumeclaims"]));
            let contents = scope.spawn(|| kubectl.list_in(None, &[CONTENTS]));
            let pods = all_pods(kubectl);
            (lost(volumes.join()), lost(claims.join()), pods, lost(contents.join()))
        });
        // Not every Kubernetes has snapshots.
        let contents = if contents == Err(Problem::NotServed) { Ok(Vec::new()) } else { contents };
        let mut missing = Vec::new();
        let volumes = or_missing(volumes, "Persistent volumes", &mut missing);
        let claims = or_missing(claims, "Claims", &mut missing);
        let contents = or_missing(contents, "VolumeSnapshotContents", &mut missing);
        Self {
            volumes: volumes.iter().filter_map(Volume::read).collect(),
            claims: claims.iter().map(Claim::read).collect(),
            pods: or_missing(pods, "Pods", &mut missing),
            contents: contents.iter().filter_map(Content::read).collect(),
            missing,
        }
    }

    /// Pods that have a claim among their volumes.
    pub(super) fn pods_of(&self, claim: &str) -> Vec<&Pod> {
        let of = |pod: &&Pod| {
            pod.claims.iter().any(|name| claim.split_once('/') == Some((pod.namespace.as_str(), name)))
        };
        self.pods.iter().filter(of).collect()
    }
}

fn lost<T>(joined: thread::Result<Result<T, Problem>>) -> Result<T, Problem> {
    joined.unwrap_or_else(|_| Err(Problem::Other("a question was not finished".into())))
}

fn or_missing<T>(found: Result<Vec<T>, Problem>, what: &str, missing: &mut Vec<String>) -> Vec<T> {
    found.unwrap_or_else(|problem| {
        missing.push(format!("{what} are not shown: {problem}"));
        Vec::new()
    })
}

/// A volume, as the cluster, Kubernetes or both know it.
#[derive(Clone, Debug, Default)]
pub(super) struct Row<'a> {
    /// In the cluster.
    pub(super) vdi: Option<&'a Vdi>,
    /// In Kubernetes.
    pub(super) volume: Option<&'a Volume>,
    /// Who asked for it.
    pub(super) claim: Option<&'a Claim>,
    /// Who uses it.
    pub(super) pods: Vec<&'a Pod>,
    /// Where it is attached, or else open.
    pub(super) nodes: Vec<String>,
}

impl Row<'_> {
    /// `NAMESPACE/NAME` of the claim; empty if there is none.
    pub(super) fn claim_name(&self) -> &str {
        self.volume
            .map(|volume| volume.claim.as_str())
            .or(self.claim.map(|it| it.name.as_str()))
            .unwrap_or_default()
    }

    /// In the words of Kubernetes, where it has one.
    pub(super) fn state(&self, cluster: &str) -> &str {
        match (self.vdi, self.volume, self.claim) {
            (None, Some(volume), _) if volume.handle.cluster == cluster => "VDI is gone",
            (None, Some(_), _) => "other cluster",
            (_, Some(volume), _) => &volume.phase,
            (_, None, Some(claim)) => &claim.phase,
            (_, None, None) => "-",
        }
    }

    fn name(&self) -> &str {
        self.vdi.map(|vdi| vdi.name.as_str()).or(self.volume.map(|it| it.name.as_str())).unwrap_or_default()
    }
}

/// All volumes: those with claims first.
pub(super) fn rows<'a>(inside: &'a Inside, users: &'a Users) -> Vec<Row<'a>> {
    let mut rows: Vec<Row<'a>> = Vec::new();
    let of_volume = |volume: Option<&'a Volume>, vdi: Option<&'a Vdi>| {
        let claim = volume.map_or("", |volume| volume.claim.as_str());
        Row {
            vdi,
            volume,
            claim: users.claims.iter().find(|it| it.name == claim),
            pods: users.pods_of(claim),
            nodes: vdi.map(|vdi| inside.nodes_of(vdi)).unwrap_or_default(),
        }
    };
    let cluster = inside.info.id.as_str();
    for vdi in inside.vdis.iter().filter(|vdi| vdi.snapshot_of.is_none()) {
        let volumes: Vec<&Volume> = users.volumes.iter().filter(|it| it.handle.is(cluster, vdi.id)).collect();
        match volumes.is_empty() {
            true => rows.push(of_volume(None, Some(vdi))),
            // One that was made by hand may be there twice.
            false => rows.extend(volumes.into_iter().map(|volume| of_volume(Some(volume), Some(vdi)))),
        }
    }
    let known = |volume: &&Volume| inside.vdis.iter().any(|vdi| volume.handle.is(cluster, vdi.id));
    rows.extend(users.volumes.iter().filter(|it| !known(it)).map(|volume| of_volume(Some(volume), None)));
    let waiting = users.claims.iter().filter(|claim| claim.ours && claim.volume.is_empty());
    rows.extend(waiting.map(|claim| Row {
        claim: Some(claim),
        pods: users.pods_of(&claim.name),
        ..Row::default()
    }));
    let key =
        |row: &Row<'_>| (row.claim_name().is_empty(), row.claim_name().to_owned(), row.name().to_owned());
    rows.sort_by_key(key);
    rows
}

fn copies(vdi: &Vdi) -> String {
    match vdi.copies {
        (now, wanted, _) if now < wanted => format!("{now}/{wanted}"),
        (_, wanted, _) => wanted.to_string(),
    }
}

fn pod_names(row: &Row<'_>) -> String {
    row.pods.iter().map(|pod| pod.name.as_str()).collect::<Vec<_>>().join(",")
}

/// The table of volumes.
pub(super) fn table(inside: &Inside, users: &Users) -> String {
    let rows = rows(inside, users).into_iter().map(|row| {
        vec![
            dash(row.claim_name()),
            row.state(&inside.info.id).to_owned(),
            row.vdi.map_or_else(|| "-".into(), |vdi| Size(vdi.size).to_string()),
            row.vdi.map_or_else(|| "-".into(), copies),
            dash(&row.nodes.join(",")),
            dash(&pod_names(&row)),
            dash(row.name()),
        ]
    });
    let table = output::table(&["CLAIM", "STATE", "SIZE", "COPIES", "NODE", "PODS", "VOLUME"], rows);
    with_missing(table, users)
}

fn with_missing(mut table: String, users: &Users) -> String {
    for missing in &users.missing {
        table += &format!("\n{missing}");
    }
    table
}

/// The same for programs.
pub(super) fn to_json(inside: &Inside, users: &Users) -> Value {
    Value::Array(rows(inside, users).iter().map(|row| row_json(row, inside)).collect())
}

/// One volume for programs.
pub(super) fn row_json(row: &Row<'_>, inside: &Inside) -> Value {
    json!({
        "name": row.vdi.map(|vdi| &vdi.name),
        "id": row.vdi.map(|vdi| vdi.id),
        "handle": row.volume.map(|volume| &volume.handle.text),
        "size_bytes": row.vdi.map(|vdi| vdi.size),
        "effective_copies": row.vdi.map(|vdi| vdi.copies.0),
        "copies": row.vdi.map(|vdi| vdi.copies.1),
        "state": row.state(&inside.info.id),
        "persistent_volume": row.volume.map(|volume| &volume.name),
        "claim": Some(row.claim_name()).filter(|claim| !claim.is_empty()),
        "nodes": row.nodes,
        "pods": row.pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect::<Vec<_>>(),
    })
}

/// A snapshot with what it is in Kubernetes, and the claim of what it was taken of.
pub(super) fn snapshots<'a>(
    inside: &'a Inside,
    users: &'a Users,
) -> Vec<(&'a Vdi, Option<&'a Content>, Option<&'a str>)> {
    let cluster = inside.info.id.as_str();
    let of = |vdi: &'a Vdi| {
        let content = users.contents.iter().find(|content| content.handle.is(cluster, vdi.id));
        let source = vdi.snapshot_of.unwrap_or_default();
        let volume = users.volumes.iter().find(|volume| volume.handle.is(cluster, source));
        (vdi, content, volume.map(|volume| volume.claim.as_str()).filter(|claim| !claim.is_empty()))
    };
    let mut all: Vec<_> = inside.vdis.iter().filter(|vdi| vdi.snapshot_of.is_some()).map(of).collect();
    all.sort_by_key(|(vdi, content, _)| {
        (content.is_none(), content.map(|content| content.snapshot.clone()), vdi.name.clone())
    });
    all
}

/// The table of snapshots.
pub(super) fn snapshot_table(inside: &Inside, users: &Users) -> String {
    let rows = snapshots(inside, users).into_iter().map(|(vdi, content, claim)| {
        let source = if vdi.source.is_empty() { "(deleted)" } else { vdi.source.as_str() };
        vec![
            content.map_or_else(|| "-".into(), |content| dash(&content.snapshot)),
            content.map_or("-", |content| if content.ready { "yes" } else { "no" }).to_owned(),
            Size(vdi.size).to_string(),
            output::moment(vdi.created),
            claim.unwrap_or(source).to_owned(),
            vdi.name.clone(),
        ]
    });
    let mut table = output::table(&["SNAPSHOT", "READY", "SIZE", "CREATED", "OF", "NAME"], rows);
    let known = |content: &&Content| inside.vdis.iter().any(|vdi| content.handle.is(&inside.info.id, vdi.id));
    for content in users.contents.iter().filter(|content| !known(content)) {
        let why = if content.error.is_empty() { "" } else { ": " };
        table += &format!("\n{} has no snapshot in the cluster{why}{}", content.snapshot, content.error);
    }
    with_missing(table, users)
}

/// The same for programs.
pub(super) fn snapshots_json(inside: &Inside, users: &Users) -> Value {
    let row = |(vdi, content, claim): (&Vdi, Option<&Content>, Option<&str>)| {
        json!({
            "name": vdi.name,
            "id": vdi.id,
            "size_bytes": vdi.size,
            "created_unix_ms": vdi.created,
            "source": vdi.source,
            "source_claim": claim,
            "volume_snapshot": content.map(|content| &content.snapshot),
            "content": content.map(|content| &content.name),
            "ready": content.map(|content| content.ready),
        })
    };
    Value::Array(snapshots(inside, users).into_iter().map(row).collect())
}
