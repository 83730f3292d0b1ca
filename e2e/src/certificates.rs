//! Certificates for nodes and clients, in files as the programs take them.

use std::path::Path;

use anyhow::{Context, Result};
use sheep_tls::Pem;

const PARTS: [(&str, &str); 3] = [("--tls-ca", "ca"), ("--tls-certificate", "crt"), ("--tls-key", "key")];

/// Writes a certificate to files of this name in a directory, over what is there.
///
/// # Errors
/// They cannot be written.
pub fn write(directory: &Path, name: &str, pem: &Pem) -> Result<()> {
    for ((_, part), bytes) in PARTS.iter().zip([&pem.ca, &pem.certificate, &pem.key]) {
        std::fs::write(directory.join(format!("{name}.{part}")), bytes).context("file of a certificate")?;
    }
    Ok(())
}

/// Options that name these files, of `sheep` and of `dog`.
pub fn options(directory: &Path, name: &str) -> Vec<String> {
    let path = |part: &str| directory.join(format!("{name}.{part}")).display().to_string();
    PARTS.iter().flat_map(|(option, part)| [(*option).to_owned(), path(part)]).collect()
}
