//! Snapshots of several volumes at one instant.
//!
//! Who has a volume open is asked, in the order, to let it stand still, wherever that is; when all do, one command takes
//! all snapshots. A holder that waits in vain goes on by itself.

use super::find::writable;
use super::vdis::{Service, again, unix_ms};
use super::volume::Volume;
use super::{APPLIED_WAIT, status};
use sheep_api::v1::{self, SnapshotGroupRequest};
use sheep_state::limits::MAX_SNAPSHOTS_PER_COMMAND;
use sheep_state::{
    ClusterState, Command, Guard, Limited, Outcome, Refusal, SNAPSHOT_MARK, SnapshotItem, VdiRecord,
};
use sheep_types::{Generation, VdiId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tonic::Status;

/// How long volumes have to come to rest. Shorter than a holder stands still by itself.
const REST_WAIT: Duration = Duration::from_secs(8);
/// Groups that this process has begun: no two have one token.
static GROUPS: AtomicU64 = AtomicU64::new(0);

/// A volume of a group, and the lock under which it was asked to stand still.
type Asked = (Arc<VdiRecord>, Option<Generation>);

impl Service {
    /// Takes snapshots of all these volumes, or of none.
    pub(super) async fn take_group(&self, request: SnapshotGroupRequest) -> Result<Vec<v1::Vdi>, Status> {
        let different: BTreeSet<&String> = request.names.iter().collect();
        if request.names.is_empty() || different.len() < request.names.len() {
            return Err(Status::invalid_argument("a group is one volume or several, each named once"));
        }
        // Nobody is to stand still for what will be refused.
        if request.names.len() > MAX_SNAPSHOTS_PER_COMMAND {
            let (what, limit) = (Limited::Snapshots, MAX_SNAPSHOTS_PER_COMMAND as u64);
            return Err(status::refused(&Refusal::Limit { what, limit }));
        }
        let mut attempt = 0;
        let ids = loop {
            let result = self.try_group(&request).await;
            if !again(attempt, &result) {
                break result?;
            }
            attempt += 1;
        };
        self.node.wait_state(APPLIED_WAIT, |state| ids.iter().all(|vdi| state.vdi(*vdi).is_some())).await;
        ids.into_iter().map(|vdi| self.shown(vdi)).collect()
    }

    /// One attempt.
    async fn try_group(&self, request: &SnapshotGroupRequest) -> Result<Vec<VdiId>, Status> {
        for name in &request.names {
            let (state, record) = self.find(name).await?;
            writable(&record)?;
            if let Some(taken) = state.vdi_by_name(&format!("{name}{SNAPSHOT_MARK}{}", request.tag)) {
                return Err(status::exists(taken));
            }
            if record.lock.is_none() && !record.is_clean() {
                // Its last holder died: opening it settles it.
                Volume::open(&self.node, &record, false).await?.close().await;
            }
        }
        let token = self.token();
        let mut asked = Vec::new();
        let result = match self.ask_all(&request.names, token, &mut asked).await {
            Ok(()) => self.take_all(request, token, &asked).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.call_off(token, &asked).await;
        }
        result
    }

    /// Nobody else uses it at the same time.
    fn token(&self) -> u64 {
        let (node, number) = (self.node.status().me.node.0, GROUPS.fetch_add(1, Ordering::Relaxed));
        node.rotate_left(24) ^ (unix_ms() << 8) ^ number
    }

    async fn ask_all(&self, names: &[String], token: u64, asked: &mut Vec<Asked>) -> Result<(), Status> {
        for name in names {
            let (_, record) = self.find(name).await?;
            let (vdi, generation) = (record.id, record.lock.map(|lock| lock.generation));
            asked.push((record, generation));
            if let Some(generation) = generation {
                self.node.command(Command::AskPause { vdi, generation, token }).await?;
            }
        }
        Ok(())
    }

    /// Waits until all stand still, and takes the snapshots.
    async fn take_all(
        &self,
        request: &SnapshotGroupRequest,
        token: u64,
        asked: &[Asked],
    ) -> Result<Vec<VdiId>, Status> {
        let ready =
            |state: &ClusterState| asked.iter().all(|asked| stands(state, token, asked) != Some(false));
        if !self.node.wait_state(REST_WAIT, ready).await {
            let state = self.node.primary().await?;
            let late = asked.iter().find(|asked| stands(&state, token, asked) == Some(false));
            let name = late.map_or("a volume", |(record, _)| record.name.as_str());
            let message = format!("VDI {name} could not come to rest within {} s", REST_WAIT.as_secs());
            return Err(Status::failed_precondition(message));
        }
        let created_unix_ms = unix_ms();
        let attributes: BTreeMap<String, String> = request.attributes.clone().into_iter().collect();
        let item = |(record, generation): &Asked| SnapshotItem {
            vdi: record.id,
            guard: generation.map_or(Guard::ClosedClean, |generation| Guard::Paused { generation, token }),
            tag: request.tag.clone(),
            attributes: attributes.clone(),
            created_unix_ms,
        };
        let items = asked.iter().map(item).collect();
        match self.node.command(Command::Snapshot { items }).await? {
            Outcome::Snapshots(made) => Ok(made.iter().map(|made| made.vdi).collect()),
            _ => Err(Status::internal("the snapshots were taken, but not named")),
        }
    }

    /// Lets those go on that stand still for nothing. Who is not told goes on some seconds later.
    async fn call_off(&self, token: u64, asked: &[Asked]) {
        for (record, generation) in asked {
            if let Some(generation) = *generation {
                let _ = self.node.command(Command::Resume { vdi: record.id, generation, token }).await;
            }
        }
    }
}

/// Whether a volume stands still; nothing if it was not asked, or it is not as it was: then there will be no snapshot.
fn stands(state: &ClusterState, token: u64, (record, generation): &Asked) -> Option<bool> {
    let lock = state.vdi(record.id)?.lock?;
    let same = Some(lock.generation) == *generation;
    same.then_some(lock.paused == Some(token))
}
