//! A Kubernetes of this machine's own: hosts of a [`NetLab`], and the programs of Kubernetes on them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::Machines;
use super::certificates::Authority;
use super::control::{Control, dns_manifest};
use super::node::{Daemon, Node, pods_of};
use super::programs::{part, program};
use crate::process::{Spec, run};
use crate::{NetLab, leaks};

/// Dropping it takes it down.
pub(super) struct Local {
    nodes: Vec<Node>,
    control: Control,
    authority: Authority,
    _lab: NetLab,
    _janitor: Janitor,
    dir: PathBuf,
}

/// A process that outlives this one, and removes what it leaves: also when it is killed.
struct Janitor {
    process: Child,
}

impl Janitor {
    fn start(run: &str, dir: &Path) -> Result<Janitor> {
        let script = part("node.sh");
        let mut command = Command::new("setsid");
        command.arg("sh").arg(script).args(["clean", run]).arg(dir).stdin(Stdio::piped());
        Ok(Janitor { process: command.spawn().context("starting who cleans up")? })
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        // The end of its input is its sign.
        drop(self.process.stdin.take());
        if let Err(error) = self.process.wait() {
            eprintln!("cannot wait for the clean-up of a Kubernetes: {error}");
        }
    }
}

impl Local {
    /// Starts one of so many nodes. Its files are in `dir`, whose name is the name of the run.
    pub(super) fn start(nodes: u8, images: &[PathBuf], dir: &Path) -> Result<Local> {
        let run = dir.file_name().unwrap_or_default().display().to_string();
        let janitor = Janitor::start(&run, dir)?;
        let logs = dir.join("logs");
        std::fs::create_dir(&logs).context("directory of logs")?;
        let lab = NetLab::new(nodes)?;
        lay_routes(&lab, nodes)?;
        let authority = Authority::new(dir.join("pki"))?;
        let control = Control::start(&authority, lab.address(0), lab.holder(0), &logs)?;
        let planned = (1..=nodes).map(|index| {
            let place = (lab.address(index), lab.holder(index));
            Node::plan(index, place, dir, &logs, &run)
        });
        let nodes = planned.collect::<Result<Vec<_>>>()?;
        let dir = dir.to_owned();
        let mut made = Local { nodes, control, authority, _lab: lab, _janitor: janitor, dir };
        if let Some((first, others)) = made.nodes.split_first_mut() {
            first.boot(&made.authority, &made.control.server)?;
            first.import(images)?;
            others.iter().try_for_each(|node| node.share_images_of(first))?;
            others.iter_mut().try_for_each(|node| node.boot(&made.authority, &made.control.server))?;
        }
        made.nodes.iter_mut().try_for_each(Node::join)?;
        made.nodes.iter_mut().try_for_each(Node::settle)?;
        record_groups(&run);
        let manifest = made.dir.join("dns.yaml");
        std::fs::write(&manifest, dns_manifest()?).context("writing a manifest")?;
        let apply = ["apply".as_ref(), "--filename".as_ref(), manifest.as_os_str()];
        made.client("kubectl", &program("kubectl")?).args(apply).output()?;
        Ok(made)
    }
}

impl Machines for Local {
    fn nodes(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name().to_owned()).collect()
    }

    fn client(&self, name: &str, program: &Path) -> Spec {
        self.control.client(name, program)
    }

    fn check(&mut self) -> Result<()> {
        self.control.check()?;
        self.nodes.iter_mut().try_for_each(Node::check)
    }

    fn run(&self, node: usize, words: &[&str]) -> Result<String> {
        self.nodes[node].command(words[0]).args(&words[1..]).output()
    }

    fn restart(&mut self, node: usize, daemon: Daemon) -> Result<()> {
        self.nodes[node].kill(daemon)?;
        self.nodes[node].start(daemon)?;
        self.nodes[node].settle()
    }

    fn freeze(&mut self, node: usize) -> Result<()> {
        self.nodes[node].freeze(true)
    }

    fn thaw(&mut self, node: usize) -> Result<()> {
        self.nodes[node].freeze(false)
    }

    fn cut_power(&mut self, node: usize) -> Result<()> {
        self.nodes[node].cut_power()
    }

    fn boot(&mut self, node: usize) -> Result<()> {
        self.nodes[node].boot(&self.authority, &self.control.server)?;
        self.nodes[node].join()?;
        self.nodes[node].settle()
    }

    fn keep_logs(&self, to: &Path) -> Result<()> {
        run("cp", ["-r".as_ref(), self.dir.join("logs").as_os_str(), to.as_os_str()])?;
        for node in &self.nodes {
            let pods = self.dir.join(node.name()).join("log/pods");
            let to = to.join("logs").join(format!("{}-pods", node.name()));
            run("cp", ["-r".as_ref(), pods.as_os_str(), to.as_os_str()])?;
        }
        Ok(())
    }
}

/// Every host finds the pods of every node, and every node has a way for addresses of services, of which kube-proxy
/// makes others.
fn lay_routes(lab: &NetLab, nodes: u8) -> Result<()> {
    let ip = |host: u8, line: String| {
        let spec = Spec::new("ip", "ip").in_namespace_of(Some(lab.holder(host)));
        spec.args(line.split_whitespace()).output().map(drop)
    };
    for host in 0..=nodes {
        for other in (1..=nodes).filter(|other| *other != host) {
            ip(host, format!("route add {} via {}", pods_of(other), lab.address(other)))?;
        }
        if host > 0 {
            ip(host, format!("route add default via {}", lab.address(0)))?;
        }
    }
    Ok(())
}

/// Control groups are directories.
fn record_groups(run: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let below = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let groups = below.chain([root.to_owned()]).map(|tree| tree.join(run));
    groups.filter(|group| group.exists()).for_each(|group| leaks::record_directory(&group));
}
