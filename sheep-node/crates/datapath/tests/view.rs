//! Where objects are, as a view tells it: the same however it is asked for, in every epoch that is remembered, and never
//! what was true an epoch before.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use sheep_datapath::View;
use sheep_placement::{PlacementMember, Ring};
use sheep_state::{ClusterState, NodeState};
use sheep_types::{Epoch, Incarnation, Member, NodeId, ObjectId, ObjectKind, Vid};
use std::sync::Arc;
use support::log::Log;
use support::{CLUSTER, HAND, Rng, geometry};

const NODES: u64 = 7;
const OBJECTS: u32 = 24;

/// A set, worked out from the ordered state alone.
fn expected(state: &ClusterState, epoch: Epoch, vid: Vid, index: u32) -> (Vec<NodeId>, Vec<Member>) {
    let members = state.members_at(epoch).unwrap();
    let placed = members.iter().filter(|member| member.is_placed()).map(|member| PlacementMember {
        node: member.node,
        zone: member.zone.clone(),
        weight: member.weight,
    });
    let ring = Ring::build(&placed.collect::<Vec<_>>(), members.weight_unit);
    let lineage = state.vid(vid).unwrap().lineage;
    let set = ring.set(lineage, ObjectKind::Data, index, state.copies_in(vid, &members));
    let up = set.iter().filter_map(|node| members.get(*node).filter(|member| member.is_up()));
    let up = up.map(|member| member.member()).collect();
    (set, up)
}

fn compare(view: &View, vid: Vid, index: u32) {
    let (state, object) = (&view.state, ObjectId::data(vid, index));
    for epoch in (view.oldest_epoch().0..=view.epoch().0).map(Epoch) {
        let (set, up) = expected(state, epoch, vid, index);
        for node in (1..=NODES).map(NodeId) {
            assert_eq!(view.in_set_at(epoch, object, node), set.contains(&node), "{epoch} {object} {node}");
        }
        assert_eq!((view.set_at(epoch, object), view.up_set_at(epoch, object)), (Some(set), Some(up)));
    }
    let (_, up) = expected(state, view.epoch(), vid, index);
    for node in (1..=NODES).map(NodeId) {
        for incarnation in (1..=40).map(Incarnation) {
            let member = Member { node, incarnation };
            assert_eq!(view.in_up_set(object, member), up.contains(&member), "{object} {member:?}");
        }
    }
    assert_eq!(view.up_set(object), up);
    let newer = Epoch(view.epoch().0 + 1);
    assert!(view.set_at(newer, object).is_none() && !view.in_set_at(newer, object, NodeId(1)));
}

#[test]
fn a_view_places_objects_as_its_epochs_say_after_every_change() {
    for seed in 1..=5 {
        let (mut rng, mut log) = (Rng::new(seed), Log::new(geometry(), 3, 1));
        log.join(HAND, false);
        (1..=NODES).for_each(|node| log.join(node, true));
        let (_, vid) = log.create("a", 1 << 20);
        let me = log.member(1);
        let mut view: Option<View> = None;
        let mut moved = 0;
        for _ in 0..20 {
            let absent: Vec<u64> = (2..=NODES).filter(|_| rng.chance(30)).collect();
            let is_down = |log: &Log, node: u64| {
                matches!(log.state.node(NodeId(node)).unwrap().state, NodeState::Down { .. })
            };
            let back: Vec<u64> =
                (2..=NODES).filter(|node| is_down(&log, *node) && !absent.contains(node)).collect();
            back.iter().for_each(|node| log.new_incarnation(*node));
            log.install_without(&absent);
            back.iter().for_each(|node| log.announce(*node));
            let index = log.state.applied();
            let next = View::advance(view.as_ref(), me, CLUSTER, index, Arc::clone(&log.snapshot));
            (0..OBJECTS).for_each(|index| compare(&next, vid, index));
            moved += (0..OBJECTS)
                .map(|index| ObjectId::data(vid, index))
                .filter(|object| {
                    view.as_ref().is_some_and(|view| view.up_set(*object) != next.up_set(*object))
                })
                .count();
            view = Some(next);
        }
        assert!(moved > 100, "the sets hardly changed: {moved}");
    }
}
