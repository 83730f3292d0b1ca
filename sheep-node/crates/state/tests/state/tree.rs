//! Snapshots, clones, rollback and deletion, one rule at a time; [`forest`](crate::forest) has them all at once.

use crate::cluster::{Cluster, clone_vdi, item, n};
use sheep_state::limits::MAX_CLONE_DEPTH;
use sheep_state::{AccessMode, CloneVdi, Command, Guard, Limited, Outcome, Refusal, VidKind};
use sheep_types::{Birth, Generation, VdiId, Vid};
use std::collections::BTreeMap;

fn take(cluster: &mut Cluster, node: u64, vdi: VdiId, guard: Guard, tag: &str) -> Result<Outcome, Refusal> {
    cluster.run(node, Command::Snapshot { items: vec![item(vdi, guard, tag)] })
}

fn maps(cluster: &mut Cluster, vdi: VdiId, maps: &[u32]) {
    let (vid, generation) = (cluster.state.vdi(vdi).unwrap().vid, cluster.generation(vdi).unwrap());
    cluster.run(100, Command::MapExists { vid, maps: maps.to_vec(), generation }).unwrap();
}

#[test]
fn a_snapshot_takes_the_vid_and_the_volume_goes_on_with_another() {
    let mut cluster = Cluster::with(3);
    let (vdi, vid) = cluster.vdi("disk");
    cluster.open(vdi);
    maps(&mut cluster, vdi, &[0, 3]);
    cluster.close(vdi);
    let made = cluster.snapshot(vdi, "monday");
    let at = cluster.state.applied();
    assert_eq!((made.vdi, made.vid, made.volume), (VdiId(at.0), vid, vdi));
    let state = &cluster.state;
    let snapshot = state.vdi_by_name("disk@monday").unwrap();
    assert_eq!((snapshot.id, snapshot.vid, snapshot.tag()), (made.vdi, vid, Some("monday")));
    assert_eq!(snapshot.snapshot_of.map(|of| (of.vdi, of.since)), Some((vdi, at)));
    let (old, new) = (state.vid(vid).unwrap(), state.vid(made.working).unwrap());
    assert_eq!((old.kind, old.vdi), (VidKind::Snapshot { since: at }, Some(made.vdi)));
    assert_eq!((new.kind, new.vdi, new.parent), (VidKind::Working, Some(vdi), Some(vid)));
    assert_eq!((new.lineage, new.birth, &new.maps), (vid, Birth(at.0), &old.maps));
    assert_eq!((state.vdi(vdi).unwrap().vid, state.vdi(vdi).unwrap().name.as_str()), (made.working, "disk"));
    assert!(state.vdi(vdi).unwrap().is_clean() && !state.writable(vid) && state.writable(made.working));
    assert_eq!((state.unchanged_since(vid), state.lineage_of(made.working).unwrap().vids), (Some(at), 2));
    // The next write to the map makes a map object of the new vid's.
    cluster.open(vdi);
    maps(&mut cluster, vdi, &[3]);
    let now = &cluster.state.vid(made.working).unwrap().maps;
    assert_eq!(**now, BTreeMap::from([(0, vid), (3, made.working)]));
    assert_eq!(*cluster.state.vid(vid).unwrap().maps, BTreeMap::from([(0, vid), (3, vid)]));
}

#[test]
fn nobody_writes_a_snapshot_and_many_read_it() {
    let mut cluster = Cluster::with(2);
    let (volume, _) = cluster.vdi("disk");
    let vdi = cluster.snapshot(volume, "s").vdi;
    let lock = |mode| Command::Lock { vdi, attachment: None, mode, take_from: None };
    assert_eq!(cluster.run(100, lock(AccessMode::Write)), Err(Refusal::IsSnapshot));
    let attach = |node, mode| Command::Attach { vdi, node: n(node), mode, share: false };
    assert_eq!(cluster.run(1, attach(100, AccessMode::Write)), Err(Refusal::IsSnapshot));
    for node in [100, 101] {
        cluster.run(node, lock(AccessMode::Read)).unwrap();
    }
    let grow = Command::ResizeVdi { vdi, size: 2 << 30, guard: Guard::ClosedClean, shrink: false };
    assert_eq!(cluster.run(1, grow), Err(Refusal::IsSnapshot));
    assert_eq!(take(&mut cluster, 1, vdi, Guard::ClosedClean, "t"), Err(Refusal::IsSnapshot));
    let delete = Command::DeleteVdi { vdi, guard: Guard::ClosedClean };
    assert_eq!(cluster.run(1, delete.clone()), Err(Refusal::InUseByReaders(2)));
    for node in [100, 101] {
        let granted = cluster.state.reader(vdi, cluster.member(node)).unwrap().granted;
        cluster.run(node, Command::Unlock { vdi, generation: Generation(granted.0), clean: true }).unwrap();
    }
    cluster.run(1, attach(100, AccessMode::Read)).unwrap();
    assert_eq!(cluster.run(1, delete), Err(Refusal::Attached(n(100))));
    cluster.run(1, Command::SetAttribute { vdi, key: "k".into(), value: Some("v".into()) }).unwrap();
}

#[test]
fn a_held_volume_is_snapshotted_by_its_holder_alone() {
    let mut cluster = Cluster::with(2);
    let (vdi, vid) = cluster.vdi("disk");
    let generation = cluster.open(vdi);
    for (node, guard) in [
        (100, Guard::ClosedClean),
        (101, Guard::Held(generation)),
        (100, Guard::Held(Generation(generation.0 - 1))),
        (100, Guard::Closed(generation)),
        (100, Guard::Paused { generation, token: 0 }),
    ] {
        assert_eq!(take(&mut cluster, node, vdi, guard, "s"), Err(Refusal::StaleGuard), "{guard:?}");
    }
    let made = cluster.snapshot(vdi, "s");
    // The lock goes on, under the new vid.
    let state = &cluster.state;
    assert_eq!(cluster.generation(vdi), Some(generation));
    assert_eq!((state.write_generation(made.working), state.write_generation(vid)), (Some(generation), None));
    assert_eq!((state.generation(vid), state.unchanged_since(made.working)), (None, None));
    // What was under way for the old vid is refused.
    let late = Command::MapExists { vid, maps: vec![1], generation };
    assert_eq!(cluster.run(100, late), Err(Refusal::NotWritable(vid)));
    // A lock that ended without a word leaves copies behind that must be settled first.
    cluster.run(1, Command::Revoke { vdi, generation }).unwrap();
    assert_eq!(take(&mut cluster, 1, vdi, Guard::ClosedClean, "t"), Err(Refusal::StaleGuard));
    let second = cluster.open(vdi);
    assert_eq!(take(&mut cluster, 100, vdi, Guard::Held(second), "t"), Err(Refusal::NotClean));
    cluster.run(100, Command::MarkSettled { vdi, generation: second }).unwrap();
    cluster.snapshot(vdi, "t");
}

#[test]
fn a_group_is_taken_for_all_or_for_none() {
    let mut cluster = Cluster::with(2);
    let (a, _) = cluster.vdi("a");
    let (b, _) = cluster.vdi("b");
    let generation = cluster.open(a);
    let group =
        |guard| Command::Snapshot { items: vec![item(b, Guard::ClosedClean, "s"), item(a, guard, "s")] };
    let paused = |token| group(Guard::Paused { generation, token });
    assert_eq!(cluster.run(1, paused(7)), Err(Refusal::StaleGuard));
    let pause = |token| Command::Pause { vdi: a, generation, token };
    let ask = |token| Command::AskPause { vdi: a, generation, token };
    assert_eq!(cluster.run(100, pause(7)), Err(Refusal::StaleGuard), "nobody has asked for it");
    cluster.run(1, ask(7)).unwrap();
    cluster.run(1, ask(7)).unwrap();
    assert_eq!(cluster.run(1, ask(8)), Err(Refusal::Paused), "one group at a time");
    assert_eq!(cluster.run(1, paused(7)), Err(Refusal::StaleGuard), "it does not stand still yet");
    assert_eq!(cluster.run(101, pause(7)), Err(Refusal::StaleGuard));
    cluster.run(100, pause(7)).unwrap();
    cluster.run(100, pause(7)).unwrap();
    assert_eq!(cluster.run(100, pause(8)), Err(Refusal::StaleGuard));
    // Called off: the snapshot that comes late does nothing, for no volume.
    cluster.run(1, Command::Resume { vdi: a, generation, token: 8 }).unwrap();
    cluster.run(1, Command::Resume { vdi: a, generation, token: 7 }).unwrap();
    assert_eq!(cluster.run(1, paused(7)), Err(Refusal::StaleGuard));
    assert_eq!(cluster.state.vdi_count(), 2);
    assert_eq!(cluster.run(100, pause(7)), Err(Refusal::StaleGuard), "called off before it was said");
    cluster.run(1, ask(8)).unwrap();
    cluster.run(100, pause(8)).unwrap();
    let Ok(Outcome::Snapshots(made)) = cluster.run(1, paused(8)) else { panic!() };
    let at = cluster.state.applied().0;
    assert_eq!([made[0].vdi, made[1].vdi], [VdiId(at), VdiId(at | 1 << 48)]);
    assert_eq!([made[0].volume, made[1].volume], [b, a]);
    assert_ne!(made[0].working, made[1].working);
    assert_eq!(cluster.state.vdi(a).unwrap().lock.unwrap().paused, None);
    // The token is used up, and a pause ends with its lock.
    let again = Command::Snapshot { items: vec![item(a, Guard::Paused { generation, token: 8 }, "t")] };
    assert_eq!(cluster.run(1, again), Err(Refusal::StaleGuard));
    cluster.run(1, ask(9)).unwrap();
    cluster.run(100, pause(9)).unwrap();
    let next = cluster.open(a);
    let late = Command::Snapshot { items: vec![item(a, Guard::Paused { generation, token: 9 }, "t")] };
    assert_eq!(cluster.run(1, late), Err(Refusal::StaleGuard));
    assert_eq!(cluster.run(100, pause(9)), Err(Refusal::StaleGuard));
    assert_eq!(cluster.run(1, Command::Resume { vdi: a, generation, token: 9 }), Err(Refusal::StaleGuard));
    assert_eq!(cluster.generation(a), Some(next));
}

#[test]
fn commands_have_bounds() {
    let mut cluster = Cluster::with(2);
    let (a, _) = cluster.vdi("a");
    let one = item(a, Guard::ClosedClean, "s");
    let mut refused = |items| cluster.run(1, Command::Snapshot { items }).unwrap_err();
    assert_eq!(refused(Vec::new()), Refusal::BadGroup);
    assert_eq!(refused(vec![one.clone(), item(a, Guard::ClosedClean, "t")]), Refusal::BadGroup);
    let full = Refusal::Limit { what: Limited::Snapshots, limit: 256 };
    assert_eq!(refused(vec![one.clone(); 257]), full);
    for tag in ["", "a@b", "/t", "t ", "a\nb", &"t".repeat(254)] {
        assert_eq!(refused(vec![item(a, Guard::ClosedClean, tag)]), Refusal::BadName, "{tag:?}");
    }
    let many = (0..65).map(|i| (i.to_string(), String::new())).collect();
    let many = sheep_state::SnapshotItem { attributes: many, ..one };
    assert_eq!(refused(vec![many]), Refusal::Limit { what: Limited::Attributes, limit: 64 });
    assert_eq!(refused(vec![item(VdiId(999), Guard::ClosedClean, "t")]), Refusal::NoSuchVdi);
    let generation = cluster.open(a);
    let many = Command::Replaced { vdi: a, generation, vids: vec![Vid(1); 257] };
    assert_eq!(cluster.run(100, many), Err(Refusal::Limit { what: Limited::Replaced, limit: 256 }));
}

#[test]
fn snapshots_follow_the_name_of_their_volume() {
    let mut cluster = Cluster::with(2);
    let (a, _) = cluster.vdi("a");
    let s = cluster.snapshot(a, "s").vdi;
    // Asked again by somebody who has not seen the answer.
    assert_eq!(take(&mut cluster, 1, a, Guard::Held(Generation(1)), "s"), Err(Refusal::NameTaken { vdi: s }));
    let t = cluster.snapshot(a, "t").vdi;
    let rename = |vdi, name: &str| Command::RenameVdi { vdi, name: name.to_owned() };
    cluster.run(1, rename(a, "b")).unwrap();
    let named = |cluster: &Cluster, name: &str| cluster.state.vdi_by_name(name).map(|record| record.id);
    assert_eq!(
        [named(&cluster, "b@s"), named(&cluster, "b@t"), named(&cluster, "a@s")],
        [Some(s), Some(t), None]
    );
    // A snapshot changes its tag only.
    assert_eq!(cluster.run(1, rename(s, "c@s")), Err(Refusal::BadName));
    assert_eq!(cluster.run(1, rename(s, "plain")), Err(Refusal::BadName));
    assert_eq!(cluster.run(1, rename(s, "b@t")), Err(Refusal::NameTaken { vdi: t }));
    assert_eq!(cluster.run(1, rename(a, "b@x")), Err(Refusal::BadName));
    cluster.run(1, rename(s, "b@first")).unwrap();
    // Snapshots outlive their volume, and hold their names against a later one.
    cluster.delete(a);
    let left = cluster.state.snapshots_of(a).iter().map(|record| record.id).collect::<Vec<_>>();
    assert_eq!(left, [s, t]);
    let (c, _) = cluster.vdi("c");
    let u = cluster.snapshot(c, "first").vdi;
    assert_eq!(cluster.run(1, rename(c, "b")), Err(Refusal::NameTaken { vdi: s }));
    assert_eq!([named(&cluster, "c@first"), named(&cluster, "c")], [Some(u), Some(c)]);
    assert_eq!(cluster.run(1, rename(c, &"x".repeat(252))), Err(Refusal::BadName));
    let (b, _) = cluster.vdi("b");
    assert_eq!(take(&mut cluster, 1, b, Guard::ClosedClean, "t"), Err(Refusal::NameTaken { vdi: t }));
}

#[test]
fn a_clone_begins_a_lineage() {
    let mut cluster = Cluster::with(4);
    let (volume, _) = cluster.vdi("golden");
    cluster.run(1, Command::SetCopies { vdi: volume, copies: 2, min_copies: 1 }).unwrap();
    let s = cluster.snapshot(volume, "s");
    let clone = |clone| Command::CloneVdi(clone);
    let refused = |cluster: &mut Cluster, of| cluster.run(1, clone(of)).unwrap_err();
    let like = clone_vdi(s.vdi, "clone");
    assert_eq!(refused(&mut cluster, clone_vdi(volume, "c")), Refusal::NotASnapshot);
    assert_eq!(
        refused(&mut cluster, CloneVdi { size: Some(1 << 20), ..like.clone() }),
        Refusal::WouldShrink { size: 1 << 30 }
    );
    assert_eq!(refused(&mut cluster, CloneVdi { copies: Some(0), ..like.clone() }), Refusal::BadCopies);
    assert_eq!(refused(&mut cluster, clone_vdi(s.vdi, "golden")), Refusal::NameTaken { vdi: volume });
    assert_eq!(refused(&mut cluster, clone_vdi(s.vdi, "a@b")), Refusal::BadName);
    let (_, vid) = cluster.clone_of(s.vdi, "clone");
    let state = &cluster.state;
    let (record, lineage) = (state.vid(vid).unwrap(), state.lineage_of(vid).unwrap());
    assert_eq!(
        (record.lineage, record.parent, record.size, record.maps.len()),
        (vid, Some(s.vid), 1 << 30, 0)
    );
    assert_eq!((lineage.copies, lineage.min_copies, lineage.origin), (2, 1, Some(s.vid)));
    assert_eq!((state.origin_of(vid), state.base_of(vid)), (Some(s.vid), Some(s.vid)));
    assert_eq!((state.origin_of(s.vid), state.clones(s.vid).collect::<Vec<_>>()), (None, vec![vid]));
    let larger = CloneVdi { size: Some(2 << 30), copies: Some(3), ..clone_vdi(s.vdi, "larger") };
    let Ok(Outcome::Created { vdi, vid }) = cluster.run(1, clone(larger)) else { panic!() };
    assert_eq!(cluster.state.vdi(vdi).unwrap().size, 2 << 30);
    let lineage = cluster.state.lineage_of(vid).unwrap();
    assert_eq!((lineage.copies, lineage.min_copies), (3, 1));
    assert_eq!(refused(&mut cluster, clone_vdi(VdiId(999), "c")), Refusal::NoSuchVdi);
}

#[test]
fn clones_of_clones_end_somewhere() {
    let mut cluster = Cluster::with(1);
    let (mut vdi, _) = cluster.vdi("disk");
    let mut snapshot = cluster.snapshot(vdi, "s");
    for n in 1..=MAX_CLONE_DEPTH {
        (vdi, _) = cluster.clone_of(snapshot.vdi, &format!("clone{n}"));
        snapshot = cluster.snapshot(vdi, "s");
    }
    let refused = cluster.run(1, Command::CloneVdi(clone_vdi(snapshot.vdi, "one more"))).unwrap_err();
    let limit = MAX_CLONE_DEPTH as u64;
    assert_eq!(refused, Refusal::Limit { what: Limited::CloneDepth, limit });
}

#[test]
fn rollback_gives_a_snapshot_back_and_needs_the_volume_closed_and_clean() {
    let mut cluster = Cluster::with(2);
    let (vdi, _) = cluster.vdi("disk");
    let s = cluster.snapshot(vdi, "s");
    let t = cluster.snapshot(vdi, "t");
    let (other, _) = cluster.vdi("other");
    let foreign = cluster.snapshot(other, "s");
    let rollback = |snapshot, guard| Command::Rollback { vdi, snapshot, guard };
    let refused = |cluster: &mut Cluster, command| cluster.run(1, command).unwrap_err();
    assert_eq!(refused(&mut cluster, rollback(foreign.vdi, Guard::ClosedClean)), Refusal::NotItsSnapshot);
    assert_eq!(refused(&mut cluster, rollback(other, Guard::ClosedClean)), Refusal::NotASnapshot);
    let generation = cluster.open(vdi);
    let grow = Command::ResizeVdi { vdi, size: 2 << 30, guard: Guard::Held(generation), shrink: false };
    cluster.run(100, grow).unwrap();
    let held = rollback(s.vdi, Guard::Held(generation));
    assert_eq!(cluster.run(100, held), Err(Refusal::StaleGuard));
    cluster.run(100, Command::Unlock { vdi, generation, clean: false }).unwrap();
    assert_eq!(refused(&mut cluster, rollback(s.vdi, Guard::Closed(generation))), Refusal::NotClean);
    let second = cluster.open(vdi);
    cluster.run(100, Command::MarkSettled { vdi, generation: second }).unwrap();
    cluster.close(vdi);
    assert_eq!(refused(&mut cluster, rollback(s.vdi, Guard::Closed(generation))), Refusal::StaleGuard);
    let Ok(Outcome::RolledBack { vid }) = cluster.run(1, rollback(s.vdi, Guard::Closed(second))) else {
        panic!()
    };
    let state = &cluster.state;
    let (volume, record) = (state.vdi(vdi).unwrap(), state.vid(vid).unwrap());
    assert_eq!((volume.vid, volume.size, volume.clean_since), (vid, 1 << 30, Some(state.applied())));
    assert_eq!((record.parent, record.size, record.lineage), (Some(s.vid), 1 << 30, s.vid));
    // The former contents are gone; the later snapshot stays, and can be gone back to as well.
    assert!(state.vid(t.working).is_none() && state.is_alive(t.vid));
    cluster.run(1, rollback(t.vdi, Guard::ClosedClean)).unwrap();
    assert!(cluster.state.vid(vid).is_none());
    cluster
        .run(101, Command::Lock { vdi, attachment: None, mode: AccessMode::Read, take_from: None })
        .unwrap();
    assert_eq!(refused(&mut cluster, rollback(s.vdi, Guard::ClosedClean)), Refusal::InUseByReaders(1));
}

#[test]
fn a_rollback_makes_void_what_was_prepared_for_a_smaller_volume() {
    let mut cluster = Cluster::with(2);
    for rolled_back in [false, true] {
        let (vdi, _) = cluster.vdi(if rolled_back { "a" } else { "b" });
        let s = cluster.snapshot(vdi, "s");
        // Somebody discards what lies beyond the new end.
        let guard = Guard::Held(cluster.open(vdi));
        let shrink = Command::ResizeVdi { vdi, size: 1 << 20, guard, shrink: true };
        if rolled_back {
            // And it is all there again.
            cluster.close(vdi);
            let back = Command::Rollback { vdi, snapshot: s.vdi, guard: Guard::ClosedClean };
            cluster.run(1, back).unwrap();
            assert_eq!(cluster.run(100, shrink), Err(Refusal::StaleGuard));
        } else {
            cluster.run(100, shrink).unwrap();
        }
    }
}
