//! The way in: what a volume offers ([`Op`], [`Reply`]) and the frontends that stand on it.
//!
//! Like all protocol code of Sheepdog this crate does no I/O: no socket, clock, thread or file. A driver
//! moves bytes between a socket and [`nbd::Connection`], hands the [`Request`]s it yields to a volume, and
//! gives the [`Reply`]s back. The two types to know are [`Op`] (the contract of a volume) and
//! [`nbd::Connection`] (one NBD client).

mod buffer;
pub mod nbd;
mod volume_io;

pub use buffer::{ALIGNMENT, AlignedBuf, BufferPool};
pub use volume_io::{BlockExtent, ChangeExtent, ErrorKind, Extent, Op, Reply, Request, RequestHandle};
