//! The local object store of a node, over an abstract disk.
//!
//! [`Store`] does no I/O. Operations go in by [`Store::submit`], results come out of [`Store::poll_event`];
//! what must be read and written comes out of [`Store::poll_disk`], results of that go in by
//! [`Store::handle_disk`]. After each call to `submit` or `handle_disk`, poll both until they are empty.
//!
//! ```text
//!   submit(token, Op)  ->            -> poll_disk() -> DiskOp
//!                           Store                             any disk: files, io_uring, simulation
//!   poll_event()       <-            <- handle_disk(id, DiskResult)
//! ```
//!
//! What it promises:
//! - A crash at any instant, then a new [`Store::open`]: every flushed write is there; of what was not
//!   flushed, a prefix in order of submission (over all objects, thus of each object too).
//! - Contents, version, validated epoch and pending flag of an object change in one step.
//! - Each block is its old or its new self. Nothing that is flushed is ever overwritten in place.
//! - Damaged data is found by its checksum and reported, never returned.
//!
//! How: `docs/internals/on-disk-format.md`.

mod api;
mod codec;
mod disk;
mod index;
mod map;
mod mutant;
mod ranges;
mod record;
mod resident;
mod set;
mod shares;
mod space;
mod store;
mod sums;
mod superblock;
mod virtual_disk;

pub use api::{
    BlockState, Body, Event, Extent, Header, InspectResult, LayoutResult, Op, Outcome, Piece, ReadResult,
    Stats, StoreConfig, StoreError, StoreIdentity, Usage,
};
pub use disk::{DiskDone, DiskError, DiskOp, DiskOpId, DiskOpKind, DiskResult, FileId};
pub use mutant::Mutant;
pub use set::{Condition, Disk, NOTES, SetEvent, StoreSet};
pub use store::Store;
pub use virtual_disk::{Fate, VirtualDisk};
