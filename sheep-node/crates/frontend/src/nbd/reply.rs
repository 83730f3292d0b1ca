//! Encoding of replies in the transmission phase.

use super::inflight::Pending;
use super::proto::*;
use super::transmit::Transmit;
use crate::volume_io::{BlockExtent, ChangeExtent, ErrorKind, Extent};

/// The protocol's number for an error.
pub(crate) fn errno(error: ErrorKind) -> u32 {
    match error {
        ErrorKind::NotPermitted => EPERM,
        ErrorKind::Io => EIO,
        ErrorKind::Invalid => EINVAL,
        ErrorKind::NoSpace => ENOSPC,
        ErrorKind::TooLarge => EOVERFLOW,
        ErrorKind::NotSupported => ENOTSUP,
        ErrorKind::ShuttingDown => ESHUTDOWN,
    }
}

/// A simple reply without contents; `error` 0 is success.
pub(crate) fn simple(tx: &mut Transmit, cookie: u64, error: u32) {
    tx.put_u32(SIMPLE_REPLY_MAGIC);
    tx.put_u32(error);
    tx.put_u64(cookie);
}

/// Contents for a client without structured replies: all of it, holes written out.
pub(crate) fn simple_read(tx: &mut Transmit, cookie: u64, extents: Vec<Extent>) {
    simple(tx, cookie, 0);
    extents.into_iter().for_each(|extent| put_contents(tx, extent));
}

/// A structured reply that consists of an error.
pub(crate) fn structured_error(tx: &mut Transmit, cookie: u64, error: ErrorKind) {
    chunk(tx, cookie, REPLY_TYPE_ERROR, true, 6);
    tx.put_u32(errno(error));
    tx.put_u16(0); // length of a message for humans
}

/// Contents as a structured reply: a chunk per run of data or hole, or a single chunk if the client asked so.
/// The extents cover the request.
pub(crate) fn structured_read(
    tx: &mut Transmit,
    pending: &Pending,
    dont_fragment: bool,
    extents: Vec<Extent>,
) {
    let extents: Vec<Extent> = extents.into_iter().filter(|extent| !extent.is_empty()).collect();
    if extents.is_empty() {
        chunk(tx, pending.cookie, REPLY_TYPE_NONE, true, 0);
        return;
    }
    let mut offset = pending.offset;
    let mut rest = pending.len as usize;
    // A hole in a reply that must not be fragmented is written out, unless there is nothing else.
    let together = |a: &Extent, b: &Extent| dont_fragment || a.is_hole() == b.is_hole();
    for run in extents.chunk_by(together) {
        let len: usize = run.iter().map(Extent::len).sum();
        rest -= len;
        if run.iter().all(Extent::is_hole) {
            chunk(tx, pending.cookie, REPLY_TYPE_OFFSET_HOLE, rest == 0, 12);
            tx.put_u64(offset);
            tx.put_u32(len as u32);
        } else {
            chunk(tx, pending.cookie, REPLY_TYPE_OFFSET_DATA, rest == 0, len as u32 + 8);
            tx.put_u64(offset);
            run.iter().for_each(|extent| put_contents(tx, extent.clone()));
        }
        offset += len as u64;
    }
}

/// Flags of `base:allocation`.
pub(crate) fn allocation(extent: &BlockExtent) -> u32 {
    let hole = if extent.hole { STATE_HOLE } else { 0 };
    let zero = if extent.zero { STATE_ZERO } else { 0 };
    hole | zero
}

/// Flags of the comparison with a snapshot.
pub(crate) fn change(extent: &ChangeExtent) -> u32 {
    match (extent.changed, extent.zero) {
        (false, _) => 0,
        (true, false) => STATE_CHANGED,
        (true, true) => STATE_CHANGED | STATE_CHANGED_ZERO,
    }
}

/// Lengths and flags in one context, as a chunk of a structured reply, perhaps its last: equal neighbours joined, nothing
/// beyond the request, and at most `count_max` extents.
pub(crate) fn block_status(
    tx: &mut Transmit,
    pending: &Pending,
    (context, done): (u32, bool),
    count_max: usize,
    states: impl Iterator<Item = (u64, u32)>,
) {
    let mut descriptors: Vec<(u32, u32)> = Vec::new();
    let mut rest = pending.len;
    for (len, flags) in states {
        let len = u32::try_from(len).unwrap_or(u32::MAX).min(rest);
        if len == 0 {
            continue;
        }
        let count = descriptors.len();
        match descriptors.last_mut() {
            Some((last_len, last_flags)) if *last_flags == flags => *last_len += len,
            _ if count == count_max => break,
            _ => descriptors.push((len, flags)),
        }
        rest -= len;
    }
    assert!(!descriptors.is_empty(), "block status without any extent");
    chunk(tx, pending.cookie, REPLY_TYPE_BLOCK_STATUS, done, 4 + 8 * descriptors.len() as u32);
    tx.put_u32(context);
    for (len, flags) in descriptors {
        tx.put_u32(len);
        tx.put_u32(flags);
    }
}

fn chunk(tx: &mut Transmit, cookie: u64, kind: u16, done: bool, len: u32) {
    tx.put_u32(STRUCTURED_REPLY_MAGIC);
    tx.put_u16(if done { REPLY_FLAG_DONE } else { 0 });
    tx.put_u16(kind);
    tx.put_u64(cookie);
    tx.put_u32(len);
}

fn put_contents(tx: &mut Transmit, extent: Extent) {
    match extent {
        Extent::Data(data) => tx.put_payload(data),
        Extent::Hole(len) => tx.put_zeroes(len as usize),
    }
}
