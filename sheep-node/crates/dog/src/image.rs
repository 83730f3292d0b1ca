//! `dog vdi import` and `dog vdi export`: disk images, raw or qcow2, with holes on both sides.

use crate::cli::{Format, ImageFormat};
use crate::connect::Connection;
use crate::output;
use crate::progress::bar;
use crate::ranges::Ranges;
use anyhow::{Context, Result, bail, ensure};
use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Mapping, Storage,
    StorageCreateOptions, StorageOpenOptions,
};
use indicatif::ProgressBar;
use serde_json::json;
use sheep_api::v1::{CreateVdiRequest, DeleteVdiRequest, WriteVdiRequest};
use sheep_api::{PIECE, Size};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Volumes have whole sectors, and at least so many bytes.
const SECTOR: u64 = 512;
const SMALLEST: u64 = 1 << 20;
/// What volumes allocate.
const BLOCK: usize = 4096;

type Image = FormatAccess<ImageFile>;

/// What is to become a volume.
pub(crate) struct Import {
    pub(crate) file: PathBuf,
    pub(crate) name: String,
    pub(crate) kind: Option<ImageFormat>,
    pub(crate) size: Option<u64>,
    pub(crate) copies: Option<u32>,
}

/// What an image looks like.
fn guess(path: &Path) -> Result<ImageFormat> {
    let mut magic = Vec::new();
    File::open(path)?.take(4).read_to_end(&mut magic)?;
    Ok(if magic == b"QFI\xfb" { ImageFormat::Qcow2 } else { ImageFormat::Raw })
}

async fn open(path: &Path, kind: ImageFormat) -> Result<Image> {
    let shown = path.display();
    let file = ImageFile::open(StorageOpenOptions::new().filename(path)).await;
    let file = file.with_context(|| format!("cannot read {shown}"))?;
    // Other files that the image names are not read: they may be any.
    Ok(match kind {
        ImageFormat::Raw => {
            let raw = Raw::builder(file).open(DenyImplicitOpenGate::default()).await;
            FormatAccess::new(raw.with_context(|| format!("cannot read {shown}"))?)
        }
        ImageFormat::Qcow2 => {
            let qcow2 = Qcow2::<ImageFile>::builder(file).open(DenyImplicitOpenGate::default()).await;
            FormatAccess::new(qcow2.with_context(|| {
                format!(
                    "cannot read {shown} (an image that depends on others has to be made whole before, with `qemu-img \
                     convert`)"
                )
            })?)
        }
    })
}

pub(crate) async fn import(connection: &Connection, format: Format, wanted: Import) -> Result<()> {
    let (path, name) = (&wanted.file, &wanted.name);
    let kind = match wanted.kind {
        Some(kind) => kind,
        None => guess(path).with_context(|| format!("cannot read {}", path.display()))?,
    };
    let image = open(path, kind).await?;
    let needed =
        image.size().checked_next_multiple_of(SECTOR).context("the image is too large")?.max(SMALLEST);
    let size_bytes = wanted.size.unwrap_or(needed);
    ensure!(size_bytes >= image.size(), "the image has {}, which is more", Size(image.size()));
    let request = CreateVdiRequest {
        name: name.clone(),
        size_bytes,
        copies: wanted.copies.unwrap_or(0),
        ..Default::default()
    };
    connection.vdis().create(request).await?;
    let bytes = match copy_in(connection, name, &image).await {
        Ok(bytes) => bytes,
        Err(error) => {
            // Half an image is none.
            let gone = connection.vdis().delete(DeleteVdiRequest { name: name.clone(), id: 0 }).await;
            let left = if gone.is_ok() { "" } else { "; what there is of the volume is left" };
            return Err(error.context(format!("{} is not imported{left}", path.display())));
        }
    };
    match format {
        Format::Json => output::json(&json!({"name": name, "size": size_bytes, "bytes": bytes}))?,
        Format::Table => output::line(&format!(
            "VDI {name} of {} is made of {}: {} written and durable",
            Size(size_bytes),
            path.display(),
            Size(bytes)
        ))?,
    }
    Ok(())
}

async fn copy_in(connection: &Connection, name: &str, image: &Image) -> Result<u64> {
    let bar = bar(Some(image.size()))?;
    let (to, messages) = mpsc::channel(4);
    let mut client = connection.vdis();
    let write = client.write(ReceiverStream::new(messages));
    // Reading ends early when writing has failed, which is the error to be told.
    let (read, written) = tokio::join!(read_image(image, name, to, &bar), write);
    let written = written?.into_inner().bytes;
    let read = read?;
    bar.finish_and_clear();
    ensure!(read == written, "only {written} of {read} bytes were written");
    Ok(written)
}

/// Sends everything that is not zeros. Gives the number of bytes.
async fn read_image(
    image: &Image,
    name: &str,
    to: mpsc::Sender<WriteVdiRequest>,
    bar: &ProgressBar,
) -> Result<u64> {
    let message = |seek, data| WriteVdiRequest { name: name.to_owned(), offset: 0, data, seek, zeroes: 0 };
    // It names the volume, even if nothing follows.
    let mut open = to.send(message(None, Vec::new())).await.is_ok();
    let (mut at, mut sent) = (0, 0);
    while open && at < image.size() {
        let (mapping, length) =
            image.get_mapping(at, image.size() - at).await.context("cannot read the image")?;
        ensure!(length > 0, "the image ends at {at}");
        let end = at.checked_add(length).context("the image is too large")?;
        if matches!(mapping, Mapping::Zero { .. } | Mapping::Eof { .. }) {
            at = end;
        }
        while open && at < end {
            let stop = end.min((at / PIECE as u64 + 1) * PIECE as u64);
            let mut data = vec![0; (stop - at) as usize];
            image.read(data.as_mut_slice(), at).await.context("cannot read the image")?;
            for (start, run) in written_out(&data) {
                sent += run.len() as u64;
                open = open && to.send(message(Some(at + start as u64), run.to_vec())).await.is_ok();
            }
            at = stop;
            bar.set_position(at);
        }
    }
    Ok(sent)
}

/// Runs of blocks that are not zeros, and where they begin: images have larger units than volumes.
fn written_out(data: &[u8]) -> Vec<(usize, &[u8])> {
    let blocks = data.chunks(BLOCK).map(|block| block.iter().any(|byte| *byte != 0));
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (number, _) in blocks.enumerate().filter(|(_, written)| *written) {
        let (start, end) = (number * BLOCK, data.len().min((number + 1) * BLOCK));
        match runs.last_mut() {
            Some((_, last)) if *last == start => *last = end,
            _ => runs.push((start, end)),
        }
    }
    runs.into_iter().filter_map(|(start, end)| Some((start, data.get(start..end)?))).collect()
}

/// An empty image of the size of a volume.
async fn create(path: &Path, kind: ImageFormat, size: u64) -> Result<Image> {
    let options = StorageCreateOptions::new().filename(path).overwrite(false);
    let options = if kind == ImageFormat::Raw { options.size(size) } else { options };
    let file = ImageFile::create_open(options).await?;
    Ok(match kind {
        ImageFormat::Raw => {
            FormatAccess::new(Raw::builder(file).write(true).open(DenyImplicitOpenGate::default()).await?)
        }
        ImageFormat::Qcow2 => {
            let made = Qcow2::<ImageFile>::create_builder(file).size(size);
            let open = |file| Ok(Qcow2::<ImageFile>::builder(file).write(true));
            FormatAccess::new(made.create_open(DenyImplicitOpenGate::default(), open).await?)
        }
    })
}

pub(crate) async fn export(
    connection: &Connection,
    format: Format,
    name: &str,
    path: &Path,
    kind: Option<ImageFormat>,
) -> Result<()> {
    let by_name = match path.extension().and_then(|end| end.to_str()) {
        Some("qcow2") => ImageFormat::Qcow2,
        _ => ImageFormat::Raw,
    };
    let kind = kind.unwrap_or(by_name);
    let shown = path.display();
    let mut ranges = Ranges::ask(connection, name, None, 0, true).await?;
    if path.exists() {
        bail!("{shown} is there already");
    }
    let size = ranges.vdi.size_bytes;
    let image = create(path, kind, size).await.with_context(|| format!("cannot make {shown}"))?;
    let bar = bar(Some(size))?;
    let mut bytes = 0;
    while let Some(some) = ranges.next().await.with_context(|| format!("{shown} is not complete"))? {
        for range in some.into_iter().filter(|range| !range.zero) {
            bytes += range.length;
            let written = image.write(range.data.as_slice(), range.offset).await;
            written.with_context(|| format!("cannot write {shown}"))?;
        }
        bar.set_position(ranges.done);
    }
    image.flush().await.and(image.sync().await).with_context(|| format!("cannot write {shown}"))?;
    bar.finish_and_clear();
    match format {
        Format::Json => output::json(&json!({"name": name, "size": size, "bytes": bytes}))?,
        Format::Table => {
            output::line(&format!("{name} of {} is in {shown}: {} written", Size(size), Size(bytes)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_left_out_block_by_block() {
        let mut data = vec![0; 5 * BLOCK + 512];
        assert!(written_out(&data).is_empty());
        data[BLOCK] = 1;
        data[3 * BLOCK - 1] = 1;
        data[5 * BLOCK + 1] = 1;
        let runs: Vec<(usize, usize)> = written_out(&data).iter().map(|(at, run)| (*at, run.len())).collect();
        assert_eq!(runs, [(BLOCK, 2 * BLOCK), (5 * BLOCK, 512)]);
    }
}
