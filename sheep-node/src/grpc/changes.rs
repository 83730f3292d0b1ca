//! Changes of a volume: flattening and other numbers of copies, which go on after the call; a smaller size.

use super::find::writable;
use super::vdis::Service;
use super::volume::Volume;
use super::{APPLIED_WAIT, convert, status};
use crate::health;
use sheep_api::v1::{AlterCopiesReply, AlterCopiesRequest, FlattenVdiReply, FlattenVdiRequest};
use sheep_datapath::FillState;
use sheep_state::{ClusterState, Command, Guard, Refusal, VdiRecord};
use sheep_types::{Generation, MIN_VOLUME_SIZE, SECTOR_SIZE, VdiId};
use tonic::Status;

impl Service {
    /// Begins or calls off, if that is asked for, and says how far it is.
    pub(super) async fn flatten_vdi(&self, request: FlattenVdiRequest) -> Result<FlattenVdiReply, Status> {
        let (state, record) = self.find(&request.name).await?;
        writable(&record)?;
        let Some(wanted) = request.wanted else { return self.flattening(&state, &record) };
        self.node.command(Command::Flatten { vdi: record.id, wanted }).await?;
        let shown = |state: &ClusterState| {
            state
                .vdi(record.id)
                .is_none_or(|record| record.flatten == wanted || state.origin_of(record.vid).is_none())
        };
        self.node.wait_state(APPLIED_WAIT, shown).await;
        let (state, record) = self.find(&request.name).await?;
        // Who is at it is asked for more.
        self.flattening(&state, &record).or_else(|_| Ok(reply(&state, &record, "running")))
    }

    fn flattening(&self, state: &ClusterState, record: &VdiRecord) -> Result<FlattenVdiReply, Status> {
        if state.origin_of(record.vid).is_none() {
            return Ok(reply(state, record, "flat"));
        }
        if !record.flatten {
            return Ok(reply(state, record, "off"));
        }
        let Some(lock) = record.lock else { return Ok(reply(state, record, "waiting")) };
        let holder = lock.holder.node;
        if lock.holder != self.node.status().me {
            let who = health::name(Some(state), holder);
            let message = format!("node {who} has VDI {} open, and flattens it", record.name);
            return Err(status::ask(holder, message));
        }
        let progress = self.node.data().flattening.get(&record.id).copied();
        let Some(progress) = progress else { return Ok(reply(state, record, "running")) };
        let said = match progress.state {
            FillState::Running => "running",
            FillState::NoRoom => "no room",
            FillState::Unreadable => "unreadable",
        };
        let (done, total, unreadable) = (progress.done, progress.total, progress.left);
        let bytes = progress.bytes;
        Ok(FlattenVdiReply { done, total, unreadable, bytes, ..reply(state, record, said) })
    }

    /// The number of copies of a volume, or of a snapshot's, and with it of all that it shares objects with.
    pub(super) async fn alter(&self, request: AlterCopiesRequest) -> Result<AlterCopiesReply, Status> {
        let (state, record) = self.find(&request.name).await?;
        let copies = convert::optional("copies", request.copies)?;
        let copies = copies.ok_or_else(|| Status::invalid_argument("the number of copies is missing"))?;
        let min_copies = match convert::optional("min_copies", request.min_copies)? {
            Some(min_copies) => min_copies,
            None => state.lineage_of(record.vid).map_or(1, |lineage| lineage.min_copies.min(copies)),
        };
        let vdi = record.id;
        self.node.command(Command::SetCopies { vdi, copies, min_copies }).await?;
        let shown = |state: &ClusterState| {
            let lineage = state.vdi(vdi).and_then(|record| state.lineage_of(record.vid));
            lineage.is_none_or(|lineage| (lineage.copies, lineage.min_copies) == (copies, min_copies))
        };
        self.node.wait_state(APPLIED_WAIT, shown).await;
        Ok(AlterCopiesReply { vdi: Some(self.shown(vdi)?) })
    }

    /// What lies beyond the new end is discarded first, or it would be there again when the VDI grows.
    pub(super) async fn shrink(&self, record: &VdiRecord, size: u64) -> Result<(), Status> {
        // A size that will be refused must not cost any data.
        if size < MIN_VOLUME_SIZE || !size.is_multiple_of(u64::from(SECTOR_SIZE)) {
            return Err(status::refused(&Refusal::BadSize { size, min: MIN_VOLUME_SIZE, max: record.size }));
        }
        let vdi = record.id;
        // Whoever shared it would write under the same generation.
        let volume = Volume::open_alone(&self.node, record).await?;
        let me = self.node.status().me;
        let held = self.node.state().and_then(|state| {
            let lock = state.vdi(vdi)?.lock.filter(|lock| lock.holder == me)?;
            Some((u64::from(state.geometry().object_size()), lock.generation))
        });
        let result = match held {
            Some((object_size, generation)) => {
                self.cut_off(&volume, (vdi, generation), size, object_size).await.map_err(|error| {
                    let (name, code, why) = (&record.name, error.code(), error.message());
                    let zeros = format!("what VDI {name} has behind byte {size} may be zeros by now");
                    Status::new(code, format!("{why}; {zeros}"))
                })
            }
            None => Err(Status::aborted("the VDI has changed hands meanwhile")),
        };
        volume.close().await;
        result
    }

    /// Under the lock, so that nobody comes between the end of the contents and the new size.
    async fn cut_off(
        &self,
        volume: &Volume,
        (vdi, generation): (VdiId, Generation),
        size: u64,
        object_size: u64,
    ) -> Result<(), Status> {
        volume.zero_from(size, object_size).await?;
        volume.flush().await?;
        let guard = Guard::Held(generation);
        self.node.command(Command::ResizeVdi { vdi, size, guard, shrink: true }).await.map(drop)
    }
}

fn reply(state: &ClusterState, record: &VdiRecord, said: &str) -> FlattenVdiReply {
    let total = record.size.div_ceil(u64::from(state.geometry().object_size()));
    let done = if said == "flat" { total } else { 0 };
    let vdi = Some(convert::vdi(record, state));
    FlattenVdiReply { vdi, state: said.into(), done, total, unreadable: 0, bytes: 0 }
}
