//! `dog vdi read` and `dog vdi write`.

use crate::cli::Format;
use crate::connect::Connection;
use crate::output;
use crate::progress::bar;
use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use serde_json::json;
use sheep_api::v1::{ListVdisRequest, ReadVdiRequest, WriteVdiRequest};
use sheep_api::{PIECE, Size};
use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::Path;
use tokio::sync::mpsc;

/// Where contents go.
enum Sink {
    /// A file: zeros become holes.
    File(File),
    Stdout(io::Stdout),
}

impl Sink {
    fn open(file: Option<&Path>) -> Result<Self> {
        match file {
            Some(path) => {
                let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
                Ok(Self::File(file))
            }
            None => {
                let stdout = io::stdout();
                ensure!(
                    !stdout.is_terminal(),
                    "contents are not for the screen: redirect the output, or use --file"
                );
                Ok(Self::Stdout(stdout))
            }
        }
    }

    fn put(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) if data.iter().all(|byte| *byte == 0) => {
                file.seek(SeekFrom::Current(i64::try_from(data.len()).map_err(io::Error::other)?)).map(drop)
            }
            Self::File(file) => file.write_all(data),
            Self::Stdout(stdout) => stdout.write_all(data),
        }
    }

    fn finish(&mut self, length: u64) -> io::Result<()> {
        match self {
            // A hole at the end. Devices have their own size.
            Self::File(file) if file.metadata()?.is_file() => file.set_len(length),
            Self::File(_) => Ok(()),
            Self::Stdout(stdout) => stdout.flush(),
        }
    }
}

pub(crate) async fn read(
    connection: &Connection,
    name: &str,
    offset: u64,
    length: Option<u64>,
    file: Option<&Path>,
) -> Result<()> {
    ensure!(length != Some(0), "a length of 0 bytes is nothing to read");
    let request = ReadVdiRequest { name: name.into(), offset, length: length.unwrap_or(0) };
    let expected = match length {
        Some(length) => length,
        None => {
            let list = connection
                .vdis()
                .list(ListVdisRequest { name: name.into(), ..Default::default() })
                .await?
                .into_inner();
            list.vdis.first().map_or(0, |vdi| vdi.size_bytes).saturating_sub(offset)
        }
    };
    let mut stream = connection.vdis().read(request).await?.into_inner();
    let mut sink = Sink::open(file)?;
    let bar = bar(Some(expected))?;
    let mut read = 0;
    while let Some(piece) = stream.message().await? {
        sink.put(&piece.data).context("cannot write what was read")?;
        read += piece.data.len() as u64;
        bar.set_position(read);
    }
    sink.finish(read).context("cannot write what was read")?;
    bar.finish_and_clear();
    ensure!(read == expected, "only {read} of {expected} bytes came");
    Ok(())
}

/// Reads the source piece by piece on a thread that may block.
fn pump(
    mut source: impl Read + Send + 'static,
    name: String,
    offset: u64,
    limit: Option<u64>,
    bar: ProgressBar,
) -> (mpsc::Receiver<WriteVdiRequest>, tokio::task::JoinHandle<io::Result<u64>>) {
    let (sender, receiver) = mpsc::channel(2);
    let thread = tokio::task::spawn_blocking(move || {
        let mut sent = 0u64;
        // The first message names the VDI, even if nothing follows.
        let mut first = Some(name);
        loop {
            let want = limit.map_or(PIECE as u64, |limit| (limit - sent).min(PIECE as u64));
            let mut data = Vec::new();
            source.by_ref().take(want).read_to_end(&mut data)?;
            if data.is_empty() && first.is_none() {
                return Ok(sent);
            }
            let last = (data.len() as u64) < want || want == 0;
            sent += data.len() as u64;
            let message = WriteVdiRequest {
                name: first.take().unwrap_or_default(),
                offset,
                data,
                ..Default::default()
            };
            // Whoever receives has failed, and knows why.
            if sender.blocking_send(message).is_err() || last {
                return Ok(sent);
            }
            bar.set_position(sent);
        }
    });
    (receiver, thread)
}

pub(crate) async fn write(
    connection: &Connection,
    format: Format,
    name: &str,
    offset: u64,
    length: Option<u64>,
    file: Option<&Path>,
) -> Result<()> {
    let (source, known): (Box<dyn Read + Send>, Option<u64>) = match file {
        Some(path) => {
            let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            let known = file.metadata()?.is_file().then_some(file.metadata()?.len());
            (Box::new(file), known)
        }
        None => (Box::new(io::stdin()), None),
    };
    let expected = length.into_iter().chain(known).min();
    let bar = bar(expected)?;
    let (receiver, thread) = pump(source, name.into(), offset, length, bar.clone());
    let messages = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let written = connection.vdis().write(messages).await?.into_inner().bytes;
    let sent = thread.await.context("reading ended")?.context("cannot read what is to be written")?;
    bar.finish_and_clear();
    ensure!(written == sent, "only {written} of {sent} bytes were written");
    match format {
        Format::Json => output::json(&json!({"bytes": written}))?,
        Format::Table => output::line(&format!("{} ({written} bytes) written and durable", Size(written)))?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pieces(data: Vec<u8>, limit: Option<u64>) -> (Vec<WriteVdiRequest>, u64) {
        let (mut receiver, thread) =
            pump(io::Cursor::new(data), "disk".into(), 5, limit, ProgressBar::hidden());
        let mut all = Vec::new();
        while let Some(message) = receiver.recv().await {
            all.push(message);
        }
        (all, thread.await.unwrap().unwrap())
    }

    #[tokio::test]
    async fn the_first_message_names_the_vdi() {
        for (len, limit, sizes) in [
            (0, None, vec![0]),
            (10, None, vec![10]),
            (10, Some(4), vec![4]),
            (10, Some(0), vec![0]),
            (PIECE + 1, None, vec![PIECE, 1]),
            (2 * PIECE, None, vec![PIECE, PIECE]),
            (3 * PIECE, Some(2 * PIECE as u64), vec![PIECE, PIECE]),
        ] {
            let (messages, sent) = pieces(vec![7; len], limit).await;
            assert_eq!(
                messages.iter().map(|message| message.data.len()).collect::<Vec<_>>(),
                sizes,
                "{len} {limit:?}"
            );
            assert_eq!(sent, sizes.iter().sum::<usize>() as u64);
            assert_eq!((messages[0].name.as_str(), messages[0].offset), ("disk", 5));
            assert!(messages.iter().skip(1).all(|message| message.name.is_empty()));
        }
    }

    #[test]
    fn zeros_become_holes_in_files() {
        let path = std::env::temp_dir().join(format!("dog-transfer-{}", std::process::id()));
        let mut sink = Sink::open(Some(&path)).unwrap();
        sink.put(&vec![0; 1 << 20]).unwrap();
        sink.put(b"data").unwrap();
        sink.put(&vec![0; 1 << 20]).unwrap();
        sink.finish((2 << 20) + 4).unwrap();
        let contents = std::fs::read(&path).unwrap();
        let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(contents.len(), (2 << 20) + 4);
        assert_eq!(&contents[1 << 20..(1 << 20) + 4], b"data");
        assert!(blocks * 512 < 1 << 20, "{blocks} blocks for four bytes");
    }
}
