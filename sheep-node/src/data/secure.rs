//! TLS on a data connection: records on the socket, bytes of messages on the other side. Nothing here waits.

use super::framing::{SendQueue, StreamError};
use rustls::Connection;
use std::io::{self, IoSlice, Read, Write};

#[cfg(test)]
mod tests;

/// Bytes of records read at once, and encrypted before they are written.
const CHUNK: usize = 256 << 10;

/// One connection's TLS.
pub(super) struct Session {
    tls: Connection,
    /// The end of what is not encrypted, which goes before everything else.
    before: SendQueue,
    /// Received and not taken by TLS yet: `start..end`.
    input: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read got less than it could take: the socket was empty.
    drained: bool,
    /// What follows the bytes that were handed on last: `None` in it is an end in order.
    over: Option<Option<io::Error>>,
}

impl Session {
    /// `unread` came behind what was not encrypted, `before` is still to be sent of that.
    pub(super) fn new(mut tls: Connection, before: SendQueue, unread: &[u8]) -> Self {
        tls.set_buffer_limit(Some(CHUNK));
        let mut input = unread.to_vec();
        let end = input.len();
        input.resize(CHUNK.max(end), 0);
        Self { tls, before, input, start: 0, end, drained: false, over: None }
    }

    /// Whether both sides have not yet agreed on keys.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Whether there is something to read for which no event of the socket comes: an end, or what came behind the proof.
    pub(super) fn has_more(&self) -> bool {
        self.over.is_some() || self.start < self.end
    }

    /// What is in a session's records, as if it were read from the socket: fewer bytes than there is room for only if there
    /// are no more.
    pub(super) fn reader<'a, S: Read + Write>(
        &'a mut self,
        socket: &'a mut S,
        closing: bool,
    ) -> Reader<'a, S> {
        Reader { session: self, socket, closing }
    }

    /// Sends what waits, until nothing is left or the socket takes no more.
    pub(super) fn send(&mut self, queue: &mut SendQueue, socket: &mut impl Write) -> io::Result<()> {
        self.before.send(socket)?;
        if self.before.bytes() > 0 {
            return Ok(());
        }
        loop {
            if !self.write(socket)? || queue.bytes() == 0 || self.is_handshaking() {
                return Ok(());
            }
            queue.send(&mut Encrypt(&mut self.tls))?;
        }
    }

    /// Tells the other side that nothing follows, as far as the socket takes it now.
    pub(super) fn farewell(&mut self, socket: &mut impl Write) {
        self.tls.send_close_notify();
        if self.before.bytes() == 0 {
            let _ = self.write(socket);
        }
    }

    /// Writes records. `false`: the socket takes no more.
    fn write(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        while self.tls.wants_write() {
            match self.tls.write_tls(socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Has TLS take some of what came. `false`: nothing is there now.
    fn take(&mut self, socket: &mut (impl Read + Write), closing: bool) -> io::Result<bool> {
        if self.start == self.end {
            if std::mem::take(&mut self.drained) && !closing {
                return Ok(false);
            }
            match socket.read(&mut self.input) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.drained = n < self.input.len();
                    (self.start, self.end) = (0, n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        let mut rest = self.input.get(self.start..self.end).unwrap_or_default();
        let taken = self.tls.read_tls(&mut rest)?;
        self.start += taken;
        match self.tls.process_new_packets() {
            // It has room for any record: this one is longer than any may be.
            Ok(_) if taken == 0 => Err(invalid(rustls::Error::General("a record is too long".into()))),
            Ok(_) => Ok(true),
            Err(error) => {
                // It may be told why.
                if self.before.bytes() == 0 {
                    let _ = self.write(socket);
                }
                Err(invalid(error))
            }
        }
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// See [`Session::reader`].
pub(super) struct Reader<'a, S> {
    session: &'a mut Session,
    socket: &'a mut S,
    closing: bool,
}

impl<S: Read + Write> Read for Reader<'_, S> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let session = &mut *self.session;
        let mut have = 0;
        while session.over.is_none() && have < to.len() {
            let room = to.get_mut(have..).unwrap_or_default();
            match session.tls.reader().read(room) {
                Ok(0) => session.over = Some(None),
                Ok(n) => have += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match session.take(self.socket, self.closing) {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                            session.over = Some(None)
                        }
                        Err(error) => session.over = Some(Some(error)),
                    }
                }
                Err(error) => session.over = Some(Some(error)),
            }
        }
        match &mut session.over {
            _ if have > 0 => Ok(have),
            None => Err(io::ErrorKind::WouldBlock.into()),
            Some(why) => why.take().map_or(Ok(0), Err),
        }
    }
}

/// Takes bytes of messages, as long as there is room for the records that they become.
struct Encrypt<'a>(&'a mut Connection);

impl Encrypt<'_> {
    fn room(taken: usize) -> io::Result<usize> {
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }
}

impl Write for Encrypt<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Self::room(self.0.writer().write(bytes)?)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Self::room(self.0.writer().write_vectored(slices)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether an error says that the other side was refused, and not that its bytes were damaged.
pub(super) fn is_refusal(error: &StreamError) -> bool {
    matches!(
        error,
        StreamError::Tls(
            rustls::Error::InvalidCertificate(_)
                | rustls::Error::NoCertificatesPresented
                | rustls::Error::AlertReceived(_)
        )
    )
}
