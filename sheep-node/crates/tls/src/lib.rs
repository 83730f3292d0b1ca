//! Certificates of a cluster, and connections on which both sides show theirs.
//!
//! A cluster has one CA. What a certificate may be used for stands in its name, which is a role and no address: nodes
//! change their addresses. TLS 1.3 only, without resumption: every connection is made with the certificates of its time.

#[cfg(feature = "authority")]
pub mod authority;
mod error;
mod identity;
mod live;
mod server;
mod stream;
#[cfg(test)]
mod tests;

pub use error::{TlsError, sentence};
pub use identity::{Identity, Pem, Role};
pub use live::{Certificates, Files};
pub use server::incoming;
pub use stream::{connect, connect_lazy};
