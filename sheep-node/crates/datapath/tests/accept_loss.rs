//! Looking at all copies of an object, and giving up objects that are lost: after that they are zeros, and what
//! comes back later stays hidden.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use bytes::Bytes;
use core::time::Duration;
use sheep_datapath::{
    CopyState, Finding, GatewayOutput, Mutants, ObjectCheck, OpenMode, ReadExtent, VolumeError, VolumeOp,
    VolumeReply,
};
use sheep_state::{Command, NodeState};
use sheep_types::{NodeId, ObjectId, VdiId, Vid};
use support::Net;

const GATEWAY: NodeId = NodeId(101);
const OBJECTS: u32 = 8;

/// A volume that is open at a gateway without a store.
struct Open {
    net: Net,
    vid: Vid,
    io: u64,
    victim_was: u64,
}

type Answer = Result<VolumeReply, VolumeError>;

impl Open {
    fn new(storage: u64, copies: u8, mutants: Mutants) -> Self {
        let mut net = Net::with_mutants(1, storage, 1, copies, 1, mutants);
        let (vdi, vid) = net.vdi("a", u64::from(OBJECTS));
        net.run_for(Duration::from_millis(50));
        let mut open = Self { net, vid, io: 0, victim_was: 0 };
        open.open(vdi);
        for index in 0..OBJECTS {
            let data = Bytes::from(vec![index as u8 + 1; 8192]);
            let op = VolumeOp::Write { offset: open.offset(index), data, fua: false };
            assert_eq!(open.run(op), Ok(VolumeReply::Done));
        }
        assert_eq!(open.run(VolumeOp::Flush), Ok(VolumeReply::Done));
        open.net.run_for(Duration::from_secs(1));
        open
    }

    fn open(&mut self, vdi: VdiId) {
        let now = self.net.now;
        let deadline = now + Duration::from_secs(100_000);
        let shard = self.net.nodes.get_mut(&GATEWAY).unwrap().shard.as_mut().unwrap();
        shard.handle_lease(now, deadline);
        shard.gateway().open(now, 1, vdi, OpenMode::Write);
        self.net.drain(GATEWAY);
        for _ in 0..1000 {
            self.net.run_for(Duration::from_millis(10));
            if self.net.said.iter().any(|(_, said)| matches!(said, GatewayOutput::Opened { .. })) {
                return;
            }
        }
        panic!("not opened: {:?}", self.net.said);
    }

    fn offset(&self, index: u32) -> u64 {
        u64::from(index) * u64::from(support::geometry().object_size())
    }

    fn start(&mut self, op: VolumeOp) -> u64 {
        self.io += 1;
        let (now, io) = (self.net.now, self.io);
        let shard = self.net.nodes.get_mut(&GATEWAY).unwrap().shard.as_mut().unwrap();
        shard.gateway().submit(now, 1, io, op);
        self.net.drain(GATEWAY);
        io
    }

    fn run(&mut self, op: VolumeOp) -> Answer {
        let io = self.start(op);
        for _ in 0..3000 {
            let done = self.net.said.iter().find_map(|(_, said)| match said {
                GatewayOutput::Done { io: done, result, .. } if *done == io => Some(result.clone()),
                _ => None,
            });
            if let Some(done) = done {
                return done;
            }
            self.net.run_for(Duration::from_millis(10));
        }
        panic!("not answered");
    }

    fn check(&mut self, index: u32) -> ObjectCheck {
        match self.run(VolumeOp::Check { map: false, index }) {
            Ok(VolumeReply::Checked(check)) => check,
            other => panic!("{other:?}"),
        }
    }

    /// First byte of an object; `None`: an I/O error.
    fn read(&mut self, index: u32) -> Option<u8> {
        let offset = self.offset(index);
        match self.run(VolumeOp::Read { offset, len: 4096 }) {
            Ok(VolumeReply::Read(extents)) => Some(match extents.first() {
                Some(ReadExtent::Data(data)) => data[0],
                _ => 0,
            }),
            Err(VolumeError::Io) => None,
            other => panic!("{other:?}"),
        }
    }

    fn accept(&mut self, index: u32, force: bool) -> Answer {
        self.run(VolumeOp::AcceptLoss { index, force })
    }

    /// A node that does not have the map, without which nothing can be changed.
    fn victim(&self) -> u64 {
        3 - self.net.set(ObjectId::map(self.vid, 0))[0]
    }

    fn holder(&self, index: u32) -> u64 {
        self.net.set(ObjectId::data(self.vid, index))[0]
    }
}

#[test]
fn copies_are_looked_at_side_by_side() {
    let mut open = Open::new(3, 3, Mutants::default());
    let check = open.check(2);
    let states: Vec<CopyState> = check.copies.values().copied().collect();
    assert!(check.exists && check.may_hold.is_empty());
    assert!(
        matches!(states[0], CopyState::Current { .. }) && states.iter().all(|s| *s == states[0]),
        "{states:?}"
    );
    assert_eq!(states.len(), 3);
    assert_eq!(open.check(OBJECTS + 7), ObjectCheck::default(), "nothing was ever written there");
    open.net.crash(3, 0);
    open.net.install_without(&[3]);
    open.net.run_for(Duration::from_millis(100));
    let check = open.check(2);
    assert_eq!(check.copies[&NodeId(3)], CopyState::Down);
    assert_eq!(check.copies.values().filter(|s| matches!(s, CopyState::Current { .. })).count(), 2);
    assert_eq!(check.may_hold.into_iter().collect::<Vec<_>>(), [NodeId(3)]);
    assert_eq!(open.accept(2, true), Err(VolumeError::NotLost), "whatever is asked for");
    assert_eq!(open.read(2), Some(3));
}

/// One of two nodes dies for good, and with it the only copies of what it held.
fn a_node_is_removed() -> (Open, Vec<u32>, Vec<u32>) {
    let mut open = Open::new(2, 1, Mutants::default());
    let victim = open.victim();
    let (lost, kept): (Vec<u32>, Vec<u32>) = (0..OBJECTS).partition(|index| open.holder(*index) == victim);
    assert!(!lost.is_empty() && !kept.is_empty());
    open.victim_was = victim;
    open.net.crash(victim, 0);
    open.net.install_without(&[victim]);
    let away = open.net.log.member(victim);
    open.net.run_for(Duration::from_millis(100));
    open.net
        .log
        .run_as(open.net.log.member(3 - victim), Command::NodeRemove { node: away.node, force: true });
    open.net.distribute();
    open.net.run_for(Duration::from_secs(5));
    (open, lost, kept)
}

#[test]
fn what_is_lost_is_an_error_until_it_is_given_up_and_zeros_then() {
    let (mut open, lost, kept) = a_node_is_removed();
    for index in 0..OBJECTS {
        let expected = kept.contains(&index).then_some(index as u8 + 1);
        assert_eq!(open.read(index), expected, "object {index}");
    }
    let left = 3 - open.victim_was;
    let found = open.net.findings(left);
    assert_eq!(found.iter().filter(|f| matches!(f, Finding::Lost(_))).count(), lost.len(), "{found:?}");
    assert_eq!(open.accept(kept[0], true), Err(VolumeError::NotLost));
    let check = open.check(lost[0]);
    assert_eq!(check.copies.values().copied().collect::<Vec<_>>(), [CopyState::Lost]);
    for index in &lost {
        assert_eq!(open.accept(*index, false), Ok(VolumeReply::Done), "object {index}");
    }
    for index in 0..OBJECTS {
        let expected = if kept.contains(&index) { index as u8 + 1 } else { 0 };
        assert_eq!(open.read(index), Some(expected), "object {index}");
    }
    assert_eq!(open.net.replica(left).lost_objects().count(), 0);
    let data = Bytes::from(vec![99; 4096]);
    let op = VolumeOp::Write { offset: open.offset(lost[0]), data, fua: true };
    assert_eq!((open.run(op), open.read(lost[0])), (Ok(VolumeReply::Done), Some(99)));
}

/// The node with the only copies is away for so long that its place is given to the other one; then it comes back.
fn somebody_may_come_back(mutants: Mutants, force: bool) -> Result<(), String> {
    let mut open = Open::new(2, 1, mutants);
    let victim = open.victim();
    let lost: Vec<u32> = (0..OBJECTS).filter(|index| open.holder(*index) == victim).collect();
    let index = lost[0];
    open.net.crash(victim, 0);
    open.net.install_without(&[victim]);
    open.net.run_for(Duration::from_millis(200));
    // Nobody else is in its place yet.
    if open.accept(index, true) != Err(VolumeError::MayComeBack) {
        return Err("given up where nobody can have it instead".into());
    }
    let record = open.net.log.state.node(NodeId(victim)).unwrap();
    let NodeState::Down { since, .. } = record.state else { panic!("{record:?}") };
    let (node, incarnation) = (NodeId(victim), record.incarnation);
    let command = Command::ProposeOut { node, incarnation, down_since: since, by_operator: true };
    open.net.log.run(3 - victim, command).unwrap();
    open.net.distribute();
    open.net.run_for(Duration::from_secs(2));
    let check = open.check(index);
    if check.copies.get(&NodeId(3 - victim)) != Some(&CopyState::NotCurrent) {
        return Err(format!("{check:?}"));
    }
    let answer = open.accept(index, force);
    let expected = if force { Ok(VolumeReply::Done) } else { Err(VolumeError::MayComeBack) };
    if answer != expected {
        return Err(format!("{answer:?}"));
    }
    open.net.restart(victim);
    open.net.settle();
    open.net.run_for(Duration::from_secs(3));
    for other in 0..OBJECTS {
        let expected = if force && other == index { 0 } else { other as u8 + 1 };
        let found = open.read(other);
        if found != Some(expected) {
            return Err(format!("object {other}: {found:?}"));
        }
    }
    Ok(())
}

#[test]
fn nothing_is_given_up_while_somebody_may_have_it() {
    assert_eq!(somebody_may_come_back(Mutants::default(), false), Ok(()));
}

#[test]
fn what_was_given_up_all_the_same_does_not_come_back() {
    assert_eq!(somebody_may_come_back(Mutants::default(), true), Ok(()));
}

#[cfg(feature = "mutants")]
#[test]
fn giving_up_while_somebody_is_away_shows() {
    let mutants = Mutants::only(sheep_datapath::Mutant::AcceptLossWhileDown);
    assert!(somebody_may_come_back(mutants, false).is_err());
}
