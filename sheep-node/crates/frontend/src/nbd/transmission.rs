//! The transmission phase: requests in, replies out.

use super::connection::{Connection, Export, Phase, Step};
use super::error::{CloseReason, ProtocolError};
use super::export::ServerEvent;
use super::inflight::{Kind, Pending};
use super::proto::*;
use super::reply;
use super::request::{Context, Header};
use crate::buffer::AlignedBuf;
use crate::volume_io::{ErrorKind, Extent, Op, Reply, Request, RequestHandle};

/// Payload that is received straight into its buffer is worth a system call of its own from here on, bytes.
const LONG_WRITE: usize = 32 << 10;

/// A write whose payload is still coming.
pub(super) struct PendingWrite {
    pub(super) handle: RequestHandle,
    offset: u64,
    fua: bool,
    buf: AlignedBuf,
    filled: usize,
}

impl PendingWrite {
    pub(super) fn unfilled(&mut self) -> &mut [u8] {
        &mut self.buf.as_mut_slice()[self.filled..]
    }

    /// Notes that up to `n` bytes were received into [`Self::unfilled`]; returns how many.
    pub(super) fn fill(&mut self, n: usize) -> usize {
        let n = n.min(self.buf.len() - self.filled);
        self.filled += n;
        n
    }
}

impl Connection {
    pub(super) fn step_request(&mut self) -> Step {
        // Even a request that fails makes a reply: who does not take replies cannot send requests.
        if self.in_flight.len() >= self.limits.requests_max || self.bytes_held() >= self.limits.bytes_max {
            return Step::Blocked;
        }
        let Some(bytes) = self.staging.peek() else { return Step::Starved };
        let header = match Header::decode(&bytes) {
            Ok(header) => header,
            Err(magic) => return self.violation(ProtocolError::BadRequestMagic(magic)),
        };
        let Some(export) = &self.export else { unreachable!("transmission without an export") };
        let verdict = header.check(&self.context(export));
        let held = self.bytes_held();
        if verdict.is_ok() && held > 0 && held + header.cost() > self.limits.bytes_max {
            return Step::Blocked;
        }
        self.staging.consume(bytes.len());
        self.long_writes = header.payload_len() as usize >= LONG_WRITE;
        match verdict {
            _ if header.command == CMD_DISC => {
                self.close(CloseReason::Disconnected);
                return Step::Blocked;
            }
            Ok(()) => self.accept(&header),
            Err(error) if header.payload_len() > 0 => {
                let remaining = header.payload_len() as usize;
                self.phase = Phase::SkipPayload { remaining, cookie: header.cookie, error };
            }
            Err(error) => self.refuse(&header, error),
        }
        Step::Progress
    }

    fn context<'a>(&self, export: &'a Export) -> Context<'a> {
        Context {
            info: &export.info,
            size: export.size,
            payload_max: export.payload_max,
            structured: self.negotiated.structured,
            contexts: export.contexts.any(),
            shutting_down: self.shutting_down,
        }
    }

    pub(super) fn step_payload(&mut self) -> Step {
        let Phase::Payload(write) = &mut self.phase else { return Step::Blocked };
        let unfilled = write.unfilled();
        let n = unfilled.len().min(self.staging.len());
        unfilled[..n].copy_from_slice(&self.staging.filled()[..n]);
        self.staging.consume(n);
        write.fill(n);
        if write.filled < write.buf.len() {
            return Step::Starved;
        }
        if let Phase::Payload(write) = std::mem::replace(&mut self.phase, Phase::Request) {
            let PendingWrite { handle, offset, fua, buf, .. } = write;
            self.yield_request(handle, Op::Write { offset, data: buf.freeze(), fua });
        }
        Step::Progress
    }

    pub(super) fn step_skip_payload(&mut self) -> Step {
        let Phase::SkipPayload { remaining, cookie, error } = self.phase else { return Step::Blocked };
        let remaining = self.skip(remaining);
        // Payload that is thrown away should come in large reads.
        self.long_writes = false;
        if remaining > 0 {
            self.phase = Phase::SkipPayload { remaining, cookie, error };
            return Step::Starved;
        }
        self.phase = Phase::Request;
        reply::simple(&mut self.tx, cookie, reply::errno(error));
        Step::Progress
    }

    /// A request that passed all checks.
    fn accept(&mut self, header: &Header) {
        let Header { offset, len, cookie, .. } = *header;
        let kind = match header.command {
            CMD_READ => Kind::Read { dont_fragment: header.has(CMD_FLAG_DF) },
            CMD_BLOCK_STATUS => self.status_kind(header.has(CMD_FLAG_REQ_ONE)),
            _ => Kind::Plain,
        };
        let pending = Pending { cookie, kind, offset, len, cost: header.cost() };
        if len == 0 && header.command != CMD_FLUSH {
            // Nothing to do, and the volume need not know that such a thing exists.
            return match kind {
                Kind::Read { .. } => self.put_contents(&pending, Vec::new()),
                _ => reply::simple(&mut self.tx, cookie, 0),
            };
        }
        let handle = self.in_flight.insert(pending);
        let fua = header.has(CMD_FLAG_FUA);
        let op = match header.command {
            CMD_WRITE => {
                let buf = self.pool.take(len as usize, offset);
                self.phase = Phase::Payload(PendingWrite { handle, offset, fua, buf, filled: 0 });
                return;
            }
            CMD_READ => Op::Read { offset, len },
            CMD_FLUSH => Op::Flush,
            CMD_TRIM => Op::Trim { offset, len: len.into(), fua },
            CMD_CACHE => Op::Cache { offset, len: len.into() },
            CMD_WRITE_ZEROES => Op::WriteZeroes {
                offset,
                len: len.into(),
                fua,
                no_hole: header.has(CMD_FLAG_NO_HOLE),
                fast_zero: header.has(CMD_FLAG_FAST_ZERO),
            },
            CMD_BLOCK_STATUS => self.status_op(kind, offset, len),
            other => unreachable!("command {other} passed the checks"),
        };
        self.yield_request(handle, op);
    }

    /// The tag that block status compares with.
    fn since(&self) -> Option<&String> {
        self.export.as_ref().and_then(|export| export.contexts.changed_since.as_ref())
    }

    /// What block status asks the volume first.
    fn status_kind(&self, req_one: bool) -> Kind {
        match self.export.as_ref().is_some_and(|export| export.contexts.base_allocation) {
            true => Kind::BlockStatus { req_one },
            false => Kind::Changes { req_one },
        }
    }

    fn status_op(&self, kind: Kind, offset: u64, len: u32) -> Op {
        let (offset, len) = (offset, len.into());
        match kind {
            Kind::Changes { .. } => {
                Op::ChangedSince { tag: self.since().cloned().unwrap_or_default(), offset, len }
            }
            Kind::BlockStatus { req_one } => Op::BlockStatus { offset, len, req_one },
            Kind::Read { .. } | Kind::Plain => unreachable!("no question about the status of blocks"),
        }
    }

    fn count_max(&self, req_one: bool) -> usize {
        if req_one { 1 } else { self.limits.extents_max.max(1) }
    }

    fn refuse(&mut self, header: &Header, error: ErrorKind) {
        let structured = matches!(header.command, CMD_READ | CMD_BLOCK_STATUS);
        self.put_error(header.cookie, structured, error);
    }

    fn yield_request(&mut self, handle: RequestHandle, op: Op) {
        self.events.push_back(ServerEvent::Request(Request { handle, op }));
    }

    pub(super) fn answer_request(&mut self, handle: RequestHandle, reply: Reply) {
        let pending = self.in_flight.remove(handle);
        match (pending.kind, reply) {
            (Kind::Read { .. }, Reply::Read(extents)) => self.put_contents(&pending, extents),
            (Kind::BlockStatus { req_one }, Reply::BlockStatus(extents)) => {
                let kind = Kind::Changes { req_one };
                let last = self.since().is_none();
                let states = extents.iter().map(|extent| (extent.len, reply::allocation(extent)));
                let (what, most) = ((BASE_ALLOCATION_ID, last), self.count_max(req_one));
                reply::block_status(&mut self.tx, &pending, what, most, states);
                if !last {
                    // The other context's chunk ends the reply.
                    let handle = self.in_flight.insert(Pending { kind, ..pending });
                    self.yield_request(handle, self.status_op(kind, pending.offset, pending.len));
                }
            }
            (Kind::Changes { req_one }, Reply::Changes(extents)) => {
                let states = extents.iter().map(|extent| (extent.len, reply::change(extent)));
                let (what, most) = ((CHANGED_SINCE_ID, true), self.count_max(req_one));
                reply::block_status(&mut self.tx, &pending, what, most, states);
            }
            (Kind::Plain, Reply::Done) => reply::simple(&mut self.tx, pending.cookie, 0),
            (kind, Reply::Error(error)) => self.put_error(pending.cookie, kind != Kind::Plain, error),
            (kind, reply) => panic!("{reply:?} does not answer a request of kind {kind:?}"),
        }
    }

    fn put_contents(&mut self, pending: &Pending, extents: Vec<Extent>) {
        let len: usize = extents.iter().map(Extent::len).sum();
        assert_eq!(len, pending.len as usize, "contents of the wrong length");
        match pending.kind {
            Kind::Read { dont_fragment } if self.negotiated.structured => {
                reply::structured_read(&mut self.tx, pending, dont_fragment, extents);
            }
            _ => reply::simple_read(&mut self.tx, pending.cookie, extents),
        }
    }

    /// Replies with contents must be structured once that is negotiated, and so must their errors.
    fn put_error(&mut self, cookie: u64, contents: bool, error: ErrorKind) {
        if contents && self.negotiated.structured {
            reply::structured_error(&mut self.tx, cookie, error);
        } else {
            reply::simple(&mut self.tx, cookie, reply::errno(error));
        }
    }
}
