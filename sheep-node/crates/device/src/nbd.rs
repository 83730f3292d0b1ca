//! The NBD protocol from the client's side: fixed newstyle, simple replies.

use crate::fuse::{Io, Kind};
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_GO: u32 = 7;
const ACK: u32 = 1;
const INFO: u32 = 3;
const ERROR: u32 = 1 << 31;
const ERROR_UNKNOWN: u32 = ERROR + 6;
const FIXED_NEWSTYLE: u32 = 1;
const NO_ZEROES: u32 = 2;
/// Longest text or information that a server may send.
const OPTION_MAX: u32 = 64 << 10;
/// The server is about to close the connection: what was not done is done by the next one.
pub(crate) const ESHUTDOWN: i32 = 108;

/// What an export is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Export {
    pub(crate) size: u64,
    pub(crate) read_only: bool,
}

/// Why an export cannot be had.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The gateway knows that it never can be again.
    Ended,
    /// Not now.
    Now(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Refusal {
    fn from(problem: E) -> Self {
        Self::Now(problem.into())
    }
}

fn read<const N: usize>(from: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_u32(from: &mut impl Read) -> Result<u32> {
    Ok(u32::from_be_bytes(read(from)?))
}

fn read_u64(from: &mut impl Read) -> Result<u64> {
    Ok(u64::from_be_bytes(read(from)?))
}

/// Chooses an export. After this requests can be sent.
pub(crate) fn choose(stream: &mut (impl Read + Write), name: &str) -> Result<Export, Refusal> {
    greet(stream, name)?;
    let mut export = None;
    loop {
        let (kind, data) = option_reply(stream)?;
        match kind {
            ACK => return Ok(export.context("the server does not say how large the volume is")?),
            INFO if data.len() == 12 && data[..2] == [0, 0] => {
                let mut rest = &data[2..];
                let (size, flags) = (read_u64(&mut rest)?, u16::from_be_bytes(read(&mut rest)?));
                export = Some(Export { size, read_only: flags & 2 != 0 });
            }
            INFO => {}
            ERROR_UNKNOWN => return Err(Refusal::Ended),
            kind if kind & ERROR != 0 => {
                return Err(anyhow::anyhow!("{}", String::from_utf8_lossy(&data)).into());
            }
            kind => return Err(anyhow::anyhow!("an answer of kind {kind}").into()),
        }
    }
}

fn greet(stream: &mut (impl Read + Write), name: &str) -> Result<()> {
    ensure!(read_u64(stream)? == MAGIC && read_u64(stream)? == OPTION_MAGIC, "this is no NBD server");
    let flags = u32::from(u16::from_be_bytes(read(stream)?));
    ensure!(flags & FIXED_NEWSTYLE != 0, "the server is too old");
    stream.write_all(&(flags & (FIXED_NEWSTYLE | NO_ZEROES)).to_be_bytes())?;
    let name_len = u32::try_from(name.len()).context("name")?;
    let mut option = OPTION_MAGIC.to_be_bytes().to_vec();
    for number in [OPTION_GO, name_len + 6, name_len] {
        option.extend(number.to_be_bytes());
    }
    option.extend(name.as_bytes());
    option.extend(0u16.to_be_bytes());
    Ok(stream.write_all(&option)?)
}

/// Kind and data of an answer to an option.
fn option_reply(stream: &mut impl Read) -> Result<(u32, Vec<u8>)> {
    ensure!(read_u64(stream)? == REPLY_MAGIC, "this is no answer of an NBD server");
    let (_, kind, len) = (read_u32(stream)?, read_u32(stream)?, read_u32(stream)?);
    ensure!(len <= OPTION_MAX, "an answer of {len} bytes");
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data)?;
    Ok((kind, data))
}

/// The bytes of a request, without what is to be written.
pub(crate) fn request(cookie: u64, io: &Io) -> [u8; 28] {
    let (flags, kind): (u16, u16) = match io.kind {
        Kind::Read => (0, 0),
        Kind::Write => (0, 1),
        Kind::Flush => (0, 3),
        Kind::Punch => (0, 6),
        Kind::Zero => (2, 6),
    };
    let mut out = [0; 28];
    out[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    out[4..6].copy_from_slice(&flags.to_be_bytes());
    out[6..8].copy_from_slice(&kind.to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    out[16..24].copy_from_slice(&io.offset.to_be_bytes());
    out[24..].copy_from_slice(&u32::try_from(io.len).unwrap_or(u32::MAX).to_be_bytes());
    out
}

/// Cookie and error of the next answer; what was read follows.
pub(crate) fn reply(from: &mut impl Read) -> Result<(u64, i32)> {
    ensure!(read_u32(from)? == SIMPLE_REPLY_MAGIC, "this is no answer of an NBD server");
    let error = i32::try_from(read_u32(from)?).unwrap_or(crate::fuse::EIO);
    Ok((read_u64(from)?, error))
}
