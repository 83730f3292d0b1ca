//! Snapshots, clones and rollback.

use super::find::{same, writable};
use super::vdis::{Service, again, unix_ms};
use super::volume::Volume;
use super::{APPLIED_WAIT, convert, status};
use crate::handle::WantedSnapshot;
use crate::health;
use sheep_api::v1::{self, CloneVdiRequest};
use sheep_state::{
    CacheMode, CloneVdi, ClusterState, Command, Guard, Outcome, SNAPSHOT_MARK, SnapshotItem, VdiRecord,
};
use sheep_types::VdiId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use tonic::{Code, Status};
use tracing::warn;

/// Tags of snapshots that are taken only to be cloned begin so.
const CLONE_TAG: &str = "clone-";
/// Copies of volumes that this process has begun, so that two of one volume do not get in each other's way.
static CLONES: AtomicU32 = AtomicU32::new(0);

impl Service {
    /// Makes a volume by a command. Of a name that is taken the error says what has it.
    pub(super) async fn create_as(&self, name: &str, command: Command) -> Result<v1::Vdi, Status> {
        let Outcome::Created { vdi, .. } =
            self.node.command(command).await.map_err(|error| self.or_existing(error, name))?
        else {
            return Err(Status::internal("the VDI was made, but not named"));
        };
        self.node.wait_state(APPLIED_WAIT, |state| state.applied().0 >= vdi.0).await;
        self.shown(vdi)
    }

    fn or_existing(&self, error: Status, name: &str) -> Status {
        let state = self.node.state().filter(|_| error.code() == Code::AlreadyExists);
        let taken = state.as_ref().and_then(|state| state.vdi_by_name(name));
        taken.map_or(error, |record| status::exists(record))
    }

    /// Takes a snapshot of a volume as it is now.
    pub(super) async fn take_snapshot(
        &self,
        name: &str,
        id: u64,
        tag: &str,
        attributes: BTreeMap<String, String>,
    ) -> Result<v1::Vdi, Status> {
        let wanted = WantedSnapshot { tag: tag.to_owned(), attributes, created_unix_ms: unix_ms() };
        let mut attempt = 0;
        let vdi = loop {
            let result = self.try_snapshot(name, id, &wanted).await;
            if !again(attempt, &result) {
                break result?;
            }
            attempt += 1;
        };
        self.node.wait_state(APPLIED_WAIT, |state| state.vdi(vdi).is_some()).await;
        self.shown(vdi)
    }

    /// One attempt.
    async fn try_snapshot(&self, name: &str, id: u64, wanted: &WantedSnapshot) -> Result<VdiId, Status> {
        let (state, record) = self.find(name).await?;
        same(&record, id)?;
        writable(&record)?;
        let full = format!("{name}{SNAPSHOT_MARK}{}", wanted.tag);
        if let Some(taken) = state.vdi_by_name(&full) {
            return Err(status::exists(taken));
        }
        self.not_held_elsewhere(&state, &record)?;
        let taken = if record.lock.is_none() && record.is_clean() {
            let WantedSnapshot { tag, attributes, created_unix_ms } = wanted.clone();
            let guard = Guard::ClosedClean;
            let item = SnapshotItem { vdi: record.id, guard, tag, attributes, created_unix_ms };
            self.node.command(Command::Snapshot { items: vec![item] }).await
        } else {
            if record.lock.is_none() {
                self.not_attached_elsewhere(&state, &record)?;
            }
            self.snapshot_open(&record, wanted).await
        };
        match taken.map_err(|error| self.or_existing(error, &full))? {
            Outcome::Snapshots(made) => made.first().map(|made| made.vdi),
            _ => None,
        }
        .ok_or_else(|| Status::internal("the snapshot was taken, but not named"))
    }

    /// Only the node that has a volume open takes snapshots of it; the error says which that is.
    fn not_held_elsewhere(&self, state: &ClusterState, record: &VdiRecord) -> Result<(), Status> {
        let me = self.node.status().me;
        let Some(lock) = record.lock.filter(|lock| lock.holder != me) else { return Ok(()) };
        let (node, name) = (lock.holder.node, &record.name);
        let who = health::name(Some(state), node);
        Err(status::ask(
            node,
            format!("VDI {name} is open at node {who}, which alone can take a snapshot of it now"),
        ))
    }

    /// By word of this node, who has the volume open, or opens it because its last holder died: that settles it.
    async fn snapshot_open(&self, record: &VdiRecord, wanted: &WantedSnapshot) -> Result<Outcome, Status> {
        let volume = match Volume::open(&self.node, record, false).await {
            Ok(volume) => volume,
            Err(error) => {
                // Another node may have been faster.
                let (state, record) = self.find(&record.name).await?;
                self.not_held_elsewhere(&state, &record)?;
                return Err(error);
            }
        };
        let taken = volume.snapshot(wanted.clone()).await;
        volume.close().await;
        taken
    }

    /// Makes a volume with the contents of a snapshot, or of a volume.
    pub(super) async fn make_clone(&self, request: CloneVdiRequest) -> Result<v1::Vdi, Status> {
        let name = self.named(request.source.clone(), request.source_id).await?;
        let (state, source) = self.find(&name).await?;
        same(&source, request.source_id)?;
        // Before anything is done that would have to be undone.
        if let Some(taken) = state.vdi_by_name(&request.name) {
            return Err(status::exists(taken));
        }
        let size = request.size_bytes;
        if size != 0 && size < source.size {
            let message = format!("a clone of {} has at least its {} bytes", source.name, source.size);
            return Err(Status::invalid_argument(message));
        }
        if source.is_snapshot() {
            return self.clone_snapshot(source.id, source.cache, request).await;
        }
        let (node, number) = (self.node.status().me.node, CLONES.fetch_add(1, Ordering::Relaxed));
        let tag = format!("{CLONE_TAG}{node}-{:x}-{number}", unix_ms());
        let taken = self.take_snapshot(&source.name, source.id.0, &tag, BTreeMap::new()).await?;
        let snapshot = VdiId(taken.id);
        let made = self.clone_snapshot(snapshot, source.cache, request).await;
        let delete = Command::DeleteVdi { vdi: snapshot, guard: Guard::ClosedClean };
        if let Err(error) = self.node.command(delete).await {
            warn!("snapshot {} was taken only to be cloned, and is left: {}", taken.name, error.message());
        }
        // The answer shows that it is gone.
        self.node.wait_state(APPLIED_WAIT, |state| state.vdi(snapshot).is_none()).await;
        self.shown(VdiId(made?.id))
    }

    async fn clone_snapshot(
        &self,
        snapshot: VdiId,
        cache: CacheMode,
        request: CloneVdiRequest,
    ) -> Result<v1::Vdi, Status> {
        let clone = CloneVdi {
            snapshot,
            size: (request.size_bytes != 0).then_some(request.size_bytes),
            copies: convert::optional("copies", request.copies)?,
            min_copies: convert::optional("min_copies", request.min_copies)?,
            cache: match request.write_through {
                None => cache,
                Some(true) => CacheMode::WriteThrough,
                Some(false) => CacheMode::WriteBack,
            },
            name: request.name,
            attributes: request.attributes.into_iter().collect(),
            created_unix_ms: unix_ms(),
        };
        let name = clone.name.clone();
        self.create_as(&name, Command::CloneVdi(clone)).await
    }

    /// Gives a closed volume the contents of one of its snapshots again.
    pub(super) async fn roll_back(&self, name: &str, tag: &str) -> Result<v1::Vdi, Status> {
        let mut attempt = 0;
        let (vdi, outcome) = loop {
            let result = self.try_rollback(name, tag).await;
            if !again(attempt, &result) {
                break result?;
            }
            attempt += 1;
        };
        if let Outcome::RolledBack { vid } = outcome {
            self.node.wait_state(APPLIED_WAIT, |state| state.vid(vid).is_some()).await;
        }
        self.shown(vdi)
    }

    /// One attempt.
    async fn try_rollback(&self, name: &str, tag: &str) -> Result<(VdiId, Outcome), Status> {
        let (_, snapshot) = self.find(&format!("{name}{SNAPSHOT_MARK}{tag}")).await?;
        let mut record = self.find_free(name).await?;
        writable(&record)?;
        if snapshot.snapshot_of.is_none_or(|of| of.vdi != record.id) {
            let message =
                format!("{} was taken of another volume of this name, which is deleted", snapshot.name);
            return Err(Status::failed_precondition(message));
        }
        if !record.is_clean() {
            // Its last holder died: opening it settles it.
            Volume::open(&self.node, &record, false).await?.close().await;
            record = self.find_free(name).await?;
        }
        // Not what somebody writes who was faster.
        let guard = Guard::Closed(record.last_generation);
        let command = Command::Rollback { vdi: record.id, snapshot: snapshot.id, guard };
        Ok((record.id, self.node.command(command).await?))
    }
}
