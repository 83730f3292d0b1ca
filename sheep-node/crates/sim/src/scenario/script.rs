//! A script's view of the world: short words for what a scenario does, and a bound on every wait.

use super::hooks::{Fate, OF_SCRIPT};
use crate::options::Options;
use crate::world::{Event, World};
use bytes::Bytes;
use sheep_datapath::{GatewayOutput, OpenError, OpenMode, ReadExtent, VolumeError, VolumeOp, VolumeReply};
use sheep_state::{CacheMode, Command, CreateVdi, Outcome, Refusal, VdiRecord};
use sheep_types::{ObjectId, SECTOR_SIZE, VdiId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const MS: u64 = 1_000_000;

/// What a scenario says in the end.
pub type Verdict = Result<(), String>;

/// What a read showed of one sector: the tag written there, or zero.
pub(super) type Shown = Result<u64, VolumeError>;

/// Fails with a sentence.
pub fn ensure(holds: bool, what: &str) -> Verdict {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

/// How a scenario's cluster is made.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Nodes.
    pub nodes: usize,
    /// Copies of objects.
    pub copies: u8,
    /// Copies below which writes wait.
    pub min_copies: u8,
    /// Disks of each node.
    pub disks: usize,
    /// Time after which a node that is down gives up its place.
    pub out_ms: u64,
    /// Seed of all delays.
    pub seed: u64,
}

impl Setup {
    /// Three copies, two needed, on so many nodes; nobody is ever out.
    pub fn nodes(nodes: usize) -> Self {
        let (copies, min_copies) = (3.min(nodes as u8), 2.min(nodes as u8));
        Self { nodes, copies, min_copies, disks: 1, out_ms: 3_600_000, seed: 7 }
    }

    /// The same with so many copies, so many needed.
    pub fn copies(self, copies: u8, min_copies: u8) -> Self {
        Self { copies, min_copies, ..self }
    }

    /// The same with other delays.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Options of a quiet world.
    pub fn options(&self, mutant: Option<&str>) -> Options {
        let mut options = Options::from_seed(self.seed).single_disk();
        options.nodes = self.nodes;
        options.disks = self.disks;
        options.clients = 0;
        options.copies = self.copies;
        options.min_copies = self.min_copies;
        options.token_loss = Duration::from_millis(200);
        options.out_delay = Duration::from_millis(self.out_ms);
        options.clock_ppm = 0;
        options.faults = Vec::new();
        options.mutant = mutant.map(str::to_owned);
        options.verbose = std::env::var_os("SIM_TRACE").is_some();
        options
    }
}

/// An open volume, or one that was: where and under which handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// The node whose gateway serves it.
    pub node: usize,
    handle: u64,
}

/// A world that does nothing by itself.
pub struct Script {
    /// The world.
    pub world: World,
    next: u64,
    opened: BTreeMap<u64, Result<(), OpenError>>,
    closed: Vec<u64>,
    lost: Vec<u64>,
    done: BTreeMap<u64, Result<VolumeReply, VolumeError>>,
}

impl Script {
    /// A cluster that is whole.
    ///
    /// # Errors
    /// It does not come up, or a checker objects.
    pub fn new(setup: Setup, mutant: Option<&str>) -> Result<Self, String> {
        let mut script = Self::raw(setup, mutant);
        script.whole()?;
        // All that want to be voters are.
        script.run(3_000)?;
        script.whole()?;
        Ok(script)
    }

    /// A world in which nothing has happened yet.
    pub fn raw(setup: Setup, mutant: Option<&str>) -> Self {
        let world = World::new(setup.options(mutant));
        let (opened, done) = (BTreeMap::new(), BTreeMap::new());
        Self { world, next: 0, opened, closed: Vec::new(), lost: Vec::new(), done }
    }

    /// Lets so much time pass.
    ///
    /// # Errors
    /// What a checker says.
    pub fn run(&mut self, ms: u64) -> Verdict {
        let end = self.world.now + ms * MS;
        let result = self.world.run_until(end);
        self.collect();
        result
    }

    fn collect(&mut self) {
        for (_, output) in core::mem::take(&mut self.world.hooks.outputs) {
            match output {
                GatewayOutput::Opened { handle, .. } => drop(self.opened.insert(handle, Ok(()))),
                GatewayOutput::OpenFailed { handle, error } => drop(self.opened.insert(handle, Err(error))),
                GatewayOutput::Done { io, result, .. } => drop(self.done.insert(io, result)),
                GatewayOutput::Closed { handle } => self.closed.push(handle),
                GatewayOutput::Lost { handle, .. } => self.lost.push(handle),
                _ => {}
            }
        }
    }

    /// Steps until something holds, at most so long.
    ///
    /// # Errors
    /// What a checker says, or that the time is over.
    pub fn until(&mut self, ms: u64, what: &str, holds: impl Fn(&Self) -> bool) -> Verdict {
        let end = self.world.now + ms * MS;
        while !holds(self) {
            if self.world.now >= end {
                return Err(format!("waited {ms} ms in vain until {what}"));
            }
            self.world.step()?;
            self.collect();
        }
        Ok(())
    }

    /// Waits until all nodes are up and hold everything.
    ///
    /// # Errors
    /// What is missing.
    pub fn whole(&mut self) -> Verdict {
        for _ in 0..1200 {
            if self.world.is_whole() {
                return Ok(());
            }
            self.run(50)?;
        }
        Err(format!("not whole: {}", self.world.why_not_whole().unwrap_or_default()))
    }

    /// Whether a node is in the primary component.
    pub fn is_primary(&self, node: usize) -> bool {
        self.world.nodes[node].running.as_ref().is_some_and(|running| running.control.is_primary())
    }

    /// Waits until these nodes are a primary component of their own.
    ///
    /// # Errors
    /// They are not.
    pub fn primary(&mut self, nodes: &[usize]) -> Verdict {
        let ids: Vec<_> = nodes.iter().map(|node| self.world.nodes[*node].id).collect();
        self.until(20_000, &format!("{nodes:?} are primary"), |s| {
            nodes.iter().all(|node| {
                let running = s.world.nodes[*node].running.as_ref();
                running.is_some_and(|running| {
                    let members = running.control.ring().members();
                    running.control.is_primary()
                        && members.len() == ids.len()
                        && members.iter().all(|member| ids.contains(&member.node))
                })
            })
        })
    }

    /// Cuts every link between two groups, both ways.
    pub fn cut(&mut self, one: &[usize], other: &[usize]) {
        for &a in one {
            for &b in other {
                self.world.net.cut(a, b);
                self.world.net.cut(b, a);
            }
        }
    }

    /// The network is whole.
    pub fn heal(&mut self) {
        self.world.net.heal();
    }

    /// The machine stands still.
    pub fn pause(&mut self, node: usize, ms: u64) {
        self.world.nodes[node].paused_until = self.world.now + ms * MS;
    }

    /// The process dies and is started again after so long, if at all.
    pub fn crash(&mut self, node: usize, again_ms: Option<u64>) {
        self.world.crash(node);
        if let Some(ms) = again_ms {
            self.world.schedule(ms * MS, Event::Start(node));
        }
    }

    /// Messages for which this says so are lost, from now on.
    pub fn lose(&mut self, which: impl Fn(usize, &Event) -> bool + 'static) {
        self.world.filter(move |from, event| if which(from, event) { Fate::Drop } else { Fate::Pass });
    }

    /// Messages for which this says so are held back, from now on.
    pub fn hold(&mut self, which: impl Fn(usize, &Event) -> bool + 'static) {
        self.world.filter(move |from, event| if which(from, event) { Fate::Hold } else { Fate::Pass });
    }

    /// Orders a command at a node; its answer comes later under this token.
    ///
    /// # Errors
    /// The node takes none.
    pub fn order(&mut self, node: usize, command: &Command) -> Result<u64, String> {
        self.world.order(node, command).ok_or(format!("node {node} takes no command"))
    }

    /// The answer to a command.
    ///
    /// # Errors
    /// There is none in time.
    pub fn answer(&mut self, token: u64) -> Result<Result<Outcome, Refusal>, String> {
        self.until(20_000, "a command is answered", |s| s.world.answers.contains_key(&token))?;
        self.world.answers.remove(&token).ok_or("no answer".into())
    }

    /// Orders and waits.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn ordered(&mut self, node: usize, command: &Command) -> Result<Outcome, String> {
        let token = self.order(node, command)?;
        self.answer(token)?.map_err(|refusal| format!("{command:?}: {refusal}"))
    }

    /// A command that makes a volume of 1 MiB.
    pub fn creation(name: &str) -> Command {
        Command::CreateVdi(CreateVdi {
            name: name.into(),
            size: 1 << 20,
            copies: None,
            min_copies: None,
            cache: CacheMode::WriteBack,
            attributes: BTreeMap::new(),
            created_unix_ms: 0,
        })
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(&mut self, node: usize, name: &str) -> Result<VdiId, String> {
        match self.ordered(node, &Self::creation(name))? {
            Outcome::Created { vdi, .. } => {
                // All data paths know of it.
                self.run(200)?;
                Ok(vdi)
            }
            other => Err(format!("creation: {other:?}")),
        }
    }

    /// A volume's record, as a node has applied it.
    ///
    /// # Errors
    /// It knows of none.
    pub fn record(&self, node: usize, vdi: VdiId) -> Result<Arc<VdiRecord>, String> {
        let running = self.world.nodes[node].running.as_ref();
        let record = running.and_then(|running| running.control.state().vdi(vdi).cloned());
        record.ok_or(format!("node {node} knows no volume {vdi:?}"))
    }

    /// The nodes that a data object of a volume belongs to, in the view of a node.
    ///
    /// # Errors
    /// It has none.
    pub fn set(&self, node: usize, vdi: VdiId, index: u64) -> Result<Vec<usize>, String> {
        let vid = self.record(node, vdi)?.vid;
        let view = self.world.nodes[node].running.as_ref().and_then(|running| running.view.clone());
        let view = view.ok_or(format!("node {node} has no view"))?;
        let set = view.set(ObjectId::data(vid, index as u32));
        let places = set.iter().filter_map(|id| self.world.nodes.iter().position(|n| n.id == *id));
        let places: Vec<usize> = places.collect();
        if places.is_empty() { Err("an object belongs nowhere".into()) } else { Ok(places) }
    }

    /// Tells, when traced, which version of a data object each running node has.
    pub fn tell(&self, vdi: VdiId, index: u64) {
        if !self.world.options.verbose {
            return;
        }
        for node in &self.world.nodes {
            let running = node.running.as_ref();
            let Some(vid) = running.and_then(|r| r.control.state().vdi(vdi).map(|record| record.vid)) else {
                continue;
            };
            let object = ObjectId::data(vid, index as u32);
            let replica = running.and_then(|r| r.shard.as_ref()).and_then(|shard| shard.replica());
            let header = replica.and_then(|replica| replica.store().header(object));
            let current = replica.is_some_and(|replica| replica.is_current(object));
            eprintln!("  node {}: {:?}, current: {current}", node.index, header.map(|header| header.version));
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        OF_SCRIPT | self.next
    }

    /// Begins to open a volume for writing.
    pub fn begin_open(&mut self, node: usize, vdi: VdiId) -> Session {
        let handle = self.number();
        let now = self.world.nodes[node].clock(self.world.now);
        self.world.with_shard(node, |shard| shard.gateway().open(now, handle, vdi, OpenMode::Write));
        Session { node, handle }
    }

    /// How opening went, if it is over.
    pub fn opening(&self, session: Session) -> Option<&Result<(), OpenError>> {
        self.opened.get(&session.handle)
    }

    /// Opens a volume for writing, again and again while somebody else has it.
    ///
    /// # Errors
    /// It is not open in time.
    pub fn open(&mut self, node: usize, vdi: VdiId) -> Result<Session, String> {
        let end = self.world.now + 30_000 * MS;
        loop {
            let session = self.begin_open(node, vdi);
            self.until(30_000, "a volume is open", |s| s.opening(session).is_some())?;
            match self.opening(session) {
                Some(Err(error)) if self.world.now > end => {
                    return Err(format!("node {node} cannot open: {error}"));
                }
                Some(Err(_)) => self.run(100)?,
                Some(Ok(())) | None => return Ok(session),
            }
        }
    }

    /// Closes it.
    ///
    /// # Errors
    /// It is not closed in time.
    pub fn close(&mut self, session: Session) -> Verdict {
        let now = self.world.nodes[session.node].clock(self.world.now);
        self.world.with_shard(session.node, |shard| shard.gateway().close(now, session.handle));
        self.until(20_000, "a volume is closed", |s| s.closed.contains(&session.handle))
    }

    /// Whether the gateway said that it lost the volume.
    pub fn is_lost(&self, session: Session) -> bool {
        self.lost.contains(&session.handle)
    }

    /// Begins an operation.
    pub fn begin(&mut self, session: Session, op: VolumeOp) -> u64 {
        let io = self.number();
        let now = self.world.nodes[session.node].clock(self.world.now);
        self.world.with_shard(session.node, |shard| shard.gateway().submit(now, session.handle, io, op));
        self.collect();
        io
    }

    /// Begins to write a tag to eight sectors of a data object: one block.
    pub fn begin_write(&mut self, session: Session, object: u64, tag: u64) -> u64 {
        let data = Bytes::from(tag.to_le_bytes().repeat(4096 / 8));
        self.begin(session, VolumeOp::Write { offset: object << 16, data, fua: false })
    }

    /// Begins to read one sector of it.
    pub fn begin_read(&mut self, session: Session, object: u64) -> u64 {
        self.begin(session, VolumeOp::Read { offset: object << 16, len: SECTOR_SIZE })
    }

    /// What came of an operation, if it is over.
    pub fn result(&self, io: u64) -> Option<&Result<VolumeReply, VolumeError>> {
        self.done.get(&io)
    }

    /// Waits for an operation.
    ///
    /// # Errors
    /// It is not over in time.
    pub fn finish(&mut self, io: u64) -> Result<Result<VolumeReply, VolumeError>, String> {
        self.until(20_000, "an operation is answered", |s| s.done.contains_key(&io))?;
        self.done.remove(&io).ok_or("no answer".into())
    }

    /// Writes a tag to a data object.
    ///
    /// # Errors
    /// It fails, or takes too long.
    pub fn write(&mut self, session: Session, object: u64, tag: u64) -> Verdict {
        let io = self.begin_write(session, object, tag);
        self.finish(io)?.map(drop).map_err(|error| format!("writing {tag}: {error}"))
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// It fails, or takes too long.
    pub fn flush(&mut self, session: Session) -> Verdict {
        let io = self.begin(session, VolumeOp::Flush);
        self.finish(io)?.map(drop).map_err(|error| format!("flushing: {error}"))
    }

    /// The tag that a data object shows.
    ///
    /// # Errors
    /// The read fails, or takes too long.
    pub fn read(&mut self, session: Session, object: u64) -> Result<u64, String> {
        let io = self.begin_read(session, object);
        let result = self.finish(io)?;
        Self::shown(result).map_err(|error| format!("reading: {error}"))
    }

    /// The tag in the answer to a read of one sector.
    ///
    /// # Errors
    /// The read failed.
    pub fn shown(result: Result<VolumeReply, VolumeError>) -> Shown {
        match result? {
            VolumeReply::Read(extents) => Ok(extents.first().map_or(0, |extent| match extent {
                ReadExtent::Data(data) => data.first_chunk().map_or(0, |tag| u64::from_le_bytes(*tag)),
                ReadExtent::Hole(_) => 0,
            })),
            _ => Ok(0),
        }
    }

    /// Reads an object through every node in turn, closing and opening the volume: all must show this tag.
    ///
    /// # Errors
    /// One shows something else.
    pub fn all_show(&mut self, vdi: VdiId, object: u64, tag: u64) -> Verdict {
        for node in 0..self.world.nodes.len() {
            let session = self.open(node, vdi)?;
            let shown = self.read(session, object)?;
            ensure(shown == tag, &format!("node {node} shows {shown} instead of {tag}"))?;
            self.close(session)?;
        }
        Ok(())
    }
}
