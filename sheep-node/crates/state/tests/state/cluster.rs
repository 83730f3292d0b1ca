//! A log of one, for tests.

use sheep_state::{
    AccessMode, Addresses, Applied, CloneVdi, ClusterState, Command, CreateVdi, DiskRecord, DiskState,
    EntryKind, Genesis, Guard, NodeState, NodeUp, Outcome, Refusal, Role, Settings, SnapshotItem,
    SnapshotMade,
};
use sheep_types::{
    ClusterId, CommandSeq, ConfigId, Generation, Geometry, Incarnation, LogIndex, Member, NodeId, VdiId, Vid,
};
use std::collections::BTreeMap;

pub(crate) struct Cluster {
    pub(crate) state: ClusterState,
    next_seq: BTreeMap<Member, u64>,
    pub(crate) incarnations: BTreeMap<NodeId, u64>,
    term: u64,
    pub(crate) last: Applied,
    pub(crate) log: Vec<EntryKind>,
}

pub(crate) fn n(node: u64) -> NodeId {
    NodeId(node)
}

pub(crate) fn genesis() -> Genesis {
    Genesis {
        cluster: ClusterId(77),
        geometry: Geometry::default(),
        settings: Settings::default(),
        voters: vec![n(1)],
    }
}

pub(crate) fn node_up(role: Role, zone: &str) -> NodeUp {
    NodeUp {
        role,
        name: "host".to_owned(),
        zone: zone.to_owned(),
        weight: 100,
        addresses: Addresses { data: vec!["10.0.0.1:7000".parse().unwrap()], ..Addresses::default() },
        shards: 2,
        capacity: 1 << 40,
        disks: vec![DiskRecord { id: 1, incarnation: Incarnation(1), state: DiskState::Up, weight: 1 }],
        seen_down_since: None,
    }
}

pub(crate) fn create(name: &str) -> CreateVdi {
    CreateVdi {
        name: name.to_owned(),
        size: 1 << 30,
        copies: None,
        min_copies: None,
        cache: Default::default(),
        attributes: BTreeMap::new(),
        created_unix_ms: 1_800_000_000_000,
    }
}

pub(crate) fn item(vdi: VdiId, guard: Guard, tag: &str) -> SnapshotItem {
    SnapshotItem { vdi, guard, tag: tag.to_owned(), attributes: BTreeMap::new(), created_unix_ms: 0 }
}

pub(crate) fn clone_vdi(snapshot: VdiId, name: &str) -> CloneVdi {
    CloneVdi {
        snapshot,
        name: name.to_owned(),
        size: None,
        copies: None,
        min_copies: None,
        cache: Default::default(),
        attributes: BTreeMap::new(),
        created_unix_ms: 0,
    }
}

impl Cluster {
    /// A cluster without nodes.
    pub(crate) fn empty() -> Self {
        let mut cluster = Self {
            state: ClusterState::new(),
            next_seq: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            term: 0,
            last: Applied::default(),
            log: Vec::new(),
        };
        cluster.entry(EntryKind::Genesis(genesis()));
        cluster
    }

    /// Storage nodes 1 to `storage` (no zones) and a gateway 100 and 101.
    pub(crate) fn with(storage: u64) -> Self {
        let mut cluster = Self::empty();
        for node in 1..=storage {
            cluster.join(node, Role::Storage, "");
        }
        cluster.join(100, Role::Gateway, "");
        cluster.join(101, Role::Gateway, "");
        cluster
    }

    pub(crate) fn entry(&mut self, entry: EntryKind) -> &Applied {
        let index = LogIndex(self.state.applied().0 + 1);
        self.last = self.state.apply(index, &entry);
        self.log.push(entry);
        &self.last
    }

    pub(crate) fn member(&self, node: u64) -> Member {
        Member {
            node: n(node),
            incarnation: Incarnation(self.incarnations.get(&n(node)).copied().unwrap_or(1)),
        }
    }

    /// Orders a command and returns its answer.
    pub(crate) fn run(&mut self, node: u64, command: Command) -> Result<Outcome, Refusal> {
        let origin = self.member(node);
        let seq = self.next_seq.entry(origin).or_insert(0);
        *seq += 1;
        let entry = EntryKind::Command { origin, seq: CommandSeq(*seq), command };
        self.entry(entry).answer.clone().expect("in turn").result
    }

    pub(crate) fn join(&mut self, node: u64, role: Role, zone: &str) {
        self.run(node, Command::NodeUp(node_up(role, zone))).unwrap();
    }

    /// A term in whose configuration everybody known is, but these.
    pub(crate) fn install_without(&mut self, absent: &[u64]) {
        self.term += 1;
        let term = ConfigId { number: self.term, representative: n(1) };
        let known: Vec<NodeId> = self.state.nodes().map(|node| node.node).collect();
        let members =
            known.into_iter().filter(|node| !absent.contains(&node.0)).map(|node| self.member(node.0));
        let members = members.collect();
        self.entry(EntryKind::Install { term, members });
    }

    /// A node starts anew and says so.
    pub(crate) fn restart(&mut self, node: u64) {
        let record = self.state.node(n(node)).unwrap();
        let (role, zone) = (record.role, record.zone.clone());
        *self.incarnations.entry(n(node)).or_insert(1) += 1;
        self.run(node, Command::NodeUp(node_up(role, &zone))).unwrap();
    }

    /// A node that was down comes back in the same run.
    pub(crate) fn return_of(&mut self, node: u64) -> Result<Outcome, Refusal> {
        let record = self.state.node(n(node)).unwrap();
        let up = NodeUp { seen_down_since: self.down_since(node), ..node_up(record.role, &record.zone) };
        self.run(node, Command::NodeUp(up))
    }

    pub(crate) fn down_since(&self, node: u64) -> Option<LogIndex> {
        match self.state.node(n(node))?.state {
            NodeState::Down { since, .. } | NodeState::Out { since, .. } => Some(since),
            NodeState::Up | NodeState::Leaving => None,
        }
    }

    pub(crate) fn vdi(&mut self, name: &str) -> (VdiId, Vid) {
        match self.run(1, Command::CreateVdi(create(name))) {
            Ok(Outcome::Created { vdi, vid }) => (vdi, vid),
            other => panic!("{other:?}"),
        }
    }

    /// Node 100 opens a volume for writing.
    pub(crate) fn open(&mut self, vdi: VdiId) -> Generation {
        let lock = Command::Lock { vdi, attachment: None, mode: AccessMode::Write, take_from: None };
        match self.run(100, lock) {
            Ok(Outcome::Locked { generation, .. }) => generation,
            other => panic!("{other:?}"),
        }
    }

    /// Node 100 closes it cleanly.
    pub(crate) fn close(&mut self, vdi: VdiId) {
        let generation = self.generation(vdi).unwrap();
        self.run(100, Command::Unlock { vdi, generation, clean: true }).unwrap();
    }

    /// A snapshot of one volume, ordered by its holder if it has one.
    pub(crate) fn snapshot(&mut self, vdi: VdiId, tag: &str) -> SnapshotMade {
        let guard = self.generation(vdi).map_or(Guard::ClosedClean, Guard::Held);
        match self.run(100, Command::Snapshot { items: vec![item(vdi, guard, tag)] }) {
            Ok(Outcome::Snapshots(made)) => made[0],
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn clone_of(&mut self, snapshot: VdiId, name: &str) -> (VdiId, Vid) {
        match self.run(1, Command::CloneVdi(clone_vdi(snapshot, name))) {
            Ok(Outcome::Created { vdi, vid }) => (vdi, vid),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn delete(&mut self, vdi: VdiId) {
        self.run(1, Command::DeleteVdi { vdi, guard: Guard::ClosedClean }).unwrap();
    }

    pub(crate) fn is_up(&self, node: u64) -> bool {
        self.state.is_up(self.member(node))
    }

    pub(crate) fn generation(&self, vdi: VdiId) -> Option<Generation> {
        self.state.vdi(vdi)?.lock.map(|lock| lock.generation)
    }
}
