//! A load generator for NBD that can ask for durability per write (FUA), which fio's nbd engine cannot.
//!
//! One thread keeps `depth` requests in flight on one connection: each reply is followed by the next request.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::fio::Measured;
use crate::nbd::NbdClient;
use crate::oracle::Random;

/// Random writes with FUA of 4 KiB over the first `span` bytes, for `run`.
///
/// # Errors
/// The connection is lost or a write is refused.
pub fn durable_writes(client: &mut NbdClient, span: u64, depth: usize, run: Duration) -> Result<Measured> {
    const BLOCK: u64 = 4096;
    ensure!(span >= BLOCK && span <= client.size, "span of {span} bytes");
    let mut random = Random::new(span);
    // Different contents each time, so that nothing on the way can leave writes out.
    let mut data = vec![0x5a_u8; 4096];
    let mut sent: std::collections::BTreeMap<u64, Instant> = std::collections::BTreeMap::new();
    let mut latencies: Vec<Duration> = Vec::new();
    let start = Instant::now();
    loop {
        while sent.len() < depth && start.elapsed() < run {
            data[..8].copy_from_slice(&(latencies.len() as u64).to_le_bytes());
            let cookie = client.send_write(random.below(span / BLOCK) * BLOCK, &data, true)?;
            sent.insert(cookie, Instant::now());
        }
        if sent.is_empty() {
            break;
        }
        let cookie = client.take_reply()?;
        latencies.push(sent.remove(&cookie).context("reply to no request")?.elapsed());
    }
    let took = start.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |percent: usize| {
        latencies.get(latencies.len() * percent / 100).map_or(0.0, |l| l.as_secs_f64() * 1e6)
    };
    let operations = latencies.len() as u64;
    Ok(Measured {
        iops: operations as f64 / took,
        mbps: operations as f64 * BLOCK as f64 / took / 1e6,
        p50_us: at(50),
        p99_us: at(99),
        max_us: latencies.last().map_or(0.0, |l| l.as_secs_f64() * 1e6),
        operations,
        client_cpu_us: 0.0,
    })
}
