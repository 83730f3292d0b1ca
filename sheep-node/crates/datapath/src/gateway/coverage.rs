//! Whether those who can be asked know of everything that an earlier holder may have created.
//!
//! A new object is in no map until its entry is written, so a new holder knows of it only from members that have
//! it. A creation is answered when all up members of the object's set in that epoch have it. So one member of that
//! set that is up in the same run as then, and does not list the object, proves that there is none. Without such
//! a member there is no proof while one that was cut off may come back with the object in memory.

use crate::View;
use sheep_state::NodeState;
use sheep_types::{Epoch, Generation, Geometry, Member, NodeId, ObjectId, Vid};
use std::collections::BTreeSet;

/// Whether for each object of the volume, and each epoch since the grant `since`, somebody who is up would know if
/// it had been created in that epoch.
pub(super) fn is_covered(view: &View, vid: Vid, geometry: Geometry, size: u64, since: Generation) -> bool {
    epochs(view, since).all(|epoch| is_covered_at(view, vid, geometry.objects_in(size), epoch))
}

/// The epochs since a grant.
fn epochs(view: &View, since: Generation) -> impl Iterator<Item = Epoch> {
    let (oldest, present) = (view.oldest_epoch().0, view.epoch().0);
    let begun = |epoch: &u64| view.members_at(Epoch(*epoch)).is_some_and(|members| members.at.0 <= since.0);
    let first = (oldest..=present).rev().find(begun).unwrap_or(oldest);
    (first..=present).map(Epoch)
}

/// Who would have to come back, or to be given up, if a volume is not covered.
pub(super) fn missing(view: &View, since: Generation) -> BTreeSet<NodeId> {
    let members = epochs(view, since).filter_map(|epoch| view.members_at(epoch));
    let up = members.flat_map(|members| members.iter().filter(|member| member.is_up()));
    up.map(|member| member.member())
        .filter(|member| is_missing(view, *member))
        .map(|member| member.node)
        .collect()
}

fn is_covered_at(view: &View, vid: Vid, objects: u64, epoch: Epoch) -> bool {
    let Some(members) = view.members_at(epoch) else { return true };
    let up = members.iter().filter(|member| member.is_up()).map(|member| member.member());
    let gone: Vec<Member> = up.filter(|member| !is_present(view, *member, epoch)).collect();
    if !gone.iter().any(|member| is_missing(view, *member)) {
        return true;
    }
    // Fewer than the smallest set: each has a member left.
    let down = members.iter().filter(|member| !member.is_up()).count();
    if gone.len() < view.state.copies_in(vid, members).saturating_sub(down) {
        return true;
    }
    let indexes = 0..u32::try_from(objects).unwrap_or(ObjectId::INDEX_LIMIT).min(ObjectId::INDEX_LIMIT);
    indexes.into_iter().all(|index| {
        let set = view.up_set_at(epoch, ObjectId::data(vid, index)).unwrap_or_default();
        set.iter().any(|member| is_present(view, *member, epoch))
            || !set.iter().any(|member| is_missing(view, *member))
    })
}

/// Up in the same run as then, with the same disks: what it had in memory, it has.
fn is_present(view: &View, member: Member, since: Epoch) -> bool {
    view.member_now(member.node) == Some(member) && view.kept_disks(member.node, since, view.epoch())
}

/// Not up, and perhaps still in the run of then. A node that is out was given up.
fn is_missing(view: &View, member: Member) -> bool {
    let record = view.state.node(member.node);
    record.is_some_and(|record| {
        record.incarnation == member.incarnation && matches!(record.state, NodeState::Down { .. })
    })
}
