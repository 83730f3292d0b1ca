//! Random sequences of entries keep the invariants.

use crate::cluster::{Cluster, clone_vdi, create, item, n, node_up};
use proptest::prelude::*;
use sheep_state::{
    AccessMode, CloneVdi, ClusterState, Command, CreateVdi, EntryKind, EpochMembers, Guard, MemberState,
    NodeState, NodeUp, Role, SweptVid, VdiRecord, VidKind,
};
use sheep_types::{
    Birth, CommandSeq, ConfigId, Epoch, Generation, Incarnation, LogIndex, Member, NodeId, VdiId, Vid,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One step, described by small numbers that are mapped to what exists when it is taken.
#[derive(Clone, Debug)]
enum Op {
    Install { absent: u8, restarted: u8 },
    Voters,
    Nodes { kind: u8, node: u64, other: u64, flag: bool },
    Vdis { kind: u8, node: u64, vdi: usize, number: u64, flag: bool },
    Resend { node: u64, seq: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let node = || 1..8u64;
    prop_oneof![
        1 => (any::<u8>(), any::<u8>()).prop_map(|(absent, restarted)| Op::Install { absent, restarted }),
        1 => Just(Op::Voters),
        6 => (0..9u8, node(), node(), any::<bool>())
            .prop_map(|(kind, node, other, flag)| Op::Nodes { kind, node, other, flag }),
        16 => (0..26u8, node(), 0..6usize, 0..6u64, any::<bool>())
            .prop_map(|(kind, node, vdi, number, flag)| Op::Vdis { kind, node, vdi, number, flag }),
        1 => (node(), 0..30u64).prop_map(|(node, seq)| Op::Resend { node, seq }),
    ]
}

struct World {
    cluster: Cluster,
    vids: BTreeMap<Vid, Birth>,
    generations: BTreeMap<Generation, (VdiId, Member)>,
    epochs: BTreeMap<Epoch, Arc<EpochMembers>>,
}

impl World {
    fn new(cluster: Cluster) -> Self {
        Self { cluster, vids: BTreeMap::new(), generations: BTreeMap::new(), epochs: BTreeMap::new() }
    }

    fn live(&mut self, ops: &[Op]) {
        for op in ops {
            self.take(op);
            self.check();
        }
    }

    /// Nodes 1 to 5 store, 6 is a witness, 7 a gateway.
    fn role(node: u64) -> Role {
        match node {
            1..=5 => Role::Storage,
            6 => Role::Witness,
            _ => Role::Gateway,
        }
    }

    fn take(&mut self, op: &Op) {
        match *op {
            Op::Install { absent, restarted } => self.install(absent, restarted),
            Op::Voters => {
                if let Some(voters) = self.cluster.state.desired_voters() {
                    self.cluster.entry(EntryKind::Voters { voters });
                }
            }
            Op::Nodes { kind, node, other, flag } => {
                let command = self.node_command(kind, node, other, flag);
                let _ = self.cluster.run(node, command);
            }
            Op::Vdis { kind, node, vdi, number, flag } => {
                let command = self.vdi_command(kind, vdi, number, flag);
                let node = self.who_may(&command).unwrap_or(node);
                let _ = self.cluster.run(node, command);
            }
            Op::Resend { node, seq } => self.resend(node, seq),
        }
    }

    /// Requests that name an attachment come from its node, or hardly any would be granted.
    fn who_may(&self, command: &Command) -> Option<u64> {
        let state = &self.cluster.state;
        match command {
            Command::Lock { vdi, attachment: Some(index), .. } => {
                let attachments = &state.vdi(*vdi)?.attachments;
                let named = attachments.iter().find(|attachment| attachment.index == *index);
                named.map(|attachment| attachment.node.0)
            }
            Command::Pause { vdi, .. } | Command::Replaced { vdi, .. } | Command::Flattened { vdi, .. } => {
                state.vdi(*vdi)?.lock.map(|lock| lock.holder.node.0)
            }
            Command::MapExists { vid, .. } => state.vdi_of(*vid)?.lock.map(|lock| lock.holder.node.0),
            Command::Snapshot { items } => state.vdi(items.first()?.vdi)?.lock.map(|lock| lock.holder.node.0),
            _ => None,
        }
    }

    /// Any node sends an old or far later number: only ever ignored or refused.
    fn resend(&mut self, node: u64, seq: u64) {
        let origin = self.cluster.member(node);
        let next = match self.cluster.state.last_command(n(node)) {
            Some((incarnation, last)) if incarnation == origin.incarnation => last.0 + 1,
            Some(_) | None => 1,
        };
        if seq == next {
            return;
        }
        let before = self.cluster.state.vdi_count();
        let command = Command::CreateVdi(create("resent"));
        let applied = self.cluster.entry(EntryKind::Command { origin, seq: CommandSeq(seq), command });
        assert!(applied.answer.as_ref().is_none_or(|answer| answer.result.is_err()));
        assert_eq!(self.cluster.state.vdi_count(), before);
    }

    fn install(&mut self, absent: u8, restarted: u8) {
        let mut members = Vec::new();
        for node in 1..8u64 {
            if restarted >> node & 1 == 1 {
                *self.cluster.incarnations.entry(n(node)).or_insert(1) += 1;
            }
            if absent >> node & 1 == 0 {
                members.push(self.cluster.member(node));
            }
        }
        let term = ConfigId { number: self.cluster.state.applied().0, representative: n(1) };
        self.cluster.entry(EntryKind::Install { term, members });
    }

    fn node_command(&mut self, kind: u8, node: u64, other: u64, flag: bool) -> Command {
        let target = self.cluster.member(other);
        let epoch = self.cluster.state.epoch();
        let report = self.cluster.state.open_reports().next().map_or(LogIndex(1), |report| report.index);
        match kind {
            0 | 1 => {
                let seen_down_since = self.cluster.down_since(node);
                let zone = if flag { "a" } else { "b" };
                Command::NodeUp(NodeUp { seen_down_since, ..node_up(Self::role(node), zone) })
            }
            2 => Command::Recovered { epoch: Epoch(epoch.0.saturating_sub(u64::from(flag))) },
            3 => Command::ProposeOut {
                node: n(other),
                incarnation: target.incarnation,
                down_since: self.cluster.down_since(other).unwrap_or(LogIndex(1)),
                by_operator: flag,
            },
            4 => Command::NodeLeaving { node: n(other), leaving: flag },
            5 => Command::NodeRemove { node: n(other), force: flag },
            6 => Command::Report { suspect: target, epoch },
            7 => Command::ReportResult { report, reachable: flag },
            _ => Command::CloseReport { report },
        }
    }

    fn vdi_command(&mut self, kind: u8, vdi: usize, number: u64, flag: bool) -> Command {
        let all = self.cluster.state.vdis();
        let record = all.get(vdi % all.len().max(1)).map(|record| Arc::clone(record));
        let Some(record) = record else { return Command::CreateVdi(create("first")) };
        let generation = Generation(record.last_generation.0.saturating_sub(number / 5));
        let guard =
            [Guard::ClosedClean, Guard::Held(generation), Guard::Closed(generation)][number as usize % 3];
        let mode = if flag { AccessMode::Write } else { AccessMode::Read };
        let attachment = record.attachments.get(number as usize / 2).map(|attachment| attachment.index);
        let node = n(number % 4 + 1);
        let vdi = record.id;
        match kind {
            0 | 1 => Command::CreateVdi(CreateVdi {
                copies: Some(1 + number as u8 % 3),
                ..create(&format!("v{}", number % 3))
            }),
            2 => Command::DeleteVdi { vdi, guard },
            3 => Command::ResizeVdi { vdi, size: (1 + number) << 20, guard, shrink: flag },
            4 => Command::RenameVdi { vdi, name: format!("v{number}") },
            5 => Command::SetCopies { vdi, copies: 1 + number as u8, min_copies: 1 },
            6 | 7 => Command::Attach { vdi, node, mode, share: number > 0 },
            8 => Command::Detach { vdi, attachment: attachment.unwrap_or(LogIndex(1)) },
            9..=11 => Command::Lock {
                vdi,
                attachment,
                mode,
                take_from: Some(generation).filter(|_| number.is_multiple_of(2)),
            },
            12 => Command::Unlock { vdi, generation, clean: flag },
            13 => Command::Revoke { vdi, generation },
            14 if flag => Command::MarkSettled { vdi, generation },
            14 => Command::ConfirmEnded { vdi, generation },
            15 | 16 => Command::MapExists { vid: record.vid, maps: vec![number as u32], generation },
            _ => self.tree_command(kind, &record, number, flag),
        }
    }

    fn tree_command(&self, kind: u8, record: &VdiRecord, number: u64, flag: bool) -> Command {
        let state = &self.cluster.state;
        let vdi = record.id;
        let generation = record.lock.map_or(record.last_generation, |lock| lock.generation);
        let guard = match record.lock {
            Some(lock) if number < 4 => Guard::Held(lock.generation),
            Some(_) => Guard::Paused { generation, token: number % 2 },
            None if flag => Guard::Closed(generation),
            None => Guard::ClosedClean,
        };
        let others = state.vdis();
        let other = others.get(number as usize % others.len()).map_or(vdi, |other| other.id);
        let snapshot = state.snapshots_of(vdi).last().map_or(other, |record| record.id);
        match kind {
            17..=19 => {
                let items = [vdi, other].map(|vdi| item(vdi, guard, &format!("t{number}")));
                Command::Snapshot { items: items.into_iter().take(1 + usize::from(flag)).collect() }
            }
            20 if flag => Command::AskPause { vdi, generation, token: number % 2 },
            20 => Command::Pause { vdi, generation, token: number % 2 },
            21 => Command::Resume { vdi, generation, token: number % 2 },
            22 => Command::CloneVdi(CloneVdi {
                copies: Some(1 + number as u8 % 3).filter(|_| flag),
                ..clone_vdi(if record.is_snapshot() { vdi } else { snapshot }, &format!("c{number}"))
            }),
            23 => Command::Rollback { vdi, snapshot, guard },
            24 if flag => Command::Flattened { vdi, generation },
            24 => Command::Replaced { vdi, generation, vids: state.vids().iter().map(|v| v.vid).collect() },
            _ => {
                let due = state.sweeps_due();
                let vid = due.get(number as usize % due.len().max(1)).map_or(record.vid, |due| due.0);
                Command::Swept { vids: vec![SweptVid { vid, empty: flag }], seen: state.applied() }
            }
        }
    }

    fn check(&mut self) {
        self.check_vdis();
        self.check_epochs();
        let voters = self.cluster.state.voters();
        assert!(voters.len() % 2 == 1 && voters.is_sorted_by(|a, b| a < b));
    }

    fn check_vdis(&mut self) {
        let state = &self.cluster.state;
        let all = state.vdis();
        let names: BTreeSet<&str> = all.iter().map(|record| record.name.as_str()).collect();
        assert_eq!(names.len(), all.len(), "names are unique");
        for record in &all {
            assert_eq!(state.vdi_by_name(&record.name).map(|found| found.id), Some(record.id));
            let vid = state.vid(record.vid).expect("a VDI has its vid");
            assert_eq!((vid.vdi, vid.size), (Some(record.id), record.size));
            self.check_name(record);
            assert!(!(record.lock.is_some() && record.is_clean()), "an open VDI is not clean");
            assert!(record.lock.is_none() || record.readers.is_empty(), "one writer or many readers");
            for reader in &record.readers {
                assert!(state.is_up(reader.holder) && record.is_clean());
            }
            if let Some(lock) = record.lock {
                assert!(state.is_up(lock.holder), "a holder is up in the run that holds");
                assert_eq!(lock.generation, record.last_generation);
                let owner = self.generations.entry(lock.generation).or_insert((record.id, lock.holder));
                assert_eq!(*owner, (record.id, lock.holder), "a generation belongs to one writer");
                let attached =
                    |index| record.attachments.iter().any(|a| a.index == index && a.node == lock.holder.node);
                assert!(lock.attachment.is_none_or(attached), "the lock's attachment is a present one");
            }
            let writers = record.attachments.iter().filter(|a| a.mode == AccessMode::Write).count();
            assert!(writers == 0 || writers == record.attachments.len() && writers <= 2);
        }
        assert_eq!(state.vids().iter().filter(|record| record.is_alive()).count(), all.len());
        for record in state.vids() {
            assert!(
                record.is_alive() || !state.frontier(record.vid).is_empty(),
                "dead ones are between others"
            );
            let lineage = state.lineage_of(record.vid).expect("a vid has its lineage");
            assert!(!record.inherits || lineage.origin.is_some_and(|origin| state.vid(origin).is_some()));
            for owner in record.maps.values() {
                assert!(state.vid(*owner).is_some_and(|owner| owner.lineage == record.lineage));
            }
            let first = *self.vids.entry(record.vid).or_insert(record.birth);
            assert_eq!(first, record.birth, "a vid is never used again");
        }
        let held: BTreeMap<NodeId, usize> =
            state.nodes().map(|r| (r.node, state.vdis_used_by(r.node).count())).collect();
        for (node, count) in held {
            let uses = |record: &&&Arc<sheep_state::VdiRecord>| {
                record.lock.is_some_and(|lock| lock.holder.node == node)
                    || record.readers.iter().any(|reader| reader.holder.node == node)
                    || record.attachments.iter().any(|attachment| attachment.node == node)
            };
            assert_eq!(all.iter().filter(uses).count(), count);
        }
    }

    fn check_name(&self, record: &VdiRecord) {
        let state = &self.cluster.state;
        let kind = state.vid(record.vid).map(|vid| vid.kind);
        match record.snapshot_of {
            Some(of) => {
                assert_eq!(kind, Some(VidKind::Snapshot { since: of.since }));
                assert!(record.lock.is_none() && record.is_clean());
                assert!(record.attachments.iter().all(|attachment| attachment.mode == AccessMode::Read));
                let (name, _) = record.name.split_once('@').expect("named after its volume");
                assert!(state.vdi(of.vdi).is_none_or(|volume| volume.name == name));
            }
            None => {
                assert_eq!((kind, record.name.contains('@')), (Some(VidKind::Working), false));
            }
        }
        let snapshots = state.snapshots_of(record.id);
        assert!(snapshots.iter().all(|snapshot| snapshot.snapshot_of.is_some_and(|of| of.vdi == record.id)));
    }

    fn check_epochs(&mut self) {
        let state = &self.cluster.state;
        let members = state.members();
        assert_eq!(state.members_at(state.epoch()).as_ref(), Some(members));
        let changed = self.cluster.last.changes.epoch;
        let former = self.epochs.keys().next_back().copied();
        assert!(former.is_none_or(|former| state.epoch() == former || changed == Some(state.epoch())));
        self.epochs.entry(state.epoch()).or_insert_with(|| Arc::clone(members));
        for (epoch, then) in &self.epochs {
            let remembered = state.members_at(*epoch);
            assert_eq!(remembered.is_some(), *epoch >= state.oldest_epoch());
            assert!(remembered.is_none_or(|remembered| remembered == *then), "history does not change");
        }
        for record in state.nodes().filter(|record| record.role == Role::Storage) {
            let member = members.get(record.node);
            let expected = match record.state {
                NodeState::Up => Some(MemberState::Up),
                NodeState::Leaving => Some(MemberState::Leaving),
                NodeState::Down { .. } => Some(MemberState::Down),
                NodeState::Out { .. } => None,
            };
            assert_eq!(member.map(|member| member.state), expected);
            assert!(member.is_none_or(|member| member.incarnation == record.incarnation));
        }
        assert!(members.iter().all(|member| state.node(member.node).is_some()));
    }
}

/// Small numbers, which name something, and the largest.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..80u64, 1 => any::<u64>(), 1 => Just(u64::MAX), 1 => Just(u64::from(u32::MAX))]
}

fn wild_command(kind: u8, a: u64, b: u64, flag: bool) -> Command {
    let (vdi, generation, vid) = (VdiId(a), Generation(b), Vid(a as u32));
    let guard = [Guard::ClosedClean, Guard::Held(generation), Guard::Paused { generation, token: b }];
    let guard = guard[b as usize % 3];
    match kind {
        0 => {
            Command::Snapshot { items: vec![item(vdi, guard, "t"); if flag { 1 } else { b as usize % 300 }] }
        }
        1 if flag => Command::AskPause { vdi, generation, token: b },
        1 => Command::Pause { vdi, generation, token: b },
        2 => Command::Resume { vdi, generation, token: b },
        3 => Command::CloneVdi(CloneVdi {
            size: Some(b).filter(|_| flag),
            copies: Some(b as u8),
            ..clone_vdi(vdi, "wild")
        }),
        4 => Command::Rollback { vdi, snapshot: VdiId(b), guard },
        5 => Command::Replaced { vdi, generation, vids: vec![vid; b as usize % 300] },
        6 => {
            let vids = vec![SweptVid { vid, empty: flag }; if flag { 1 } else { b as usize % 1100 }];
            Command::Swept { vids, seen: LogIndex(b) }
        }
        7 => Command::Flattened { vdi, generation },
        _ => Command::MapExists { vid, maps: vec![b as u32], generation },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold(ops in prop::collection::vec(op(), 1..120)) {
        let mut world = World::new(Cluster::with(4));
        world.live(&ops);
        // The same log gives the same bytes, and a snapshot the same state.
        let state = &world.cluster.state;
        let mut again = ClusterState::new();
        for (index, entry) in (1..).zip(&world.cluster.log) {
            again.apply(LogIndex(index), entry);
        }
        let bytes = state.encode_snapshot();
        prop_assert_eq!(again.encode_snapshot(), bytes.clone());
        let decoded = ClusterState::decode_snapshot(&bytes).unwrap();
        prop_assert_eq!(&decoded, state);
        prop_assert_eq!(decoded.hash(), state.hash());
    }

    /// Commands that a broken or hostile peer may order: any numbers, from anybody.
    #[test]
    fn any_command_is_never_a_panic(
        ops in prop::collection::vec(op(), 1..40),
        wild in prop::collection::vec((0..9u8, number(), number(), any::<bool>()), 1..20),
    ) {
        let mut world = World::new(Cluster::with(4));
        world.live(&ops);
        for (kind, a, b, flag) in wild {
            let command = wild_command(kind, a, b, flag);
            prop_assert_eq!(&Command::decode(&command.encode()), &command);
            let _ = world.cluster.run(1 + b % 5, command);
            world.check();
        }
        let state = &world.cluster.state;
        prop_assert_eq!(&ClusterState::decode_snapshot(&state.encode_snapshot()).unwrap(), state);
    }

    #[test]
    fn garbage_is_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(ClusterState::decode_snapshot(&bytes).is_err());
        let mut cluster = Cluster::with(2);
        let origin = Member { node: n(1), incarnation: Incarnation(1) };
        let entry = EntryKind::command(origin, CommandSeq(2), &[&[1], &bytes[..]].concat());
        cluster.entry(entry);
    }
}

/// Every broken variant is caught by random sequences too, not only by its script.
#[cfg(feature = "mutants")]
mod broken {
    use super::*;
    use proptest::test_runner::{Config, TestRunner};
    use sheep_state::Mutant;

    #[test]
    fn variants_are_caught() {
        for mutant in [
            Mutant::RestartWithoutEpoch,
            Mutant::DuplicateFilterAnyLater,
            Mutant::SharedGeneration,
            Mutant::VidReuse,
            Mutant::LockIgnoresAttachment,
        ] {
            let config =
                Config { cases: 5_000, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
            let mut runner = TestRunner::new_with_rng(config, TestRunner::deterministic().new_rng());
            let result = runner.run(&prop::collection::vec(op(), 1..120), |ops| {
                let mut cluster = Cluster::with(4);
                cluster.state.set_mutant(Some(mutant));
                World::new(cluster).live(&ops);
                Ok(())
            });
            assert!(result.is_err(), "{mutant:?} was not noticed");
        }
    }
}
