//! Contents of volumes as streams of messages.

use super::volume::Volume;
use bytes::{Bytes, BytesMut};
use sheep_api::PIECE;
use sheep_api::v1::{ReadVdiReply, WriteVdiRequest};
use sheep_types::SECTOR_SIZE;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

/// Writes of one call under way at once.
const WRITES: usize = 8;
const SECTOR: u64 = SECTOR_SIZE as u64;
const PIECE_BYTES: u64 = PIECE as u64;

/// Sends a range to the caller. The range lies inside the volume. Ends early when the caller has gone.
pub(super) async fn read(
    volume: &Volume,
    offset: u64,
    length: u64,
    to: &mpsc::Sender<Result<ReadVdiReply, Status>>,
) -> Result<(), Status> {
    let (mut at, end) = (offset, offset + length);
    while at < end {
        // Up to the next multiple of a piece, so that requests do not straddle objects.
        let stop = end.min((at / PIECE_BYTES + 1) * PIECE_BYTES);
        let (first, last) = (at / SECTOR * SECTOR, stop.div_ceil(SECTOR) * SECTOR);
        let len = u32::try_from(last - first).map_err(|_| Status::internal("piece too long"))?;
        let sectors = tokio::select! {
            data = volume.read(first, len) => data?,
            () = to.closed() => return Ok(()),
        };
        let wanted = (at - first) as usize..(stop - first) as usize;
        if to.send(Ok(ReadVdiReply { data: sectors.slice(wanted).to_vec() })).await.is_err() {
            return Ok(());
        }
        at = stop;
    }
    Ok(())
}

/// Writes what the caller sends, from the offset of the first message on, and makes it durable. Gives the number of bytes.
pub(super) async fn write<S>(volume: &Volume, first: WriteVdiRequest, mut rest: S) -> Result<u64, Status>
where
    S: Stream<Item = Result<WriteVdiRequest, Status>> + Unpin,
{
    let mut writer =
        Writer { volume, at: 0, written: 0, buffer: BytesMut::new(), tasks: JoinSet::new(), free: 0 };
    writer.seek(first.offset).await?;
    writer.take(&first.data).await?;
    writer.zeroes(first.zeroes).await?;
    while let Some(message) = rest.next().await {
        let message = message?;
        if let Some(offset) = message.seek {
            writer.seek(offset).await?;
        }
        writer.take(&message.data).await?;
        writer.zeroes(message.zeroes).await?;
    }
    let written = writer.finish().await?;
    volume.flush().await?;
    Ok(written)
}

struct Writer<'a> {
    volume: &'a Volume,
    /// Where the buffer goes; a multiple of the sector.
    at: u64,
    /// Bytes that were taken.
    written: u64,
    buffer: BytesMut,
    /// Writes under way. Nobody carries them out in order, so none may touch what another one does: all lie between
    /// where the last seek backwards led and `at`.
    tasks: JoinSet<Result<(), Status>>,
    /// Nothing under way lies from here on.
    free: u64,
}

impl Writer<'_> {
    fn end(&self) -> u64 {
        self.at + self.buffer.len() as u64
    }

    fn check(&self, len: u64) -> Result<(), Status> {
        let size = self.volume.size();
        match self.end().checked_add(len).is_some_and(|end| end <= size) {
            true => Ok(()),
            false => Err(Status::invalid_argument(format!("more data than fits: the VDI has {size} bytes"))),
        }
    }

    /// Goes on elsewhere. What stands before that in its sector is kept.
    async fn seek(&mut self, offset: u64) -> Result<(), Status> {
        if offset == self.end() && !self.buffer.is_empty() {
            return Ok(());
        }
        self.put_rest().await?;
        if offset > self.volume.size() {
            return Err(Status::invalid_argument("the offset is behind the end of the VDI"));
        }
        let head = offset % SECTOR;
        self.at = offset - head;
        if self.at < self.free {
            self.drain().await?;
        }
        if head > 0 {
            let sector = self.volume.read(self.at, SECTOR_SIZE).await?;
            self.buffer.extend_from_slice(&sector.slice(..head as usize));
        }
        Ok(())
    }

    async fn take(&mut self, data: &[u8]) -> Result<(), Status> {
        self.check(data.len() as u64)?;
        self.written += data.len() as u64;
        self.buffer.extend_from_slice(data);
        loop {
            let piece = (PIECE_BYTES - self.at % PIECE_BYTES) as usize;
            if self.buffer.len() < piece {
                return Ok(());
            }
            let data = self.buffer.split_to(piece).freeze();
            self.submit(data).await?;
        }
    }

    /// Zeros, which are not written out but for parts of sectors.
    async fn zeroes(&mut self, len: u64) -> Result<(), Status> {
        self.check(len)?;
        let (start, end) = (self.end(), self.end() + len);
        let (first, last) = (start.next_multiple_of(SECTOR), end / SECTOR * SECTOR);
        if first >= last {
            return self.take(&vec![0; len as usize]).await;
        }
        self.take(&vec![0; (first - start) as usize]).await?;
        self.put_rest().await?;
        self.volume.zero(first, last).await?;
        self.written += last - first;
        self.at = last;
        self.take(&vec![0; (end - last) as usize]).await
    }

    async fn submit(&mut self, data: Bytes) -> Result<(), Status> {
        while self.tasks.len() >= WRITES {
            self.one_done().await?;
        }
        let at = self.at;
        self.at += data.len() as u64;
        self.free = self.free.max(self.at);
        self.tasks.spawn(self.volume.write(at, data));
        Ok(())
    }

    async fn one_done(&mut self) -> Result<(), Status> {
        match self.tasks.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(Status::unavailable("the node is stopping")),
            None => Ok(()),
        }
    }

    /// Writes what is in the buffer; a last sector that is not full keeps what stands behind.
    async fn put_rest(&mut self) -> Result<(), Status> {
        let end = self.end();
        let tail = end % SECTOR;
        if self.buffer.is_empty() {
            return Ok(());
        }
        if tail > 0 {
            let sector = self.volume.read(end - tail, SECTOR_SIZE).await?;
            self.buffer.extend_from_slice(&sector.slice(tail as usize..));
        }
        let data = self.buffer.split().freeze();
        self.submit(data).await
    }

    /// Waits for all that is under way.
    async fn drain(&mut self) -> Result<(), Status> {
        while !self.tasks.is_empty() {
            self.one_done().await?;
        }
        self.free = 0;
        Ok(())
    }

    async fn finish(mut self) -> Result<u64, Status> {
        self.put_rest().await?;
        self.drain().await?;
        Ok(self.written)
    }
}
