//! Mutations of valid sessions, tens of thousands of them, against a driver that is as irregular as real ones.

use crate::client::*;
use sheep_frontend::nbd::{Connection, ExportInfo, OpenError, ReadTarget, ServerEvent, ServerLimits};
use sheep_frontend::{BlockExtent, BufferPool, ChangeExtent, ErrorKind, Extent, Op, Reply, Request};

const SESSIONS: u64 = 40_000;
const LIMITS: ServerLimits = ServerLimits {
    requests_max: 4,
    bytes_max: 40_000,
    payload_max: 1 << 16,
    staging_bytes: 0,
    options_max: 20,
    extents_max: 4,
};

/// splitmix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

fn valid_session(random: &mut Random) -> Vec<Vec<u8>> {
    let mut messages = vec![client_flags(3), option(OPT_STRUCTURED, b""), option(OPT_LIST, b"")];
    messages.push(option(OPT_SET_META, &meta_data("disk", &["base:allocation"])));
    messages.push(option(OPT_INFO, &info_data("disk", &[1, 2])));
    messages.push(option(OPT_GO, &info_data("disk", &[])));
    for i in 0..random.below(12) as u64 {
        let (command, offset) =
            ([READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS][random.below(7)], i * 4096);
        let len = if command == FLUSH { 0 } else { 512 << random.below(6) };
        let offset = if command == FLUSH { 0 } else { offset };
        messages.push(request(0, command, i, offset, len));
        if command == WRITE {
            messages.push(vec![i as u8; len as usize]);
        }
    }
    messages.push(request(0, DISC, 0, 0, 0));
    messages
}

fn mutate(random: &mut Random, messages: &mut Vec<Vec<u8>>) {
    for _ in 0..random.below(4) {
        let at = random.below(messages.len());
        match random.below(5) {
            0 => drop(messages.remove(at)),
            1 => messages.insert(at, messages[random.below(messages.len())].clone()),
            2 => {
                let len = random.below(messages[at].len() + 1);
                messages[at].truncate(len);
            }
            // Fields are where the meaning is: a random byte becomes an extreme one, or flips a bit.
            kind if !messages[at].is_empty() => {
                let byte = random.below(messages[at].len().min(64));
                let flip = 1 << random.below(8);
                let old = messages[at][byte];
                messages[at][byte] = if kind == 3 { [0, 1, 0x7f, 0xff][random.below(4)] } else { old ^ flip };
            }
            _ => {}
        }
        if messages.is_empty() {
            return;
        }
    }
}

fn answer(random: &mut Random, op: &Op) -> Reply {
    if random.below(10) == 0 {
        return Reply::Error(ErrorKind::Io);
    }
    match op {
        Op::Read { len, .. } => {
            let hole = random.below(*len as usize / 512 + 1) * 512;
            let data = vec![1; *len as usize - hole];
            Reply::Read(vec![Extent::Data(data.into()), Extent::Hole(hole as u32)])
        }
        Op::BlockStatus { .. } => {
            let extent =
                |i: usize| BlockExtent { len: 512 << (i % 3), hole: i.is_multiple_of(2), zero: true };
            Reply::BlockStatus((0..1 + random.below(9)).map(extent).collect())
        }
        Op::ChangedSince { .. } => {
            let extent =
                |i: usize| ChangeExtent { len: 512 << (i % 3), changed: i % 3 != 1, zero: i % 3 == 2 };
            Reply::Changes((0..1 + random.below(9)).map(extent).collect())
        }
        _ => Reply::Done,
    }
}

/// What a volume may rely on.
fn check(op: &Op) {
    let (offset, len) = match op {
        Op::Read { offset, len } => (*offset, u64::from(*len)),
        Op::Write { offset, data, .. } => (*offset, data.len() as u64),
        Op::Trim { offset, len, .. } | Op::WriteZeroes { offset, len, .. } => (*offset, *len),
        Op::BlockStatus { offset, len, .. } | Op::Cache { offset, len } => (*offset, *len),
        Op::ChangedSince { offset, len, .. } => (*offset, *len),
        Op::Flush => return,
    };
    assert!(len > 0 && offset % 512 == 0 && len % 512 == 0 && offset + len <= MIB, "{op:?}");
}

#[derive(Default)]
struct Seen {
    requests: usize,
    ends: usize,
    blocked: usize,
}

fn session(random: &mut Random, pool: &BufferPool, stream: &[u8]) -> Seen {
    let (mut seen, mut rest, mut working) = (Seen::default(), stream, Vec::<Request>::new());
    let mut connection = Connection::new(LIMITS, pool.clone());
    for _ in 0..1_000_000 {
        while let Some(event) = connection.poll_event() {
            assert_eq!(seen.ends, 0, "{event:?} after the end");
            match event {
                ServerEvent::ListExports => connection.handle_export_list(Ok(vec![])),
                ServerEvent::OpenExport { name, .. } if name == "disk" => {
                    connection.handle_opened(Ok(ExportInfo::new(MIB)));
                }
                ServerEvent::OpenExport { .. } => connection.handle_opened(Err(OpenError::NotFound)),
                ServerEvent::Request(request) => {
                    check(&request.op);
                    seen.requests += 1;
                    working.push(request);
                }
                ServerEvent::Disconnect(_) => seen.ends += 1,
            }
        }
        assert!(connection.requests_in_flight() <= 4);
        // One request over the limit, its reply, and a few more headers.
        assert!(connection.bytes_held() <= 40_000 + (1 << 16) + 4096, "{}", connection.bytes_held());
        if connection.is_finished() {
            return seen;
        }
        seen.blocked += usize::from(!connection.wants_read() && seen.ends == 0);
        match random.below(3) {
            0 if !working.is_empty() => {
                let Request { handle, op } = working.swap_remove(random.below(working.len()));
                connection.complete(handle, answer(random, &op));
            }
            1 => {
                let len = connection.poll_transmit().map(|chunk| chunk.len()).sum::<usize>();
                let n = if random.below(2) == 0 { len } else { random.below(len + 1) };
                connection.handle_transmitted(n);
            }
            _ => receive(random, &mut connection, &mut rest),
        }
    }
    panic!("a session without end");
}

fn receive(random: &mut Random, connection: &mut Connection, rest: &mut &[u8]) {
    if !connection.wants_read() {
        return;
    }
    if rest.is_empty() {
        return connection.handle_eof();
    }
    let limit = [1, 30, 5000, usize::MAX][random.below(4)].min(rest.len());
    let ReadTarget { payload, staging } = connection.read_target();
    let mut n = 0;
    for part in [payload, staging] {
        let (now, later) = rest.split_at(part.len().min(limit - n));
        part[..now.len()].copy_from_slice(now);
        (n, *rest) = (n + now.len(), later);
    }
    assert!(n > 0, "a target without room looks like the end");
    connection.handle_received(n);
}

#[test]
fn mutated_sessions() {
    let mut random = Random(20_261_122);
    let pool = BufferPool::new(1 << 20);
    let mut total = Seen::default();
    for _ in 0..SESSIONS {
        let mut messages = valid_session(&mut random);
        mutate(&mut random, &mut messages);
        let seen = session(&mut random, &pool, &messages.concat());
        assert_eq!(seen.ends, 1);
        total.requests += seen.requests;
        total.blocked += usize::from(seen.blocked > 0);
    }
    // The sessions must get far enough to mean something.
    assert!(total.requests as u64 > 2 * SESSIONS, "{} requests", total.requests);
    assert!(total.blocked as u64 > SESSIONS / 4, "{} sessions were held back", total.blocked);
}
