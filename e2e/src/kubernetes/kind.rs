//! A Kubernetes by kind, for who has Docker: its nodes are containers.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Machines;
use super::node::Daemon;
use super::programs::{part, program};
use crate::process::{Spec, run};

/// A node. Block devices are the machine's, as on a real one.
const WORKER: &str = "  - role: worker\n    extraMounts: [{hostPath: /dev, containerPath: /dev}]\n";

/// Dropping it deletes it.
pub(super) struct Kind {
    name: String,
    nodes: Vec<String>,
    kind: PathBuf,
    kubeconfig: PathBuf,
}

impl Kind {
    /// Starts one of so many nodes beside the control plane. Its files are in `dir`, whose name is its name.
    pub(super) fn start(nodes: u8, images: &[PathBuf], dir: &Path) -> Result<Kind> {
        let name = dir.file_name().unwrap_or_default().display().to_string();
        let begin = std::fs::read_to_string(part("kind.yaml")).context("kind.yaml")?;
        let config = dir.join("kind.yaml");
        std::fs::write(&config, begin + &WORKER.repeat(nodes.into())).context("writing kind.yaml")?;
        // They are called worker, worker2, worker3.
        let number = |index: u8| if index == 1 { String::new() } else { index.to_string() };
        let nodes = (1..=nodes).map(|index| format!("{name}-worker{}", number(index))).collect();
        let made = Kind { name, nodes, kind: program("kind")?, kubeconfig: dir.join("kubeconfig") };
        made.run(&["create", "cluster", "--wait=5m", "--config"], &[&config])?;
        images.iter().try_for_each(|image| made.run(&["load", "image-archive"], &[image]))?;
        Ok(made)
    }

    fn run(&self, words: &[&str], paths: &[&Path]) -> Result<()> {
        let spec = Spec::new("kind", &self.kind).env("KUBECONFIG", &self.kubeconfig);
        spec.args(words).args(paths).args(["--name", &self.name]).output().map(drop)
    }

    fn docker(&self, verb: &str, node: usize) -> Result<()> {
        run("docker", [verb, &self.nodes[node]]).map(drop)
    }
}

impl Machines for Kind {
    fn nodes(&self) -> Vec<String> {
        self.nodes.clone()
    }

    fn client(&self, name: &str, program: &Path) -> Spec {
        Spec::new(name, program).env("KUBECONFIG", &self.kubeconfig)
    }

    fn check(&mut self) -> Result<()> {
        Ok(())
    }

    fn run(&self, node: usize, words: &[&str]) -> Result<String> {
        run("docker", ["exec", &self.nodes[node]].iter().chain(words))
    }

    fn restart(&mut self, node: usize, daemon: Daemon) -> Result<()> {
        let command: &[&str] = match daemon {
            // systemd starts them again.
            Daemon::Containerd => &["systemctl", "kill", "--signal=KILL", "containerd"],
            Daemon::Kubelet => &["systemctl", "kill", "--signal=KILL", "kubelet"],
            // That is a pod.
            Daemon::Proxy => &["pkill", "-KILL", "kube-proxy"],
        };
        run("docker", ["exec", &self.nodes[node]].iter().chain(command)).map(drop)
    }

    fn freeze(&mut self, node: usize) -> Result<()> {
        self.docker("pause", node)
    }

    fn thaw(&mut self, node: usize) -> Result<()> {
        self.docker("unpause", node)
    }

    fn cut_power(&mut self, node: usize) -> Result<()> {
        self.docker("kill", node)
    }

    fn boot(&mut self, node: usize) -> Result<()> {
        self.docker("start", node)
    }

    fn keep_logs(&self, to: &Path) -> Result<()> {
        self.run(&["export", "logs"], &[&to.join("logs")])
    }
}

impl Drop for Kind {
    fn drop(&mut self) {
        if let Err(error) = self.run(&["delete", "cluster"], &[]) {
            eprintln!("cannot delete {}: {error:#}", self.name);
        }
    }
}
