//! A node without ring, log and disk, for tests of what stands on [`NodeHandle`]: commands are applied to a real
//! state at once, volumes are memory.

use crate::control::ControlMessage;
use crate::data::DataMessage;
use crate::handle::{
    AcceptLossError, ControlRequest, DataStatus, NodeHandle, NodeStatus, OpenVolume, OrderError,
    VolumeAccessError, VolumeRequest, WantedSnapshot,
};
use crate::inbox::{Inbox, Sender, inbox};
use mio::{Events, Poll, Token, Waker};
use sheep_datapath::{BlockExtent, CopyState, DiffExtent, Difference, ObjectCheck};
use sheep_engine::Published;
use sheep_state::{
    AccessMode, Addresses, ClusterState, Command, DiskRecord, DiskState, EntryKind, Genesis, Guard, NodeUp,
    Outcome, Refusal, Role, Settings, SnapshotItem,
};
use sheep_types::{ClusterId, CommandSeq, ConfigId, Geometry, Incarnation, LogIndex, Member, NodeId, VdiId};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The node itself.
pub(crate) const ME: Member = Member { node: NodeId(0xa1), incarnation: Incarnation(1) };
/// Another one that is up.
pub(crate) const OTHER: Member = Member { node: NodeId(0xb2), incarnation: Incarnation(1) };

struct Open {
    vdi: VdiId,
    generation: Option<sheep_types::Generation>,
}

struct Model {
    state: ClusterState,
    seqs: BTreeMap<NodeId, u64>,
    open: BTreeMap<u64, Open>,
    contents: BTreeMap<VdiId, Vec<u8>>,
    status: watch::Sender<Arc<NodeStatus>>,
    data: watch::Sender<Arc<DataStatus>>,
    stopped: bool,
    closed: bool,
    /// Writes are carried out when nothing else comes any more, the last one first: whoever needs an order must wait
    /// for answers.
    lazy: bool,
    held: Vec<VolumeRequest>,
    /// What all objects are said to be.
    check: ObjectCheck,
    formatted: Option<Genesis>,
}

/// The fake; its threads end with it.
pub(crate) struct FakeNode {
    pub(crate) handle: NodeHandle,
    model: Arc<Mutex<Model>>,
    end: Arc<AtomicBool>,
}

impl Model {
    fn apply(&mut self, entry: &EntryKind) -> Option<Result<Outcome, Refusal>> {
        let index = LogIndex(self.state.applied().0 + 1);
        let applied = self.state.apply(index, entry);
        let published = Published { index, state: Arc::new(self.state.clone()) };
        self.edit_status(|status| {
            status.commit = index;
            status.voters = published.state.voters().to_vec();
            status.published = Some(published);
        });
        applied.answer.map(|answer| answer.result)
    }

    fn edit_status(&self, edit: impl FnOnce(&mut NodeStatus)) {
        self.status.send_modify(|status| edit(Arc::make_mut(status)));
    }

    fn order(&mut self, origin: Member, command: Command) -> Result<Outcome, Refusal> {
        let seq = self.seqs.entry(origin.node).or_default();
        *seq += 1;
        let copied = match &command {
            Command::CloneVdi(clone) => Some(clone.snapshot),
            Command::Rollback { snapshot, .. } => Some(*snapshot),
            _ => None,
        };
        let back = if let Command::Rollback { vdi, .. } = command { Some(vdi) } else { None };
        let entry = EntryKind::Command { origin, seq: CommandSeq(*seq), command };
        let result = self.apply(&entry).expect("commands come in turn");
        match (&result, copied) {
            (Ok(Outcome::Snapshots(made)), _) => {
                made.iter().for_each(|made| self.copy(made.volume, made.vdi));
            }
            (Ok(Outcome::Created { vdi, .. }), Some(from)) => self.copy(from, *vdi),
            (Ok(Outcome::RolledBack { .. }), Some(from)) => self.copy(from, back.unwrap()),
            _ => {}
        }
        result
    }

    fn copy(&mut self, from: VdiId, to: VdiId) {
        let contents = self.contents.get(&from).cloned().unwrap_or_default();
        self.contents.insert(to, contents);
    }

    fn snapshot(&mut self, handle: u64, wanted: WantedSnapshot) -> Option<Result<Outcome, Refusal>> {
        let vdi = self.open.get(&handle)?.vdi;
        let guard = Guard::Held(self.state.vdi(vdi)?.lock?.generation);
        let WantedSnapshot { tag, attributes, created_unix_ms } = wanted;
        let item = SnapshotItem { vdi, guard, tag, attributes, created_unix_ms };
        Some(self.order(ME, Command::Snapshot { items: vec![item] }))
    }

    fn control(&mut self, request: ControlRequest) {
        match request {
            ControlRequest::Propose { command, answer } => {
                let _ = answer.send(self.order(ME, command).map_err(OrderError::Refused));
            }
            ControlRequest::Format { genesis, answer } => {
                let known = self.state.cluster() != ClusterId(0);
                let result = if known { Err("this node has a cluster".into()) } else { Ok(genesis.cluster) };
                self.formatted = Some(genesis);
                let _ = answer.send(result);
            }
            ControlRequest::Stop => self.stopped = true,
        }
    }

    /// A request, or nothing to do.
    fn volumes(&mut self, request: Option<VolumeRequest>) {
        use VolumeRequest::{Discard, Write, WriteZeroes};
        match request {
            None => {
                for request in std::mem::take(&mut self.held).into_iter().rev() {
                    self.volume(request);
                }
            }
            Some(request @ (Write { .. } | WriteZeroes { .. } | Discard { .. })) if self.lazy => {
                self.held.push(request);
            }
            Some(request) => self.volume(request),
        }
    }

    fn volume(&mut self, request: VolumeRequest) {
        let gone = || VolumeAccessError::Io("closed".into());
        match request {
            VolumeRequest::Open { vdi, alone: true, answer, .. }
                if self.open.values().any(|open| open.vdi == vdi) =>
            {
                let _ = answer.send(Err(VolumeAccessError::Open("VDI is open here".into())));
            }
            VolumeRequest::Open { vdi, read_only, answer, .. } => {
                let opened =
                    self.open(vdi, read_only).map_err(|error| VolumeAccessError::Open(error.to_string()));
                let _ = answer.send(opened);
            }
            VolumeRequest::Read { handle, offset, len, answer } => {
                let range = offset as usize..offset as usize + len as usize;
                let data = self.open.get(&handle).map(|open| self.contents[&open.vdi][range].to_vec().into());
                let _ = answer.send(data.ok_or_else(gone));
            }
            VolumeRequest::Write { handle, offset, data, answer } => {
                let _ = answer.send(self.write(handle, offset, &data).ok_or_else(gone));
            }
            VolumeRequest::Discard { handle, offset, len, answer }
            | VolumeRequest::WriteZeroes { handle, offset, len, answer } => {
                let _ = answer.send(self.write(handle, offset, &vec![0; len as usize]).ok_or_else(gone));
            }
            VolumeRequest::Flush { answer, .. } => {
                let _ = answer.send(Ok(()));
            }
            VolumeRequest::Status { len, answer, .. } => {
                let _ = answer.send(Ok(vec![BlockExtent { len, hole: false, zero: false }]));
            }
            VolumeRequest::Diff { handle, offset, len, since, answer } => {
                let _ = answer.send(self.diff(handle, offset, len, since).ok_or_else(gone));
            }
            VolumeRequest::Check { answer, .. } => {
                let _ = answer.send(Ok(self.check.clone()));
            }
            VolumeRequest::AcceptLoss { force, answer, .. } => {
                let lost = self.check.copies.values().all(|state| *state == CopyState::Lost);
                let _ = answer.send(match (lost, self.check.may_hold.is_empty() || force) {
                    (false, _) => Err(AcceptLossError::NotLost),
                    (true, false) => Err(AcceptLossError::MayComeBack),
                    (true, true) => Ok(()),
                });
            }
            VolumeRequest::Snapshot { handle, wanted, answer } => {
                let _ = answer.send(self.snapshot(handle, wanted).ok_or_else(gone));
            }
            VolumeRequest::CloseAll => self.closed = true,
            VolumeRequest::Close { handle, answer } => {
                if let Some(Open { vdi, generation: Some(generation) }) = self.open.remove(&handle) {
                    let _ = self.order(ME, Command::Unlock { vdi, generation, clean: true });
                }
                let _ = answer.send(());
            }
        }
    }

    /// Block by block, not more than five at a time.
    fn diff(&self, handle: u64, offset: u64, len: u64, since: Option<VdiId>) -> Option<Vec<DiffExtent>> {
        let now = &self.contents[&self.open.get(&handle)?.vdi];
        let before = since.map(|since| self.contents[&since].clone()).unwrap_or_default();
        let block = |at: u64, all: &[u8]| {
            let range = at as usize..((at + 4096) as usize).min(now.len());
            let mut block = all.get(range.clone()).unwrap_or_default().to_vec();
            block.resize(range.len(), 0);
            block
        };
        let one = |at: u64| {
            let (now, before) = (block(at, now), block(at, &before));
            let zero = now.iter().all(|byte| *byte == 0);
            let difference = match now == before {
                true => Difference::Same,
                false if zero => Difference::Zero,
                false => Difference::Data,
            };
            DiffExtent { len: now.len() as u64, difference }
        };
        Some((offset..offset + len).step_by(4096).take(5).map(one).collect())
    }

    fn open(&mut self, vdi: VdiId, read_only: bool) -> Result<OpenVolume, Refusal> {
        let record = self.state.vdi(vdi).ok_or(Refusal::NoSuchVdi)?;
        let (size, held) = (record.size, record.lock.is_some_and(|lock| lock.holder == ME));
        let mode = if read_only { AccessMode::Read } else { AccessMode::Write };
        let generation = if held {
            None
        } else {
            match self.order(ME, Command::Lock { vdi, attachment: None, mode, take_from: None })? {
                Outcome::Locked { generation, clean, .. } => {
                    if !clean {
                        self.order(ME, Command::MarkSettled { vdi, generation })?;
                    }
                    Some(generation)
                }
                other => panic!("{other:?}"),
            }
        };
        let handle = self.state.applied().0 + 1000 * self.open.len() as u64;
        self.open.insert(handle, Open { vdi, generation });
        let contents = self.contents.entry(vdi).or_default();
        contents.resize(contents.len().max(size as usize), 0xee);
        Ok(OpenVolume { handle, size })
    }

    fn write(&mut self, handle: u64, offset: u64, data: &[u8]) -> Option<()> {
        assert!(offset.is_multiple_of(512) && data.len().is_multiple_of(512), "whole sectors");
        let contents = self.contents.get_mut(&self.open.get(&handle)?.vdi)?;
        contents[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        Some(())
    }
}

fn node_up(name: &str) -> Command {
    let here = |port| vec![std::net::SocketAddr::from(([127, 0, 0, 1], port))];
    Command::NodeUp(NodeUp {
        role: Role::Storage,
        name: name.into(),
        zone: String::new(),
        weight: 100,
        addresses: Addresses { data: here(7000), ring: here(7000), grpc: here(7002), http: here(7003) },
        shards: 1,
        capacity: 1 << 30,
        disks: vec![DiskRecord { id: 1, incarnation: Incarnation(1), state: DiskState::Up, weight: 1 }],
        seen_down_since: None,
    })
}

fn first_status() -> NodeStatus {
    NodeStatus {
        me: ME,
        cluster: ClusterId(0),
        primary: false,
        ring_state: "gather",
        ring_members: vec![ME],
        term: ConfigId { number: 4, representative: ME.node },
        commit: LogIndex(0),
        voters: Vec::new(),
        published: None,
        counters: Vec::new(),
        fatal: None,
    }
}

fn pump<T: Send + 'static>(
    model: &Arc<Mutex<Model>>,
    end: &Arc<AtomicBool>,
    take: impl Fn(&mut Model, Option<T>) + Send + 'static,
) -> Sender<T> {
    let mut poll = Poll::new().unwrap();
    let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
    let (sender, inbox): (Sender<T>, Inbox<T>) = inbox(waker);
    let (model, end) = (Arc::clone(model), Arc::clone(end));
    std::thread::spawn(move || {
        let mut events = Events::with_capacity(4);
        while !end.load(Ordering::Acquire) {
            poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
            inbox.begin();
            let mut idle = true;
            while let Some(message) = inbox.next() {
                take(&mut model.lock().unwrap(), Some(message));
                idle = false;
            }
            if idle {
                take(&mut model.lock().unwrap(), None);
            }
        }
    });
    sender
}

impl FakeNode {
    /// A node without a cluster.
    pub(crate) fn without_cluster() -> Self {
        let (status, status_watch) = watch::channel(Arc::new(first_status()));
        let (data, data_watch) =
            watch::channel(Arc::new(DataStatus { recovered: true, ..DataStatus::default() }));
        let model = Arc::new(Mutex::new(Model {
            state: ClusterState::new(),
            seqs: BTreeMap::new(),
            open: BTreeMap::new(),
            contents: BTreeMap::new(),
            status,
            data,
            stopped: false,
            closed: false,
            lazy: false,
            held: Vec::new(),
            check: ObjectCheck::default(),
            formatted: None,
        }));
        let end = Arc::new(AtomicBool::new(false));
        let control = pump(&model, &end, |model, message| match message {
            None => {}
            Some(ControlMessage::Request(request)) => model.control(request),
            Some(_) => panic!("not from here"),
        });
        let volumes = pump(&model, &end, |model, message| match message {
            None => model.volumes(None),
            Some(DataMessage::Volume(request)) => model.volumes(Some(request)),
            Some(_) => panic!("not from here"),
        });
        let started = Instant::now();
        let handle = NodeHandle {
            control,
            volumes,
            status: status_watch,
            data: data_watch,
            started,
            disks: Arc::default(),
        };
        Self { handle, model, end }
    }

    /// The only node of a cluster that wants one copy.
    pub(crate) fn start() -> Self {
        let fake = Self::without_cluster();
        let settings = Settings { copies: 1, min_copies: 1, ..Settings::default() };
        let genesis = Genesis {
            cluster: ClusterId(0xc),
            geometry: Geometry::default(),
            settings,
            voters: vec![ME.node],
        };
        {
            let mut model = fake.model.lock().unwrap();
            model.apply(&EntryKind::Genesis(genesis));
            let term = ConfigId { number: 4, representative: ME.node };
            model.apply(&EntryKind::Install { term, members: vec![ME, OTHER] });
            model.edit_status(|status| {
                status.cluster = ClusterId(0xc);
                status.primary = true;
                status.ring_state = "operational";
            });
            model.order(ME, node_up("first")).unwrap();
            let epoch = model.state.epoch();
            model.order(ME, Command::Recovered { epoch }).unwrap();
        }
        fake
    }

    /// Orders a command from some node.
    pub(crate) fn order(&self, origin: Member, command: Command) -> Result<Outcome, Refusal> {
        self.model.lock().unwrap().order(origin, command)
    }

    /// The other node comes up.
    pub(crate) fn add_other(&self) {
        self.order(OTHER, node_up("second")).unwrap();
    }

    /// The ring has only this node any more.
    pub(crate) fn lose_other(&self) {
        let term = ConfigId { number: 8, representative: ME.node };
        self.model.lock().unwrap().apply(&EntryKind::Install { term, members: vec![ME] });
    }

    /// From now on writes that were not answered are carried out late, and in another order.
    pub(crate) fn be_lazy(&self) {
        self.model.lock().unwrap().lazy = true;
    }

    pub(crate) fn set_status(&self, edit: impl FnOnce(&mut NodeStatus)) {
        self.model.lock().unwrap().edit_status(edit);
    }

    pub(crate) fn set_data(&self, edit: impl FnOnce(&mut DataStatus)) {
        self.model.lock().unwrap().data.send_modify(|data| edit(Arc::make_mut(data)));
    }

    pub(crate) fn state(&self) -> ClusterState {
        self.model.lock().unwrap().state.clone()
    }

    pub(crate) fn contents(&self, vdi: VdiId) -> Vec<u8> {
        self.model.lock().unwrap().contents.get(&vdi).cloned().unwrap_or_default()
    }

    pub(crate) fn closed(&self) -> bool {
        self.model.lock().unwrap().closed
    }

    pub(crate) fn stopped(&self) -> bool {
        self.model.lock().unwrap().stopped
    }

    pub(crate) fn formatted(&self) -> Option<Genesis> {
        self.model.lock().unwrap().formatted.clone()
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
    }
}
