//! One node: a host with its own processes, mounts, name and control groups, on which containerd, kubelet and kube-proxy run.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::certificates::Authority;
use super::programs::{part, program};
use super::{CLUSTER_DNS, DOMAIN, PODS};
use crate::leaks::start_ticks;
use crate::process::{Proc, Spec, run};
use crate::wait_until;

/// A program that a node runs beside its containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Daemon {
    /// Starts and stops containers, which go on when it dies.
    Containerd,
    /// Does on the node what the API says.
    Kubelet,
    /// Makes addresses of services work.
    Proxy,
}

impl Daemon {
    const ALL: [Daemon; 3] = [Daemon::Containerd, Daemon::Kubelet, Daemon::Proxy];

    fn name(self) -> &'static str {
        match self {
            Daemon::Containerd => "containerd",
            Daemon::Kubelet => "kubelet",
            Daemon::Proxy => "kube-proxy",
        }
    }
}

/// A node. Dropping it kills everything in it.
pub(super) struct Node {
    name: String,
    address: Ipv4Addr,
    dir: PathBuf,
    logs: PathBuf,
    group: String,
    netns: u32,
    daemons: BTreeMap<Daemon, Proc>,
    /// The first process of the node, or rather the one that waits for it. With it everything else ends.
    init: Option<Proc>,
}

const PATIENCE: Duration = Duration::from_secs(120);

/// Free space of the machine's disk below which nodes would end pods.
const LEAST_DISK: &str = "512Mi";

/// Network of the pods of node number `index`.
pub(super) fn pods_of(index: u8) -> String {
    PODS.replace('N', &index.to_string())
}

fn only_child(pid: u32) -> Option<u32> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?.trim().parse().ok()
}

impl Node {
    /// Plans node number `index`; files are in `dir`, and its group is below `run`.
    pub(super) fn plan(
        index: u8,
        (address, netns): (Ipv4Addr, u32),
        dir: &Path,
        logs: &Path,
        run: &str,
    ) -> Result<Node> {
        let name = format!("n{index}");
        let dir = dir.join(&name);
        std::fs::create_dir_all(dir.join("cni")).context("directory of a node")?;
        let network = json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [{
                // Without a bridge all packets between pods pass the rules of kube-proxy.
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": pods_of(index)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": "/run/cni",
                },
            }],
        });
        std::fs::write(dir.join("cni/pods.conflist"), network.to_string()).context("pod network")?;
        let (logs, group) = (logs.to_owned(), format!("{run}/{name}"));
        Ok(Node { name, address, dir, logs, group, netns, daemons: BTreeMap::new(), init: None })
    }

    /// Its name in the API.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Turns it on, and starts containerd.
    pub(super) fn boot(&mut self, authority: &Authority, server: &str) -> Result<()> {
        self.init = None;
        let booted = Spec::new(format!("node {}", self.name), "unshare")
            .args(["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--", "sh"])
            .args([part("node.sh").as_os_str(), "boot".as_ref(), self.name.as_ref()])
            .args([self.dir.as_os_str(), self.group.as_ref()])
            .in_namespace_of(Some(self.netns))
            .log(self.logs.join(format!("{}.log", self.name)));
        self.init = Some(booted.spawn()?);
        let first = format!("node {} to boot", self.name);
        wait_until(&first, PATIENCE, Duration::from_millis(20), || Ok(self.inside("/run/booted").exists()))?;
        self.write_configuration(authority, server)?;
        self.start(Daemon::Containerd)?;
        wait_until("containerd", PATIENCE, Duration::from_millis(100), || {
            Ok(self.command("ctr").arg("version").output().is_ok())
        })?;
        Ok(())
    }

    /// Gives the first of the nodes its images, after it has been booted. They stay on its disk.
    pub(super) fn import(&self, images: &[PathBuf]) -> Result<()> {
        images.iter().try_for_each(|image| {
            self.command("ctr").args(["-n", "k8s.io", "images", "import"]).arg(image).output().map(drop)
        })
    }

    /// Gives a node that has not been booted yet the images of one that has just got them. That takes neither time nor space: the
    /// files of images are never changed, so the nodes share them. What containerd notes of them is each node's own.
    pub(super) fn share_images_of(&self, other: &Node) -> Result<()> {
        let (from, lib) = (other.dir.join("lib/containerd"), self.dir.join("lib"));
        std::fs::create_dir_all(&lib).context("disk of a node")?;
        run("cp", ["--archive".as_ref(), "--link".as_ref(), from.as_os_str(), lib.as_os_str()])?;
        let notes = run(
            "find",
            [from.as_os_str(), "-name".as_ref(), "*.db".as_ref(), "-printf".as_ref(), "%P\n".as_ref()],
        )?;
        notes.lines().try_for_each(|note| {
            let (theirs, own) = (from.join(note), lib.join("containerd").join(note));
            let words = ["--remove-destination".as_ref(), theirs.as_os_str(), own.as_os_str()];
            run("cp", words).map(drop)
        })
    }

    /// Becomes a node of the cluster.
    pub(super) fn join(&mut self) -> Result<()> {
        self.start(Daemon::Kubelet)?;
        self.start(Daemon::Proxy)
    }

    /// Waits until its kubelet works. One that finds a containerd that has only just started gives up, and is started again, as
    /// systemd does it.
    pub(super) fn settle(&mut self) -> Result<()> {
        let what = format!("the kubelet of {}", self.name);
        wait_until(&what, PATIENCE, Duration::from_millis(200), || {
            if !self.daemons.get_mut(&Daemon::Kubelet).is_some_and(Proc::is_running) {
                self.start(Daemon::Kubelet)?;
            }
            let health = ["--silent", "--fail", "http://127.0.0.1:10248/healthz"];
            Ok(self.command("curl").args(health).output().is_ok())
        })
        .map(drop)
    }

    /// A path of the node, as the machine sees it.
    fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.first_process().unwrap_or(0)))
    }

    /// The first process of the node.
    fn first_process(&self) -> Option<u32> {
        only_child(self.init.as_ref()?.pid())
    }

    /// A program in the namespaces and control groups of the node.
    pub(super) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Spec {
        let name = format!("{} on {}", program.as_ref().display(), self.name);
        // The node's own process 1 is in all of them.
        let target = self.first_process().unwrap_or(0).to_string();
        Spec::new(name, "sh")
            .args([part("node.sh").as_os_str(), "run".as_ref(), self.group.as_ref()])
            .args([
                "nsenter", "--target", &target, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup",
                "--",
            ])
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .arg(program)
    }

    /// Starts one of its programs.
    pub(super) fn start(&mut self, daemon: Daemon) -> Result<()> {
        let config = self.dir.join(daemon.name());
        let name = daemon.name();
        let command = match daemon {
            Daemon::Containerd => self.command(name).arg("--config").arg(config),
            Daemon::Kubelet => self
                .command(program(name)?)
                .arg(format!("--config={}", config.display()))
                .arg(format!("--kubeconfig={}", config.with_extension("user").display()))
                .arg(format!("--hostname-override={}", self.name))
                .arg(format!("--node-ip={}", self.address)),
            Daemon::Proxy => self.command(program(name)?).arg(format!("--config={}", config.display())),
        };
        let log = self.logs.join(format!("{}-{name}.log", self.name));
        let process = command.log(log).spawn()?;
        self.daemons.insert(daemon, process);
        Ok(())
    }

    /// SIGKILL to one of its programs.
    pub(super) fn kill(&mut self, daemon: Daemon) -> Result<()> {
        let mut entrance = self.daemons.remove(&daemon).context("it does not run")?;
        let inside = only_child(entrance.pid());
        entrance.kill();
        // That was nsenter; the program itself dies of it a moment later, and its successor must not meet it.
        let gone = || Ok(inside.is_none_or(|pid| start_ticks(pid).is_none()));
        wait_until(daemon.name(), PATIENCE, Duration::from_millis(5), gone).map(drop)
    }

    /// Stops everything in it where it is, or lets it go on.
    pub(super) fn freeze(&self, stop: bool) -> Result<()> {
        let verb = if stop { "freeze" } else { "thaw" };
        run("sh", [part("node.sh").as_os_str(), verb.as_ref(), self.group.as_ref()]).map(drop)
    }

    /// Kills everything in it at once, as a power cut does. What is on its disk stays.
    pub(super) fn cut_power(&mut self) -> Result<()> {
        self.init = None;
        // What is frozen does not die.
        let thawed = self.freeze(false);
        self.daemons.clear();
        thawed
    }

    /// Fails if it has lost a process that should run.
    pub(super) fn check(&mut self) -> Result<()> {
        let all = self.init.iter_mut().chain(self.daemons.values_mut());
        all.into_iter().try_for_each(|process| {
            ensure!(process.is_running(), "{} ended:\n{}", process.name(), process.log_tail(10));
            Ok(())
        })
    }

    fn write_configuration(&self, authority: &Authority, server: &str) -> Result<()> {
        let Self { name, address, dir, .. } = self;
        let file = |daemon: Daemon| dir.join(daemon.name());
        let subject = format!("/O=system:nodes/CN=system:node:{name}");
        authority.issue(name, &subject, &format!("DNS:{name},IP:{address}"))?;
        let user = authority.user(&format!("user-{name}"), &subject, server)?;
        std::fs::copy(user, file(Daemon::Kubelet).with_extension("user")).context("the kubelet's user")?;
        let proxy = authority.user(&format!("proxy-{name}"), "/CN=system:kube-proxy", server)?;
        for daemon in Daemon::ALL {
            let text = match daemon {
                Daemon::Containerd => containerd(dir),
                Daemon::Kubelet => kubelet(name, authority),
                Daemon::Proxy => kube_proxy(name, &proxy),
            };
            std::fs::write(file(daemon), text).with_context(|| format!("configuration of {daemon:?}"))?;
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.cut_power() {
            eprintln!("cannot end node {}: {error:#}", self.name);
        }
    }
}

/// Configuration of containerd 1.6. Without CAP_SYS_RESOURCE no container can be made safer from the OOM killer than
/// containerd itself is, hence `restrict_oom_score_adj`.
fn containerd(dir: &Path) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"#,
        super::images::PAUSE,
        dir.join("cni").display()
    )
}

fn kubelet(name: &str, authority: &Authority) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "failSwapOn": false,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": authority.certificate("ca")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": authority.certificate(name),
        "tlsPrivateKeyFile": authority.key(name),
        "clusterDNS": [CLUSTER_DNS],
        "clusterDomain": DOMAIN,
        "resolvConf": "/dev/null",
        // The disk is the machine's, which may be large and nearly full: what a share of it is says nothing.
        "evictionHard": {
            "memory.available": "50Mi", "nodefs.available": LEAST_DISK, "imagefs.available": LEAST_DISK,
        },
        "imageGCHighThresholdPercent": 100,
        // Tests kill a program more often than people see it end: they would wait minutes for it.
        "crashLoopBackOff": {"maxContainerRestartPeriod": "3s"},
        "serializeImagePulls": false,
        "logging": {"verbosity": 2},
    })
    .to_string()
}

fn kube_proxy(name: &str, user: &Path) -> String {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": name,
        "clientConnection": {"kubeconfig": user},
        "clusterCIDR": PODS.replace("N.0/24", "0.0/16"),
        // These are settings of the whole machine.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
    .to_string()
}
