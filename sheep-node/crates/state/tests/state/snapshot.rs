use crate::cluster::{Cluster, create, genesis};
use sheep_state::{Applied, ClusterState, Command, EntryKind, Genesis, SnapshotError};
use sheep_types::{ClusterId, CommandSeq, Incarnation, LogIndex, Member, NodeId};

fn busy() -> Cluster {
    let mut cluster = Cluster::with(5);
    for i in 0..300 {
        cluster.vdi(&format!("vdi-{i}"));
        if i % 20 == 0 {
            cluster.restart(i / 20 % 5 + 1);
        }
    }
    cluster.install_without(&[2, 100]);
    cluster
}

#[test]
fn a_snapshot_returns_the_same_state() {
    let cluster = busy();
    let bytes = cluster.state.encode_snapshot();
    let mut decoded = ClusterState::decode_snapshot(&bytes).unwrap();
    assert_eq!(decoded, cluster.state);
    assert_eq!(decoded.hash(), cluster.state.hash());
    assert_eq!(decoded.encode_snapshot(), bytes);
    assert!(decoded.vdi_by_name("vdi-299").is_some());
    // And goes on in the same way.
    let entry = EntryKind::Command {
        origin: Member { node: NodeId(101), incarnation: Incarnation(1) },
        seq: CommandSeq(2),
        command: Command::CreateVdi(create("more")),
    };
    let mut original = cluster.state.clone();
    let index = LogIndex(original.applied().0 + 1);
    assert_eq!(original.apply(index, &entry), decoded.apply(index, &entry));
    assert_eq!(original.hash(), decoded.hash());
    assert_ne!(original.hash(), cluster.state.hash(), "the clone did not change with it");
}

#[test]
fn replaying_the_log_gives_the_same_bytes() {
    let cluster = busy();
    let mut again = ClusterState::new();
    for (index, entry) in (1..).zip(&cluster.log) {
        again.apply(LogIndex(index), entry);
    }
    assert_eq!(again.encode_snapshot(), cluster.state.encode_snapshot());
}

#[test]
fn garbage_is_refused() {
    let bytes = Cluster::with(3).state.encode_snapshot();
    let decode = ClusterState::decode_snapshot;
    assert_eq!(decode(b""), Err(SnapshotError::NotASnapshot));
    assert_eq!(decode(&[0; 100]), Err(SnapshotError::NotASnapshot));
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        assert!(decode(&damaged).is_err(), "byte {at}");
        assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
    }
    let mut newer = bytes.clone();
    newer[8] = 99;
    assert_eq!(decode(&newer), Err(SnapshotError::Version(99)));
    let longer = [&bytes[..], b"x"].concat();
    assert_eq!(decode(&longer), Err(SnapshotError::Damaged));
}

#[test]
fn commands_survive_encoding_and_nonsense_is_unknown() {
    let command = Command::CreateVdi(create("v"));
    let bytes = command.encode();
    assert_eq!(Command::decode(&bytes), command);
    for bad in
        [&b""[..], &bytes[1..], &bytes[..bytes.len() - 1], &[&bytes[..], b"x"].concat(), &[1, 255, 255]]
    {
        assert_eq!(Command::decode(bad), Command::Unknown);
    }
    assert_eq!(Genesis::decode(&genesis().encode()), Some(genesis()));
    let nameless = Genesis { cluster: ClusterId(0), ..genesis() };
    assert_eq!(Genesis::decode(&nameless.encode()), None);
    let two = Genesis { voters: vec![NodeId(1), NodeId(2)], ..genesis() };
    assert_eq!(Genesis::decode(&two.encode()), None);
}

#[test]
fn nothing_happens_before_and_one_cluster_after_genesis() {
    let mut state = ClusterState::new();
    let origin = Member { node: NodeId(1), incarnation: Incarnation(1) };
    let command = Command::CreateVdi(create("v"));
    let applied = state.apply(LogIndex(1), &EntryKind::Command { origin, seq: CommandSeq(1), command });
    assert_eq!((applied.answer, state.vdi_count()), (None, 0));
    state.apply(LogIndex(2), &EntryKind::Genesis(genesis()));
    // An entry of a later version takes its place and changes nothing else.
    let before = state.clone();
    let applied = state.apply(LogIndex(3), &EntryKind::Unknown);
    assert_eq!((applied, state.applied()), (Applied::default(), LogIndex(3)));
    assert_eq!((state.members(), state.settings()), (before.members(), before.settings()));
    let other = Genesis { cluster: ClusterId(78), ..genesis() };
    state.apply(LogIndex(4), &EntryKind::Genesis(other));
    assert_eq!(state.cluster(), ClusterId(77));
}
