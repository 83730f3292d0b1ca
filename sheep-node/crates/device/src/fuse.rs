//! The kernel's side of a FUSE file, as bytes: what requests mean, and how they are answered. One file in the root.
//!
//! Layouts are those of linux/fuse.h, version 7. All numbers are little-endian.

/// Largest write or read, bytes.
pub(crate) const MAX_IO: usize = 1 << 20;
/// Room for a request: its headers and its data.
pub(crate) const REQUEST_ROOM: usize = MAX_IO + 8192;
/// Requests of the background that the kernel hands out at once.
const BACKGROUND: u16 = 64;
const ROOT: u64 = 1;
const DISK: u64 = 2;

const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
const MAJOR: u32 = 7;
const MINOR: u32 = 38;

const ASYNC_READ: u64 = 1;
const BIG_WRITES: u64 = 1 << 5;
const ASYNC_DIO: u64 = 1 << 15;
const PARALLEL_DIROPS: u64 = 1 << 18;
const MAX_PAGES: u64 = 1 << 22;
const INIT_EXT: u64 = 1 << 30;
const HAS_RESEND: u64 = 1 << 39;
const WANTED: u64 = ASYNC_READ | BIG_WRITES | ASYNC_DIO | PARALLEL_DIROPS | MAX_PAGES | INIT_EXT | HAS_RESEND;

const NOTIFY_RESEND: i32 = 7;
const KEEP_CACHE: u32 = 2;
const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
const ZERO_RANGE: u32 = 16;

const ENOENT: i32 = 2;
pub(crate) const EIO: i32 = 5;
const EROFS: i32 = 30;
const ENOSYS: i32 = 38;
const EOPNOTSUPP: i32 = 95;

/// Bytes are read or written, or a range is made zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
    /// Zeros, which need no space.
    Punch,
    /// Zeros that keep their space.
    Zero,
}

/// An operation on the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Io {
    /// The kernel's number for it.
    pub(crate) unique: u64,
    pub(crate) kind: Kind,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked<'a> {
    /// It is answered with these bytes.
    Answer(Vec<u8>),
    /// It is for the volume; with what is to be written.
    Io(Io, &'a [u8]),
    /// No answer is wanted.
    Nothing,
}

/// What the file is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct File<'a> {
    pub(crate) name: &'a str,
    pub(crate) size: u64,
    pub(crate) read_only: bool,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn zeros(mut self, n: usize) -> Self {
        self.0.resize(self.0.len() + n, 0);
        self
    }
}

/// The header of an answer with a body of so many bytes; `errno` 0: it was done.
pub(crate) fn header(unique: u64, errno: i32, body: usize) -> Vec<u8> {
    let len = u32::try_from(OUT_HEADER + body).unwrap_or(u32::MAX);
    let mut out = len.to_le_bytes().to_vec();
    out.extend((-errno).to_le_bytes());
    out.extend(unique.to_le_bytes());
    out
}

fn answer(unique: u64, body: &[u8]) -> Vec<u8> {
    let mut out = header(unique, 0, body.len());
    out.extend(body);
    out
}

/// The answer to a write that was done.
pub(crate) fn written(unique: u64, len: u64) -> Vec<u8> {
    answer(unique, &Writer::default().u32(u32::try_from(len).unwrap_or(0)).u32(0).0)
}

/// Asks the kernel to hand out again what was read and not answered.
pub(crate) fn resend() -> Vec<u8> {
    header(0, -NOTIFY_RESEND, 0)
}

fn attributes(node: u64, file: File<'_>) -> Vec<u8> {
    let disk = node == DISK;
    let size = if disk { file.size } else { 0 };
    let mode = match (disk, file.read_only) {
        (false, _) => 0o40700,
        (true, false) => 0o100_600,
        (true, true) => 0o100_400,
    };
    let times = Writer::default().u64(node).u64(size).u64(size / 512).zeros(24).zeros(12);
    times.u32(mode).u32(1).zeros(12).u32(4096).u32(0).0
}

fn init(unique: u64, body: &mut Reader<'_>) -> Option<Vec<u8>> {
    let (_, _, readahead, flags) = (body.u32()?, body.u32()?, body.u32()?, u64::from(body.u32()?));
    let flags2 = if flags & INIT_EXT == 0 { 0 } else { u64::from(body.u32()?) << 32 };
    let agreed = (flags | flags2) & WANTED;
    let (low, high) = (agreed & u64::from(u32::MAX), agreed >> 32);
    let out = Writer::default()
        .u32(MAJOR)
        .u32(MINOR)
        .u32(readahead)
        .u32(low as u32)
        .u16(BACKGROUND)
        .u16(BACKGROUND / 4 * 3)
        .u32(MAX_IO as u32)
        .u32(1)
        .u16((MAX_IO / 4096) as u16)
        .u16(0)
        .u32(high as u32)
        .zeros(28);
    Some(answer(unique, &out.0))
}

/// Whether the kernel offers in its first request to hand out requests again.
pub(crate) fn offers_resend(request: &[u8]) -> Option<bool> {
    let mut reader = Reader(request);
    let (_, opcode) = (reader.u32()?, reader.u32()?);
    if opcode != 26 {
        return None;
    }
    reader.take(IN_HEADER - 8)?;
    let (_, _, _, flags, flags2) =
        (reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?);
    let all = u64::from(flags) | (u64::from(flags2) << 32);
    Some(u64::from(flags) & INIT_EXT != 0 && all & HAS_RESEND != 0)
}

/// What a request asks for; nothing if it is cut short, which the kernel never does.
pub(crate) fn parse<'a>(request: &'a [u8], file: File<'_>) -> Option<Asked<'a>> {
    let mut body = Reader(request);
    let (_, opcode, unique, node) = (body.u32()?, body.u32()?, body.u64()?, body.u64()?);
    body.take(IN_HEADER - 24)?;
    let done = |bytes: &[u8]| Some(Asked::Answer(answer(unique, bytes)));
    let refused = |errno| Some(Asked::Answer(header(unique, errno, 0)));
    let io = |kind, offset, len| Io { unique, kind, offset, len };
    match opcode {
        // LOOKUP
        1 if node == ROOT && body.0.strip_suffix(&[0]) == Some(file.name.as_bytes()) => {
            let entry = Writer::default().u64(DISK).u64(0).u64(3600).u64(0).u32(0).u32(0);
            done(&[entry.0, attributes(DISK, file)].concat())
        }
        1 => refused(ENOENT),
        // GETATTR, SETATTR: the size may change at any time.
        3 | 4 => done(&[Writer::default().zeros(16).0, attributes(node, file)].concat()),
        // OPEN, OPENDIR
        14 | 27 => done(&Writer::default().u64(0).u32(KEEP_CACHE).u32(0).0),
        // READ
        15 => {
            body.u64()?;
            let (offset, len) = (body.u64()?, u64::from(body.u32()?).min(MAX_IO as u64));
            let len = len.min(file.size.saturating_sub(offset));
            if len == 0 { done(&[]) } else { Some(Asked::Io(io(Kind::Read, offset, len), &[])) }
        }
        // WRITE
        16 => {
            body.u64()?;
            let (offset, len) = (body.u64()?, body.u32()?);
            body.take(IN_HEADER - 20)?;
            let data = body.take(len as usize)?;
            let fits = offset.checked_add(u64::from(len)).is_some_and(|end| end <= file.size);
            match (file.read_only, fits) {
                (true, _) => refused(EROFS),
                (_, false) => refused(EIO),
                _ => Some(Asked::Io(io(Kind::Write, offset, u64::from(len)), data)),
            }
        }
        // STATFS
        17 => {
            let blocks = Writer::default().u64(file.size / 4096).zeros(32);
            done(&blocks.u32(4096).u32(255).u32(4096).zeros(28).0)
        }
        // RELEASE, FLUSH, RELEASEDIR, DESTROY
        18 | 25 | 29 | 38 => done(&[]),
        // FSYNC
        20 => Some(Asked::Io(io(Kind::Flush, 0, 0), &[])),
        // INIT
        26 => Some(Asked::Answer(init(unique, &mut body)?)),
        // READDIR: nobody needs to see the file.
        28 => done(&[]),
        // FALLOCATE
        43 => {
            body.u64()?;
            let (offset, len, mode) = (body.u64()?, body.u64()?, body.u32()?);
            let kind = match mode & !KEEP_SIZE {
                // The loop device asks so for discards and for zeros, and expects zeros of either.
                PUNCH_HOLE => Kind::Punch,
                ZERO_RANGE => Kind::Zero,
                _ => return refused(EOPNOTSUPP),
            };
            let len = len.min(file.size.saturating_sub(offset));
            match (file.read_only, len) {
                (true, _) => refused(EROFS),
                (_, 0) => done(&[]),
                _ => Some(Asked::Io(io(kind, offset, len), &[])),
            }
        }
        // FORGET, INTERRUPT, BATCH_FORGET
        2 | 36 | 42 => Some(Asked::Nothing),
        _ => refused(ENOSYS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: File<'_> = File { name: "disk", size: 1 << 20, read_only: false };

    fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let head = Writer::default().u32((IN_HEADER + body.len()) as u32).u32(opcode).u64(77).u64(node);
        [head.zeros(16).0, body.to_vec()].concat()
    }

    fn errno(asked: Option<Asked<'_>>) -> i32 {
        match asked {
            Some(Asked::Answer(bytes)) => -i32::from_le_bytes(bytes[4..8].try_into().unwrap()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_of_the_kernel() {
        let write = [Writer::default().u64(9).u64(4096).u32(3).zeros(20).0, b"abc".to_vec()].concat();
        let request_of = request(16, DISK, &write);
        let io = Io { unique: 77, kind: Kind::Write, offset: 4096, len: 3 };
        assert_eq!(parse(&request_of, FILE), Some(Asked::Io(io, b"abc")));
        assert_eq!(errno(parse(&request_of, File { read_only: true, ..FILE })), EROFS);
        assert_eq!(errno(parse(&request_of, File { size: 4096, ..FILE })), EIO);
        // Up to the end of the file, which nobody reads behind.
        let read =
            |offset, len| request(15, DISK, &Writer::default().u64(9).u64(offset).u32(len).zeros(20).0);
        let last = read((1 << 20) - 512, 4096);
        let io = Io { unique: 77, kind: Kind::Read, offset: (1 << 20) - 512, len: 512 };
        assert_eq!(parse(&last, FILE), Some(Asked::Io(io, &[])));
        assert_eq!(parse(&read(1 << 20, 4096), FILE), Some(Asked::Answer(answer(77, &[]))));
        let range =
            |mode| request(43, DISK, &Writer::default().u64(9).u64(0).u64(1 << 30).u32(mode).u32(0).0);
        for (mode, kind) in [(3, Kind::Punch), (17, Kind::Zero)] {
            let io = Io { unique: 77, kind, offset: 0, len: 1 << 20 };
            assert_eq!(parse(&range(mode), FILE), Some(Asked::Io(io, &[])));
        }
        assert_eq!(errno(parse(&range(0), FILE)), EOPNOTSUPP);
        assert_eq!(errno(parse(&request(1, ROOT, b"disk\0"), FILE)), 0);
        assert_eq!(errno(parse(&request(1, ROOT, b"disc\0"), FILE)), ENOENT);
        assert_eq!(errno(parse(&request(99, DISK, &[]), FILE)), ENOSYS);
        assert_eq!(parse(&request(36, DISK, &[0; 8]), FILE), Some(Asked::Nothing));
    }

    #[test]
    fn layouts_have_the_sizes_of_the_kernel() {
        assert_eq!(attributes(DISK, FILE).len(), 88);
        let init = Writer::default().u32(7).u32(45).u32(131_072).u32(u32::MAX).u32(u32::MAX).zeros(44).0;
        let request_of = request(26, 0, &init);
        assert_eq!(offers_resend(&request_of), Some(true));
        let Some(Asked::Answer(bytes)) = parse(&request_of, FILE) else { panic!() };
        assert_eq!(bytes.len(), OUT_HEADER + 64);
        assert_eq!(bytes.len(), u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize);
        let sizes =
            [(1, b"disk\0".to_vec(), 128), (3, vec![0; 16], 104), (14, vec![0; 8], 16), (17, vec![], 80)];
        for (opcode, body, size) in sizes {
            let request_of = request(opcode, ROOT, &body);
            let Some(Asked::Answer(bytes)) = parse(&request_of, FILE) else { panic!() };
            assert_eq!(bytes.len(), OUT_HEADER + size, "{opcode}");
        }
        assert_eq!(i32::from_le_bytes(resend()[4..8].try_into().unwrap()), NOTIFY_RESEND);
    }

    #[test]
    fn what_is_cut_short_is_no_request() {
        let whole =
            request(16, DISK, &[Writer::default().zeros(16).u32(3).zeros(20).0, b"abc".to_vec()].concat());
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len], FILE), None, "{len}");
        }
    }
}
