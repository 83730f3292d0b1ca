//! What deletion leaves behind, and when it goes.

use crate::cluster::{Cluster, n};
use sheep_state::{
    AccessMode, ClusterState, Command, Guard, Limited, Outcome, Refusal, SnapshotMade, SweptVid, VidKind,
};
use sheep_types::{Birth, LogIndex, VdiId, Vid};
use std::time::Instant;

fn maps(cluster: &mut Cluster, vdi: VdiId, maps: &[u32]) {
    let (vid, generation) = (cluster.state.vdi(vdi).unwrap().vid, cluster.generation(vdi).unwrap());
    cluster.run(100, Command::MapExists { vid, maps: maps.to_vec(), generation }).unwrap();
}

fn due(cluster: &Cluster) -> Vec<Vid> {
    cluster.state.sweeps_due().into_iter().map(|(vid, _)| vid).collect()
}

fn sweep(cluster: &mut Cluster, vid: Vid, empty: bool) -> Result<Outcome, Refusal> {
    let seen = cluster.state.applied();
    cluster.run(1, Command::Swept { vids: vec![SweptVid { vid, empty }], seen })
}

/// A volume with three snapshots.
fn chain() -> (Cluster, VdiId, [SnapshotMade; 3]) {
    let mut cluster = Cluster::with(3);
    let (vdi, _) = cluster.vdi("disk");
    let made = ["a", "b", "c"].map(|tag| cluster.snapshot(vdi, tag));
    (cluster, vdi, made)
}

#[test]
fn a_dead_vid_stays_while_others_come_from_it() {
    let (mut cluster, vdi, [a, b, c]) = chain();
    let birth = cluster.state.vid(b.vid).unwrap().birth;
    let since = cluster.state.unchanged_since(b.vid);
    cluster.delete(b.vdi);
    let at = cluster.state.applied();
    let state = &cluster.state;
    let record = state.vid(b.vid).unwrap();
    assert_eq!((record.kind, record.vdi), (VidKind::Dead { since: since.unwrap() }, None));
    assert_eq!(state.sweeps_due(), [(b.vid, at)]);
    assert!(state.is_dead(b.vid) && !state.is_alive(b.vid) && !state.is_gone(b.vid, birth));
    assert!(state.vdi_of(b.vid).is_none() && state.vdi_by_name("disk@b").is_none());
    assert_eq!((state.frontier(b.vid), state.frontier(a.vid)), (vec![c.vid], vec![c.vid]));
    assert_eq!((state.copies_in(b.vid, state.members()), state.min_copies(b.vid)), (3, 2));
    assert_eq!((state.unchanged_since(b.vid), state.writable(b.vid)), (since, false));
    // The last one that came from it takes it along, and the one above that is dead too.
    cluster.delete(a.vdi);
    cluster.delete(vdi);
    assert!(cluster.state.vid(c.working).is_none() && cluster.state.is_dead(b.vid));
    cluster.delete(c.vdi);
    assert!(cluster.state.vids().is_empty() && cluster.state.lineages().is_empty());
    assert!(cluster.state.is_gone(b.vid, birth) && due(&cluster).is_empty());
    assert!(!cluster.state.is_gone(b.vid, Birth(cluster.state.applied().0 + 1)), "not judged yet");
}

#[test]
fn a_lineage_outlives_its_volume_and_its_first_vid() {
    let (mut cluster, vdi, [a, b, c]) = chain();
    cluster.delete(vdi);
    cluster.delete(a.vdi);
    assert_eq!(sweep(&mut cluster, a.vid, true), Ok(Outcome::Done));
    let state = &cluster.state;
    assert!(state.vid(a.vid).is_none());
    assert_eq!((state.vid(b.vid).unwrap().parent, state.vid(b.vid).unwrap().lineage), (None, a.vid));
    assert_eq!(state.lineage_of(c.vid).map(|lineage| (lineage.lineage, lineage.vids)), Some((a.vid, 2)));
    let before = state.epoch();
    cluster.run(1, Command::SetCopies { vdi: b.vdi, copies: 1, min_copies: 1 }).unwrap();
    let state = &cluster.state;
    assert_eq!(state.copies_in(c.vid, state.members()), 1);
    assert_eq!(state.copies_in(c.vid, &state.members_at(before).unwrap()), 3);
}

#[test]
fn one_that_is_forgotten_leaves_its_children_to_the_one_above() {
    let (mut cluster, vdi, [a, b, c]) = chain();
    cluster.delete(b.vdi);
    sweep(&mut cluster, b.vid, true).unwrap();
    assert_eq!(cluster.state.vid(c.vid).unwrap().parent, Some(a.vid));
    cluster.delete(a.vdi);
    assert_eq!(cluster.state.frontier(a.vid), [c.vid]);
    cluster.delete(c.vdi);
    assert_eq!(cluster.state.frontier(a.vid), [cluster.state.vdi(vdi).unwrap().vid]);
    cluster.delete(vdi);
    assert!(cluster.state.vids().is_empty());
}

#[test]
fn the_frontier_has_every_branch() {
    let (mut cluster, vdi, [a, b, c]) = chain();
    let (_, first) = cluster.clone_of(a.vdi, "first");
    let (_, second) = cluster.clone_of(b.vdi, "second");
    cluster.delete(a.vdi);
    assert_eq!(cluster.state.frontier(a.vid), [b.vid, first]);
    cluster.delete(b.vdi);
    assert_eq!(cluster.state.frontier(a.vid), [c.vid, first, second]);
    let rollback = Command::Rollback { vdi, snapshot: c.vdi, guard: Guard::ClosedClean };
    cluster.run(1, rollback).unwrap();
    cluster.delete(c.vdi);
    let working = cluster.state.vdi(vdi).unwrap().vid;
    assert_eq!(cluster.state.frontier(a.vid), [first, second, working]);
    assert_eq!(cluster.state.frontier(c.vid), [working]);
}

#[test]
fn a_sweep_is_due_when_something_may_have_become_free() {
    let (mut cluster, vdi, [a, b, c]) = chain();
    cluster.delete(a.vdi);
    assert_eq!(due(&cluster), [a.vid]);
    let vids = vec![SweptVid { vid: a.vid, empty: false }];
    let swept = |seen| Command::Swept { vids: vids.clone(), seen };
    let now = cluster.state.applied();
    cluster.run(1, swept(LogIndex(now.0 - 1))).unwrap();
    assert_eq!(due(&cluster), [a.vid], "what was seen is older");
    let many = Command::Swept { vids: vec![vids[0]; 1025], seen: now };
    assert_eq!(cluster.run(1, many), Err(Refusal::Limit { what: Limited::Swept, limit: 1024 }));
    assert_eq!(cluster.run(1, swept(LogIndex(u64::MAX))), Err(Refusal::StaleView));
    assert_eq!(cluster.run(100, swept(now)), Err(Refusal::NotStorage(n(100))));
    cluster.run(1, swept(now)).unwrap();
    assert!(due(&cluster).is_empty() && cluster.state.is_dead(a.vid));
    // What the volume replaces is no matter while a snapshot between has it too.
    let generation = cluster.open(vdi);
    let replaced = |vids: &[Vid]| Command::Replaced { vdi, generation, vids: vids.to_vec() };
    cluster.run(100, replaced(&[a.vid, b.vid, c.working, Vid(999)])).unwrap();
    assert!(due(&cluster).is_empty());
    cluster.delete(b.vdi);
    assert_eq!(due(&cluster), [a.vid, b.vid], "one of its frontier died");
    for vid in [a.vid, b.vid] {
        sweep(&mut cluster, vid, false).unwrap();
    }
    cluster.delete(c.vdi);
    for vid in [a.vid, b.vid, c.vid] {
        sweep(&mut cluster, vid, false).unwrap();
    }
    cluster.run(100, replaced(&[b.vid, a.vid])).unwrap();
    assert_eq!(cluster.run(101, replaced(&[c.vid])), Err(Refusal::StaleGuard));
    assert_eq!(due(&cluster), [a.vid, b.vid]);
    // Alive ones, and those that are forgotten, are swept by nobody.
    sweep(&mut cluster, c.working, true).unwrap();
    sweep(&mut cluster, Vid(999), true).unwrap();
    assert_eq!((cluster.state.is_alive(c.working), due(&cluster)), (true, vec![a.vid, b.vid]));
}

#[test]
fn map_objects_stay_while_a_table_names_them() {
    let mut cluster = Cluster::with(2);
    let (vdi, vid) = cluster.vdi("disk");
    cluster.open(vdi);
    maps(&mut cluster, vdi, &[0, 1]);
    let s = cluster.snapshot(vdi, "s");
    maps(&mut cluster, vdi, &[1]);
    assert!(cluster.state.map_is_needed(vid, 1) && cluster.state.map_is_needed(s.working, 9), "alive");
    cluster.delete(s.vdi);
    let needed = |cluster: &Cluster, index| cluster.state.map_is_needed(vid, index);
    assert_eq!([needed(&cluster, 0), needed(&cluster, 1), needed(&cluster, 2)], [true, false, false]);
    assert!(cluster.state.vid(vid).unwrap().maps.is_empty(), "nobody reads its own map");
    // Nobody reaches its objects, but its map object is in use.
    sweep(&mut cluster, vid, true).unwrap();
    assert!(cluster.state.is_dead(vid) && due(&cluster).is_empty());
    maps(&mut cluster, vdi, &[0]);
    assert_eq!((needed(&cluster, 0), due(&cluster)), (false, vec![vid]));
    sweep(&mut cluster, vid, true).unwrap();
    assert!(cluster.state.vid(vid).is_none() && cluster.state.map_is_needed(vid, 0));
}

#[test]
fn a_dead_origin_keeps_its_map_until_nobody_inherits() {
    let mut cluster = Cluster::with(2);
    let (golden, vid) = cluster.vdi("golden");
    cluster.open(golden);
    maps(&mut cluster, golden, &[0]);
    cluster.close(golden);
    let s = cluster.snapshot(golden, "s");
    let (clone, first) = cluster.clone_of(s.vdi, "clone");
    let t = cluster.snapshot(clone, "t");
    cluster.delete(golden);
    cluster.delete(s.vdi);
    assert_eq!(cluster.state.vid(vid).unwrap().maps.len(), 1);
    let read = |cluster: &Cluster| [first, t.working].map(|vid| cluster.state.origin_of(vid));
    assert_eq!(read(&cluster), [Some(vid); 2]);
    // Flattened: the volume reads for itself, its snapshot as before.
    let generation = cluster.open(clone);
    sweep(&mut cluster, vid, true).unwrap();
    assert!(cluster.state.is_dead(vid), "in use as origin");
    let flattened = Command::Flattened { vdi: clone, generation };
    assert_eq!(cluster.run(101, flattened.clone()), Err(Refusal::StaleGuard));
    cluster.run(100, flattened.clone()).unwrap();
    assert_eq!((read(&cluster), cluster.state.base_of(t.working)), ([Some(vid), None], Some(vid)));
    cluster.run(100, flattened).unwrap();
    cluster.close(clone);
    // Back at the snapshot it reads through the origin again.
    let rollback = Command::Rollback { vdi: clone, snapshot: t.vdi, guard: Guard::ClosedClean };
    let Ok(Outcome::RolledBack { vid: again }) = cluster.run(1, rollback) else { panic!() };
    assert_eq!(cluster.state.origin_of(again), Some(vid));
    let generation = cluster.open(clone);
    cluster.run(100, Command::Flattened { vdi: clone, generation }).unwrap();
    cluster.close(clone);
    // The last that inherits goes: the origin's map is nobody's.
    cluster.delete(t.vdi);
    let lineage = cluster.state.lineage_of(again).unwrap();
    assert_eq!((lineage.origin, lineage.inheriting, lineage.lineage), (None, 0, first));
    assert!(cluster.state.vid(vid).unwrap().maps.is_empty() && !cluster.state.map_is_needed(vid, 0));
    assert_eq!(due(&cluster), [vid, first]);
    for vid in [vid, first] {
        sweep(&mut cluster, vid, true).unwrap();
    }
    assert_eq!(cluster.state.vids().len(), 1);
}

/// Thousands of snapshots of one volume cost little each, to take, to keep and to delete.
#[test]
fn ten_thousand_snapshots() {
    let mut cluster = Cluster::with(2);
    let (vdi, _) = cluster.vdi("disk");
    cluster.open(vdi);
    maps(&mut cluster, vdi, &(0..25).collect::<Vec<_>>());
    let begin = Instant::now();
    let mut published = Vec::new();
    let mut made = Vec::new();
    for i in 0..10_000 {
        made.push(cluster.snapshot(vdi, &format!("snapshot-{i}")));
        published = vec![cluster.state.clone()];
    }
    let took = begin.elapsed();
    let bytes = cluster.state.encode_snapshot();
    println!("10,000 snapshots of 100 TiB took {took:?}, {} bytes each", bytes.len() / 10_000);
    assert!(bytes.len() < 2_500_000, "{} bytes", bytes.len());
    assert_eq!(ClusterState::decode_snapshot(&bytes).as_ref(), Ok(&cluster.state));
    cluster.run(1, Command::RenameVdi { vdi, name: "other".to_owned() }).unwrap();
    let begin = Instant::now();
    for made in made.iter().take(2_000) {
        cluster.delete(made.vdi);
        published[0] = cluster.state.clone();
    }
    println!("and 2,000 deletions, oldest first and never swept, {:?}", begin.elapsed());
    assert_eq!((due(&cluster).len(), cluster.state.frontier(made[0].vid).len()), (2_000, 1));
    for made in made.iter().skip(2_000).rev() {
        cluster.delete(made.vdi);
    }
    assert_eq!(cluster.state.vids().len(), 10_001);
    cluster.close(vdi);
    cluster.delete(vdi);
    assert!(cluster.state.vids().is_empty() && due(&cluster).is_empty());
}

/// A lock for flattening: only of what is to be flattened and unused; whoever asks for the volume is heard.
pub(crate) fn who_flattens_hears_of_others(cluster: &mut Cluster) -> bool {
    let (golden, _) = cluster.vdi("golden");
    let s = cluster.snapshot(golden, "s");
    let (clone, first) = cluster.clone_of(s.vdi, "clone");
    let want = |wanted| Command::Flatten { vdi: clone, wanted };
    assert_eq!(cluster.run(1, Command::LockToFlatten { vdi: clone }), Err(Refusal::StaleView));
    cluster.run(2, Command::Flatten { vdi: golden, wanted: true }).unwrap();
    assert_eq!(cluster.run(2, Command::Flatten { vdi: s.vdi, wanted: true }), Err(Refusal::IsSnapshot));
    assert_eq!(cluster.state.flattening().count(), 0, "it has no origin");
    cluster.run(2, want(true)).unwrap();
    assert_eq!(cluster.state.flattening().collect::<Vec<_>>(), [clone]);
    cluster.run(1, Command::LockToFlatten { vdi: clone }).unwrap();
    let lock = |cluster: &Cluster| cluster.state.vdi(clone).unwrap().lock.unwrap();
    let held = lock(cluster);
    assert!(held.background && !held.asked);
    // It is heard at once, and told to all who ask.
    let ask = Command::Lock { vdi: clone, attachment: None, mode: AccessMode::Write, take_from: None };
    assert!(matches!(cluster.run(2, ask.clone()), Err(Refusal::Locked { .. })));
    let heard = lock(cluster).asked;
    assert!(matches!(cluster.run(2, Command::LockToFlatten { vdi: clone }), Err(Refusal::Locked { .. })));
    let unlock = Command::Unlock { vdi: clone, generation: held.generation, clean: true };
    cluster.run(1, unlock).unwrap();
    assert!(cluster.state.vdi(clone).unwrap().is_clean());
    // Who comes then has it for himself, and the wish stays until it is flat.
    cluster.run(2, ask).unwrap();
    let held = lock(cluster);
    assert!(!held.background && !held.asked);
    cluster.run(1, Command::Yield { vdi: clone }).unwrap();
    assert_eq!(lock(cluster), held, "that is no flattening");
    cluster.run(2, Command::Flattened { vdi: clone, generation: held.generation }).unwrap();
    assert_eq!((cluster.state.flattening().count(), cluster.state.origin_of(first)), (0, None));
    let again = ClusterState::decode_snapshot(&cluster.state.encode_snapshot()).unwrap();
    assert_eq!(again, cluster.state);
    heard
}

#[test]
fn flattening_gives_way() {
    assert!(who_flattens_hears_of_others(&mut Cluster::with(2)));
}

#[test]
fn a_volume_that_is_flattened_can_be_attached() {
    let mut cluster = Cluster::with(2);
    let (golden, _) = cluster.vdi("golden");
    let s = cluster.snapshot(golden, "s");
    let (clone, _) = cluster.clone_of(s.vdi, "clone");
    cluster.run(2, Command::Flatten { vdi: clone, wanted: true }).unwrap();
    cluster.run(1, Command::LockToFlatten { vdi: clone }).unwrap();
    let attach = Command::Attach { vdi: clone, node: n(2), mode: AccessMode::Write, share: false };
    cluster.run(2, attach).unwrap();
    assert!(cluster.state.vdi(clone).unwrap().lock.unwrap().asked);
    let generation = cluster.generation(clone).unwrap();
    cluster.run(1, Command::Unlock { vdi: clone, generation, clean: true }).unwrap();
    let refused = cluster.run(1, Command::LockToFlatten { vdi: clone });
    assert_eq!(refused, Err(Refusal::Attached(n(2))));
    let again = ClusterState::decode_snapshot(&cluster.state.encode_snapshot()).unwrap();
    assert_eq!(again.flattening().collect::<Vec<_>>(), [clone]);
    cluster.delete(s.vdi);
    cluster.run(2, Command::Flatten { vdi: clone, wanted: false }).unwrap();
    assert_eq!(cluster.state.flattening().count(), 0);
}
