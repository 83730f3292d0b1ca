//! A volume opened for one call.

use super::{find, status};
use crate::data::DataMessage;
use crate::handle::{
    AcceptLossError, NodeHandle, OpenVolume, VolumeAccessError, VolumeRequest, WantedSnapshot,
};
use bytes::Bytes;
use sheep_datapath::{DiffExtent, ObjectCheck};
use sheep_state::{Outcome, VdiRecord};
use sheep_types::VdiId;
use std::time::Duration;
use tokio::sync::oneshot;
use tonic::Status;

/// How long a volume may take to open: the lease of a former holder runs out, copies are settled.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a snapshot of an open volume may take.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a call waits for the lock to be released after it has closed the volume.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// How long the lock of a volume that is open may take to show in the node's status.
const SHOWN_WAIT: Duration = Duration::from_secs(1);
/// Bytes made zero by one request.
const ZEROES: u64 = 1 << 30;
/// Bytes discarded by one request; whole objects.
const DISCARDED: u64 = 1 << 30;

/// An open volume. Closed when dropped, so that a call that is cut short leaves no lock behind.
pub(super) struct Volume {
    node: NodeHandle,
    vdi: VdiId,
    open: OpenVolume,
    /// Somebody else on this node had it open before.
    shared: bool,
    closed: bool,
}

impl Volume {
    /// Opens the VDI through this node's gateway.
    pub(super) async fn open(node: &NodeHandle, record: &VdiRecord, read_only: bool) -> Result<Self, Status> {
        Self::open_as(node, record, read_only, false).await
    }

    /// The same for writing, while nobody else uses it, on this node either. Who comes later gets it under another lock.
    pub(super) async fn open_alone(node: &NodeHandle, record: &VdiRecord) -> Result<Self, Status> {
        Self::open_as(node, record, false, true).await
    }

    async fn open_as(
        node: &NodeHandle,
        record: &VdiRecord,
        read_only: bool,
        alone: bool,
    ) -> Result<Self, Status> {
        let (vdi, me) = (record.id, node.status().me);
        let shared = record.lock.is_some_and(|lock| lock.holder == me)
            || record.readers.iter().any(|reader| reader.holder == me);
        // Whatever becomes of the caller, the answer is taken, and the volume closed if nobody wants it any more.
        let asked = node.clone();
        let opening = tokio::spawn(async move {
            let open = asked.volume(|answer| VolumeRequest::Open { vdi, read_only, alone, answer }).await;
            open.map(|open| Self { node: asked, vdi, open, shared, closed: false })
        });
        match tokio::time::timeout(OPEN_TIMEOUT, opening).await {
            Ok(opened) => {
                let opened = opened.map_err(|_| Status::unavailable("the node is stopping"))?;
                let volume = opened.map_err(|error: VolumeAccessError| status::no_access(&error))?;
                // The data thread learns of the grant before the status shows it. Without this, closing would look
                // at a status from before the grant and find the VDI free.
                node.wait_state(SHOWN_WAIT, |state| find::in_use_by(state, vdi, me)).await;
                Ok(volume)
            }
            Err(_) => Err(Status::deadline_exceeded(format!(
                "VDI {} could not be opened within {} s: too few of its copies can be reached",
                record.name,
                OPEN_TIMEOUT.as_secs()
            ))),
        }
    }

    /// Its size, bytes.
    pub(super) fn size(&self) -> u64 {
        self.open.size
    }

    /// Reads; offset and length are multiples of 512.
    pub(super) async fn read(&self, offset: u64, len: u32) -> Result<Bytes, Status> {
        self.reading(offset, len).await
    }

    /// The same, to be carried out by a task of its own.
    pub(super) fn reading(
        &self,
        offset: u64,
        len: u32,
    ) -> impl Future<Output = Result<Bytes, Status>> + Send + 'static + use<> {
        let (handle, node) = (self.open.handle, self.node.clone());
        async move {
            let data = node.volume(|answer| VolumeRequest::Read { handle, offset, len, answer }).await;
            let data: Bytes = data.map_err(|error: VolumeAccessError| status::no_access(&error))?;
            match data.len() == len as usize {
                true => Ok(data),
                false => Err(Status::internal("the volume gave too few bytes")),
            }
        }
    }

    /// What differs from a snapshot, or is there at all, from an offset on; not everything at once.
    pub(super) async fn diff(&self, offset: u64, since: Option<VdiId>) -> Result<Vec<DiffExtent>, Status> {
        let (handle, len) = (self.open.handle, self.size().saturating_sub(offset));
        let extents =
            self.node.volume(|answer| VolumeRequest::Diff { handle, offset, len, since, answer }).await;
        let extents: Vec<DiffExtent> = extents.map_err(|error| status::no_access(&error))?;
        if extents.is_empty() {
            return Err(Status::internal("the volume does not say what differs"));
        }
        Ok(extents)
    }

    /// Starts a write; offset and length are multiples of 512. Zeros are not written out.
    pub(super) fn write(
        &self,
        offset: u64,
        data: Bytes,
    ) -> impl Future<Output = Result<(), Status>> + Send + 'static {
        let (handle, len, node) = (self.open.handle, data.len() as u64, self.node.clone());
        async move {
            let done = if data.iter().all(|byte| *byte == 0) {
                node.volume(|answer| VolumeRequest::WriteZeroes { handle, offset, len, answer }).await
            } else {
                node.volume(|answer| VolumeRequest::Write { handle, offset, data, answer }).await
            };
            done.map_err(|error| status::no_access(&error))
        }
    }

    /// Makes a range read as zeros; its ends are multiples of 512.
    pub(super) async fn zero(&self, from: u64, end: u64) -> Result<(), Status> {
        let handle = self.open.handle;
        let mut offset = from;
        while offset < end {
            let len = ZEROES.min(end - offset);
            let done =
                self.node.volume(|answer| VolumeRequest::WriteZeroes { handle, offset, len, answer }).await;
            done.map_err(|error| status::no_access(&error))?;
            offset += len;
        }
        Ok(())
    }

    /// Makes everything from `from` to the end read as zeros, and gives whole objects up.
    pub(super) async fn zero_from(&self, from: u64, object_size: u64) -> Result<(), Status> {
        let handle = self.open.handle;
        // The rest of an object. Only of whole objects nothing is left when they are discarded.
        let mut offset = from.next_multiple_of(object_size).min(self.size());
        self.zero(from, offset).await?;
        while offset < self.size() {
            let len = DISCARDED.min(self.size() - offset);
            let done =
                self.node.volume(|answer| VolumeRequest::Discard { handle, offset, len, answer }).await;
            done.map_err(|error| status::no_access(&error))?;
            offset += len;
        }
        Ok(())
    }

    /// Numbers of the objects that exist.
    pub(super) async fn objects(&self, object_size: u64) -> Result<Vec<u32>, Status> {
        let (handle, mut offset, mut found) = (self.open.handle, 0, Vec::new());
        while offset < self.size() {
            let len = self.size() - offset;
            let extents =
                self.node.volume(|answer| VolumeRequest::Status { handle, offset, len, answer }).await;
            let extents = extents.map_err(|error| status::no_access(&error))?;
            if extents.is_empty() {
                return Err(Status::internal("the volume does not say what exists"));
            }
            for extent in extents {
                let end = offset + extent.len;
                if !extent.hole {
                    let numbers = offset / object_size..end.div_ceil(object_size);
                    found.extend(numbers.filter_map(|number| u32::try_from(number).ok()));
                }
                offset = end;
            }
        }
        Ok(found)
    }

    /// What all copies of an object are.
    pub(super) async fn check(&self, map: bool, index: u32) -> Result<ObjectCheck, Status> {
        let handle = self.open.handle;
        let check = self.node.volume(|answer| VolumeRequest::Check { handle, map, index, answer }).await;
        check.map_err(|error: VolumeAccessError| status::no_access(&error))
    }

    /// A lost object becomes zeros.
    pub(super) async fn accept_loss(&self, index: u32, force: bool) -> Result<(), AcceptLossError> {
        let handle = self.open.handle;
        self.node.volume(|answer| VolumeRequest::AcceptLoss { handle, index, force, answer }).await
    }

    /// Takes a snapshot.
    pub(super) async fn snapshot(&self, wanted: WantedSnapshot) -> Result<Outcome, Status> {
        let handle = self.open.handle;
        let asked = self.node.volume(|answer| VolumeRequest::Snapshot { handle, wanted, answer });
        let Ok(answer) = tokio::time::timeout(SNAPSHOT_TIMEOUT, asked).await else {
            return Err(Status::deadline_exceeded(format!(
                "the volume did not come to rest, or nothing was ordered, within {} s; the snapshot may still be taken",
                SNAPSHOT_TIMEOUT.as_secs()
            )));
        };
        let result = answer.map_err(|error: VolumeAccessError| status::no_access(&error))?;
        result.map_err(|refusal| status::refused(&refusal))
    }

    /// Makes everything durable.
    pub(super) async fn flush(&self) -> Result<(), Status> {
        let handle = self.open.handle;
        let done = self.node.volume(|answer| VolumeRequest::Flush { handle, answer }).await;
        done.map_err(|error| status::no_access(&error))
    }

    /// Closes it and waits until its lock is released, if nobody else on this node has it open.
    pub(super) async fn close(mut self) {
        self.send_close();
        let (vdi, me) = (self.vdi, self.node.status().me);
        if !self.shared {
            self.node.wait_state(CLOSE_WAIT, |state| !find::in_use_by(state, vdi, me)).await;
        }
    }

    fn send_close(&mut self) {
        if !std::mem::replace(&mut self.closed, true) {
            let (answer, _) = oneshot::channel();
            let request = VolumeRequest::Close { handle: self.open.handle, answer };
            // A node that is stopping closes everything.
            let _ = self.node.volumes.send(DataMessage::Volume(request));
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.send_close();
    }
}
