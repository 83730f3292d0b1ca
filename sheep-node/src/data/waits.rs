//! Tells the operator of volumes that are not served yet, and what they wait for.

use super::volumes::VolumeId;
use crate::again::Said;
use crate::health::name;
use sheep_datapath::OpenWait;
use sheep_state::{ClusterState, NodeState};
use sheep_types::{NodeId, Time, VdiId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A wait for nodes is told after this; most of them are back before.
const NODES_AFTER: Duration = Duration::from_secs(2);
/// Other waits end by themselves, and are told only if they do not.
const OTHERS_AFTER: Duration = Duration::from_secs(15);

/// A volume that is being opened.
pub(super) struct Opening {
    pub(super) volume: VolumeId,
    pub(super) vdi: VdiId,
    pub(super) wait: OpenWait,
}

struct Known {
    wait: OpenWait,
    /// Since when it has waited for that.
    since: Time,
    told: Said,
}

/// What is known of waiting volumes, and of nodes that are down.
#[derive(Default)]
pub(super) struct Waits {
    volumes: BTreeMap<VolumeId, Known>,
    /// Since when nodes have been down, as this node saw it.
    down: BTreeMap<NodeId, Time>,
}

impl Waits {
    /// What there is to say now: all sentences, and those of them that are to be logged.
    pub(super) fn look(
        &mut self,
        now: Time,
        state: &ClusterState,
        opening: Vec<Opening>,
    ) -> (Vec<String>, Vec<String>) {
        let is_down = |node: NodeId| {
            state.node(node).is_some_and(|record| matches!(record.state, NodeState::Down { .. }))
        };
        self.down.retain(|node, _| is_down(*node));
        for record in state.nodes().filter(|record| is_down(record.node)) {
            self.down.entry(record.node).or_insert(now);
        }
        let present: BTreeSet<VolumeId> = opening.iter().map(|opening| opening.volume).collect();
        self.volumes.retain(|volume, _| present.contains(volume));
        let (mut all, mut log) = (Vec::new(), Vec::new());
        for Opening { volume, vdi, wait } in opening {
            let fresh = || Known { wait: wait.clone(), since: now, told: Said::default() };
            let known = self.volumes.entry(volume).or_insert_with(fresh);
            if known.wait != wait {
                *known = fresh();
            }
            let after = if matches!(wait, OpenWait::Nodes(_)) { NODES_AFTER } else { OTHERS_AFTER };
            if now.since(known.since) < after {
                continue;
            }
            let vdi = state.vdi(vdi).map_or_else(|| vdi.to_string(), |record| record.name.clone());
            let text = format!("VDI {vdi} is not served yet: {}", why(now, state, &self.down, &wait));
            if known.told.again(now) {
                log.push(text.clone());
            }
            all.push(text);
        }
        (all, log)
    }
}

fn why(now: Time, state: &ClusterState, down: &BTreeMap<NodeId, Time>, wait: &OpenWait) -> String {
    let nodes = match wait {
        OpenWait::Order => return "the cluster has not ordered its lock, see `dog cluster info`.".into(),
        OpenWait::Lease => return "the lease of the node that had it open has not ended.".into(),
        OpenWait::Copies => {
            return "there are not yet current copies on enough nodes, see `dog cluster check`.".into();
        }
        OpenWait::Nodes(nodes) => nodes,
    };
    let names: Vec<String> = nodes.iter().map(|node| name(Some(state), *node)).collect();
    let since = nodes.iter().filter_map(|node| down.get(node)).max().copied().unwrap_or(now);
    let settings = state.settings();
    let until = if settings.automatic_out {
        let left = Duration::from_millis(settings.out_delay_ms).saturating_sub(now.since(since));
        format!("out, which is in about {} s at the earliest (out_delay_ms)", left.as_secs())
    } else {
        "out, which does not happen by itself because automatic_out is off".into()
    };
    format!(
        "it waits for node {}, which may have answered writes in memory that no other node has. Start it, or else wait \
         until it is {until}.",
        names.join(" and ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeNode, ME, OTHER};
    use sheep_state::{Command, Settings};

    fn opening(wait: OpenWait) -> Vec<Opening> {
        vec![Opening { volume: 1, vdi: VdiId(77), wait }]
    }

    #[test]
    fn a_wait_for_a_node_is_told_soon_again_and_until_it_ends() {
        let fake = FakeNode::start();
        let state = fake.state();
        let (mut waits, start) = (Waits::default(), Time::from_nanos(1));
        let wait = || opening(OpenWait::Nodes([OTHER.node].into()));
        let mut said = Vec::new();
        for second in 0..=130 {
            let (all, log) = waits.look(start + Duration::from_secs(second), &state, wait());
            assert_eq!(all.len(), usize::from(second >= 2), "at {second} s");
            said.extend(log.into_iter().map(|text| (second, text)));
        }
        assert_eq!(said.iter().map(|(second, _)| *second).collect::<Vec<_>>(), [2, 62, 122]);
        let id = OTHER.node.to_string();
        assert!(said.iter().all(|(_, text)| text.contains(&id) && text.contains("out_delay_ms")), "{said:?}");
        assert_eq!(waits.look(start, &state, Vec::new()), (Vec::new(), Vec::new()));
        assert!(waits.volumes.is_empty());
    }

    #[test]
    fn other_waits_are_told_only_when_they_last() {
        let fake = FakeNode::start();
        let state = fake.state();
        let (mut waits, start) = (Waits::default(), Time::from_nanos(1));
        for (second, wait) in [(0, OpenWait::Order), (14, OpenWait::Lease), (28, OpenWait::Copies)] {
            let (all, _) = waits.look(start + Duration::from_secs(second), &state, opening(wait));
            assert!(all.is_empty());
        }
        let (all, log) = waits.look(start + Duration::from_secs(43), &state, opening(OpenWait::Copies));
        assert!(all == log && log.len() == 1 && log[0].contains("current copies"), "{log:?}");
    }

    #[test]
    fn the_time_left_counts_from_when_the_node_went_down() {
        let fake = FakeNode::start();
        let state = fake.state();
        let down = [(OTHER.node, Time::from_nanos(1))].into();
        let now = Time::from_nanos(1) + Duration::from_secs(100);
        let wait = OpenWait::Nodes([OTHER.node].into());
        let left = state.settings().out_delay_ms / 1000 - 100;
        assert!(why(now, &state, &down, &wait).contains(&format!("about {left} s")));
        let settings = Settings { automatic_out: false, ..state.settings().clone() };
        fake.order(ME, Command::ChangeSettings { settings, seen: state.settings_at() }).unwrap();
        assert!(why(now, &fake.state(), &down, &wait).contains("automatic_out is off"));
    }
}
