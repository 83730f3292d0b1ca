//! Which ranges of a volume are allocated, or differ from a snapshot, as streams of messages.

use super::convert;
use super::find::snapshot_name;
use super::vdis::Service;
use super::volume::Volume;
use bytes::Bytes;
use sheep_api::PIECE;
use sheep_api::v1::{Range, RangesReply, Vdi};
use sheep_datapath::{DiffExtent, Difference};
use sheep_types::{SECTOR_SIZE, VdiId};
use std::collections::VecDeque;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

/// Ranges in one message, unless the caller wants fewer.
const RANGES: usize = 4096;
/// The same with contents, so that their reads are not too many at once.
const RANGES_READ: usize = 64;
/// Messages whose contents are being read.
const AHEAD: usize = 4;
const PIECE_BYTES: u64 = PIECE as u64;

/// What is asked for.
struct Wanted {
    since: Option<VdiId>,
    offset: u64,
    /// 0: any number.
    max_results: u32,
    contents: bool,
    /// For the first message: what is looked at, and what it is compared with.
    vdi: Vdi,
    since_vdi: Option<Vdi>,
}

impl Service {
    /// Sends ranges of a VDI, in comparison with a snapshot or not. Both are open meanwhile, so that they stay.
    pub(super) async fn send_ranges(
        &self,
        name: &str,
        since: Option<&str>,
        (offset, max_results, contents): (u64, u32, bool),
    ) -> Result<Response<ReceiverStream<Result<RangesReply, Status>>>, Status> {
        let (state, record) = self.find(name).await?;
        self.not_elsewhere(&state, &record)?;
        if offset > record.size || !offset.is_multiple_of(u64::from(SECTOR_SIZE)) {
            let size = record.size;
            let message =
                format!("the offset must be a multiple of 512 within the VDI, which has {size} bytes");
            return Err(Status::invalid_argument(message));
        }
        let since = match since {
            None => None,
            Some(tag) => Some(self.find(&snapshot_name(&record.name, tag)).await?.1),
        };
        if let Some(base) = since.as_ref().filter(|base| !base.is_snapshot()) {
            let message =
                format!("{} is no snapshot: only what stays as it is can be compared with", base.name);
            return Err(Status::failed_precondition(message));
        }
        let permit = self.stream_permit()?;
        let base = match &since {
            Some(base) => Some(Volume::open(&self.node, base, true).await?),
            None => None,
        };
        let volume = Volume::open(&self.node, &record, record.is_clean()).await?;
        let wanted = Wanted {
            since: since.as_ref().map(|base| base.id),
            offset,
            max_results,
            contents,
            vdi: convert::vdi(&record, &state),
            since_vdi: since.map(|base| convert::vdi(&base, &state)),
        };
        let (to, stream) = mpsc::channel(4);
        tokio::spawn(async move {
            let result = run(&volume, wanted, &to).await;
            volume.close().await;
            if let Some(base) = base {
                base.close().await;
            }
            if let Err(error) = result {
                let _ = to.send(Err(error)).await;
            }
            drop(permit);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

type Sender = mpsc::Sender<Result<RangesReply, Status>>;

/// Sends all ranges. Ends early when the caller has gone.
async fn run(volume: &Volume, wanted: Wanted, to: &Sender) -> Result<(), Status> {
    let size = volume.size();
    let first = RangesReply {
        done: wanted.offset,
        size_bytes: size,
        vdi: Some(wanted.vdi),
        since: wanted.since_vdi,
        ranges: Vec::new(),
    };
    if to.send(Ok(first)).await.is_err() {
        return Ok(());
    }
    let most = match wanted.max_results as usize {
        0 => RANGES,
        most => most.min(RANGES),
    };
    let mut stream = Messages { volume, to, most, contents: wanted.contents, ahead: VecDeque::new() };
    let mut offset = wanted.offset;
    while offset < size {
        let extents = tokio::select! {
            extents = volume.diff(offset, wanted.since) => extents?,
            () = to.closed() => return Ok(()),
        };
        let (ranges, end) = ranges(&extents, offset, wanted.since.is_some(), wanted.contents);
        if !stream.put(ranges, end).await? {
            return Ok(());
        }
        offset = end;
    }
    stream.finish().await
}

/// What is to be told, and where it ends. Contents are cut so that requests do not straddle objects.
fn ranges(extents: &[DiffExtent], offset: u64, compared: bool, contents: bool) -> (Vec<Range>, u64) {
    let (mut ranges, mut at) = (Vec::new(), offset);
    for extent in extents {
        let end = at + extent.len;
        let zero = match extent.difference {
            Difference::Same => None,
            Difference::Zero => compared.then_some(true),
            Difference::Data => Some(false),
        };
        while let Some(zero) = zero.filter(|_| at < end) {
            let stop = if contents && !zero { end.min((at / PIECE_BYTES + 1) * PIECE_BYTES) } else { end };
            ranges.push(Range { offset: at, length: stop - at, zero, data: Vec::new() });
            at = stop;
        }
        at = end;
    }
    (ranges, at)
}

/// Messages on their way to the caller.
struct Messages<'a> {
    volume: &'a Volume,
    to: &'a Sender,
    most: usize,
    contents: bool,
    ahead: VecDeque<JoinHandle<Result<RangesReply, Status>>>,
}

impl Messages<'_> {
    /// Sends ranges; with them everything up to `end` is told. `false`: the caller has gone.
    async fn put(&mut self, ranges: Vec<Range>, end: u64) -> Result<bool, Status> {
        let size_bytes = self.volume.size();
        let message =
            |ranges: Vec<Range>, done| RangesReply { ranges, done, size_bytes, ..Default::default() };
        let mut rest = ranges.into_iter().peekable();
        loop {
            let (mut some, mut bytes) = (Vec::new(), 0);
            let most = if self.contents { self.most.min(RANGES_READ) } else { self.most };
            while some.len() < most
                && let Some(range) =
                    rest.next_if(|range| !self.contents || bytes == 0 || bytes + range.length <= PIECE_BYTES)
            {
                bytes += if range.zero { 0 } else { range.length };
                some.push(range);
            }
            let last = rest.peek().is_none();
            let done = match some.last() {
                Some(range) if !last => range.offset + range.length,
                _ => end,
            };
            if !self.send(message(some, done)).await? {
                return Ok(false);
            }
            if last {
                return Ok(true);
            }
        }
    }

    async fn send(&mut self, message: RangesReply) -> Result<bool, Status> {
        if !self.contents {
            return Ok(self.to.send(Ok(message)).await.is_ok());
        }
        let task = fill(self.volume, message);
        self.ahead.push_back(tokio::spawn(task));
        while self.ahead.len() > AHEAD {
            if !self.send_first().await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn send_first(&mut self) -> Result<bool, Status> {
        let Some(mut task) = self.ahead.pop_front() else { return Ok(true) };
        let message = tokio::select! {
            message = &mut task => message,
            () = self.to.closed() => return Ok(false),
        };
        let message = message.map_err(|_| Status::unavailable("the node is stopping"))??;
        Ok(self.to.send(Ok(message)).await.is_ok())
    }

    async fn finish(mut self) -> Result<(), Status> {
        while !self.ahead.is_empty() && self.send_first().await? {}
        Ok(())
    }
}

impl Drop for Messages<'_> {
    fn drop(&mut self) {
        self.ahead.iter().for_each(JoinHandle::abort);
    }
}

/// Reads what is in the ranges of a message.
fn fill(
    volume: &Volume,
    mut message: RangesReply,
) -> impl Future<Output = Result<RangesReply, Status>> + Send + 'static + use<> {
    let read = |range: &Range| (!range.zero).then(|| volume.reading(range.offset, range.length as u32));
    let reads: Vec<_> = message.ranges.iter().map(read).collect();
    async move {
        // All of them are under way at once.
        let tasks: Vec<Option<JoinHandle<Result<Bytes, Status>>>> =
            reads.into_iter().map(|read| read.map(tokio::spawn)).collect();
        for (range, task) in message.ranges.iter_mut().zip(tasks) {
            let Some(task) = task else { continue };
            let data = task.await.map_err(|_| Status::unavailable("the node is stopping"))??;
            // Zeros that were written out: the caller has no use for them.
            range.zero = data.iter().all(|byte| *byte == 0);
            if !range.zero {
                range.data = data.to_vec();
            }
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_for_reading_only() {
        let extent = |len, difference| DiffExtent { len, difference };
        let extents = [
            extent(4096, Difference::Same),
            extent(3 << 20, Difference::Data),
            extent(5 << 20, Difference::Zero),
            extent(512, Difference::Same),
        ];
        let start = PIECE_BYTES - 8192;
        let end = start + extents.iter().map(|extent| extent.len).sum::<u64>();
        let shown = |compared, contents| {
            let (ranges, at) = ranges(&extents, start, compared, contents);
            assert_eq!(at, end);
            ranges.iter().map(|range| (range.offset, range.length, range.zero)).collect::<Vec<_>>()
        };
        let first = start + 4096;
        let zeros = (first + (3 << 20), 5 << 20, true);
        assert_eq!(shown(true, false), [(first, 3 << 20, false), zeros]);
        assert_eq!(shown(false, false), [(first, 3 << 20, false)], "zeros are not allocated");
        let cut = [(4096, first), (PIECE_BYTES, PIECE_BYTES), (PIECE_BYTES, 2 * PIECE_BYTES)];
        let last = (3 * PIECE_BYTES, PIECE_BYTES - 4096, false);
        let mut expected: Vec<_> = cut.iter().map(|(len, at)| (*at, *len, false)).collect();
        expected.extend([last, zeros]);
        assert_eq!(shown(true, true), expected);
    }
}
