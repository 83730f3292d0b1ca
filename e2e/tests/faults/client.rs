//! A client like a virtual machine: keeps a request until some node has answered it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sheep_e2e::oracle::{BLOCK, Random};
use sheep_e2e::{Cluster, NbdClient, Oracle};

/// A write may wait this long for a take-over before the test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Stubborn {
    volume: &'static str,
    client: Option<NbdClient>,
    /// The node it is connected to, or tries next.
    pub(crate) node: u8,
    oracle: Oracle,
    random: Random,
    pub(crate) longest: Duration,
}

impl Stubborn {
    pub(crate) fn new(volume: &'static str, seed: u64) -> Stubborn {
        Stubborn {
            volume,
            client: None,
            node: 1,
            oracle: Oracle::new(16 * 256, seed),
            random: Random::new(seed),
            longest: Duration::ZERO,
        }
    }

    /// One request, until it is answered.
    pub(crate) fn step(&mut self, cluster: &mut Cluster) -> Result<()> {
        let block = self.random.below(self.oracle.len() as u64) as usize;
        let reads = self.random.below(4) == 0;
        // One contents per attempt: whether an attempt without an answer took effect is open until a read tells.
        let start = Instant::now();
        loop {
            match self.attempt(cluster, block, reads) {
                Ok(()) => break,
                Err(error) if error.downcast_ref::<Violation>().is_some() => return Err(error),
                Err(error) if start.elapsed() > PATIENCE => {
                    return Err(error.context("no answer for too long"));
                }
                Err(_) => {
                    self.client = None;
                    self.node = self.node % 3 + 1;
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
        self.longest = self.longest.max(start.elapsed());
        Ok(())
    }

    fn attempt(&mut self, cluster: &mut Cluster, block: usize, reads: bool) -> Result<()> {
        if self.client.is_none() {
            let socket = cluster.node(self.node).nbd_socket();
            self.client = Some(NbdClient::unix(&socket, self.volume, Duration::from_secs(5))?);
        }
        let client = self.client.as_mut().context("connected")?;
        let at = block as u64 * BLOCK as u64;
        if reads {
            let mut buffer = vec![0; BLOCK];
            client.read(at, &mut buffer)?;
            return self.oracle.check(block, &buffer).map_err(|error| Violation(error.to_string()).into());
        }
        let data = self.oracle.send(block);
        client.write(at, &data, false)?;
        self.oracle.answered(block);
        Ok(())
    }

    /// Reads everything back through each node.
    pub(crate) fn verify(&mut self, cluster: &mut Cluster) -> Result<()> {
        for node in [1, 2, 3] {
            self.client = None;
            cluster.wait_closed(self.volume)?;
            let socket = cluster.node(node).nbd_socket();
            let mut reader = NbdClient::unix(&socket, self.volume, PATIENCE)?;
            let mut buffer = vec![0; BLOCK];
            for block in 0..self.oracle.len() {
                reader.read(block as u64 * BLOCK as u64, &mut buffer)?;
                self.oracle.check(block, &buffer).with_context(|| format!("at node {node}"))?;
            }
        }
        Ok(())
    }
}

/// Something that no fault excuses.
#[derive(Debug)]
struct Violation(String);

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Violation {}
