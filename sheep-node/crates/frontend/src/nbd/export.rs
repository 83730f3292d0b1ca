//! What driver and connection tell each other about exports, and the limits of a connection.

use super::error::CloseReason;
use super::proto::*;
use crate::volume_io::Request;
use sheep_types::{BLOCK_SIZE, SECTOR_SIZE};

/// What the driver must do next for a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerEvent {
    /// Answer with [`Connection::handle_export_list`](super::Connection::handle_export_list).
    ListExports,
    /// Answer with [`Connection::handle_opened`](super::Connection::handle_opened).
    OpenExport {
        /// As the client wrote it; empty means the default export.
        name: String,
        /// Whether the export will be used.
        mode: OpenMode,
    },
    /// Carry it out and answer with [`Connection::complete`](super::Connection::complete).
    Request(Request),
    /// Nothing more will come. Requests in flight are still to be completed; once
    /// [`Connection::is_finished`](super::Connection::is_finished), close the socket. Comes exactly once.
    Disconnect(CloseReason),
}

/// What an export is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// The client only asks; keep nothing open.
    Info,
    /// If it can be opened, requests follow.
    Go,
    /// Like [`OpenMode::Go`], from a client that cannot be told errors: a refusal ends the connection.
    ExportName,
}

/// An export that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Bytes. What exceeds a multiple of the minimum block size is not offered.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// For humans; may be empty.
    pub description: String,
    /// Units of access.
    pub blocks: BlockSizes,
    /// What one connection has written and flushed, all others see: clients may use several.
    pub can_multi_conn: bool,
    /// Seeks are slow.
    pub rotational: bool,
}

impl ExportInfo {
    /// A writable export of `size` bytes with Sheepdog's block sizes, on which several connections agree.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            read_only: false,
            description: String::new(),
            blocks: BlockSizes::default(),
            can_multi_conn: true,
            rotational: false,
        }
    }

    /// Size as announced and enforced.
    pub(crate) fn usable_size(&self) -> u64 {
        self.size - self.size % u64::from(self.blocks.minimum)
    }

    pub(crate) fn transmission_flags(&self, structured: bool) -> u16 {
        let always =
            FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_SEND_FUA | FLAG_SEND_TRIM | FLAG_SEND_WRITE_ZEROES;
        let mut flags = always | FLAG_SEND_CACHE | FLAG_SEND_FAST_ZERO;
        let optional = [
            (self.read_only, FLAG_READ_ONLY),
            (self.rotational, FLAG_ROTATIONAL),
            (self.can_multi_conn, FLAG_CAN_MULTI_CONN),
            (structured, FLAG_SEND_DF),
        ];
        for (set, flag) in optional {
            flags |= if set { flag } else { 0 };
        }
        flags
    }
}

/// Block size constraints, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths must be multiples of this; a power of two, a sector or more.
    pub minimum: u32,
    /// Smallest size without a penalty.
    pub preferred: u32,
    /// Longest read or write. A connection lowers it to its own limit.
    pub maximum: u32,
}

impl Default for BlockSizes {
    fn default() -> Self {
        Self { minimum: SECTOR_SIZE, preferred: BLOCK_SIZE, maximum: 32 << 20 }
    }
}

/// An entry of the list of exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportEntry {
    /// What a client would ask for.
    pub name: String,
    /// For humans; may be empty.
    pub description: String,
}

/// What one connection may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Requests in flight, 1 to 65535. More are left in the socket.
    pub requests_max: usize,
    /// Bytes of payload in flight: writes not yet answered, reads until the socket has taken their contents. One
    /// request is always admitted, however long. Whoever does not read its replies is not read from.
    pub bytes_max: usize,
    /// Longest read or write, bytes.
    pub payload_max: u32,
    /// Size of the staging buffer for headers and small writes, bytes. At least 32 KiB are used.
    pub staging_bytes: usize,
    /// Options of one negotiation.
    pub options_max: u32,
    /// Extents in one answer about block status.
    pub extents_max: usize,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            requests_max: 256,
            bytes_max: 64 << 20,
            payload_max: 32 << 20,
            staging_bytes: 64 << 10,
            options_max: 1024,
            extents_max: 4096,
        }
    }
}
