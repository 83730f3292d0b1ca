use crate::cluster::{Cluster, n};
use sheep_state::{AccessMode, Command, Outcome, Refusal};
use sheep_types::{Generation, LogIndex, VdiId};

struct Granted {
    generation: Generation,
    clean: bool,
    wait_after: Option<LogIndex>,
}

fn ask(vdi: VdiId, attachment: Option<LogIndex>) -> Command {
    Command::Lock { vdi, attachment, mode: AccessMode::Write, take_from: None }
}

fn read(vdi: VdiId, attachment: Option<LogIndex>) -> Command {
    Command::Lock { vdi, attachment, mode: AccessMode::Read, take_from: None }
}

fn granted(outcome: Result<Outcome, Refusal>) -> Granted {
    match outcome {
        Ok(Outcome::Locked { generation, clean, wait_after }) => Granted { generation, clean, wait_after },
        other => panic!("{other:?}"),
    }
}

fn attach(cluster: &mut Cluster, vdi: VdiId, node: u64, share: bool) -> Result<LogIndex, Refusal> {
    match cluster.run(1, Command::Attach { vdi, node: n(node), mode: AccessMode::Write, share }) {
        Ok(Outcome::Attached { attachment }) => Ok(attachment),
        Ok(other) => panic!("{other:?}"),
        Err(refusal) => Err(refusal),
    }
}

#[test]
fn one_holder_and_every_grant_is_a_generation() {
    let mut cluster = Cluster::with(2);
    let (vdi, vid) = cluster.vdi("disk");
    let first = granted(cluster.run(100, ask(vdi, None)));
    assert_eq!(first.generation.0, cluster.state.applied().0);
    assert!(first.clean && first.wait_after.is_none());
    assert_eq!(cluster.state.write_generation(vid), Some(first.generation));
    let holder = cluster.member(100);
    let refused = Refusal::Locked { holder, generation: first.generation };
    assert_eq!(cluster.run(101, ask(vdi, None)), Err(refused));
    // Again by the holder: another opening.
    let second = granted(cluster.run(100, ask(vdi, None)));
    assert!(second.generation > first.generation && !second.clean);
    assert_eq!(second.wait_after, None, "it was itself");
    let unlock = |generation, clean| Command::Unlock { vdi, generation, clean };
    assert_eq!(cluster.run(100, unlock(first.generation, true)), Err(Refusal::StaleGuard));
    assert_eq!(cluster.run(101, unlock(second.generation, true)), Err(Refusal::StaleGuard));
    cluster.run(100, unlock(second.generation, true)).unwrap();
    assert_eq!(cluster.state.write_generation(vid), None);
    assert!(!cluster.state.vdi(vdi).unwrap().is_clean(), "it never settled what it took over dirty");
    let third = granted(cluster.run(101, ask(vdi, None)));
    assert_eq!(
        (third.clean, third.wait_after.is_some()),
        (false, true),
        "the first opening was not confirmed"
    );
    cluster.run(101, Command::MarkSettled { vdi, generation: third.generation }).unwrap();
    cluster.run(101, unlock(third.generation, true)).unwrap();
    let fourth = granted(cluster.run(100, ask(vdi, None)));
    assert!(fourth.clean && fourth.wait_after.is_none());
}

#[test]
fn a_lock_ends_when_its_gateway_is_down_or_restarts() {
    let mut cluster = Cluster::with(2);
    let (vdi, _) = cluster.vdi("disk");
    granted(cluster.run(100, ask(vdi, None)));
    cluster.install_without(&[100]);
    let down = cluster.state.applied();
    assert_eq!((cluster.generation(vdi), cluster.last.changes.ended.len()), (None, 1));
    assert_eq!(cluster.run(100, ask(vdi, None)), Err(Refusal::NodeNotUp(n(100))));
    let taken = granted(cluster.run(101, ask(vdi, None)));
    assert_eq!((taken.clean, taken.wait_after), (false, Some(down)));
    cluster.restart(101);
    let restarted = cluster.state.applied();
    assert_eq!(cluster.generation(vdi), None);
    // Its own former run is over; the one before it may still believe.
    let own = granted(cluster.run(101, ask(vdi, None)));
    assert_eq!(own.wait_after, Some(down));
    cluster.install_without(&[101]);
    cluster.return_of(100).unwrap();
    let other = granted(cluster.run(100, ask(vdi, None)));
    assert!(other.wait_after > Some(restarted));
    assert_eq!(cluster.state.vdi(vdi).unwrap().ended.len(), 3);
    cluster.run(100, Command::MarkSettled { vdi, generation: other.generation }).unwrap();
    assert!(cluster.state.vdi(vdi).unwrap().ended.is_empty());
}

#[test]
fn the_old_gateway_can_confirm_that_it_stopped() {
    let mut cluster = Cluster::with(2);
    let (vdi, _) = cluster.vdi("disk");
    let first = granted(cluster.run(100, ask(vdi, None)));
    let generation = first.generation;
    assert_eq!(cluster.run(1, Command::Revoke { vdi, generation: Generation(1) }), Err(Refusal::StaleGuard));
    cluster.run(1, Command::Revoke { vdi, generation }).unwrap();
    let confirm = Command::ConfirmEnded { vdi, generation };
    assert_eq!(cluster.run(101, confirm.clone()), Err(Refusal::StaleGuard), "not for others");
    assert_eq!(cluster.run(100, confirm), Ok(Outcome::Done));
    assert_eq!(granted(cluster.run(101, ask(vdi, None))).wait_after, None);
}

#[test]
fn a_lock_request_names_its_attachment() {
    let mut cluster = Cluster::with(1);
    let (vdi, _) = cluster.vdi("disk");
    let first = attach(&mut cluster, vdi, 100, false).unwrap();
    assert_eq!(attach(&mut cluster, vdi, 100, false), Ok(first), "asked again");
    assert_eq!(attach(&mut cluster, vdi, 101, false), Err(Refusal::Attached(n(100))));
    assert_eq!(attach(&mut cluster, vdi, 55, false), Err(Refusal::NoSuchNode(n(55))));
    assert_eq!(cluster.run(100, ask(vdi, None)), Err(Refusal::NotAttached));
    assert_eq!(cluster.run(101, ask(vdi, Some(first))), Err(Refusal::NotAttached));
    let held = granted(cluster.run(100, ask(vdi, Some(first))));
    cluster.run(1, Command::Detach { vdi, attachment: first }).unwrap();
    let ended = cluster.state.applied();
    assert_eq!(cluster.generation(vdi), None, "one fence, one entry");
    assert_eq!(cluster.state.vdi(vdi).unwrap().ended[0].generation, held.generation);
    let second = attach(&mut cluster, vdi, 101, false).unwrap();
    // The old node's retried request comes first, and is refused all the same.
    assert_eq!(cluster.run(100, ask(vdi, Some(first))), Err(Refusal::NotAttached));
    assert_eq!(cluster.run(100, ask(vdi, Some(second))), Err(Refusal::NotAttached));
    assert_eq!(granted(cluster.run(101, ask(vdi, Some(second)))).wait_after, Some(ended));
    assert_eq!(cluster.run(1, Command::Detach { vdi, attachment: first }), Ok(Outcome::Done), "again");
    let own = Command::Lock { vdi, attachment: Some(second), mode: AccessMode::Read, take_from: None };
    assert!(matches!(cluster.run(101, own), Err(Refusal::Locked { .. })), "it may read, but somebody writes");
    assert!(cluster.generation(vdi).is_some());
}

#[test]
fn a_migrating_vm_has_two_nodes_and_one_writer() {
    let mut cluster = Cluster::with(1);
    cluster.join(102, sheep_state::Role::Gateway, "");
    let (vdi, _) = cluster.vdi("disk");
    let source = attach(&mut cluster, vdi, 100, false).unwrap();
    let target = attach(&mut cluster, vdi, 101, true).unwrap();
    assert!(attach(&mut cluster, vdi, 102, true).is_err(), "not three");
    let first = granted(cluster.run(100, ask(vdi, Some(source))));
    let take = |take_from, attachment| Command::Lock {
        vdi,
        attachment: Some(attachment),
        mode: AccessMode::Write,
        take_from: Some(take_from),
    };
    assert!(matches!(cluster.run(101, ask(vdi, Some(target))), Err(Refusal::Locked { .. })));
    assert!(matches!(cluster.run(101, take(Generation(2), target)), Err(Refusal::Locked { .. })));
    let second = granted(cluster.run(101, take(first.generation, target)));
    assert!(second.generation > first.generation && !second.clean);
    assert_eq!(second.wait_after, Some(cluster.state.applied()));
    assert!(matches!(cluster.run(100, take(first.generation, source)), Err(Refusal::Locked { .. })));
    cluster.run(1, Command::Detach { vdi, attachment: source }).unwrap();
    assert_eq!(cluster.generation(vdi), Some(second.generation), "the writer stays");
}

#[test]
fn readers_share_and_keep_writers_and_deletion_away() {
    let mut cluster = Cluster::with(1);
    let (vdi, _) = cluster.vdi("disk");
    let write = granted(cluster.run(100, ask(vdi, None)));
    assert!(matches!(cluster.run(101, read(vdi, None)), Err(Refusal::Locked { .. })));
    cluster.run(100, Command::Unlock { vdi, generation: write.generation, clean: false }).unwrap();
    assert_eq!(cluster.run(101, read(vdi, None)), Err(Refusal::NotClean));
    let settle = granted(cluster.run(100, ask(vdi, None)));
    cluster.run(100, Command::MarkSettled { vdi, generation: settle.generation }).unwrap();
    cluster.run(100, Command::Unlock { vdi, generation: settle.generation, clean: true }).unwrap();
    let one = granted(cluster.run(100, read(vdi, None)));
    let other = granted(cluster.run(101, read(vdi, None)));
    assert_eq!(granted(cluster.run(101, read(vdi, None))).generation, other.generation, "already");
    assert!(cluster.state.reader(vdi, cluster.member(101)).is_some());
    assert_eq!(cluster.run(1, ask(vdi, None)), Err(Refusal::InUseByReaders(2)));
    let delete = Command::DeleteVdi { vdi, guard: sheep_state::Guard::ClosedClean };
    assert_eq!(cluster.run(1, delete), Err(Refusal::InUseByReaders(2)));
    cluster.run(100, Command::Unlock { vdi, generation: one.generation, clean: false }).unwrap();
    assert!(cluster.state.vdi(vdi).unwrap().is_clean(), "reading changes nothing");
    cluster.install_without(&[101]);
    let ended = cluster.state.applied();
    // It may still read what the next writer overwrites.
    let next = granted(cluster.run(1, ask(vdi, None)));
    assert_eq!((next.clean, next.wait_after), (true, Some(ended)));
}

#[test]
fn read_and_write_attachments_exclude_each_other() {
    let mut cluster = Cluster::with(1);
    let (vdi, _) = cluster.vdi("disk");
    let read_attach = |node| Command::Attach { vdi, node: n(node), mode: AccessMode::Read, share: false };
    let Ok(Outcome::Attached { attachment }) = cluster.run(1, read_attach(100)) else { panic!() };
    cluster.run(1, read_attach(101)).unwrap();
    assert_eq!(attach(&mut cluster, vdi, 1, true), Err(Refusal::Attached(n(100))));
    assert_eq!(attach(&mut cluster, vdi, 100, true), Err(Refusal::Attached(n(100))), "another mode");
    assert_eq!(cluster.run(100, ask(vdi, Some(attachment))), Err(Refusal::NotAttached), "not for writing");
    granted(cluster.run(100, read(vdi, Some(attachment))));
    cluster.run(1, Command::Detach { vdi, attachment }).unwrap();
    assert!(cluster.state.vdi(vdi).unwrap().readers.is_empty());
}

#[test]
fn a_removed_node_loses_what_it_had() {
    let mut cluster = Cluster::with(1);
    let (vdi, _) = cluster.vdi("disk");
    let attachment = attach(&mut cluster, vdi, 100, false).unwrap();
    granted(cluster.run(100, ask(vdi, Some(attachment))));
    assert_eq!(cluster.state.vdis_used_by(n(100)).collect::<Vec<_>>(), [vdi]);
    cluster.run(1, Command::NodeRemove { node: n(100), force: false }).unwrap();
    let record = cluster.state.vdi(vdi).unwrap();
    assert!(record.lock.is_none() && record.attachments.is_empty() && record.ended.len() == 1);
    assert_eq!(cluster.state.vdis_used_by(n(100)).count(), 0);
}

#[test]
fn who_asks_again_for_what_it_holds_is_told_so_whatever_is_attached() {
    let mut cluster = Cluster::with(2);
    let (vdi, _) = cluster.vdi("disk");
    let held = granted(cluster.run(100, ask(vdi, None))).generation;
    attach(&mut cluster, vdi, 100, false).unwrap();
    let locked = Refusal::Locked { holder: cluster.member(100), generation: held };
    assert_eq!(cluster.run(100, ask(vdi, None)), Err(locked));
    assert_eq!(cluster.run(101, ask(vdi, None)), Err(Refusal::NotAttached));
    cluster.run(100, Command::Unlock { vdi, generation: held, clean: true }).unwrap();
    assert_eq!(cluster.run(100, ask(vdi, None)), Err(Refusal::NotAttached));
    let (shared, _) = cluster.vdi("shared");
    let reader = granted(cluster.run(100, read(shared, None))).generation;
    let attach = Command::Attach { vdi: shared, node: n(101), mode: AccessMode::Read, share: false };
    cluster.run(1, attach).unwrap();
    let locked = Refusal::Locked { holder: cluster.member(100), generation: reader };
    assert_eq!(cluster.run(100, read(shared, None)), Err(locked));
}
