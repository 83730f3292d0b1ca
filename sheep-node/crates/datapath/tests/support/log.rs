//! A log of one: commands take effect at once and in order.

use super::CLUSTER;
use sheep_state::{
    AccessMode, Addresses, ClusterState, Command, CreateVdi, DiskRecord, DiskState, EntryKind, Genesis,
    NodeState, NodeUp, Outcome, Refusal, Role, Settings,
};
use sheep_types::{
    CommandSeq, ConfigId, Generation, Geometry, Incarnation, LogIndex, Member, NodeId, VdiId, Vid,
};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) state: ClusterState,
    pub(crate) snapshot: Arc<ClusterState>,
    incarnations: BTreeMap<u64, u64>,
    /// Disks that are not the node's first.
    pub(crate) disks: BTreeMap<u64, u64>,
    sequences: BTreeMap<Member, u64>,
    term: u64,
}

impl Log {
    pub(crate) fn new(geometry: Geometry, copies: u8, min_copies: u8) -> Self {
        let mut log = Self {
            state: ClusterState::new(),
            snapshot: Arc::new(ClusterState::new()),
            incarnations: BTreeMap::new(),
            disks: BTreeMap::new(),
            sequences: BTreeMap::new(),
            term: 0,
        };
        let settings = Settings { copies, min_copies, lease_ms: 200, ..Settings::default() };
        log.entry(EntryKind::Genesis(Genesis {
            cluster: CLUSTER,
            geometry,
            settings,
            voters: vec![NodeId(1)],
        }));
        log
    }

    fn entry(&mut self, entry: EntryKind) -> Option<Result<Outcome, Refusal>> {
        let index = LogIndex(self.state.applied().0 + 1);
        let applied = self.state.apply(index, &entry);
        self.snapshot = Arc::new(self.state.clone());
        applied.answer.map(|answer| answer.result)
    }

    pub(crate) fn member(&self, node: u64) -> Member {
        let incarnation = self.incarnations.get(&node).copied().unwrap_or(1);
        Member { node: NodeId(node), incarnation: Incarnation(incarnation) }
    }

    pub(crate) fn new_incarnation(&mut self, node: u64) {
        *self.incarnations.entry(node).or_insert(1) += 1;
    }

    pub(crate) fn run_as(&mut self, origin: Member, command: Command) -> Option<Result<Outcome, Refusal>> {
        let sequence = self.sequences.entry(origin).or_insert(0);
        *sequence += 1;
        let seq = CommandSeq(*sequence);
        self.entry(EntryKind::Command { origin, seq, command })
    }

    pub(crate) fn run(&mut self, node: u64, command: Command) -> Result<Outcome, Refusal> {
        self.run_as(self.member(node), command).expect("in turn")
    }

    fn node_up(&self, node: u64, stores: bool) -> NodeUp {
        let id = self.disks.get(&node).copied().unwrap_or(node);
        let disk = DiskRecord { id, incarnation: Incarnation(1), state: DiskState::Up, weight: 1 };
        let seen_down_since = match self.state.node(NodeId(node)).map(|record| record.state) {
            Some(NodeState::Down { since, .. } | NodeState::Out { since, .. }) => Some(since),
            _ => None,
        };
        NodeUp {
            role: if stores { Role::Storage } else { Role::Gateway },
            name: format!("host{node}"),
            zone: String::new(),
            weight: 100,
            addresses: Addresses { data: vec!["10.0.0.1:7000".parse().unwrap()], ..Addresses::default() },
            shards: 1,
            capacity: 1 << 30,
            disks: if stores { vec![disk] } else { Vec::new() },
            seen_down_since,
        }
    }

    pub(crate) fn join(&mut self, node: u64, stores: bool) {
        let up = self.node_up(node, stores);
        self.run(node, Command::NodeUp(up)).unwrap();
    }

    /// A known node says that it is up in its present run.
    pub(crate) fn announce(&mut self, node: u64) {
        let stores = self.state.node(NodeId(node)).is_some_and(|record| record.role == Role::Storage);
        self.join(node, stores);
    }

    pub(crate) fn install_without(&mut self, absent: &[u64]) {
        self.term += 1;
        let term = ConfigId { number: self.term, representative: NodeId(1) };
        let known: Vec<NodeId> = self.state.nodes().map(|node| node.node).collect();
        let present = known.into_iter().filter(|node| !absent.contains(&node.0));
        let members = present.map(|node| self.member(node.0)).collect();
        self.entry(EntryKind::Install { term, members });
    }

    pub(crate) fn create(&mut self, name: &str, size: u64) -> (VdiId, Vid) {
        let command = Command::CreateVdi(CreateVdi {
            name: name.to_owned(),
            size: size.max(1 << 20),
            copies: None,
            min_copies: None,
            cache: Default::default(),
            attributes: BTreeMap::new(),
            created_unix_ms: 0,
        });
        match self.run(super::HAND, command) {
            Ok(Outcome::Created { vdi, vid }) => (vdi, vid),
            other => panic!("{other:?}"),
        }
    }

    /// The hand takes the lock, from whoever has it.
    pub(crate) fn lock(&mut self, vdi: VdiId) -> Generation {
        if let Some(lock) = self.state.vdi(vdi).and_then(|record| record.lock) {
            self.run(super::HAND, Command::Revoke { vdi, generation: lock.generation }).unwrap();
        }
        let command = Command::Lock { vdi, attachment: None, mode: AccessMode::Write, take_from: None };
        match self.run(super::HAND, command) {
            Ok(Outcome::Locked { generation, .. }) => generation,
            other => panic!("{other:?}"),
        }
    }
}
