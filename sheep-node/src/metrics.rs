//! Metrics, read from what the node publishes when they are asked for. All names begin with `sheepdog_`.

use crate::handle::NodeHandle;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use sheep_datapath::ScrubStatus;
use sheep_state::{ClusterState, NodeState, Role};
use sheep_store::Condition;
use std::fmt;

/// Endings of the published numbers that are not counters.
const LEVELS: [&str; 5] = ["_waiting", "_clients", "_encrypted", "_lost", "_surplus"];

/// The metrics of a node.
pub(crate) struct Metrics {
    registry: Registry,
}

impl Metrics {
    pub(crate) fn new(node: NodeHandle) -> Self {
        let mut registry = Registry::with_prefix("sheepdog");
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The program", Info::new(version));
        registry.register_collector(Box::new(NodeCollector(node)));
        Self { registry }
    }

    /// As OpenMetrics text.
    pub(crate) fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

struct NodeCollector(NodeHandle);

impl fmt::Debug for NodeCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeCollector")
    }
}

fn number(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

struct Gauges<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Gauges<'_, '_> {
    fn set(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.with_unit(name, help, None, value)
    }

    fn bytes(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.with_unit(name, help, Some(&Unit::Bytes), value)
    }

    fn with_unit(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        number(value).encode(self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?)
    }

    fn counter(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, unit, MetricType::Counter)?)
    }
}

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (status, data) = (self.0.status(), self.0.data());
        let mut gauges = Gauges(&mut encoder);
        let uptime = self.0.started.elapsed().as_secs();
        gauges.with_unit("uptime", "Time since the node's start", Some(&Unit::Seconds), uptime)?;
        gauges.set("primary", "1 while the node is in the primary component", u64::from(status.primary))?;
        gauges.set(
            "ring_members",
            "Members of the ring's configuration",
            status.ring_members.len() as u64,
        )?;
        gauges.set("term", "Number of the log's term", status.term.number)?;
        gauges.set("voters", "Voters of the log", status.voters.len() as u64)?;
        gauges.set("log_commit_index", "Last entry known to be committed", status.commit.0)?;
        gauges.bytes("store_capacity", "Bytes that this node's store can hold", data.capacity)?;
        gauges.bytes("store_used", "Bytes that it holds", data.used)?;
        gauges.set("store_objects", "Objects that it holds", data.objects)?;
        let in_use = |found: &&crate::handle::DiskStatus| found.disk.condition == Condition::Working;
        let failed = |found: &&crate::handle::DiskStatus| found.disk.condition == Condition::Failed;
        gauges.set(
            "disks",
            "Disks of this node that work",
            data.disks.iter().filter(in_use).count() as u64,
        )?;
        let help = "Disks of this node that have failed";
        gauges.set("disks_failed", help, data.disks.iter().filter(failed).count() as u64)?;
        gauges.set("store_failed", "1 after the store has failed", u64::from(data.failed.is_some()))?;
        gauges.set("open_vdis", "Volumes that are open on this node", data.open_vdis.into())?;
        gauges.set("recovery_epoch", "Epoch that recovery works on", data.recovery_epoch)?;
        let left = data.recovery_total.saturating_sub(data.recovery_done);
        gauges.set("recovery_objects", "Objects of this node that are not yet up to date", left)?;
        gauges.bytes("recovery_left", "Bytes thought to be fetched yet", data.recovery_bytes_left)?;
        let time_left = data.recovery_time_left.unwrap_or_default().as_secs();
        let help = "Time until this node is up to date, at the pace so far";
        gauges.with_unit("recovery_time_left", help, Some(&Unit::Seconds), time_left)?;
        gauges.counter(
            "recovery",
            "Bytes fetched from other nodes to bring copies up to date",
            Some(&Unit::Bytes),
            data.recovery_bytes_ever,
        )?;
        gauges.bytes(
            "recovery_pace",
            "Bytes per second that recovery is held to because clients waited; 0: it is not",
            data.recovery_pace.unwrap_or_default(),
        )?;
        encode_scrub(&mut gauges, &data.scrub)?;
        gauges.set("lost_objects", "Objects that no node has any more", data.lost.values().sum())?;
        if let Some(published) = &status.published {
            encode_state(&mut gauges, &published.state)?;
        }
        for (name, value) in status.counters.iter().chain(&data.counters) {
            let help = name.replace('_', " ");
            // What goes up and down is no counter.
            if LEVELS.iter().any(|ending| name.ends_with(ending)) {
                gauges.set(name, &help, *value)?;
            } else {
                gauges.counter(name.strip_suffix("_total").unwrap_or(name), &help, None, *value)?;
            }
        }
        Ok(())
    }
}

fn encode_scrub(gauges: &mut Gauges<'_, '_>, scrub: &ScrubStatus) -> fmt::Result {
    gauges.set("scrub_running", "1 while a pass of scrubbing is under way", u64::from(scrub.running))?;
    gauges.counter("scrub_read", "Bytes read by scrubbing", Some(&Unit::Bytes), scrub.bytes_ever)?;
    let help = "Copies of this node that are known to be damaged";
    gauges.set("scrub_damaged_now", help, scrub.damaged_now)?;
    let help = "Blocks of this node's copies that no node had any more";
    gauges.set("lost_blocks", help, scrub.lost_blocks)?;
    let help = "End of the last complete pass, since the Unix epoch";
    let last = scrub.last_pass.unwrap_or_default().as_secs();
    gauges.with_unit("scrub_last_pass", help, Some(&Unit::Seconds), last)
}

fn encode_state(gauges: &mut Gauges<'_, '_>, state: &ClusterState) -> fmt::Result {
    gauges.set("epoch", "Number of the membership list", state.epoch().0)?;
    gauges.set("log_applied_index", "Last entry applied on this node", state.applied().0)?;
    gauges.set("vdis", "Volumes of the cluster", state.vdi_count() as u64)?;
    let due = state.sweeps_due().len() as u64;
    gauges.set("sweeps_due", "Deleted volumes and snapshots of which objects may be free", due)?;
    let counts = [("up", 0), ("down", 1), ("leaving", 2), ("out", 3)];
    let mut numbers = [0u64; 4];
    for record in state.nodes().filter(|record| record.role == Role::Storage) {
        let place = match record.state {
            NodeState::Up => 0,
            NodeState::Down { .. } => 1,
            NodeState::Leaving => 2,
            NodeState::Out { .. } => 3,
        };
        if let Some(number) = numbers.get_mut(place) {
            *number += 1;
        }
    }
    let mut nodes = gauges.0.encode_descriptor("nodes", "Storage nodes by state", None, MetricType::Gauge)?;
    for (label, place) in counts {
        let value = numbers.get(place).copied().unwrap_or_default();
        number(value).encode(nodes.encode_family(&[("state", label)])?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeNode;

    #[test]
    fn names_have_the_prefix_units_and_endings() {
        let fake = FakeNode::start();
        fake.set_status(|status| status.counters = vec![("ring_token_losses", 7), ("nbd_clients", 2)]);
        fake.set_data(|data| {
            data.capacity = 1 << 30;
            data.recovery_total = 9;
            data.recovery_done = 4;
            data.recovery_bytes_ever = 5;
            data.recovery_bytes_left = 6;
            data.recovery_time_left = Some(std::time::Duration::from_millis(7999));
        });
        let text = Metrics::new(fake.handle.clone()).encode().unwrap();
        for line in [
            "sheepdog_build_info{version=",
            "sheepdog_nodes{state=\"up\"} 1",
            "sheepdog_nodes{state=\"down\"} 0",
            "sheepdog_voters 1",
            "sheepdog_primary 1",
            "sheepdog_store_capacity_bytes 1073741824",
            "sheepdog_recovery_objects 5",
            "sheepdog_recovery_bytes_total 5",
            "sheepdog_recovery_left_bytes 6",
            "sheepdog_recovery_time_left_seconds 7",
            "sheepdog_ring_token_losses_total 7",
            "sheepdog_nbd_clients 2",
            "# TYPE sheepdog_ring_token_losses counter",
            "sheepdog_uptime_seconds ",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        assert!(samples.clone().count() > 15);
        assert!(samples.clone().all(|line| line.starts_with("sheepdog_")), "{text}");
    }
}
