use crate::cluster::{Cluster, create, n};
use sheep_state::{AccessMode, Command, CreateVdi, Guard, Limited, Outcome, Refusal, VidKind};
use sheep_types::{Birth, Generation, LogIndex, MAX_VOLUME_SIZE, VdiId, Vid};
use std::collections::BTreeMap;

fn lock(cluster: &mut Cluster, node: u64, vdi: VdiId) -> Generation {
    let command = Command::Lock { vdi, attachment: None, mode: AccessMode::Write, take_from: None };
    match cluster.run(node, command) {
        Ok(Outcome::Locked { generation, .. }) => generation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_vdi_is_clean_and_takes_the_defaults() {
    let mut cluster = Cluster::with(2);
    let (vdi, vid) = cluster.vdi("disk");
    assert_eq!(vdi.0, cluster.state.applied().0);
    let lineage = cluster.state.lineage_of(vid).unwrap();
    assert_eq!((lineage.lineage, lineage.copies, lineage.min_copies, lineage.vids), (vid, 3, 2, 1));
    assert!(cluster.state.vdi(vdi).unwrap().is_clean());
    assert_eq!(cluster.state.vdi_by_name("disk").unwrap().id, vdi);
    let record = cluster.state.vid(vid).unwrap();
    assert_eq!((record.birth, record.lineage, record.kind), (Birth(vdi.0), vid, VidKind::Working));
    assert_eq!(cluster.last.changes.vids, [vid]);
    // Two nodes: two copies; one would do for writes with one node.
    assert_eq!(cluster.state.copies_in(vid, cluster.state.members()), 2);
    assert_eq!(cluster.state.min_copies(vid), 2);
    cluster.run(1, Command::NodeLeaving { node: n(2), leaving: true }).unwrap();
    assert_eq!(
        (cluster.state.copies_in(vid, cluster.state.members()), cluster.state.min_copies(vid)),
        (1, 1)
    );
    let one = CreateVdi { copies: Some(1), ..create("one") };
    cluster.run(1, Command::CreateVdi(one)).unwrap();
    let one = cluster.state.vdi_by_name("one").unwrap().vid;
    assert_eq!(cluster.state.lineage_of(one).unwrap().min_copies, 1);
}

#[test]
fn nonsense_is_refused() {
    let mut cluster = Cluster::with(1);
    let (vdi, _) = cluster.vdi("disk");
    let mut refused = |create| cluster.run(1, Command::CreateVdi(create)).unwrap_err();
    assert_eq!(refused(create("disk")), Refusal::NameTaken { vdi });
    let long = "x".repeat(256);
    for name in ["", "a@b", "/a", "a/", " a", "a ", "a\nb", "a\u{7f}", &long] {
        assert_eq!(refused(create(name)), Refusal::BadName, "{name:?}");
    }
    for size in [0, 512, (1 << 20) + 1, MAX_VOLUME_SIZE + 512] {
        assert!(matches!(refused(CreateVdi { size, ..create("s") }), Refusal::BadSize { .. }), "{size}");
    }
    for (copies, min_copies) in [(Some(0), None), (Some(17), None), (Some(2), Some(3)), (None, Some(0))] {
        assert_eq!(refused(CreateVdi { copies, min_copies, ..create("c") }), Refusal::BadCopies);
    }
    let many: BTreeMap<String, String> = (0..65).map(|i| (i.to_string(), String::new())).collect();
    let full = Refusal::Limit { what: Limited::Attributes, limit: 64 };
    assert_eq!(refused(CreateVdi { attributes: many, ..create("a") }), full);
    let large = BTreeMap::from([("k".to_owned(), "v".repeat(4097))]);
    assert_eq!(refused(CreateVdi { attributes: large, ..create("a") }), Refusal::BadAttribute);
    assert_eq!(cluster.state.vdi_count(), 1);
    cluster.run(1, Command::CreateVdi(create("pool/a b ü"))).unwrap();
    cluster.run(1, Command::CreateVdi(create(&"x".repeat(255)))).unwrap();
    let whole = CreateVdi { size: MAX_VOLUME_SIZE, ..create("petabyte") };
    cluster.run(1, Command::CreateVdi(whole)).unwrap();
}

#[test]
fn a_vid_is_never_used_again_and_old_births_are_gone() {
    let mut cluster = Cluster::with(1);
    let (vdi, vid) = cluster.vdi("disk");
    let birth = cluster.state.vid(vid).unwrap().birth;
    assert!(!cluster.state.is_gone(vid, birth));
    cluster.run(1, Command::DeleteVdi { vdi, guard: Guard::ClosedClean }).unwrap();
    assert_eq!(
        (cluster.last.changes.vdis.clone(), cluster.last.changes.vids.clone()),
        (vec![vdi], vec![vid])
    );
    assert!(cluster.state.is_gone(vid, birth));
    let (_, next) = cluster.vdi("disk");
    assert!(next > vid);
    assert!(cluster.state.is_gone(next, birth), "another birth");
    // A node behind its own objects does not judge them.
    let unborn = Birth(cluster.state.applied().0 + 1);
    assert!(!cluster.state.is_gone(Vid(999), unborn));
}

#[test]
fn deletion_needs_the_vdi_closed_and_the_guard_true() {
    let mut cluster = Cluster::with(2);
    let (vdi, vid) = cluster.vdi("disk");
    let delete = |guard| Command::DeleteVdi { vdi, guard };
    let generation = lock(&mut cluster, 100, vdi);
    for guard in [Guard::ClosedClean, Guard::Held(generation), Guard::Closed(generation)] {
        assert!(matches!(cluster.run(100, delete(guard)), Err(Refusal::Locked { .. })));
    }
    cluster.run(100, Command::Unlock { vdi, generation, clean: false }).unwrap();
    assert_eq!(cluster.run(1, delete(Guard::ClosedClean)), Err(Refusal::StaleGuard));
    assert_eq!(cluster.run(1, delete(Guard::Closed(Generation(3)))), Err(Refusal::StaleGuard));
    assert_eq!(cluster.run(1, delete(Guard::Closed(generation))), Ok(Outcome::Done));
    assert!(cluster.state.vid(vid).is_none() && cluster.state.vdi_by_name("disk").is_none());
    assert_eq!(cluster.run(1, delete(Guard::Closed(generation))), Err(Refusal::NoSuchVdi));
    let (vdi, _) = cluster.vdi("disk");
    cluster.run(1, Command::Attach { vdi, node: n(100), mode: AccessMode::Read, share: false }).unwrap();
    let delete = Command::DeleteVdi { vdi, guard: Guard::ClosedClean };
    assert_eq!(cluster.run(1, delete), Err(Refusal::Attached(n(100))));
}

#[test]
fn growing_is_easy_and_shrinking_is_deliberate() {
    let mut cluster = Cluster::with(1);
    let (vdi, vid) = cluster.vdi("disk");
    let resize = |size, guard, shrink| Command::ResizeVdi { vdi, size, guard, shrink };
    let generation = lock(&mut cluster, 100, vdi);
    assert_eq!(cluster.run(1, resize(2 << 30, Guard::ClosedClean, false)), Err(Refusal::StaleGuard));
    assert_eq!(cluster.run(1, resize(2 << 30, Guard::Held(generation), false)), Err(Refusal::StaleGuard));
    cluster.run(100, resize(2 << 30, Guard::Held(generation), false)).unwrap();
    assert_eq!(
        (cluster.state.vdi(vdi).unwrap().size, cluster.state.vid(vid).unwrap().size),
        (2 << 30, 2 << 30)
    );
    let would = Err(Refusal::WouldShrink { size: 2 << 30 });
    assert_eq!(cluster.run(100, resize(1 << 30, Guard::Held(generation), false)), would);
    cluster.run(100, Command::Unlock { vdi, generation, clean: true }).unwrap();
    assert_eq!(cluster.run(1, resize(1 << 30, Guard::ClosedClean, false)), would);
    // Only while nobody can have written since the rest was discarded.
    assert_eq!(cluster.run(1, resize(1 << 30, Guard::ClosedClean, true)), would);
    let stale = Err(Refusal::StaleGuard);
    assert_eq!(cluster.run(1, resize(1 << 30, Guard::Closed(generation), true)), stale);
    assert_eq!(cluster.run(100, resize(1 << 30, Guard::Held(generation), true)), stale);
    let later = lock(&mut cluster, 100, vdi);
    assert_eq!(cluster.run(100, resize(1 << 30, Guard::Held(generation), true)), stale);
    assert_eq!(cluster.run(1, resize(1 << 30, Guard::Held(later), true)), stale, "another one's lock");
    cluster.run(100, resize(1 << 30, Guard::Held(later), true)).unwrap();
    assert_eq!(cluster.state.vid(vid).unwrap().size, 1 << 30);
    cluster.run(100, Command::Unlock { vdi, generation: later, clean: true }).unwrap();
    assert!(matches!(cluster.run(1, resize(1, Guard::ClosedClean, true)), Err(Refusal::BadSize { .. })));
}

#[test]
fn names_and_attributes_change() {
    let mut cluster = Cluster::with(1);
    let (a, _) = cluster.vdi("a");
    let (b, _) = cluster.vdi("b");
    let rename = |vdi, name: &str| Command::RenameVdi { vdi, name: name.to_owned() };
    assert_eq!(cluster.run(1, rename(a, "b")), Err(Refusal::NameTaken { vdi: b }));
    assert_eq!(cluster.run(1, rename(a, "a")), Ok(Outcome::Done));
    cluster.run(1, rename(a, "c")).unwrap();
    assert!(cluster.state.vdi_by_name("a").is_none());
    assert_eq!(cluster.state.vdi_by_name("c").unwrap().id, a);
    let set = |key: &str, value: Option<&str>| Command::SetAttribute {
        vdi: a,
        key: key.to_owned(),
        value: value.map(str::to_owned),
    };
    for i in 0..64 {
        cluster.run(1, set(&i.to_string(), Some("x"))).unwrap();
    }
    assert!(matches!(cluster.run(1, set("65", Some("x"))), Err(Refusal::Limit { .. })));
    cluster.run(1, set("3", Some("y"))).unwrap();
    cluster.run(1, set("4", None)).unwrap();
    let attributes = &cluster.state.vdi(a).unwrap().attributes;
    assert_eq!((attributes.len(), attributes["3"].as_str()), (63, "y"));
    assert_eq!(cluster.run(1, set("", Some("y"))), Err(Refusal::BadAttribute));
}

#[test]
fn attributes_change_together_and_only_as_expected() {
    let mut cluster = Cluster::with(1);
    let (vdi, _) = cluster.vdi("a");
    let map = |list: &[(&str, Option<&str>)]| -> BTreeMap<String, Option<String>> {
        list.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect()
    };
    let change = |expected: &[(&str, Option<&str>)], changes: &[(&str, Option<&str>)]| {
        Command::ChangeAttributes { vdi, expected: map(expected), changes: map(changes) }
    };
    cluster.run(1, change(&[("k", None)], &[("k", Some("1")), ("l", Some("2"))])).unwrap();
    // Whoever decided on the same view comes too late, and changes nothing at all.
    let late = change(&[("l", Some("2")), ("k", None)], &[("k", Some("3")), ("l", None), ("m", Some("4"))]);
    assert_eq!(cluster.run(1, late), Err(Refusal::StaleView));
    let shown = |cluster: &Cluster| -> Vec<String> {
        let record = cluster.state.vdi(vdi).unwrap();
        record.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect()
    };
    assert_eq!(shown(&cluster), ["k=1", "l=2"]);
    cluster.run(1, change(&[("k", Some("1")), ("l", Some("2"))], &[("k", Some("5")), ("l", None)])).unwrap();
    assert_eq!(shown(&cluster), ["k=5"]);
    assert_eq!(cluster.run(1, change(&[], &[("", Some("y"))])), Err(Refusal::BadAttribute));
    let large = "v".repeat(4097);
    assert_eq!(cluster.run(1, change(&[], &[("n", None), ("o", Some(&large))])), Err(Refusal::BadAttribute));
    let many: Vec<String> = (0..64).map(|number| format!("x{number}")).collect();
    let many: Vec<(&str, Option<&str>)> = many.iter().map(|key| (key.as_str(), Some("v"))).collect();
    assert!(matches!(cluster.run(1, change(&[], &many)), Err(Refusal::Limit { .. })));
    assert_eq!(shown(&cluster), ["k=5"]);
    // One goes as another comes: the limit is of what is there in the end.
    cluster.run(1, change(&[], &[&many[..], &[("k", None)]].concat())).unwrap();
    assert_eq!(
        cluster.run(
            1,
            Command::ChangeAttributes {
                vdi: VdiId(999),
                expected: BTreeMap::new(),
                changes: BTreeMap::new(),
            }
        ),
        Err(Refusal::NoSuchVdi)
    );
}

#[test]
fn another_number_of_copies_is_an_epoch() {
    let mut cluster = Cluster::with(4);
    let (vdi, vid) = cluster.vdi("disk");
    let before = cluster.state.epoch();
    cluster.run(1, Command::SetCopies { vdi, copies: 4, min_copies: 3 }).unwrap();
    let now = cluster.state.epoch();
    assert_eq!(now.0, before.0 + 1);
    assert_eq!(cluster.state.copies_in(vid, &cluster.state.members_at(before).unwrap()), 3);
    assert_eq!(cluster.state.copies_in(vid, cluster.state.members()), 4);
    cluster.run(1, Command::SetCopies { vdi, copies: 4, min_copies: 1 }).unwrap();
    assert_eq!(cluster.state.epoch(), now, "sets are the same");
    assert_eq!(cluster.state.min_copies(vid), 1);
    cluster.run(1, Command::SetCopies { vdi, copies: 2, min_copies: 1 }).unwrap();
    let lineage = cluster.state.lineage_of(vid).unwrap();
    let copies = [before, now, cluster.state.epoch()].map(|epoch| lineage.copies_at(epoch));
    assert_eq!(copies, [3, 4, 2]);
}

#[test]
fn copies_are_not_made_fewer_while_one_of_their_places_is_down() {
    let mut cluster = Cluster::with(3);
    let (vdi, _) = cluster.vdi("disk");
    let copies = |copies| Command::SetCopies { vdi, copies, min_copies: 1 };
    cluster.install_without(&[2]);
    assert_eq!(cluster.run(1, copies(2)), Err(Refusal::CopiesAway(n(2))));
    cluster.run(1, copies(3)).unwrap();
    cluster.install_without(&[]);
    cluster.return_of(2).unwrap();
    cluster.run(1, copies(2)).unwrap();
}

#[test]
fn only_the_holder_enters_map_objects() {
    let mut cluster = Cluster::with(1);
    let (vdi, vid) = cluster.vdi("disk");
    let maps = |maps: &[u32], generation| Command::MapExists { vid, maps: maps.to_vec(), generation };
    assert_eq!(cluster.run(100, maps(&[0], Generation(0))), Err(Refusal::StaleGuard));
    let first = lock(&mut cluster, 100, vdi);
    cluster.run(100, maps(&[0, 7], first)).unwrap();
    assert_eq!(cluster.run(101, maps(&[1], first)), Err(Refusal::StaleGuard));
    cluster.run(100, Command::Unlock { vdi, generation: first, clean: true }).unwrap();
    let second = lock(&mut cluster, 101, vdi);
    assert_eq!(cluster.run(101, maps(&[1], first)), Err(Refusal::StaleGuard));
    cluster.run(101, maps(&[255], second)).unwrap();
    assert_eq!(cluster.run(101, maps(&[256], second)), Err(Refusal::BadMapIndex(256)));
    assert_eq!(*cluster.state.vid(vid).unwrap().maps, [(0, vid), (7, vid), (255, vid)].into());
    let other = Command::MapExists { vid: Vid(99), maps: vec![], generation: second };
    assert_eq!(cluster.run(101, other), Err(Refusal::NotWritable(Vid(99))));
}

#[test]
fn untouched_means_closed_and_clean_since_before() {
    let mut cluster = Cluster::with(1);
    let (vdi, vid) = cluster.vdi("disk");
    let created = LogIndex(vdi.0);
    assert!(cluster.state.untouched_since(vid, created));
    let generation = lock(&mut cluster, 100, vdi);
    assert_eq!(cluster.state.unchanged_since(vid), None);
    cluster.run(100, Command::Unlock { vdi, generation, clean: true }).unwrap();
    let closed = cluster.state.applied();
    assert!(!cluster.state.untouched_since(vid, created));
    assert!(cluster.state.untouched_since(vid, closed));
}
