//! A network of its own: one namespace per host, joined by a bridge in a namespace of its own.
//!
//! The namespaces have no names: each lives as long as the sleeping process that holds it. Nothing in the namespace
//! of the machine is touched, and when the test dies the kernel takes everything down.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::leaks;
use crate::process::{Proc, Spec, run};
use crate::scratch::host;

/// Which direction of a host's traffic is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It hears nobody but is heard.
    In,
    /// It is not heard but hears.
    Out,
    /// Both.
    Both,
}

struct Host {
    holder: Proc,
}

/// Hosts 1 to n at 10.77.0.x on one bridge. Host 0 of the array is reserved for clients (10.77.0.254).
pub struct NetLab {
    bridge: Host,
    hosts: Vec<Host>,
}

const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 0);
const CLIENT: u8 = 254;

impl NetLab {
    /// Makes a network of `hosts` hosts and one client.
    ///
    /// # Errors
    /// Not root, or the kernel lacks bridges or veth.
    pub fn new(hosts: u8) -> Result<NetLab> {
        let bridge = Host::new("bridge")?;
        bridge.ip("link add br0 type bridge")?;
        bridge.ip("link set br0 up")?;
        let mut lab = NetLab { bridge, hosts: Vec::new() };
        for index in 0..=hosts {
            lab.attach(index)?;
        }
        Ok(lab)
    }

    fn attach(&mut self, index: u8) -> Result<()> {
        let added = Host::new(&format!("host {index}"))?;
        let inside = added.holder.pid();
        let last = if index == 0 { CLIENT } else { index };
        self.bridge.ip(&format!("link add p{index} type veth peer name eth0 netns {inside}"))?;
        self.bridge.ip(&format!("link set p{index} master br0 up"))?;
        added.ip("link set lo up")?;
        added.ip(&format!("addr add {}/24 dev eth0", host(NETWORK, last)))?;
        added.ip("link set eth0 up")?;
        added.nft("add table inet cut")?;
        added.nft("add chain inet cut in { type filter hook input priority 0; }")?;
        added.nft("add chain inet cut out { type filter hook output priority 0; }")?;
        self.hosts.push(added);
        Ok(())
    }

    /// Address of host `index` (1..), or of the client (0).
    pub fn address(&self, index: u8) -> Ipv4Addr {
        host(NETWORK, if index == 0 { CLIENT } else { index })
    }

    /// A process whose network namespace is host `index`'s, for [`Spec::in_namespace_of`].
    pub fn holder(&self, index: u8) -> u32 {
        self.hosts[usize::from(index)].holder.pid()
    }

    /// Cuts a host off from all others (its own loopback still works).
    ///
    /// # Errors
    /// nft(8) fails.
    pub fn cut(&self, index: u8, cut: Cut) -> Result<()> {
        let host = &self.hosts[usize::from(index)];
        if cut != Cut::Out {
            host.nft("add rule inet cut in iifname eth0 drop")?;
        }
        if cut != Cut::In {
            host.nft("add rule inet cut out oifname eth0 drop")?;
        }
        Ok(())
    }

    /// Drops what host `from` sends to host `to`, and nothing else.
    ///
    /// # Errors
    /// nft(8) fails.
    pub fn cut_path(&self, from: u8, to: u8) -> Result<()> {
        let rule = format!("add rule inet cut in ip saddr {} drop", self.address(from));
        self.hosts[usize::from(to)].nft(&rule)
    }

    /// Drops `percent` of the packets that a host receives, at random.
    ///
    /// # Errors
    /// nft(8) fails.
    pub fn lose(&self, index: u8, percent: u8) -> Result<()> {
        let rule = format!("add rule inet cut in iifname eth0 numgen random mod 100 < {percent} drop");
        self.hosts[usize::from(index)].nft(&rule)
    }

    /// Ends every cut and loss at a host.
    ///
    /// # Errors
    /// nft(8) fails.
    pub fn heal(&self, index: u8) -> Result<()> {
        self.hosts[usize::from(index)].nft("flush table inet cut")
    }

    /// Ends every cut and loss.
    ///
    /// # Errors
    /// nft(8) fails.
    pub fn heal_all(&self) -> Result<()> {
        (0..self.hosts.len()).try_for_each(|index| self.heal(u8::try_from(index).unwrap_or(u8::MAX)))
    }
}

impl Host {
    fn new(name: &str) -> Result<Host> {
        // unshare(1) and sleep(1) replace one another, so the child itself is in the new namespace.
        let holder = Spec::new(format!("namespace of {name}"), "unshare")
            .args(["--net", "--", "sleep", "infinity"])
            .spawn()?;
        let own = std::fs::read_link("/proc/self/ns/net")?;
        let link = format!("/proc/{}/ns/net", holder.pid());
        crate::wait_until(
            "network namespace",
            std::time::Duration::from_secs(5),
            std::time::Duration::from_millis(2),
            || Ok(std::fs::read_link(&link).is_ok_and(|there| there != own)),
        )?;
        leaks::record_namespace(holder.pid(), name);
        Ok(Host { holder })
    }

    fn ip(&self, line: &str) -> Result<()> {
        self.inside("ip", line)
    }

    fn nft(&self, line: &str) -> Result<()> {
        self.inside("nft", line)
    }

    fn inside(&self, program: &str, line: &str) -> Result<()> {
        let net = format!("--net=/proc/{}/ns/net", self.holder.pid());
        let words = line.split_whitespace();
        run("nsenter", [net.as_str(), "--", program].into_iter().chain(words)).map(drop)
    }
}
