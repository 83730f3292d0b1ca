//! A memory disk on a Unix socket, to try NBD clients against the protocol code.
//!
//! `memdisk SOCKET [SIZE_IN_MIB]`, then for example `nbdinfo nbd+unix:///disk?socket=SOCKET`.
//! Exports "disk" and, without writing, "readonly".

mod server;

use std::os::unix::net::UnixListener;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let Some(path) = args.next() else {
        return Err(std::io::Error::other("usage: memdisk SOCKET [SIZE_IN_MIB]"));
    };
    let mib = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(64);
    let listener = UnixListener::bind(path)?;
    server::serve(&listener, server::Disk::new(mib << 20));
    Ok(())
}
