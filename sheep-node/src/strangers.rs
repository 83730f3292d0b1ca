//! Tells the operator of datagrams from nodes that cannot belong here, and of a node that nobody answers: each
//! looks like a network that does not work, and is a mistake in somebody's configuration.

use crate::again::{AGAIN, Said};
use sheep_types::{ClusterId, Time};
use std::net::SocketAddr;
use std::time::Duration;
use tracing::warn;

/// How long a node without a cluster waits before it says that nobody answers.
const ALONE: Duration = Duration::from_secs(5);

/// What is known now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    /// Datagrams that this node's key does not open.
    pub(crate) bad_key: u64,
    /// Where the last one of them came from.
    pub(crate) stranger: Option<SocketAddr>,
    /// Datagrams of another cluster with the same key.
    pub(crate) foreign: u64,
    /// This node's cluster; zero: none yet.
    pub(crate) cluster: ClusterId,
    /// It was told where others are.
    pub(crate) seeded: bool,
}

/// What was said, and when.
#[derive(Debug)]
pub(crate) struct Strangers {
    bad_key: (u64, Said),
    foreign: (u64, Said),
    alone: Time,
}

/// Whether a counter has grown and enough time has passed to say so.
fn due(said: &mut (u64, Said), count: u64, now: Time) -> bool {
    let due = count > said.0 && said.1.again(now);
    if due {
        said.0 = count;
    }
    due
}

impl Strangers {
    pub(crate) fn new(now: Time) -> Self {
        Self { bad_key: (0, Said::default()), foreign: (0, Said::default()), alone: now + ALONE }
    }

    /// What there is to say now.
    pub(crate) fn look(&mut self, now: Time, heard: Heard) -> Vec<String> {
        let mut said = Vec::new();
        if due(&mut self.bad_key, heard.bad_key, now) {
            let from = heard.stranger.map_or_else(String::new, |address| format!(" from {address}"));
            said.push(format!(
                "datagrams{from} are not sealed with this cluster's key; they are dropped ({} so far). A node there \
                 has the key of another cluster",
                heard.bad_key
            ));
        }
        if due(&mut self.foreign, heard.foreign, now) {
            said.push(format!(
                "nodes of another cluster with the same key call here; they are not let in ({} datagrams so far). This \
                 node belongs to cluster {}; a directory belongs to one cluster for ever",
                heard.foreign, heard.cluster
            ));
        }
        if heard.cluster == ClusterId(0) && heard.seeded && now >= self.alone {
            self.alone = now + AGAIN;
            said.push(
                "no cluster has answered yet: check the addresses given with --seed, the network, and that --key is \
                 the key of that cluster"
                    .into(),
            );
        }
        said
    }

    /// Looks, and says it.
    pub(crate) fn tell(&mut self, now: Time, heard: Heard) {
        for line in self.look(now, heard) {
            warn!("{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Heard =
        Heard { bad_key: 0, stranger: None, foreign: 0, cluster: ClusterId(7), seeded: true };

    fn at(seconds: u64) -> Time {
        Time::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn each_mistake_is_named_once_a_minute() {
        let mut strangers = Strangers::new(at(0));
        assert_eq!(strangers.look(at(100), QUIET), Vec::<String>::new());
        let wrong = Heard { bad_key: 3, stranger: "10.0.0.9:7000".parse().ok(), ..QUIET };
        let said = strangers.look(at(100), wrong);
        assert!(said.len() == 1 && said[0].contains("10.0.0.9:7000") && said[0].contains("key"), "{said:?}");
        assert!(strangers.look(at(101), Heard { bad_key: 9, ..wrong }).is_empty());
        assert!(strangers.look(at(200), wrong).is_empty(), "nothing new has come");
        assert_eq!(strangers.look(at(200), Heard { bad_key: 10, ..wrong }).len(), 1);
        let said = strangers.look(at(201), Heard { foreign: 1, bad_key: 10, ..wrong });
        assert!(said.len() == 1 && said[0].contains("another cluster"), "{said:?}");
    }

    #[test]
    fn a_node_that_nobody_answers_says_so() {
        let mut strangers = Strangers::new(at(0));
        let alone = Heard { cluster: ClusterId(0), ..QUIET };
        assert!(strangers.look(at(1), alone).is_empty());
        assert!(
            strangers.look(at(6), Heard { seeded: false, ..alone }).is_empty(),
            "it waits to be formatted"
        );
        assert_eq!(strangers.look(at(6), alone).len(), 1);
        assert!(strangers.look(at(7), alone).is_empty());
    }
}
