//! Messages of one configuration: what was received, what was delivered, what is safe.

use crate::codec::{Multicast, Recovered};
use crate::stats::Stats;
use crate::types::{Configuration, Delivery, Output};
use bytes::Bytes;
use sheep_types::{Member, NodeId};
use std::collections::{BTreeMap, VecDeque};

/// A message that is kept until every member has it.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub origin: NodeId,
    pub recovered: Option<Recovered>,
    pub payloads: Vec<Bytes>,
}

/// What became of a message that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    New,
    /// Known already, or safe and forgotten.
    Duplicate,
    /// Beyond what flow control allows, or from nobody in the configuration.
    Refused,
}

/// The order of one configuration as this node knows it.
#[derive(Debug)]
pub(crate) struct Order {
    pub config: Configuration,
    messages: BTreeMap<u64, Stored>,
    /// All messages up to this sequence number were received.
    pub aru: u64,
    /// Highest sequence number received.
    pub high: u64,
    /// Whether the configuration was delivered to the layer above.
    pub installed: bool,
    delivered: u64,
    position: u64,
    /// Last positions of delivered messages that are not yet safe.
    ends: VecDeque<(u64, u64)>,
    safe: u64,
}

impl Order {
    pub(crate) fn new(config: Configuration) -> Self {
        Self {
            config,
            messages: BTreeMap::new(),
            aru: 0,
            high: 0,
            installed: false,
            delivered: 0,
            position: 0,
            ends: VecDeque::new(),
            safe: 0,
        }
    }

    /// Takes a message in. `reach` bounds how far above `aru` a sequence number may be.
    pub(crate) fn insert(&mut self, seq: u64, message: Stored, reach: u64) -> Inserted {
        if seq <= self.aru || self.messages.contains_key(&seq) {
            return Inserted::Duplicate;
        }
        if seq > self.aru + reach || self.config.index_of(message.origin).is_none() {
            return Inserted::Refused;
        }
        self.messages.insert(seq, message);
        self.high = self.high.max(seq);
        while self.messages.contains_key(&(self.aru + 1)) {
            self.aru += 1;
        }
        Inserted::New
    }

    /// A message to send again, if it is still kept.
    pub(crate) fn get(&self, seq: u64) -> Option<Multicast> {
        self.messages.get(&seq).map(|m| Multicast {
            config: self.config.id,
            seq,
            origin: m.origin,
            recovered: m.recovered,
            payloads: m.payloads.clone(),
        })
    }

    /// Sequence numbers kept in a range, lowest first.
    pub(crate) fn kept(&self, above: u64, to: u64) -> Vec<u64> {
        if above >= to {
            Vec::new()
        } else {
            self.messages.range(above + 1..=to).map(|(seq, _)| *seq).collect()
        }
    }

    /// Up to `max` sequence numbers up to `to` that are missing, lowest first.
    pub(crate) fn missing(&self, to: u64, reach: u64, max: usize) -> Vec<u64> {
        let to = to.min(self.aru + reach);
        (self.aru + 1..=to).filter(|seq| !self.messages.contains_key(seq)).take(max).collect()
    }

    /// Everything up to here was received by all.
    pub(crate) fn safe(&self) -> u64 {
        self.safe
    }

    /// Delivers what is next without a gap. Recovered messages have no payload of this configuration;
    /// before the configuration is installed only they are passed over.
    pub(crate) fn deliver(&mut self, out: &mut VecDeque<Output>, stats: &mut Stats) {
        while self.delivered < self.aru && self.deliver_one(out, stats) {}
    }

    /// Delivers the next message. Returns whether it could.
    fn deliver_one(&mut self, out: &mut VecDeque<Output>, stats: &mut Stats) -> bool {
        let seq = self.delivered + 1;
        let message = self.messages.get(&seq).expect("what is not safe is kept");
        if message.recovered.is_none() {
            if !self.installed {
                return false;
            }
            let sender = member(&self.config, message.origin);
            for payload in &message.payloads {
                self.position += 1;
                stats.delivered += 1;
                out.push_back(Output::Deliver(Delivery {
                    config: self.config.id,
                    position: self.position,
                    sender,
                    payload: payload.clone(),
                    transitional: false,
                }));
            }
        }
        self.delivered = seq;
        self.ends.push_back((seq, self.position));
        true
    }

    /// Delivers in the transitional configuration what lies behind the first hole: only messages of
    /// members that move along, as those of others may depend on what is missing.
    pub(crate) fn deliver_rest(&mut self, moving: &[Member], out: &mut VecDeque<Output>, stats: &mut Stats) {
        for message in self.messages.range(self.delivered + 1..).map(|(_, m)| m) {
            let sender = member(&self.config, message.origin);
            if message.recovered.is_some() || !moving.contains(&sender) {
                continue;
            }
            for payload in &message.payloads {
                stats.delivered_transitional += 1;
                out.push_back(Output::Deliver(Delivery {
                    config: self.config.id,
                    position: 0,
                    sender,
                    payload: payload.clone(),
                    transitional: true,
                }));
            }
        }
    }

    /// What must not be done: delivers what lies behind holes as if there were none.
    pub(crate) fn deliver_across_holes(&mut self, out: &mut VecDeque<Output>, stats: &mut Stats) {
        while let Some(next) = self.messages.range(self.delivered + 1..).next().map(|(seq, _)| *seq) {
            (self.delivered, self.aru) = (next - 1, self.aru.max(next));
            self.deliver_one(out, stats);
        }
    }

    /// All members have received everything up to `seq`: says so, and forgets what was delivered.
    pub(crate) fn advance_safe(&mut self, seq: u64, out: &mut VecDeque<Output>) {
        let seq = seq.min(self.delivered);
        if seq <= self.safe {
            return;
        }
        self.safe = seq;
        let mut before = None;
        while let Some((end, position)) = self.ends.front().copied().filter(|(end, _)| *end <= seq) {
            before = Some((end, position));
            self.ends.pop_front();
        }
        self.messages = self.messages.split_off(&(seq + 1));
        if let Some((_, position)) = before
            && self.installed
            && position > 0
        {
            out.push_back(Output::Safe { config: self.config.id, position });
        }
    }

    /// Messages kept: for the bound on memory.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }
}

fn member(config: &Configuration, node: NodeId) -> Member {
    let index = config.index_of(node).expect("origins were checked when messages came in");
    *config.members.get(index).expect("index of a member")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ConfigurationKind;
    use sheep_types::{ConfigId, Incarnation};

    fn order() -> Order {
        let members = (1..=3).map(|n| Member { node: NodeId(n), incarnation: Incarnation(1) }).collect();
        let id = ConfigId { number: 7, representative: NodeId(1) };
        let config = Configuration { id, kind: ConfigurationKind::Regular, members, previous: None };
        Order { installed: true, ..Order::new(config) }
    }

    fn message(origin: u64, payloads: &[&'static str]) -> Stored {
        let payloads = payloads.iter().map(|p| Bytes::from_static(p.as_bytes())).collect();
        Stored { origin: NodeId(origin), recovered: None, payloads }
    }

    fn positions(out: &VecDeque<Output>) -> Vec<(u64, bool)> {
        out.iter()
            .filter_map(|o| match o {
                Output::Deliver(d) => Some((d.position, d.transitional)),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn positions_count_payloads_and_stop_at_a_hole() {
        let (mut order, mut out, mut stats) = (order(), VecDeque::new(), Stats::default());
        assert_eq!(order.insert(1, message(1, &["a", "b"]), 10), Inserted::New);
        assert_eq!(order.insert(3, message(2, &["d"]), 10), Inserted::New);
        assert_eq!(order.insert(4, message(3, &["e"]), 10), Inserted::New);
        order.deliver(&mut out, &mut stats);
        assert_eq!(positions(&out), [(1, false), (2, false)]);
        assert_eq!(order.missing(5, 10, 9), [2, 5]);
        let moving = [Member { node: NodeId(2), incarnation: Incarnation(1) }];
        order.deliver_rest(&moving, &mut out, &mut stats);
        assert_eq!(positions(&out), [(1, false), (2, false), (0, true)]);
    }

    #[test]
    fn safe_messages_are_forgotten_and_cannot_come_back() {
        let (mut order, mut out, mut stats) = (order(), VecDeque::new(), Stats::default());
        for seq in 1..=3 {
            order.insert(seq, message(1, &["x"]), 10);
        }
        order.deliver(&mut out, &mut stats);
        order.advance_safe(2, &mut out);
        assert_eq!(out.back(), Some(&Output::Safe { config: order.config.id, position: 2 }));
        assert_eq!(order.len(), 1);
        assert_eq!(order.insert(1, message(1, &["x"]), 10), Inserted::Duplicate);
        assert_eq!(order.insert(99, message(1, &["x"]), 10), Inserted::Refused);
        assert_eq!(order.insert(4, message(9, &["x"]), 10), Inserted::Refused);
    }
}
