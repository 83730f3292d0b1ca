//! The request header and what is checked about it before anything is done.

use super::export::ExportInfo;
use super::proto::*;
use crate::volume_io::ErrorKind;

/// A request as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    /// The client's number for it, returned untouched.
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// What [`Header::check`] needs to know.
pub(crate) struct Context<'a> {
    pub(crate) info: &'a ExportInfo,
    pub(crate) size: u64,
    pub(crate) payload_max: u32,
    pub(crate) structured: bool,
    /// Some metadata context was selected.
    pub(crate) contexts: bool,
    pub(crate) shutting_down: bool,
}

impl Header {
    /// Decodes; the error is the magic number found instead.
    pub(crate) fn decode(bytes: &[u8; REQUEST_HEADER_LEN]) -> Result<Self, u32> {
        let magic = u32::from_be_bytes(field(bytes, 0));
        if magic != REQUEST_MAGIC {
            return Err(magic);
        }
        Ok(Self {
            flags: u16::from_be_bytes(field(bytes, 4)),
            command: u16::from_be_bytes(field(bytes, 6)),
            cookie: u64::from_be_bytes(field(bytes, 8)),
            offset: u64::from_be_bytes(field(bytes, 16)),
            len: u32::from_be_bytes(field(bytes, 24)),
        })
    }

    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Bytes that follow the header.
    pub(crate) fn payload_len(&self) -> u32 {
        if self.command == CMD_WRITE { self.len } else { 0 }
    }

    /// Bytes it holds while in flight, if it is valid.
    pub(crate) fn cost(&self) -> usize {
        if matches!(self.command, CMD_READ | CMD_WRITE) { self.len as usize } else { 0 }
    }

    /// Whether it may be passed on, by the rules of the specification ("Request types", "Error values").
    pub(crate) fn check(&self, context: &Context<'_>) -> Result<(), ErrorKind> {
        if self.flags & !self.flags_allowed(context).ok_or(ErrorKind::Invalid)? != 0 {
            return Err(ErrorKind::Invalid);
        }
        if context.shutting_down {
            return Err(ErrorKind::ShuttingDown);
        }
        if self.command == CMD_FLUSH {
            let reserved_clear = self.offset == 0 && self.len == 0;
            return if reserved_clear { Ok(()) } else { Err(ErrorKind::Invalid) };
        }
        if context.info.read_only && self.changes() {
            return Err(ErrorKind::NotPermitted);
        }
        if self.cost() > context.payload_max as usize {
            return Err(if self.has(CMD_FLAG_DF) { ErrorKind::TooLarge } else { ErrorKind::Invalid });
        }
        self.check_range(context)
    }

    fn check_range(&self, context: &Context<'_>) -> Result<(), ErrorKind> {
        let block = u64::from(context.info.blocks.minimum);
        if !self.offset.is_multiple_of(block) || !u64::from(self.len).is_multiple_of(block) {
            return Err(ErrorKind::Invalid);
        }
        let inside = self.offset.checked_add(self.len.into()).is_some_and(|end| end <= context.size);
        if !inside {
            let writes = matches!(self.command, CMD_WRITE | CMD_WRITE_ZEROES);
            return Err(if writes { ErrorKind::NoSpace } else { ErrorKind::Invalid });
        }
        if self.command == CMD_BLOCK_STATUS && (self.len == 0 || !context.contexts) {
            return Err(ErrorKind::Invalid);
        }
        Ok(())
    }

    fn changes(&self) -> bool {
        matches!(self.command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES)
    }

    /// Flags this command may carry; `None` if there is no such command. FUA is harmless everywhere.
    fn flags_allowed(&self, context: &Context<'_>) -> Option<u16> {
        let own = match self.command {
            CMD_READ if context.structured => CMD_FLAG_DF,
            CMD_READ | CMD_WRITE | CMD_FLUSH | CMD_TRIM | CMD_CACHE => 0,
            CMD_WRITE_ZEROES => CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
            CMD_BLOCK_STATUS => CMD_FLAG_REQ_ONE,
            _ => return None,
        };
        Some(own | CMD_FLAG_FUA)
    }
}

/// `N` bytes at a constant place of a header.
fn field<const N: usize>(bytes: &[u8; REQUEST_HEADER_LEN], at: usize) -> [u8; N] {
    core::array::from_fn(|i| bytes[at + i])
}
