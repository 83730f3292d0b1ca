//! A small NBD client of our own: one request at a time, for tests that must know exactly what was answered.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
/// Replies longer than this come from a broken server.
const MAX_OPTION_REPLY: u32 = 65_536;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISCONNECT: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_WRITE_ZEROES: u16 = 6;
const FLAG_FUA: u16 = 1;

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// An open connection to one export.
pub struct NbdClient {
    stream: Box<dyn Stream>,
    cookie: u64,
    /// Size of the export in bytes.
    pub size: u64,
    /// Transmission flags of the export.
    pub flags: u16,
}

/// An error number that the server answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Answered(pub u32);

impl std::fmt::Display for Answered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NBD error {}", self.0)
    }
}
impl std::error::Error for Answered {}

/// URI of an export behind a Unix socket.
pub fn unix_uri(socket: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

impl NbdClient {
    /// Connects to a Unix socket; every read and write waits at most `limit`.
    ///
    /// # Errors
    /// No connection, or the export is refused.
    pub fn unix(socket: &Path, export: &str, limit: Duration) -> Result<NbdClient> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("connecting {}", socket.display()))?;
        stream.set_read_timeout(Some(limit)).context("time limit")?;
        stream.set_write_timeout(Some(limit)).context("time limit")?;
        NbdClient::negotiate(Box::new(stream), export)
    }

    /// Connects by TCP; every read and write waits at most `limit`.
    ///
    /// # Errors
    /// No connection, or the export is refused.
    pub fn tcp(address: SocketAddr, export: &str, limit: Duration) -> Result<NbdClient> {
        let stream = TcpStream::connect_timeout(&address, limit).context("connecting")?;
        stream.set_read_timeout(Some(limit)).context("time limit")?;
        stream.set_write_timeout(Some(limit)).context("time limit")?;
        stream.set_nodelay(true).context("no delay")?;
        NbdClient::negotiate(Box::new(stream), export)
    }

    fn negotiate(mut stream: Box<dyn Stream>, export: &str) -> Result<NbdClient> {
        ensure!(u64::from_be_bytes(take(&mut stream)?) == MAGIC, "not an NBD server");
        ensure!(u64::from_be_bytes(take(&mut stream)?) == OPTION_MAGIC, "not a newstyle NBD server");
        let server = u16::from_be_bytes(take(&mut stream)?);
        ensure!(server & 1 == 1, "not fixed newstyle");
        stream.write_all(&u32::from(server & 3).to_be_bytes()).context("client flags")?;

        let name = u32::try_from(export.len()).context("name too long")?;
        let mut option = Vec::new();
        option.extend(OPTION_MAGIC.to_be_bytes());
        option.extend(OPTION_GO.to_be_bytes());
        option.extend((name + 6).to_be_bytes());
        option.extend(name.to_be_bytes());
        option.extend(export.as_bytes());
        option.extend(0u16.to_be_bytes());
        stream.write_all(&option).context("option GO")?;

        let mut client = NbdClient { stream, cookie: 0, size: 0, flags: 0 };
        loop {
            ensure!(u64::from_be_bytes(client.take()?) == OPTION_REPLY_MAGIC, "bad option reply");
            let _option: [u8; 4] = client.take()?;
            let kind = u32::from_be_bytes(client.take()?);
            let length = u32::from_be_bytes(client.take()?);
            ensure!(length <= MAX_OPTION_REPLY, "option reply of {length} bytes");
            let mut data = vec![0; length as usize];
            client.stream.read_exact(&mut data).context("option reply")?;
            match kind {
                REPLY_ACK => return Ok(client),
                REPLY_INFO => client.take_info(&data)?,
                error => bail!("export {export} refused ({error:#x}): {}", String::from_utf8_lossy(&data)),
            }
        }
    }

    fn take_info(&mut self, data: &[u8]) -> Result<()> {
        let (kind, rest) = data.split_first_chunk::<2>().context("short info")?;
        if u16::from_be_bytes(*kind) == INFO_EXPORT {
            let (size, rest) = rest.split_first_chunk::<8>().context("short info")?;
            let (flags, _) = rest.split_first_chunk::<2>().context("short info")?;
            self.size = u64::from_be_bytes(*size);
            self.flags = u16::from_be_bytes(*flags);
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        take(&mut self.stream)
    }

    fn request(&mut self, command: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> Result<()> {
        self.cookie += 1;
        let mut packet = Vec::with_capacity(28 + data.len());
        packet.extend(REQUEST_MAGIC.to_be_bytes());
        packet.extend(flags.to_be_bytes());
        packet.extend(command.to_be_bytes());
        packet.extend(self.cookie.to_be_bytes());
        packet.extend(offset.to_be_bytes());
        packet.extend(length.to_be_bytes());
        packet.extend(data);
        self.stream.write_all(&packet).context("sending request")
    }

    fn reply(&mut self) -> Result<()> {
        let cookie = self.take_reply()?;
        ensure!(cookie == self.cookie, "reply to another request");
        Ok(())
    }

    /// Sends a write without waiting for its reply; returns its cookie. For load: see [`NbdClient::take_reply`].
    ///
    /// # Errors
    /// The connection is lost.
    pub fn send_write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<u64> {
        let flags = if fua { FLAG_FUA } else { 0 };
        self.request(CMD_WRITE, flags, offset, u32::try_from(data.len()).context("length")?, data)?;
        Ok(self.cookie)
    }

    /// Takes the next reply (to anything but a read) and returns its cookie.
    ///
    /// # Errors
    /// As [`NbdClient::read`].
    pub fn take_reply(&mut self) -> Result<u64> {
        // One system call per reply; it counts at high rates.
        let header: [u8; 16] = self.take()?;
        let (magic, rest) = header.split_first_chunk::<4>().context("header")?;
        let (error, cookie) = rest.split_first_chunk::<4>().context("header")?;
        ensure!(u32::from_be_bytes(*magic) == SIMPLE_REPLY_MAGIC, "bad reply");
        match u32::from_be_bytes(*error) {
            0 => Ok(u64::from_be_bytes(cookie.try_into().context("cookie")?)),
            error => Err(Answered(error).into()),
        }
    }

    /// Reads `buffer.len()` bytes.
    ///
    /// # Errors
    /// [`Answered`] if the server refuses; anything else: the connection is lost.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.request(CMD_READ, 0, offset, u32::try_from(buffer.len()).context("length")?, &[])?;
        self.reply()?;
        self.stream.read_exact(buffer).context("reading data")
    }

    /// Writes.
    ///
    /// # Errors
    /// As [`NbdClient::read`].
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<()> {
        self.send_write(offset, data, fua)?;
        self.reply()
    }

    /// Makes everything answered so far durable.
    ///
    /// # Errors
    /// As [`NbdClient::read`].
    pub fn flush(&mut self) -> Result<()> {
        self.request(CMD_FLUSH, 0, 0, 0, &[])?;
        self.reply()
    }

    /// Throws a range away.
    ///
    /// # Errors
    /// As [`NbdClient::read`].
    pub fn trim(&mut self, offset: u64, length: u32) -> Result<()> {
        self.request(CMD_TRIM, 0, offset, length, &[])?;
        self.reply()
    }

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// As [`NbdClient::read`].
    pub fn write_zeroes(&mut self, offset: u64, length: u32) -> Result<()> {
        self.request(CMD_WRITE_ZEROES, 0, offset, length, &[])?;
        self.reply()
    }
}

impl Drop for NbdClient {
    fn drop(&mut self) {
        // The connection may be dead, and a missing good-bye harms nobody.
        let _ = self.request(CMD_DISCONNECT, 0, 0, 0, &[]);
    }
}

fn take<const N: usize>(stream: &mut Box<dyn Stream>) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).context("connection lost")?;
    Ok(bytes)
}
