//! The memory disk and a blocking driver for it: a thread per client.

use sheep_frontend::nbd::{
    Connection, ExportEntry, ExportInfo, OpenError, ReadTarget, ServerEvent, ServerLimits,
};
use sheep_frontend::{BlockExtent, BufferPool, ErrorKind, Extent, Op, Reply, Request};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};

const BLOCK: usize = 4096;

/// A sparse disk in memory; unallocated blocks read as zeroes.
pub(crate) struct Disk {
    blocks: Vec<Option<Box<[u8; BLOCK]>>>,
}

impl Disk {
    pub(crate) fn new(size: usize) -> Self {
        Self { blocks: vec![None; size.div_ceil(BLOCK)] }
    }

    fn size(&self) -> u64 {
        (self.blocks.len() * BLOCK) as u64
    }

    /// Splits a range at block borders: block, first byte in it, length.
    fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (usize, usize, usize)> {
        let (mut at, end) = (offset as usize, (offset + len) as usize);
        std::iter::from_fn(move || {
            let piece = (at / BLOCK, at % BLOCK, (BLOCK - at % BLOCK).min(end - at));
            at += piece.2;
            (piece.2 > 0).then_some(piece)
        })
    }

    fn execute(&mut self, op: Op) -> Reply {
        match op {
            Op::Read { offset, len } => Reply::Read(self.read(offset, len)),
            Op::Write { offset, data, .. } => {
                let mut rest = &data[..];
                for (block, start, len) in Self::pieces(offset, rest.len() as u64) {
                    let (now, later) = rest.split_at(len);
                    let contents = self.blocks[block].get_or_insert_with(|| Box::new([0; BLOCK]));
                    contents[start..start + len].copy_from_slice(now);
                    rest = later;
                }
                Reply::Done
            }
            // Whole blocks become holes at once, but parts of blocks are work.
            Op::WriteZeroes { offset, len, fast_zero: true, .. }
                if !(offset | len).is_multiple_of(BLOCK as u64) =>
            {
                Reply::Error(ErrorKind::NotSupported)
            }
            Op::WriteZeroes { offset, len, no_hole, .. } => self.zero(offset, len, no_hole),
            Op::Trim { offset, len, .. } => self.zero(offset, len, false),
            Op::Flush | Op::Cache { .. } => Reply::Done,
            Op::ChangedSince { .. } => Reply::Error(ErrorKind::Invalid),
            Op::BlockStatus { offset, len, .. } => {
                let extent = |(block, _, len): (usize, usize, usize)| {
                    let hole = self.blocks[block].is_none();
                    BlockExtent { len: len as u64, hole, zero: hole }
                };
                Reply::BlockStatus(Self::pieces(offset, len).map(extent).collect())
            }
        }
    }

    fn read(&self, offset: u64, len: u32) -> Vec<Extent> {
        let extent = |(block, start, len): (usize, usize, usize)| match &self.blocks[block] {
            Some(contents) => Extent::Data(contents[start..start + len].to_vec().into()),
            None => Extent::Hole(len as u32),
        };
        Self::pieces(offset, len.into()).map(extent).collect()
    }

    fn zero(&mut self, offset: u64, len: u64, no_hole: bool) -> Reply {
        for (block, start, len) in Self::pieces(offset, len) {
            let contents = &mut self.blocks[block];
            if len == BLOCK {
                *contents = no_hole.then(|| Box::new([0; BLOCK]));
            } else if let Some(contents) = contents {
                contents[start..start + len].fill(0);
            } else if no_hole {
                *contents = Some(Box::new([0; BLOCK]));
            }
        }
        Reply::Done
    }
}

/// Serves clients until the listener fails.
pub(crate) fn serve(listener: &UnixListener, disk: Disk) {
    let disk = Arc::new(Mutex::new(disk));
    let pool = BufferPool::new(64 << 20);
    for stream in listener.incoming() {
        let (Ok(stream), disk, pool) = (stream, Arc::clone(&disk), pool.clone()) else { return };
        std::thread::spawn(move || {
            if let Err(error) = serve_one(stream, &disk, pool) {
                eprintln!("memdisk: {error}");
            }
        });
    }
}

fn serve_one(mut stream: UnixStream, disk: &Mutex<Disk>, pool: BufferPool) -> io::Result<()> {
    let mut connection = Connection::new(ServerLimits::default(), pool);
    let mut batch = Vec::new();
    while !connection.is_finished() {
        while let Some(event) = connection.poll_event() {
            match event {
                ServerEvent::ListExports => {
                    let entry =
                        |name: &str| ExportEntry { name: name.into(), description: "memory disk".into() };
                    connection.handle_export_list(Ok(vec![entry("disk"), entry("readonly")]));
                }
                ServerEvent::OpenExport { name, .. } => {
                    let size = disk.lock().unwrap_or_else(PoisonError::into_inner).size();
                    connection.handle_opened(open(&name, size));
                }
                ServerEvent::Request(request) => batch.push(request),
                ServerEvent::Disconnect(reason) => eprintln!("memdisk: {reason}"),
            }
        }
        if !batch.is_empty() {
            execute(&mut connection, disk, &mut batch);
            continue;
        }
        if connection.poll_transmit().len() > 0 {
            let chunks: Vec<IoSlice<'_>> =
                connection.poll_transmit().take(512).map(|c| IoSlice::new(c)).collect();
            let sent = stream.write_vectored(&chunks)?;
            connection.handle_transmitted(sent);
        } else if connection.wants_read() {
            let ReadTarget { payload, staging } = connection.read_target();
            let received = stream.read_vectored(&mut [IoSliceMut::new(payload), IoSliceMut::new(staging)])?;
            match received {
                0 => connection.handle_eof(),
                n => connection.handle_received(n),
            }
        }
    }
    Ok(())
}

fn open(name: &str, size: u64) -> Result<ExportInfo, OpenError> {
    let info = ExportInfo { description: "memory disk".into(), ..ExportInfo::new(size) };
    match name {
        "disk" => Ok(info),
        "readonly" => Ok(ExportInfo { read_only: true, ..info }),
        _ => Err(OpenError::NotFound),
    }
}

/// Answers in another order than was asked, as a cluster would.
fn execute(connection: &mut Connection, disk: &Mutex<Disk>, batch: &mut Vec<Request>) {
    let mut disk = disk.lock().unwrap_or_else(PoisonError::into_inner);
    for Request { handle, op } in batch.drain(..).rev() {
        connection.complete(handle, disk.execute(op));
    }
}
