//! Disks of this node: listed, plugged in, emptied and taken away.

use crate::disks::{DiskControl, DiskSpec};
use crate::handle::{DataStatus, DiskRequest, DiskStatus, NodeHandle};
use sheep_api::v1::{Disk, DisksReply};
use sheep_state::DiskRecord;
use sheep_store::Condition;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;
use tracing::{error, info};

/// How often a disk that is being emptied is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Why the last disk stays.
const LAST: &str = "this is the only disk of the node that works and is not being emptied; plug in another one \
                    first, or remove the node";

/// What the cluster knows of this node's disks.
fn records(node: &NodeHandle) -> Vec<DiskRecord> {
    let (state, me) = (node.state(), node.status().me.node);
    state.and_then(|state| state.node(me).map(|record| record.disks.clone())).unwrap_or_default()
}

pub(super) fn list(node: &NodeHandle) -> DisksReply {
    let data = node.data();
    let state = |condition, weight: u32| match condition {
        Condition::Starting => "starting",
        Condition::Working if weight == 0 => "emptying",
        Condition::Working => "in use",
        Condition::Failed | Condition::Removed => "failed",
    };
    let here = data.disks.iter().map(|found| Disk {
        id: format!("{:016x}", found.disk.id),
        path: found.path.display().to_string(),
        state: state(found.disk.condition, found.disk.weight).into(),
        weight: found.disk.weight,
        capacity_bytes: found.disk.usage.capacity,
        used_bytes: found.disk.usage.used,
        objects: found.objects,
        error: found.disk.error.as_ref().map(ToString::to_string).unwrap_or_default(),
    });
    let list = node.disks.list();
    let others = records(node).into_iter().filter(|record| find(&data, record.id).is_none());
    let others = others.map(|record| Disk {
        id: format!("{:016x}", record.id),
        path: list.path_of(record.id).map(|path| path.display().to_string()).unwrap_or_default(),
        state: "failed".into(),
        weight: record.weight,
        error: "it is not there".into(),
        ..Disk::default()
    });
    DisksReply { disks: here.chain(others).collect(), objects_moved: data.moved.0, moving: data.moved.1 }
}

fn find(data: &DataStatus, id: u64) -> Option<&DiskStatus> {
    data.disks.iter().find(|found| found.disk.id == id)
}

fn takes_data(data: &DataStatus, but: u64) -> bool {
    let mut others = data.disks.iter().map(|found| &found.disk).filter(|disk| disk.id != but);
    others.any(|disk| disk.condition == Condition::Working && disk.weight > 0)
}

fn refused(why: impl Into<String>) -> Status {
    Status::failed_precondition(why)
}

/// Runs something that waits for files.
async fn with_files<T: Send + 'static>(
    control: &Arc<DiskControl>,
    call: impl FnOnce(&DiskControl) -> anyhow::Result<T> + Send + 'static,
) -> Result<T, Status> {
    let control = Arc::clone(control);
    match tokio::task::spawn_blocking(move || call(&control)).await {
        Ok(result) => result.map_err(|problem| refused(format!("{problem:#}"))),
        Err(_) => Err(Status::unavailable("the node is stopping")),
    }
}

async fn ask(
    node: &NodeHandle,
    request: impl FnOnce(tokio::sync::oneshot::Sender<bool>) -> DiskRequest,
) -> Result<bool, Status> {
    node.disk(request).await.map_err(|error| Status::unavailable(error.to_string()))
}

pub(super) async fn plug(node: &NodeHandle, path: String) -> Result<String, Status> {
    node.primary().await?;
    let me = node.status().me.node;
    let path = PathBuf::from(path);
    let disk: DiskSpec = with_files(&node.disks, move |control| {
        let mut list = control.list();
        let disk = list.inspect(&path, me, control.limit)?;
        list.add(&disk)?;
        Ok(disk)
    })
    .await?;
    let (id, shown) = (disk.id, disk.path.display().to_string());
    info!(disk = shown, "plugging in");
    if ask(node, |answer| DiskRequest::Plug { disk, answer }).await? {
        return Ok(format!("{id:016x}"));
    }
    Err(refused(format!("{shown} is in use already, or this node stores nothing")))
}

pub(super) async fn unplug(node: &NodeHandle, name: String, force: bool) -> Result<(), Status> {
    node.primary().await?;
    let id = node.disks.list().named(&name);
    let id = id.filter(|id| records(node).iter().any(|record| record.id == *id));
    let Some(id) = id else { return Err(Status::not_found(format!("this node has no disk {name}"))) };
    let data = node.data();
    if !takes_data(&data, id) {
        return Err(refused(LAST));
    }
    if force {
        return give_up(node, id).await;
    }
    if find(&data, id).is_none_or(|found| found.disk.condition != Condition::Working) {
        return Err(refused(
            "this disk does not work, so what it has cannot be moved off; --force gives it up, and with it whatever \
             no other node has",
        ));
    }
    if !ask(node, |answer| DiskRequest::Empty { id, answer }).await? {
        return Err(refused(LAST));
    }
    tokio::spawn(empty(node.clone(), id));
    Ok(())
}

/// Waits until a disk is empty and takes it away then.
async fn empty(node: NodeHandle, id: u64) {
    loop {
        tokio::time::sleep(LOOK).await;
        let data = node.data();
        let Some(found) = find(&data, id).filter(|found| found.disk.condition == Condition::Working) else {
            return;
        };
        // Only when all know that it takes nothing, nothing new comes to it.
        let known = records(&node).iter().any(|record| record.id == id && record.weight == 0);
        if known && found.disk.weight == 0 && found.objects == 0 {
            break;
        }
    }
    if let Err(problem) = give_up(&node, id).await {
        error!("cannot take disk {id:016x} away: {}", problem.message());
    }
}

async fn give_up(node: &NodeHandle, id: u64) -> Result<(), Status> {
    // First: a disk that is off the list is not used again, whatever the cluster still says of it.
    with_files(&node.disks, move |control| control.list().remove(id)).await?;
    if !ask(node, |answer| DiskRequest::GiveUp { id, answer }).await? {
        return Err(refused(LAST));
    }
    let me = node.status().me.node;
    let gone = |state: &sheep_state::ClusterState| {
        state.node(me).is_none_or(|record| record.disks.iter().all(|disk| disk.id != id))
    };
    node.wait_state(super::APPLIED_WAIT, gone).await;
    Ok(())
}
