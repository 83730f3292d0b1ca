//! Whether a volume is formatted. The cluster decides that: a volume is blank if nobody has ever written to it, nor to what
//! it is a copy of before it was copied, and its mark does not say that it is formatted. What a device seems to have on it
//! decides nothing, because a device that cannot be read looks blank too.
//!
//! The mark goes from nothing to `formatting by attachment N` before the first byte is written, and to `formatted` before
//! the first mount. Each step happens only if the mark is as it was seen. So a node that was cut off in the middle, and had
//! its attachment taken away, cannot set it back when another node has gone on. One whose process died in the middle formats anew,
//! under the same attachment. Under another one that happens only if nothing has been written yet: whether what is there
//! is the beginning of a file system or somebody's data, nobody knows.

use super::Node;
use super::stage::Filesystem;
use crate::host;
use crate::names::{FORMATTED, FORMATTING};
use crate::{Attachment, Device, Error, Volume, names};

/// What is to be done before a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Format, if nothing was ever written.
    FormatIfBlank,
    /// Format: this very attachment has begun to, and so nobody has mounted it.
    Format,
    /// Format, if nothing was written by who began that before; else nothing can be done.
    FormatOrRefuse,
    /// There is something on it, or it cannot be written.
    Leave,
}

fn step(volume: &Volume, attachment: u64, read_only: bool) -> Step {
    match volume.attributes.get(names::FORMAT).map(String::as_str) {
        _ if read_only => Step::Leave,
        None => Step::FormatIfBlank,
        Some(mark) if mark == format!("{FORMATTING}{attachment}") => Step::Format,
        Some(mark) if mark.starts_with(FORMATTING) => Step::FormatOrRefuse,
        // Of a later version of this driver, perhaps.
        Some(_) => Step::Leave,
    }
}

impl Node {
    /// Makes a file system if the volume is blank, or checks the one that is there.
    pub(super) async fn prepare(
        &self,
        volume: &Volume,
        attachment: &Attachment,
        device: &Device,
        wanted: &Filesystem<'_>,
    ) -> Result<(), Error> {
        let format = match step(volume, attachment.index, wanted.read_only) {
            Step::Leave => false,
            Step::Format => true,
            Step::FormatIfBlank => self.backend.is_blank(volume.id).await?,
            Step::FormatOrRefuse if self.backend.is_blank(volume.id).await? => true,
            Step::FormatOrRefuse => {
                return Err(Error::Precondition(format!(
                    "a node was formatting volume {} and did not get to the end, and there is something on it since. It was never mounted: \
                 if nobody has written to it otherwise, delete the claim and make it anew",
                    volume.name
                )));
            }
        };
        if !format {
            if !wanted.read_only {
                return host::check_filesystem(&device.path, wanted.kind).await;
            }
            if !host::needs_replay(&device.path, wanted.kind).await? {
                return Ok(());
            }
            return Err(Error::Precondition(format!(
                "the file system of volume {} was not unmounted when the volume was copied or taken away, and who only reads it cannot \
                 complete it: mount a copy of it as ReadWriteOnce once, and use a snapshot of that after its pod has ended",
                volume.name
            )));
        }
        let seen = volume.attributes.get(names::FORMAT).map(String::as_str);
        let now = format!("{FORMATTING}{}", attachment.index);
        self.backend.mark(volume.id, names::FORMAT, seen, Some(&now)).await?;
        host::make_filesystem(&device.path, wanted.kind, &wanted.mkfs_options).await?;
        self.backend.mark(volume.id, names::FORMAT, Some(&now), Some(FORMATTED)).await?;
        tracing::info!("volume {} is formatted with {}", volume.name, wanted.kind);
        Ok(())
    }

    /// Mounts the volume; an error says what is wrong with it.
    pub(super) async fn mount(
        &self,
        volume: &Volume,
        device: &Device,
        wanted: &Filesystem<'_>,
    ) -> Result<(), Error> {
        let Filesystem { kind, flags, point, read_only, .. } = *wanted;
        let Err(error) = host::mount_filesystem(&device.path, point, kind, flags, read_only).await else {
            return Ok(());
        };
        let found = host::what_is_on(&device.path).await;
        let hint = if found == kind.name() {
            "".to_owned()
        } else {
            let marked = volume.attributes.contains_key(names::FORMAT);
            let cause = match (read_only, marked, volume.cloned) {
                (true, _, _) => "it is only read here",
                (false, true, _) => "it was formatted before",
                (false, false, true) => "it is a copy of something that was written to",
                (false, false, false) => "something was written to it",
            };
            format!(" (there is {found} on it, and it was not formatted now because {cause})")
        };
        let name = &volume.name;
        Err(Error::Internal(format!("volume {name} cannot be mounted as {kind}{hint}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Attributes;

    #[test]
    fn only_what_is_known_to_be_blank_is_formatted() {
        let volume = |mark: Option<&str>, cloned| Volume {
            id: 1,
            name: "v".into(),
            size: 1 << 30,
            cloned,
            attributes: mark
                .map(|mark| (names::FORMAT.into(), mark.into()))
                .into_iter()
                .collect::<Attributes>(),
            attachments: Vec::new(),
        };
        let half = "formatting by attachment 7";
        let table = [
            (None, false, false, Step::FormatIfBlank),
            (Some(half), false, false, Step::Format),
            (Some("formatting by attachment 6"), false, false, Step::FormatOrRefuse),
            (Some("formatting by attachment 70"), false, false, Step::FormatOrRefuse),
            (Some(FORMATTED), false, false, Step::Leave),
            (Some("something later"), false, false, Step::Leave),
            (None, true, false, Step::FormatIfBlank),
            (Some(FORMATTED), true, false, Step::Leave),
            (None, true, true, Step::Leave),
            (None, false, true, Step::Leave),
            (Some(half), false, true, Step::Leave),
        ];
        for (mark, cloned, read_only, expected) in table {
            assert_eq!(step(&volume(mark, cloned), 7, read_only), expected, "{mark:?} {cloned} {read_only}");
        }
    }
}
