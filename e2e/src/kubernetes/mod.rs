//! A real Kubernetes on this machine, from nothing but its programs: no Docker, no virtual machines, no registry.
//!
//! The control plane is a host of its own in a [`crate::NetLab`]; every node is another one, with its own processes, mounts
//! and control groups, in which containerd and the kubelet run as they do on a machine. It ends with the test, however
//! that ends. With `KUBERNETES=kind` in the environment the same tests run on kind instead.

mod certificates;
mod control;
mod images;
mod kind;
mod local;
mod node;
pub mod product;
mod programs;

pub use images::{BUSYBOX, POSTGRESQL, SHEEPDOG, image_of, postgresql};
pub use node::Daemon;
pub use programs::program;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{Spec, run, workspace_binary};
use crate::{Scratch, wait_until};
use kind::Kind;
use local::Local;

/// Addresses of services.
const SERVICES: &str = "10.96.0.0/16";
/// Where names are resolved.
const CLUSTER_DNS: &str = "10.96.0.10";
const DOMAIN: &str = "cluster.local";
/// Addresses of the pods of node N.
const PODS: &str = "10.244.N.0/24";
/// The machine may be busy with other things.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where the nodes of a Kubernetes are, and what can be done to them. They are counted from 0 here.
trait Machines {
    /// Names of the nodes in the API.
    fn nodes(&self) -> Vec<String>;
    /// A program that talks to the API as the administrator.
    fn client(&self, name: &str, program: &Path) -> Spec;
    /// Fails if something has ended that should run.
    fn check(&mut self) -> Result<()>;
    /// Runs a command on a node, outside all pods, and returns what it prints.
    fn run(&self, node: usize, words: &[&str]) -> Result<String>;
    /// SIGKILL to a program of a node, and starts it again.
    fn restart(&mut self, node: usize, daemon: Daemon) -> Result<()>;
    /// Stops everything on a node where it is.
    fn freeze(&mut self, node: usize) -> Result<()>;
    /// Lets a frozen node go on.
    fn thaw(&mut self, node: usize) -> Result<()>;
    /// Kills everything on a node at once.
    fn cut_power(&mut self, node: usize) -> Result<()>;
    /// Turns a node on.
    fn boot(&mut self, node: usize) -> Result<()>;
    /// Copies the logs of the nodes.
    fn keep_logs(&self, to: &Path) -> Result<()>;
}

/// A Kubernetes. Dropping it takes it down; if the thread is panicking, what it says of itself is kept first.
pub struct Kubernetes {
    machines: Box<dyn Machines>,
    scratch: Scratch,
}

impl Kubernetes {
    /// Starts one of so many nodes; they are ready, and names of services are resolved.
    ///
    /// # Errors
    /// Not root, a program is missing or cannot be built, or something does not start.
    pub fn start(nodes: u8) -> Result<Kubernetes> {
        Kubernetes::start_with(nodes, &[])
    }

    /// The same, with more images than the usual ones.
    ///
    /// # Errors
    /// Those of [`Kubernetes::start`].
    pub fn start_with(nodes: u8, more: &[PathBuf]) -> Result<Kubernetes> {
        let mut images = images::archives()?;
        images.extend_from_slice(more);
        let scratch = Scratch::new("k8s")?;
        let machines: Box<dyn Machines> = match std::env::var("KUBERNETES").unwrap_or_default().as_str() {
            "" | "local" => Box::new(Local::start(nodes, &images, scratch.path())?),
            "kind" => Box::new(Kind::start(nodes, &images, scratch.path())?),
            other => bail!("KUBERNETES={other}: local (the default) or kind"),
        };
        let mut made = Kubernetes { machines, scratch };
        made.wait_ready()?;
        Ok(made)
    }

    /// Names of the nodes in the API.
    pub fn nodes(&self) -> Vec<String> {
        self.machines.nodes()
    }

    /// Waits until every node is ready, and names are resolved.
    ///
    /// # Errors
    /// That does not happen in five minutes.
    pub fn wait_ready(&mut self) -> Result<()> {
        wait_until("nodes to be ready", PATIENCE, Duration::from_millis(500), || {
            self.check()?;
            let found = self.get(&["nodes"])?;
            let ready = |name: &String| {
                let node =
                    found["items"].as_array()?.iter().find(|node| node["metadata"]["name"] == **name)?;
                let conditions = node["status"]["conditions"].as_array()?;
                conditions.iter().find(|one| one["type"] == "Ready" && one["status"] == "True")
            };
            Ok(self.nodes().iter().all(|name| ready(name).is_some()))
        })?;
        let dns = ["pods", "--selector=k8s-app=kube-dns", "--for=condition=Ready", "--timeout=300s"];
        let patience = Duration::from_millis(500);
        // There is nothing to wait for before the first of them has been made.
        wait_until("DNS", PATIENCE, patience, || {
            Ok(self.kubectl(["wait", "--namespace=kube-system"].iter().chain(&dns)).is_ok())
        })
        .map(drop)
    }

    /// Fails if something has ended that should run.
    ///
    /// # Errors
    /// Its name and its last words.
    pub fn check(&mut self) -> Result<()> {
        self.machines.check()
    }

    /// Runs kubectl as the administrator; returns what it prints.
    ///
    /// # Errors
    /// It says what is wrong.
    pub fn kubectl<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        self.machines.client("kubectl", &program("kubectl")?).args(args).output()
    }

    /// Objects of the API, as kubectl names them.
    ///
    /// # Errors
    /// There are none of the kind or name.
    pub fn get(&self, what: &[&str]) -> Result<Value> {
        let printed = self.kubectl(["get", "--output=json"].iter().chain(what))?;
        serde_json::from_str(&printed).context("kubectl printed no JSON")
    }

    /// Makes objects what a manifest says.
    ///
    /// # Errors
    /// The API refuses it.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let file = self.scratch.path().join("manifest.yaml");
        std::fs::write(&file, manifest).context("writing a manifest")?;
        self.kubectl(["apply".as_ref(), "--filename".as_ref(), file.as_os_str()])
    }

    /// Adds what a cluster needs before anything in it can make snapshots of volumes.
    ///
    /// # Errors
    /// It cannot be built, or is refused.
    pub fn add_snapshots(&self) -> Result<()> {
        self.apply(&std::fs::read_to_string(program("snapshot-crds")?).context("resources of snapshots")?)?;
        let controller =
            std::fs::read_to_string(programs::part("snapshots.yaml")).context("snapshots.yaml")?;
        self.apply(&controller.replace("IMAGE", &image_of("snapshot-controller")?)).map(drop)
    }

    /// Runs a command in a pod, and returns what it prints.
    ///
    /// # Errors
    /// It fails, or the pod does not run.
    pub fn exec(&self, pod: &str, command: &str) -> Result<String> {
        self.kubectl(["exec", pod, "--", "sh", "-c", command])
    }

    /// Runs Helm as the administrator; returns what it prints.
    ///
    /// # Errors
    /// It says what is wrong.
    pub fn helm<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        let spec = self.machines.client("helm", &program("helm")?);
        // Nothing in the home directory is read or written.
        let homes = ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"];
        let dir = self.scratch.path().join("helm");
        homes.iter().fold(spec, |spec, home| spec.env(home, &dir)).args(args).output()
    }

    /// Runs `kubectl sheepdog` as the administrator; returns what it prints.
    ///
    /// # Errors
    /// It says that something is wrong, or is not known.
    pub fn sheepdog(&self, args: &[&str]) -> Result<String> {
        // kubectl looks for its plug-ins, and the plug-in for kubectl, in PATH.
        let plugins = self.scratch.path().join("plugins");
        std::fs::create_dir_all(&plugins).context("making a directory for plug-ins")?;
        let kubectl = program("kubectl")?;
        for (name, target) in [("kubectl", kubectl.clone()), ("kubectl-sheepdog", workspace_binary("dog")?)] {
            let link = plugins.join(name);
            if !link.exists() {
                symlink(target, link).context("making a plug-in")?;
            }
        }
        let path = format!("{}:{}", plugins.display(), std::env::var("PATH").unwrap_or_default());
        self.machines.client("kubectl", &kubectl).env("PATH", path).arg("sheepdog").args(args).output()
    }

    /// Sends SIGKILL to the processes on a node, in pods or not, whose command line has `pattern` in it; there must be one.
    ///
    /// # Errors
    /// There is none.
    pub fn kill(&self, node: usize, pattern: &str) -> Result<()> {
        self.machines.run(node - 1, &["pkill", "-KILL", "-f", pattern]).map(drop)
    }

    /// Runs a command on a node, outside all pods, and returns what it prints.
    ///
    /// # Errors
    /// It fails.
    pub fn run(&self, node: usize, words: &[&str]) -> Result<String> {
        self.machines.run(node - 1, words)
    }

    /// SIGKILL to a program of a node, and starts it again.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self, node: usize, daemon: Daemon) -> Result<()> {
        self.machines.restart(node - 1, daemon)
    }

    /// Everything on a node stands still, as on a machine that hangs.
    ///
    /// # Errors
    /// The kernel cannot freeze groups.
    pub fn freeze(&mut self, node: usize) -> Result<()> {
        self.machines.freeze(node - 1)
    }

    /// A frozen node goes on.
    ///
    /// # Errors
    /// The kernel cannot freeze groups.
    pub fn thaw(&mut self, node: usize) -> Result<()> {
        self.machines.thaw(node - 1)
    }

    /// Everything on a node is killed at once. What is on its disk stays.
    ///
    /// # Errors
    /// The kernel cannot freeze groups.
    pub fn cut_power(&mut self, node: usize) -> Result<()> {
        self.machines.cut_power(node - 1)
    }

    /// Turns a node on.
    ///
    /// # Errors
    /// It does not boot.
    pub fn boot(&mut self, node: usize) -> Result<()> {
        self.machines.boot(node - 1)
    }

    /// Writes a script that is a kubectl of the administrator, and returns where.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_kubectl(&self) -> Result<PathBuf> {
        let file = self.scratch.path().join("kubectl");
        let command = self.machines.client("kubectl", &program("kubectl")?).outlive(true).command();
        std::fs::write(&file, format!("#!/bin/sh\n{command:?} \"$@\"\n")).context("writing a script")?;
        run("chmod", ["+x".as_ref(), file.as_os_str()])?;
        Ok(file)
    }

    /// Writes everything that a person wants to see of a failure to a directory below `E2E_LOGS`.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn keep_logs(&self) -> Result<()> {
        let Some(keep) = std::env::var_os("E2E_LOGS") else { return Ok(()) };
        let keep = Path::new(&keep).join(self.scratch.path().file_name().unwrap_or_default());
        std::fs::create_dir_all(&keep)?;
        let all = "nodes,pods,daemonsets,deployments,statefulsets,jobs,services,persistentvolumeclaims,persistentvolumes,\
                   volumeattachments,storageclasses,csidrivers,csinodes,configmaps";
        for (name, line) in [
            ("objects", format!("get --all-namespaces --output=wide {all}")),
            ("events", "get events --all-namespaces --sort-by=.lastTimestamp".to_owned()),
            ("pods", "describe pods --all-namespaces".to_owned()),
        ] {
            let said = self.kubectl(line.split_whitespace()).unwrap_or_else(|error| format!("{error:#}"));
            std::fs::write(keep.join(name), said)?;
        }
        self.machines.keep_logs(&keep)?;
        eprintln!("---- what the Kubernetes said is kept in {}", keep.display());
        Ok(())
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Err(error) = self.keep_logs()
        {
            eprintln!("cannot keep the logs of a Kubernetes: {error:#}");
        }
    }
}
