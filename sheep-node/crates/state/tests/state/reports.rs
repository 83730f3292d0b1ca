use crate::cluster::{Cluster, n};
use sheep_state::{Command, DownCause, NodeState, Outcome, Refusal};
use sheep_types::LogIndex;

fn report(cluster: &mut Cluster, from: u64, of: u64) -> LogIndex {
    let command = Command::Report { suspect: cluster.member(of), epoch: cluster.state.epoch() };
    match cluster.run(from, command) {
        Ok(Outcome::Reported { report }) => report,
        other => panic!("{other:?}"),
    }
}

fn test(cluster: &mut Cluster, tester: u64, report: LogIndex, reachable: bool) {
    cluster.run(tester, Command::ReportResult { report, reachable }).unwrap();
}

#[test]
fn a_second_witness_brings_the_reported_down() {
    let mut cluster = Cluster::with(4);
    let index = report(&mut cluster, 100, 3);
    assert_eq!(cluster.state.open_reports().next().unwrap().awaited, [n(1), n(2), n(4)].into());
    test(&mut cluster, 1, index, true);
    assert!(cluster.is_up(3));
    test(&mut cluster, 2, index, false);
    assert!(!cluster.is_up(3));
    assert!(matches!(
        cluster.state.node(n(3)).unwrap().state,
        NodeState::Down { cause: DownCause::Reported, .. }
    ));
    assert_eq!(cluster.state.open_reports().count(), 0);
    let late = Command::ReportResult { report: index, reachable: true };
    assert_eq!(cluster.run(4, late), Err(Refusal::NoSuchReport));
}

#[test]
fn if_only_one_pair_cannot_talk_the_reported_goes() {
    let mut cluster = Cluster::with(4);
    let index = report(&mut cluster, 1, 2);
    test(&mut cluster, 3, index, true);
    test(&mut cluster, 4, index, true);
    assert!(cluster.is_up(1) && !cluster.is_up(2));
}

#[test]
fn of_mutual_reports_the_lower_id_stays() {
    let mut cluster = Cluster::with(4);
    report(&mut cluster, 1, 2);
    let index = report(&mut cluster, 2, 1);
    assert_eq!(report(&mut cluster, 2, 1), index, "once is enough");
    test(&mut cluster, 3, index, true);
    test(&mut cluster, 4, index, true);
    assert!(cluster.is_up(1) && !cluster.is_up(2));
    assert_eq!(cluster.state.open_reports().count(), 0, "the other report is about a node that is down");
}

#[test]
fn whoever_cannot_reach_several_goes_itself() {
    let mut cluster = Cluster::with(5);
    let first = report(&mut cluster, 1, 2);
    let second = report(&mut cluster, 1, 3);
    for tester in [4, 5, 3] {
        test(&mut cluster, tester, first, true);
    }
    assert!(!cluster.is_up(1) && cluster.is_up(2) && cluster.is_up(3));
    assert_eq!(cluster.run(4, Command::CloseReport { report: second }), Err(Refusal::NoSuchReport));
}

#[test]
fn a_second_report_after_the_first_was_decided_finds_the_culprit() {
    let mut cluster = Cluster::with(5);
    let first = report(&mut cluster, 1, 2);
    cluster.run(3, Command::CloseReport { report: first }).unwrap();
    assert!(!cluster.is_up(2));
    let second = report(&mut cluster, 1, 3);
    cluster.run(4, Command::CloseReport { report: second }).unwrap();
    assert!(!cluster.is_up(1) && cluster.is_up(3));
}

#[test]
fn what_was_decided_is_forgotten_in_the_next_term_and_when_a_node_returns() {
    let mut cluster = Cluster::with(6);
    let first = report(&mut cluster, 1, 2);
    cluster.run(3, Command::CloseReport { report: first }).unwrap();
    cluster.return_of(2).unwrap();
    let second = report(&mut cluster, 1, 3);
    cluster.run(4, Command::CloseReport { report: second }).unwrap();
    assert!(cluster.is_up(1) && !cluster.is_up(3));
    cluster.install_without(&[3]);
    let third = report(&mut cluster, 1, 4);
    cluster.run(5, Command::CloseReport { report: third }).unwrap();
    assert!(cluster.is_up(1) && !cluster.is_up(4));
}

#[test]
fn stale_and_foolish_reports_do_nothing() {
    let mut cluster = Cluster::with(3);
    let (suspect, epoch) = (cluster.member(2), cluster.state.epoch());
    cluster.restart(3);
    assert_eq!(cluster.run(1, Command::Report { suspect, epoch }), Err(Refusal::StaleView));
    let epoch = cluster.state.epoch();
    let suspect = cluster.member(100);
    assert_eq!(cluster.run(1, Command::Report { suspect, epoch }), Err(Refusal::NotStorage(n(100))));
    let own = Command::Report { suspect: cluster.member(2), epoch };
    assert_eq!(cluster.run(2, own), Ok(Outcome::Done), "its own check failed");
    assert!(!cluster.is_up(2));
}

#[test]
fn the_last_storage_node_stays_and_the_gateway_goes() {
    let mut cluster = Cluster::with(1);
    report(&mut cluster, 100, 1);
    assert!(cluster.is_up(1) && !cluster.is_up(100));
}

#[test]
fn a_tester_that_dies_is_not_waited_for() {
    let mut cluster = Cluster::with(3);
    report(&mut cluster, 1, 2);
    cluster.install_without(&[3]);
    assert!(cluster.is_up(1) && !cluster.is_up(2));
}
