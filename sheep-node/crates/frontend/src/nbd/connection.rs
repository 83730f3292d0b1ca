//! One client: the state machine and its interface to the driver.

use super::error::{CloseReason, OpenError, ProtocolError};
use super::export::{ExportEntry, ExportInfo, ServerEvent, ServerLimits};
use super::inflight::InFlight;
use super::negotiate::PendingOpen;
use super::proto::*;
use super::receive::Staging;
use super::transmission::PendingWrite;
use super::transmit::Transmit;
use crate::buffer::BufferPool;
use crate::volume_io::{ErrorKind, Reply, RequestHandle};
use bytes::Bytes;
use std::collections::VecDeque;

/// Room for the longest option that is parsed, and more.
const STAGING_MIN: usize = 32 << 10;
/// Longest read or write that can be configured, bytes.
const PAYLOAD_LIMIT: u32 = 64 << 20;

/// Server side of one NBD connection, without the socket.
///
/// The driver calls, whenever something happens:
/// 1. **handle** what happened: [`read_target`](Self::read_target) and [`handle_received`](Self::handle_received)
///    after a read, [`handle_eof`](Self::handle_eof), [`handle_transmitted`](Self::handle_transmitted) after a
///    write, [`complete`](Self::complete) when the volume has answered, [`handle_opened`](Self::handle_opened) and
///    [`handle_export_list`](Self::handle_export_list) in answer to events;
/// 2. **poll** until there is nothing: [`poll_event`](Self::poll_event), then
///    [`poll_transmit`](Self::poll_transmit), whose chunks it writes to the socket;
/// 3. **ask** what to wait for: [`wants_read`](Self::wants_read), [`is_finished`](Self::is_finished).
///
/// Nothing the client sends makes a method panic, and memory use is bounded by [`ServerLimits`]. Methods
/// panic if the driver breaks the contract: answers something not asked, or a read of the wrong length.
///
/// There are no timeouts: a driver that wants to get rid of clients that never finish negotiating closes them.
///
/// An ending, by whichever side, is always the same: one [`ServerEvent::Disconnect`], no more requests, replies
/// to those in flight, then [`is_finished`](Self::is_finished). A driver whose socket is gone just drops the
/// connection, and with it the replies.
pub struct Connection {
    pub(super) limits: ServerLimits,
    pub(super) pool: BufferPool,
    pub(super) staging: Staging,
    pub(super) tx: Transmit,
    pub(super) events: VecDeque<ServerEvent>,
    pub(super) phase: Phase,
    pub(super) negotiated: Negotiated,
    pub(super) export: Option<Export>,
    pub(super) in_flight: InFlight,
    /// The parser waits for a limit to be kept again, not for bytes.
    blocked: bool,
    pub(super) shutting_down: bool,
    eof: bool,
    /// The last request was a write too long to pass through the staging buffer.
    pub(super) long_writes: bool,
}

/// Where in the protocol the next byte of the client belongs.
pub(super) enum Phase {
    ClientFlags,
    Option,
    /// The rest of an option that is too long.
    SkipOption {
        option: u32,
        remaining: usize,
    },
    AwaitList,
    AwaitOpen(PendingOpen),
    Request,
    Payload(PendingWrite),
    /// The payload of a write that is refused.
    SkipPayload {
        remaining: usize,
        cookie: u64,
        error: ErrorKind,
    },
    Closing,
}

/// What was agreed on before an export was chosen.
#[derive(Default)]
pub(super) struct Negotiated {
    pub(super) fixed_newstyle: bool,
    pub(super) no_zeroes: bool,
    pub(super) structured: bool,
    /// The metadata contexts that were selected, and for which export.
    pub(super) contexts: Option<(String, Contexts)>,
    pub(super) options: u32,
}

/// What block status tells.
#[derive(Clone, Default)]
pub(super) struct Contexts {
    pub(super) base_allocation: bool,
    /// Tag of the snapshot that the volume is compared with.
    pub(super) changed_since: Option<String>,
}

impl Contexts {
    pub(super) fn any(&self) -> bool {
        self.base_allocation || self.changed_since.is_some()
    }
}

/// The export in use.
pub(super) struct Export {
    pub(super) info: ExportInfo,
    pub(super) size: u64,
    pub(super) payload_max: u32,
    pub(super) contexts: Contexts,
}

/// How far a step of the parser came.
pub(super) enum Step {
    /// Something was consumed or changed.
    Progress,
    /// More bytes are needed.
    Starved,
    /// An answer of the driver, or room within the limits, is needed.
    Blocked,
}

/// Where the next bytes of the socket go, in this order: `readv` into both.
pub struct ReadTarget<'a> {
    /// The rest of a write's payload, in its own aligned buffer; often empty.
    pub payload: &'a mut [u8],
    /// What follows it.
    pub staging: &'a mut [u8],
}

impl Connection {
    /// A fresh connection, whose greeting is ready to be transmitted. Values in `limits` that cannot work are
    /// replaced by the nearest that can.
    pub fn new(limits: ServerLimits, pool: BufferPool) -> Self {
        let limits = ServerLimits {
            requests_max: limits.requests_max.clamp(1, usize::from(u16::MAX)),
            bytes_max: limits.bytes_max.max(1),
            payload_max: limits.payload_max.clamp(64 << 10, PAYLOAD_LIMIT),
            staging_bytes: limits.staging_bytes.max(STAGING_MIN),
            ..limits
        };
        let mut tx = Transmit::default();
        tx.put_u64(INIT_MAGIC);
        tx.put_u64(OPTION_MAGIC);
        tx.put_u16(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        Self {
            staging: Staging::new(limits.staging_bytes),
            limits,
            pool,
            tx,
            events: VecDeque::new(),
            phase: Phase::ClientFlags,
            negotiated: Negotiated::default(),
            export: None,
            in_flight: InFlight::default(),
            blocked: false,
            shutting_down: false,
            eof: false,
            long_writes: false,
        }
    }

    /// Whether to read from the socket. False while a limit is reached, an event waits for its
    /// answer, or the connection is ending.
    pub fn wants_read(&self) -> bool {
        !self.blocked && !self.eof && !matches!(self.phase, Phase::Closing)
    }

    /// Where to read to. A read is followed by [`Self::handle_received`] with its length; until then neither buffer
    /// moves, whatever is answered or transmitted, but the connection must not be dropped nor told of an
    /// end. Both are empty if nothing should be read, and never both otherwise.
    pub fn read_target(&mut self) -> ReadTarget<'_> {
        if !self.wants_read() {
            return ReadTarget { payload: &mut [], staging: &mut [] };
        }
        let room = REQUEST_HEADER_LEN.saturating_sub(self.staging.len()).max(1);
        let mut staging = self.staging.target();
        if self.long_writes {
            // Only the next header, so that none of the payload behind it has to be copied out of here.
            staging = &mut staging[..room];
        }
        let payload = match &mut self.phase {
            Phase::Payload(write) => write.unfilled(),
            _ => &mut [],
        };
        ReadTarget { payload, staging }
    }

    /// The first `n` bytes of the target have been filled. None is not the end: see [`Self::handle_eof`].
    pub fn handle_received(&mut self, n: usize) {
        let direct = match &mut self.phase {
            Phase::Payload(write) => write.fill(n),
            _ => 0,
        };
        self.staging.commit(n - direct);
        self.advance();
    }

    /// Takes bytes from a slice, as many as it wants now; returns how many. For drivers that cannot
    /// read into the target itself.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() && self.wants_read() {
            let mut n = 0;
            let ReadTarget { payload, staging } = self.read_target();
            for part in [payload, staging] {
                let len = part.len().min(bytes.len() - taken - n);
                part[..len].copy_from_slice(&bytes[taken + n..taken + n + len]);
                n += len;
            }
            self.handle_received(n);
            taken += n;
        }
        taken
    }

    /// The client will send nothing more. What it has sent is still carried out.
    pub fn handle_eof(&mut self) {
        self.eof = true;
        self.advance();
    }

    /// The server wants to stop: options and requests are refused from now on with "shutting down", but for
    /// those already yielded.
    pub fn handle_shutdown(&mut self) {
        self.shutting_down = true;
    }

    /// The volume has another size. Clients learn it only when they connect anew; requests are checked
    /// against the new one.
    pub fn handle_resized(&mut self, size: u64) {
        if let Some(export) = &mut self.export {
            export.info.size = size;
            export.size = export.info.usable_size();
        }
    }

    /// Answers [`ServerEvent::ListExports`].
    pub fn handle_export_list(&mut self, list: Result<Vec<ExportEntry>, OpenError>) {
        self.answer_list(list);
        self.advance();
    }

    /// Answers [`ServerEvent::OpenExport`]. After the connection has begun to end, it has no effect.
    pub fn handle_opened(&mut self, result: Result<ExportInfo, OpenError>) {
        self.answer_open(result);
        self.advance();
    }

    /// Answers a request, in any order among those in flight.
    pub fn complete(&mut self, handle: RequestHandle, reply: Reply) {
        self.answer_request(handle, reply);
        self.advance();
    }

    /// What the driver must do next.
    pub fn poll_event(&mut self) -> Option<ServerEvent> {
        self.events.pop_front()
    }

    /// What is to be written to the socket, in order and without copies. The chunks stay, at the same
    /// addresses, until [`Self::handle_transmitted`] passes them. Take no more than IOV_MAX at once.
    pub fn poll_transmit(&mut self) -> impl ExactSizeIterator<Item = &Bytes> {
        self.tx.chunks()
    }

    /// The socket took the first `n` bytes.
    pub fn handle_transmitted(&mut self, n: usize) {
        self.tx.advance(n);
        self.advance();
    }

    /// Whether everything is said and done: close the socket.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Closing) && self.in_flight.len() == 0 && self.tx.is_empty()
    }

    /// Requests yielded and not yet answered.
    pub fn requests_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Bytes of payload held for requests in flight and in replies not yet transmitted.
    pub fn bytes_held(&self) -> usize {
        self.in_flight.bytes() + self.tx.len()
    }

    /// Parses as far as bytes and limits allow.
    fn advance(&mut self) {
        loop {
            let step = match self.phase {
                Phase::ClientFlags => self.step_client_flags(),
                Phase::Option => self.step_option(),
                Phase::SkipOption { .. } => self.step_skip_option(),
                Phase::AwaitList | Phase::AwaitOpen(_) | Phase::Closing => Step::Blocked,
                Phase::Request => self.step_request(),
                Phase::Payload(_) => self.step_payload(),
                Phase::SkipPayload { .. } => self.step_skip_payload(),
            };
            match step {
                Step::Progress => {}
                Step::Starved if self.eof => self.close_at_eof(),
                Step::Starved | Step::Blocked => {
                    self.blocked = matches!(step, Step::Blocked);
                    return;
                }
            }
        }
    }

    fn close_at_eof(&mut self) {
        let between = matches!(self.phase, Phase::ClientFlags | Phase::Option | Phase::Request);
        self.close(CloseReason::PeerClosed { mid_message: !(between && self.staging.is_empty()) });
    }

    pub(super) fn violation(&mut self, error: ProtocolError) -> Step {
        self.close(CloseReason::Protocol(error));
        Step::Blocked
    }

    pub(super) fn close(&mut self, reason: CloseReason) {
        if let Phase::Payload(write) = std::mem::replace(&mut self.phase, Phase::Closing) {
            self.in_flight.remove(write.handle);
        }
        self.staging.clear();
        self.events.push_back(ServerEvent::Disconnect(reason));
    }

    /// Drops up to `remaining` bytes; returns how many then remain.
    pub(super) fn skip(&mut self, remaining: usize) -> usize {
        let n = remaining.min(self.staging.len());
        self.staging.consume(n);
        remaining - n
    }
}
