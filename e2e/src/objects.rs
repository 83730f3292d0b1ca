//! Volumes whose contents follow from the place, written and checked by whole objects.

use anyhow::{Result, ensure};

use crate::nbd::NbdClient;
use crate::oracle::BLOCK;

/// Bytes of an object.
pub const OBJECT: u64 = 4 << 20;

/// Writes whole objects from the start of the volume on, each block with its number, and flushes.
///
/// # Errors
/// A write is refused.
pub fn fill(client: &mut NbdClient, objects: u64) -> Result<()> {
    let mut object = vec![0; OBJECT as usize];
    for index in 0..objects {
        for (block, bytes) in (0..).zip(object.chunks_exact_mut(BLOCK)) {
            bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&number(index, block)));
        }
        client.write(index * OBJECT, &object, false)?;
    }
    client.flush()
}

/// Reads three blocks of each of these objects; the first ones are left for others to write to.
///
/// # Errors
/// A read is refused, or shows something else than [`fill`] wrote.
pub fn verify(client: &mut NbdClient, objects: u64) -> Result<()> {
    let mut bytes = vec![0; BLOCK];
    for index in 0..objects {
        for block in [1, 511, 1023] {
            client.read(index * OBJECT + block * BLOCK as u64, &mut bytes)?;
            let right = bytes.chunks_exact(8).all(|word| word == number(index, block));
            ensure!(right, "object {index}, block {block} is not what was written");
        }
    }
    Ok(())
}

fn number(index: u64, block: u64) -> [u8; 8] {
    (index << 32 | block).to_le_bytes()
}
