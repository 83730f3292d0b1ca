use crate::cluster::{Cluster, n, node_up};
use sheep_state::{
    Command, DiskRecord, DiskState, DownCause, EntryKind, MemberState, NodeState, NodeUp, Outcome, Refusal,
    Role, Settings,
};
use sheep_types::{CommandSeq, Epoch, Incarnation, LogIndex, Member};

fn out(cluster: &Cluster, node: u64) -> Command {
    let down_since = cluster.down_since(node).unwrap_or(LogIndex(0));
    Command::ProposeOut {
        node: n(node),
        incarnation: cluster.member(node).incarnation,
        down_since,
        by_operator: false,
    }
}

#[test]
fn commands_take_effect_once_and_in_turn() {
    let mut cluster = Cluster::with(1);
    let origin = Member { node: n(1), incarnation: Incarnation(1) };
    let command = |seq, name: &str| EntryKind::Command {
        origin,
        seq: CommandSeq(seq),
        command: Command::CreateVdi(crate::cluster::create(name)),
    };
    // NodeUp was 1. Number 3 overtakes 2: nothing, and it works when it is sent again in order.
    assert_eq!(cluster.entry(command(3, "b")).answer, None);
    assert!(cluster.entry(command(2, "a")).answer.as_ref().unwrap().result.is_ok());
    assert_eq!(cluster.entry(command(2, "again")).answer, None);
    assert!(cluster.entry(command(3, "b")).answer.as_ref().unwrap().result.is_ok());
    assert_eq!(cluster.state.vdi_count(), 2);
    assert!(cluster.state.vdi_by_name("again").is_none());
}

#[test]
fn a_refused_command_takes_its_turn() {
    let mut cluster = Cluster::with(1);
    assert_eq!(cluster.run(1, Command::Unknown), Err(Refusal::Unknown));
    cluster.vdi("v");
}

#[test]
fn an_older_run_is_refused_and_a_newer_one_starts_at_one() {
    let mut cluster = Cluster::with(3);
    cluster.restart(2);
    let old = Member { node: n(2), incarnation: Incarnation(1) };
    let command = Command::NodeUp(node_up(Role::Storage, ""));
    let applied = cluster.entry(EntryKind::Command { origin: old, seq: CommandSeq(2), command });
    assert_eq!(applied.answer.as_ref().unwrap().result, Err(Refusal::OldIncarnation { known: 2 }));
    assert!(cluster.is_up(2));
}

#[test]
fn a_lost_rack_is_one_epoch() {
    let mut cluster = Cluster::with(5);
    let before = cluster.state.epoch();
    cluster.install_without(&[2, 3, 100]);
    assert_eq!(cluster.state.epoch(), Epoch(before.0 + 1));
    assert_eq!(cluster.last.changes.epoch, Some(cluster.state.epoch()));
    let members = cluster.state.members();
    assert_eq!(members.len(), 5);
    let down: Vec<u64> = members.iter().filter(|m| m.state == MemberState::Down).map(|m| m.node.0).collect();
    assert_eq!(down, [2, 3]);
    assert!(!cluster.is_up(100) && cluster.is_up(101));
    assert_eq!(cluster.state.members_at(before).unwrap().iter().filter(|m| m.is_up()).count(), 5);
    // Nothing new in the next term: no epoch.
    cluster.install_without(&[2, 3, 100]);
    assert_eq!(cluster.last.changes.epoch, None);
}

#[test]
fn a_restart_is_always_a_new_epoch_and_a_gateways_never() {
    let mut cluster = Cluster::with(3);
    let before = cluster.state.epoch();
    cluster.restart(2);
    assert_eq!(cluster.state.epoch(), Epoch(before.0 + 1));
    assert!(!cluster.state.members().is_up(Member { node: n(2), incarnation: Incarnation(1) }));
    cluster.restart(100);
    assert_eq!(cluster.state.epoch(), Epoch(before.0 + 1));
    // Seen first by the install entry: down until the node says that it is up.
    cluster.incarnations.insert(n(3), 2);
    cluster.install_without(&[]);
    assert!(matches!(
        cluster.state.node(n(3)).unwrap().state,
        NodeState::Down { cause: DownCause::Restarted, .. }
    ));
    cluster.run(3, Command::NodeUp(node_up(Role::Storage, ""))).unwrap();
    assert_eq!(cluster.state.epoch(), Epoch(before.0 + 3));
}

#[test]
fn a_stale_announcement_does_not_bring_a_node_up() {
    let mut cluster = Cluster::with(3);
    cluster.install_without(&[2]);
    let first = cluster.down_since(2);
    cluster.return_of(2).unwrap();
    cluster.install_without(&[2]);
    let late = NodeUp { seen_down_since: first, ..node_up(Role::Storage, "") };
    assert_eq!(cluster.run(2, Command::NodeUp(late)), Err(Refusal::StaleView));
    assert_eq!(cluster.return_of(2), Ok(Outcome::Done));
    assert_eq!(
        cluster.run(2, Command::NodeUp(node_up(Role::Gateway, ""))),
        Err(Refusal::RoleChanged(n(2))),
        "a store has one role"
    );
}

#[test]
fn out_holds_only_while_what_was_seen_holds_and_within_limits() {
    let mut cluster = Cluster::with(8);
    assert_eq!(cluster.run(1, out(&cluster, 2)), Err(Refusal::StaleView), "it is up");
    cluster.install_without(&[2]);
    let stale = out(&cluster, 2);
    cluster.return_of(2).unwrap();
    cluster.install_without(&[2, 3, 4]);
    assert_eq!(cluster.run(1, stale), Err(Refusal::StaleView), "it was up in between");
    for node in [2, 3] {
        cluster.run(1, out(&cluster, node)).unwrap();
        assert!(cluster.state.members().get(n(node)).is_none());
    }
    assert_eq!(cluster.run(1, out(&cluster, 4)), Err(Refusal::TooManyOut { out: 2, total: 8 }));
    let Command::ProposeOut { node, incarnation, down_since, .. } = out(&cluster, 4) else { panic!() };
    let forced = Command::ProposeOut { node, incarnation, down_since, by_operator: true };
    cluster.run(1, forced).unwrap();
    // Out is not for ever.
    cluster.return_of(3).unwrap();
    assert!(cluster.state.members().get(n(3)).unwrap().is_up());
}

#[test]
fn a_whole_zone_is_never_taken_out_automatically() {
    let mut cluster = Cluster::empty();
    for node in 1..=6 {
        cluster.join(node, Role::Storage, ["a", "b", "c"][node as usize % 3]);
    }
    cluster.join(7, Role::Storage, "alone");
    cluster.install_without(&[1, 4]);
    assert_eq!(cluster.run(2, out(&cluster, 1)), Err(Refusal::WholeZone("b".to_owned())));
    cluster.return_of(4).unwrap();
    assert_eq!(cluster.run(2, out(&cluster, 1)), Ok(Outcome::Done));
    cluster.return_of(1).unwrap();
    cluster.install_without(&[7]);
    assert_eq!(cluster.run(2, out(&cluster, 7)), Ok(Outcome::Done), "a zone of one node is a node");
}

#[test]
fn leaving_takes_weight_and_then_the_node_can_go() {
    let mut cluster = Cluster::with(3);
    assert_eq!(
        cluster.run(1, Command::NodeRemove { node: n(3), force: false }),
        Err(Refusal::NotDrained(n(3)))
    );
    cluster.run(1, Command::NodeLeaving { node: n(3), leaving: true }).unwrap();
    let member = cluster.state.members().get(n(3)).unwrap().clone();
    assert_eq!((member.state, member.weight, member.is_up()), (MemberState::Leaving, 0, true));
    assert_eq!(cluster.state.members().effective_copies(3), 2);
    cluster.restart(3);
    assert_eq!(cluster.state.node(n(3)).unwrap().state, NodeState::Leaving, "a restart does not call it off");
    assert_eq!(
        cluster.run(1, Command::NodeRemove { node: n(3), force: false }),
        Err(Refusal::NotDrained(n(3)))
    );
    let epoch = cluster.state.epoch();
    for node in [1, 2] {
        cluster.run(node, Command::Recovered { epoch }).unwrap();
    }
    assert_eq!(cluster.run(1, Command::NodeRemove { node: n(3), force: false }), Ok(Outcome::Done));
    assert!(cluster.state.node(n(3)).is_none() && cluster.state.members().len() == 2);
    // Its process still runs: it stays away until it is started anew.
    let up = Command::NodeUp(node_up(Role::Storage, ""));
    assert_eq!(cluster.run(3, up.clone()), Err(Refusal::Removed(n(3))));
    cluster.incarnations.insert(n(3), 9);
    assert_eq!(cluster.run(3, up), Ok(Outcome::Done));
    assert_eq!(cluster.state.node(n(3)).unwrap().state, NodeState::Up);
}

#[test]
fn somebody_must_take_data() {
    let mut cluster = Cluster::with(2);
    cluster.run(1, Command::NodeLeaving { node: n(1), leaving: true }).unwrap();
    assert_eq!(cluster.run(1, Command::NodeLeaving { node: n(2), leaving: true }), Err(Refusal::LastNode));
    assert_eq!(cluster.run(1, Command::SetWeight { node: n(2), weight: Some(0) }), Err(Refusal::LastNode));
    cluster.run(1, Command::NodeLeaving { node: n(1), leaving: false }).unwrap();
    cluster.run(1, Command::SetWeight { node: n(2), weight: Some(0) }).unwrap();
    assert_eq!(cluster.state.members().placed(), 1);
    cluster.run(1, Command::SetWeight { node: n(2), weight: None }).unwrap();
    assert_eq!(cluster.state.members().placed(), 2);
}

#[test]
fn epochs_are_forgotten_when_all_have_recovered() {
    let mut cluster = Cluster::with(3);
    for _ in 0..100 {
        cluster.restart(2);
    }
    let last = cluster.state.epoch();
    let middle = Epoch(last.0 - 50);
    let now = cluster.state.members_at(last).unwrap();
    for (node, epoch) in [(1, last), (2, middle), (3, last), (2, last)] {
        assert!(cluster.state.oldest_epoch() < middle);
        cluster.run(node, Command::Recovered { epoch }).unwrap();
    }
    assert!(cluster.last.changes.history);
    assert_eq!(cluster.state.oldest_epoch(), last);
    assert_eq!(cluster.state.members_at(last), Some(now));
    assert_eq!(cluster.state.members_at(Epoch(last.0 - 1)), None);
    assert_eq!(cluster.state.members_at(Epoch(last.0 + 1)), None);
    assert_eq!(cluster.run(1, Command::Recovered { epoch: Epoch(last.0 + 1) }), Err(Refusal::StaleView));
}

#[test]
fn a_node_that_is_down_keeps_the_epochs_that_prove_its_copies() {
    let mut cluster = Cluster::with(4);
    let first = cluster.state.epoch();
    for node in 1..=4 {
        cluster.run(node, Command::Recovered { epoch: first }).unwrap();
    }
    cluster.install_without(&[4]);
    let recover = |cluster: &mut Cluster| {
        let epoch = cluster.state.epoch();
        for node in 1..=3 {
            cluster.run(node, Command::Recovered { epoch }).unwrap();
        }
    };
    recover(&mut cluster);
    assert_eq!(cluster.state.oldest_epoch(), first, "its copies may be the last of something");
    cluster.run(1, out(&cluster, 4)).unwrap();
    recover(&mut cluster);
    assert_eq!(
        cluster.state.oldest_epoch(),
        first,
        "out, but it may return with what nobody else ever heard of"
    );
    cluster.run(1, Command::NodeRemove { node: n(4), force: false }).unwrap();
    recover(&mut cluster);
    assert_eq!(cluster.state.oldest_epoch(), cluster.state.epoch());
}

/// Node 3 has the only copy of something. The others recover while it is away, and never hear of it; it comes back
/// and has nothing to recover itself.
#[test]
fn a_recovery_without_a_node_says_nothing_of_its_copies() {
    let mut cluster = Cluster::with(3);
    let first = cluster.state.epoch();
    for node in 1..=3 {
        cluster.run(node, Command::Recovered { epoch: first }).unwrap();
    }
    cluster.install_without(&[3]);
    let without = cluster.state.epoch();
    for node in 1..=2 {
        cluster.run(node, Command::Recovered { epoch: without }).unwrap();
    }
    cluster.restart(3);
    let present = cluster.state.epoch();
    cluster.run(3, Command::Recovered { epoch: present }).unwrap();
    assert_eq!(cluster.state.oldest_epoch(), first, "the others are still to ask it");
    for node in 1..=2 {
        cluster.run(node, Command::Recovered { epoch: present }).unwrap();
    }
    assert_eq!(cluster.state.oldest_epoch(), present);
}

#[test]
fn a_failed_disk_is_an_epoch_and_fullness_is_none() {
    let mut cluster = Cluster::with(2);
    let before = cluster.state.epoch();
    cluster.run(2, Command::Usage { capacity: 10, used: 9 }).unwrap();
    assert_eq!((cluster.state.epoch(), cluster.state.node(n(2)).unwrap().used), (before, 9));
    let disk =
        |incarnation, state| DiskRecord { id: 1, incarnation: Incarnation(incarnation), state, weight: 1 };
    cluster.run(2, Command::SetDisks { disks: vec![disk(1, DiskState::Failed)] }).unwrap();
    assert_eq!(cluster.state.epoch(), Epoch(before.0 + 1));
    let has =
        |cluster: &Cluster, run| cluster.state.members().get(n(2)).unwrap().has_disk(1, Incarnation(run));
    assert!(!has(&cluster, 1));
    cluster.run(2, Command::SetDisks { disks: vec![disk(2, DiskState::Up)] }).unwrap();
    assert!(has(&cluster, 2) && !has(&cluster, 1));
    let twice = vec![disk(2, DiskState::Up), disk(3, DiskState::Up)];
    assert!(matches!(cluster.run(2, Command::SetDisks { disks: twice }), Err(Refusal::BadNode(_))));
    assert_eq!(cluster.run(100, Command::SetDisks { disks: vec![] }), Err(Refusal::NotStorage(n(100))));
}

#[test]
fn a_disk_is_given_up_only_on_purpose_and_until_then_epochs_are_remembered() {
    let mut cluster = Cluster::with(2);
    let recover = |cluster: &mut Cluster| {
        let epoch = cluster.state.epoch();
        for node in 1..=2 {
            cluster.run(node, Command::Recovered { epoch }).unwrap();
        }
        epoch
    };
    let disk = |id, state| DiskRecord { id, incarnation: Incarnation(1), state, weight: 1 };
    let (up, failed) = (|id| disk(id, DiskState::Up), |id| disk(id, DiskState::Failed));
    let weight = |cluster: &Cluster| cluster.state.members().get(n(2)).unwrap().weight;
    cluster.run(2, Command::SetDisks { disks: vec![up(1), up(7), up(8)] }).unwrap();
    assert_eq!(weight(&cluster), 300);
    let epoch = recover(&mut cluster);
    assert_eq!(cluster.state.oldest_epoch(), epoch);
    cluster.run(2, Command::SetDisks { disks: vec![up(1), failed(7), up(8)] }).unwrap();
    assert_eq!(weight(&cluster), 200);
    recover(&mut cluster);
    assert_eq!(cluster.state.oldest_epoch(), epoch, "the failed disk may have the only copy of something");
    // A new run that knows nothing of it, nor of another one.
    cluster.restart(2);
    let record = cluster.state.node(n(2)).unwrap();
    assert_eq!(record.disks, [up(1), failed(7), failed(8)]);
    recover(&mut cluster);
    assert_eq!(cluster.state.oldest_epoch(), epoch);
    cluster.run(2, Command::SetDisks { disks: vec![up(1)] }).unwrap();
    let epoch = recover(&mut cluster);
    assert_eq!(cluster.state.oldest_epoch(), epoch);
    cluster.run(2, Command::SetDisks { disks: vec![failed(1)] }).unwrap();
    assert_eq!(weight(&cluster), 0);
}

#[test]
fn the_ring_unit_follows_the_median_reluctantly() {
    let mut cluster = Cluster::with(3);
    let unit = cluster.state.members().weight_unit;
    assert_eq!(unit, 100);
    for node in 1..=3 {
        cluster.run(1, Command::SetWeight { node: n(node), weight: Some(400) }).unwrap();
    }
    assert_eq!(cluster.state.members().weight_unit, unit);
    for node in 1..=2 {
        cluster.run(1, Command::SetWeight { node: n(node), weight: Some(401) }).unwrap();
    }
    assert_eq!(cluster.state.members().weight_unit, 401);
    let former = Epoch(cluster.state.epoch().0 - 1);
    assert_eq!(cluster.state.members_at(former).unwrap().weight_unit, unit);
}

#[test]
fn settings_change_as_a_whole_and_old_leases_are_remembered() {
    let mut cluster = Cluster::with(1);
    let default = Settings::default();
    let change = |settings: Settings, seen| Command::ChangeSettings { settings, seen };
    let bad = Settings { min_copies: 4, ..default.clone() };
    assert!(matches!(cluster.run(1, change(bad, LogIndex(1))), Err(Refusal::BadSetting { .. })));
    let shorter = Settings { lease_ms: 1_000, ..default.clone() };
    cluster.run(1, change(shorter.clone(), LogIndex(1))).unwrap();
    let at = cluster.state.applied();
    assert_eq!(cluster.run(1, change(default, LogIndex(1))), Err(Refusal::StaleView));
    let past = cluster.state.past_leases().to_vec();
    assert_eq!((past.len(), past[0].lease_ms, past[0].replaced_at), (1, 5_000, at));
    assert_eq!(cluster.state.lease_wait(|_| true), 5_000);
    assert_eq!(cluster.state.lease_wait(|_| false), 1_000);
    for i in 0..40 {
        let seen = cluster.state.settings_at();
        cluster.run(1, change(Settings { lease_ms: 1_000 + 10 * (i % 7), ..shorter.clone() }, seen)).unwrap();
    }
    assert_eq!(cluster.state.lease_wait(|_| true), 5_000, "a long one is not forgotten by many changes");
    assert!(cluster.state.past_leases().len() <= sheep_state::limits::MAX_PAST_LEASES);
}
