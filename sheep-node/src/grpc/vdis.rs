//! Service `Vdis`.

use super::find::{in_use, same, writable};
use super::volume::Volume;
use super::{APPLIED_WAIT, check, contents, convert};
use crate::handle::NodeHandle;
use sheep_api::v1::vdis_server::Vdis;
use sheep_api::v1::{
    AcceptLossReply, AcceptLossRequest, AllocatedRequest, AlterCopiesReply, AlterCopiesRequest, AttachReply,
    AttachRequest, ChangeAttributesReply, ChangeAttributesRequest, CheckVdiReply, CheckVdiRequest,
    CloneVdiReply, CloneVdiRequest, CreateVdiReply, CreateVdiRequest, DeleteVdiReply, DeleteVdiRequest,
    DetachReply, DetachRequest, DiffRequest, FlattenVdiReply, FlattenVdiRequest, ListVdisReply,
    ListVdisRequest, RangesReply, ReadVdiReply, ReadVdiRequest, ResizeVdiReply, ResizeVdiRequest,
    RevokeReply, RevokeRequest, RollbackVdiReply, RollbackVdiRequest, SnapshotGroupReply,
    SnapshotGroupRequest, SnapshotVdiReply, SnapshotVdiRequest, WriteVdiReply, WriteVdiRequest,
};
use sheep_state::{CacheMode, ClusterState, Command, CreateVdi, Guard};
use sheep_types::{Generation, VdiId};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

/// Calls that read or write contents at once.
const STREAMS: usize = 16;
/// Times that a command is tried again because the VDI has changed hands meanwhile.
const ATTEMPTS: usize = 3;
#[derive(Clone)]
pub(super) struct Service {
    pub(super) node: NodeHandle,
    streams: Arc<Semaphore>,
}

impl Service {
    pub(super) fn new(node: NodeHandle) -> Self {
        Self { node, streams: Arc::new(Semaphore::new(STREAMS)) }
    }

    pub(super) fn stream_permit(&self) -> Result<OwnedSemaphorePermit, Status> {
        let permit = Arc::clone(&self.streams).try_acquire_owned();
        permit.map_err(|_| {
            Status::resource_exhausted("too many volumes are being read or written on this node")
        })
    }

    async fn change_size(&self, mut request: ResizeVdiRequest) -> Result<sheep_api::v1::Vdi, Status> {
        request.name = self.named(request.name, request.id).await?;
        for attempt in 0..ATTEMPTS {
            let result = self.try_resize(&request).await;
            if !again(attempt, &result) {
                result?;
                break;
            }
        }
        let size = request.size_bytes;
        let resized = |state: &ClusterState| state.vdi_by_name(&request.name).is_none_or(|r| r.size == size);
        self.node.wait_state(APPLIED_WAIT, resized).await;
        let (_, record) = self.find(&request.name).await?;
        self.shown(record.id)
    }

    /// One attempt to resize.
    async fn try_resize(&self, request: &ResizeVdiRequest) -> Result<(), Status> {
        let (state, record) = self.find(&request.name).await?;
        same(&record, request.id)?;
        writable(&record)?;
        let (vdi, size) = (record.id, request.size_bytes);
        let shrink = size < record.size;
        if shrink && !request.allow_shrink {
            return Err(Status::failed_precondition(format!(
                "VDI {} has {} bytes; making it smaller throws data away and must be asked for",
                record.name, record.size
            )));
        }
        let me = self.node.status().me;
        let resize = |guard| Command::ResizeVdi { vdi, size, guard, shrink };
        match record.lock {
            Some(_) if shrink => {
                let record = self.find_free(&request.name).await?;
                self.shrink(&record, size).await
            }
            Some(lock) if lock.holder == me => {
                self.node.command(resize(Guard::Held(lock.generation))).await.map(drop)
            }
            Some(lock) => Err(in_use(&state, &record, lock.holder)),
            None if shrink => self.shrink(&record, size).await,
            None if record.is_clean() => self.node.command(resize(Guard::ClosedClean)).await.map(drop),
            None => {
                // Its last holder died: opening it settles it.
                self.not_attached_elsewhere(&state, &record)?;
                let volume = Volume::open(&self.node, &record, false).await?;
                let held =
                    self.node.state().and_then(|state| state.vdi(vdi)?.lock).filter(|lock| lock.holder == me);
                let result = match held {
                    Some(lock) => self.node.command(resize(Guard::Held(lock.generation))).await.map(drop),
                    None => Err(Status::aborted("the VDI has changed hands meanwhile")),
                };
                volume.close().await;
                result
            }
        }
    }

    pub(super) fn shown(&self, vdi: VdiId) -> Result<sheep_api::v1::Vdi, Status> {
        let state = self.node.state();
        let found = state.as_ref().and_then(|state| Some(convert::vdi(state.vdi(vdi)?, state)));
        found.ok_or_else(|| {
            Status::aborted("the VDI was changed meanwhile; look whether the command took effect")
        })
    }
}

/// Whether to look again and repeat.
pub(super) fn again<T>(attempt: usize, result: &Result<T, Status>) -> bool {
    attempt + 1 < ATTEMPTS && result.as_ref().is_err_and(|status| status.code() == Code::Aborted)
}

/// The time of day, for people.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Does something on its own, so that it ends in order when the caller goes away.
pub(super) async fn to_its_end<T: Send + 'static>(
    task: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    tokio::spawn(task).await.map_err(|_| Status::unavailable("the node is stopping"))?
}

#[tonic::async_trait]
impl Vdis for Service {
    async fn create(&self, request: Request<CreateVdiRequest>) -> Result<Response<CreateVdiReply>, Status> {
        let request = request.into_inner();
        let create = CreateVdi {
            copies: convert::optional("copies", request.copies)?,
            min_copies: convert::optional("min_copies", request.min_copies)?,
            name: request.name,
            size: request.size_bytes,
            cache: if request.write_through { CacheMode::WriteThrough } else { CacheMode::WriteBack },
            attributes: request.attributes.into_iter().collect(),
            created_unix_ms: unix_ms(),
        };
        self.node.primary().await?;
        let name = create.name.clone();
        let vdi = self.create_as(&name, Command::CreateVdi(create)).await?;
        Ok(Response::new(CreateVdiReply { vdi: Some(vdi) }))
    }

    async fn delete(&self, request: Request<DeleteVdiRequest>) -> Result<Response<DeleteVdiReply>, Status> {
        let DeleteVdiRequest { name, id } = request.into_inner();
        let name = self.named(name, id).await?;
        for attempt in 0..ATTEMPTS {
            let record = self.find_free(&name).await?;
            same(&record, id)?;
            let guard =
                if record.is_clean() { Guard::ClosedClean } else { Guard::Closed(record.last_generation) };
            let result = self.node.command(Command::DeleteVdi { vdi: record.id, guard }).await.map(drop);
            if !again(attempt, &result) {
                result?;
                self.node.wait_state(APPLIED_WAIT, |state| state.vdi(record.id).is_none()).await;
                break;
            }
        }
        Ok(Response::new(DeleteVdiReply {}))
    }

    async fn list(&self, request: Request<ListVdisRequest>) -> Result<Response<ListVdisReply>, Status> {
        Ok(Response::new(self.list_vdis(request.into_inner()).await?))
    }

    async fn resize(&self, request: Request<ResizeVdiRequest>) -> Result<Response<ResizeVdiReply>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        let vdi = to_its_end(async move { service.change_size(request).await }).await?;
        Ok(Response::new(ResizeVdiReply { vdi: Some(vdi) }))
    }

    async fn snapshot(
        &self,
        request: Request<SnapshotVdiRequest>,
    ) -> Result<Response<SnapshotVdiReply>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        let taken = to_its_end(async move {
            let name = service.named(request.name, request.id).await?;
            let attributes = request.attributes.into_iter().collect();
            service.take_snapshot(&name, request.id, &request.tag, attributes).await
        });
        Ok(Response::new(SnapshotVdiReply { snapshot: Some(taken.await?) }))
    }

    async fn snapshot_group(
        &self,
        request: Request<SnapshotGroupRequest>,
    ) -> Result<Response<SnapshotGroupReply>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        let snapshots = to_its_end(async move { service.take_group(request).await }).await?;
        Ok(Response::new(SnapshotGroupReply { snapshots }))
    }

    async fn clone_vdi(&self, request: Request<CloneVdiRequest>) -> Result<Response<CloneVdiReply>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        let made = to_its_end(async move { service.make_clone(request).await }).await?;
        Ok(Response::new(CloneVdiReply { vdi: Some(made) }))
    }

    async fn rollback(
        &self,
        request: Request<RollbackVdiRequest>,
    ) -> Result<Response<RollbackVdiReply>, Status> {
        let (service, request) = (self.clone(), request.into_inner());
        let back = to_its_end(async move { service.roll_back(&request.name, &request.tag).await }).await?;
        Ok(Response::new(RollbackVdiReply { vdi: Some(back) }))
    }

    async fn flatten(
        &self,
        request: Request<FlattenVdiRequest>,
    ) -> Result<Response<FlattenVdiReply>, Status> {
        Ok(Response::new(self.flatten_vdi(request.into_inner()).await?))
    }

    async fn alter_copies(
        &self,
        request: Request<AlterCopiesRequest>,
    ) -> Result<Response<AlterCopiesReply>, Status> {
        Ok(Response::new(self.alter(request.into_inner()).await?))
    }

    type ReadStream = ReceiverStream<Result<ReadVdiReply, Status>>;

    async fn read(&self, request: Request<ReadVdiRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let (state, record) = self.find(&request.name).await?;
        self.not_elsewhere(&state, &record)?;
        let rest = record.size.checked_sub(request.offset);
        let length = if request.length == 0 { rest } else { rest.filter(|rest| request.length <= *rest) };
        let Some(length) = length.map(|rest| if request.length == 0 { rest } else { request.length }) else {
            let message = format!("the range ends behind the VDI, which has {} bytes", record.size);
            return Err(Status::invalid_argument(message));
        };
        let permit = self.stream_permit()?;
        // What was not closed cleanly must be settled, which needs the lock; and an open volume is shared.
        let read_only = record.is_clean();
        let volume = Volume::open(&self.node, &record, read_only).await?;
        let (to, stream) = mpsc::channel(2);
        tokio::spawn(async move {
            let result = contents::read(&volume, request.offset, length, &to).await;
            volume.close().await;
            if let Err(error) = result {
                let _ = to.send(Err(error)).await;
            }
            drop(permit);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteVdiRequest>>,
    ) -> Result<Response<WriteVdiReply>, Status> {
        let mut messages = request.into_inner();
        let Some(first) = messages.next().await.transpose()? else {
            return Err(Status::invalid_argument("the first message must name a VDI"));
        };
        // Under a running VM it would be corruption: refused on the holder too.
        let record = self.find_free(&first.name).await?;
        writable(&record)?;
        if first.offset > record.size {
            let message = format!("the offset is behind the end of the VDI, which has {} bytes", record.size);
            return Err(Status::invalid_argument(message));
        }
        let permit = self.stream_permit()?;
        let node = self.node.clone();
        let bytes = to_its_end(async move {
            let volume = Volume::open(&node, &record, false).await?;
            let written = contents::write(&volume, first, messages).await;
            volume.close().await;
            drop(permit);
            written
        });
        Ok(Response::new(WriteVdiReply { bytes: bytes.await? }))
    }

    type AllocatedStream = ReceiverStream<Result<RangesReply, Status>>;

    async fn allocated(
        &self,
        request: Request<AllocatedRequest>,
    ) -> Result<Response<Self::AllocatedStream>, Status> {
        let AllocatedRequest { name, starting_offset, max_results, contents, id } = request.into_inner();
        let name = self.named(name, id).await?;
        self.send_ranges(&name, None, (starting_offset, max_results, contents)).await
    }

    type DiffStream = ReceiverStream<Result<RangesReply, Status>>;

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<Self::DiffStream>, Status> {
        let DiffRequest { name, since, starting_offset, max_results, contents } = request.into_inner();
        self.send_ranges(&name, Some(&since), (starting_offset, max_results, contents)).await
    }

    type CheckStream = ReceiverStream<Result<CheckVdiReply, Status>>;

    async fn check(&self, request: Request<CheckVdiRequest>) -> Result<Response<Self::CheckStream>, Status> {
        let CheckVdiRequest { name, all } = request.into_inner();
        let (state, record) = self.find(&name).await?;
        self.not_elsewhere(&state, &record)?;
        let permit = self.stream_permit()?;
        let volume = Volume::open(&self.node, &record, record.is_clean()).await?;
        let (to, stream) = mpsc::channel(16);
        tokio::spawn(async move {
            let result = check::run(&volume, &state, &record, all, &to).await;
            volume.close().await;
            if let Err(error) = result {
                let _ = to.send(Err(error)).await;
            }
            drop(permit);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn accept_loss(
        &self,
        request: Request<AcceptLossRequest>,
    ) -> Result<Response<AcceptLossReply>, Status> {
        let request = request.into_inner();
        let (state, record) = self.find(&request.name).await?;
        writable(&record)?;
        self.not_elsewhere(&state, &record)?;
        let permit = self.stream_permit()?;
        let node = self.node.clone();
        let reply = to_its_end(async move {
            let volume = Volume::open(&node, &record, false).await?;
            let reply = check::accept_loss(&volume, &state, &record, &request).await;
            volume.close().await;
            drop(permit);
            reply
        });
        Ok(Response::new(reply.await?))
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Result<Response<RevokeReply>, Status> {
        let request = request.into_inner();
        let (_, record) = self.find(&request.name).await?;
        let held = record.lock.map(|lock| lock.generation);
        let readers = record.readers.iter().map(|reader| Generation(reader.granted.0));
        let wanted = |generation: &Generation| request.generation == 0 || generation.0 == request.generation;
        let generations: Vec<Generation> = held.into_iter().chain(readers).filter(wanted).collect();
        if generations.is_empty() {
            return Err(Status::not_found(format!("VDI {} has no such lock", record.name)));
        }
        let mut revoked = 0;
        for generation in generations {
            match self.node.command(Command::Revoke { vdi: record.id, generation }).await {
                Ok(_) => revoked += 1,
                // It ended by itself meanwhile.
                Err(error) if error.code() == Code::Aborted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Response::new(RevokeReply { revoked }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachReply>, Status> {
        Ok(Response::new(self.attach_vdi(request.into_inner()).await?))
    }

    async fn detach(&self, request: Request<DetachRequest>) -> Result<Response<DetachReply>, Status> {
        Ok(Response::new(self.detach_vdi(request.into_inner()).await?))
    }

    async fn change_attributes(
        &self,
        request: Request<ChangeAttributesRequest>,
    ) -> Result<Response<ChangeAttributesReply>, Status> {
        Ok(Response::new(self.attributes(request.into_inner()).await?))
    }
}
