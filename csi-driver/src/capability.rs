//! What a volume is to be used as.

use crate::Error;
use crate::v1::VolumeCapability;
use crate::v1::volume_capability::AccessType;
use crate::v1::volume_capability::access_mode::Mode;
use std::fmt;

/// A file system that the driver can make and mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FsKind {
    Ext4,
    Xfs,
}

/// What mkfs.xfs wants at least.
const XFS_MIN: u64 = 300 << 20;

impl FsKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

impl fmt::Display for FsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How pods see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// As a block device.
    Block,
    /// As a directory.
    Mount { kind: FsKind, flags: Vec<String> },
}

/// Whether a flag for mounting, which may be several, says that nothing is written.
fn is_read_only(flag: &str) -> bool {
    flag.split(',').any(|word| word == "ro")
}

/// Who may use it, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) access: Access,
    /// Nobody writes.
    pub(crate) read_only: bool,
    /// One pod at a time.
    pub(crate) single_pod: bool,
}

impl Usage {
    /// From a request that must have one.
    pub(crate) fn parse(capability: Option<&VolumeCapability>) -> Result<Self, Error> {
        let capability = capability.ok_or_else(|| Error::missing("volume capability"))?;
        let access = match &capability.access_type {
            None => return Err(Error::missing("access type (block or mount) in a volume capability")),
            Some(AccessType::Block(_)) => Access::Block,
            Some(AccessType::Mount(mount)) => {
                let kind = match mount.fs_type.as_str() {
                    "" | "ext4" => FsKind::Ext4,
                    "xfs" => FsKind::Xfs,
                    other => {
                        let message = format!("file system {other:?} is not supported; ext4 and xfs are");
                        return Err(Error::Invalid(message));
                    }
                };
                if !mount.volume_mount_group.is_empty() {
                    return Err(Error::Invalid(
                        "a group at mounting is not supported; fsGroup of the pod is, through the kubelet"
                            .into(),
                    ));
                }
                Access::Mount { kind, flags: mount.mount_flags.clone() }
            }
        };
        let mode =
            capability.access_mode.ok_or_else(|| Error::missing("access mode in a volume capability"))?;
        let (read_only, single_pod) = match mode.mode() {
            Mode::SingleNodeWriter | Mode::SingleNodeMultiWriter => (false, false),
            Mode::SingleNodeSingleWriter => (false, true),
            Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly => (true, false),
            Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => {
                let message = "a volume can be written from one node at a time: use ReadWriteOnce, \
                               ReadWriteOncePod or ReadOnlyMany";
                return Err(Error::Invalid(message.into()));
            }
            Mode::Unknown => return Err(Error::Invalid("the access mode is unknown".into())),
        };
        // Who asks for that with a flag means the same, and finds it so when he asks again.
        let flag =
            matches!(&access, Access::Mount { flags, .. } if flags.iter().any(|flag| is_read_only(flag)));
        Ok(Self { access, read_only: read_only || flag, single_pod })
    }

    /// Bytes of the smallest volume that can be used so.
    pub(crate) fn min_size(&self) -> u64 {
        if matches!(self.access, Access::Mount { kind: FsKind::Xfs, .. }) { XFS_MIN } else { 0 }
    }

    /// From the list of a request, which must have one at least.
    pub(crate) fn parse_all(capabilities: &[VolumeCapability]) -> Result<Vec<Self>, Error> {
        if capabilities.is_empty() {
            return Err(Error::missing("volume capabilities"));
        }
        capabilities.iter().map(|capability| Self::parse(Some(capability))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::volume_capability::{AccessMode, BlockVolume, MountVolume};

    fn mount(fs_type: &str) -> Option<AccessType> {
        Some(AccessType::Mount(MountVolume { fs_type: fs_type.into(), ..MountVolume::default() }))
    }

    fn usage(access_type: Option<AccessType>, mode: Mode) -> Result<Usage, Error> {
        let access_mode = Some(AccessMode { mode: mode.into() });
        Usage::parse(Some(&VolumeCapability { access_type, access_mode }))
    }

    #[test]
    fn what_works_and_what_does_not() {
        let block = || Some(AccessType::Block(BlockVolume {}));
        let plain = usage(block(), Mode::SingleNodeWriter).unwrap();
        assert_eq!(plain, Usage { access: Access::Block, read_only: false, single_pod: false });
        let default = usage(mount(""), Mode::SingleNodeSingleWriter).unwrap();
        assert_eq!(default.access, Access::Mount { kind: FsKind::Ext4, flags: vec![] });
        assert!(default.single_pod && !default.read_only);
        assert!(usage(mount("xfs"), Mode::MultiNodeReaderOnly).unwrap().read_only);
        for (flags, read_only) in [("ro", true), ("noatime,ro", true), ("errors=remount-ro", false)] {
            let flags = MountVolume { mount_flags: vec![flags.into()], ..MountVolume::default() };
            let usage = usage(Some(AccessType::Mount(flags.clone())), Mode::SingleNodeWriter).unwrap();
            assert_eq!(usage.read_only, read_only, "{flags:?}");
        }
        let refused = [
            usage(mount("btrfs"), Mode::SingleNodeWriter),
            usage(mount(""), Mode::MultiNodeMultiWriter),
            usage(block(), Mode::MultiNodeSingleWriter),
            usage(block(), Mode::Unknown),
            usage(None, Mode::SingleNodeWriter),
            Usage::parse(None),
        ];
        for refused in refused {
            assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
        }
        assert!(Usage::parse_all(&[]).is_err());
    }
}
