//! The handshake: client flags and options.

use super::connection::{Connection, Contexts, Export, Phase, Step};
use super::error::{CloseReason, OpenError, ProtocolError};
use super::export::{ExportEntry, ExportInfo, OpenMode, ServerEvent};
use super::options::{InfoWants, parse_info, parse_meta, text};
use super::proto::*;

/// Longest option data that is parsed, bytes: three names of the longest kind.
const OPTION_DATA_MAX: usize = 16 << 10;
/// Longest option data that is skipped and refused; beyond, the client is.
const OPTION_SKIP_MAX: usize = 1 << 20;

/// An export being opened by the driver.
pub(super) struct PendingOpen {
    name: String,
    mode: OpenMode,
    wants: InfoWants,
}

impl PendingOpen {
    fn option(&self) -> u32 {
        match self.mode {
            OpenMode::Info => OPT_INFO,
            OpenMode::Go => OPT_GO,
            OpenMode::ExportName => OPT_EXPORT_NAME,
        }
    }
}

impl Connection {
    pub(super) fn step_client_flags(&mut self) -> Step {
        let Some(bytes) = self.staging.peek() else { return Step::Starved };
        self.staging.consume(bytes.len());
        let flags = u32::from_be_bytes(bytes);
        let known = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        if flags & !known != 0 {
            return self.violation(ProtocolError::UnknownClientFlags(flags));
        }
        self.negotiated.fixed_newstyle = flags & u32::from(FLAG_FIXED_NEWSTYLE) != 0;
        self.negotiated.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        self.phase = Phase::Option;
        Step::Progress
    }

    pub(super) fn step_option(&mut self) -> Step {
        // A long list, asked for again and again and never read, must not pile up.
        if self.bytes_held() >= self.limits.bytes_max {
            return Step::Blocked;
        }
        let Some(header) = self.staging.peek::<OPTION_HEADER_LEN>() else { return Step::Starved };
        let ([magic @ .., _, _, _, _, _, _, _, _], [.., o0, o1, o2, o3, l0, l1, l2, l3]) = (header, header);
        let magic = u64::from_be_bytes(magic);
        let option = u32::from_be_bytes([o0, o1, o2, o3]);
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        if magic != OPTION_MAGIC {
            return self.violation(ProtocolError::BadOptionMagic(magic));
        }
        if !self.negotiated.fixed_newstyle && option != OPT_EXPORT_NAME {
            return self.violation(ProtocolError::NotFixedNewstyle(option));
        }
        if self.negotiated.options >= self.limits.options_max {
            return self.violation(ProtocolError::TooManyOptions);
        }
        let data_len = len as usize;
        if option == OPT_EXPORT_NAME && data_len > STRING_MAX {
            return self.violation(ProtocolError::BadExportName);
        }
        if data_len > OPTION_SKIP_MAX {
            return self.violation(ProtocolError::OptionTooLong { option, len });
        }
        if data_len > OPTION_DATA_MAX {
            self.negotiated.options += 1;
            self.staging.consume(OPTION_HEADER_LEN);
            self.phase = Phase::SkipOption { option, remaining: data_len };
            return Step::Progress;
        }
        let message = self.staging.filled();
        let Some(data) = message.get(OPTION_HEADER_LEN..OPTION_HEADER_LEN + data_len) else {
            return Step::Starved;
        };
        let data = data.to_vec();
        self.negotiated.options += 1;
        self.staging.consume(OPTION_HEADER_LEN + data_len);
        self.handle_option(option, &data)
    }

    pub(super) fn step_skip_option(&mut self) -> Step {
        let Phase::SkipOption { option, remaining } = self.phase else { return Step::Blocked };
        let remaining = self.skip(remaining);
        if remaining > 0 {
            self.phase = Phase::SkipOption { option, remaining };
            return Step::Starved;
        }
        self.phase = Phase::Option;
        self.option_reply(option, REP_ERR_TOO_BIG, b"option data too long")
    }

    fn handle_option(&mut self, option: u32, data: &[u8]) -> Step {
        match option {
            OPT_EXPORT_NAME => self.on_export_name(data),
            OPT_ABORT => {
                self.option_reply(option, REP_ACK, b"");
                self.close(CloseReason::Aborted);
                Step::Blocked
            }
            _ if self.shutting_down => {
                self.option_reply(option, REP_ERR_SHUTDOWN, b"server is shutting down")
            }
            OPT_LIST | OPT_STARTTLS | OPT_STRUCTURED_REPLY if !data.is_empty() => self.invalid(option),
            OPT_LIST => {
                self.events.push_back(ServerEvent::ListExports);
                self.phase = Phase::AwaitList;
                Step::Progress
            }
            // The slot for TLS: a driver that has it would be told here, and negotiation begin anew inside.
            OPT_STARTTLS => self.option_reply(option, REP_ERR_UNSUP, b"TLS is not offered"),
            OPT_INFO => self.on_info(option, data, OpenMode::Info),
            OPT_GO => self.on_info(option, data, OpenMode::Go),
            OPT_STRUCTURED_REPLY => {
                self.negotiated.structured = true;
                self.option_reply(option, REP_ACK, b"")
            }
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.on_meta(option, data),
            _ => self.option_reply(option, REP_ERR_UNSUP, b"unknown option"),
        }
    }

    fn on_export_name(&mut self, data: &[u8]) -> Step {
        let Some(name) = text(data) else { return self.violation(ProtocolError::BadExportName) };
        if self.shutting_down {
            self.close(CloseReason::Refused(OpenError::ShuttingDown));
            return Step::Blocked;
        }
        self.open(PendingOpen { name, mode: OpenMode::ExportName, wants: InfoWants::default() })
    }

    fn on_info(&mut self, option: u32, data: &[u8], mode: OpenMode) -> Step {
        match parse_info(data) {
            Some(info) => self.open(PendingOpen { name: info.export, mode, wants: info.wants }),
            None => self.invalid(option),
        }
    }

    fn open(&mut self, pending: PendingOpen) -> Step {
        self.events.push_back(ServerEvent::OpenExport { name: pending.name.clone(), mode: pending.mode });
        self.phase = Phase::AwaitOpen(pending);
        Step::Progress
    }

    fn on_meta(&mut self, option: u32, data: &[u8]) -> Step {
        let set = option == OPT_SET_META_CONTEXT;
        if set {
            // Whatever comes of it, it replaces what was selected before.
            self.negotiated.contexts = None;
        }
        let Some(meta) = parse_meta(data).filter(|_| self.negotiated.structured) else {
            return self.invalid(option);
        };
        // A list may be asked for by namespace, or entirely; a selection names contexts.
        let named = meta.queries.iter().any(|query| query == BASE_ALLOCATION);
        let listed = meta.queries.is_empty() || meta.queries.iter().any(|query| query == "base:");
        if named || !set && listed {
            let id = if set { BASE_ALLOCATION_ID } else { 0 };
            self.option_reply_parts(
                option,
                REP_META_CONTEXT,
                &[&id.to_be_bytes(), BASE_ALLOCATION.as_bytes()],
            );
        }
        let since = meta.queries.iter().find_map(|query| query.strip_prefix(CHANGED_SINCE));
        let since = since.filter(|tag| !tag.is_empty()).map(str::to_owned);
        if let Some(tag) = &since {
            // Whether there is such a snapshot is seen when block status is asked for.
            let id = if set { CHANGED_SINCE_ID } else { 0 };
            let parts = [&id.to_be_bytes()[..], CHANGED_SINCE.as_bytes(), tag.as_bytes()];
            self.option_reply_parts(option, REP_META_CONTEXT, &parts);
        }
        if set {
            let contexts = Contexts { base_allocation: named, changed_since: since };
            self.negotiated.contexts = Some((meta.export, contexts));
        }
        self.option_reply(option, REP_ACK, b"")
    }

    pub(super) fn answer_list(&mut self, list: Result<Vec<ExportEntry>, OpenError>) {
        if matches!(self.phase, Phase::Closing) {
            return;
        }
        assert!(matches!(self.phase, Phase::AwaitList), "nobody asked for the list of exports");
        self.phase = Phase::Option;
        match list {
            Ok(entries) => {
                for entry in entries {
                    let (name, description) = (entry.name.as_bytes(), entry.description.as_bytes());
                    let len = (name.len() as u32).to_be_bytes();
                    self.option_reply_parts(OPT_LIST, REP_SERVER, &[&len, name, description]);
                }
                self.option_reply(OPT_LIST, REP_ACK, b"");
            }
            Err(error) => {
                self.option_reply(OPT_LIST, error.reply_type(), error.to_string().as_bytes());
            }
        }
    }

    pub(super) fn answer_open(&mut self, result: Result<ExportInfo, OpenError>) {
        if matches!(self.phase, Phase::Closing) {
            return;
        }
        let Phase::AwaitOpen(pending) = std::mem::replace(&mut self.phase, Phase::Option) else {
            panic!("nobody asked to open an export");
        };
        match result {
            Ok(info) => self.opened(&pending, info),
            Err(error) if pending.mode == OpenMode::ExportName => self.close(CloseReason::Refused(error)),
            Err(error) => {
                self.option_reply(pending.option(), error.reply_type(), error.to_string().as_bytes());
            }
        }
    }

    fn opened(&mut self, pending: &PendingOpen, info: ExportInfo) {
        let blocks = info.blocks;
        let payload_max = blocks.maximum.min(self.limits.payload_max);
        let ordered = blocks.minimum <= blocks.preferred && blocks.preferred <= payload_max;
        assert!(blocks.minimum.is_power_of_two() && ordered, "impossible {blocks:?}");
        let size = info.usable_size();
        let flags = info.transmission_flags(self.negotiated.structured);
        if pending.mode == OpenMode::ExportName {
            self.tx.put_u64(size);
            self.tx.put_u16(flags);
            self.tx.put_slice(if self.negotiated.no_zeroes { &[] } else { &[0; 124] });
        } else {
            self.put_info(pending, INFO_EXPORT, &[&size.to_be_bytes(), &flags.to_be_bytes()]);
            if pending.wants.name {
                self.put_info(pending, INFO_NAME, &[pending.name.as_bytes()]);
            }
            if pending.wants.description && !info.description.is_empty() {
                self.put_info(pending, INFO_DESCRIPTION, &[info.description.as_bytes()]);
            }
            let sizes = [blocks.minimum, blocks.preferred, payload_max].map(u32::to_be_bytes);
            self.put_info(pending, INFO_BLOCK_SIZE, &[&sizes[0], &sizes[1], &sizes[2]]);
            self.option_reply(pending.option(), REP_ACK, b"");
        }
        if pending.mode != OpenMode::Info {
            let selected = self.negotiated.contexts.take().filter(|(name, _)| *name == pending.name);
            let contexts = selected.map(|(_, contexts)| contexts).unwrap_or_default();
            self.export = Some(Export { info, size, payload_max, contexts });
            self.phase = Phase::Request;
        }
    }

    fn put_info(&mut self, pending: &PendingOpen, kind: u16, parts: &[&[u8]]) {
        let kind = kind.to_be_bytes();
        let parts: Vec<&[u8]> = core::iter::once(&kind[..]).chain(parts.iter().copied()).collect();
        self.option_reply_parts(pending.option(), REP_INFO, &parts);
    }

    fn invalid(&mut self, option: u32) -> Step {
        self.option_reply(option, REP_ERR_INVALID, b"malformed option")
    }

    fn option_reply(&mut self, option: u32, kind: u32, data: &[u8]) -> Step {
        self.option_reply_parts(option, kind, &[data]);
        Step::Progress
    }

    fn option_reply_parts(&mut self, option: u32, kind: u32, parts: &[&[u8]]) {
        self.tx.put_u64(OPTION_REPLY_MAGIC);
        self.tx.put_u32(option);
        self.tx.put_u32(kind);
        self.tx.put_u32(parts.iter().map(|part| part.len()).sum::<usize>() as u32);
        parts.iter().for_each(|part| self.tx.put_slice(part));
    }
}
