//! The control engine of a node, without I/O: ring, log and replicated state put together.
//!
//! [`Control`] runs on a thread of its own in the daemon. The data path is the other half of a node; all that
//! flows to it is the applied state ([`ControlOutput::Publish`]), the lease ([`ControlOutput::Lease`]) and
//! answers to proposals. Packets, completions and time come in as arguments; effects go out as values, in the
//! order in which they must happen. Call order: any `handle_*` or `propose`, then [`Control::poll_output`] until
//! it gives `None`, then sleep until [`Control::poll_timeout`].

mod apply;
mod config;
mod control;
mod convert;
mod maintain;
mod proposals;
mod watch;

pub use config::{ControlConfig, NodeProfile};
pub use control::{Control, ControlError, ControlOutput, FileId, Published};
