//! One node, by hand: the interface as the engine uses it, limits, and hostile input.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use proptest::prelude::*;
use sheep_log::{
    CommittedKind, Configuration, Delivery, Log, LogConfig, Note, Output, PersistId, ProposeError, Recovered,
    TokenSeen,
};
use sheep_types::{ClusterId, CommandSeq, ConfigId, Incarnation, LogIndex, Member, NodeId, Time};
use std::time::Duration;

const ME: Member = Member { node: NodeId(1), incarnation: Incarnation(1) };
const TERM: ConfigId = ConfigId { number: 2, representative: NodeId(1) };

fn at(ms: u64) -> Time {
    Time::from_nanos(ms * 1_000_000)
}

fn drain(log: &mut Log) -> Vec<Output> {
    std::iter::from_fn(|| log.poll_output()).collect()
}

fn open(config: LogConfig) -> Log {
    let file = Log::format(ClusterId(9), NodeId(1), 0, Bytes::from_static(b"settings"));
    let mut log = Log::open(config, ME, Recovered::decode(file).unwrap(), at(0));
    let outputs = drain(&mut log);
    assert!(matches!(&outputs[0], Output::Commit(e) if matches!(e[0].kind, CommittedKind::Genesis { .. })));
    log
}

fn deliver(log: &mut Log, position: u64, payload: Bytes) -> Vec<Output> {
    log.handle_delivery(at(3), Delivery { config: TERM, position, sender: ME, payload, transitional: false });
    drain(log)
}

fn persisted(outputs: &[Output]) -> Option<PersistId> {
    outputs.iter().rev().find_map(|o| match o {
        Output::Persist { id, .. } | Output::Rewrite { id, .. } => Some(*id),
        _ => None,
    })
}

fn durable(log: &mut Log, outputs: &[Output]) -> Vec<Output> {
    log.handle_durable(at(4), persisted(outputs).expect("something to be made durable"));
    drain(log)
}

/// Up to the committed install entry.
fn primary(config: LogConfig) -> Log {
    let mut log = open(config);
    log.handle_configuration(at(1), Configuration { id: TERM, regular: true, members: vec![ME] });
    let outputs = drain(&mut log);
    assert!(!outputs.iter().any(|o| matches!(o, Output::Multicast(_))), "promised before it is durable");
    let outputs = durable(&mut log, &outputs);
    let promise = outputs.into_iter().find_map(|o| match o {
        Output::Multicast(payload) => Some(payload),
        _ => None,
    });
    let outputs = deliver(&mut log, 1, promise.unwrap());
    assert!(outputs.contains(&Output::Primary(true)) && log.is_primary() && !log.is_installed());
    durable(&mut log, &outputs);
    assert!(log.is_installed());
    log
}

#[test]
fn a_lone_node_commits_when_its_disk_says_so() {
    let mut log = primary(LogConfig::default());
    assert_eq!(log.propose(at(5), Bytes::from_static(b"x")), Ok(CommandSeq(1)));
    let Some(Output::Multicast(payload)) = drain(&mut log).pop() else { panic!("the command is sent") };
    let outputs = deliver(&mut log, 2, payload);
    assert!(!outputs.iter().any(|o| matches!(o, Output::Commit(_))), "not durable yet");
    let outputs = durable(&mut log, &outputs);
    let committed = outputs.iter().find_map(|o| match o {
        Output::Commit(entries) => entries.first(),
        _ => None,
    });
    assert_eq!((committed.unwrap().index, log.applied(), log.stats().queued), (LogIndex(3), LogIndex(3), 0));
}

#[test]
fn the_lease_runs_from_the_stamp() {
    let mut log = primary(LogConfig { lease: Duration::from_millis(100), ..LogConfig::default() });
    let token = |rotation, passed_previous| {
        let note = Note { written_rotation: rotation - 1, ..Note::default() };
        TokenSeen { config: TERM, rotation, passed_previous, notes: vec![(ME, note)] }
    };
    log.handle_token(at(10), token(1, None));
    assert_eq!(log.lease_deadline(at(10)), None, "no whole rotation yet");
    log.handle_token(at(60), token(2, Some(at(10))));
    assert_eq!(drain(&mut log), [Output::LeaseRenewed(at(110))]);
    assert_eq!((log.lease_deadline(at(109)), log.lease_deadline(at(110))), (Some(at(110)), None));
    // A later configuration does not end it; the applied state does.
    let id = ConfigId { number: 3, ..TERM };
    log.handle_configuration(at(61), Configuration { id, regular: true, members: vec![ME] });
    assert_eq!(log.lease_deadline(at(62)), Some(at(110)));
    log.set_lease_allowed(false);
    assert_eq!(log.lease_deadline(at(62)), None);
}

#[test]
fn limits_are_kept() {
    let config = LogConfig { queue_commands: 2, ..LogConfig::default() };
    let mut log = open(config.clone());
    let large = Bytes::from(vec![0; config.max_payload]);
    assert!(matches!(log.propose(at(1), large), Err(ProposeError::TooLarge { .. })));
    assert_eq!(log.propose(at(1), Bytes::new()), Ok(CommandSeq(1)));
    assert_eq!(log.propose(at(1), Bytes::new()), Ok(CommandSeq(2)));
    assert_eq!(log.propose(at(1), Bytes::new()), Err(ProposeError::QueueFull));
    assert_eq!(log.propose_voters(at(1), vec![NodeId(2)]), Err(ProposeError::NotPrimary));
    assert!(config.validate().is_ok());
    assert!(LogConfig { max_voters: 4, ..config.clone() }.validate().is_err());
    assert!(LogConfig { lease: Duration::ZERO, ..config }.validate().is_err());
}

#[test]
fn voter_lists_are_checked() {
    let mut log = primary(LogConfig::default());
    for list in [vec![], vec![1], vec![1, 2], vec![1, 2, 2], vec![3, 2, 1], vec![0, 1, 2]] {
        let list = list.into_iter().map(NodeId).collect();
        assert_eq!(log.propose_voters(at(5), list), Err(ProposeError::InvalidVoters));
    }
    let unknown = [1, 2, 3].map(NodeId).to_vec();
    assert_eq!(log.propose_voters(at(5), unknown), Err(ProposeError::NotCaughtUp(NodeId(2))));
}

#[test]
fn the_rings_number_is_kept() {
    let mut log = primary(LogConfig::default());
    let id = log.persist_number(40);
    let outputs = drain(&mut log);
    assert_eq!((persisted(&outputs), log.number()), (Some(id), 40));
}

#[test]
fn hostile_promises_do_no_harm() {
    // An index near the end of the range, and a last term above the configuration's.
    for (number, index) in [(1, u64::MAX), (9, 5)] {
        let mut log = open(LogConfig::default());
        log.handle_configuration(at(1), Configuration { id: TERM, regular: true, members: vec![ME] });
        drain(&mut log);
        let mut promise = vec![1, 1];
        promise.extend(9u128.to_le_bytes());
        let words = [TERM.number, 1, number, 1, index, 0, 1, 1, 1, 0];
        words.iter().for_each(|w: &u64| promise.extend(w.to_le_bytes()));
        promise.extend([1, 1, 0]);
        promise.extend(1u64.to_le_bytes());
        deliver(&mut log, 1, promise.into());
        assert!(!log.is_primary());
        assert_eq!(log.stats().dropped, 1);
    }
}

proptest! {
    #[test]
    fn garbage_does_no_harm(
        kind in 0u8..7,
        body in prop::collection::vec(any::<u8>(), 0..300),
        ordered in any::<bool>(),
    ) {
        let mut log = primary(LogConfig::default());
        let before = log.commit();
        if ordered {
            let mut payload = vec![kind];
            payload.extend(body);
            deliver(&mut log, 2, payload.into());
        } else {
            let mut message = vec![1, kind];
            message.extend(body);
            log.handle_message(at(5), NodeId(7), &message);
            drain(&mut log);
        }
        prop_assert_eq!(log.commit(), before);
        prop_assert!(log.is_primary());
    }
}
