//! Clusters of real `sheep` processes, on the loopback or in a [`NetLab`].

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::dog::{Dog, count, text};
use crate::netlab::NetLab;
use crate::process::{Proc, Signal, Spec, workspace_binary};
use crate::scratch::{Scratch, host, loopback_network};
use crate::wait_until;

/// How long a node may take from start to serving, on a loaded machine.
pub const READY: Duration = Duration::from_secs(120);
/// Line in the log that says a node listens everywhere.
pub const READY_LINE: &str = "sheep ready";
/// Port of NBD over TCP, on each node's own address.
pub const NBD_PORT: u16 = 10809;

/// What a node is started with, besides its place.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// Further command line arguments.
    pub extra: Vec<String>,
    /// Start with `--gateway`: no store.
    pub gateway: bool,
    /// Find the others by seed instead of by the rendezvous directory of the machine.
    pub seeds: Vec<String>,
}

/// One node: its directory, address and, while it runs, its process.
pub struct Node {
    /// Number, from 1.
    pub index: u8,
    /// The directory of its store.
    pub dir: PathBuf,
    /// The address of everything it listens on.
    pub address: Ipv4Addr,
    options: NodeOptions,
    process: Option<Proc>,
    netns_of: Option<u32>,
    rendezvous: PathBuf,
    outlive: bool,
}

impl Node {
    /// Command line of this node; `new` makes the cluster.
    pub fn arguments(&self, new: bool) -> Vec<String> {
        let mut args = Vec::new();
        if new {
            args.push("--new".to_owned());
        }
        args.push(self.dir.display().to_string());
        let ip = self.address;
        let mut pair = |name: &str, value: String| args.extend([name.to_owned(), value]);
        pair("--node-listen", ip.to_string());
        pair("--grpc", format!("{ip}:7002"));
        pair("--http", format!("{ip}:7003"));
        pair("--nbd-tcp", format!("{ip}:{NBD_PORT}"));
        pair("--nbd-unix", self.nbd_socket().display().to_string());
        pair("--rendezvous", self.rendezvous.display().to_string());
        for seed in &self.options.seeds {
            pair("--seed", seed.clone());
        }
        if self.options.gateway {
            args.push("--gateway".to_owned());
        }
        args.extend(self.options.extra.iter().cloned());
        args
    }

    /// Its NBD socket.
    pub fn nbd_socket(&self) -> PathBuf {
        self.dir.with_extension("nbd")
    }

    /// URI of a volume at its NBD socket.
    pub fn nbd_uri(&self, volume: &str) -> String {
        crate::nbd::unix_uri(&self.nbd_socket(), volume)
    }

    /// Its log file.
    pub fn log_path(&self) -> PathBuf {
        self.dir.with_extension("log")
    }

    /// Starts the process without waiting.
    ///
    /// # Errors
    /// It runs already, or cannot be started.
    pub fn launch(&mut self, new: bool) -> Result<()> {
        if self.is_running() {
            bail!("node {} runs already", self.index);
        }
        let sheep = workspace_binary("sheep")?;
        let process = Spec::new(format!("sheep {}", self.index), sheep)
            .args(self.arguments(new))
            .in_namespace_of(self.netns_of)
            .log(self.log_path())
            .outlive(self.outlive)
            .spawn()?;
        self.process = Some(process);
        Ok(())
    }

    /// Waits until the node says that it listens; `seen` is how often it had said so before this start.
    ///
    /// # Errors
    /// It ends, or takes longer than [`READY`].
    pub fn wait_ready(&mut self, seen: usize) -> Result<Duration> {
        let what = format!("node {} ready", self.index);
        wait_until(&what, READY, Duration::from_millis(25), || {
            let process = self.process.as_mut().context("not started")?;
            if process.log_text().matches(READY_LINE).count() > seen {
                return Ok(true);
            }
            if !process.is_running() {
                bail!("{} ended:\n{}", process.name(), process.log_tail(20));
            }
            Ok(false)
        })
    }

    /// Waits until the node is up in its cluster in this run, and may act.
    ///
    /// # Errors
    /// It takes longer than [`READY`].
    pub fn wait_member(&self) -> Result<Duration> {
        let dog = self.dog()?;
        let what = format!("node {} up in its cluster", self.index);
        wait_until(&what, READY, Duration::from_millis(100), || {
            let (Ok(me), Ok(nodes)) = (dog.json(&["node", "info"]), dog.nodes()) else { return Ok(false) };
            let known = nodes.iter().find(|node| text(node, "id") == text(&me, "id"));
            let same_run =
                |node| text(node, "state") == "up" && count(node, "incarnation") == count(&me, "incarnation");
            Ok(me["primary"] == true && known.is_some_and(same_run))
        })
    }

    /// Starts (again) and waits until it serves.
    ///
    /// # Errors
    /// As [`Node::launch`], [`Node::wait_ready`] and [`Node::wait_member`].
    pub fn start(&mut self) -> Result<Duration> {
        let (seen, begin) = (self.times_ready(), Instant::now());
        self.launch(false)?;
        self.wait_ready(seen)?;
        self.wait_member()?;
        Ok(begin.elapsed())
    }

    /// How often its log says that it listens.
    pub fn times_ready(&self) -> usize {
        std::fs::read_to_string(self.log_path()).unwrap_or_default().matches(READY_LINE).count()
    }

    /// Whether its process exists.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Proc::is_running)
    }

    /// Its process.
    ///
    /// # Errors
    /// It has never been started.
    pub fn process(&mut self) -> Result<&mut Proc> {
        self.process.as_mut().context("node was never started")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill();
        }
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// It was never started.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process()?.signal(signal)
    }

    /// The command line tool, talking to this node.
    ///
    /// # Errors
    /// `dog` has not been built.
    pub fn dog(&self) -> Result<Dog> {
        Ok(Dog::new(self.dir.display().to_string())?.in_namespace_of(self.netns_of))
    }
}

/// A cluster. Dropping it kills its nodes; if the thread is panicking, the ends of their logs are printed first.
pub struct Cluster {
    /// Its nodes; index 0 is node 1.
    pub nodes: Vec<Node>,
    // Dropped after the nodes (fields drop in order), whose files are in it.
    scratch: Scratch,
}

impl Cluster {
    /// Lays out (without starting) nodes on the loopback, each with an address of its own.
    ///
    /// # Errors
    /// No scratch directory.
    pub fn plan(nodes: u8) -> Result<Cluster> {
        let network = loopback_network();
        Cluster::lay_out(nodes, |index| (host(network, index), None))
    }

    /// Lays out nodes on the hosts of a [`NetLab`], node n on host n.
    ///
    /// # Errors
    /// No scratch directory.
    pub fn plan_in(lab: &NetLab, nodes: u8) -> Result<Cluster> {
        Cluster::lay_out(nodes, |index| (lab.address(index), Some(lab.holder(index))))
    }

    fn lay_out(nodes: u8, place: impl Fn(u8) -> (Ipv4Addr, Option<u32>)) -> Result<Cluster> {
        let scratch = Scratch::new("e2e")?;
        let rendezvous = scratch.path().join("rendezvous");
        std::fs::create_dir_all(&rendezvous).context("rendezvous directory")?;
        let node = |index| {
            let (address, netns_of) = place(index);
            Node {
                index,
                dir: scratch.path().join(format!("n{index}")),
                address,
                options: NodeOptions::default(),
                process: None,
                netns_of,
                rendezvous: rendezvous.clone(),
                outlive: false,
            }
        };
        Ok(Cluster { nodes: (1..=nodes).map(node).collect(), scratch })
    }

    /// Lays out and starts nodes on the loopback.
    ///
    /// # Errors
    /// A node does not come up.
    pub fn start(nodes: u8) -> Result<Cluster> {
        let mut cluster = Cluster::plan(nodes)?;
        cluster.start_all()?;
        Ok(cluster)
    }

    /// Lays out and starts nodes in a [`NetLab`].
    ///
    /// # Errors
    /// A node does not come up.
    pub fn start_in(lab: &NetLab, nodes: u8) -> Result<Cluster> {
        let mut cluster = Cluster::plan_in(lab, nodes)?;
        cluster.start_all()?;
        Ok(cluster)
    }

    /// Options for all nodes, before they start.
    pub fn with_options(mut self, options: &NodeOptions) -> Cluster {
        self.nodes.iter_mut().for_each(|node| node.options = options.clone());
        self
    }

    /// Options of one node, before it starts.
    pub fn options(&mut self, index: u8) -> &mut NodeOptions {
        &mut self.node(index).options
    }

    /// Makes the cluster with node 1, lets the others join, waits until all are up and vote.
    ///
    /// # Errors
    /// A node does not come up.
    pub fn start_all(&mut self) -> Result<()> {
        for (at, node) in self.nodes.iter_mut().enumerate() {
            node.launch(at == 0)?;
            node.wait_ready(0)?;
        }
        self.wait_up(self.nodes.len())?;
        // Until then the cluster stands and falls with its first node.
        let (dog, voters) = (self.any_dog()?, (self.nodes.len() - 1) / 2 * 2 + 1);
        wait_until(&format!("{voters} voters"), READY, Duration::from_millis(100), || {
            let info = dog.cluster_info().unwrap_or_default();
            Ok(info["voters"].as_array().is_some_and(|list| list.len() >= voters.min(3)))
        })
        .map(drop)
    }

    /// Waits until `nodes` nodes are up, as the first running node sees it, and every running node may act.
    ///
    /// # Errors
    /// It takes longer than [`READY`].
    pub fn wait_up(&mut self, nodes: usize) -> Result<()> {
        let dog = self.any_dog()?;
        wait_until(&format!("{nodes} nodes up"), READY, Duration::from_millis(100), || {
            let list = dog.nodes().unwrap_or_default();
            Ok(list.iter().filter(|node| text(node, "state") == "up").count() == nodes)
        })?;
        self.nodes
            .iter_mut()
            .filter_map(|node| node.is_running().then_some(&*node))
            .try_for_each(|node| node.wait_member().map(drop))
    }

    /// Waits until nothing has to be re-created anywhere.
    ///
    /// # Errors
    /// It takes longer than `limit`.
    pub fn wait_recovered(&mut self, limit: Duration) -> Result<Duration> {
        let dog = self.any_dog()?;
        wait_until("all copies back", limit, Duration::from_millis(200), || {
            let Ok(info) = dog.cluster_info() else { return Ok(false) };
            Ok(count(&info, "objects_to_recover") == 0 && text(&info, "health") == "ok")
        })
    }

    /// Makes a volume and waits until every running node knows of it.
    ///
    /// # Errors
    /// As [`Dog::create`], or it takes longer than [`READY`].
    pub fn create(&mut self, volume: &str, size: &str, copies: u8) -> Result<()> {
        self.any_dog()?.create(volume, size, copies)?;
        for node in &mut self.nodes {
            if !node.is_running() {
                continue;
            }
            let dog = node.dog()?;
            wait_until(
                &format!("node {} knows {volume}", node.index),
                READY,
                Duration::from_millis(50),
                || {
                    let volumes = dog.volumes().unwrap_or_default();
                    Ok(volumes.iter().any(|vdi| text(vdi, "name") == volume))
                },
            )?;
        }
        Ok(())
    }

    /// Waits until nobody has a volume open: whoever disconnects gives its lock back a moment later.
    ///
    /// # Errors
    /// It takes longer than [`READY`].
    pub fn wait_closed(&mut self, volume: &str) -> Result<()> {
        let dog = self.any_dog()?;
        wait_until(&format!("{volume} closed"), READY, Duration::from_millis(50), || {
            let volumes = dog.volumes().unwrap_or_default();
            Ok(volumes.iter().any(|vdi| text(vdi, "name") == volume && vdi["lock"].is_null()))
        })
        .map(drop)
    }

    /// Waits until `dog cluster check` finds nothing wrong.
    ///
    /// # Errors
    /// Nodes have different states, or it takes longer than `limit`; the error says what was wrong last.
    pub fn wait_sound(&mut self, limit: Duration) -> Result<()> {
        let dog = self.any_dog()?;
        let mut last = None;
        let waited = wait_until("a sound cluster", limit, Duration::from_millis(500), || {
            match dog.run(&["cluster", "check"]) {
                Ok(_) => Ok(true),
                // That never gets better by itself, and must not be waited away.
                Err(error) if error.to_string().contains("states differ") => Err(error),
                Err(error) => {
                    last = Some(error);
                    Ok(false)
                }
            }
        });
        match (waited, last) {
            (Err(_), Some(last)) => Err(last),
            (waited, _) => waited.map(drop),
        }
    }

    /// Node number `index`, from 1.
    pub fn node(&mut self, index: u8) -> &mut Node {
        &mut self.nodes[usize::from(index) - 1]
    }

    /// The command line tool, talking to the first node that runs.
    ///
    /// # Errors
    /// None runs.
    pub fn any_dog(&mut self) -> Result<Dog> {
        let running =
            self.nodes.iter_mut().find_map(|node| if node.is_running() { Some(&*node) } else { None });
        running.context("no node runs")?.dog()
    }

    /// The directory of the whole cluster.
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// SIGKILL to all at once: every process loses its memory in the same moment.
    pub fn kill_all(&mut self) {
        for node in &mut self.nodes {
            // Stop first, so that none of them sees another one's death.
            let _ = node.signal(Signal::Stop);
        }
        self.nodes.iter_mut().for_each(Node::kill);
    }

    /// Lets nodes and files live on when this process ends.
    pub fn keep(&mut self) {
        self.scratch.keep();
    }

    /// Starts nodes so that they live on when this process ends, unless dropped.
    pub fn outlive(&mut self, yes: bool) {
        self.nodes.iter_mut().for_each(|node| node.outlive = yes);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let keep = std::env::var_os("E2E_LOGS").map(PathBuf::from);
        for node in &self.nodes {
            if let Some(process) = &node.process {
                eprintln!("---- last lines of {}:\n{}", process.name(), process.log_tail(40));
            }
            if let Some(dir) = &keep {
                // Several clusters may fail at the same time.
                let cluster = self.path().file_name().unwrap_or_default().display().to_string();
                let name = format!("{cluster}-n{}.log", node.index);
                // Only a help for whoever looks for the cause; the failure itself is told anyway.
                let _ = std::fs::create_dir_all(dir)
                    .and_then(|()| std::fs::copy(node.log_path(), dir.join(name)));
            }
        }
    }
}
