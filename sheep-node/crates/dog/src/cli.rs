//! The command line.

mod device;
use crate::changes::{AlterCopy, Flatten};
use crate::connect::Target;
use clap::{Args, Parser, Subcommand, ValueEnum};
pub(crate) use device::{DeviceArgs, DeviceCommand};
use sheep_api::Size;
use std::path::PathBuf;

/// Command line tool of Sheepdog.
#[derive(Debug, Parser)]
#[command(name = "dog", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) target: Target,
    /// How to print answers
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Nodes: list, info, kill, recovery, drain, reweight, remove
    #[command(subcommand)]
    Node(NodeCommand),
    /// Virtual disk images
    #[command(subcommand)]
    Vdi(VdiCommand),
    /// The cluster as a whole
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Volumes as block devices of this machine: list, attach, detach
    Device(DeviceArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum MdCommand {
    /// All disks, how they are and how full
    List,
    /// Use one more disk, or one again that has failed
    Plug {
        /// Directory or block device on the node
        path: std::path::PathBuf,
    },
    /// Move everything off a disk, and use it no more then
    Unplug {
        /// Its path or its id
        disk: String,
        /// At once, whatever it holds; also a disk that has failed
        #[arg(short, long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// All nodes of the cluster
    List,
    /// One node: the one that is asked, or another
    Info {
        /// Id (or its beginning) or name
        node: Option<String>,
    },
    /// Stop a node in order; it keeps its data and may be started again
    Kill {
        /// Id (or its beginning) or name
        node: String,
    },
    /// What the nodes still have to copy
    Recovery {
        /// Follow it until everything is done
        #[arg(short, long)]
        watch: bool,
    },
    /// Read everything that a node has and compare it with other copies
    Scrub {
        /// Id (or its beginning) or name
        node: String,
        #[command(flatten)]
        scrub: Scrub,
    },
    /// Forget a node that does not run; its copies are made anew elsewhere
    Remove {
        /// Id (or its beginning) or name
        node: String,
        /// Also if it may have the last copy of something
        #[arg(short, long)]
        force: bool,
    },
    /// The disks of a node
    Md {
        /// Id (or its beginning) or name [default: the node that is asked]
        #[arg(short, long, global = true)]
        node: Option<String>,
        #[command(subcommand)]
        command: MdCommand,
    },
    /// Move a node's data to the others; when they have it, the node can be stopped and removed
    Drain {
        /// Id (or its beginning) or name
        node: String,
        /// The node stays after all
        #[arg(long)]
        undo: bool,
    },
    /// Change a node's share of objects
    Reweight {
        /// Id (or its beginning) or name
        node: String,
        /// Relative to other nodes, or `auto`: what the node announces
        weight: Weight,
    },
}

/// Share of objects that a node gets; none: what it announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weight(pub(crate) Option<u32>);

impl std::str::FromStr for Weight {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self(None)),
            number => number.parse().map(|weight| Self(Some(weight))).map_err(|_| "write a number or auto"),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum VdiCommand {
    /// Make a VDI
    Create(Create),
    /// All VDIs: volumes and snapshots
    List,
    /// Volumes, their snapshots, and what was cloned from these
    Tree,
    /// One VDI
    Info {
        /// Its name
        name: String,
    },
    /// Take a snapshot of a volume as it is now, open or not; or, with --tag, of several at one instant
    Snapshot {
        /// Name of the volume, and tag of the snapshot, which is called NAME@TAG; with --tag, names of volumes
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        /// Tag of the snapshots of all the volumes: all are taken, or none
        #[arg(short, long)]
        tag: Option<String>,
        /// Free attribute; may be given several times
        #[arg(short, long = "attribute", value_name = "KEY=VALUE", value_parser = key_value)]
        attributes: Vec<(String, String)>,
    },
    /// Make a volume with the contents of a snapshot, or of a volume as it is now
    Clone(CloneVdi),
    /// Give a closed volume the contents of one of its snapshots again: what was written since is lost
    Rollback {
        /// Name of the volume
        name: String,
        /// Tag of its snapshot
        tag: String,
    },
    /// Give a clone all that it reads from its origin, so that it does not need it any more; goes on in the background
    Flatten(Flatten),
    /// Change the number of copies of a volume and of all its snapshots, open or not
    AlterCopy(AlterCopy),
    /// Delete a volume or a snapshot (NAME@TAG) with all its data; what depends on it stays
    Delete {
        /// Its name
        name: String,
    },
    /// Change the size of a VDI
    Resize {
        /// Its name
        name: String,
        /// New size, like 20G
        size: Size,
        /// Allow a smaller size: what is behind the new end is lost
        #[arg(long)]
        shrink: bool,
    },
    /// Read contents to a file or standard output
    Read {
        /// Name of the volume, or NAME@TAG of a snapshot
        name: String,
        /// First byte, like 1M
        #[arg(default_value = "0")]
        offset: Size,
        /// Bytes [default: to the end]
        length: Option<Size>,
        /// File to write, with holes where the VDI has zeros
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Write contents from a file or standard input
    Write {
        /// Name of the VDI
        name: String,
        /// First byte, like 1M
        #[arg(default_value = "0")]
        offset: Size,
        /// Bytes [default: all that comes]
        length: Option<Size>,
        /// File to read
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Which ranges differ from a snapshot, or are allocated at all
    Diff {
        /// Name of the volume, or NAME@TAG of a snapshot
        name: String,
        /// Tag of a snapshot of the same volume, or name of one of what it was cloned from
        #[arg(short, long, value_name = "TAG")]
        since: Option<String>,
    },
    /// Write a snapshot, or what differs from an older one, as a backup to a file or standard output
    Backup {
        /// NAME@TAG
        name: String,
        /// Only what differs from this snapshot of the same volume
        #[arg(short, long, value_name = "TAG")]
        since: Option<String>,
        /// File to write; there must be none
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Go on with a file that was not finished
        #[arg(short, long, requires = "file")]
        resume: bool,
    },
    /// Make a volume of a backup, or bring one that was made so to a later one
    Restore(Restore),
    /// Make a volume of a disk image
    Import {
        /// The image: raw or qcow2
        file: PathBuf,
        /// Name of the new volume
        name: String,
        /// What the image is [default: what it looks like]
        #[arg(long, value_enum)]
        format: Option<ImageFormat>,
        /// Size of the volume [default: the image's]
        #[arg(long)]
        size: Option<Size>,
        /// Copies [default: the cluster's]
        #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
        copies: Option<u32>,
    },
    /// Write a volume or a snapshot as a disk image
    Export {
        /// Name of the volume, or NAME@TAG of a snapshot
        name: String,
        /// The image; there must be none
        file: PathBuf,
        /// What to write [default: by the end of the file's name, else raw]
        #[arg(long, value_enum)]
        format: Option<ImageFormat>,
    },
    /// Look at all copies of a VDI: are they there, current, equal? Changes nothing
    Check {
        /// Its name
        name: String,
        /// List objects too that are as they should be
        #[arg(short, long)]
        all: bool,
    },
    /// Make what is lost of a VDI zeros, for good
    AcceptLoss(AcceptLoss),
    /// Locks: who has which VDI open
    #[command(subcommand)]
    Lock(LockCommand),
}

#[derive(Args, Debug)]
pub(crate) struct Restore {
    /// Name of the volume: a new one, or, for differences, one that was restored and is as it was then
    pub(crate) name: String,
    /// File to read [default: standard input]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Go on with what was not finished
    #[arg(short, long, requires = "file")]
    pub(crate) resume: bool,
    /// Copies of a new volume [default: the cluster's]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) copies: Option<u32>,
}

/// Formats of disk images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageFormat {
    /// The contents as they are.
    Raw,
    /// QEMU's.
    Qcow2,
}

#[derive(Args, Debug)]
pub(crate) struct AcceptLoss {
    /// Name of the VDI
    pub(crate) name: String,
    /// Number of an object; may be given several times
    #[arg(long = "object", value_name = "N", required_unless_present = "all")]
    pub(crate) objects: Vec<u32>,
    /// All that is lost
    #[arg(long, conflicts_with = "objects")]
    pub(crate) all: bool,
    /// Yes, I want that
    #[arg(long)]
    pub(crate) yes: bool,
    /// Also what nodes that are down may have; say it twice
    #[arg(long, action = clap::ArgAction::Count)]
    pub(crate) force: u8,
}

#[derive(Args, Debug)]
pub(crate) struct Create {
    /// Its name
    pub(crate) name: String,
    /// Its size, like 10G
    pub(crate) size: Size,
    /// Copies [default: the cluster's]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) copies: Option<u32>,
    /// Copies below which writes wait [default: the cluster's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) min_copies: Option<u32>,
    /// Writes are durable before they are answered, not only after a flush
    #[arg(long)]
    pub(crate) write_through: bool,
    /// Free attribute; may be given several times
    #[arg(short, long = "attribute", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) attributes: Vec<(String, String)>,
}

#[derive(Args, Debug)]
pub(crate) struct CloneVdi {
    /// Snapshot (NAME@TAG) or volume
    pub(crate) source: String,
    /// Name of the new volume
    pub(crate) name: String,
    /// Its size, like 20G [default: the source's]
    #[arg(long)]
    pub(crate) size: Option<Size>,
    /// Copies [default: the source's]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) copies: Option<u32>,
    /// Copies below which writes wait [default: the source's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) min_copies: Option<u32>,
    /// Free attribute; may be given several times
    #[arg(short, long = "attribute", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) attributes: Vec<(String, String)>,
}

fn key_value(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[derive(Debug, Subcommand)]
pub(crate) enum LockCommand {
    /// All locks and shared readers
    List,
    /// End a lock whose holder is gone; the next holder waits until the old one's lease has run out
    Revoke {
        /// Name of the VDI
        name: String,
        /// Only this one [default: all of the VDI]
        generation: Option<u64>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// State of the cluster
    Info,
    /// Compare the state of all nodes and say everything that is wrong
    Check {
        /// Look at all copies of all VDIs too
        #[arg(long)]
        copies: bool,
    },
    /// Make a new cluster with the asked node as its first
    Format {
        /// Copies of new VDIs
        #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
        copies: Option<u32>,
        /// Copies below which writes wait
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
        min_copies: Option<u32>,
    },
    /// Read everything and compare all copies: how far that is, or begin now
    Scrub(Scrub),
    /// Stop all nodes in order
    Shutdown,
    /// How far recovery is on each node; or let it pause, or go on
    Recovery {
        /// What to do [default: show]
        #[arg(value_enum)]
        order: Option<RecoveryOrder>,
    },
    /// Show the cluster's settings, or change those that are given
    Settings(Box<Settings>),
}

/// What to do about scrubbing.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Scrub {
    /// What to do
    #[arg(value_enum, default_value_t = ScrubAction::Status)]
    pub(crate) action: ScrubAction,
    /// Wait for the end of the pass
    #[arg(short, long)]
    pub(crate) wait: bool,
}

/// What to do about scrubbing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScrubAction {
    /// Show how far it is
    Status,
    /// Begin a pass now; goes on with one that is under way
    Start,
    /// Stop where it is
    Pause,
    /// Go on
    Resume,
}

/// What to do about recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RecoveryOrder {
    /// Move nothing but what clients wait for
    Pause,
    /// Go on
    Resume,
}

/// What is given is changed.
#[derive(Args, Debug, Default)]
pub(crate) struct Settings {
    /// Copies of new VDIs
    #[arg(long, value_name = "N")]
    pub(crate) copies: Option<u32>,
    /// Copies below which writes of new VDIs wait
    #[arg(long, value_name = "N")]
    pub(crate) min_copies: Option<u32>,
    /// Most voters that are chosen automatically; odd
    #[arg(long, value_name = "N")]
    pub(crate) max_voters: Option<u32>,
    /// Choose voters automatically
    #[arg(long, value_name = "BOOL")]
    pub(crate) automatic_voters: Option<bool>,
    /// Copy the data of nodes that stay down to others
    #[arg(long, value_name = "BOOL")]
    pub(crate) automatic_out: Option<bool>,
    /// How long a node stays down before that, milliseconds
    #[arg(long, value_name = "MS")]
    pub(crate) out_delay_ms: Option<u64>,
    /// How long a gateway may serve after its last renewal, milliseconds
    #[arg(long, value_name = "MS")]
    pub(crate) lease_ms: Option<u64>,
    /// Created objects of one VDI that may wait for their map entry
    #[arg(long, value_name = "N")]
    pub(crate) pending_limit: Option<u32>,
    /// Acknowledged bytes of one VDI that a gateway keeps until a flush
    #[arg(long, value_name = "SIZE")]
    pub(crate) write_buffer: Option<Size>,
    /// Longest time between flushes that a gateway makes by itself, milliseconds
    #[arg(long, value_name = "MS")]
    pub(crate) flush_interval_ms: Option<u64>,
    /// Most bytes per second that each node moves for recovery; 0: as many as clients leave room for
    #[arg(long, value_name = "SIZE")]
    pub(crate) recovery_rate: Option<Size>,
    /// Time between two passes of scrubbing, milliseconds; 0: only when told to
    #[arg(long, value_name = "MS")]
    pub(crate) scrub_interval_ms: Option<u64>,
    /// Bytes that scrubbing reads on each node in a second, at most
    #[arg(long, value_name = "SIZE")]
    pub(crate) scrub_rate: Option<Size>,
    /// Requests that cannot be served fail after this many milliseconds; 0: they wait
    #[arg(long, value_name = "MS")]
    pub(crate) unavailable_error_after_ms: Option<u64>,
}

#[cfg(test)]
mod tests;
