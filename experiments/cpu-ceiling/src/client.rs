//! The load: one connection, `depth` writes on the way.

use crate::SPAN;
use crate::node::{BLOCK, HEADER, Header};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Writes for `limit`; gives the latency of each write in microseconds.
pub fn load(mut socket: UnixStream, depth: usize, limit: Duration) -> io::Result<Vec<u32>> {
    let start = Instant::now();
    let mut sent_at = vec![start; depth];
    let mut free: Vec<usize> = (0..depth).collect();
    let mut latencies = Vec::new();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut out, mut input) = (Vec::new(), vec![0; 1 << 16]);
    let mut have = 0;
    loop {
        if start.elapsed() < limit {
            out.clear();
            for slot in free.drain(..) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let offset = random % (SPAN / BLOCK as u64) * BLOCK as u64;
                Header { id: slot as u64, offset, payload: BLOCK as u64 }.put(&mut out);
                out.resize(out.len() + BLOCK, slot as u8);
                sent_at[slot] = Instant::now();
            }
            socket.write_all(&out)?;
        } else if free.len() == depth {
            return Ok(latencies);
        }
        let read = socket.read(&mut input[have..])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        have += read;
        let mut at = 0;
        while let Some(header) = Header::take(&input[at..have]) {
            let slot = header.id as usize;
            latencies.push(sent_at[slot].elapsed().as_micros() as u32);
            free.push(slot);
            at += HEADER;
        }
        input.copy_within(at..have, 0);
        have -= at;
    }
}
